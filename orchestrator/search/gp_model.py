"""A Gaussian process over searched parameters and cells together: exact, in NumPy, fitted by MAP with analytic gradients.

The kernel between two trials with searched parameters x and cells c is ``s0·M(x, x') + s1·C(c, c') + s2·M(x, x')·C(c, c')``:
a shape that all cells share, an offset for each cell, and what is particular to a cell. M and C are Matérn-5/2 with one
length scale a column; categories are near by equality (squared distance 0 or 1). BoTorch's `MixedSingleTaskGP` has this form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize

from orchestrator.search.history import Array, Column

SQRT5 = math.sqrt(5.0)
NOISE_FLOOR = 1e-5
JITTER = 1e-8


@dataclass(frozen=True)
class Layout:
    """Which columns are searched and which describe the cell, and which of them are categories."""

    context: npt.NDArray[np.bool_]
    category: npt.NDArray[np.bool_]

    @staticmethod
    def of(searched: Sequence[Column], context: Sequence[Column]) -> Layout:
        is_context = np.array([False] * len(searched) + [True] * len(context), dtype=bool)
        is_category = np.array([bool(c.n_choices) for c in [*searched, *context]], dtype=bool)
        return Layout(is_context, is_category)

    def squared_distances(self, a: Array, b: Array) -> Array:
        """Per column, shape (columns, len(a), len(b))."""
        difference = a.T[:, :, None] - b.T[:, None, :]
        result: Array = difference * difference
        if self.category.any():
            result[self.category] = difference[self.category] != 0
        return result


@dataclass(frozen=True)
class Hyperparameters:
    """Weights of the three terms, noise variance (all relative to unit variance of the data), and length scales as ``1/l²``."""

    shared: float
    offset: float
    particular: float
    noise: float
    inverse_squared: Array

    @staticmethod
    def from_vector(theta: Array) -> Hyperparameters:
        e = np.exp(theta)
        return Hyperparameters(float(e[0]), float(e[1]), float(e[2]), float(e[3]) + NOISE_FLOOR, e[4:])


def _matern(scaled_squared: Array) -> tuple[Array, Array]:
    """Matérn-5/2 of a squared scaled distance, and its derivative with respect to it."""
    root = SQRT5 * np.sqrt(scaled_squared)
    decay = np.exp(-root)
    return (1.0 + root + root**2 / 3.0) * decay, -(5.0 / 6.0) * (1.0 + root) * decay


def _kernel(d2: Array, layout: Layout, h: Hyperparameters) -> Array:
    m, _ = _matern(np.tensordot(h.inverse_squared[~layout.context], d2[~layout.context], axes=1))
    if not layout.context.any():
        return h.shared * m
    c, _ = _matern(np.tensordot(h.inverse_squared[layout.context], d2[layout.context], axes=1))
    result: Array = h.shared * m + h.offset * c + h.particular * m * c
    return result


# Prior of the logarithms of (shared, offset, particular, noise): means and standard deviations, for data of unit variance.
_PRIOR_MEAN = np.log([0.5, 0.3, 0.2, 5e-3])
_PRIOR_STD = np.array([1.0, 1.0, 1.0, 1.5])


def _prior(layout: Layout) -> tuple[Array, Array]:
    """Log-normal priors; length scales grow with the root of the number of searched columns (Hvarfner et al., 2024)."""
    n_searched = int((~layout.context).sum())
    mean = np.where(layout.context, math.log(1.0), -2.0 * math.log(0.4 * math.sqrt(max(n_searched, 1))))
    return np.concatenate([_PRIOR_MEAN, mean]), np.concatenate([_PRIOR_STD, np.full(len(mean), 1.5)])


def _objective(theta: Array, y: Array, d2: Array, layout: Layout, mean: Array, std: Array) -> tuple[float, Array]:
    """Negative log posterior of the hyperparameters and its gradient, both over the number of observations."""
    h, n = Hyperparameters.from_vector(theta), len(y)
    searched, context = ~layout.context, layout.context
    m, dm = _matern(np.tensordot(h.inverse_squared[searched], d2[searched], axes=1))
    if context.any():
        c, dc = _matern(np.tensordot(h.inverse_squared[context], d2[context], axes=1))
    else:
        c, dc = np.zeros_like(m), np.zeros_like(m)
    mc = m * c
    k = h.shared * m + h.offset * c + h.particular * mc
    k[np.diag_indices(n)] += h.noise + JITTER
    try:
        factor = linalg.cho_factor(k, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    alpha = linalg.cho_solve(factor, y, check_finite=False)
    inverse, _ = linalg.lapack.dpotri(factor[0], lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum())
    w = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d K
    gradient = np.empty_like(theta)
    gradient[0] = h.shared * np.vdot(w, m)
    gradient[1] = h.offset * np.vdot(w, c)
    gradient[2] = h.particular * np.vdot(w, mc)
    gradient[3] = (h.noise - NOISE_FLOOR) * np.trace(w)
    by_m = (w * (h.shared + h.particular * c) * dm).ravel()
    by_c = (w * (h.offset + h.particular * m) * dc).ravel()
    flat = d2.reshape(len(d2), -1)
    gradient[4:] = h.inverse_squared * np.where(context, flat @ by_c, flat @ by_m)
    z = (theta - mean) / std
    return (value + 0.5 * float(z @ z)) / n, (gradient + z / std) / n


def fit(x: Array, y: Array, layout: Layout) -> Hyperparameters:
    """The most probable hyperparameters given standardised losses `y` at `x`; a function of its arguments alone."""
    mean, std = _prior(layout)
    d2 = layout.squared_distances(x, x)
    found = optimize.minimize(
        _objective,
        mean,
        args=(y, d2, layout, mean, std),
        jac=True,
        method="L-BFGS-B",
        bounds=[(m - 5 * s, m + 5 * s) for m, s in zip(mean, std, strict=True)],
        options={"maxiter": 40, "ftol": 1e-5},
    )
    return Hyperparameters.from_vector(found.x)


class Posterior:
    """The process conditioned on losses at points; several columns of losses (fantasies) share one factorisation."""

    def __init__(self, x: Array, y: Array, layout: Layout, h: Hyperparameters) -> None:
        self._x, self._layout, self._h = x, layout, h
        k = _kernel(layout.squared_distances(x, x), layout, h)
        k[np.diag_indices(len(x))] += h.noise + JITTER
        self._factor: Array = linalg.cholesky(k, lower=True, check_finite=False)
        self._alpha: Array = linalg.cho_solve((self._factor, True), y.reshape(len(x), -1), check_finite=False)
        self._prior_variance = h.shared + (h.offset + h.particular if layout.context.any() else 0.0)

    def mean(self, at: Array) -> Array:
        """Posterior mean, shape (points, columns of losses)."""
        cross = _kernel(self._layout.squared_distances(at, self._x), self._layout, self._h)
        result: Array = cross @ self._alpha
        return result

    def mean_and_std(self, at: Array) -> tuple[Array, Array]:
        """Posterior mean (points, columns of losses) and standard deviation without noise (points, 1)."""
        cross = _kernel(self._layout.squared_distances(at, self._x), self._layout, self._h)
        solved = linalg.solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = np.maximum(self._prior_variance - (solved**2).sum(axis=0), 1e-12)
        return cross @ self._alpha, np.sqrt(variance)[:, None]

    def draws(self, at: Array, normal: Array) -> Array:
        """Joint noisy draws at a few points from standard normals of shape (points, draws)."""
        cross = _kernel(self._layout.squared_distances(at, self._x), self._layout, self._h)
        solved = linalg.solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        covariance = _kernel(self._layout.squared_distances(at, at), self._layout, self._h) - solved.T @ solved
        covariance[np.diag_indices(len(at))] += self._h.noise + JITTER
        values, vectors = np.linalg.eigh(covariance)
        result: Array = cross @ self._alpha[:, :1] + (vectors * np.sqrt(np.maximum(values, 0.0))) @ normal
        return result
