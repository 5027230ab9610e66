"""The tables of a report: cells, the best trials, failures by cause."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from orchestrator import config
from orchestrator.model import Axis, JSONValue, count_label, value_label, visible
from orchestrator.report.subject import Subject, moment
from orchestrator.store import CellRow, TrialRow, likeness

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate

_MOST_CELLS: Final = 100
_MOST_TRIALS: Final = 20
_MOST_FRONT: Final = 50
_MOST_CAUSES: Final = 20
_MOST_COLUMNS: Final = 12


@dataclass(frozen=True)
class Table:
    """Rows of plain values for people; `note` says what is left out.

    `key` names it in JSON, where `data` has a mapping for each row. Columns named in `long` hold
    long text; the one named `typed`, if any, is the last, and holds what one types.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[JSONValue, ...]]
    data: Sequence[Mapping[str, JSONValue]]
    note: str = ""
    long: tuple[str, ...] = ()
    typed: str | None = None


def cell_text(value: JSONValue) -> str:
    """One line of text for an entry of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else value_label(value)
    return visible(" ".join(text.split()))


def typed_text(value: JSONValue) -> str:
    """What one types, to the letter; where not every letter is seen, only that."""
    text = value or ""
    return text if text == visible(text) else "(has characters that are not seen: --json has them)"


def tables(subject: Subject, groups: Collection[str]) -> list[Table]:
    """Those that have rows.

    Args:
        groups: the names of all config groups, for overrides.
    """
    made = [
        _cells(subject),
        _trials(subject, groups),
        _failures(subject),
        _revisions(subject),
        _stages(subject),
        _sources(subject),
    ]
    return [table for table in made if table is not None and table.rows]


def _cells(subject: Subject) -> Table | None:
    axes = [axis.path for axis in subject.spec.grid]
    if not axes:
        return None
    estimates: list[CellEstimate | None] = [*subject.estimates, *[None] * len(subject.removed)]
    rows = sorted(
        zip((*subject.cells, *subject.removed), estimates, strict=True),
        key=lambda row: (
            row[1] is None,
            row[1].rank(maximize=subject.maximize) if row[1] else (),
            row[0].ordinal >= subject.spec.n_cells,
            row[0].best is None,
            (-1.0 if subject.maximize else 1.0) * (row[0].best or 0.0),
            row[0].ordinal,
        ),
    )
    believed = any(estimate is not None for _, estimate in rows)
    names = ["trials", "complete", "pruned", "failed", "best", "of trial"]
    names += ["can reach", "90 % from", "to", "P(best cell)"] if believed else []
    listed = rows[:_MOST_CELLS]
    table = [_cell_line(cell, estimate, axes, believed=believed) for cell, estimate in listed]
    data = [_cell_data(cell, estimate) for cell, estimate in listed]
    more = subject.progress.n_cells - len(table)
    note = (
        f"The cells with the best prospects first; {more:,} more {'is' if more == 1 else 'are'} "
        "not shown."
        if more
        else ""
    )
    columns = _unique([*axes, *names, "remark"])
    return Table("cells", "Cells", columns, table, data, note, long=columns[-1:])


def _cell_line(
    cell: CellRow, estimate: CellEstimate | None, axes: Sequence[str], *, believed: bool
) -> tuple[JSONValue, ...]:
    belief: list[JSONValue] = [None] * 4
    if estimate is not None:
        belief = [estimate.estimate, estimate.low, estimate.high]
        belief.append(round(estimate.probability_best, 3))
    return (
        *(_value(cell.values.get(axis)) for axis in axes),
        f"{cell.spent} of {_share(cell)}{'+' if cell.grows else ''}",
        cell.completed,
        cell.pruned,
        cell.failed,
        cell.best,
        cell.best_trial,
        *(belief if believed else []),
        _remark(cell),
    )


def _cell_data(cell: CellRow, estimate: CellEstimate | None) -> dict[str, JSONValue]:
    return {
        "values": dict(cell.values),
        "trials": cell.spent,
        "share": _share(cell),
        "grows": cell.grows,
        "complete": cell.completed,
        "pruned": cell.pruned,
        "failed": cell.failed,
        "best": cell.best,
        "best_trial": cell.best_trial,
        "estimate": None if estimate is None else estimate.estimate,
        "low": None if estimate is None else estimate.low,
        "high": None if estimate is None else estimate.high,
        "probability_best": None if estimate is None else estimate.probability_best,
        "remark": _remark(cell),
    }


def _share(cell: CellRow) -> int:
    """The trials that the cell is to get, or has had if those are more."""
    return max(cell.share, cell.spent)


def _remark(cell: CellRow) -> str | None:
    if cell.state == "CLOSED":
        return cell.reason or "" if cell.settled else f"closed: {cell.reason}"
    notes = [f"closed for {short.device}: {short.reason}" for short in cell.closed_for]
    if cell.only_pruned:
        notes.insert(0, "no complete trial: they pruned themselves")
    return "; ".join(notes) or None


def _trials(subject: Subject, groups: Collection[str]) -> Table:
    several = len(subject.spec.directions) > 1
    ordered = subject.best_first
    most = min(max(len(subject.front), _MOST_TRIALS), _MOST_FRONT) if several else _MOST_TRIALS
    shown = ordered[:most]
    declared = [axis.path for axis in subject.spec.grid]
    declared += [one.path for one in subject.spec.search]
    names = list(dict.fromkeys([*declared, *(name for trial in shown for name in trial.params)]))
    columns = names[:_MOST_COLUMNS]
    front = set(subject.front) if several else set()
    of_stage: tuple[dict[str, JSONValue], list[Axis]] = ({}, [])
    if subject.chain is not None:
        of_stage = subject.chain.set_by(subject.spec, subject.progress.study.study_id)
    rows, data = [], []
    for trial in shown:
        line: list[JSONValue] = [trial.number, *(trial.values or ())]
        values = dict(zip(subject.spec.metrics, trial.values or (), strict=True))
        record = {"trial": trial.number, "values": values, "params": dict(trial.params)}
        if several:
            line.append("yes" if trial.number in front else None)
            record["on_front"] = trial.number in front
        line += [_value(trial.params[n]) if n in trial.params else None for n in columns]
        if not subject.plain:
            words = config.trial_words(subject.spec, trial.params, groups, *of_stage)
            line.append(None if words is None else " ".join(words))
            record["overrides"] = words
        rows.append(tuple(line))
        data.append(record)
    head = ["trial", *subject.spec.metrics, *(["Pareto front"] if several else []), *columns]
    titles = _unique([*head, *([] if subject.plain else ["overrides"])])
    notes = []
    if subject.leaders is not None and not several:
        notes.append(
            "The first is the one that is believed to be the best; the others by their value."
        )
    if len(ordered) > len(shown):
        notes.append(f"{len(ordered) - len(shown):,} more complete trials are not shown.")
    if len(names) > len(columns):
        notes.append(f"{len(names) - len(columns)} more parameters have no column.")
    typed = None if subject.plain else titles[-1]
    title = "Best trials" if not several else "Trials, those of the Pareto front first"
    return Table("best", title, titles, rows, data, " ".join(notes), typed=typed)


def _failures(subject: Subject) -> Table:
    causes: dict[str, list[TrialRow]] = {}
    for trial in subject.trials:
        if trial.state == "FAIL":
            causes.setdefault(likeness(trial.failure or "unknown"), []).append(trial)
    ordered = sorted(causes.values(), key=lambda alike: (-len(alike), alike[0].number))
    rows = tuple(
        (
            len(alike),
            alike[0].number,
            len({trial.cell for trial in alike}),
            (alike[0].failure or "unknown").partition("\n")[0],
        )
        for alike in ordered[:_MOST_CAUSES]
    )
    more = len(ordered) - len(rows)
    return Table(
        "failures",
        "Failures by cause",
        ("trials", "first trial", "cells", "message of the first"),
        rows,
        _named(("trials", "first_trial", "cells", "message"), rows),
        f"{count_label(more, 'cause')} more." if more else "",
        long=("message of the first",),
    )


def _revisions(subject: Subject) -> Table:
    rows = tuple(
        (one.revision, moment(one.made_at), "; ".join(one.changes)) for one in subject.revisions
    )
    data = [
        {
            "revision": one.revision,
            "made_at": one.made_at.astimezone(UTC).isoformat(timespec="seconds"),
            "changes": list(one.changes),
        }
        for one in subject.revisions
    ]
    columns = ("revision", "made (UTC)", "changes")
    return Table("revisions", "Revisions", columns, rows, data, long=("changes",))


def _stages(subject: Subject) -> Table | None:
    """The chain of which the study is a stage."""
    if subject.chain is None:
        return None
    begun = {stage.ordinal: stage for stage in subject.chain.begun}
    rows: list[tuple[JSONValue, ...]] = []
    data: list[dict[str, JSONValue]] = []
    for ordinal, declared in enumerate(subject.chain.stages):
        total, stage = declared["spec"]["budget"]["trials"], begun.get(ordinal)
        record = {"stage": ordinal + 1, "name": declared["name"], "budget": total}
        if stage is None:
            rows.append(
                (ordinal + 1, declared["name"], None, f"0 of {total}", "not begun", *[None] * 3)
            )
            data.append(
                {
                    **record,
                    "study": None,
                    "trials": 0,
                    "state": "not begun",
                    "reason": None,
                    "best_trial": None,
                    "best": None,
                    "inherited": [],
                }
            )
            continue
        state = f"{stage.state.lower()}{f' ({stage.reason})' if stage.reason else ''}"
        best = subject.inherited.get(stage.study_id)
        if best is None and stage.study_id == subject.progress.study.study_id:
            best = next(iter(subject.best_first), None)
        number = None if best is None else best.number
        value = None if best is None or not best.values else best.values[0]
        inherited = stage.inherited.lines()
        rows.append(
            (
                ordinal + 1,
                stage.name,
                stage.study,
                f"{stage.spent} of {total}",
                state,
                number,
                value,
                "; ".join(inherited) or None,
            )
        )
        data.append(
            {
                **record,
                "study": stage.study,
                "trials": stage.spent,
                "state": stage.state.lower(),
                "reason": stage.reason,
                "best_trial": number,
                "best": value,
                "inherited": list(inherited),
            }
        )
    columns = ("stage", "name", "study", "trials", "state", "best trial", "its value", "inherited")
    return Table(
        "stages",
        f"Stages of {value_label(subject.chain.name)}",
        columns,
        rows,
        data,
        "The best trial of a stage is the one that the next one began with.",
        long=("inherited",),
    )


def _sources(subject: Subject) -> Table:
    """What the study began with from others."""
    rows = tuple(
        (
            prior.source,
            len(prior.observations),
            sum(prior.left_out.values()),
            None if discount is None else round(discount, 2),
            "; ".join(
                [
                    *(f"{n} {why}" for why, n in prior.left_out.items()),
                    *filter(None, [prior.remark]),
                ]
            )
            or None,
        )
        for prior, discount in zip(subject.priors, subject.discounts, strict=True)
    )
    note = (
        "A source counts from 0, not at all, to about 1, as far as it foretells the study's own "
        "trials; empty where that is not known. What this report believes rests on the study's own "
        "trials alone."
    )
    columns = ("study", "trials taken", "left out", "counts", "remark")
    data = [
        {
            "study": prior.source,
            "trials": len(prior.observations),
            "left_out": dict(prior.left_out),
            "counts": discount,
            "remark": prior.remark or None,
        }
        for prior, discount in zip(subject.priors, subject.discounts, strict=True)
    ]
    return Table("warm_starts", "Warm starts", columns, rows, data, note, long=("remark",))


def _named(
    keys: Sequence[str], rows: Iterable[tuple[JSONValue, ...]]
) -> list[dict[str, JSONValue]]:
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _value(value: Any) -> JSONValue:
    """A parameter's value: numbers stay numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return value_label(value)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names of columns, none of them twice: a parameter may be called like a column of ours."""
    used: dict[str, int] = {}
    unique = []
    for name in map(value_label, names):
        used[name] = used.get(name, 0) + 1
        unique.append(name if used[name] == 1 else f"{name} ({used[name]})")
    return tuple(unique)
