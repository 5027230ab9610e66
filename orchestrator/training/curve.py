"""What a learning rate range test saw, and what may be concluded from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.training import curve_rules as rules
from orchestrator.training.curve_rules import NoAnswerError

if TYPE_CHECKING:
    import plotly.graph_objects

Growth = Literal["exponential", "linear"]

BELOW_THE_EDGE: Final = 0.8
"""How far the suggestion lies below the edge of the valley, in decades."""
HALF_WIDTH: Final = 0.75
"""Half of the width of the suggested interval, in decades."""
_FORMAT: Final = 1


@dataclass(frozen=True)
class Reading:
    """A learning rate and the interval in which to expect it; a number to `float`.

    Attributes:
        value: the learning rate.
        low: lower end of the interval.
        high: upper end of the interval.
        note: what limits the reading, if anything does.
    """

    value: float
    low: float
    high: float
    note: str | None = None

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Sweep:
    """One pass through the learning rates.

    Attributes:
        lrs: learning rates of the first parameter group, rising.
        losses: ``losses[i]`` was measured when the optimizer had stepped with ``lrs[:i]``; a loss
            on held-out batches, when it had stepped with ``lrs[: i + 1]``. The last may be
            infinite or NaN.
        ended: why it ended before the last learning rate; None if it did not.
        skipped: how many updates a gradient scaler skipped; each was tried again at the same
            learning rate.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    ended: str | None = None
    skipped: int = 0


@dataclass(frozen=True)
class LRCurve:
    """Loss against learning rate, of one or several sweeps from the same state.

    Each reading is the median of the sweeps, on the scale of the logarithm; the sweeps' own
    readings span its interval, except for `suggestion`. Where most sweeps say nothing (flat,
    diverged at once, not finite, too few points), or they contradict one another, it raises
    `NoAnswerError` with the reason: no reading is only a guess.

    Attributes:
        sweeps: at least one.
        growth: how the learning rates grow from step to step.
        smoothing: weight of the past in `smoothed`, in [0, 1).
        maximize: whether ``losses`` hold a metric that is better when it is larger.
        batches_taken: how many batches all sweeps took.
    """

    sweeps: tuple[Sweep, ...]
    growth: Growth = "exponential"
    smoothing: float = 0.9
    maximize: bool = False
    batches_taken: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not self.sweeps:
            raise ValueError("sweeps: there must be at least one")
        for sweep in self.sweeps:
            if len(sweep.lrs) != len(sweep.losses):
                raise ValueError(
                    f"sweeps: {len(sweep.lrs)} learning rates, {len(sweep.losses)} losses"
                )
            if not all(low < high for low, high in pairwise((0.0, *sweep.lrs, math.inf))):
                raise ValueError(f"sweeps: learning rates must rise from above 0, not {sweep.lrs}")

    @property
    def lrs(self) -> tuple[float, ...]:
        """Learning rates of the first sweep."""
        return self.sweeps[0].lrs

    @property
    def losses(self) -> tuple[float, ...]:
        """Losses of the first sweep, as they were measured."""
        return self.sweeps[0].losses

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Losses of the first sweep as an exponential moving average without the bias to its
        start: ``s[i] = sum(w**k · losses[i - k]) / sum(w**k)`` for k = 0 … i and w = `smoothing`.
        """
        return rules.moving_average(self.losses, self.smoothing)

    def edge(self) -> Reading:
        """The end of the valley: where the loss has climbed back a quarter of its fall.

        On the loss smoothed symmetrically (a Gaussian of 0.2 decades), which does not lag behind as
        a moving average does. From here on training is unstable.
        """
        return self._reading(rules.Valley.edge)

    def minimum(self) -> Reading:
        """Where the loss, as in `smoothed`, is lowest."""
        smoothing = self.smoothing
        return self._reading(lambda valley: valley.minimum_of_average(smoothing))

    def steepest(self) -> Reading:
        """Where the loss falls fastest per step, before its minimum.

        Of all rules the one that varies most between seeds: look at its interval.
        """
        return self._reading(rules.Valley.steepest)

    def valley(self) -> Reading:
        """The middle of the fall: between where a tenth of it is done and where all is."""
        return self._reading(rules.Valley.middle)

    def suggestion(self) -> Reading:
        """A learning rate to begin with: a factor of 6.3 below the edge of the valley.

        Its interval is 1.5 decades wide, from 35 below the edge to just below it. That is not the
        spread of the sweeps, which is far smaller, but what the rule is off by between models and
        optimizers. A range test finds the interval in which to search, no learning rate to keep.
        """
        edge = self.edge()
        if math.log10(edge.high / edge.low) > 2 * HALF_WIDTH:
            raise NoAnswerError(
                f"the sweeps contradict one another: valleys end at learning rates from "
                f"{edge.low:.2g} to {edge.high:.2g}"
            )
        value = edge.value / 10**BELOW_THE_EDGE
        return Reading(value, value / 10**HALF_WIDTH, value * 10**HALF_WIDTH, edge.note)

    def bounds(self) -> tuple[float, float]:
        """The interval of `suggestion`, for a search or a cyclic schedule."""
        suggestion = self.suggestion()
        return suggestion.low, suggestion.high

    @property
    def reason(self) -> str | None:
        """Why there is no suggestion; None if there is one."""
        try:
            self.suggestion()
        except NoAnswerError as error:
            return str(error)
        return None

    def plot(self) -> plotly.graph_objects.Figure:
        """A Plotly figure of all sweeps, with the readings marked."""
        from orchestrator.training.curve_plot import figure

        return figure(self)

    def to_dict(self) -> dict[str, Any]:
        """The curve as JSON can hold it; numbers that are not finite become strings."""
        return {
            "format": _FORMAT,
            "growth": self.growth,
            "smoothing": self.smoothing,
            "maximize": self.maximize,
            "batches_taken": self.batches_taken,
            "sweeps": [
                {
                    "lrs": list(sweep.lrs),
                    "losses": [x if math.isfinite(x) else str(x) for x in sweep.losses],
                    "ended": sweep.ended,
                    "skipped": sweep.skipped,
                }
                for sweep in self.sweeps
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LRCurve:
        """The curve that `to_dict` gave.

        Raises:
            ValueError: it is not from `to_dict`, or from that of a newer version.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"data: {type(data).__name__} is not what to_dict() returns")
        if data.get("format") != _FORMAT:
            raise ValueError(f"format={data.get('format')!r}: must be {_FORMAT}, from to_dict()")
        try:
            return cls(
                sweeps=tuple(
                    Sweep(
                        tuple(map(float, sweep["lrs"])),
                        tuple(map(float, sweep["losses"])),
                        sweep["ended"],
                        sweep["skipped"],
                    )
                    for sweep in data["sweeps"]
                ),
                growth=data["growth"],
                smoothing=float(data["smoothing"]),
                maximize=bool(data["maximize"]),
                batches_taken=int(data["batches_taken"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"data: this curve is damaged: {error!r}") from error

    @cached_property
    def _valleys(self) -> list[rules.Valley | NoAnswerError]:
        found: list[rules.Valley | NoAnswerError] = []
        for sweep in self.sweeps:
            losses = [-x for x in sweep.losses] if self.maximize else sweep.losses
            try:
                found.append(rules.Valley.of(sweep.lrs, losses, self.growth, sweep.ended))
            except NoAnswerError as error:
                found.append(error)
        return found

    def _reading(self, rule: Callable[[rules.Valley], float]) -> Reading:
        valleys = [valley for valley in self._valleys if isinstance(valley, rules.Valley)]
        reasons = [str(error) for error in self._valleys if isinstance(error, NoAnswerError)]
        if len(valleys) <= len(reasons):
            several = len(self.sweeps) > 1
            counted = f"{len(reasons)} of {len(self.sweeps)} sweeps: " if several else ""
            raise NoAnswerError(counted + reasons[0])
        lrs = sorted(rule(valley) for valley in valleys)
        value = 10 ** median(map(math.log10, lrs))
        note = (
            f"the loss has hardly risen yet at the last learning rate, {valleys[0].lrs[-1]:.2g}: "
            "the edge may lie above it"
            if 2 * sum(valley.open for valley in valleys) > len(valleys)
            else None
        )
        return Reading(min(max(value, lrs[0]), lrs[-1]), lrs[0], lrs[-1], note)
