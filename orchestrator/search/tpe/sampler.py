"""A tree-structured Parzen estimator that knows the cell: trials are good *for their cell*, and
count by what cells share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._tpe.sampler import _split_trials
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.gp.improvement import Improvement
from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.sources import Start
from orchestrator.search.gp.surrogate import Fits, Surrogate
from orchestrator.search.tpe.kinship import MAX_COMPARED, SHARING, Drift, closeness, learn_sharing
from orchestrator.search.tpe.parzen import Mixture
from orchestrator.search.trials.candidates import snapped, spread
from orchestrator.search.trials.history import (
    PART_KEY,
    Array,
    Column,
    Context,
    History,
    columns,
    single_values,
)
from orchestrator.search.trials.rows import Rows, checkpoint
from orchestrator.search.trials.smallest import smallest
from orchestrator.search.trials.threads import one_thread
from orchestrator.settings import TPESettings

GOOD = 0.2
"""The share of trials that count as good, at most MAX_GOOD of them, those of the nearest cells
first.
"""
MAX_GOOD = 40
OWN_CELL = 3.0
"""Weight of a trial of the trial's own cell, relative to 1 for an identical cell: not everything
can be shared.
"""
BEYOND = (-0.3, 1.3)
"""How far outside the space trials that are not good may be moved: their tail still counts."""
MAX_NUMBERS = 100_000
MAX_REST = 600
"""How many of the others are used: half of them the next best, the rest spread over the remainder
and representing it.
"""
BANDWIDTH = 0.6
"""Width of kernels relative to Scott's rule."""
SHARPER = 0.8
"""Width of the kernels of other trials relative to those of good ones, so that one bad trial does
not condemn a region.
"""
PRIOR_STD = 0.3
"""Standard deviation of good values that one trial's worth of prior belief adds: about that of all
values.
"""
LEAST_WIDTH = 0.02
RANKED = 32
"""How many of the points likeliest to be good are ranked by the Gaussian process."""
RANKED_BY = 200
"""Trials that the process uses for this ranking."""
FITTED_TO = 60
"""Trials to which its hyperparameters are fitted: some 10 ms per fit, and many workers fit at
nearly every trial.
"""
DRAWS = 4
"""Points compared for each of `n_ei_candidates`: they are of all columns together, where Optuna
draws column by column.
"""


class HybridTPESampler(BaseSampler):
    """Suggests, for the parameters a trial has not fixed, a point that is likelier among good
    trials given the fixed ones.

    The fixed parameters (the cell) are what `study.enqueue_trial` gave the trial. The fifth of the
    trials that did best *for their cell* and the rest are two mixtures of kernels over the
    parameters to suggest; of points drawn from the first, those are kept that it makes likeliest
    relative to the second. Among these the Gaussian process of `HybridGPSampler` picks the one of
    greatest expected improvement, because it models how good a point is, where the densities only
    tell good from bad, and can imagine how running trials end. With several objectives, or if only
    a part of the trial is suggested, the likeliest is taken. Trials of other cells count by how
    near their cell is and are moved as good values move from cell to cell; both are learnt, and
    left out where they do not improve predictions (see `kinship`). Trials that lack a parameter
    still inform about the others.

    Running trials count as bad (a constant liar) in their own cell; in other cells they hardly
    count, because the same point there is not a repetition. Complete trials come before pruned ones
    (by last step, then report), infeasible (by what they miss) and failed ones. Several objectives
    are split by non-domination over the whole study, as Optuna's TPE does.

    Args:
        n_startup_trials: trials of the study (in any cell) that must have ended before the
            estimator is used; until then suggestions follow a quasi-random sequence.
        n_ei_candidates: four times as many points are drawn from the good trials' density and
            compared.
        seed: for everything random; the same seed, history and trial give the same suggestion.
    """

    def __init__(
        self,
        *,
        n_startup_trials: int = TPESettings.n_startup_trials,
        n_ei_candidates: int = TPESettings.n_ei_candidates,
        seed: int | None = None,
    ) -> None:
        self._n_startup_trials = n_startup_trials
        self._n_ei_candidates = n_ei_candidates
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._rows = Rows()
        self.fits = Fits(FITTED_TO)
        self._learnt: tuple[object, tuple[float, float]] | None = None
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._seed = seed
        self._rng = np.random.default_rng(seed)

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
        column = Column.of(param_name, param_distribution)
        return column.external(float(column.spread(self._rng.random(1))[0]))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        searched = columns(search_space, trial)
        suggestion = single_values(search_space, trial)
        if not searched:
            return suggestion
        context = Context.of(trial, search_space)
        every = slice(len(searched), None)
        history = History.of(
            study, trial, [*searched, *context.columns], self._rows, required=every
        )
        start = Start(history, searched, context, self._n_startup_trials, self.fits.sources)
        if not start.is_over:
            point = start.point(trial, self._seed, self._rng)
        else:
            whole = PART_KEY not in trial.system_attrs
            with one_thread():
                point = self._likeliest(study, searched, context, history, whole=whole)
        return suggestion | {
            column.name: column.external(point[j]) for j, column in enumerate(searched)
        }

    def _likeliest(
        self,
        study: Study,
        searched: Sequence[Column],
        context: Context,
        history: History,
        *,
        whole: bool,
    ) -> Array:
        n = len(searched)
        cells = history.coordinates(columns=slice(n, None))
        badness, order, n_good = _split(study, history, cells)
        sharing = self._sharing(study, searched, context, history)
        here = (cells == context.point).all(axis=1)
        near = np.where(here, OWN_CELL, closeness(cells, context.point, context.columns, sharing))
        good = order[:n_good][smallest(MAX_GOOD, -near[order[:n_good]])]
        rest, standing = _rest(order, good)
        waiting = closeness(history.pending[:, n:], context.point, context.columns, SHARING[-1])
        weights = np.concatenate([near[rest] * standing, waiting])
        at_best = history.coordinates(good)
        others = np.vstack([history.coordinates(rest), history.pending])
        at_best, others = _moved(searched, context, at_best, others)
        widths = _widths(searched, at_best, near[good], len(badness))
        below = Mixture(searched, at_best, near[good], widths)
        above = Mixture(searched, others, weights, SHARPER * widths)
        candidates = below.sample(self._rng, DRAWS * self._n_ei_candidates)
        had = candidates[:0]
        if whole and all(column.n_choices or column.step for column in searched):
            running = history.pending[(history.pending[:, n:] == context.point).all(axis=1)]
            had = np.vstack([history.coordinates(here), running])[:, :n]
            had = had[~np.isnan(had).any(axis=1)]
            had = had[np.isclose(snapped(searched, had), had, atol=1e-9).all(axis=1)]
            candidates = np.vstack([candidates, spread(searched, len(candidates), self._rng)])
            fresh = _untried(candidates, had)
            candidates = fresh if len(fresh) else candidates
        candidates = _distinct(candidates)  # few values are drawn often
        ratio = below.log_density(candidates) - above.log_density(candidates)
        # of a part, or of several losses, the process knows nothing
        if not whole or len(study.directions) > 1:
            best: Array = candidates[int(np.argmax(ratio))]
            return best
        likeliest = candidates[np.argsort(-ratio, kind="stable")[:RANKED]]
        improvement = self._improvement(searched, context, history)
        if improvement.trend is not None:  # and what the sources expect to be good
            foretold = improvement.trend.least(searched, context.point, RANKED, self._rng)
            likeliest = np.vstack([likeliest, _untried(foretold, had)])
        worth = improvement(likeliest)
        if len(had):  # where there is noise, a known point may be worth another trial
            again = _distinct(had)
            repeating = improvement.of_repeating(again)
            if not len(_untried(likeliest, had)) and np.isfinite(repeating).any():
                likeliest, worth = again, repeating  # all have been tried
            else:
                likeliest = np.vstack([likeliest, again])
                worth = np.concatenate([worth, repeating])
        result: Array = likeliest[int(np.argmax(worth))]
        return result

    def _improvement(
        self, searched: Sequence[Column], context: Context, history: History
    ) -> Improvement:
        """What the Gaussian process expects of points."""
        surrogate = Surrogate.of(history, searched, context.columns, self.fits)
        return Improvement(surrogate.near(context.point, RANKED_BY), context.point, self._rng)

    def _sharing(
        self, study: Study, searched: Sequence[Column], context: Context, history: History
    ) -> tuple[float, float]:
        """How much cells share, learnt anew when there are a tenth more trials: from the latest of
        the first n of them.

        So it is a function of the history, yet seldom computed.
        """
        if not context.columns:
            return SHARING[0]
        first = history.first(checkpoint(len(history.loss)))
        latest = slice(-MAX_COMPARED, None)
        names = tuple(column.name for column in [*searched, *context.columns])
        values = (
            first.read.internal(first.kept[latest]),
            first.loss[latest],
            first.pruned[latest],
            first.violation[latest],
        )
        key = (names, *(array.tobytes() for array in values))
        if self._learnt is None or self._learnt[0] != key:
            badness, *_ = _split(
                study, first, first.coordinates(columns=slice(len(searched), None))
            )
            x = first.coordinates(latest)
            self._learnt = key, learn_sharing(searched, context.columns, x, badness[latest])
        return self._learnt[1]


def _distinct(points: Array) -> Array:
    """Each point once, in the order of their first appearance."""
    _, first = np.unique(points.round(9), axis=0, return_index=True)
    return points[np.sort(first)]


def _untried(candidates: Array, points: Array) -> Array:
    """The candidates that are not among the points."""
    tried = set(map(tuple, np.round(points, 9).tolist()))
    fresh = [point not in tried for point in map(tuple, np.round(candidates, 9).tolist())]
    untried: Array = candidates[np.array(fresh, dtype=bool)]
    return untried


def _moved(
    searched: Sequence[Column], context: Context, good: Array, others: Array
) -> tuple[Array, Array]:
    """The searched coordinates of good and other trials, moved as good ones move between cells."""
    n, ordered = len(searched), [j for j, column in enumerate(searched) if not column.n_choices]
    drift = Drift(good[:, ordered], good[:, n:], context.columns)
    moved = []
    for x, least, most in ((good, 0.0, 1.0), (others, *BEYOND)):
        placed = x[:, :n].copy()
        placed[:, ordered] = np.clip(
            x[:, ordered] + drift.towards(context.point, x[:, n:]), least, most
        )
        moved.append(placed)
    return moved[0], moved[1]


def _split(study: Study, history: History, cells: Array) -> tuple[Array, npt.NDArray[np.intp], int]:
    """Each trial's badness, the trials from the best on, and how many of them are good.

    With one objective a trial is as good as its place among the trials of its cell, for a good
    trial of a bad cell says where to search in that cell, and in others; complete ones come first,
    then pruned, infeasible, and failed ones.
    """
    if len(study.directions) > 1:
        n_good = math.ceil(0.1 * history.n_useful)
        useful = [t for t in history.trials if t.state != TrialState.FAIL]
        numbers = {t.number for t in _split_trials(study, useful, n_good)[0]}
        badness = np.array([0.0 if t.number in numbers else 1.0 for t in history.trials])
    else:
        n_good = math.ceil(GOOD * history.n_useful)
        group = np.where(
            np.isfinite(history.loss),
            np.where(history.pruned, 1, 0),
            np.where(history.violation > 0, 2, 3),
        )
        value = np.select([group == 0, group == 2], [history.loss, history.violation], 0.0)
        value, step = (
            np.where(group == 1, history.loss, value),
            np.where(group == 1, -history.step, 0.0),
        )
        # Between cells' equally placed trials the lower loss comes first.
        badness = _places(cells, (value, step, group)) + group
        badness += 1e-3 * Scale.of(history.loss, history.pruned).standard(
            history.loss, history.pruned
        )
    return badness, np.argsort(badness, kind="stable"), n_good


def _places(cells: Array, keys: Sequence[Array]) -> Array:
    """Each trial's place among those of its cell, from 0 to 1, by `keys` (the last counts most)."""
    number, n_numbers = np.zeros(len(cells), dtype=np.int64), 1
    for j in range(cells.shape[1]):
        values, index = np.unique(cells[:, j], return_inverse=True)
        number, n_numbers = number * len(values) + index, n_numbers * len(values)
        if n_numbers > MAX_NUMBERS:
            used, number = np.unique(number, return_inverse=True)
            n_numbers = len(used)
    order = np.lexsort((*keys, number))
    sizes = np.bincount(number)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty(len(cells))
    place[order] = (np.arange(len(cells)) - starts[number[order]] + 0.5) / (
        sizes[number[order]] + 1.0
    )
    return place


def _rest(
    order: npt.NDArray[np.intp], good: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Array]:
    """Of the trials from the best on those that are not `good`, MAX_REST at most, and for how many
    trials each stands.
    """
    others = np.ones(len(order), dtype=bool)
    others[good] = False
    rest = order[others[order]]
    if len(rest) <= MAX_REST:
        return rest, np.ones(len(rest))
    half = MAX_REST // 2
    spread = np.linspace(half, len(rest) - 1, MAX_REST - half).astype(int)
    weights = np.concatenate(
        [np.ones(half), np.full(len(spread), (len(rest) - half) / len(spread))]
    )
    return np.concatenate([rest[:half], rest[spread]]), weights


def _widths(searched: Sequence[Column], good: Array, weights: Array, n_trials: int) -> Array:
    """Scott's rule, narrowed, on the spread of the good trials, which a prior widens where they are
    few.
    """
    effective = float(weights.sum()) ** 2 / float((weights**2).sum())
    factor = BANDWIDTH * effective ** (-1.0 / (len(searched) + 4.0))
    widths = np.ones(len(searched))
    for j, column in enumerate(searched):
        if column.n_choices:
            continue
        present = ~np.isnan(good[:, j])
        w, x = weights[present], good[present, j]
        total = float(w.sum())
        squares = float(w @ (x - float(w @ x) / total) ** 2) if total else 0.0
        std = math.sqrt((squares + PRIOR_STD**2) / (total + 1.0))
        low, high = column.limits()
        least = min(LEAST_WIDTH, 2.4 / n_trials)
        if column.step:
            low, high = (float(v) for v in column.encode(np.array([column.low, column.high])))
            steps = max(1.0, round((column.high - column.low) / column.step))
            least = max(least, 0.5 * (high - low) / steps)
        widths[j] = max(factor * std, least)
    return widths
