"""Several objectives: the trials and the Pareto front, with their cells."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

from orchestrator.model import cell_label
from orchestrator.report.palette import BLUE, GREY, ORANGE, SERIES, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import spread
from orchestrator.report.subject import Subject
from orchestrator.store import TrialRow

_MOST_OTHERS: Final = 800
_MOST_PAIRS: Final = 3


def pictures(subject: Subject) -> list[Picture]:
    """One picture for each of the first pairs of objectives; none with one objective."""
    spec = subject.spec
    if len(spec.directions) < 2 or not subject.complete:
        return []
    pairs = list(itertools.combinations(range(len(spec.directions)), 2))
    return [
        _picture(subject, k, one, two) for k, (one, two) in enumerate(pairs[:_MOST_PAIRS], start=1)
    ]


def _picture(subject: Subject, k: int, one: int, two: int) -> Picture:
    spec = subject.spec
    leading = set(subject.front)
    finite = [t for t in subject.complete if t.values and all(map(math.isfinite, t.values))]
    front = sorted((t for t in finite if t.number in leading), key=lambda t: t.values or ())
    others = spread([t for t in finite if t.number not in leading], _MOST_OTHERS)
    traces = [_dots(subject, others, "others", GREY, 5, one, two)]
    cells = list(dict.fromkeys(_cell(subject, trial) for trial in front))
    if spec.grid and 1 < len(cells) <= len(SERIES):
        for cell, color in zip(cells, SERIES, strict=False):
            here = [trial for trial in front if _cell(subject, trial) == cell]
            traces.append(_dots(subject, here, shown(cell, 40), color, 10, one, two))
    else:
        traces.append(_dots(subject, front, "Pareto front", ORANGE, 10, one, two))
    if len(spec.directions) == 2 and len(front) > 1:
        line = _dots(subject, front, "", BLUE, 1, one, two)
        line |= {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
        line["line"] = {"width": 1, "color": GREY, "dash": "dot"}
        del line["hovertemplate"]
        traces.insert(1, line)
    better = " and ".join(
        f"{'larger' if spec.directions[i] == 'maximize' else 'smaller'} {spec.metrics[i]}"
        for i in (one, two)
    )
    of_all = "" if len(spec.directions) == 2 else f" of all {len(spec.directions)} objectives"
    return Picture(
        f"pareto-{k}",
        f"{spec.metrics[one]} and {spec.metrics[two]}",
        f"No trial beats one of the {len(front)} on the Pareto front{of_all} in every respect; "
        f"{better} is better.",
        {
            "data": traces,
            "layout": {
                "xaxis": {"title": {"text": shown(spec.metrics[one])}},
                "yaxis": {"title": {"text": shown(spec.metrics[two])}},
                "hovermode": "closest",
                "showlegend": True,
            },
        },
    )


def _cell(subject: Subject, trial: TrialRow) -> str:
    axes = {axis.path for axis in subject.spec.grid}
    return cell_label({name: v for name, v in trial.params.items() if name in axes})


def _dots(
    subject: Subject,
    trials: list[TrialRow],
    name: str,
    color: str,
    size: int,
    one: int,
    two: int,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [(t.values or ())[one] for t in trials],
        "y": [(t.values or ())[two] for t in trials],
        "text": [f"trial {t.number}<br>{shown(_cell(subject, t), 60)}" for t in trials],
        "hovertemplate": "%{text}<br>%{x}, %{y}<extra></extra>",
        "marker": {"color": color, "size": size, "opacity": 0.9 if size > 5 else 0.5},
    }
