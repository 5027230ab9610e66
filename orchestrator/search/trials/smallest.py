"""The smallest of many numbers without sorting all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def smallest(k: int, *keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Places of the `k` smallest by the first key, then by the next, then by place: as
    ``np.lexsort(keys[::-1])[:k]`` has them.

    Takes time in proportion to their number; none may be NaN.
    """
    first, *others = keys
    if k >= len(first):
        return np.lexsort(keys[::-1])
    bound = np.partition(first, k)[k]
    sure, tied = np.flatnonzero(first < bound), np.flatnonzero(first == bound)
    missing = k - len(sure)
    if others:
        tied = tied[smallest(missing, *(key[tied] for key in others))]
    chosen = np.sort(np.concatenate([sure, tied[:missing]]))
    result: npt.NDArray[np.intp] = chosen[np.lexsort([key[chosen] for key in keys[::-1]])]
    return result
