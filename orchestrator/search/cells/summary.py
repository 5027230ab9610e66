"""What the trials so far say about each cell: how good its optimum is, with which uncertainty, and
whether it is the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.configurations import INTERVAL, Configurations
from orchestrator.search.cells.model import CellModel, Cells, places
from orchestrator.search.trials.mirror import Mirror

N_DRAWS = 2000
REPORTED = 1.5
"""Deviations of what is reported are so many times the model's, for the same reason as in `optima`
and by the benchmark's count of intervals that hold.
"""
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
    tried: Configurations | None,
    *,
    maximize: bool,
    seed: int,
    limits: Limits = (None, None),
) -> list[CellEstimate | None]:
    """An estimate for each cell, None where no trial has ended with a value; their probabilities
    sum to 1.

    Args:
        tried: the configurations of the same trials, None if the model does not say which of them
            is the best.
        limits: the least and the greatest value of the objective; estimates stay within them.
    """
    history = model.finished(mirror)
    state = model.cells(history, cells)
    useful = np.flatnonzero(state.useful)
    estimates: list[CellEstimate | None] = [None] * len(cells)
    if int(state.useful.sum()) < LEAST_TRIALS:
        return estimates
    rng = np.random.default_rng(seed)
    surrogate = model.surrogate(history, believing=True)
    lows = model.optima(surrogate, state.only(useful), rng).lows(rng, N_DRAWS, widened=REPORTED)
    shares = np.bincount(lows.argmin(axis=1), minlength=len(useful)) / len(lows)
    leading = _leading(tried, state)
    quantiles = surrogate.scale.original(np.quantile(lows, INTERVAL, axis=0))
    if maximize:
        quantiles = -quantiles[::-1]
    for i, cell in enumerate(useful):
        low, middle, high = (clipped(float(q), limits) for q in quantiles[:, i])
        estimate = CellEstimate(middle, low, high, float(shares[i]))
        if (trial := leading[cell]) is not None:
            number, loss = trial
            estimate = replace(estimate, trial=number, value=-loss if maximize else loss)
        estimates[cell] = estimate
    return estimates


def _leading(tried: Configurations | None, cells: Cells) -> list[tuple[int, float] | None]:
    """For each cell the number and the loss of the trial that is believed to be its best."""
    found: list[tuple[int, float] | None] = [None] * len(cells.points)
    if tried is None:
        return found
    numbers, n = tried.numbers(), tried.surrogate.layout.n_searched
    for place, cell in enumerate(places(tried.points[:, n:], cells.points)):
        if cell < len(found) and found[cell] is None:
            found[cell] = numbers[place][0], float(tried.history.loss[tried.rows[place][0]])
    return found
