"""Functions drawn from a posterior: each is known everywhere at once, so that it can be integrated.

Source: Wilson et al., "Efficiently sampling functions from Gaussian process posteriors", 2020: a
draw from the prior in random Fourier features (Rahimi and Recht, 2007), corrected exactly for what
the trials say.
"""

from __future__ import annotations

import numpy as np

from orchestrator.search.gp.process import Posterior, _matern, _similar_cells, _squared_distances
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.threads import Library

linalg = Library("scipy.linalg")

N_FEATURES = 256
_DEGREES = 5.0
"""The spectrum of a Matérn-5/2 is Student's t with so many degrees of freedom."""


class Paths:
    """The posterior's mean, and functions drawn from it, without noise.

    Args:
        posterior: given one column of losses.
        losses: these.
        rng: draws the functions.
        n: how many.
    """

    def __init__(
        self, posterior: Posterior, losses: Array, rng: np.random.Generator, n: int
    ) -> None:
        self.posterior = posterior
        h = posterior._h
        searched, context = posterior._searched, posterior._context
        self._shared = _Features(rng, searched.shape[1], 0, n, h.shared)
        self._offset = _Features(rng, 0, context.shape[1], n, h.offset)
        self._particular = _Features(rng, searched.shape[1], context.shape[1], n, h.particular)
        self._has_cells = posterior._layout.n_context > 0
        seen = self._shared(searched, context)
        if self._has_cells:
            seen += self._offset(searched, context) + self._particular(searched, context)
        seen += np.sqrt(h.noise) * rng.standard_normal(seen.shape)
        correction = linalg.cho_solve((posterior._factor, True), losses[:, None] - seen)
        self._weights: Array = np.hstack([posterior._alpha[:, :1], correction])

    def by_cell(self, points: Array, cells: Array) -> Array:
        """The mean and the functions at the same points in every cell, shape (cells, points, 1 +
        n): the mean first.

        Args:
            points: searched coordinates, one row per point.
            cells: the cells' coordinates, one row per cell.
        """
        posterior, h = self.posterior, self.posterior._h
        searched, context = posterior._scaled(points, cells)
        near = _matern(_squared_distances(searched, posterior._searched))
        found = np.empty((len(cells), len(points), self._weights.shape[1]))
        found[:] = h.shared * (near @ self._weights)
        found[:, :, 1:] += self._shared(searched, context[:1])
        if not self._has_cells:
            return found
        similar = _similar_cells(context, posterior._context)
        for i, row in enumerate(similar):
            mine = context[i : i + 1]
            found[i] += h.particular * (near @ (row[:, None] * self._weights))
            found[i] += h.offset * (row @ self._weights)
            found[i, :, 1:] += self._offset(searched[:1], mine) + self._particular(searched, mine)
        return found


class _Features:
    """Draws from a process of that variance: a Matérn-5/2 over each of two groups of coordinates,
    multiplied; a group of none is left out.
    """

    def __init__(
        self, rng: np.random.Generator, n_searched: int, n_context: int, n: int, variance: float
    ) -> None:
        self._searched, self._context = (
            rng.standard_normal((width, N_FEATURES))
            * np.sqrt(_DEGREES / rng.chisquare(_DEGREES, N_FEATURES))
            for width in (n_searched, n_context)
        )
        self._phase = rng.uniform(0.0, 2.0 * np.pi, N_FEATURES)
        self._weights = np.sqrt(2.0 * variance / N_FEATURES) * rng.standard_normal((N_FEATURES, n))

    def __call__(self, searched: Array, context: Array) -> Array:
        """Shape (points, n); a single row of `context` stands for all."""
        angle = self._phase + np.zeros((len(searched), 1))
        if len(self._searched):
            angle = angle + searched @ self._searched
        if len(self._context):
            angle = angle + context @ self._context
        result: Array = np.cos(angle) @ self._weights
        return result
