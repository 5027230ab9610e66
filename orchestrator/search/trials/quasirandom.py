"""Low-discrepancy points by ticket: ticket i gets the i-th point, whichever worker asks, so
parallel workers never repeat one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial

from orchestrator.lazy import uncollected
from orchestrator.search.trials.history import Array, Column

POSITION_KEY = "orchestrator:position"
"""``[index, seed]``: the point of the sequence that belongs to the new trial; by its number if
there is none.
"""

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def strided(ticket: int, n_cells: int, n_columns: int) -> int:
    """An index for a ticket such that each cell meets every residue class of the sequence's bases;
    injective.

    Tickets visit the cells in turn. With 8 cells and a sequence in base 2 one cell would get every
    8th point, and all of those lie in the same eighth of the first axis. So the indices of one cell
    are a stride apart that has no factor in common with the bases.
    """
    bases = math.prod(_PRIMES[: max(1, min(n_columns, len(_PRIMES)))])
    stride = n_cells
    while n_cells > 1 and math.gcd(stride, bases) > 1:
        stride += 1
    return ticket // n_cells * stride + ticket % n_cells


def unit_point(
    n_columns: int,
    index: int,
    seed: int | None,
    kind: Literal["sobol", "halton"] = "sobol",
    scramble: bool = True,
) -> Array:
    """The `index`-th point in [0, 1)^n of the sequence that `seed` scrambles."""
    with uncollected():
        from scipy.stats import qmc  # half a second: only where a study starts

    make = qmc.Sobol if kind == "sobol" else qmc.Halton
    engine = make(n_columns, scramble=scramble, rng=np.random.default_rng(seed))
    if index:
        engine.fast_forward(index)
    point: Array = engine.random(1)[0]
    return point


def point_of(searched: Sequence[Column], trial: FrozenTrial, seed: int | None) -> Array:
    """Model coordinates of the start-up point of `trial`; `seed` scrambles where the trial does not
    say with which.
    """
    index, scramble_seed = trial.system_attrs.get(POSITION_KEY, (trial.number, seed))
    unit = unit_point(len(searched), int(index), scramble_seed)
    return np.array([float(column.spread(unit[j : j + 1])[0]) for j, column in enumerate(searched)])
