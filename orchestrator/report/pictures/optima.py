"""What the model believes of the best value that each cell can reach, the best cell first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestrator.model import JSONValue, StudySpec, count_label
from orchestrator.report.palette import BLUE, GREEN, ORANGE, namer, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.marks import drawn, limits, places, short_names
from orchestrator.search import CellEstimate

_MOST: Final = 40
_ROW_PX: Final = 26

Estimated = tuple[Mapping[str, JSONValue], CellEstimate]


def pictures(
    spec: StudySpec,
    cells: Sequence[Mapping[str, JSONValue]],
    estimates: Sequence[CellEstimate | None],
) -> list[Picture]:
    """One picture; none with fewer than two cells that have an estimate.

    Args:
        cells: values of each cell.
        estimates: what is believed of each of them.
    """
    maximize = spec.directions[0] == "maximize"
    sign = -1.0 if maximize else 1.0
    found = [(c, e) for c, e in zip(cells, estimates, strict=True) if e is not None]
    if len(found) < 2:
        return []
    found.sort(key=lambda item: (sign * item[1].estimate, -item[1].probability_best))
    axes = " · ".join(short_names([axis.path for axis in spec.grid]).values())
    left = len(found) - _MOST
    without = len(cells) - len(found)
    more = f" The {_MOST} best cells; {count_label(left, 'other')} left out." if left > 0 else ""
    if any(estimate.value is not None for _, estimate in found):
        more = (
            " A ring is what the trial believed to be the cell's best observed; with noise it may "
            f"lie outside.{more}"
        )
    if without:
        more += f" {count_label(without, 'cell')} without a value left out."
    return [
        Picture(
            "optima",
            f"The best {spec.metrics[0]} that each cell can reach",
            f"Median and 90 % of the belief about each cell's optimum without noise ({axes}), and "
            f"the probability that no other cell reaches a better one.{more}",
            _figure(spec, found[:_MOST], maximize=maximize),
        )
    ]


def _figure(spec: StudySpec, found: Sequence[Estimated], *, maximize: bool) -> dict[str, Any]:
    rows = list(range(len(found)))
    beliefs = [estimate for _, estimate in found]
    worse = [e.low if maximize else e.high for e in beliefs]
    low, high = limits(
        [*worse, *(e.value for e in beliefs if e.value is not None)],
        (),
        maximize=maximize,
        inside=[e.high if maximize else e.low for e in beliefs],
    )
    decimals = places(high - low)
    middle = drawn((e.estimate for e in beliefs), decimals)
    seen = [(row, e.value) for row, e in enumerate(beliefs) if e.value is not None]
    names = {axis.path: namer(axis.all_values, 14) for axis in spec.grid}
    labels = [" · ".join(names[path](value) for path, value in cell.items()) for cell, _ in found]
    interval: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": middle,
        "y": rows,
        "marker": {"color": BLUE, "size": 8},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "color": BLUE,
            "array": drawn((e.high - e.estimate for e in beliefs), decimals),
            "arrayminus": drawn((e.estimate - e.low for e in beliefs), decimals),
        },
        "hovertext": [
            f"{label}<br>{e.estimate:.4g} (90 %: {e.low:.4g} to {e.high:.4g})"
            for label, e in zip(labels, beliefs, strict=True)
        ],
        "hoverinfo": "text",
    }
    observed: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": drawn((value for _, value in seen), decimals),
        "y": [row for row, _ in seen],
        "marker": {"color": ORANGE, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
        "hovertext": [f"trial {beliefs[row].trial}: {value:.4g}" for row, value in seen],
        "hoverinfo": "text",
    }
    shares = [round(e.probability_best, 3) for e in beliefs]
    best: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": rows,
        "xaxis": "x2",
        "width": 0.6,
        "marker": {"color": GREEN},
        "hovertemplate": "P(best) = %{x}<extra></extra>",
    }
    return {
        "data": [interval, observed, best],
        "layout": {
            "height": 110 + _ROW_PX * len(found),
            "showlegend": False,
            "margin": {"t": 10, "r": 16, "l": 20},
            "xaxis": {
                "domain": [0, 0.74],
                "range": [low, high],
                "title": {"text": shown(spec.metrics[0])},
                "nticks": 5,
                "zeroline": False,
            },
            "xaxis2": {
                "domain": [0.78, 1],
                "range": [0, 1],
                "title": {"text": "P(best)"},
                "tickvals": [0, 0.5, 1],
                "zeroline": False,
            },
            "yaxis": {
                "tickvals": rows,
                "ticktext": labels,
                "range": [len(found) - 0.5, -0.5],
                "automargin": True,
                "zeroline": False,
            },
        },
    }
