"""Scales of parameters and of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.model import JSONValue, Searched, StudySpec, same_value
from orchestrator.report.palette import shown_apart
from orchestrator.store import TrialRow

MOST_CHOICES: Final = 24
"""Of a scale of choices that is drawn."""
_WIDE: Final = 50.0  # a range of positive results that spans so much is drawn by its logarithm
_TAIL: Final = 0.9
_CUT: Final = 3.0  # results are cut off only if that makes room for others
_MARGIN: Final = 0.04


@dataclass(frozen=True)
class Scale:
    """Where the values of one parameter are: numbers from `low` to `high`, or one of `choices`, as
    those of an axis of the grid are.
    """

    path: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[JSONValue, ...] = ()
    whole: bool = False

    def place(self, value: JSONValue) -> float | None:
        """The number, or the index of the choice; None for a value that has no place."""
        if self.choices:
            return next(
                (float(k) for k, one in enumerate(self.choices) if same_value(one, value)), None
            )
        if not _is_number(value) or (self.log and value <= 0):
            return None
        return float(value)

    def share(self, value: JSONValue) -> float | None:
        """The place from 0 to 1."""
        place = self.place(value)
        if place is None:
            return None
        if self.choices:
            return place / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5
        low, high = self.low, self.high
        if self.log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return (place - low) / (high - low) if high > low else 0.5

    @property
    def axis(self) -> dict[str, Any]:
        """A plotly axis."""
        if self.choices:
            return {
                "tickvals": list(range(len(self.choices))),
                "ticktext": shown_apart(self.choices, 16),
                "range": [-0.5, len(self.choices) - 0.5],
                "zeroline": False,
            }
        low, high = (math.log10(x) if self.log else x for x in (self.low, self.high))
        room = _MARGIN * (high - low) or 0.5
        axis: dict[str, Any] = {
            "type": "log" if self.log else "linear",
            "range": [low - room, high + room],
        }
        if self.log:
            axis |= {"dtick": 1, "exponentformat": "power"} if high - low > 1.5 else {"nticks": 6}
        elif self.whole and high - low <= 10:
            axis["dtick"] = 1
        return axis


def scales(spec: StudySpec, trials: Sequence[TrialRow]) -> list[Scale]:
    """Of every parameter that took more than one value or may take more: the axes of the grid, what
    is searched, then what the trials asked for. Parameters with too many choices have none.
    """
    found = [
        _of_values(axis.path, axis.all_values, ordered=len(axis.all_values) > MOST_CHOICES)
        for axis in spec.grid
    ]
    found += [_of_searched(one.whole) for one in spec.search]  # trials may lie outside it now
    declared = {scale.path for scale in found if scale is not None}
    declared |= {axis.path for axis in spec.grid} | {one.path for one in spec.search}
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    for name in names:
        if name not in declared:
            values = [trial.params[name] for trial in trials if name in trial.params]
            found.append(_of_values(name, values))
    return [scale for scale in found if scale is not None]


def _of_searched(one: Searched) -> Scale | None:
    if one.kind == "categorical":
        return _of_values(one.path, one.choices, ordered=False)
    if one.low is None or one.high is None or one.low == one.high:
        return None
    return Scale(
        one.path, float(one.low), float(one.high), one.log, whole=one.kind == "int" and not one.log
    )


def _of_values(path: str, values: Iterable[JSONValue], *, ordered: bool = True) -> Scale | None:
    different: list[JSONValue] = []
    numbers = [value for value in values if _is_number(value)]
    every = list(values)
    if ordered and len(numbers) == len(every) and len(set(numbers)) > 1:
        low, high = float(min(numbers)), float(max(numbers))
        log = low > 0 and high / low >= _WIDE / 10
        whole = all(isinstance(value, int) for value in numbers) and not log
        return Scale(path, low, high, log, whole=whole)
    for value in every:
        if not any(same_value(value, other) for other in different):
            different.append(value)
            if len(different) > MOST_CHOICES:
                return None
    return Scale(path, choices=tuple(different)) if len(different) > 1 else None


@dataclass(frozen=True)
class ResultScale:
    """The scale of results: what of them is seen, and how many lie beyond."""

    log: bool
    low: float
    high: float
    beyond: int

    @staticmethod
    def of(values: Iterable[float], *, maximize: bool) -> ResultScale:
        """The scale on which the good ones are seen, however bad the worst are."""
        known = sorted(value for value in values if math.isfinite(value))
        if not known:
            return ResultScale(False, 0.0, 1.0, 0)
        sign = 1.0 if maximize else -1.0
        from_best = known[::-1] if maximize else known
        best, tail = from_best[0], from_best[int(_TAIL * (len(known) - 1))]
        log = known[0] > 0 and known[-1] / known[0] > _WIDE
        if log:
            return _roomy(True, math.log10(known[0]), math.log10(known[-1]), 0)
        worst, edge = from_best[-1], tail - sign * 0.25 * abs(best - tail)
        if tail != best and abs(best - worst) > _CUT * abs(best - edge):
            beyond = sum((value - edge) * sign < 0 for value in known)
            return _roomy(False, min(best, edge), max(best, edge), beyond)
        return _roomy(False, known[0], known[-1], 0)

    @property
    def axis(self) -> dict[str, Any]:
        """A plotly axis."""
        kind: dict[str, Any] = {"type": "log", "exponentformat": "power"} if self.log else {}
        return {**kind, "range": [self.low, self.high]}

    def floor(self) -> float:
        """A value that is drawn right above the lower edge."""
        place = self.low + 0.03 * (self.high - self.low)
        return 10**place if self.log else place

    @property
    def words(self) -> str:
        """For a caption: what is not seen."""
        if not self.beyond:
            return ""
        return f" {self.beyond} far worse {'is' if self.beyond == 1 else 'are'} out of sight."


def _roomy(log: bool, low: float, high: float, beyond: int) -> ResultScale:
    room = 0.06 * (high - low) or abs(high) * 0.05 or 0.5
    return ResultScale(log, low - room, high + room, beyond)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def of_time(seconds: float) -> tuple[str, float]:
    """The unit in which to show spans up to that long, and its seconds."""
    units: Mapping[str, float] = {"days": 86_400, "hours": 3_600, "minutes": 60}
    return next(
        ((name, size) for name, size in units.items() if seconds >= 2 * size), ("seconds", 1.0)
    )


def _is_number(value: JSONValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
