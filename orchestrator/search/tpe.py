"""A tree-structured Parzen estimator that knows the cell: kernels count by how near their cell is to the asked one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import _split_trials, default_weights
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy import special

from orchestrator.search.history import Array, Column, Context, History, columns, single_values
from orchestrator.search.quasirandom import point_of

MAX_GOOD = 25
CELL_SHRINKAGE = 2.0
"""So many trials at the study's median are added to a cell's own before its typical loss is taken off."""
SHARING = ((0.1, 0.03), (0.25, 0.15), (0.6, 0.5), (math.inf, 1.0))
"""Degrees of sharing between cells: width over an ordered axis, weight of another category; from own cell alone to all alike."""
MAX_COMPARED = 300
SPLIT_SHRINKAGE = 1e6
LEAST_WEIGHT = 0.02
SCOTT = 0.6
NARROW = 4.0
GAMMA = 0.1


class HybridTPESampler(BaseSampler):
    """Suggests, for the parameters a trial has not fixed, a point that is likelier among good trials given the fixed ones.

    The fixed parameters (the cell) are what `study.enqueue_trial` gave the trial. Good and bad are told apart after the
    typical loss of each cell is taken off, so poor cells teach as well as good ones; each trial's kernel is weighted by the
    closeness of its cell to the asked one: ordered parameters by distance on their scale, categories by equality. Running
    trials count as bad (a constant liar), failed and infeasible ones are worse than all others, pruned ones are compared as
    Optuna does, by last step and report. Several objectives are split by non-domination, as Optuna's TPE does.

    Args:
        n_startup_trials: so many trials of the study (in any cell) must have ended before the estimator is asked; until
            then suggestions follow a quasi-random sequence.
        n_ei_candidates: points drawn from the good trials' density, of which the best is taken.
        seed: for everything random; the same seed, history and trial give the same suggestion.
    """

    def __init__(self, *, n_startup_trials: int = 10, n_ei_candidates: int = 24, seed: int | None = None) -> None:
        self._n_startup_trials = n_startup_trials
        self._n_ei_candidates = n_ei_candidates
        self._space = IntersectionSearchSpace(include_pruned=True)
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._seed = seed
        self._rng = np.random.default_rng(seed)

    def reseed_rng(self) -> None:
        self.reseed(None)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.calculate(study)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        column = Column.of(param_name, param_distribution)
        return column.external(float(column.spread(self._rng.random(1))[0]))

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        searched = columns(search_space, trial)
        suggestion = single_values(search_space, trial)
        if not searched:
            return suggestion
        context = Context.of(trial, search_space)
        history = History.of(study, trial, [*searched, *context.columns])
        if history.n_useful < max(self._n_startup_trials, 1):
            point = point_of(searched, trial, self._seed)
        else:
            point = self._likeliest(study, searched, context, history)
        return suggestion | {column.name: column.external(point[j]) for j, column in enumerate(searched)}

    def _likeliest(self, study: Study, searched: Sequence[Column], context: Context, history: History) -> Array:
        n = len(searched)
        badness = _badness(study, history, n, SPLIT_SHRINKAGE)
        good = np.zeros(len(badness), dtype=bool)
        good[np.argsort(badness, kind="stable")[: _n_good(study, history)]] = True
        sharing = _sharing(searched, context.columns, history.x, _badness(study, history, n, CELL_SHRINKAGE))
        closeness = _closeness(history.x[:, n:], context.point, context.columns, sharing)
        pending = _closeness(history.pending[:, n:], context.point, context.columns, sharing)
        below = Mixture(searched, history.x[good, :n], closeness[good])
        bad = np.vstack([history.x[~good, :n], history.pending[:, :n]])
        above = Mixture(searched, bad, np.concatenate([closeness[~good], pending]))
        candidates = below.sample(self._rng, self._n_ei_candidates)
        ratio = below.log_density(candidates) - above.log_density(candidates)
        result: Array = candidates[int(np.argmax(ratio))]
        return result


class Mixture:
    """A density over the searched columns: Optuna's product kernel for each trial, weighted, and its flat prior."""

    def __init__(self, searched: Sequence[Column], points: Array, weights: Array) -> None:
        self._columns = searched
        space: dict[str, BaseDistribution] = {
            column.name: CategoricalDistribution(range(column.n_choices)) if column.n_choices else FloatDistribution(0.0, 1.0)
            for column in searched
        }
        observed = {column.name: np.clip(points[:, j], 0.0, None) for j, column in enumerate(searched)}
        rules = _ParzenEstimatorParameters(1.0, True, False, default_weights, True)
        self._estimator = _ParzenEstimator(observed, space, rules, weights)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draws of shape (size, columns), each a value the column allows."""
        state = np.random.RandomState(int(rng.integers(2**32)))
        drawn = self._estimator.sample(state, size)
        return np.column_stack([c.encode(c.decode(drawn[c.name])) for c in self._columns])

    def log_density(self, at: Array) -> Array:
        """Logarithm of the density at points of shape (m, columns)."""
        return self._estimator.log_pdf({column.name: at[:, j] for j, column in enumerate(self._columns)})


def _closeness(cells: Array, cell: Array, context: Sequence[Column], sharing: tuple[float, float]) -> Array:
    """How much trials in `cells` count in `cell` (arrays of coordinates, the last axis over columns), in (0, 1]."""
    width, other = sharing
    difference = cells - cell
    weight = np.ones(difference.shape[:-1])
    for j, column in enumerate(context):
        if column.n_choices:
            weight *= np.where(difference[..., j] == 0, 1.0, other)
        else:
            weight *= np.exp(-0.5 * (difference[..., j] / width) ** 2)
    result: Array = np.maximum(weight, LEAST_WEIGHT)
    return result


def _sharing(searched: Sequence[Column], context: Sequence[Column], x: Array, badness: Array) -> tuple[float, float]:
    """The degree of sharing under which trials best foretell each other: leave-one-out kernel regression of the ranks."""
    if not context:
        return SHARING[-1]
    x, rank = x[-MAX_COMPARED:], np.argsort(np.argsort(badness[-MAX_COMPARED:])) / max(1, min(len(badness), MAX_COMPARED) - 1)
    n = len(searched)
    near = np.ones((len(x), len(x)))
    for j, column in enumerate(searched):
        difference = x[:, None, j] - x[None, :, j]
        width = 1.06 * float(x[:, j].std()) * len(x) ** (-1.0 / (n + 4.0)) + 1e-3
        near *= np.where(difference == 0, 1.0, 0.4) if column.n_choices else np.exp(-0.5 * (difference / width) ** 2)
    near[np.diag_indices(len(x))] = 0.0
    cells = x[:, n:]
    errors = []
    for sharing in SHARING:
        weight = near * _closeness(cells[:, None, :], cells[None, :, :], context, sharing)
        # A little of the mean, so that a trial without neighbours is foretold as middling.
        foretold = (weight @ rank + 0.05 * rank.mean()) / (weight.sum(axis=1) + 0.05)
        errors.append(float(((foretold - rank) ** 2).sum()))
    return SHARING[int(np.argmin(errors))]


def _n_good(study: Study, history: History) -> int:
    n_good = math.ceil(GAMMA * history.n_useful)
    return n_good if len(study.directions) > 1 else min(n_good, MAX_GOOD)


def _badness(study: Study, history: History, n_searched: int, shrinkage: float) -> Array:
    """The trials' places from best to worst: complete ones by loss beyond what is typical of their cell, pruned, failed."""
    loss = history.loss.copy()
    if len(study.directions) > 1:
        useful = [t for t in history.trials if t.state != TrialState.FAIL]
        below, _ = _split_trials(study, useful, _n_good(study, history))
        numbers = {t.number for t in below}
        return np.array([0.0 if t.number in numbers else 1.0 for t in history.trials])
    complete = np.isfinite(loss) & ~history.pruned
    if complete.any():
        loss[complete] -= _typical_by_cell(history.x[complete, n_searched:], loss[complete], shrinkage)
    group = np.where(complete, 0, np.where(np.isfinite(loss), 1, 2))
    order = np.lexsort((np.where(np.isfinite(loss), loss, 0.0), np.where(group == 1, -history.step, 0.0), group))
    place = np.empty(len(loss))
    place[order] = np.arange(len(loss))
    return place


def _typical_by_cell(cells: Array, loss: Array, shrinkage: float) -> Array:
    """For each trial the median loss of its cell, drawn towards the study's where the cell has few trials."""
    middle = float(np.median(loss))
    typical = np.full(len(loss), middle)
    if cells.shape[1] == 0:
        return typical
    _, which = np.unique(cells, axis=0, return_inverse=True)
    for cell in range(int(which.max()) + 1):
        mine = which.ravel() == cell
        n = int(mine.sum())
        typical[mine] = (n * float(np.median(loss[mine])) + shrinkage * middle) / (n + shrinkage)
    return typical
