"""The lowest losses of functions drawn from the model, looked for over the whole space.

`Optima` compares the points of each cell that look best. That is enough to tell which is better,
but not to say that nothing else can be: where hardly any trial was, a drawn function may be lowest
anywhere. So this second look decides what is called *no difference*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.search.gp.paths import Paths
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.candidates import around, snapped, spread
from orchestrator.search.trials.history import Array, Column

N_PATHS = 200
N_SPREAD = 384
N_SEEN = 64
N_NEAR = 128
RADIUS = 0.05


def lowest(
    surrogate: Surrogate,
    searched: Sequence[Column],
    cells: Array,
    fixed: Array,
    rng: np.random.Generator,
) -> Array:
    """Of each function in each cell, at points spread, seen, and near those where functions are
    lowest, in the model's units; joint over the cells, shape (functions, cells).

    Args:
        cells: coordinates of the cells, one row per cell.
        fixed: for each cell the searched coordinates that it does not vary, NaN where it does.
    """
    paths = Paths(surrogate.posterior(), surrogate.y, rng, N_PATHS)
    seen = surrogate.x[np.argsort(surrogate.y, kind="stable")[:N_SEEN], : len(searched)]
    points = np.vstack([spread(searched, N_SPREAD, rng), snapped(searched, seen)])
    if not searched:
        points = points[:1]
    lows = np.empty((N_PATHS, len(cells)))
    for i, cell in enumerate(cells):
        mine = np.where(np.isnan(fixed[i]), points, fixed[i])
        values = paths.by_cell(mine, cell[None, :])[0, :, 1:]
        lows[:, i] = values.min(axis=0)
        if searched:
            often = np.bincount(values.argmin(axis=0), minlength=len(mine))
            best = mine[np.argsort(-often, kind="stable")[: min(32, np.count_nonzero(often))]]
            near = around(searched, best, RADIUS, max(1, N_NEAR // len(best)), rng)
            near = np.where(np.isnan(fixed[i]), near, fixed[i])
            values = paths.by_cell(near, cell[None, :])[0, :, 1:]
            lows[:, i] = np.minimum(lows[:, i], values.min(axis=0))
    return lows
