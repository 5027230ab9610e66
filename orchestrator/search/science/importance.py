"""How much each searched parameter matters: from the model's surface over the whole declared space,
not from the trials, which lie where the sampler looked.

Total shares of the variance by Sobol's decomposition, estimated after Jansen, "Analysis of variance
designs for model output", 1999: half the mean squared change when that parameter alone is drawn
again, over the variance. Where losses diverge, all variance would be theirs: what lies far beyond
the median of the space is pressed together, as the model does beyond that of the trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.paths import Paths
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.science.results import Importance, Share
from orchestrator.search.trials.history import Array, Column

N_POINTS = 512
"""Points at which every parameter is drawn again."""
N_PATHS = 48
MOST_CELLS = 60
"""Of more cells, importances are found for those with the most trials."""
_MOST_VALUES = 1_000_000
"""So many values of functions are held at once."""
_INTERVAL = (0.05, 0.95)
_NORMAL = 1.645  # the same of a normal distribution


def importances(
    surrogate: Surrogate,
    searched: Sequence[Column],
    cells: Array,
    fixed: Array,
    rng: np.random.Generator,
) -> list[Importance]:
    """Of every searched parameter, the most important one first.

    Args:
        cells: coordinates of the cells, one row per cell.
        fixed: for each cell the searched coordinates that it does not vary, NaN where it does.
    """
    if not searched or not len(cells):
        return []
    scale = surrogate.scale
    paths = Paths(surrogate.posterior(), surrogate.y, rng, N_PATHS)
    base, again = (_stratified(searched, rng) for _ in range(2))
    absent = ~np.isnan(fixed)
    groups = [
        np.flatnonzero((absent == pattern).all(axis=1)) for pattern in np.unique(absent, axis=0)
    ]
    mean = [
        paths.posterior.mean_everywhere(np.where(absent[g[0]], fixed[g[0]], base), cells[g])
        for g in groups
    ]
    losses = scale.original(np.concatenate([m.ravel() for m in mean]))
    of_space = Scale.of(losses, np.zeros(len(losses), dtype=bool))
    changed = np.empty((len(cells), len(searched), 1 + N_PATHS))
    variance = np.empty((len(cells), 1 + N_PATHS))
    error = np.empty((len(cells), len(searched)))
    for group in groups:
        points = _points(base, again, fixed[group[0]])
        most = max(1, _MOST_VALUES // (len(points) * (1 + N_PATHS)))
        for some in np.split(group, range(most, len(group), most)):
            values = paths.by_cell(points, cells[some])
            pressed = _pressed(values, scale, of_space)
            present = np.flatnonzero(~absent[group[0]])
            changed[some], variance[some], error[some] = _parts(pressed, present, len(searched))
    found = []
    for j, column in enumerate(searched):
        there = np.flatnonzero(~absent[:, j])
        if len(there):
            parts = changed[there, j], variance[there], error[there, j]
            overall = _share(*(part.sum(axis=0) for part in parts))
            each = {int(i): _share(changed[i, j], variance[i], error[i, j]) for i in there}
            found.append(Importance(column.name, overall, each))
    return sorted(found, key=lambda importance: -importance.overall.share)


def _stratified(searched: Sequence[Column], rng: np.random.Generator) -> Array:
    """Points drawn uniformly on the columns' scales, each column in every stratum (McKay et al.,
    1979).
    """
    strata = rng.permuted(np.tile(np.arange(N_POINTS)[:, None], (1, len(searched))), axis=0)
    uniform = (strata + rng.random(strata.shape)) / N_POINTS
    return np.column_stack([column.spread(uniform[:, j]) for j, column in enumerate(searched)])


def _points(base: Array, again: Array, fixed: Array) -> Array:
    """The base points, and again with each parameter that is not fixed changed in its turn."""
    base = np.where(np.isnan(fixed), base, fixed)
    points = [base]
    for j in np.flatnonzero(np.isnan(fixed)):
        moved = base.copy()
        moved[:, j] = again[:, j]
        points.append(moved)
    return np.vstack(points)


def _pressed(values: Array, scale: Scale, of_space: Scale) -> Array:
    """The functions on the scale of the space."""
    losses = scale.original(values).ravel()
    return of_space.standard(losses, np.zeros(len(losses), dtype=bool)).reshape(values.shape)


def _parts(
    values: Array, present: npt.NDArray[np.intp], n_columns: int
) -> tuple[Array, Array, Array]:
    """Half the mean squared change by each parameter, shape (cells, parameters, functions), the
    variance, shape (cells, functions), and the standard error of the first for the mean, shape
    (cells, parameters).
    """
    changed = np.zeros((len(values), n_columns, values.shape[2]))
    error = np.zeros((len(values), n_columns))
    for place, j in enumerate(present, 1):
        moved = values[:, place * N_POINTS : (place + 1) * N_POINTS]
        halves = 0.5 * (moved - values[:, :N_POINTS]) ** 2
        changed[:, j] = halves.mean(axis=1)
        error[:, j] = halves[:, :, 0].std(axis=1) / math.sqrt(N_POINTS)
    return changed, values.var(axis=1), error


def _share(changed: Array, variance: Array, error: Any) -> Share:
    """Of the mean, with the interval of the functions drawn and of the points."""
    shares = np.minimum(changed / np.maximum(variance, 1e-300), 1.0)
    share, away = float(shares[0]), _NORMAL * float(error / max(variance[0], 1e-300))
    low, high = np.quantile(shares[1:], _INTERVAL).tolist()
    return Share(
        share,
        max(0.0, share - math.hypot(max(share - low, 0.0), away)),
        min(1.0, share + math.hypot(max(high - share, 0.0), away)),
    )
