"""The improvement that the Gaussian process expects of a trial at a point of a cell."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.threads import Library

special = Library("scipy.special")

N_FANTASIES = 8
NOISY = 0.05
"""A repetition can be worth something where the noise is believed, with a probability of 0.95, to
have at least this standard deviation; that of all losses is 1.
"""


class Improvement:
    """The logarithm of the expected improvement of points in one cell over the best that is
    predicted there.

    Running trials are imagined to end in all likely ways, jointly; the improvement is the mean over
    them.

    Attributes:
        x: finished and imagined trials, all columns.
        losses: their losses, one column per imagined outcome.
        here: which of them are of the cell.
        trend: what other studies expect, where it counts.
    """

    def __init__(self, surrogate: Surrogate, cell: Array, rng: np.random.Generator) -> None:
        posterior, self.x, self.losses = surrogate.imagined(
            rng.standard_normal((len(surrogate.pending), N_FANTASIES))
        )
        self._surrogate, self._posterior, self._cell = surrogate, posterior, cell[None, :]
        self.trend = surrogate.trend
        n = surrogate.layout.n_searched
        self.here: npt.NDArray[np.bool_] = (self.x[:, n:] == cell).all(axis=1)
        among = self.x[self.here] if self.here.any() else self.x
        self._incumbent = posterior.mean(among[:, :n], among[:, n:]).min(axis=0)

    def __call__(self, points: Array) -> Array:
        """Of points, searched columns only; comparable among themselves."""
        marginal = self._posterior.at(points, self._cell)
        mean, std = marginal.mean, marginal.std
        value = log_improvement((self._incumbent - mean) / std) + np.log(std)
        result: Array = special.logsumexp(value, axis=1)
        return result

    def of_repeating(self, points: Array) -> Array:
        """Of points that were tried, comparable with those of points that were not: only so much as
        another noisy value is expected to move the mean there (Scott et al., 2011).

        Minus infinity where there is no noise: the same value again teaches nothing.
        """
        if not len(points) or not self._noisy:
            return np.full(len(points), -math.inf)
        marginal = self._posterior.at(points, self._cell)
        mean, variance = marginal.mean, marginal.std**2
        moved = variance / np.sqrt(variance + self._posterior.noise)
        value = log_improvement((self._incumbent - mean) / moved) + np.log(moved)
        result: Array = special.logsumexp(value, axis=1)
        return result

    @cached_property
    def _noisy(self) -> bool:
        least = self._surrogate.posterior().noise_quantiles(self._surrogate.y, [0.05])[0]
        return bool(least > NOISY**2)


def log_improvement(z: Array) -> Array:
    """Logarithm of ``φ(z) + z·Φ(z)``, the expected improvement in units of the standard deviation,
    exact far into the tail.

    Source: Ament et al., "Unexpected improvements to expected improvement for Bayesian
    optimization", 2023.
    """
    density = -0.5 * z**2 - 0.5 * math.log(2.0 * math.pi)
    near = np.log(np.maximum(np.exp(density) + z * special.ndtr(z), 1e-300))
    ratio = np.maximum(
        1.0 + z * math.sqrt(math.pi / 2.0) * special.erfcx(-np.minimum(z, 0.0) / math.sqrt(2.0)),
        1e-300,
    )
    far = np.where(z > -1e3, np.log(ratio), -2.0 * np.log(np.maximum(-z, 1.0)))
    result: Array = np.where(z > -1.0, near, density + far)
    return result
