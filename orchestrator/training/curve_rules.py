"""Rules that read a learning rate from one sweep, and tell when it cannot be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

import torch

FIRST: Final = 10
"""So many losses at the beginning, where learning rates are tiny, tell its level and its noise."""
_WIDTH_DECADES: Final = 0.2
_WIDTH_STEPS: Final = 2.5
_CLIMBED: Final = 0.25
_FALLEN: Final = 0.1
_CERTAIN: Final = 3.0
"""A fall counts from so many standard deviations of what it is the difference of."""


class NoAnswerError(ValueError):
    """The curve does not tell; the message is the reason."""


def moving_average(losses: Sequence[float], weight: float) -> tuple[float, ...]:
    """Exponential moving average, divided by the sum of its weights; `weight` is the past's."""
    total, weights = 0.0, 0.0
    averages = []
    for loss in losses:
        total = weight * total + loss
        weights = weight * weights + 1
        averages.append(total / weights)
    return tuple(averages)


class Divergence:
    """Tells a sweep that has diverged, loss by loss.

    It has when a loss is not finite, or when the moving average (0.8) is `factor` times as far
    above its best as the level of the first ten losses is. As that is no ratio of losses, it is
    right for negative ones too. Where the loss has hardly fallen, the distance counts as at least
    a tenth of the level's size and 4 standard deviations of the first losses.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._first: list[float] = []
        self._total = self._weights = 0.0
        self._best = math.inf

    def seen(self, loss: float) -> bool:
        """Whether the sweep has diverged with this loss, the next one."""
        if not math.isfinite(loss):
            return True
        self._total = 0.8 * self._total + loss
        self._weights = 0.8 * self._weights + 1
        average = self._total / self._weights
        self._best = min(self._best, average)
        if len(self._first) < FIRST:
            self._first.append(loss)
            if len(self._first) == FIRST:
                self._level = median(self._first)
                spread = 1.4826 * median(abs(x - self._level) for x in self._first)
                self._least = max(0.1 * abs(self._level), 4 * spread)
            return False
        return average - self._best > self._factor * max(self._level - self._best, self._least)


@dataclass(frozen=True)
class Valley:
    """A sweep in which the loss fell for certain.

    Attributes:
        lrs: of the steps with a finite loss.
        losses: as measured, lower is better.
        smooth: the losses under a Gaussian of 0.2 decades, or 2.5 steps if that is wider.
        level: where the loss began.
        bottom: index of the minimum of `smooth`.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    level: float
    bottom: int

    @classmethod
    def of(
        cls, lrs: Sequence[float], losses: Sequence[float], growth: str, ended: str | None
    ) -> Valley:
        """The valley of a sweep.

        Raises:
            NoAnswerError: the sweep is too short, not finite from the first step, or flat; or the
                loss only rises, or falls to the end.
        """
        finite = next((i for i, x in enumerate(losses) if not math.isfinite(x)), len(losses))
        if losses and finite == 0:
            raise NoAnswerError("the loss is not finite from the first step on")
        if finite < 2 * FIRST:
            why = f" ({ended})" if ended else ""
            raise NoAnswerError(
                f"{finite} points with a finite loss are too few{why}; at least {2 * FIRST} must "
                "come before it diverges: begin at a smaller learning rate, or take more steps"
            )
        lrs, losses = tuple(lrs[:finite]), tuple(losses[:finite])
        width = _WIDTH_STEPS
        if growth == "exponential":
            width = max(width, _WIDTH_DECADES * (finite - 1) / math.log10(lrs[-1] / lrs[0]))
        smooth, deviations = _gaussian(losses, width)
        level = sum(losses[:FIRST]) / FIRST
        bottom = min(range(finite), key=smooth.__getitem__)
        fall = level - smooth[bottom]
        noise = _noise(losses[: max(bottom + 1, FIRST)])
        certain = _CERTAIN * noise * math.sqrt(1 / FIRST + deviations[bottom] ** 2)
        if bottom < FIRST or fall <= max(certain, 1e-6 * abs(level)):
            if ended is not None:
                raise NoAnswerError(f"the loss never falls below its start for certain ({ended})")
            raise NoAnswerError(
                "the curve is flat: the loss never falls further below its start than noise does"
            )
        if bottom >= finite - width:
            raise NoAnswerError(
                f"the loss still falls at the last learning rate, {lrs[-1]:.2g}"
                + (f" ({ended})" if ended else ": take a larger end")
            )
        return cls(lrs, losses, smooth, level, bottom)

    @property
    def open(self) -> bool:
        """Whether the sweep ended between the minimum and where the edge would be."""
        return self._edge_index() is None

    def edge(self) -> float:
        index = self._edge_index()
        return self.lrs[-1 if index is None else index]

    def minimum_of_average(self, weight: float) -> float:
        averages = moving_average(self.losses, weight)
        # Noise among the first few, of which an average is hardly one, is no minimum.
        return self.lrs[min(range(FIRST, len(averages)), key=averages.__getitem__)]

    def steepest(self) -> float:
        slopes = [
            after - before for before, after in zip(self.smooth, self.smooth[2:], strict=False)
        ]
        last = max(1, self.bottom)
        return self.lrs[1 + min(range(min(last, len(slopes))), key=slopes.__getitem__)]

    def middle(self) -> float:
        begun = self.level - _FALLEN * (self.level - self.smooth[self.bottom])
        first = max((i for i in range(self.bottom) if self.smooth[i] > begun), default=0)
        return math.sqrt(self.lrs[first] * self.lrs[self.bottom])

    def _edge_index(self) -> int | None:
        low = self.smooth[self.bottom]
        climbed = low + _CLIMBED * (self.level - low)
        return next(
            (i for i in range(self.bottom, len(self.lrs)) if self.smooth[i] > climbed), None
        )


def _gaussian(losses: Sequence[float], width: float) -> tuple[tuple[float, ...], list[float]]:
    """The smoothed losses, and the standard deviation of each where that of a loss is 1."""
    values = torch.tensor(losses, dtype=torch.float64)
    steps = torch.arange(len(losses), dtype=torch.float64)
    weights = torch.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    weights /= weights.sum(1, keepdim=True)
    return tuple((weights @ values).tolist()), weights.norm(dim=1).tolist()


def _noise(losses: Sequence[float]) -> float:
    """Standard deviation of the losses about their trend, from the differences of neighbours."""
    differences = [abs(after - before) for before, after in pairwise(losses)]
    return 1.4826 * median(differences) / math.sqrt(2)
