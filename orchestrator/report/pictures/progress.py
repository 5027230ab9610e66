"""How the best value grew: against trials, and against the time that devices spent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from orchestrator.model import count_label
from orchestrator.report.palette import BLUE, ORANGE, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import ResultScale, of_time, spread
from orchestrator.report.subject import Subject
from orchestrator.store import TrialRow

_MOST_DOTS: Final = 1_500


def pictures(subject: Subject) -> list[Picture]:
    """Best so far against trials and against device hours; none with several objectives, or
    without a complete trial that has a finite value.
    """
    if len(subject.spec.directions) > 1:
        return []
    ended = [t for t in subject.trials if t.state in ("COMPLETE", "PRUNED", "FAIL")]
    ends = subject.ends
    ended.sort(key=lambda t: (t.number not in ends, ends.get(t.number, 0), t.number))
    if not any(_value(trial) is not None for trial in ended):
        return []
    return list(_pictures(subject, ended))


def _pictures(subject: Subject, ended: list[TrialRow]) -> Iterator[Picture]:
    metric = subject.spec.metrics[0]
    places = [(k, trial) for k, trial in enumerate(ended, start=1)]
    done = [(k, trial, value) for k, trial in places if (value := _value(trial)) is not None]
    scale = ResultScale.of([value for _, _, value in done], maximize=subject.maximize)
    steps = _improvements(subject, done)
    drawn = spread(done, _MOST_DOTS)
    left_out = (
        f" Of {count_label(len(done), 'trial')}, {len(drawn):,} are drawn as dots."
        if len(drawn) < len(done)
        else ""
    )
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "a trial",
        "x": [k for k, _, _ in drawn],
        "y": [value for _, _, value in drawn],
        "text": [f"trial {trial.number}" for _, trial, _ in drawn],
        "hovertemplate": "%{text}: %{y}<extra></extra>",
        "marker": {"color": BLUE, "size": 5, "opacity": 0.45},
    }
    yield Picture(
        "best-by-trials",
        f"Best {metric} so far, by trials",
        f"In the order in which trials ended; failed and pruned ones count.{left_out}{scale.words}",
        _figure(
            [dots, _line([k for k, _, _ in steps], steps, len(ended))],
            "trials ended",
            metric,
            scale,
        ),
    )
    spent = _device_seconds(subject, ended)
    if spent[-1] > 0:
        unit, size = of_time(spent[-1])
        yield Picture(
            "best-by-time",
            f"Best {metric} so far, by device time",
            f"What all devices spent together until then, attempts that were lost or failed "
            f"included, in {unit}.",
            _figure(
                [_line([spent[k - 1] / size for k, _, _ in steps], steps, spent[-1] / size)],
                f"device {unit}",
                metric,
                scale,
            ),
        )


def _value(trial: TrialRow) -> float | None:
    if trial.state != "COMPLETE" or not trial.values or not trial.feasible:
        return None
    return trial.values[0] if math.isfinite(trial.values[0]) else None


def _improvements(
    subject: Subject, done: list[tuple[int, TrialRow, float]]
) -> list[tuple[int, TrialRow, float]]:
    """The trials that were better than all that had ended before."""
    best: list[tuple[int, TrialRow, float]] = []
    for k, trial, value in done:
        better = not best or (value > best[-1][2] if subject.maximize else value < best[-1][2])
        if better:
            best.append((k, trial, value))
    return best


def _device_seconds(subject: Subject, ended: list[TrialRow]) -> list[float]:
    """What devices had spent by the end of each of these trials."""
    ends = subject.ends
    spans = sorted(
        (span.ended_at, span.seconds or 0.0) for span in subject.spans if span.ended_at is not None
    )
    spent, total, at = [], 0.0, 0
    for trial in ended:
        end = ends.get(trial.number)
        while end is not None and at < len(spans) and spans[at][0] <= end:
            total += spans[at][1]
            at += 1
        spent.append(total)
    return spent


def _line(x: list[Any], steps: list[tuple[int, TrialRow, float]], until: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": [*x, until],
        "y": [*(value for _, _, value in steps), steps[-1][2]],
        "text": [*(f"trial {t.number}" for _, t, _ in steps), f"trial {steps[-1][1].number}"],
        "hovertemplate": "best: %{text}, %{y}<extra></extra>",
        "line": {"shape": "hv", "color": ORANGE, "width": 2.5},
    }


def _figure(
    traces: list[dict[str, Any]], across: str, metric: str, scale: ResultScale
) -> dict[str, Any]:
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": across}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": shown(metric)}, **scale.axis},
            "showlegend": len(traces) > 1,
        },
    }
