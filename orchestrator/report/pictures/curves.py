"""The learning curves of the best trials."""

from __future__ import annotations

import math
from typing import Any, Final

from orchestrator.model import cell_label
from orchestrator.report.palette import BLUE, ORANGE, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import ResultScale, spread
from orchestrator.report.subject import Subject

_MOST: Final = 20
_MOST_STEPS: Final = 200


def pictures(subject: Subject) -> list[Picture]:
    """What the best trials reported, step by step; none if none reported two steps."""
    if len(subject.spec.directions) > 1:
        return []
    curves = []
    for trial in subject.best_first:
        reports = (
            sorted(
                (step, value)
                for step, value in subject.news[trial.number].intermediate.items()
                if math.isfinite(value)
            )
            if trial.number in subject.news
            else []
        )
        if len(reports) > 1:
            curves.append((trial, spread(reports, _MOST_STEPS), len(reports)))
        if len(curves) == _MOST:
            break
    if not curves:
        return []
    axes = {axis.path for axis in subject.spec.grid}
    traces: list[dict[str, Any]] = []
    for rank, (trial, reports, _) in enumerate(curves):
        cell = cell_label({k: v for k, v in trial.params.items() if k in axes})
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [step for step, _ in reports],
                "y": [value for _, value in reports],
                "name": f"trial {trial.number}",
                "text": shown(cell, 60) if axes else "",
                "hovertemplate": f"trial {trial.number}, step %{{x}}: %{{y}}<br>%{{text}}"
                "<extra></extra>",
                "line": {"color": ORANGE if rank == 0 else BLUE, "width": 2.5 if rank == 0 else 1},
                "opacity": 1.0 if rank == 0 else 0.55,
            }
        )
    traces.reverse()  # the best one above the others
    scale = ResultScale.of(
        [value for _, reports, _ in curves for _, value in reports], maximize=subject.maximize
    )
    thinned = any(count > _MOST_STEPS for _, _, count in curves)
    what = f"the {len(curves)} best trials that reported steps" if len(curves) > 1 else "one trial"
    return [
        Picture(
            "learning-curves",
            "Learning curves of the best trials",
            f"What {what} reported; trial {curves[0][0].number}, the best one, in orange."
            + (f" At most {_MOST_STEPS} steps of each are drawn." if thinned else "")
            + scale.words,
            {
                "data": traces,
                "layout": {
                    "xaxis": {"title": {"text": "step"}},
                    "yaxis": {"title": {"text": "reported value"}, **scale.axis},
                    "showlegend": False,
                    "hovermode": "closest",
                },
            },
        )
    ]
