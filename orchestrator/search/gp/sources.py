"""Other studies as a prior: what a process of each source expects, with a weight that this study's
own trials decide.

Each source has a Gaussian process of its own, in its own standardised units, so that neither the
level nor the scale of its losses matters. This study's process models what its trials differ by
from the weighted means of the sources (a stack of residuals, as in Golovin et al., "Google Vizier",
2017). A weight is what generalised least squares find, with a prior that trusts the source
somewhat; none is negative. A source is not used at all, as if it were not there, unless leaving out
one trial after the other shows that it foretells this study's trials: that keeps a misleading
source from diluting what is known (as Feurer et al., "Practical transfer learning for Bayesian
optimization", 2018, drop such models from their ensemble).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.process import Hyperparameters, Layout, NoisePrior, Posterior, fit
from orchestrator.search.trials.candidates import around, spread
from orchestrator.search.trials.history import Array, Column, Context, History
from orchestrator.search.trials.quasirandom import point_of
from orchestrator.search.trials.threads import one_thread

FEW = 4
"""This many trials are enough before the model suggests, if the sources foretell them."""
AGREES = 0.7
"""The share of pairs of trials that sources must put in the right order to be followed before the
model weighs them: chance gives a half.
"""
TRUST, DOUBT = 0.7, 0.35
"""Mean and standard deviation of the prior of a lone source's weight: 1 would be a source that
explains all of what the trials differ by.
"""
LEAST_SPREAD = 0.3
"""Where a source expects nearly the same of all trials, its small differences are not blown up
beyond this part of its own standard deviation.
"""
N_SPREAD = 512
N_BEST, N_AROUND, RADII = 5, 30, (0.1, 0.02)
"""How many of a source's best trials are looked around, at how many points and how far away."""
N_DRAWN = 64
MAX_FITTED = 200
MAX_REMEMBERED = 32
"""Sets of columns whose processes are remembered."""


@dataclass(frozen=True)
class SourceTrials:
    """The trials of one source as this study sees them: internal values by parameter, each of shape
    (n,) with NaN where a trial has none; losses to be minimised, and which were pruned.
    """

    name: str
    internal: Mapping[str, Array]
    loss: Array
    pruned: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SourceModel:
    """The process of one source over those of the columns that it knows: `searched` and `context`
    are their places among the searched and the cell's.
    """

    name: str
    searched: npt.NDArray[np.intp]
    context: npt.NDArray[np.intp]
    x: Array
    y: Array
    posterior: Posterior

    @staticmethod
    def of(
        trials: SourceTrials, searched: Sequence[Column], context: Sequence[Column]
    ) -> SourceModel | None:
        """None if the source has no value of any of the columns."""
        mine, cells = (
            [
                j
                for j, column in enumerate(columns)
                if not np.isnan(trials.internal.get(column.name, np.array([math.nan]))).all()
            ]
            for columns in (searched, context)
        )
        if not mine and not cells:
            return None
        of_search, of_cell = [searched[j] for j in mine], [context[j] for j in cells]
        layout = Layout.of(of_search, of_cell)
        x = layout.filled(
            np.column_stack([c.encode(trials.internal[c.name]) for c in [*of_search, *of_cell]])
        )
        y = Scale.of(trials.loss, trials.pruned).standard(trials.loss, trials.pruned)
        some = np.unique(np.linspace(0, len(y) - 1, min(len(y), MAX_FITTED)).astype(int))
        posterior = Posterior(x, y, layout, fit(x[some], y[some], layout))
        return SourceModel(trials.name, np.array(mine, int), np.array(cells, int), x, y, posterior)

    def mean(self, points: Array, cells: Array) -> Array:
        """See `Posterior.mean`; shape (points,)."""
        return self.posterior.mean(points[:, self.searched], cells[:, self.context])[:, 0]

    def mean_everywhere(self, points: Array, cells: Array) -> Array:
        """See `Posterior.mean_everywhere`."""
        return self.posterior.mean_everywhere(points[:, self.searched], cells[:, self.context])

    def mean_by_cell(self, points: Array, cells: Array) -> Array:
        """See `Posterior.mean_by_cell`."""
        return self.posterior.mean_by_cell(points[:, :, self.searched], cells[:, self.context])


@dataclass(frozen=True)
class Trend:
    """The weighted means of the sources, in this study's standardised units: a mean function.

    A weight of 0 is a source that is not used, one of about 1 a source that explains everything.
    """

    models: Sequence[SourceModel]
    weights: Array
    centres: Array
    widths: Array

    @property
    def by_source(self) -> dict[str, float]:
        """The weights by the names of the sources."""
        return {m.name: float(w) for m, w in zip(self.models, self.weights, strict=True)}

    def mean(self, points: Array, cells: Array) -> Array:
        """At points, shape (points,)."""
        return self._sum([m.mean(points, cells) for m in self.models])

    def mean_everywhere(self, points: Array, cells: Array) -> Array:
        """At each of the points in each of the cells."""
        return self._sum([m.mean_everywhere(points, cells) for m in self.models])

    def mean_by_cell(self, points: Array, cells: Array) -> Array:
        """At each cell's own points."""
        return self._sum([m.mean_by_cell(points, cells) for m in self.models])

    def least(
        self, searched: Sequence[Column], cell: Array, n: int, rng: np.random.Generator
    ) -> Array:
        """The `n` points of a cell where it is the least, of many."""
        points = _candidates(self.models, searched, rng)
        result: Array = points[np.argsort(self.mean(points, cell[None, :]), kind="stable")[:n]]
        return result

    def _sum(self, means: Sequence[Array]) -> Array:
        total = np.zeros_like(means[0])
        for mean, w, centre, width in zip(
            means, self.weights, self.centres, self.widths, strict=True
        ):
            total += w / width * (mean - centre)
        return total


class Sources:
    """The sources of a study; their processes are made once for each set of columns."""

    def __init__(self, trials: Sequence[SourceTrials]) -> None:
        self.trials = tuple(trials)
        self._models: dict[tuple[tuple[str, ...], ...], list[SourceModel | None]] = {}

    def models(
        self, searched: Sequence[Column], context: Sequence[Column]
    ) -> list[SourceModel | None]:
        """One for each source, None for one that knows none of the columns."""
        key = (tuple(c.name for c in searched), tuple(c.name for c in context))
        if key not in self._models:
            if len(self._models) >= MAX_REMEMBERED:
                self._models.clear()
            self._models[key] = [SourceModel.of(t, searched, context) for t in self.trials]
        return self._models[key]


def learn(
    x: Array, y: Array, layout: Layout, models: Sequence[SourceModel | None], noise: NoisePrior
) -> tuple[Hyperparameters, Trend | None]:
    """The hyperparameters of this study's process given standardised losses `y` at `x`, and the
    trend that they are to be used with; None where the sources do not foretell `y`.

    Sources are added one by one, those that foretell best alone come first, and each only if it
    helps those before it. A function of its arguments alone.
    """
    plain = fit(x, y, layout, noise)
    best = _Fit(Posterior(x, y, layout, plain).foretold(), plain, None)
    alone = [
        (_fit(x, y, layout, [model], noise), place, model)
        for place, model in enumerate(models)
        if model is not None
    ]
    chosen: list[SourceModel] = []
    for found, _, model in sorted(alone, key=lambda one: (-one[0].foretold, one[1])):
        more = _fit(x, y, layout, [*chosen, model], noise) if chosen else found
        # A weight is one parameter more: what it costs is what it gains by chance (Schwarz, 1978).
        if more.foretold > best.foretold + 0.5 * math.log(len(y)) and more.trend is not None:
            best = more
            chosen.append(model)
    return best.h, best.trend


@dataclass(frozen=True)
class _Fit:
    """Hyperparameters with a trend, and how well they foretell each trial from the others."""

    foretold: float
    h: Hyperparameters
    trend: Trend | None


def _fit(
    x: Array, y: Array, layout: Layout, models: Sequence[SourceModel], noise: NoisePrior
) -> _Fit:
    n = layout.n_searched
    expected = np.column_stack([model.mean(x[:, :n], x[:, n:]) for model in models])
    centres = expected.mean(axis=0)
    widths = np.maximum(expected.std(axis=0), LEAST_SPREAD)
    basis = (expected - centres) / widths
    prior = weights = np.full(len(models), TRUST / len(models))
    for _ in range(2):
        h = fit(x, y - basis @ weights, layout, noise)
        weights = _weights(Posterior(x, y, layout, h), basis, y, prior)
    foretold = Posterior(x, y - basis @ weights, layout, h).foretold()
    trend = Trend(models, weights, centres, widths) if weights.all() else None
    return _Fit(foretold, h, trend)


def _weights(posterior: Posterior, basis: Array, y: Array, prior: Array) -> Array:
    """The most probable weights, none negative, if what they leave of `y` is a draw from the
    process.
    """
    a, b = posterior.whitened(basis), posterior.whitened(y[:, None])[:, 0]
    precision = np.eye(len(prior)) / DOUBT**2
    left, right = a.T @ a + precision, a.T @ b + precision @ prior
    active = np.ones(len(prior), dtype=bool)
    weights = np.zeros(len(prior))
    while active.any():
        weights[:] = 0.0
        weights[active] = np.linalg.solve(left[np.ix_(active, active)], right[active])
        if (weights >= 0.0).all():
            break
        active[int(weights.argmin())] = False
        weights[~active] = 0.0
    return weights


@dataclass(frozen=True)
class Start:
    """The trials of a study before its model suggests.

    Without sources these are `n_startup_trials` points of a quasi-random sequence. With sources
    every second trial goes where one of them, each in its turn, may have its best in the trial's
    cell, as long as it puts the trials that have ended in the right order; and `FEW` trials are
    enough then. So a misleading source costs one trial, and the others are as without it.
    """

    history: History
    searched: Sequence[Column]
    context: Context
    n_startup_trials: int
    sources: Sources | None

    @property
    def is_over(self) -> bool:
        """Whether the model can suggest."""
        if self.history.is_enough(self.n_startup_trials):
            return True
        return self.history.is_enough(FEW) and bool(self._followed)

    def point(self, trial: FrozenTrial, seed: int | None, rng: np.random.Generator) -> Array:
        """Searched coordinates of the next trial."""
        turn, second = divmod(len(self.history.loss) + len(self.history.pending), 2)
        if self._followed and not second:
            model = self._followed[turn % len(self._followed)]
            with one_thread():
                return _drawn_best(model, self.searched, self.context.point, rng)
        return point_of(self.searched, trial, seed)

    @cached_property
    def _followed(self) -> list[SourceModel]:
        """The sources that know searched columns, and put `AGREES` of the pairs of trials in the
        right order; all if there is no pair.
        """
        if self.sources is None:
            return []
        layout, n = Layout.of(self.searched, self.context.columns), len(self.searched)
        x, loss = layout.filled(self.history.x), self.history.loss
        with np.errstate(invalid="ignore"):  # of two that failed
            order = np.sign(loss[:, None] - loss[None, :])
        pairs = np.abs(order) == 1.0

        def agrees(model: SourceModel) -> bool:
            expected = model.mean(x[:, :n], x[:, n:])
            right = order * (expected[:, None] - expected[None, :]) > 0.0
            return not pairs.any() or bool(right[pairs].mean() >= AGREES)

        with one_thread():
            models = self.sources.models(self.searched, self.context.columns)
            return [m for m in models if m is not None and len(m.searched) and agrees(m)]


def _drawn_best(
    model: SourceModel, searched: Sequence[Column], cell: Array, rng: np.random.Generator
) -> Array:
    points, cells = _candidates([model], searched, rng), cell[None, :]
    likely = points[np.argsort(model.mean(points, cells), kind="stable")[:N_DRAWN]]
    drawn = model.posterior.draws(
        likely[:, model.searched], cells[:, model.context], rng.standard_normal((len(likely), 1))
    )
    result: Array = likely[int(drawn[:, 0].argmin())]
    return result


def _candidates(
    models: Sequence[SourceModel], searched: Sequence[Column], rng: np.random.Generator
) -> Array:
    """Points spread over the space, and others near the best trials of the sources."""
    points = [spread(searched, N_SPREAD, rng)]
    for model in models:
        best = model.x[np.argsort(model.y, kind="stable")[:N_BEST]]
        centres = spread(searched, len(best), rng)
        centres[:, model.searched] = best[:, : len(model.searched)]
        points += [around(searched, centres, radius, N_AROUND, rng) for radius in RADII]
    return np.vstack(points)
