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

from orchestrator.search.history import Array, Column, Context, History, columns, single_values
from orchestrator.search.quasirandom import point_of

MAX_GOOD = 25
CELL_SHRINKAGE = 2.0
"""So many trials at the study's median are added to a cell's own before its typical loss is taken off."""
SHARING = ((math.inf, 1.0), (0.35, 0.3), (0.15, 0.1))
"""Degrees of sharing, widest first: width over an ordered axis (of length 1), weight of another category."""
GAIN_TO_NARROW = 0.93
"""Cells share less only where that foretells trials better: the error must shrink to this part."""
MAX_COMPARED = 150
LEAST_WEIGHT = 0.02
_RULES = _ParzenEstimatorParameters(1.0, True, False, default_weights, True)


class HybridTPESampler(BaseSampler):
    """Suggests, for the parameters a trial has not fixed, a point that is likelier among good trials given the fixed ones.

    The fixed parameters (the cell) are what `study.enqueue_trial` gave the trial. The good tenth of the whole study and the
    rest are two mixtures of Optuna's Parzen kernels, in which each trial is weighted by the closeness of its cell to the
    asked one: ordered parameters by distance on their scale, categories by equality. How much cells share is learnt: all
    alike, unless nearer cells foretell a trial clearly better. Running trials count as bad (a constant liar), failed and
    infeasible ones are worse than all others, pruned ones are compared as Optuna does, by last step and report. Several
    objectives are split by non-domination, as Optuna's TPE does.

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
        badness = _badness(study, history)
        by_cell = _within_cells(badness, history.x[:, n:])
        sharing = _sharing(searched, context.columns, history.x, by_cell)
        if sharing != SHARING[0] and len(study.directions) == 1:
            badness = by_cell  # else a cell that differs might have no good trial of its own
        good = np.zeros(len(badness), dtype=bool)
        good[np.argsort(badness, kind="stable")[: _n_good(study, history)]] = True
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
        self._estimator = _ParzenEstimator(observed, space, _RULES, weights)

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
    """The degree of sharing under which trials foretell each other's places best: leave-one-out kernel regression."""
    if not context:
        return SHARING[0]
    n, x, badness = len(searched), x[-MAX_COMPARED:], badness[-MAX_COMPARED:]
    place = np.argsort(np.argsort(badness, kind="stable")) / max(1, len(x) - 1)
    near = np.ones((len(x), len(x)))
    for j, column in enumerate(searched):
        difference = x[:, None, j] - x[None, :, j]
        width = 1.06 * float(x[:, j].std()) * len(x) ** (-1.0 / (n + 4.0)) + 1e-3
        near *= np.where(difference == 0, 1.0, 0.4) if column.n_choices else np.exp(-0.5 * (difference / width) ** 2)
    near[np.diag_indices(len(x))] = 0.0
    cells, chosen, least = x[:, n:], SHARING[0], math.inf
    for sharing in SHARING:
        weight = near * _closeness(cells[:, None, :], cells[None, :, :], context, sharing)
        # A little of the mean, so that a trial without neighbours is foretold as middling.
        foretold = (weight @ place + 0.05 * place.mean()) / (weight.sum(axis=1) + 0.05)
        error = float(((foretold - place) ** 2).sum())
        if error < GAIN_TO_NARROW * least:
            chosen, least = sharing, error
    return chosen


def _n_good(study: Study, history: History) -> int:
    n_good = math.ceil(0.1 * history.n_useful)
    return n_good if len(study.directions) > 1 else min(n_good, MAX_GOOD)


def _badness(study: Study, history: History) -> Array:
    """The trials' places from best (0) to worst: complete ones by loss, pruned by last step and report, failed last."""
    loss = history.loss
    if len(study.directions) > 1:
        useful = [t for t in history.trials if t.state != TrialState.FAIL]
        below, _ = _split_trials(study, useful, _n_good(study, history))
        numbers = {t.number for t in below}
        return np.array([0.0 if t.number in numbers else 1.0 for t in history.trials])
    group = np.where(np.isfinite(loss), np.where(history.pruned, 1, 0), 2)
    order = np.lexsort((np.where(np.isfinite(loss), loss, 0.0), np.where(group == 1, -history.step, 0.0), group))
    place = np.empty(len(loss))
    place[order] = np.arange(len(loss))
    return place


def _within_cells(badness: Array, cells: Array) -> Array:
    """Each trial's place less the median place of its cell, which is drawn towards the study's where trials are few."""
    middle = float(np.median(badness))
    result = badness - middle
    if cells.shape[1] == 0:
        return result
    _, which = np.unique(cells, axis=0, return_inverse=True)
    for cell in range(int(which.max()) + 1):
        mine = which.ravel() == cell
        n = int(mine.sum())
        result[mine] = badness[mine] - (n * float(np.median(badness[mine])) + CELL_SHRINKAGE * middle) / (n + CELL_SHRINKAGE)
    return result
