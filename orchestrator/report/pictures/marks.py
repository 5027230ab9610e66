"""How pictures of the model mark trials, name cells and limit an axis to what matters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from orchestrator.model import JSONValue, StudySpec
from orchestrator.report.palette import GREY, ORANGE, RED, namer, number, shown
from orchestrator.search import Seen

SYMBOLS: Final = {
    "complete": "circle",
    "pruned": "square-open",
    "infeasible": "diamond-open",
    "failed": "x-thin-open",
}
COLORS: Final = {"complete": ORANGE, "pruned": GREY, "infeasible": RED, "failed": RED}
_WORDS: Final = {
    "complete": "discs: complete",
    "pruned": "squares: pruned, by their last report, and unknown to the model",
    "infeasible": "diamonds: infeasible",
    "failed": "crosses: failed",
}
_WORSE: Final = 3.0
_BETTER: Final = 1.5
"""How far an axis reaches beyond the median trial and beyond the best one, in distances between
these two.
"""

_LONGEST_NAME: Final = 46  # of a cell above a picture on a phone
_FEW_VALUES: Final = 10
"""Up to so many values, each is on the axis."""


def explained(trials: Iterable[Seen]) -> str:
    """A sentence on the symbols of these trials; empty if all are complete."""
    there = {trial.ended for trial in trials}
    if there <= {"complete"}:
        return ""
    return f"Marks: {'; '.join(words for ended, words in _WORDS.items() if ended in there)}."


def told(trial: Seen) -> str:
    """A trial in a few words, for the pointer."""
    value = "" if trial.value is None else f": {number(trial.value)}"
    ended = "" if trial.ended == "complete" else f" ({trial.ended})"
    return f"trial {trial.number}{value}{ended}"


def names(spec: StudySpec, cells: Sequence[Mapping[str, JSONValue]]) -> list[str]:
    """Cells by the last parts of their axes' paths, if these differ: ``batch_size=32 · net=a``;
    where that is long, by their values alone.
    """
    short = short_names([axis.path for axis in spec.grid])
    of_axis = {axis.path: namer(axis.all_values, 20) for axis in spec.grid}
    whole = [
        " · ".join(f"{shown(short[path])}={of_axis[path](value)}" for path, value in cell.items())
        for cell in cells
    ]
    if max(map(len, whole), default=0) > _LONGEST_NAME:
        whole = [" · ".join(of_axis[path](value) for path, value in cell.items()) for cell in cells]
    return [name or "(no grid)" for name in whole]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last parts of paths, where these differ."""
    last = {path: path.rpartition(".")[2] for path in paths}
    counts = [*last.values()]
    return {path: name if counts.count(name) == 1 else path for path, name in last.items()}


def limits(
    values: Iterable[float],
    others: Iterable[float],
    *,
    maximize: bool,
    inside: Sequence[float] = (),
) -> list[float]:
    """The range of an axis that shows what is near the best, although some values are far from it.

    Args:
        values: of trials.
        others: predictions.
        inside: what has to be seen, however far it is.
    """
    sign = -1.0 if maximize else 1.0
    losses = sorted(sign * value for value in values)
    rest = [sign * value for value in others]
    best, worst = min(losses + rest), max(losses + rest)
    for middle in _middles(losses):
        apart = middle - losses[0]
        if apart > 0:
            best = max(best, losses[0] - _BETTER * apart)
            worst = min(worst, middle + _WORSE * apart)
            break
    best = min([best, *(sign * value for value in inside)])
    worst = max([worst, *(sign * value for value in inside)])
    if not worst > best:
        around = 0.05 * abs(best) or 0.5
        best, worst = best - around, worst + around
    room = 0.06 * (worst - best)
    return sorted([sign * (best - room), sign * (worst + room)])


def _middles(ascending: Sequence[float]) -> list[float]:
    """The median, and the upper quartile in its place where half of the values are equal."""
    if not ascending:
        return []
    return [statistics.median(ascending), ascending[3 * len(ascending) // 4]]


def places(span: float) -> int:
    """Decimals with which a number is drawn on an axis of that span: a thousandth of it is seen."""
    return 3 - math.floor(math.log10(span)) if span > 0 and math.isfinite(span) else 6


def drawn(values: Iterable[float], decimals: int) -> list[float]:
    """Numbers as they are written: more digits would only make the page larger."""
    return [round(value, decimals) + 0.0 for value in values]


def trials_at(
    trials: Sequence[Seen],
    x: Sequence[Any],
    y: Sequence[float | None],
    opacity: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Trials as one trace."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "trials",
        "x": list(x),
        "y": list(y),
        "hovertext": [told(trial) for trial in trials],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {
            "symbol": [SYMBOLS[trial.ended] for trial in trials],
            "color": [COLORS[trial.ended] for trial in trials],
            "size": 8,
            "line": {"width": [0.0 if t.ended == "complete" else 1.5 for t in trials]},
            **({} if opacity is None else {"opacity": list(opacity)}),
        },
    }


def axis(path: str, at: Sequence[float], tried: Iterable[float], *, log: bool) -> dict[str, Any]:
    """The axis of a searched number, a little wider than its range `at`, and than where values were
    tried that are now outside of that.
    """
    ends = min(at[0], *tried), max(at[-1], *tried)
    low, high = (math.log10(end) if log else end for end in ends)
    room = 0.02 * (high - low) or 0.5
    result: dict[str, Any] = {
        "title": {"text": shown(path)},
        "type": "log" if log else "linear",
        "range": drawn([low - room, high + room], places(high - low) + 1),
        "zeroline": False,
    }
    if log:
        result["exponentformat"] = "power"
        if high - low > 2:
            result["dtick"] = 1
    elif len(at) <= _FEW_VALUES:
        result["tickvals"] = list(at)
    return result


def selector(labels: Sequence[str], updates: Sequence[list[Any]]) -> list[dict[str, Any]]:
    """A list above a picture in which one of several is chosen; none where there is one only."""
    if len(labels) < 2:
        return []
    return [
        {
            "type": "dropdown",
            "x": 0.0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "bottom",
            "pad": {"b": 26, "l": -56},  # from the picture's edge, for a phone is narrow
            "showactive": True,
            "buttons": [
                {"label": label, "method": "update", "args": args}
                for label, args in zip(labels, updates, strict=True)
            ],
        }
    ]
