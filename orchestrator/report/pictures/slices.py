"""The results over each parameter, with the trials that failed, were pruned or broke a
constraint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.report.palette import BLUE, GREY, ORANGE, PURPLE, RED, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import ResultScale, Scale, scales, spread
from orchestrator.report.subject import Subject
from orchestrator.store import TrialRow

_MOST_PICTURES: Final = 12
_MOST_DOTS: Final = 1_000
_BAND: Final = 0.6
_GOLDEN: Final = 0.6180339887
_KEPT: Final = 300  # of the best, which are all drawn


def pictures(subject: Subject) -> list[Picture]:
    """One for each parameter that varies, at most a dozen; those that are searched first."""
    if len(subject.spec.directions) > 1:
        return []
    groups = _Groups.of(subject)
    if not groups.complete:
        return []
    every = scales(subject.spec, subject.trials)
    axes = {axis.path for axis in subject.spec.grid}
    ordered = sorted(every, key=lambda scale: scale.path in axes)
    scale = ResultScale.of([value for _, value in groups.complete], maximize=subject.maximize)
    left_out = len(ordered) - _MOST_PICTURES
    found = []
    for k, parameter in enumerate(ordered[:_MOST_PICTURES]):
        anywhere = ", in any cell" if subject.spec.grid else ""
        words = groups.words(anywhere) + scale.words if k == 0 else ""
        if left_out > 0 and k == 0:
            words += f" {left_out} more parameters have no picture."
        found.append(
            Picture(
                f"slice-{k + 1}",
                f"{subject.spec.metrics[0]} over {parameter.path}",
                words,
                _figure(subject, groups, parameter, scale, legend=k == 0),
            )
        )
    return found


class _Groups:
    """The trials by how they ended, each with the value at which it is drawn."""

    def __init__(self) -> None:
        self.complete: list[tuple[TrialRow, float]] = []
        self.infeasible: list[tuple[TrialRow, float]] = []
        self.pruned: list[tuple[TrialRow, float]] = []
        self.failed: list[TrialRow] = []
        self.thinned = False

    @staticmethod
    def of(subject: Subject) -> _Groups:
        groups = _Groups()
        for trial in subject.trials:
            value = trial.values[0] if trial.values else math.nan
            if trial.state == "COMPLETE" and math.isfinite(value):
                (groups.complete if trial.feasible else groups.infeasible).append((trial, value))
            elif trial.state == "PRUNED":
                if (last := _last(subject, trial)) is not None:
                    groups.pruned.append((trial, last))
            elif trial.state in ("FAIL", "COMPLETE"):
                groups.failed.append(trial)
        sign = -1.0 if subject.maximize else 1.0
        groups.complete.sort(key=lambda pair: (sign * pair[1], pair[0].number))
        before = groups.count
        groups.complete = [
            *groups.complete[:_KEPT],
            *spread(groups.complete[_KEPT:], _MOST_DOTS - _KEPT),
        ]
        for name in ("infeasible", "pruned", "failed"):
            setattr(groups, name, spread(getattr(groups, name), _KEPT))
        groups.thinned = groups.count < before
        return groups

    @property
    def count(self) -> int:
        return len(self.complete) + len(self.infeasible) + len(self.pruned) + len(self.failed)

    def words(self, where: str) -> str:
        """For a caption: what the marks mean, and where the trials are."""
        words = [f"A dot is a complete trial{where}; the star is the best one."]
        if self.pruned:
            words.append("Pruned ones are drawn at the last value that they reported.")
        if self.failed:
            words.append("Failed ones stand at the lower edge.")
        if self.thinned:
            words.append(f"Not all trials are drawn, but the {_KEPT} best are.")
        return " ".join(words)


def _last(subject: Subject, trial: TrialRow) -> float | None:
    news = subject.news.get(trial.number)
    if news is None or not news.intermediate:
        return None
    last = news.intermediate[max(news.intermediate)]
    return last if math.isfinite(last) else None


def _figure(
    subject: Subject, groups: _Groups, parameter: Scale, scale: ResultScale, *, legend: bool
) -> dict[str, Any]:
    best = subject.best_first[:1]
    floor = scale.floor()
    traces = [
        _dots(parameter, [(t, floor) for t in groups.failed], "failed", RED, "x-thin", line=1.5),
        _dots(parameter, groups.pruned, "pruned", GREY, "circle-open"),
        _dots(parameter, groups.infeasible, "breaks a constraint", PURPLE, "triangle-up-open"),
        _dots(parameter, groups.complete, "complete", BLUE, "circle"),
        _dots(
            parameter,
            [(t, t.values[0]) for t in best if t.values],
            "the best",
            ORANGE,
            "star",
            size=13,
        ),
    ]
    traces = [trace for trace in traces if trace["x"]]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": shown(parameter.path, 40)}, **parameter.axis},
            "yaxis": {"title": {"text": shown(subject.spec.metrics[0])}, **scale.axis},
            "hovermode": "closest",
            "showlegend": legend and len(traces) > 2,
            "height": 300,
        },
    }


def _dots(
    parameter: Scale,
    trials: Sequence[tuple[TrialRow, float]],
    name: str,
    color: str,
    symbol: str,
    *,
    size: int = 6,
    line: float = 0,
) -> dict[str, Any]:
    placed = [
        (place, value, trial)
        for trial, value in trials
        if parameter.path in trial.params
        and (place := parameter.place(trial.params[parameter.path])) is not None
    ]
    opacity = 0.5 if symbol == "circle" else 0.9
    marker: dict[str, Any] = {"color": color, "symbol": symbol, "size": size, "opacity": opacity}
    if line:
        marker["line"] = {"width": line, "color": color}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_beside(parameter, place, trial, name) for place, _, trial in placed],
        "y": [value for _, value, _ in placed],
        "text": [f"trial {trial.number}" for _, _, trial in placed],
        "hovertemplate": "%{text}, " + name + "<extra></extra>"
        if name == "failed"
        else "%{text}: %{y}, " + name + "<extra></extra>",
        "marker": marker,
    }


def _beside(parameter: Scale, place: float, trial: TrialRow, name: str) -> float:
    """The place of a dot: those of one choice are spread, always in the same way."""
    if not parameter.choices or name == "the best":
        return place
    return place + _BAND * ((trial.number * _GOLDEN) % 1.0 - 0.5)
