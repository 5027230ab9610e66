"""Losses as the Gaussian process sees them: the bad tail pressed together, zero mean, unit
variance; and the way back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.search.trials.history import Array

MAX_PRESSED = 4.0
"""The model sees no loss further beyond the cut than this many widths, which are 54 widths in the
loss's own units.
"""


@dataclass(frozen=True)
class Scale:
    """Presses together, by a logarithm, what lies beyond median + 1.5·(median − best); then shifts
    and divides.

    Diverged trainings would otherwise flatten everything else; how bad a cell is stays visible.
    Failures count as the worst loss, or as one at the cut if that is worse. A pruned trial counts
    by its last report, but never as better than the median: its pruner judged it so.
    """

    median: float
    cut: float
    width: float
    worst: float
    mean: float
    std: float

    @staticmethod
    def of(loss: Array, pruned: npt.NDArray[np.bool_]) -> Scale:
        """The scale of a study's losses; `loss` is inf where a trial failed or was infeasible."""
        finite = np.isfinite(loss)
        if not finite.any():
            return Scale(0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
        complete = finite & ~pruned
        median = float(np.median(loss[complete if complete.any() else finite]))
        worst, best = float(loss[finite].max()), float(loss[finite].min())
        width = 1.5 * (median - best) or worst - median or 1.0
        plain = Scale(median, median + width, width, max(worst, median + width), 0.0, 1.0)
        pressed = plain.standard(loss, pruned)
        std = float(pressed.std())
        return replace(plain, mean=float(pressed.mean()), std=std if std > 1e-12 else 1.0)

    def standard(self, loss: Array, pruned: npt.NDArray[np.bool_]) -> Array:
        """Losses in the model's units."""
        loss = np.minimum(np.where(pruned, np.maximum(loss, self.median), loss), self.worst)
        beyond = np.maximum(loss - self.cut, 0.0) / self.width
        pressed = np.minimum(loss, self.cut) + self.width * np.minimum(
            np.log1p(beyond), MAX_PRESSED
        )
        result: Array = (pressed - self.mean) / self.std
        return result

    def least(self, loss: float) -> float:
        """The lowest loss that there can be, in the model's units; -inf if there is none."""
        if math.isinf(loss):
            return -math.inf
        return float(self.standard(np.array([loss]), np.array([False]))[0])

    def original(self, standard: Array) -> Array:
        """Losses in their own units; no prediction is worse than the worst."""
        result: Array = np.minimum(self.unlimited(standard), self.worst)
        return result

    def unlimited(self, standard: Array) -> Array:
        """The same where what has not been seen may be worse."""
        pressed = standard * self.std + self.mean
        beyond = np.clip((pressed - self.cut) / self.width, 0.0, MAX_PRESSED)
        result: Array = np.minimum(pressed, self.cut) + self.width * np.expm1(beyond)
        return result
