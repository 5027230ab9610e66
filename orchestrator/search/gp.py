"""A Gaussian-process sampler that knows the cell: one model of the whole study, asked for the best point of one cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy import special

from orchestrator.search.gp_model import Hyperparameters, Layout, Posterior, fit
from orchestrator.search.history import Array, Column, Context, History, columns, single_values
from orchestrator.search.quasirandom import point_of
from orchestrator.search.tpe import HybridTPESampler

MAX_TRIALS = 500
MAX_FITTED = 250
N_FANTASIES = 8
N_SPREAD = 512
LOCAL_RADII = (0.15, 0.05, 0.015, 0.004)
N_LOCAL = 96


class HybridGPSampler(BaseSampler):
    """Suggests, for the parameters a trial has not fixed, the point of greatest expected improvement given the fixed ones.

    The fixed parameters (the cell) are what `study.enqueue_trial` gave the trial. One contextual Gaussian process learns
    from all cells (see `gp_model`). Losses are winsorised, failures count as the worst loss, running trials are imagined to
    end in all likely ways (joint fantasies). Of more than 500 trials the best, those of the same cell and the latest are kept.
    Studies of several objectives are left to `HybridTPESampler`.

    Args:
        n_startup_trials: so many trials of the study (in any cell) must have ended before the model is asked; until then
            suggestions follow a quasi-random sequence.
        seed: for everything random; the same seed, history and trial give the same suggestion.
    """

    def __init__(self, *, n_startup_trials: int = 10, seed: int | None = None) -> None:
        self._n_startup_trials = n_startup_trials
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._fits: dict[tuple[Any, ...], Hyperparameters] = {}
        self._tpe = HybridTPESampler(n_startup_trials=n_startup_trials, seed=seed)
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._tpe.reseed(seed)

    def reseed_rng(self) -> None:
        self.reseed(None)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.calculate(study)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if len(study.directions) > 1:
            return self._tpe.sample_relative(study, trial, search_space)
        searched = columns(search_space, trial)
        suggestion = single_values(search_space, trial)
        if not searched:
            return suggestion
        context = Context.of(trial, search_space)
        history = History.of(study, trial, [*searched, *context.columns])
        if history.n_useful < max(self._n_startup_trials, 1):
            point = point_of(searched, trial, self._seed)
        else:
            point = self._maximise(searched, context, history)
        return suggestion | {column.name: column.external(point[j]) for j, column in enumerate(searched)}

    def _maximise(self, searched: Sequence[Column], context: Context, history: History) -> Array:
        layout = Layout.of(searched, context.columns)
        y = standardised(history.loss, history.pruned)
        h = self._hyperparameters(history, layout)
        keep = _subset(history, y, layout, context.point)
        x, losses = history.x[keep], y[keep]
        posterior = Posterior(x, losses, layout, h)
        if len(history.pending):
            normal = self._rng.standard_normal((len(history.pending), N_FANTASIES))
            imagined = posterior.draws(history.pending, normal)
            x = np.vstack([x, history.pending])
            losses = np.vstack([np.repeat(losses[:, None], N_FANTASIES, axis=1), imagined])
            posterior = Posterior(x, losses, layout, h)
        incumbent = _incumbent(posterior, x, layout, context.point)

        def improvement(points: Array) -> Array:
            full = np.hstack([points, np.tile(context.point, (len(points), 1))])
            mean, std = posterior.mean_and_std(full)
            value = log_improvement((incumbent - mean) / std) + np.log(std)
            result: Array = special.logsumexp(value, axis=1)
            return result

        return self._climb(searched, improvement, history, x[np.argsort(losses.reshape(len(x), -1)[:, 0])[:5]])

    def _climb(self, searched: Sequence[Column], improvement: Any, history: History, best: Array) -> Array:
        """Spreads points over the space, then moves the best ones in shrinking steps; categories change by a coin."""
        n = len(searched)
        rng = self._rng
        points = _snap(searched, np.column_stack([c.spread(rng.random(N_SPREAD)) for c in searched]))
        points = np.vstack([points, self._around(searched, best[:, :n], 0.1, 20)])
        values = improvement(points)
        for radius in LOCAL_RADII:
            top = points[np.argsort(-values)[:4]]
            moved = self._around(searched, top, radius, N_LOCAL // len(top))
            points, values = np.vstack([top, moved]), np.concatenate([np.sort(values)[::-1][: len(top)], improvement(moved)])
        result: Array = points[int(np.argmax(values))]
        return result

    def _around(self, searched: Sequence[Column], centres: Array, radius: float, each: int) -> Array:
        rng = self._rng
        points = np.repeat(centres, each, axis=0)
        moving = rng.random(points.shape) < max(0.5, 1.0 / len(searched))
        moving[np.arange(len(points)), rng.integers(len(searched), size=len(points))] = True
        for j, column in enumerate(searched):
            if column.n_choices:
                other = rng.integers(column.n_choices, size=len(points))
                change = moving[:, j] & (rng.random(len(points)) < 0.3)
                points[:, j] = np.where(change, other, points[:, j])
            else:
                points[:, j] += np.where(moving[:, j], radius * rng.standard_normal(len(points)), 0.0)
        return _snap(searched, points)

    def _hyperparameters(self, history: History, layout: Layout) -> Hyperparameters:
        """Fitted to the first n trials, where n grows in steps of a tenth: a function of the history, yet seldom computed."""
        n = max(checkpoint(len(history.loss)), min(len(history.loss), self._n_startup_trials))
        chosen = np.unique(np.linspace(0, n - 1, min(n, MAX_FITTED)).astype(int))
        x, loss, pruned = history.x[chosen], history.loss[chosen], history.pruned[chosen]
        parts = (layout.context, layout.category, x, loss, pruned)
        key = tuple(part.tobytes() for part in parts)
        if key not in self._fits:
            self._fits.clear()
            self._fits[key] = fit(x, standardised(loss, pruned), layout)
        return self._fits[key]


def checkpoint(n: int) -> int:
    """The largest number up to `n` of the series 1, 2, … 10, 11, 12, 13, 14, 15, 16, 17, 19 … that grows by a tenth."""
    last = 1
    while (following := last + max(1, last // 10)) <= n:
        last = following
    return last


def standardised(loss: Array, pruned: npt.NDArray[np.bool_]) -> Array:
    """Losses with the bad tail cut at median + 1.5·(median − best), zero mean and unit variance; failures as the worst.

    A pruned trial counts by its last report, but never as better than the median: its pruner judged it so.
    """
    known = np.isfinite(loss)
    if not known.any():
        return np.zeros(len(loss))
    complete = known & ~pruned
    median = float(np.median(loss[complete if complete.any() else known]))
    loss = np.where(pruned, np.maximum(loss, median), loss)
    worst, cut = float(loss[known].max()), median + 1.5 * (median - float(loss[known].min()))
    loss = np.minimum(loss, min(cut, worst) if cut > median else worst)
    std = float(loss.std())
    result: Array = (loss - loss.mean()) / (std if std > 1e-12 else 1.0)
    return result


def log_improvement(z: Array) -> Array:
    """Logarithm of ``φ(z) + z·Φ(z)``, the expected improvement in units of the standard deviation, exact far into the tail.

    Source: Ament et al., "Unexpected improvements to expected improvement for Bayesian optimization", 2023.
    """
    density = -0.5 * z**2 - 0.5 * math.log(2.0 * math.pi)
    near = np.log(np.maximum(np.exp(density) + z * special.ndtr(z), 1e-300))
    ratio = np.maximum(1.0 + z * math.sqrt(math.pi / 2.0) * special.erfcx(-np.minimum(z, 0.0) / math.sqrt(2.0)), 1e-300)
    far = np.where(z > -1e3, np.log(ratio), -2.0 * np.log(np.maximum(-z, 1.0)))
    result: Array = np.where(z > -1.0, near, density + far)
    return result


def _snap(searched: Sequence[Column], points: Array) -> Array:
    return np.column_stack([column.encode(column.decode(points[:, j])) for j, column in enumerate(searched)])


def _incumbent(posterior: Posterior, x: Array, layout: Layout, cell: Array) -> Array:
    """Best posterior mean at the points observed or pending in the cell, one for each fantasy; anywhere if there is none."""
    here = (x[:, layout.context] == cell).all(axis=1)
    result: Array = posterior.mean(x[here] if here.any() else x).min(axis=0)
    return result


def _subset(history: History, y: Array, layout: Layout, cell: Array) -> Any:
    """All trials, or of more than 500: a fifth the best, two fifths the nearest to the cell, the rest the latest."""
    n = len(y)
    if n <= MAX_TRIALS:
        return slice(None)
    context, category = history.x[:, layout.context], layout.category[layout.context]
    distance = np.where(category, context != cell, (context - cell) ** 2).sum(axis=1)
    chosen = list(dict.fromkeys([*np.argsort(y, kind="stable")[: MAX_TRIALS // 5]]))
    for order, until in ((np.lexsort((-np.arange(n), distance)), 3 * MAX_TRIALS // 5), (np.arange(n)[::-1], MAX_TRIALS)):
        taken = set(chosen)
        chosen += [i for i in order if i not in taken][: until - len(chosen)]
    return np.sort(np.array(chosen))
