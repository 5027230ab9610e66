"""The value that the model expects over two parameters of a cell, with the cell's trials."""

from __future__ import annotations

import math
from typing import Any, Final

from orchestrator.model import StudySpec
from orchestrator.report.palette import SCALE
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.marks import (
    axis,
    drawn,
    limits,
    names,
    places,
    selector,
    trials_at,
)
from orchestrator.search import CellSlices, Plane, Slices

_OUTLINE: Final = "#1b1f24"
_LINES: Final = 14
_HEIGHT: Final = 520


def pictures(spec: StudySpec, slices: Slices) -> list[Picture]:
    """One picture with a choice of cells; none where no cell searches two numbers."""
    planes = [(cell, cell.plane) for cell in slices.cells if cell.plane is not None]
    if not planes:
        return []
    first = planes[0][1]
    same = all((p.x_path, p.y_path) == (first.x_path, first.y_path) for _, p in planes)
    over = f"{first.x_path} and {first.y_path}" if same else "two parameters"
    held = "; its other parameters are held" if any(len(c.held) > 2 for c, _ in planes) else ""
    return [
        Picture(
            "contour",
            f"{spec.metrics[0]} over {over}, as the model expects it",
            "Brighter is better, and values far from the best share one colour. The star is the "
            f"trial believed to be the cell's best{held}.",
            _figure(spec, planes),
        )
    ]


def _figure(spec: StudySpec, planes: list[tuple[CellSlices, Plane]]) -> dict[str, Any]:
    traces = [
        trace
        for place, (cell, plane) in enumerate(planes)
        for trace in _traces(spec, cell, plane, visible=place == 0)
    ]
    each = len(traces) // len(planes)
    axes = [_axes(cell, plane) for cell, plane in planes]
    updates = [
        [{"visible": [at // each == place for at in range(len(traces))]}, axes[place]]
        for place in range(len(planes))
    ]
    layout: dict[str, Any] = {
        **axes[0],
        "height": _HEIGHT,
        "margin": {"t": 40, "l": 64, "r": 16},
        "showlegend": False,
        "updatemenus": selector(names(spec, [cell.cell for cell, _ in planes]), updates),
    }
    return {"data": traces, "layout": layout}


def _traces(
    spec: StudySpec, cell: CellSlices, plane: Plane, *, visible: bool
) -> list[dict[str, Any]]:
    maximize = spec.directions[0] == "maximize"
    values = [value for row in plane.mean for value in row]
    observed = [t.value for t in cell.trials if t.value is not None and t.ended != "pruned"]
    low, high = limits(observed, values, maximize=maximize)
    low, high = max(low, min(values)), min(high, max(values))
    span = high - low
    decimals, step = places(span), _step(span)
    here = [t for t in cell.trials if {plane.x_path, plane.y_path} <= t.params.keys()]
    trials = trials_at(
        here,
        [float(f"{t.params[plane.x_path]:.5g}") for t in here],
        [float(f"{t.params[plane.y_path]:.5g}") for t in here],
    )
    trials["marker"] |= {"line": {"width": 1, "color": _OUTLINE}}
    best = next(t for t in cell.trials if t.number == cell.trial)
    contour: dict[str, Any] = {
        "type": "contour",
        "x": [float(f"{x:.5g}") for x in plane.x],
        "y": [float(f"{y:.5g}") for y in plane.y],
        # a little beyond the colours, so that the last lines are smooth
        "z": [
            drawn((min(max(v, low - span), high + span) for v in row), decimals)
            for row in plane.mean
        ],
        "zmin": round(low, decimals),
        "zmax": round(high, decimals),
        "contours": {
            "coloring": "heatmap",
            "start": round(math.ceil(low / step) * step, decimals),
            "end": round(high, decimals),
            "size": step,
        },
        "line": {"width": 0.5},
        "colorscale": SCALE,
        "reversescale": not maximize,
        "colorbar": {
            "orientation": "h",
            "thickness": 12,
            "nticks": 6,
            "y": -0.2,
            "yanchor": "top",
        },
        "hovertemplate": "%{z}<extra></extra>",
    }
    star = trials_at([best], [best.params[plane.x_path]], [best.params[plane.y_path]])
    star["marker"] |= {
        "symbol": "star",
        "size": 15,
        "color": "#ffffff",
        "line": {"width": 1, "color": _OUTLINE},
    }
    return [{**trace, "visible": visible} for trace in (contour, trials, star)]


def _step(span: float) -> float:
    """A round distance of contour lines."""
    least = span / _LINES
    unit = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(float(f"{k * unit:.3g}") for k in (1, 2, 5, 10) if k * unit >= least)


def _axes(cell: CellSlices, plane: Plane) -> dict[str, dict[str, Any]]:
    x, y = (
        [trial.params[path] for trial in cell.trials if path in trial.params]
        for path in (plane.x_path, plane.y_path)
    )
    return {
        "xaxis": axis(plane.x_path, plane.x, x, log=plane.x_log),
        "yaxis": axis(plane.y_path, plane.y, y, log=plane.y_log),
    }
