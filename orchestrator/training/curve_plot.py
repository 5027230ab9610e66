"""The picture of a learning rate range test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.training.curve_rules import FIRST, NoAnswerError, moving_average

if TYPE_CHECKING:
    import plotly.graph_objects

    from orchestrator.training.curve import LRCurve

_BLUE, _ORANGE, _GREY = "#2563a8", "#c2571a", "#8a8f98"


def figure(curve: LRCurve) -> plotly.graph_objects.Figure:
    """A figure of all sweeps: measured losses faint, moving averages bold, readings marked."""
    import plotly.graph_objects as go  # slow to import

    picture = go.Figure()
    for number, sweep in enumerate(curve.sweeps, start=1):
        points = {"x": sweep.lrs, "mode": "lines", "legendgroup": f"sweep {number}"}
        picture.add_scatter(
            **points,
            y=sweep.losses,
            showlegend=False,
            opacity=0.3,
            line={"color": _BLUE, "width": 1},
        )
        picture.add_scatter(
            **points,
            y=moving_average(sweep.losses, curve.smoothing),
            name=f"sweep {number}" + (f": {sweep.ended}" if sweep.ended else ""),
            line={"color": _BLUE, "width": 2, "dash": ("solid", "dash", "dot")[(number - 1) % 3]},
        )
    title = curve.reason
    if title is None:
        suggestion = curve.suggestion()
        low, high = suggestion.low, suggestion.high
        picture.add_vrect(x0=low, x1=high, fillcolor=_ORANGE, opacity=0.12, line_width=0)
        title = f"begin at {suggestion.value:.2g}; search from {low:.2g} to {high:.2g}"
        if suggestion.note:
            title += f"<br><sup>{suggestion.note}</sup>"
        picture.add_vline(x=suggestion.value, line={"color": _ORANGE, "width": 2})
        for row, name in enumerate(("steepest", "minimum", "edge")):
            try:
                lr = getattr(curve, name)().value
            except NoAnswerError:
                continue
            picture.add_vline(x=lr, line={"color": _GREY, "width": 1, "dash": "dash"})
            picture.add_annotation(
                x=_shown(curve, lr),
                y=1 - row / 6,
                yref="paper",
                text=name,
                textangle=-90,
                showarrow=False,
                xanchor="right",
                yanchor="top",
                font={"color": _GREY},
            )
    else:
        title = f"no suggestion: {title}"
    picture.update_xaxes(
        title="learning rate",
        type="log" if curve.growth == "exponential" else "linear",
        exponentformat="power",
    )
    picture.update_yaxes(
        title="measure on held-out batches" if curve.maximize else "loss",
        range=seen(curve),
    )
    picture.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )
    return picture


def seen(curve: LRCurve) -> list[float]:
    """The range in which the fall can be seen, however far up or down a sweep diverged."""
    losses = [x for sweep in curve.sweeps for x in sweep.losses if math.isfinite(x)] or [0.0]
    first = [x for sweep in curve.sweeps for x in sweep.losses[:FIRST] if math.isfinite(x)] or [0.0]
    if curve.maximize:
        best, worst = max(losses), min(first)
    else:
        best, worst = min(losses), max(first)
    fall = worst - best
    return sorted([best - 0.1 * fall, worst + 0.6 * fall]) if fall else [best - 1, best + 1]


def _shown(curve: LRCurve, lr: float) -> float:
    """The place of an annotation, which on a logarithmic axis is given by its logarithm."""
    return math.log10(lr) if curve.growth == "exponential" else lr
