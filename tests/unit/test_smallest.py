"""The smallest of many numbers, as sorting all of them finds them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.trials.smallest import smallest

rows = st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1), st.integers(0, 1)), max_size=40)


@given(rows, st.integers(0, 45), st.integers(1, 3))
def test_they_are_the_first_of_a_stable_sort_by_the_keys(
    rows: list[tuple[int, float, int]], k: int, n_keys: int
) -> None:
    keys = [np.array([row[j] for row in rows], dtype=float) for j in range(n_keys)]
    assert smallest(k, *keys).tolist() == np.lexsort(keys[::-1])[:k].tolist()
