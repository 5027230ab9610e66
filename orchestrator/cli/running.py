"""Running trials for people and programs: parameters, last step, pace, time left.

Nothing here reads the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.model import JSONValue, StudySpec, span_label, value_label

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.store import RunningRow

_MOST_VALUE = 16  # characters of one value in a line of parameters
_GAP = 2  # characters between two columns


@dataclass(frozen=True)
class Pace:
    """What a trial's reports tell of its speed.

    `step_s` is seconds per step so far, `left_s` seconds until its last step; None where that is
    not known. `last` is the last step that such a trial has, None if not known; `varies` if earlier
    trials had different ones, of which it is the largest.
    """

    step_s: float | None = None
    left_s: float | None = None
    last: int | None = None
    varies: bool = False


@dataclass(frozen=True)
class Running:
    """The trials that run now, and the last steps of earlier ones as ``(cell, step)``."""

    trials: Sequence[RunningRow] = ()
    last_steps: Sequence[tuple[int, int]] = ()

    def pace(self, spec: StudySpec, trial: RunningRow) -> Pace:
        """How fast the trial goes.

        The last step is that of complete trials of its cell, else of any cell, else the one that
        the pruner is told. The speed of a resumed trial is not known: some of its steps were
        reported by an earlier attempt.
        """
        steps = [step for cell, step in self.last_steps if cell == trial.cell]
        steps = steps or [step for _, step in self.last_steps]
        declared = getattr(spec.pruner, "max_resource", None)
        if not steps and isinstance(declared, int):
            steps = [declared]
        last = max(steps, default=None)
        varies = bool(steps) and min(steps) != last

        step_s = left_s = None
        if trial.attempt == 1 and trial.reports > 1 and trial.first is not None:
            assert trial.last is not None
            # Those before the first report count too: one that reports every hundredth step has
            # taken a hundred until then.
            taken = (trial.last - trial.first) * trial.reports / (trial.reports - 1)
            step_s = trial.seconds / taken
            if last is not None and last > trial.last:
                left_s = step_s * (last - trial.last)
        return Pace(step_s, left_s, last, varies)

    def line(self, spec: StudySpec) -> str:
        """The trials that reported something, in one line: ``trial 3: step 5/11, loss 0.2``."""
        shown = [trial for trial in self.trials if trial.last is not None]
        told = []
        for trial in shown[:3]:
            pace = self.pace(spec, trial)
            value = f"{value_label(spec.metrics[0])} {trial.value:.6g}"
            parts = [f"trial {trial.number}: step {_step(trial, pace)}", value, _left(pace)]
            told.append(", ".join(filter(None, parts)))
        if len(shown) > len(told):
            told.append(f"… {len(shown) - len(told)} more")
        return "; ".join(told)

    def table(self, spec: StudySpec, most: int | None = None, width: int | None = None) -> Table:
        """One row per trial.

        Args:
            most: not more rows than this.
            width: each trial is one line of so many characters, without attempt and worker, and its
                parameters are cut off; None: they may need several lines.
        """
        from rich.table import Table  # slow to import, and seldom needed
        from rich.text import Text

        told = any(trial.last is not None for trial in self.trials)
        names = ["running trial", "for"]
        if told:
            names += ["step", f"last {spec.metrics[0]}", "per step", "left"]
        if width is None:
            names += ["attempt", "worker"]

        rows: list[list[Text]] = []
        for trial in self.trials[:most]:
            pace = self.pace(spec, trial)
            words = [str(trial.number), span_label(trial.seconds)]
            if told:
                words += [
                    _step(trial, pace),
                    "" if trial.value is None else f"{trial.value:.6g}",
                    "" if pace.step_s is None else _short_span(pace.step_s),
                    _left(pace).removesuffix(" left"),
                ]
            if width is None:
                words += [str(trial.attempt), str(trial.worker_id)]
            rows.append([Text(word) for word in (*words, short_params(spec, trial.params))])

        heads = [Text(value_label(name)) for name in names]
        if width is not None:
            # By hand: rich would take the room from all columns alike.
            columns = zip(heads, *(row[:-1] for row in rows), strict=True)
            taken = sum(max(cell.cell_len for cell in column) + _GAP for column in columns)
            for row in rows:
                row[-1].truncate(max(1, width - taken), overflow="ellipsis")
        table = Table(box=None, pad_edge=False)
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("parameters", no_wrap=width is not None, overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table

    def data(self, spec: StudySpec, number: int) -> dict[str, Any]:
        """What the trial has reported, and its pace, for JSON; empty if it does not run."""
        for trial in self.trials:
            if trial.number == number:
                pace = self.pace(spec, trial)
                return {
                    "seconds": trial.seconds,
                    "step": trial.last,
                    "value": trial.value,
                    "seconds_per_step": pace.step_s,
                    "last_step": pace.last,
                    "seconds_left": pace.left_s,
                }
        return {}


def short_params(spec: StudySpec, params: Mapping[str, JSONValue]) -> str:
    """``batch_size=32 lr=0.00123``: the last part of each name where that is enough, the grid's
    first.
    """
    order = [axis.path for axis in spec.grid] + [searched.path for searched in spec.search]
    paths = [path for path in order if path in params]
    paths += [path for path in params if path not in paths]
    ends = [path.rpartition(".")[2] for path in paths]
    words = []
    for path, end in zip(paths, ends, strict=True):
        name = end if ends.count(end) == 1 else path
        words.append(f"{value_label(name)}={_short(params[path])}")
    return " ".join(words)


def _short(value: JSONValue) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value_label(value)
    return text if len(text) <= _MOST_VALUE else f"{text[: _MOST_VALUE - 1]}…"


def _step(trial: RunningRow, pace: Pace) -> str:
    if trial.last is None:
        return ""
    known = pace.last is not None and not pace.varies and pace.last >= trial.last
    return f"{trial.last}/{pace.last}" if known else str(trial.last)


def _left(pace: Pace) -> str:
    if pace.left_s is None:
        return ""
    return f"{'up to' if pace.varies else 'about'} {span_label(pace.left_s)} left"


def _short_span(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else span_label(seconds)
