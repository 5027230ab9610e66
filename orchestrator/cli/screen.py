"""How studies are shown: the plan before a launch, live progress, the results.

Nothing here reads the database. Rich is imported where something is laid out: what only prints
lines does not need it.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator.cli.running import Running
from orchestrator.config import startup_label, stop_label
from orchestrator.model import (
    Axis,
    Searched,
    StudySpec,
    cell_label,
    count_label,
    value_label,
    visible,
)
from orchestrator.program import label

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.search import CellEstimate
    from orchestrator.store import CellRow, Progress, TrialRow

Estimates: TypeAlias = "Sequence[CellEstimate | None]"
_LINE_EVERY_S = 10.0
_STEPS_EVERY_S = 60.0
_NOTE_AFTER_S = 2.0
_ENDED_FOR_ETA = 3
_WIDEST_BAR = 60
_FEWEST_ROWS = 3
MOST_CELLS = 30
_MOST_TEXT = 60  # characters of one declaration in a plan


class View:
    """Progress on standard output: a live table on a terminal, else plain lines.

    With ``--json``, it goes to standard error.
    """

    def __init__(self, spec: StudySpec, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._spec = spec
        self._console = Console(
            file=sys.stderr if as_json else sys.stdout, highlight=False, soft_wrap=True
        )
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal
            else None
        )
        self._last: tuple[int, int] | None = None
        self._steps = ""
        self._next_line = 0.0
        self._next_steps = time.monotonic() + _STEPS_EVERY_S
        self._note: str | None = None
        self._note_at = 0.0

    @property
    def most_cells(self) -> int:
        """How many cells `update` can show."""
        return 0 if self._live is None else max(_FEWEST_ROWS, self._console.height)

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints `text` as it is, above the live table if there is one."""
        from rich.text import Text

        with self._unless_gone():
            self._console.print(Text(text))

    def update(
        self, progress: Progress, running: Running | None = None, note: str | None = None
    ) -> None:
        """Shows where the study stands, the trials that run, and what it waits for (`note`).

        Without a terminal, it prints at most one line per ten seconds, after trials end; and one
        per minute with the steps of running trials, if they reported new ones. A note is a line
        once it has been true for two seconds.
        """
        running = running or Running()
        if self._live is not None:
            with self._unless_gone():
                self._live.update(self._table(progress, running, note), refresh=True)
            return
        if progress.study.state == "FINISHED":
            return
        self._say_note(note)
        now, clock = (progress.spent, progress.failed), time.monotonic()
        if now != self._last and clock >= self._next_line:
            self._last, self._next_line = now, clock + _LINE_EVERY_S
            self.say(headline(self._spec, progress))
        if clock >= self._next_steps:
            self._next_steps = clock + _STEPS_EVERY_S
            steps = running.line(self._spec)
            if steps and steps != self._steps:
                self._steps = steps
                self.say(steps)

    def _say_note(self, note: str | None) -> None:
        clock = time.monotonic()
        if note != self._note:
            self._note, self._note_at = note, clock + _NOTE_AFTER_S
        elif note is not None and clock >= self._note_at:
            self._note_at = float("inf")
            self.say(note)

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Drops all output once its reader is gone (rich raises SystemExit) or the disk is full.

        Neither is a reason to end a study.
        """
        from rich.console import Console

        try:
            yield
        except (OSError, SystemExit):
            self._console, self._live = Console(file=io.StringIO()), None

    def _table(self, progress: Progress, running: Running, note: str | None) -> RenderableType:
        return live_table(
            self._spec,
            progress,
            running,
            note,
            width=self._console.width,
            height=self._console.height,
        )


def live_table(
    spec: StudySpec,
    progress: Progress,
    running: Running,
    note: str | None,
    *,
    width: int,
    height: int,
) -> RenderableType:
    """The study on a terminal of this size: headline, progress bar, running trials, cells.

    A third of the lines is for running trials, and what they leave for cells, the best ones first.
    """
    from rich.console import Group
    from rich.text import Text

    head = Text(headline(spec, progress))
    parts: list[RenderableType] = [head, _bar(progress, width)]
    if note is not None:
        parts.append(Text(note))
    # The cursor's line, the table's header, and the line that tells how many cells there are more.
    free = height - 3 - len(parts) - len(head.plain) // max(1, width)
    if running.trials:
        room = max(1, free // 3)
        parts.append(running.table(spec, room, width))
        hidden = len(running.trials) - room
        if hidden > 0:
            parts.append(Text(f"… {hidden} more running"))
        free -= 1 + min(len(running.trials), room) + (hidden > 0)
    parts.append(cell_table(spec, progress.cells, room=free, total=progress))
    return Group(*parts)


def _bar(progress: Progress, width: int) -> RenderableType:
    """``━━━━━━━━━━━━━━━━━━━━  25 %``: the spent part of the budget."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    share = progress.spent / progress.total if progress.total else 1.0
    grid.add_row(
        ProgressBar(
            total=max(1, progress.total),
            completed=progress.spent if progress.total else 1,
            width=max(10, min(_WIDEST_BAR, width - 7)),
        ),
        Text(f"{100 * share:.0f} %"),
    )
    return grid


def headline(spec: StudySpec, progress: Progress) -> str:
    """``12/48 trials, 2 running, best observed accuracy 0.9722 (trial 8), about 1 min left``."""
    parts = [f"{progress.spent}/{progress.total} trials", f"{progress.running} running"]
    if progress.waiting:
        parts.append(f"{progress.waiting} waiting for a worker")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.study.state in ("PAUSED", "STOPPING"):
        parts.append(f"{progress.study.state.lower()} ({progress.study.reason})")
    if progress.best is not None:
        where = f"(trial {progress.best_trial})"
        parts.append(f"best observed {spec.metrics[0]} {progress.best:.6g} {where}")
    left = _seconds_left(progress)
    if left is not None:
        parts.append(f"about {_duration(left)} left")
    return ", ".join(parts)


def _seconds_left(progress: Progress) -> float | None:
    """At the pace since the launch.

    None while too few trials have ended to know it: three, and as many as run at the same time. And
    when none is left, or none runs.
    """
    if not progress.running or progress.spent_since < max(_ENDED_FOR_ETA, progress.running):
        return None
    if progress.spent >= progress.total:
        return None
    left = progress.seconds / progress.spent_since * (progress.total - progress.spent)
    return left if progress.seconds_left is None else min(left, max(0.0, progress.seconds_left))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cell_table(
    spec: StudySpec,
    cells: tuple[CellRow, ...],
    room: int = MOST_CELLS,
    estimates: Estimates = (),
    total: Progress | None = None,
) -> RenderableType:
    """One row per cell: its values, spent trials of those that it will get, counts, best value.

    If there is no room for all, it shows the best ones, then those that run trials. A ``+`` behind
    the trials that a cell will get: the allocation may give it more.

    Args:
        total: the study's progress, if `cells` are only some of its cells.
        estimates: adds the model's estimate of the best value that each cell can reach, and the
            probability that no other cell reaches a better one.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    believed = (
        dict(zip((c.ordinal for c in cells), estimates, strict=False)) if any(estimates) else {}
    )
    table = Table(box=None, pad_edge=False)
    for axis in spec.grid:
        table.add_column(Text(visible(axis.path)))
    if not spec.grid:
        table.add_column("cell")
    best = f"{spec.metrics[0]} of believed best" if believed else f"best {spec.metrics[0]}"
    counts_and_best = ("done", "pruned", "failed", "running", best, "trial")
    estimate_columns = ("estimated optimum (90 %)", "P(best)") if believed else ()
    for name in (*counts_and_best, *estimate_columns, ""):
        table.add_column(Text(value_label(name)), justify="right" if name else "left")

    listed = cells
    if len(cells) > max(_FEWEST_ROWS, room):
        sign = -1.0 if spec.directions[0] == "maximize" else 1.0
        ranked = sorted(cells, key=lambda c: (c.best is None, sign * (c.best or 0.0), -c.running))
        listed = tuple(ranked[: max(_FEWEST_ROWS, room)])

    for cell in listed:
        names = [value_label(cell.values[axis.path]) for axis in spec.grid] or [
            cell_label(cell.values)
        ]
        value, trial = _best_of(cell, believed.get(cell.ordinal))
        best = "" if value is None else f"{value:.6g}"
        number = "" if trial is None else str(trial)
        remark = _remark(cell)
        counts = (
            f"{cell.spent}/{max(cell.bound, cell.share)}{'+' if cell.grows else ''}",
            str(cell.pruned),
            str(cell.failed),
            str(cell.running),
        )
        belief = _belief(believed.get(cell.ordinal)) if believed else ()
        table.add_row(*map(Text, (*names, *counts, best, number, *belief, remark)))
    more = max(len(cells), total.n_cells if total else 0) - len(listed)
    if not more:
        return table
    closed = total.closed if total else sum(cell.state == "CLOSED" for cell in cells)
    closed -= sum(cell.state == "CLOSED" for cell in listed)
    note = f" ({closed} closed)" if closed > 0 else ""
    return Group(table, Text(f"… {more} more cell{'' if more == 1 else 's'}{note}"))


def _remark(cell: CellRow) -> str:
    """Why the cell gets no trials, or none on some devices, or has no complete one.

    Empty if all is well.
    """
    if cell.state == "CLOSED":
        return cell.reason or "" if cell.settled else f"closed: {cell.reason}"
    notes = [f"{pruned_themselves(cell.pruned)}; no complete trial"] if cell.only_pruned else []
    return "; ".join(
        [*notes, *(f"closed for {short.device}: {short.reason}" for short in cell.closed_for)]
    )


def pruned_themselves(count: int) -> str:
    """Says that all `count` trials raised TrialPruned themselves, not at a pruner's decision."""
    return "its one trial pruned itself" if count == 1 else f"all {count} trials pruned themselves"


def _best_of(cell: CellRow, estimate: CellEstimate | None) -> tuple[float | None, int | None]:
    """Value and number of the cell's best trial: the believed one, or else the best observed."""
    if estimate is None or estimate.trial is None:
        return cell.best, cell.best_trial
    return estimate.value, estimate.trial


def _belief(estimate: CellEstimate | None) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    e = estimate
    return f"{e.estimate:.4g} ({e.low:.4g} to {e.high:.4g})", f"{100 * e.probability_best:.0f} %"


def cell_comments(spec: StudySpec, cells: Sequence[CellRow], estimates: Estimates) -> str:
    """The cells as YAML comments, those of the best estimates first."""
    maximize = spec.directions[0] == "maximize"
    rows = sorted(
        zip(cells, estimates, strict=True),
        key=lambda row: (row[1] is None, row[1].rank(maximize=maximize) if row[1] else ()),
    )
    lines = [
        (
            "# cells: complete trials, best value, estimated optimum (90 %), probability that no "
            "other cell reaches a better one"
        )
    ]
    for cell, estimate in rows[:MOST_CELLS]:
        value, _ = _best_of(cell, estimate)
        best = "none" if value is None else f"{value:.6g}"
        columns = f"{cell.completed}, {best}, {', '.join(_belief(estimate))}".rstrip(" ,")
        remark = value_label(f"; {_remark(cell)}") if _remark(cell) else ""
        lines.append(f"#   {cell_label(cell.values)}: {columns}{remark}")
    if len(rows) > MOST_CELLS:
        lines.append(f"#   … and {count_label(len(rows) - MOST_CELLS, 'cell')} more")
    return "\n".join(lines)


def plan(
    spec: StudySpec,
    distributions: list[tuple[str, str]],
    remarks: Sequence[str] = (),
    probes: Sequence[str] = (),
    *,
    alone: bool = True,
) -> str:
    """What `launch` would do: cells, parameters as declared and as stored, shares, `probes`,
    `remarks`; at its end, if it stands `alone`, that nothing was done.
    """
    lines = [
        (
            f"study {spec.name}: "
            f"{', '.join(f'{d} {m}' for d, m in zip(spec.directions, spec.metrics, strict=True))}"
        )
    ]
    lines.append(f"objective {value_label(label(spec.objective))}")
    lines.append(f"sampler {spec.sampler.name}, pruner {spec.pruner.name}, seed {spec.seed}")
    if startup := startup_label(spec):
        lines.append(startup)
    rows = [
        (section, path, form if len(form) <= _MOST_TEXT else f"{form[: _MOST_TEXT - 1]}…", text)
        for section, path, form, text in _parameters(spec, distributions)
    ]
    if rows:
        lines += ["", "parameters, and how Optuna stores them"]
        path_width, form_width = (max(len(row[k]) for row in rows) for k in (1, 2))
        lines += [
            f"  {section:<6}  {path:<{path_width}}  {form:<{form_width}}  {value_label(text)}"
            for section, path, form, text in rows
        ]

    shares = spec.n_cells * spec.budget.per_cell
    rest = spec.budget.trials - shares
    cells, guaranteed = count_label(spec.n_cells, "cell"), count_label(shares, "guaranteed trial")
    lines += ["", f"{cells} x budget.per_cell={spec.budget.per_cell} = {guaranteed}"]
    confirm = spec.budget.confirm
    last = f" (the last {confirm} confirm the leaders: budget.confirm)" if confirm else ""
    lines.append(
        f"{rest} more by allocation={spec.allocation}{last}, {spec.budget.trials} in total"
    )
    if spec.budget.hours is not None:
        lines.append(f"no trial starts after {spec.budget.hours:g} h")
    if spec.stop_when.on:
        lines.append(stop_label(spec.stop_when))
    lines += probes

    for index, cell in enumerate(spec.cells()):
        if index == MOST_CELLS:
            lines.append(f"  … and {count_label(spec.n_cells - index, 'cell')} more")
            break
        lines.append(f"  {cell_label(cell)}")
    end = ["dry run: nothing was created"] if alone else []
    return "\n".join([*lines, "", *remarks, *end])


def plan_data(spec: StudySpec, distributions: list[tuple[str, str]]) -> dict[str, Any]:
    """The same as `plan` for programs: plain data for JSON, with every cell."""
    return {
        "study": spec.name,
        "directions": list(spec.directions),
        "metrics": list(spec.metrics),
        "objective": dict(spec.objective),
        "sampler": asdict(spec.sampler),
        "pruner": asdict(spec.pruner_in_effect),
        "seed": spec.seed,
        "priority": spec.priority,
        "parameters": [
            {"path": path, "section": section, "declared": form, "stored": text}
            for section, path, form, text in _parameters(spec, distributions)
        ],
        "budget": asdict(spec.budget),
        "allocation": spec.allocation,
        "guaranteed": spec.n_cells * spec.budget.per_cell,
        "stop_when": asdict(spec.stop_when),
        "probes": {name: dict(probe) for name, probe in spec.probes.items()},
        "cells": list(spec.cells()),
    }


def _parameters(
    spec: StudySpec, distributions: list[tuple[str, str]]
) -> list[tuple[str, str, str, str]]:
    """Section, path, declaration and distribution of every parameter."""
    from orchestrator.config import normal_form  # imports Hydra, which others do not need

    declared: list[Axis | Searched] = [*spec.grid, *spec.search]
    forms = {
        d.path: ("grid" if isinstance(d, Axis) else "search", normal_form(d)) for d in declared
    }
    rows = []
    for path, text in distributions:
        section, form = forms[path]
        rows.append((section, path, value_label(form), text.removeprefix(f"{section}: ")))
    return rows


def best_trials(spec: StudySpec, trials: list[TrialRow]) -> list[TrialRow]:
    """The best feasible complete trial; with several objectives, the Pareto front."""
    signs = [-1.0 if d == "maximize" else 1.0 for d in spec.directions]
    done = [
        (tuple(s * v for s, v in zip(signs, t.values, strict=True)), t)
        for t in trials
        if t.state == "COMPLETE" and t.values and t.feasible
    ]
    if len(signs) == 1:
        return [min(done, key=lambda d: (d[0], d[1].number))[1]] if done else []
    return [
        t
        for loss, t in done
        if not any(o != loss and all(a <= b for a, b in zip(o, loss, strict=True)) for o, _ in done)
    ]


def results(
    spec: StudySpec,
    progress: Progress,
    best: list[TrialRow],
    estimates: Estimates = (),
    notes: Sequence[str] = (),
) -> str:
    """The end of a launch: counts, the best trial with `notes` about it, and the best and the
    estimate of every cell.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=io.StringIO(), width=max(150, Console().width), highlight=False)
    with console.capture() as captured:
        console.print(Text(headline(spec, progress)), soft_wrap=True)
        if progress.study.state == "FINISHED":
            console.print(Text(f"finished: {progress.study.reason}"))
            if note := repeats(spec, progress, best):
                console.print(Text(note), soft_wrap=True)
        for trial in best:
            console.print(Text(f"\n{describe_trial(spec, trial)}"), soft_wrap=True)
        for line in notes:
            console.print(Text(line), soft_wrap=True)
        console.print(Text("\nbest of every cell" if spec.grid else "\nthe study's one cell"))
        console.print(
            cell_table(spec, progress.cells, room=200, estimates=estimates, total=progress)
        )
    return unpadded(captured.get())


def unpadded(text: str) -> str:
    """`text` without the spaces that a table puts at the end of its lines."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def repeats(spec: StudySpec, progress: Progress, best: list[TrialRow]) -> str | None:
    """Says how many trials repeat the parameters of others, because closed cells left theirs to
    them and the study searches nothing; None if none does, the cells are not all in `progress`, or
    not all of them have always been in the grid.
    """
    axes = {axis.path for axis in spec.grid}
    searches = spec.search or any(trial.params.keys() - axes for trial in best)
    partly = spec.revision > 1 or len(progress.cells) < progress.n_cells
    if searches or not progress.closed or partly:
        return None
    share = spec.budget.per_cell
    beyond = sum(max(0, cell.spent - share) for cell in progress.cells)
    left = beyond - (spec.budget.trials - progress.n_cells * share)
    if left <= 0:
        return None
    repeat = "repeats" if left == 1 else "repeat"
    return (
        f"{count_label(left, 'trial')} that the closed cells left went to the others; nothing is "
        f"searched, so {'it' if left == 1 else 'they'} {repeat} their parameters with other seeds"
    )


def describe_trial(spec: StudySpec, trial: TrialRow) -> str:
    """``best trial 31: val_accuracy=0.9861`` and its parameters, one per line."""
    values = ", ".join(
        f"{m}={v:.6g}" for m, v in zip(spec.metrics, trial.values or (), strict=False)
    )
    width = max((len(path) for path in trial.params), default=0)
    lines = [f"  {path:<{width}}  {value_label(value)}" for path, value in trial.params.items()]
    return "\n".join([f"best trial {trial.number}: {values}", *lines])


def as_data(
    spec: StudySpec, progress: Progress, best: list[TrialRow], estimates: Estimates = ()
) -> dict[str, Any]:
    """The same as `results` for programs: plain data for JSON.

    Without `estimates` their fields are null.
    """
    believed = [*estimates, *[None] * (len(progress.cells) - len(estimates))]
    return {
        "study": spec.name,
        "state": progress.study.state,
        "reason": progress.study.reason,
        "trials": {
            "total": progress.total,
            "spent": progress.spent,
            "running": progress.running,
            "waiting": progress.waiting,
            "failed": progress.failed,
        },
        "best": [trial_data(spec, trial) for trial in best],
        "cells": [
            {
                "values": c.values,
                "state": c.state,
                "reason": c.reason,
                "closed_for": [asdict(short) for short in c.closed_for],
                "completed": c.completed,
                "pruned": c.pruned,
                "failed": c.failed,
                "running": c.running,
                "best": c.best,
                "best_trial": c.best_trial,
                "estimate": None if belief is None else asdict(belief),
            }
            for c, belief in zip(progress.cells, believed, strict=True)
        ],
    }


def as_json(data: Any) -> str:
    """`data` as standard JSON, in which infinities become the strings ``inf`` and ``-inf``."""
    return json.dumps(_without_infinities(data), indent=2, allow_nan=False)


def _without_infinities(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_infinities(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_infinities(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def trial_data(spec: StudySpec, trial: TrialRow) -> dict[str, Any]:
    """One trial for JSON and YAML."""
    return {
        "trial": trial.number,
        "state": trial.state,
        "values": dict(zip(spec.metrics, trial.values or (), strict=False)),
        "params": trial.params,
    }
