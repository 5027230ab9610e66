"""Densities of product kernels over the searched columns, in NumPy alone: one matrix product for
thousands of trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.search.trials.candidates import snapped
from orchestrator.search.trials.history import Array, Column
from orchestrator.search.trials.threads import Library

special = Library("scipy.special")

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_TINY = 1e-300


class Mixture:
    """Weighted kernels about points and a flat prior; an unknown (NaN) coordinate of a point is
    flat too.

    A kernel is a normal of the column's width cut off at the ends where the column is ordered, and
    for a category its own choice with all others sharing what one trial in the whole weight would
    leave them.

    Args:
        searched: the columns.
        points: shape (n, columns); ordered coordinates may lie outside of [0, 1], from where only
            their tail counts.
        weights: shape (n,), of each kernel; the prior has the weight 1.
        widths: shape (columns,), of the ordered columns.
    """

    def __init__(
        self, searched: Sequence[Column], points: Array, weights: Array, widths: Array
    ) -> None:
        self._columns = searched
        self._points = points
        self._widths = widths
        total = float(weights.sum()) + 1.0
        self._shares = np.append(weights, 1.0) / total
        self._slip = 1.0 / (1.0 + total)
        ordered = np.array([not column.n_choices for column in searched], dtype=bool)
        self._ordered, self._categories = np.flatnonzero(ordered), np.flatnonzero(~ordered).tolist()
        x, width = points[:, ordered], widths[ordered]
        self._present = ~np.isnan(x)
        self._scaled = np.where(self._present, x, 0.0) / width
        inside = np.clip(np.where(self._present, x, 0.5), 0.0, 1.0)
        mass = special.ndtr((1.0 - inside) / width) - special.ndtr(-inside / width)
        constant = np.where(self._present, -np.log(mass * width) - _LOG_SQRT_2PI, 0.0).sum(axis=1)
        self._constant = constant + np.log(np.maximum(self._shares[:-1], _TINY))

    def log_density(self, at: Array) -> Array:
        """Logarithm of the density at points of shape (m, columns)."""
        u, v, present = (
            at[:, self._ordered] / self._widths[self._ordered],
            self._scaled,
            self._present.astype(float),
        )
        squared = (u * u) @ present.T - 2.0 * u @ v.T + (v * v).sum(axis=1)
        terms = self._constant - 0.5 * np.maximum(squared, 0.0)
        flat = math.log(self._shares[-1])
        for j in self._categories:
            n = self._columns[j].n_choices
            other, own = math.log(self._slip / n), math.log(1.0 - self._slip + self._slip / n)
            mine = self._points[:, j]
            table = np.full((n, len(mine)), other)
            table[:, np.isnan(mine)] = -math.log(n)
            present = np.flatnonzero(~np.isnan(mine))
            table[mine[present].astype(int), present] = own
            terms += table[at[:, j].astype(int)]
            flat -= math.log(n)
        result: Array = np.log(np.exp(terms).sum(axis=1) + math.exp(flat))
        return result

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draws of shape (size, columns), each a value the column allows within its limits."""
        chosen = rng.choice(len(self._shares), size=size, p=self._shares)
        n = len(self._columns)
        about = np.vstack([self._points, np.full((1, n), np.nan)])[chosen]
        uniform, slips = rng.random((size, n)), rng.random((size, n)) < self._slip
        drawn = np.empty((size, n))
        for j, column in enumerate(self._columns):
            low, high = column.limits()
            flat, x = low + uniform[:, j] * (high - low), about[:, j]
            if column.n_choices:
                other = column.spread(uniform[:, j]) if column.allowed else np.rint(flat)
                away = np.isnan(x) | slips[:, j]
                if column.allowed:
                    away |= ~np.isin(x, column.allowed)
                drawn[:, j] = np.where(away, other, x)
                continue
            bottom, top = (special.ndtr((end - x) / self._widths[j]) for end in (low, high))
            normal = x + self._widths[j] * special.ndtri(bottom + uniform[:, j] * (top - bottom))
            drawn[:, j] = np.where(top - bottom > 1e-9, np.clip(normal, low, high), flat)
        return snapped(self._columns, drawn)
