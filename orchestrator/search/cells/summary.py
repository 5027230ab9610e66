"""What the trials so far say about each cell: how good its optimum is, with which uncertainty, and
whether it is the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.configurations import Configurations, is_enough
from orchestrator.search.cells.model import CellModel, Cells, places
from orchestrator.search.cells.optima import WIDENED
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import History
from orchestrator.search.trials.mirror import Mirror

N_DRAWS = 2000
INTERVAL = (0.05, 0.5, 0.95)
LEAST_TRIALS = 3
"""With fewer trials that ended with a value there is no estimate."""


@dataclass(frozen=True)
class CellEstimate:
    """The best true objective value that the cell can reach, in the objective's units, as the model
    believes.

    `estimate` is the median, `low` to `high` hold nine tenths of the belief; `probability_best` is
    that of no other cell reaching a better value. True means without noise: a single lucky trial
    may look better than `low` to `high`. `trial` is the number of the cell's trial that is believed
    to be its best, and `value` what it observed; None with fewer than ten complete trials of the
    study.
    """

    estimate: float
    low: float
    high: float
    probability_best: float
    trial: int | None = None
    value: float | None = None


def summarise(
    model: CellModel,
    mirror: Mirror,
    cells: Sequence[Mapping[str, JSONValue]],
    *,
    maximize: bool,
    seed: int,
    limits: Limits = (None, None),
) -> list[CellEstimate | None]:
    """An estimate for each cell, None where no trial has ended with a value; their probabilities
    sum to 1.

    Args:
        limits: the least and the greatest value of the objective; estimates stay within them.
    """
    history = model.history(mirror)
    state = model.cells(history, cells)
    tried = np.flatnonzero(state.useful)
    estimates: list[CellEstimate | None] = [None] * len(cells)
    if int(state.useful.sum()) < LEAST_TRIALS:
        return estimates
    rng = np.random.default_rng(seed)
    surrogate = model.surrogate(history, believing=True)
    surrogate = replace(surrogate, pending=surrogate.pending[:0])
    lows = model.optima(surrogate, state.only(tried), rng).lows(rng, N_DRAWS, widened=WIDENED)
    shares = np.bincount(lows.argmin(axis=1), minlength=len(tried)) / len(lows)
    leading, trials = _leading(history, surrogate, state), history.trials
    quantiles = surrogate.scale.original(np.quantile(lows, INTERVAL, axis=0))
    if maximize:
        quantiles = -quantiles[::-1]
    for i, cell in enumerate(tried):
        low, middle, high = (clipped(float(q), limits) for q in quantiles[:, i])
        estimate = CellEstimate(middle, low, high, float(shares[i]))
        if (row := leading[cell]) is not None:
            loss = float(history.loss[row])
            seen = -loss if maximize else loss
            estimate = replace(estimate, trial=trials[row].number, value=seen)
        estimates[cell] = estimate
    return estimates


def _leading(history: History, surrogate: Surrogate, cells: Cells) -> list[int | None]:
    """For each cell the place in the history of the trial that is believed to be its best."""
    found: list[int | None] = [None] * len(cells.points)
    if not is_enough(history):
        return found
    tried = Configurations.of(history, surrogate, surrogate.posterior())
    n = surrogate.layout.n_searched
    for rows, cell in zip(tried.rows, places(tried.points[:, n:], cells.points), strict=True):
        if cell < len(found) and found[cell] is None:
            found[cell] = int(rows[0])
    return found
