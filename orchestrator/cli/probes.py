"""The command `probe`, and how other commands show what probes have found."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli import hints, screen
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.measurement import Measurement, Narrowed
from orchestrator.model import (
    JSONValue,
    StudySpec,
    cell_label,
    count_label,
    span_label,
    value_label,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.store import ProbeRow, StudyRow

_MOST = 30
_WIDEST = 80
_SHORT_S = 10.0


def run(call: Call) -> int:
    """Shows what the probes of a study have found; with ``--again`` has them measured anew.

    Raises:
        ConfigError: the study has no probes, or not the one that was named, or no such cell.
    """
    again = "--again" in call.switches
    if not again:
        with call.reading() as reading:
            row = study_of(call, reading)
            spec = reading.reads.spec(row.study_id)
            _check(spec, call)
            found = _selected(call, spec, reading.measured.of(row.study_id))
        _print(call, row, spec, found)
        return 0
    if call.study_name is None:
        raise ConfigError("study.name must be given: orchestrator probe study.name=… --again")
    with call.store() as store:
        row = study_of(call, store)
        spec = store.reads.spec(row.study_id)
        _check(spec, call)
        cells = None if "cell" not in call.words else _cells(call, spec)
        names = None if "name" not in call.words else [call.words["name"]]
        count = store.probes.again(row.study_id, cells, names)
        row = store.reads.find(row.name)  # cells that are open again may have set it going
        workers = len(store.reads.workers())
    if call.json:
        print(json.dumps({"study": row.name, "again": count, "workers": workers}))
        return 0
    when = "before the next trial of its cell" if count == 1 else "before the next trial of each"
    text = f"{count_label(count, 'probe')} will be measured again, {when}"
    print(f"study {row.name}: {text if count else 'no probe has been measured yet'}")
    if count and row.state == "FINISHED":
        print("it is finished: launch it with more budget.trials, or no trial will come")
    elif count and not workers:
        print(f"no worker is running; start one with: {hints.command(call, 'worker')}")
    return 0


def _check(spec: StudySpec, call: Call) -> None:
    if not spec.probes:
        raise ConfigError(f"study {spec.name} has no probes")
    name = call.words.get("name")
    if name is not None and name not in spec.probes:
        there = ", ".join(spec.probes)
        raise ConfigError(
            f"name={name}: study {spec.name} has no such probe{did_you_mean(name, spec.probes)}; "
            f"it has {there}"
        )


def _cells(call: Call, spec: StudySpec) -> list[int]:
    number = call.number("cell")
    assert number is not None
    if number >= spec.n_cells:
        raise ConfigError(
            f"cell={number}: study {spec.name} has {count_label(spec.n_cells, 'cell')}, from 0 on"
        )
    return [number]


def _selected(call: Call, spec: StudySpec, rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    cells = None if "cell" not in call.words else _cells(call, spec)
    name = call.words.get("name")
    return [
        row
        for row in rows
        if (cells is None or row.cell in cells) and (name is None or row.name == name)
    ]


def _print(call: Call, row: StudyRow, spec: StudySpec, found: Sequence[ProbeRow]) -> None:
    if call.json:
        print(screen.as_json({"study": row.name, "probes": data(row, found)}))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=io.StringIO(), width=max(150, Console().width), highlight=False)
    with console.capture() as captured:
        asked = (1 if "cell" in call.words else spec.n_cells) * (
            1 if "name" in call.words else len(spec.probes)
        )
        console.print(Text(f"{row.name}: {summary(spec, found, asked)}"), soft_wrap=True)
        if found:
            console.print(table(spec, found, room=len(found)))
        for one in found:
            for fact in _facts(one):
                console.print(Text(fact), soft_wrap=True)
    print(screen.unpadded(captured.get()), end="")


def _facts(row: ProbeRow) -> list[str]:
    """The facts that are one value each, in a line; ``--json`` has them all."""
    facts = (row.measurement or {}).get("facts") or {}
    words = ", ".join(
        f"{name}={_short(value)}"
        for name, value in facts.items()
        if value is not None and not isinstance(value, list | dict)
    )
    return [f"{row.name} in {cell_label(row.values)}: {words}"] if words else []


def _short(value: JSONValue) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value_label(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def summary(spec: StudySpec, rows: Sequence[ProbeRow], asked: int | None = None) -> str:
    """``probes: 5 of 6 measured, 1 running, 12 s and 1500 steps in all``; each device type has its
    own.

    Args:
        asked: how many there are to be on each device type; default all of the study.
    """
    per_type = {(row.device_name, row.bytes) for row in rows}
    each = spec.n_cells * len(spec.probes) if asked is None else asked
    total = max(each * max(1, len(per_type)), len(rows))
    done = sum(row.state == "DONE" for row in rows)
    failed = sum(row.state == "FAILED" for row in rows)
    running = sum(row.held for row in rows)
    took = sum(row.seconds or 0.0 for row in rows)
    steps = sum(map(_steps, rows))
    parts = [f"{done} of {total} measured"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{running} running"] if running else []
    if took:
        span = f"{took:.1f} s" if took < _SHORT_S else span_label(took)
        parts.append(f"{span}{f' and {steps} steps' if steps else ''} in all")
    return f"probes: {', '.join(parts)}"


def _steps(row: ProbeRow) -> int:
    """How many training steps the probe says it ran."""
    steps = ((row.measurement or {}).get("facts") or {}).get("steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else 0


def failures(rows: Sequence[ProbeRow]) -> list[str]:
    """One line for each way in which probes failed: how many, the cause, the log of the first."""
    alike: dict[tuple[str, str], list[ProbeRow]] = {}
    for row in rows:
        if row.state == "FAILED":
            alike.setdefault((row.name, (row.reason or "").partition("\n")[0]), []).append(row)
    lines = []
    for (name, cause), failed in alike.items():
        log = next((x for x in (failed[0].reason or "").splitlines() if x.startswith("log: ")), "")
        where = count_label(len(failed), "cell")
        lines.append(
            f"probe {name} failed in {where}, searched as declared: {cause}"
            f"{f'; {log}' if log else ''}"
        )
    return lines


def table(spec: StudySpec, rows: Sequence[ProbeRow], room: int = _MOST) -> RenderableType:
    """One row per probe and cell: what it found, or why it did not, and how long it took. If there
    is no room for all, those that run or failed come first.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    types = {(row.device_name, row.bytes) for row in rows}
    shown = Table(box=None, pad_edge=False)
    for name in ("probe", *(axis.path for axis in spec.grid), *(["device"] if types else [])):
        shown.add_column(Text(name))
    shown.add_column("seconds", justify="right")
    shown.add_column("found")
    ranked = sorted(rows, key=lambda row: (not row.held and row.state != "FAILED", row.cell))
    for row in ranked[:room]:
        values = [value_label(row.values[axis.path]) for axis in spec.grid]
        seconds = row.since_s if row.held else row.seconds
        took = "" if seconds is None else f"{seconds:.1f}"
        shown.add_row(*map(Text, (row.name, *values, row.device_name, took, _found(row))))
    if len(rows) <= room:
        return shown
    return Group(shown, Text(f"… {count_label(len(rows) - room, 'probe')} more"))


def _found(row: ProbeRow) -> str:
    if row.held:
        return f"being measured on {row.host}"
    if row.state == "FAILED":
        lines = (row.reason or "").splitlines()
        log = next((line for line in lines if line.startswith("log: ")), "")
        return "failed, so the declared bounds apply: " + "; ".join(filter(None, [*lines[:1], log]))
    if row.state != "DONE":
        why = f": {row.reason.splitlines()[0]}" if row.reason else ""
        return f"to be measured again{why}"
    found = row.measurement or {}
    warning = (found.get("facts") or {}).get("warning")
    return label_of(found) + (f"; {warning}" if isinstance(warning, str) else "")


def label_of(measurement: Mapping[str, Any]) -> str:
    """What was found, in words."""
    return Measurement(
        bounds={path: (low, high) for path, (low, high) in measurement.get("bounds", {}).items()},
        fixed=measurement.get("fixed", {}),
        infeasible=measurement.get("infeasible"),
        largest=measurement.get("largest", {}),
        facts=measurement.get("facts", {}),
    ).label


def log_path(row: StudyRow, probe: ProbeRow) -> Path:
    """Where the last attempt of a probe wrote its log."""
    from orchestrator.runner.protocol import rundir

    folder = rundir.probe_dir(
        Path(probe.runs_dir), row.folder, probe.name, probe.cell, probe.attempt, probe.token
    )
    return rundir.log_path(folder)


def data(row: StudyRow, rows: Sequence[ProbeRow]) -> list[dict[str, Any]]:
    """The same for programs: plain data for JSON."""
    return [
        {
            "probe": one.name,
            "cell": one.cell,
            "values": dict(one.values),
            "device": one.device_name,
            "bytes": one.bytes,
            "state": "RUNNING" if one.held else "OPEN" if one.state == "RUNNING" else one.state,
            "found": one.measurement,
            "reason": one.reason,
            "seconds": one.seconds,
            "host": one.host,
            "log": str(log_path(row, one)),
        }
        for one in rows
    ]


def narrowed(
    spec: StudySpec, rows: Sequence[ProbeRow], cell: Mapping[str, JSONValue]
) -> list[Narrowed]:
    """What the probes of a cell say about its trials, one for each device type."""
    types: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.measurement is not None and dict(row.values) == dict(cell):
            types.setdefault((row.device_name, row.bytes), []).append(row.measurement)
    return [Narrowed.by(found, spec, cell) for found in types.values()]


def outside(
    spec: StudySpec,
    rows: Sequence[ProbeRow],
    cell: Mapping[str, JSONValue],
    given: Mapping[str, JSONValue],
) -> list[str]:
    """In words, which of these values lie outside what the probes of the cell found on any device
    type.
    """
    found = [remark for narrow in narrowed(spec, rows, cell) for remark in narrow.remarks(given)]
    return list(dict.fromkeys(found))


def plan_lines(spec: StudySpec) -> list[str]:
    """What the probes will do, for the plan of a launch."""
    if not spec.probes:
        return []
    lines = [
        f"{count_label(len(spec.probes), 'probe')} before the first trial of each cell, on each "
        f"device type: {count_label(spec.n_cells * len(spec.probes), 'measurement')}, within "
        "budget.hours"
    ]
    for name, probe in spec.probes.items():
        words = ", ".join(f"{k}={value_label(v)}" for k, v in probe.items() if k != "_target_")
        lines.append(f"  {name}: {probe['_target_']}{f' ({words})' if words else ''}")
        lines += [f"    {warning}" for warning in _few_samples(spec, probe)]
    return lines


def _few_samples(spec: StudySpec, probe: Mapping[str, JSONValue]) -> list[str]:
    """Which batch sizes of the grid hold too few samples of each class, as the probe will warn."""
    n_classes, path = probe.get("n_classes"), probe.get("axis")
    axis = next((axis for axis in spec.grid if axis.path == path), None)
    if axis is None or not isinstance(n_classes, int) or isinstance(n_classes, bool):
        return []
    from orchestrator.training.batch_size import classes_rule  # imports torch

    try:
        rules = [(value, classes_rule(value, n_classes)) for value in axis.values]
    except (TypeError, ValueError):
        return []  # the probe itself says what is wrong
    return [f"{path}={value}: {rule.warning}" for value, rule in rules if rule.warning]
