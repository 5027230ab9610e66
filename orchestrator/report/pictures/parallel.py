"""Parallel coordinates: each trial is one line through all parameters to its result.

Plotly's own trace of this name draws with WebGL, which browsers neither print well nor have many
of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.report.palette import number, shown, shown_apart
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import ResultScale, Scale, scales, spread
from orchestrator.report.subject import Subject
from orchestrator.store import TrialRow

_MOST_LINES: Final = 200
_MOST_AXES: Final = 10
_MOST_LABELS: Final = 16
# Of Viridis, from the worst to the best.
_SHADES: Final = (
    "#5a4f8f",
    "#3f6390",
    "#2f7a8e",
    "#26918c",
    "#2da882",
    "#5cbf66",
    "#9fce3b",
    "#f0b51c",
)
_ABSENT: Final = -0.09


def pictures(subject: Subject) -> list[Picture]:
    """One picture; none with fewer than two complete trials, with several objectives, or with
    fewer than two parameters.
    """
    trials = subject.best_first
    every = scales(subject.spec, trials)
    if len(subject.spec.directions) > 1 or len(trials) < 2 or len(every) < 2:
        return []
    axes = every[:_MOST_AXES]
    sign = -1.0 if subject.maximize else 1.0
    ordered = sorted(trials, key=lambda t: (sign * (t.values or (0.0,))[0], t.number))
    half = _MOST_LINES // 2
    drawn = (
        ordered if len(ordered) <= _MOST_LINES else [*ordered[:half], *spread(ordered[half:], half)]
    )
    result = ResultScale.of([t.values[0] for t in ordered if t.values], maximize=subject.maximize)
    words = "A line is a complete trial; the brighter, the better its result."
    if len(drawn) < len(ordered):
        words += f" The {half} best and {half} of the other {len(ordered) - half:,} are drawn."
    if len(axes) < len(every):
        words += f" The first {len(axes)} of {len(every)} parameters are drawn."
    return [
        Picture(
            "parallel",
            "All parameters together",
            words,
            _figure(subject, axes, drawn, result),
            wide=True,
        )
    ]


def _figure(
    subject: Subject, axes: Sequence[Scale], drawn: Sequence[TrialRow], result: ResultScale
) -> dict[str, Any]:
    groups: list[list[TrialRow]] = [[] for _ in _SHADES]
    for rank, trial in enumerate(reversed(drawn)):  # the worst first, so that the best are above
        groups[rank * len(groups) // len(drawn)].append(trial)
    traces = []
    for color, group in zip(_SHADES, groups, strict=True):
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str | None] = []
        for trial in group:
            assert trial.values
            label = f"trial {trial.number}: {number(trial.values[0])}"
            for k, scale in enumerate(axes):
                share = (
                    scale.share(trial.params[scale.path]) if scale.path in trial.params else None
                )
                x.append(k)
                y.append(_ABSENT if share is None else share)
                value = trial.params.get(scale.path)
                text.append(f"{label}<br>{shown(scale.path)} = {shown(value)}")
            x += [len(axes), None]
            y += [_height(trial.values[0], result), None]
            text += [label, None]
        if group:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": x,
                    "y": y,
                    "text": text,
                    "hovertemplate": "%{text}<extra></extra>",
                    "line": {"color": color, "width": 1.2},
                    "opacity": 0.75,
                    "connectgaps": False,
                }
            )
    places = range(len(axes) + 1)
    names = [*(shown(scale.path, 22) for scale in axes), shown(subject.spec.metrics[0], 22)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "tickvals": list(places),
                "ticktext": names,
                "side": "top",
                "range": [-0.4, len(axes) + 0.4],
                "tickangle": -25,
                "showgrid": False,
                "zeroline": False,
            },
            "yaxis": {"visible": False, "range": [-0.16, 1.08]},
            "shapes": [
                {
                    "type": "line",
                    "x0": k,
                    "x1": k,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": "rgba(128,128,128,0.6)", "width": 1},
                }
                for k in places
            ],
            "annotations": [
                *(note for k, scale in enumerate(axes) for note in _ticks(k, scale)),
                *_ends(len(axes), *_unlogged(result)),
            ],
            "showlegend": False,
            "hovermode": "closest",
            "height": 420,
            "margin": {"l": 30, "r": 40, "t": 90, "b": 20},
        },
    }


def _height(value: float, result: ResultScale) -> float:
    low, high = _unlogged(result)
    if result.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _unlogged(result: ResultScale) -> tuple[float, float]:
    return (10**result.low, 10**result.high) if result.log else (result.low, result.high)


def _ticks(k: int, scale: Scale) -> list[dict[str, Any]]:
    if not scale.choices:
        return _ends(k, scale.low, scale.high)
    last = max(1, len(scale.choices) - 1)
    few = scale.choices if len(scale.choices) <= _MOST_LABELS else ()
    return [
        _note(k, i / last, label, "middle", "left", 4)
        for i, label in enumerate(shown_apart(few, 12))
    ]


def _ends(k: int, low: float, high: float) -> list[dict[str, Any]]:
    return [
        _note(k, 0, number(low), "top", "center", 0),
        _note(k, 1, number(high), "bottom", "center", 0),
    ]


def _note(x: float, y: float, text: str, yanchor: str, xanchor: str, shift: int) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "text": text,
        "showarrow": False,
        "xanchor": xanchor,
        "yanchor": yanchor,
        "xshift": shift,
        "font": {"size": 10},
    }
