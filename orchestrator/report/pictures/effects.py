"""What the axes of the grid do, and which searched parameters matter."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.model import JSONValue
from orchestrator.report.palette import BLUE, GREEN, GREY, number, shown, shown_apart
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.marks import short_names
from orchestrator.report.subject import Subject
from orchestrator.search import AxisEffect, Importance

_MOST_ROWS: Final = 40
_MOST_VALUES: Final = 12


def pictures(subject: Subject) -> list[Picture]:
    """Effects of the axes and importances of the parameters, as far as there are any."""
    science = subject.science
    if science is None:
        return []
    found = []
    axes = [axis for axis in science.axes if len(axis.values) > 1]
    if axes:
        found.append(_axes(subject, axes))
    if science.importances:
        found.append(_importances(science.importances))
    return found


def _axes(subject: Subject, axes: list[AxisEffect]) -> Picture:
    rows: list[tuple[str, float, float, float, float] | None] = []
    short, cut = short_names([axis.path for axis in subject.spec.grid]), False
    for axis in axes:
        values = axis.values
        if len(values) > _MOST_VALUES:
            sign = -1.0 if subject.maximize else 1.0
            best = sorted(values, key=lambda v: sign * v.estimate)[:_MOST_VALUES]
            values, cut = tuple(v for v in values if v in best), True
        if rows and len(rows) + len(values) > _MOST_ROWS:
            cut = True
            break
        rows += [None] if rows else []
        labels = shown_apart([v.value for v in values], 16)
        rows += [
            (
                f"{shown(short[axis.path])} = {label}",
                v.estimate,
                v.low,
                v.high,
                v.probability_best,
            )
            for v, label in zip(values, labels, strict=True)
        ]
    known = [(place, row) for place, row in enumerate(rows) if row is not None]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [row[1] for _, row in known],
        "y": [place for place, _ in known],
        "error_x": _error(
            [row[3] - row[1] for _, row in known], [row[1] - row[2] for _, row in known]
        ),
        "text": [
            f"{row[0]}: {number(row[1])} (90 %: {number(row[2])} to {number(row[3])})<br>"
            f"P(the best value) = {row[4]:.2f}"
            for _, row in known
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": BLUE, "size": 8},
    }
    return Picture(
        "axis-effects",
        "What each axis does",
        f"The mean of the best `{subject.spec.metrics[0]}` that the cells with a value can reach, "
        "as the model believes, with 90 % of the belief. Intervals that overlap may still differ: "
        "the cells share what the model does not know."
        + (" Of many values the best are shown." if cut else ""),
        _figure(trace, [None if row is None else row[0] for row in rows], subject.spec.metrics[0]),
    )


def _importances(importances: tuple[Importance, ...]) -> Picture:
    first = importances[:_MOST_ROWS]
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": [one.overall.share for one in first],
        "y": list(range(len(first))),
        "error_x": _error(
            [one.overall.high - one.overall.share for one in first],
            [one.overall.share - one.overall.low for one in first],
        ),
        "text": [
            f"{shown(one.path, 40)}: {one.overall.share:.2f} (90 %: {one.overall.low:.2f} to "
            f"{one.overall.high:.2f})"
            for one in first
        ],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": GREEN},
        "width": 0.6,
    }
    figure = _figure(trace, [shown(one.path) for one in first], "share of the variance")
    figure["layout"]["xaxis"]["range"] = [0, max(1.0, *(one.overall.high for one in first))]
    more = len(importances) - len(first)
    return Picture(
        "importances",
        "Which searched parameters matter",
        "How much of what varies over the declared ranges involves a parameter, by the model and "
        "not by where the sampler happened to look, with 90 % of the belief; shares may add up to "
        "more than 1." + (f" {more} more are not shown." if more else ""),
        figure,
    )


def _error(more: list[float], less: list[float]) -> dict[str, JSONValue]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, value) for value in more],
        "arrayminus": [max(0.0, value) for value in less],
        "color": GREY,
        "thickness": 1.5,
        "width": 4,
    }


def _figure(trace: dict[str, Any], names: list[str | None], across: str) -> dict[str, Any]:
    places = [place for place, name in enumerate(names) if name is not None]
    return {
        "data": [trace],
        "layout": {
            "xaxis": {"title": {"text": shown(across)}},
            "yaxis": {
                "tickvals": places,
                "ticktext": [names[place] for place in places],
                "range": [len(names) - 0.4, -0.6],
                "zeroline": False,
            },
            "showlegend": False,
            "height": max(180, 80 + 26 * len(names)),
        },
    }
