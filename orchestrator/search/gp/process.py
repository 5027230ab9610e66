"""A Gaussian process over searched parameters and cells together: exact, in NumPy, fitted by MAP
with analytic gradients.

The kernel between two trials with searched parameters x and cells c is ``s0·M(x, x') + s1·C(c, c')
+ s2·M(x, x')·C(c, c')``: a shape that all cells share, an offset for each cell, and what is
particular to a cell. M and C are Matérn-5/2 with one length scale per column; categories are near
by equality (squared distance 0 or 1). BoTorch's `MixedSingleTaskGP` has this form.

Memory is of the order of (trials)² whatever the number of columns: distances and their gradients
are matrix products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.search.trials.history import Array, Column
from orchestrator.search.trials.threads import Library

if TYPE_CHECKING:
    from orchestrator.search.gp.sources import Trend

linalg = Library("scipy.linalg")
optimize = Library("scipy.optimize")

SQRT5 = math.sqrt(5.0)
NOISE_FLOOR = 1e-6
JITTER = 1e-8
COARSE = 60
"""A fit to more trials than this starts from a fit to as many of them."""


@dataclass(frozen=True)
class Layout:
    """How many choices each column has (0: ordered); the first `n_searched` columns are searched,
    the rest tell the cell.
    """

    choices: tuple[int, ...]
    n_searched: int

    @staticmethod
    def of(searched: Sequence[Column], context: Sequence[Column]) -> Layout:
        return Layout(tuple(column.n_choices for column in [*searched, *context]), len(searched))

    @property
    def n_context(self) -> int:
        return len(self.choices) - self.n_searched

    def filled(self, x: Array) -> Array:
        """Puts the middle (or no category) where a trial does not have a parameter, which is NaN:
        similar to all values, and equal to another NaN.
        """
        result: Array = np.where(np.isnan(x), self.neutral[: x.shape[-1]], x)
        return result

    @property
    def neutral(self) -> Array:
        """The value that stands for a parameter that does not exist, one number per column."""
        return np.where(np.array(self.choices, dtype=int) > 0, -1.0, 0.5)

    def split(self, x: Array) -> tuple[Array, Array]:
        """Features of the searched columns and of the cell's (see `_features`)."""
        n = self.n_searched
        return _features(x[:, :n], self.choices[:n]), _features(x[:, n:], self.choices[n:])


@dataclass(frozen=True)
class Hyperparameters:
    """Weights of the three terms, noise variance (all relative to unit variance of the data), and
    length scales as ``1/l²``.
    """

    shared: float
    offset: float
    particular: float
    noise: float
    inverse_squared: Array

    @staticmethod
    def from_vector(theta: Array) -> Hyperparameters:
        e = np.exp(theta)
        return Hyperparameters(
            float(e[0]), float(e[1]), float(e[2]), float(e[3]) + NOISE_FLOOR, e[4:]
        )


def _features(x: Array, choices: Sequence[int]) -> Array:
    """Columns between whose rows the plain squared distance is meant: a category becomes one column
    per choice, 0 or √½.
    """
    parts = []
    for j, n in enumerate(choices):
        column = x[:, j : j + 1]
        parts.append(math.sqrt(0.5) * (column == np.arange(n)) if n else column)
    return np.hstack(parts) if parts else np.zeros((len(x), 0))


def _owners(choices: Sequence[int]) -> npt.NDArray[np.intp]:
    """The column that each feature comes from."""
    return np.repeat(np.arange(len(choices)), [max(n, 1) for n in choices])


def _squared_distances(a: Array, b: Array) -> Array:
    result: Array = a @ (-2.0 * b.T)
    result += (a * a).sum(axis=1)[:, None]
    result += (b * b).sum(axis=1)
    return np.maximum(result, 0.0, out=result)


def _matern(scaled_squared: Array) -> Array:
    """Matérn-5/2 of a squared scaled distance."""
    root = np.sqrt(5.0 * scaled_squared)
    decay = np.negative(root)
    np.exp(decay, out=decay)
    result: Array = root * root
    result *= 1.0 / 3.0
    result += root
    result += 1.0
    result *= decay
    return result


def _matern_and_slope(scaled_squared: Array) -> tuple[Array, Array]:
    """The same and its derivative with respect to the squared distance."""
    root = SQRT5 * np.sqrt(scaled_squared)
    decay = np.exp(-root)
    slope = (1.0 + root) * decay
    return slope + (root**2 / 3.0) * decay, (-5.0 / 6.0) * slope


@dataclass(frozen=True)
class NoisePrior:
    """What noise is expected: the median of its variance, for losses of unit variance, and the
    standard deviation of the logarithm of that.
    """

    variance: float
    spread: float


SEARCHING = NoisePrior(1e-4, 2.0)
"""For suggestions: little is believed in until trials show it, because what is taken for noise is
not searched any further.
"""
BELIEVING = NoisePrior(5e-3, 1.5)
"""For what is reported: with little expected, few trials show too little of it, and intervals are
too narrow.
"""
# Prior of the logarithms of (shared, offset, particular): means and standard deviations, for losses
# of unit variance.
_PRIOR_MEAN = np.log([0.5, 0.3, 0.2])
_PRIOR_STD = np.array([1.0, 1.0, 1.0])


def _prior(layout: Layout, noise: NoisePrior) -> tuple[Array, Array]:
    """Log-normal priors; length scales grow with the root of the number of searched columns
    (Hvarfner et al., 2024).
    """
    searched = np.full(
        layout.n_searched, -2.0 * math.log(0.4 * math.sqrt(max(layout.n_searched, 1)))
    )
    mean = np.concatenate([searched, np.zeros(layout.n_context)])
    return np.concatenate([_PRIOR_MEAN, [math.log(noise.variance)], mean]), np.concatenate(
        [_PRIOR_STD, [noise.spread], np.full(len(mean), 1.5)]
    )


class _Evidence:
    """The negative log posterior of the hyperparameters given losses `y` at `x`, over the number of
    losses.
    """

    def __init__(self, x: Array, y: Array, layout: Layout, noise: NoisePrior) -> None:
        self._y = y
        self._searched, self._context = layout.split(x)
        n = layout.n_searched
        self._n = n
        self._searched_owner, self._context_owner = (
            _owners(layout.choices[:n]),
            _owners(layout.choices[n:]),
        )
        self._mean, self._std = _prior(layout, noise)

    def minimum(self, start: Array, iterations: int) -> Array:
        """Where a descent from `start` ends."""
        found = optimize.minimize(
            self,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(m - 5 * s, m + 5 * s) for m, s in zip(self._mean, self._std, strict=True)],
            options={"maxiter": iterations, "ftol": 1e-5},
        )
        result: Array = found.x
        return result

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Value and gradient."""
        h, n, y = Hyperparameters.from_vector(theta), len(self._y), self._y
        of_searched, of_context = h.inverse_squared[: self._n], h.inverse_squared[self._n :]
        m, dm = self._similarity(self._searched, of_searched[self._searched_owner])
        if len(of_context):
            c, dc = self._similarity(self._context, of_context[self._context_owner])
        else:
            c, dc = np.zeros_like(m), np.zeros_like(m)
        mc = m * c
        k = h.shared * m + h.offset * c + h.particular * mc
        k[np.diag_indices(n)] += h.noise + JITTER
        factor, failed = linalg.lapack.dpotrf(k, lower=1, clean=1)
        if failed:
            return 1e10, np.zeros_like(theta)
        alpha = linalg.lapack.dpotrs(factor, y, lower=1)[0]
        w = linalg.lapack.dpotri(factor, lower=1)[0]
        w = w + np.tril(w, -1).T
        value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor)).sum())
        w -= np.outer(alpha, alpha)
        w *= 0.5  # now d value / d K
        gradient = np.empty_like(theta)
        gradient[0] = h.shared * np.vdot(w, m)
        gradient[1] = h.offset * np.vdot(w, c)
        gradient[2] = h.particular * np.vdot(w, mc)
        gradient[3] = (h.noise - NOISE_FLOOR) * np.trace(w)
        by_m = w * (h.shared + h.particular * c) * dm
        gradient[4 : 4 + self._n] = of_searched * _by_column(
            self._searched, by_m, self._searched_owner, self._n
        )
        if len(of_context):
            by_c = w * (h.offset + h.particular * m) * dc
            gradient[4 + self._n :] = of_context * _by_column(
                self._context, by_c, self._context_owner, len(of_context)
            )
        z = (theta - self._mean) / self._std
        return (value + 0.5 * float(z @ z)) / n, (gradient + z / self._std) / n

    @staticmethod
    def _similarity(features: Array, weight: Array) -> tuple[Array, Array]:
        scaled = features * np.sqrt(weight)
        squared = _squared_distances(scaled, scaled)
        np.fill_diagonal(squared, 0.0)
        return _matern_and_slope(squared)


def _by_column(
    features: Array, weight: Array, owner: npt.NDArray[np.intp], n_columns: int
) -> Array:
    """For each column the sum over pairs of symmetric `weight` times the pair's squared distance in
    that column.
    """
    each = 2.0 * (
        (weight.sum(axis=1) @ features**2) - np.einsum("if,if->f", features, weight @ features)
    )
    return np.bincount(owner, each, n_columns).astype(float)


def fit(x: Array, y: Array, layout: Layout, noise: NoisePrior = SEARCHING) -> Hyperparameters:
    """The most probable hyperparameters given standardised losses `y` at `x`; a function of its
    arguments alone.
    """
    start, _ = _prior(layout, noise)
    n = len(y)
    if n <= COARSE:
        return Hyperparameters.from_vector(_Evidence(x, y, layout, noise).minimum(start, 40))
    some = np.unique(np.linspace(0, n - 1, COARSE).astype(int))
    start = _Evidence(x[some], y[some], layout, noise).minimum(start, 40)
    return Hyperparameters.from_vector(_Evidence(x, y, layout, noise).minimum(start, 12))


class Posterior:
    """The process conditioned on losses at points; several columns of losses (fantasies) share one
    factorisation.

    Where a method takes `points` and `cells`, these are the searched and the cell's coordinates of
    the same rows; a single row of `cells` stands for all. `trend` is its mean function; None: 0.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        layout: Layout,
        h: Hyperparameters,
        trend: Trend | None = None,
    ) -> None:
        self._layout, self._h, self._trend = layout, h, trend
        n = layout.n_searched
        self._trend_there = None if trend is None else trend.mean(x[:, :n], x[:, n:])
        weight = np.sqrt(h.inverse_squared)
        self._searched_scale = weight[:n][_owners(layout.choices[:n])]
        self._context_scale = weight[n:][_owners(layout.choices[n:])]
        self._searched, self._context = self._scaled(x[:, :n], x[:, n:])
        k = self._kernel(self._searched, self._context, self._searched, self._context)
        k[np.diag_indices(len(x))] += h.noise + JITTER
        self._factor: Array = linalg.cholesky(k, lower=True, check_finite=False)
        self._alpha: Array = linalg.cho_solve(
            (self._factor, True), self._residuals(y.reshape(len(x), -1)), check_finite=False
        )
        self._prior_variance = h.shared + (h.offset + h.particular if layout.n_context else 0.0)

    def given_also(self, x: Array, y: Array) -> Posterior:
        """Conditioned on further points too; `y` holds the losses of all, in as many columns as
        wanted.

        The existing factor is extended, because a new one costs the cube of the number of trials.
        """
        n, q = len(self._factor), len(x)
        searched, context = self._scaled(
            x[:, : self._layout.n_searched], x[:, self._layout.n_searched :]
        )
        below = self._solved(self._kernel(searched, context, self._searched, self._context)).T
        corner = self._kernel(searched, context, searched, context) - below @ below.T
        corner[np.diag_indices(q)] += self._h.noise + JITTER
        factor = np.zeros((n + q, n + q))
        factor[:n, :n], factor[n:, :n] = self._factor, below
        factor[n:, n:] = linalg.cholesky(corner, lower=True, check_finite=False)
        further = copy.copy(self)
        further._searched, further._context = (
            np.vstack([self._searched, searched]),
            np.vstack([self._context, context]),
        )
        further._factor = factor
        if self._trend is not None:
            m = self._layout.n_searched
            more = self._trend.mean(x[:, :m], x[:, m:])
            further._trend_there = np.concatenate([self._trend_there, more])
        further._alpha = linalg.cho_solve(
            (factor, True), further._residuals(y.reshape(n + q, -1)), check_finite=False
        )
        return further

    def _residuals(self, y: Array) -> Array:
        """What losses, one column per draw, differ by from the trend."""
        return y if self._trend_there is None else y - self._trend_there[:, None]

    def whitened(self, columns: Array) -> Array:
        """The inverse of the covariance's root times columns of values at the trials: were they
        draws from the process, these would be independent and of unit variance.
        """
        result: Array = linalg.solve_triangular(
            self._factor, columns, lower=True, check_finite=False
        )
        return result

    def foretold(self) -> float:
        """Logarithm of the density that each loss has given all others, summed: leave-one-out
        (Rasmussen & Williams, 2006, equations 5.10 to 5.12).
        """
        root = self.whitened(np.eye(len(self._factor)))
        precision = (root * root).sum(axis=0)
        error = self._alpha[:, 0] / precision
        return float(0.5 * (np.log(precision) - error**2 * precision).sum())

    @property
    def noise(self) -> float:
        """Variance of what is observed about what is true."""
        return self._h.noise

    def noise_quantiles(self, y: Array, quantiles: Sequence[float]) -> Array:
        """Quantiles of the belief about the noise variance, given the losses `y` that the process
        is conditioned on; the other hyperparameters are taken as certain.
        """
        n = len(y)
        kernel = self._factor @ self._factor.T
        kernel[np.diag_indices(n)] -= self._h.noise
        variances, vectors = np.linalg.eigh(kernel)
        squares = (vectors.T @ self._residuals(y[:, None])[:, 0]) ** 2
        mean, std = math.log(BELIEVING.variance), BELIEVING.spread
        logs = np.linspace(mean - 5.0 * std, mean + 5.0 * std, 400)
        each = np.maximum(variances, 0.0) + np.exp(logs)[:, None] + NOISE_FLOOR
        log_density = -0.5 * (np.log(each) + squares / each).sum(axis=1)
        log_density -= 0.5 * ((logs - mean) / std) ** 2
        density = np.exp(log_density - log_density.max())
        below = np.cumsum(density) / density.sum()
        result: Array = np.exp(np.interp(quantiles, below, logs)) + NOISE_FLOOR
        return result

    def mean(self, points: Array, cells: Array) -> Array:
        """Posterior mean, shape (points, columns of losses)."""
        result: Array = self._cross(points, cells) @ self._alpha
        if self._trend is not None:
            result += self._trend.mean(points, cells)[:, None]
        return result

    def mean_everywhere(self, points: Array, cells: Array) -> Array:
        """Posterior mean (of the first column of losses) at each of the points in each of the
        cells, shape (points, cells).
        """
        searched, context = self._scaled(points, cells)
        alpha = self._alpha[:, 0]
        m = _matern(_squared_distances(searched, self._searched))
        result: Array
        if self._layout.n_context:
            c = _matern(_squared_distances(context, self._context))
            result = self._h.particular * ((m * alpha) @ c.T)
            result += self._h.shared * (m @ alpha)[:, None]
            result += self._h.offset * (c @ alpha)
        else:
            result = np.repeat(self._h.shared * (m @ alpha)[:, None], len(cells), axis=1)
        if self._trend is not None:
            result += self._trend.mean_everywhere(points, cells)
        return result

    def mean_by_cell(self, points: Array, cells: Array) -> Array:
        """Posterior mean (of the first column of losses) at each cell's own points, shape (cells,
        points).

        Args:
            points: searched coordinates, shape (cells, points, columns).
            cells: the cells' coordinates, one row per cell.
        """
        n_cells, n_points, _ = points.shape
        alpha, result = self._alpha[:, 0], np.empty((n_cells, n_points))
        weights, offsets = (
            np.repeat(self._h.shared * alpha[None, :], n_cells, axis=0),
            np.zeros(n_cells),
        )
        if self._layout.n_context:
            c = _matern(_squared_distances(self._scaled(points[0], cells)[1], self._context))
            weights += self._h.particular * c * alpha
            offsets = self._h.offset * (c @ alpha)
        for i in range(n_cells):  # one by one, their matrices stay in the processor's cache
            searched = self._scaled(points[i], cells[:0])[0]
            result[i] = (
                _matern(_squared_distances(searched, self._searched)) @ weights[i] + offsets[i]
            )
        if self._trend is not None:
            result += self._trend.mean_by_cell(points, cells)
        return result

    def similarity(self, points: Array, others: Array) -> Array:
        """How alike searched coordinates are, row by row, from 0 to 1: the kernel M, shape
        (points,).
        """
        choices = self._layout.choices[: self._layout.n_searched]
        difference = _features(points, choices) - _features(others, choices)
        return _matern(((difference * self._searched_scale) ** 2).sum(axis=1))

    def at(self, points: Array, cells: Array) -> Marginal:
        """Its values without noise at points."""
        searched, context = self._scaled(points, cells)
        cross = self._kernel(searched, context, self._searched, self._context)
        mean = cross @ self._alpha
        if self._trend is not None:
            mean += self._trend.mean(points, cells)[:, None]
        return Marginal(self, searched, context, mean, self._solved(cross))

    def _solved(self, cross: Array) -> Array:
        """The factor's inverse times what points have in common with the trials, one column per
        point.
        """
        result: Array = linalg.solve_triangular(
            self._factor, cross.T, lower=True, check_finite=False
        )
        return result

    def draws(self, points: Array, cells: Array, normal: Array) -> Array:
        """Joint noisy draws at a few points from standard normals of shape (points, draws)."""
        marginal = self.at(points, cells)
        mean, covariance = marginal.mean, marginal.covariance(slice(None))
        covariance[np.diag_indices(len(points))] += self._h.noise + JITTER
        values, vectors = np.linalg.eigh(covariance)
        result: Array = mean[:, :1] + (vectors * np.sqrt(np.maximum(values, 0.0))) @ normal
        return result

    def _scaled(self, points: Array, cells: Array) -> tuple[Array, Array]:
        n, choices = self._layout.n_searched, self._layout.choices
        return (
            _features(points, choices[:n]) * self._searched_scale,
            _features(cells, choices[n:]) * self._context_scale,
        )

    def _cross(self, points: Array, cells: Array) -> Array:
        return self._kernel(*self._scaled(points, cells), self._searched, self._context)

    def _kernel(
        self, searched: Array, context: Array, other_searched: Array, other_context: Array
    ) -> Array:
        h = self._h
        m = _matern(_squared_distances(searched, other_searched))
        if not self._layout.n_context:
            return h.shared * m
        c = _similar_cells(context, other_context)
        m *= h.shared + h.particular * c
        m += h.offset * c
        return m


def _similar_cells(context: Array, other: Array) -> Array:
    """The cells' Matérn-5/2, found once for each two cells, for many rows are of the same."""
    if len(context) == 1:
        return _matern(_squared_distances(context, other))
    (rows, of_row), (columns, of_column) = (
        np.unique(c, axis=0, return_inverse=True) for c in (context, other)
    )
    result: Array = (
        _matern(_squared_distances(rows, columns))
        .take(of_row.ravel(), 0)
        .take(of_column.ravel(), 1)
    )
    return result


@dataclass(frozen=True)
class Marginal:
    """A posterior at some points: the mean without noise, shape (points, columns of losses), and on
    demand the rest.
    """

    posterior: Posterior
    searched: Array
    context: Array
    mean: Array
    solved: Array

    @property
    def std(self) -> Array:
        """Standard deviations, shape (points, 1)."""
        explained = np.einsum("ij,ij->j", self.solved, self.solved)
        result: Array = np.sqrt(np.maximum(self.posterior._prior_variance - explained, 1e-12))[
            :, None
        ]
        return result

    def covariance(self, which: Any) -> Array:
        """Of some of the points, shape (which, which)."""
        searched, solved = self.searched[which], self.solved[:, which]
        context = self.context[which] if len(self.context) > 1 else self.context
        prior = self.posterior._kernel(searched, context, searched, context)
        result: Array = prior - solved.T @ solved
        return result
