"""A Gaussian-process sampler that knows the cell: one model of the whole study that finds the best
point of one cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial

from orchestrator.search.gp.improvement import Improvement
from orchestrator.search.gp.sources import Start
from orchestrator.search.gp.surrogate import Fits, Surrogate
from orchestrator.search.tpe.sampler import HybridTPESampler
from orchestrator.search.trials.candidates import around, repeated, spread
from orchestrator.search.trials.history import (
    PART_KEY,
    Array,
    Column,
    Context,
    History,
    columns,
    single_values,
)
from orchestrator.search.trials.rows import Rows
from orchestrator.search.trials.threads import one_thread
from orchestrator.settings import GPSettings

N_SPREAD = 512
LOCAL_RADII = (0.15, 0.05, 0.015, 0.004)
N_LOCAL = 96


class HybridGPSampler(BaseSampler):
    """Suggests, for the parameters a trial has not fixed, the point of greatest expected
    improvement given the fixed ones.

    The fixed parameters (the cell) are what `study.enqueue_trial` gave the trial. One contextual
    Gaussian process learns from all cells (see `process`). The bad tail of losses is compressed,
    failures count as the worst loss, and running trials are imagined to end in all likely ways
    (joint fantasies). Of more than 400 trials the best, those nearest to the cell and a spread of
    the others are kept, so time and memory are bounded. Parameters that a trial does not have are
    assumed to be in the middle. If all parameters are discrete, a point is suggested twice in a
    cell only where there is noise, and a second value is expected to improve more than a new point.
    Studies of several objectives are left to `HybridTPESampler`.

    Args:
        n_startup_trials: trials of the study (in any cell) that must have ended before the model is
            used; until then suggestions follow a quasi-random sequence.
        seed: for everything random; the same seed, history and trial give the same suggestion.
    """

    def __init__(
        self, *, n_startup_trials: int = GPSettings.n_startup_trials, seed: int | None = None
    ) -> None:
        self._n_startup_trials = n_startup_trials
        self._space = IntersectionSearchSpace(include_pruned=True)
        self.fits = Fits()
        self._rows = Rows()
        self._tpe = HybridTPESampler(n_startup_trials=n_startup_trials, seed=seed)
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._tpe.reseed(seed)

    def reseed_rng(self) -> None:
        self.reseed(None)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space.calculate(study)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if len(study.directions) > 1:
            return self._tpe.sample_relative(study, trial, search_space)
        searched = columns(search_space, trial)
        suggestion = single_values(search_space, trial)
        if not searched:
            return suggestion
        context = Context.of(trial, search_space)
        every_cell = slice(len(searched), None)
        history = History.of(
            study, trial, [*searched, *context.columns], self._rows, required=every_cell
        )
        start = Start(history, searched, context, self._n_startup_trials, self.fits.sources)
        if not start.is_over:
            point = start.point(trial, self._seed, self._rng)
        else:
            with one_thread():
                point = self._maximise(
                    searched, context, history, whole=PART_KEY not in trial.system_attrs
                )
        return suggestion | {
            column.name: column.external(point[j]) for j, column in enumerate(searched)
        }

    def _maximise(
        self, searched: Sequence[Column], context: Context, history: History, *, whole: bool
    ) -> Array:
        surrogate = Surrogate.of(history, searched, context.columns, self.fits).near(context.point)
        improvement = Improvement(surrogate, context.point, self._rng)
        tried = improvement.x[improvement.here, : len(searched)]

        def worth(points: Array) -> Array:
            value = improvement(points)
            if whole:
                again = repeated(searched, points, tried)
                value[again] = improvement.of_repeating(points[again])
            return value

        return self._climb(searched, worth, improvement.x[np.argsort(improvement.losses[:, 0])[:5]])

    def _climb(
        self, searched: Sequence[Column], worth: Callable[[Array], Array], best: Array
    ) -> Array:
        """Spreads points over the space, then moves the best ones in shrinking steps."""
        rng = self._rng
        points = spread(searched, N_SPREAD, rng)
        points = np.vstack([points, around(searched, best[:, : len(searched)], 0.1, 20, rng)])
        values = worth(points)
        for radius in LOCAL_RADII:
            first = np.argsort(-values)[:4]
            moved = around(searched, points[first], radius, N_LOCAL // len(first), rng)
            points, values = (
                np.vstack([points[first], moved]),
                np.concatenate([values[first], worth(moved)]),
            )
        result: Array = points[int(np.argmax(values))]
        return result
