"""Whether a study, or a cell of it, has had enough trials, by the rules of `stop_when`.

What one more trial is expected to gain is the knowledge gradient among what has been tried (after
Scott, Frazier & Powell, 2011): by how much the trial is expected to lower the least posterior mean
of all configurations tried, its own included. Without noise that is the expected improvement. With
noise a lucky value is no gain, so one rule serves both.

With few trials the model is at times too sure that nothing is left to gain. So it is not asked
before ten trials have ended with a value, and what it says must hold at two checks in a row, some
trials apart. A check is a function of the trials that ended first, so workers that know the same
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from optuna.trial import TrialState

from orchestrator.model import JSONValue, Limits, cell_label, count_label
from orchestrator.search.cells.allocation import (
    LIKELY,
    N_MEASURED,
    NODES,
    WEIGHTS,
    OpenCells,
    least_loss,
)
from orchestrator.search.cells.model import N_STARTUP, CellModel, places
from orchestrator.search.cells.summary import Beliefs, shared
from orchestrator.search.gp.process import BELIEVING, Posterior
from orchestrator.search.gp.surrogate import Fits
from orchestrator.search.trials.history import Array, History
from orchestrator.settings import StopSettings

MOST_TRIED = 64
"""Configurations whose means a trial is compared with: those of the least means."""
EVERY = 5
"""Trials between two checks, with fewer than 200; twice as many for each doubling."""
_STUDY = None
"""Stands for the study where others stand for a cell by its ordinal."""
Reasons = dict[int | None, str]


@dataclass(frozen=True)
class Enough:
    """Applies the rules to one study of one objective; remembers what it found at each check.

    Args:
        settings: the rules.
        seed: of the study.
        limits: the least and the greatest value of the objective.
        cell_of: the ordinal of a trial's cell, by its number; None if it has none.
        values_of: a cell's values, by its ordinal.
        counts_from: the number of the first trial that `patience` counts.
    """

    settings: StopSettings
    seed: int
    maximize: bool
    limits: Limits
    cell_of: Callable[[int], int | None]
    values_of: Callable[[int], Mapping[str, JSONValue]]
    counts_from: int = 0
    _fits: Fits = field(default_factory=Fits)
    _gains: dict[int, dict[int | None, float]] = field(default_factory=dict)
    _best: dict[int, tuple[int, float]] = field(default_factory=dict)

    def reasons(
        self, model: CellModel, history: History, open_cells: OpenCells, likely: Sequence[int]
    ) -> Reasons:
        """Why there have been enough trials: of the study under None, or with
        ``stop_when.scope=cell`` of open cells by their ordinals; empty if there have not.

        Args:
            history: the trials that have ended, without those that run.
            open_cells: ordinal and values of every cell that may get a trial.
            likely: ordinals of the cells that may be the best.
        """
        reasons: Reasons = {}
        checks = _checks(history)
        if self.settings.p is not None and checks:
            reasons |= self._decided(model, history, likely, checks)
        if self.settings.gain is not None and checks:
            among = dict(open_cells)
            if self.settings.scope == "study":
                # a cell that is closed where this worker runs may be open elsewhere
                among |= {ordinal: self.values_of(ordinal) for ordinal in likely}
            reasons |= self._little_to_gain(
                model, history, sorted(among.items(), key=itemgetter(0)), checks
            )
        if self.settings.patience is not None:
            reasons |= self._impatient(history, [ordinal for ordinal, _ in open_cells])
        return reasons

    # --------------------------------------------------------------------------------- the gain

    def _little_to_gain(
        self, model: CellModel, history: History, open_cells: OpenCells, checks: Sequence[int]
    ) -> Reasons:
        for n in checks:
            if n not in self._gains:
                self._gains[n] = self._expected(model, history.first(n), open_cells)
        reasons: Reasons = {}
        threshold, words = self._threshold(history.first(checks[-1]))
        for what, gain in self._gains[checks[-1]].items():
            each = [self._gains[n].get(what, np.inf) for n in checks]
            if max(each) < threshold:
                where = "" if what is _STUDY else " in this cell"
                reasons[what] = (
                    f"one more trial{where} is expected to gain {gain:.2g}, less than {words}"
                )
        return reasons

    def _threshold(self, history: History) -> tuple[float, str]:
        """The least gain worth a trial, in the objective's units, and what sets it."""
        gain = self.settings.gain
        said = f"stop_when.gain={gain if isinstance(gain, str) else format(gain, 'g')}"
        if not isinstance(gain, str):
            return float(gain), said
        losses = history.loss[np.isfinite(history.loss) & ~history.pruned]
        if not len(losses):
            return 0.0, said
        low, high = np.quantile(losses, (0.25, 0.75))
        least = float(gain.removesuffix("%")) / 100.0 * float(high - low)
        return least, f"{said} ({least:.2g})"

    def _expected(
        self, model: CellModel, history: History, open_cells: OpenCells
    ) -> dict[int | None, float]:
        """What one more trial is expected to gain, in the objective's units: in the study, or in
        each open cell that has a trial with a value.
        """
        surrogate = model.surrogate(history, fits=self._fits)
        cells = model.cells(history, [values for _, values in open_cells])
        rng = np.random.default_rng([self.seed, len(history.loss)])
        optima = model.optima(surrogate, cells, rng, LIKELY)
        posterior, n = surrogate.posterior(), surrogate.layout.n_searched
        least = surrogate.scale.least(least_loss(self.limits, maximize=self.maximize))
        tried = np.unique(np.round(surrogate.x, 9), axis=0)
        points = optima.points[:, :N_MEASURED]
        context = np.broadcast_to(cells.points[:, None], (*points.shape[:2], cells.points.shape[1]))
        points = np.concatenate([points, context], axis=2)

        def gain(tried: Array, points: Array) -> float:
            return expected_gain(posterior, tried, points, n, least) * surrogate.scale.std

        if self.settings.scope == "study":
            return {_STUDY: gain(tried, points.reshape(-1, points.shape[2]))}
        which = places(tried[:, n:], cells.points)
        return {
            ordinal: gain(tried[which == place], points[place])
            for place, (ordinal, _) in enumerate(open_cells)
            if cells.useful[place]
        }

    # ------------------------------------------------------------------------ the best cell

    def _decided(
        self, model: CellModel, history: History, likely: Sequence[int], checks: Sequence[int]
    ) -> Reasons:
        for n in checks:
            if n not in self._best:
                values = [self.values_of(ordinal) for ordinal in likely]
                fits = Fits(noise=BELIEVING)
                believed = Beliefs.given(model, history.first(n), values, self.seed, fits=fits)
                if believed is None:
                    return {}
                losses = believed.losses(maximize=self.maximize, limits=self.limits)
                shares = shared(losses)
                place = int(shares.argmax())
                cell = likely[int(believed.useful[place])]
                self._best[n] = cell, float(shares[place])
        first, last = (self._best[n] for n in checks)
        if first[0] != last[0] or min(first[1], last[1]) < (self.settings.p or 0.0):
            return {}
        label = cell_label(self.values_of(last[0]))
        return {
            _STUDY: f"cell {label} is the best with probability {last[1]:.3g}, at least "
            f"stop_when.p={self.settings.p:g}"
        }

    # ------------------------------------------------------------------------ the patience

    def _impatient(self, history: History, open_cells: Sequence[int]) -> Reasons:
        trials = history.trials
        numbers = np.array([trial.number for trial in trials], dtype=int)
        spent = np.array([trial.state != TrialState.FAIL for trial in trials], dtype=bool)
        loss = np.where(history.pruned, np.inf, history.loss)
        if self.settings.scope == "study":
            reason = self._no_better(numbers[spent], loss[spent], "trials")
            return {} if reason is None else {_STUDY: reason}
        cells = [self.cell_of(number) for number in numbers.tolist()]
        of_cell = np.array([-1 if cell is None else cell for cell in cells], dtype=int)
        reasons: Reasons = {}
        for ordinal in open_cells:
            mine = spent & (of_cell == ordinal)
            reason = self._no_better(numbers[mine], loss[mine], "trials of this cell")
            if reason is not None:
                reasons[ordinal] = reason
        return reasons

    def _no_better(self, numbers: npt.NDArray[np.intp], loss: Array, noun: str) -> str | None:
        """In words that enough trials have ended since the best one; None if they have not."""
        patience = self.settings.patience
        if patience is None or not np.isfinite(loss).any():
            return None
        best = int(loss.argmin())
        since = int(np.count_nonzero(numbers[best + 1 :] >= self.counts_from))
        if since < patience:
            return None
        after = "it" if numbers[best] >= self.counts_from else "the study was changed"
        return (
            f"no value better than that of trial {numbers[best]} had come from the {since} {noun} "
            f"after {after} when this was decided (after {count_label(len(numbers), 'trial')}; "
            f"stop_when.patience={patience})"
        )


def expected_gain(
    posterior: Posterior, tried: Array, points: Array, n_searched: int, least: float
) -> float:
    """By how much a trial at the best of `points` is expected to lower the least posterior mean of
    what has been tried, its own point included; in the model's units.

    Args:
        tried, points: coordinates, searched ones first, a row each.
        n_searched: how many of the columns are searched.
        least: the lowest loss that there can be; below it nothing is gained.
    """
    mean = posterior.mean(tried[:, :n_searched], tried[:, n_searched:])[:, 0]
    tried = tried[np.argsort(mean, kind="stable")[:MOST_TRIED]]
    both, known = np.vstack([tried, points]), len(tried)
    marginal = posterior.at(both[:, :n_searched], both[:, n_searched:])
    mean, covariance = marginal.mean[:, 0], marginal.covariance(slice(None))
    new = np.arange(known, len(both))
    spread = np.sqrt(np.maximum(covariance[new, new], 0.0) + max(posterior.noise, 1e-12))
    slope, own = covariance[new, :known] / spread[:, None], covariance[new, new] / spread
    expected = np.zeros(len(new))
    for z, weight in zip(NODES, WEIGHTS, strict=True):
        lowest = np.minimum((mean[:known] + z * slope).min(axis=1), mean[new] + z * own)
        expected += weight * np.maximum(lowest, least)
    now = max(float(mean[:known].min()), least)
    return max(0.0, float(now - expected.min()))


def _checks(history: History) -> list[int]:
    """How many of the first trials each of the last two checks looks at; none before there are
    enough for a model.
    """
    n = len(history.loss)
    every = EVERY * 2 ** max(0, int(np.log2(max(n, 1) / (20 * EVERY))))
    last = n - n % every
    first = last - every
    if first <= 0 or np.count_nonzero(np.isfinite(history.loss[:first])) < N_STARTUP:
        return []
    return [first, last]
