"""Where the time of devices went: by cell and how it ended, and when each device ran what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from orchestrator.model import JSONValue
from orchestrator.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, namer, shown
from orchestrator.report.picture import Picture
from orchestrator.report.pictures.scales import of_time
from orchestrator.report.subject import Subject
from orchestrator.store import Span

_MOST_CELLS: Final = 30
_MOST_DEVICES: Final = 32
_MOST_SPANS: Final = 1_500
_KINDS: Final = {
    "complete": BLUE,
    "pruned": GREEN,
    "failed": RED,
    "lost with its worker": ORANGE,
    "given back": GREY,
    "probes": PURPLE,
}
_OUTCOMES: Final = {
    "completed": "complete",
    "pruned": "pruned",
    "failed": "failed",
    "retried": "failed",
    "lost": "lost with its worker",
    "interrupted": "given back",
}


def pictures(subject: Subject) -> list[Picture]:
    """Device time by cell, and the devices' time line; none where no attempt has ended."""
    spans = [span for span in subject.spans if span.ended_at is not None]
    if not spans or not subject.device_seconds:
        return []
    return [_by_cell(subject, spans), *_time_line(subject, spans)]


def _by_cell(subject: Subject, spans: Sequence[Span]) -> Picture:
    seconds: dict[int, dict[str, float]] = {}
    for span in spans:
        kind = _OUTCOMES.get(span.outcome or "", "given back")
        here = seconds.setdefault(span.cell, {})
        here[kind] = here.get(kind, 0.0) + (span.seconds or 0.0)
    for probe in subject.probes:
        here = seconds.setdefault(probe.cell, {})
        here["probes"] = here.get("probes", 0.0) + (probe.seconds or 0.0)
    totals = {cell: sum(parts.values()) for cell, parts in seconds.items()}
    ordered = sorted(totals, key=lambda cell: (-totals[cell], cell))
    first, others = ordered[:_MOST_CELLS], ordered[_MOST_CELLS:]
    total = sum(totals.values())
    if 2 * sum(totals[cell] for cell in first) < total:  # no few cells say where it went
        rows = [(f"{len(ordered):,} cells", _together(seconds.values()))]
        others = []
    else:
        rows = [(_cell_name(subject, cell), seconds[cell]) for cell in first]
    unit, size = of_time(max(sum(parts.values()) for _, parts in rows))
    used = sum(parts.get("complete", 0.0) for parts in seconds.values())
    total_unit, total_size = of_time(total)
    words = (
        f"{total / total_size:.3g} device {total_unit} in all, of which "
        f"{100 * used / total if total else 0:.0f} % ended in a complete trial."
    )
    if others:
        part = sum(totals[cell] for cell in others) / total if total else 0
        words += f" {len(others):,} more cells, with {100 * part:.0f} % of the time, are not shown."
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            "y": list(range(len(rows))),
            "x": [parts.get(kind, 0.0) / size for _, parts in rows],
            "marker": {"color": color},
            "hovertemplate": f"{kind}: %{{x:.3g}} {unit}<extra></extra>",
        }
        for kind, color in _KINDS.items()
        if any(parts.get(kind) for _, parts in rows)
    ]
    return Picture(
        "device-time",
        "Where device time went",
        words,
        {
            "data": traces,
            "layout": {
                "barmode": "stack",
                "xaxis": {"title": {"text": f"device {unit}"}},
                "yaxis": {
                    "tickvals": list(range(len(rows))),
                    "ticktext": [name for name, _ in rows],
                    "range": [len(rows) - 0.5, -0.5],
                    "showgrid": False,
                },
                "showlegend": True,
                "height": max(200, 120 + 22 * len(rows)),
            },
        },
    )


def _together(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Seconds by kind, of all cells."""
    whole: dict[str, float] = {}
    for one in parts:
        for kind, seconds in one.items():
            whole[kind] = whole.get(kind, 0.0) + seconds
    return whole


def _cell_name(subject: Subject, ordinal: int) -> str:
    values = _values(subject, ordinal)
    if not values:
        return "all trials"
    names = {axis.path: namer(axis.all_values, 14) for axis in subject.spec.grid}
    return ", ".join(names[path](value) for path, value in values.items())


def _values(subject: Subject, ordinal: int) -> dict[str, JSONValue]:
    """The values of the cell with that place in the grid, or of one that was taken from it."""
    removed = next((cell.values for cell in subject.removed if cell.ordinal == ordinal), None)
    if removed is not None:
        return removed
    values: dict[str, JSONValue] = {}
    for axis in reversed(subject.spec.grid):
        ordinal, place = divmod(ordinal, len(axis.values))
        values[axis.path] = axis.values[place]
    return dict(reversed(values.items()))


# ------------------------------------------------------------------------------------ the time line


def _time_line(subject: Subject, spans: Sequence[Span]) -> list[Picture]:
    if subject.plain:
        return []
    lanes = _named_lanes(spans)
    drawn = [(row, span) for row, (_, lane) in enumerate(lanes[:_MOST_DEVICES]) for span in lane]
    drawn.sort(key=lambda pair: (pair[1].started_at, pair[0]))
    newest = drawn[-_MOST_SPANS:]
    words = "Each bar is one attempt of a trial, on the device that ran it; times are UTC."
    if len(lanes) > _MOST_DEVICES:
        words += f" {_MOST_DEVICES} of {len(lanes)} devices are shown."
    if len(newest) < len(drawn):
        words += f" The last {_MOST_SPANS:,} of {len(drawn):,} attempts are shown."
    names = [shown(name, 30) for name, _ in lanes[:_MOST_DEVICES]]
    layout = {
        "barmode": "overlay",
        "xaxis": {"type": "date"},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
        },
        "showlegend": True,
        "height": max(200, 130 + 26 * len(names)),
    }
    figure = {"data": _bars(newest), "layout": layout}
    return [Picture("time-line", "When each device ran what", words, figure, wide=True)]


def _named_lanes(spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    """A row for each slot of each device, with its name."""
    devices: dict[tuple[str, str], list[Span]] = {}
    for span in spans:
        devices.setdefault((span.host, span.device or f"worker {span.worker_id}"), []).append(span)
    named: list[tuple[str, list[Span]]] = []
    for (host, device), ran in sorted(devices.items()):
        several = _lanes(ran)
        for k, lane in enumerate(several):
            which = f" {k + 1}" if len(several) > 1 else ""
            named.append((f"{host} {_device_label(device)}{which}", lane))
    return named


def _bars(drawn: Sequence[tuple[int, Span]]) -> list[dict[str, Any]]:
    """The attempts as bars in their rows, a trace for each kind of end."""
    traces = []
    for kind, color in _KINDS.items():
        bars = [
            (row, span)
            for row, span in drawn
            if _OUTCOMES.get(span.outcome or "", "given back") == kind
        ]
        if bars:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": kind,
                    "y": [row for row, _ in bars],
                    "base": [_moment(span.started_at) for _, span in bars],
                    "x": [1000 * (span.seconds or 0.0) for _, span in bars],
                    "text": [_bar(span) for _, span in bars],
                    "textposition": "none",
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"color": color, "line": {"width": 0}},
                    "width": 0.72,
                }
            )
    return traces


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """The attempts in as few rows as have no two at the same time: the slots of a device."""
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda s: (s.started_at, s.number)):
        for lane in lanes:
            last = lane[-1].ended_at
            if last is not None and last <= span.started_at:
                lane.append(span)
                break
        else:
            lanes.append([span])
    return lanes


def _device_label(device: str) -> str:
    if device == "cpu":
        return "CPU"
    return device[:12] if device.startswith(("GPU-", "MIG-")) else device


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"


def _bar(span: Span) -> str:
    attempt = f", attempt {span.attempt}" if span.attempt > 1 else ""
    unit, size = of_time(span.seconds or 0.0)
    kind = _OUTCOMES.get(span.outcome or "", "given back")
    on = f"<br>{shown(span.device_name, 40)}" if span.device_name else ""
    return f"trial {span.number}{attempt}: {kind}, {(span.seconds or 0.0) / size:.3g} {unit}{on}"
