"""What the trials so far say about each cell: how good its optimum is, with which uncertainty, and
whether it is the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue, Limits
from orchestrator.search.cells.configurations import INTERVAL, Configurations
from orchestrator.search.cells.model import CellModel, Cells, places
from orchestrator.search.cells.optima import Optima
from orchestrator.search.gp.surrogate import Fits, Surrogate
from orchestrator.search.trials.history import Array, History
from orchestrator.search.trials.mirror import Mirror

N_DRAWS = 2000
REPORTED = 1.5
"""Deviations of what is reported are so many times the model's, for the same reason as in `optima`
and by the benchmark's count of intervals that hold.
"""
LEAST_TRIALS = 3
"""With fewer complete feasible trials there is no estimate."""


@dataclass(frozen=True)
class CellEstimate:
    """The best true objective value that the cell can reach, in the objective's units, as the model
    believes.

    `estimate` is the median, `low` to `high` hold nine tenths of the belief; `probability_best` is
    that of no other cell reaching a better value, shared equally by cells that reach the same one,
    as at a limit of the metric. True means without noise: a single lucky trial
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

    def rank(self, *, maximize: bool) -> tuple[float, float]:
        """The least is the leading cell: by its estimate, of equal ones by its probability. The
        likeliest to be the best may be one of which little is known, and worse than another.
        """
        return -self.estimate if maximize else self.estimate, -self.probability_best


@dataclass(frozen=True)
class Beliefs:
    """Joint draws of what the model believes of the cells that have a complete feasible trial.

    Attributes:
        surrogate: the model, of all complete feasible trials.
        state: what has been tried in all the cells asked about.
        useful: the places of those that are believed in.
        optima: likely points of these.
        drawn: losses there, in the model's units, shape (draws, cells, points).
    """

    surrogate: Surrogate
    state: Cells
    useful: npt.NDArray[np.intp]
    optima: Optima
    drawn: Array

    @staticmethod
    def of(
        model: CellModel,
        mirror: Mirror,
        cells: Sequence[Mapping[str, JSONValue]],
        seed: int,
        *,
        untried: bool = False,
    ) -> Beliefs | None:
        """None with fewer than `LEAST_TRIALS` complete feasible trials in these cells; the same
        for the same trials and seed.

        All others are left out. What a pruned trial last reported is not the value that its
        parameters reach, and a failure is none; both would be taken for noise, or for a steep
        surface.

        Args:
            untried: also of cells that no trial has ended in, by what is known of others.
        """
        return Beliefs.given(model, model.finished(mirror), cells, seed, untried=untried)

    @staticmethod
    def given(
        model: CellModel,
        history: History,
        cells: Sequence[Mapping[str, JSONValue]],
        seed: int,
        *,
        untried: bool = False,
        fits: Fits | None = None,
    ) -> Beliefs | None:
        """The same by a history of finished trials; `fits` as of `CellModel.surrogate`."""
        history = history.only(~history.pruned)  # a cell where all failed is not an untried one
        state = model.cells(history, cells)
        useful = np.flatnonzero((state.useful > 0) | (untried & (state.trials == 0)))
        if int(state.useful.sum()) < LEAST_TRIALS:
            return None
        rng = np.random.default_rng(seed)
        valued = history.only(np.isfinite(history.loss))
        surrogate = model.surrogate(valued, believing=True, fits=fits)
        optima = model.optima(surrogate, state.only(useful), rng)
        drawn = optima.drawn(rng, N_DRAWS, widened=REPORTED)
        return Beliefs(surrogate, state, useful, optima, drawn)

    @property
    def lows(self) -> Array:
        """Draws of the lowest loss of each cell, shape (draws, cells)."""
        result: Array = self.drawn.min(axis=2)
        return result

    def losses(
        self, lows: Array | None = None, *, maximize: bool, limits: Limits = (None, None)
    ) -> Array:
        """`lows`, or others in the model's units, as losses in the objective's units (its negative
        if it is maximised) that no limit of the objective is exceeded by.
        """
        sign = -1.0 if maximize else 1.0
        own = sign * self.surrogate.scale.original(self.lows if lows is None else lows)
        low, high = limits
        result: Array = sign * np.clip(
            own, -np.inf if low is None else low, np.inf if high is None else high
        )
        return result


def shared(losses: Array) -> Array:
    """For each column the probability that no other one is lower, by draws of shape (draws,
    columns). Those that are equally low share a draw, so that they sum to 1.
    """
    least = losses == losses.min(axis=1, keepdims=True)
    result: Array = (least / least.sum(axis=1, keepdims=True)).mean(axis=0)
    return result


def summarise(
    believed: Beliefs | None,
    n_cells: int,
    tried: Configurations | None,
    *,
    maximize: bool,
    limits: Limits = (None, None),
) -> list[CellEstimate | None]:
    """An estimate for each cell, None where no feasible trial is complete; their probabilities
    sum to 1.

    Args:
        tried: the configurations of the same trials, None if the model does not say which of them
            is the best.
        limits: the least and the greatest value of the objective; estimates stay within them.
    """
    estimates: list[CellEstimate | None] = [None] * n_cells
    if believed is None:
        return estimates
    losses = believed.losses(maximize=maximize, limits=limits)
    shares = shared(losses)
    leading = _leading(tried, believed.state)
    quantiles = np.quantile(-losses if maximize else losses, INTERVAL, axis=0)
    for i, cell in enumerate(believed.useful):
        low, middle, high = quantiles[:, i].tolist()
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
