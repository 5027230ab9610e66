"""What the Gaussian process believes of the best loss that each cell can reach: jointly, at a few
likely points per cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.search.gp.process import Posterior
from orchestrator.search.trials.candidates import around, snapped, spread
from orchestrator.search.trials.history import Array, Column
from orchestrator.search.trials.threads import Library

linalg = Library("scipy.linalg")

N_SPREAD = 256
N_SEEN = 64
RADII = (0.1, 0.03)
MAX_COMPARED = 3000
"""Points examined closely, over all cells."""
MAX_JOINED = 480
"""Of those, points considered jointly, over all cells."""
WIDENED = 1.3
"""The model treats its hyperparameters as certain, which they are not: with its own deviations,
intervals are too narrow, and it is too sure which cell is the best.
"""
PER_CELL = 24
"""Points considered jointly in each cell, unless the caller asks for another number."""


@dataclass(frozen=True)
class Optima:
    """Means (cells, points) and joint covariance of the true losses at likely points of each cell,
    in the model's units; and these points' searched coordinates, shape (cells, points, columns).
    """

    mean: Array
    covariance: Array
    noise: float
    points: Array

    @staticmethod
    def of(
        posterior: Posterior,
        seen: Array,
        searched: Sequence[Column],
        cells: Array,
        fixed: Array,
        rng: np.random.Generator,
        per_cell: int = PER_CELL,
    ) -> Optima:
        """Looks for each cell's likely optima among points spread, seen and near the best ones.

        Args:
            seen: searched coordinates of trials, best ones first.
            cells: coordinates of the cells, one row per cell.
            fixed: for each cell the searched coordinates that it does not vary, NaN where it does.
            rng: draws the points.
            per_cell: points per cell that are considered jointly; about twice as many are examined
                closely.
        """
        n_cells = len(cells)
        shared = np.vstack([spread(searched, N_SPREAD, rng), snapped(searched, seen[:N_SEEN])])
        if not searched:
            shared = shared[:1]
        # one row per cell; fixed coordinates are corrected below
        mean = posterior.mean_everywhere(shared, cells).T
        n_close = int(np.clip(MAX_COMPARED // (2 * n_cells), 2, 5 * per_cell // 2))
        order = np.argpartition(mean, min(n_close, mean.shape[1] - 1), axis=1)[:, :n_close]
        points = _within(shared[order], fixed)  # (cells, points, columns)
        n_moved = int(np.clip(MAX_COMPARED // (4 * n_cells), 2, per_cell))
        for radius in RADII if searched else ():
            points = _within(
                _refined(posterior, points, searched, cells, radius, n_moved, rng), fixed
            )
        k = int(np.clip(MAX_JOINED // n_cells, 1, per_cell)) if searched else 1
        return Optima._joined(posterior, points, cells, k, rng)

    @staticmethod
    def _joined(
        posterior: Posterior, points: Array, cells: Array, k: int, rng: np.random.Generator
    ) -> Optima:
        """`k` points per cell: the one of lowest mean, then the lowest of independent draws, so
        that they differ.
        """
        n_cells, n_points, width = points.shape
        marginal = posterior.at(
            points.reshape(n_cells * n_points, width), np.repeat(cells, n_points, axis=0)
        )
        mean, std = (
            marginal.mean[:, 0].reshape(n_cells, n_points),
            marginal.std.reshape(n_cells, n_points),
        )
        chosen = np.empty((n_cells, k), dtype=int)
        chosen[:, 0] = mean.argmin(axis=1)
        drawn = mean[None] + std[None] * rng.standard_normal((k - 1, *mean.shape))
        chosen[:, 1:] = drawn.argmin(axis=2).T
        covariance = marginal.covariance((chosen + n_points * np.arange(n_cells)[:, None]).ravel())
        return Optima(
            np.take_along_axis(mean, chosen, axis=1),
            covariance,
            posterior.noise,
            np.take_along_axis(points, chosen[:, :, None], axis=1),
        )

    def drawn(self, rng: np.random.Generator, n: int, *, widened: float = 1.0) -> Array:
        """Joint draws of the true losses at the points, shape (n, cells, points); deviations are
        `widened` times the model's.
        """
        factor = widened * root(self.covariance)
        drawn = self.mean.ravel() + rng.standard_normal((n, self.mean.size)) @ factor.T
        result: Array = drawn.reshape(n, *self.mean.shape)
        return result

    def lows(self, rng: np.random.Generator, n: int, *, widened: float = 1.0) -> Array:
        """Joint draws of each cell's lowest true loss, shape (n, cells), likewise."""
        result: Array = self.drawn(rng, n, widened=widened).min(axis=2)
        return result


def _refined(
    posterior: Posterior,
    points: Array,
    searched: Sequence[Column],
    cells: Array,
    radius: float,
    n_moved: int,
    rng: np.random.Generator,
) -> Array:
    """Replaces each cell's points by as many of them and of others near its best three that have
    the lowest means.
    """
    n_cells, n_points, width = points.shape
    mean = posterior.mean_by_cell(points, cells)
    best = np.take_along_axis(points, np.argsort(mean, axis=1)[:, :3, None], axis=1)
    each = max(1, n_moved // best.shape[1])
    moved = around(searched, best.reshape(-1, width), radius, each, rng).reshape(n_cells, -1, width)
    # The worst give way, so that the points stay spread where the best are few.
    keep = np.take_along_axis(
        points, np.argsort(mean, axis=1)[:, : max(1, n_points // 2), None], axis=1
    )
    return np.concatenate([keep, moved], axis=1)


def _within(points: Array, fixed: Array) -> Array:
    result: Array = np.where(np.isnan(fixed)[:, None, :], points, fixed[:, None, :])
    return result


def root(covariance: Array) -> Array:
    """A lower triangular root; likely points lie close together, so the matrix is
    nearly singular.
    """
    scale = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    for jitter in (1e-9, 1e-7, 1e-5, 1e-3):
        factor, failed = linalg.lapack.dpotrf(
            covariance + jitter * scale * np.eye(len(covariance)), lower=1, clean=1
        )
        if not failed:
            result: Array = factor
            return result
    return np.diag(np.sqrt(np.maximum(np.diag(covariance), 0.0)))
