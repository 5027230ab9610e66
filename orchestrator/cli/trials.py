"""The command `trials`: a study's trials as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, cast

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from orchestrator.cli import screen
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import (
    Axis,
    JSONValue,
    StudySpec,
    cell_label,
    count_label,
    same_value,
    span_label,
    value_label,
)
from orchestrator.store import STATES, Selection, SortKey

if TYPE_CHECKING:
    from orchestrator.store import ListedTrial, Reading, StudyRow

_MOST: Final = 20
_SORTS: Final = ("value", "number", "seconds", "ended")
_ORDER: Final = {
    ("value", False): "the best first",
    ("value", True): "the worst first",
    ("number", False): "the lowest number first",
    ("number", True): "the highest number first",
    ("seconds", False): "the shortest first",
    ("seconds", True): "the longest first",
    ("ended", False): "the earliest to end first",
    ("ended", True): "the latest to end first",
}
_LONGEST: Final = 40  # characters of one value in the table
_GAP: Final = 2
_TABLE: Final = 1_000  # trials under one header
_IN_MEMORY: Final = 4 << 20
_KINDS: Final = {
    "oom": "out of memory",
    "timeout": "timed out",
    "lost": "lost with its workers",
    "import": "import failed",
    "value": "unusable value",
    "budget": "study ended",
    "device": "fits no device",
}
_CODE = re.compile(r"\b(SIG[A-Z0-9]+|(?:exit )?code \d+)\b")
_EXCEPTION = re.compile(r"(?:\w+\.)*(\w+)(?=:|$)")


def run(call: Call) -> int:
    """The best trials of a study, or those that `state=` and `cell=` select, as `sort=` says."""
    if {"--json", "--csv"} <= call.switches:
        raise ConfigError("only one of --json and --csv can be given")
    states, (sort, reverse) = _states(call), _sort(call)
    most = _most(call)
    with call.reading() as store:
        row = study_of(call, store)
        spec = store.reads.spec(row.study_id)
        selection = Selection(spec.directions, states, _cells(call, spec), sort, reverse, (), most)
        counts = store.listing.counts(row.study_id, selection.cells)
        if sort == "value" and len(spec.directions) > 1 and "complete" in states:
            outcomes = store.listing.outcomes(row.study_id, selection.cells)
            selection = replace(selection, front=tuple(pareto_front(spec, outcomes)))
        with _spooled() as output:
            if call.json:
                _write_json(output, store, row, spec, selection, counts)
            elif "--csv" in call.switches:
                _write_csv(output, store, row, spec, selection)
            else:
                _write_table(output, store, row, spec, selection, counts)
    if "--csv" in call.switches and not _matching(selection, counts):
        print(_nothing(row, spec, selection, counts), file=sys.stderr)
    return 0


# ------------------------------------------------------------------------------ the command's words


def _states(call: Call) -> tuple[str, ...]:
    text = call.words.get("state", "complete")
    if text == "all":
        return tuple(STATES)
    words = text.split(",")
    for word in words:
        if word not in STATES:
            raise ConfigError(
                f"state={text}: must be all, or some of {', '.join(STATES)}"
                f"{did_you_mean(word, [*STATES, 'all'])}"
            )
    return tuple(state for state in STATES if state in words)


def _sort(call: Call) -> tuple[SortKey, bool]:
    text = call.words.get("sort", "value")
    key = text.removeprefix("-")
    if key not in _SORTS:
        raise ConfigError(
            f"sort={text}: must be one of {', '.join(_SORTS)}, with a - before it for the reverse "
            f"order{did_you_mean(key, _SORTS)}"
        )
    return cast(SortKey, key), text.startswith("-")


def _most(call: Call) -> int | None:
    """How many trials at most; a CSV has all of them unless `n` says otherwise."""
    if call.words.get("n") == "all" or ("n" not in call.words and "--csv" in call.switches):
        return None
    number = call.number("n", or_word="all")
    if number == 0:
        raise ConfigError("n=0: must be at least 1, or all")
    return _MOST if number is None else number


def _cells(call: Call, spec: StudySpec) -> tuple[int, ...] | None:
    """The ordinals of the cells that `cell` names: one by its ordinal, or all that have the given
    values.
    """
    text = call.words.get("cell")
    if text is None:
        return None
    if re.fullmatch(r"\d+", text):
        # beyond the grid are the cells that have been taken from it
        if int(text) >= spec.n_cells and spec.revision == 1:
            cells = count_label(spec.n_cells, "cell")
            raise ConfigError(f"cell={text}: the study has {cells}, numbered from 0")
        return (int(text),)

    chosen = {axis.path: list(range(len(axis.values))) for axis in spec.grid}
    named = {axis.group.lstrip("+"): axis.path for axis in spec.grid if axis.group}
    for word in _split(text):
        name, equals, value = word.partition("=")
        path = named.get(name, name)
        if not equals:
            raise ConfigError(
                f"cell={text}: must be a cell's number or some of its values, as in "
                f"cell={_example(spec)}"
            )
        if path not in chosen:
            guess = did_you_mean(name, chosen)
            axes = ", ".join(chosen) or "none"
            raise ConfigError(f"cell={text}: {name} is not a grid axis{guess}; the axes are {axes}")
        axis = next(axis for axis in spec.grid if axis.path == path)
        chosen[path] = [_index(axis, value, text)]

    # The last axis is the fastest, as in `StudySpec.cells`.
    ordinals = []
    for indices in itertools.product(*chosen.values()):
        ordinal = 0
        for axis, index in zip(spec.grid, indices, strict=True):
            ordinal = ordinal * len(axis.values) + index
        ordinals.append(ordinal)
    return tuple(ordinals)


def _split(text: str) -> list[str]:
    """The parts of `text` between its commas, but for those within quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def _is_one_part(text: str) -> bool:
    return _split(f"{text},") == [text, ""]


def _index(axis: Axis, value: str, text: str) -> int:
    """Which value of the axis is meant: a string may be given without quotes where no other value
    of the axis looks like it.
    """
    typed = _typed(value)
    for index, one in enumerate(axis.values):
        if same_value(one, typed):
            return index
    for index, one in enumerate(axis.values):
        if value in (one, value_label(one)):
            return index
    labels = [value_label(one) for one in axis.values]
    raise ConfigError(
        f"cell={text}: {axis.path} has no value {value}{did_you_mean(value, labels)}; its values "
        f"are {', '.join(labels[:_MOST])}{', …' if len(labels) > _MOST else ''}"
    )


def _typed(value: str) -> JSONValue:
    lowered = value.lower()
    try:
        typed: JSONValue = json.loads(lowered if lowered in ("true", "false", "null") else value)
    except ValueError:
        return value
    return typed


def _example(spec: StudySpec) -> str:
    labels = {axis.path: value_label(axis.values[0]) for axis in spec.grid}
    values = [
        f"{path}={label if _is_one_part(label) else json.dumps(label)}"
        for path, label in labels.items()
    ]
    return ",".join(values) or "0"


# ------------------------------------------------------------------------------- several objectives


def pareto_front(spec: StudySpec, outcomes: Sequence[tuple[int, tuple[float, ...]]]) -> list[int]:
    """The numbers of the trials that no other trial dominates."""
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in spec.directions]
    losses = sorted(
        (tuple(s * v for s, v in zip(signs, values, strict=True)), number)
        for number, values in outcomes
    )
    front: list[tuple[tuple[float, ...], int]] = []
    for loss, number in losses:  # whatever dominates a trial comes before it
        # Of two objectives the last of the front has the least second loss so far.
        rivals = front[-1:] if len(signs) == 2 else front
        if all(
            other == loss or any(a > b for a, b in zip(other, loss, strict=True))
            for other, _ in rivals
        ):
            front.append((loss, number))
    return sorted(number for _, number in front)


# ------------------------------------------------------------------------------------------- output


@contextmanager
def _spooled() -> Iterator[io.TextIOWrapper]:
    """A file whose text goes to standard output at the end.

    Standard output may be a pager or a slow disk, for which no transaction should wait.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
        output = io.TextIOWrapper(cast(io.BytesIO, spool), encoding="utf-8", newline="")
        yield output
        output.flush()
        spool.seek(0)
        sys.stdout.flush()
        shutil.copyfileobj(spool, sys.stdout.buffer)
        output.detach()


def _write_json(
    output: io.TextIOWrapper,
    store: Reading,
    row: StudyRow,
    spec: StudySpec,
    selection: Selection,
    counts: dict[str, int],
) -> None:
    """One trial per line, so that no more than a few have to be held in memory."""
    front = set(selection.front)
    head = {"study": row.name, "matching": _matching(selection, counts)}
    output.write(f'{json.dumps(head)[:-1]}, "trials": [')
    comma = "\n"
    for trials in store.listing.each(row.study_id, selection):
        for trial in trials:
            output.write(f"{comma}{_one_line(_data(spec, trial, front))}")
            comma = ",\n"
    output.write("\n]}\n" if comma != "\n" else "]}\n")


def _one_line(data: dict[str, Any]) -> str:
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(screen.as_json(data)))


def _data(spec: StudySpec, trial: ListedTrial, front: set[int]) -> dict[str, Any]:
    values = dict(zip(spec.metrics, trial.values or (), strict=False))
    return {
        "trial": trial.number,
        "state": trial.state,
        "values": values,
        "params": trial.params,
        "cell": trial.cell,
        "attempts": trial.attempts,
        "seconds": trial.seconds,
        "ended": _ended(trial),
        "host": trial.host,
        "feasible": trial.feasible,
        "step": trial.step,
        "last": trial.last,
        "failure": trial.failure,
        "revision": trial.revision,
        **({"front": trial.number in front} if front else {}),
    }


def _ended(trial: ListedTrial) -> str | None:
    return None if trial.ended is None else trial.ended.astimezone(UTC).isoformat()


def _write_csv(
    output: io.TextIOWrapper, store: Reading, row: StudyRow, spec: StudySpec, selection: Selection
) -> None:
    """RFC 4180 with a header: one column per objective and per parameter that any trial has."""
    declared = [*(axis.path for axis in spec.grid), *(searched.path for searched in spec.search)]
    present = store.listing.parameters(row.study_id, selection)
    names = [*declared, *(name for name in present if name not in declared)]
    last = (
        "seconds",
        "ended",
        "attempts",
        "host",
        "feasible",
        "step",
        "last",
        "failure",
        "revision",
    )
    writer = csv.writer(output)
    writer.writerow(
        [
            *("trial", "state", "cell"),
            *(f"values.{metric}" for metric in spec.metrics),
            *(f"params.{name}" for name in names),
            *last,
        ]
    )
    none = [None] * len(spec.metrics)
    for trials in store.listing.each(row.study_id, selection):
        writer.writerows(
            [
                *(trial.number, trial.state, trial.cell),
                *(trial.values or none),
                *(_field(trial.params[n]) if n in trial.params else None for n in names),
                *(trial.seconds, _ended(trial), trial.attempts, trial.host),
                *(
                    "true" if trial.feasible else "false",
                    trial.step,
                    trial.last,
                    trial.failure,
                    trial.revision,
                ),
            ]
            for trial in trials
        )


def _field(value: JSONValue) -> str | float:
    """A value in a CSV: strings and numbers as they are, all others as JSON."""
    if isinstance(value, (str, float)) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, separators=(",", ":"))


def _write_table(
    output: io.TextIOWrapper,
    store: Reading,
    row: StudyRow,
    spec: StudySpec,
    selection: Selection,
    counts: dict[str, int],
) -> None:
    terminal = Console()
    room = terminal.width if terminal.is_terminal else None
    matching = _matching(selection, counts)
    if not matching:
        output.write(f"{_nothing(row, spec, selection, counts)}\n")
        return
    shown = matching if selection.most is None else min(selection.most, matching)
    of_all = f"{shown} of " if shown < matching else ""
    what = count_label(matching, " ".join(filter(None, [_adjective(selection), "trial"])))
    output.write(f"{row.name}: {of_all}{what}, {_order(selection)}\n")
    for trials in _joined(store.listing.each(row.study_id, selection)):
        header, lines, left_out = _lines(spec, selection, trials, room)
        Console(
            file=output, width=len(header), force_terminal=terminal.is_terminal, highlight=False
        ).print(Text(header, style="bold"), soft_wrap=True)
        output.writelines(f"{line}\n" for line in lines)
        if left_out:
            output.write(
                f"no room for {', '.join(left_out)}: --csv and --json show every parameter\n"
            )
    if shown < matching:
        output.write("n=all shows all of them\n")


def _joined(lists: Iterable[list[ListedTrial]]) -> Iterator[list[ListedTrial]]:
    """The trials of `lists` in few lists, of at most `_TABLE` trials or as they are."""
    joined: list[ListedTrial] = []
    for trials in lists:
        if joined and len(joined) + len(trials) > _TABLE:
            yield joined
            joined = []
        joined = [*joined, *trials]
    if joined:
        yield joined


def _order(selection: Selection) -> str:
    """Trials that are not complete have no value, and are sorted by their numbers instead."""
    without_values = selection.sort == "value" and "complete" not in selection.states
    return _ORDER["number" if without_values else selection.sort, selection.reverse]


def _matching(selection: Selection, counts: dict[str, int]) -> int:
    return sum(counts[state] for state in selection.states)


def _adjective(selection: Selection) -> str:
    return "" if len(selection.states) == len(STATES) else " or ".join(selection.states)


def _nothing(row: StudyRow, spec: StudySpec, selection: Selection, counts: dict[str, int]) -> str:
    """Says in a sentence that no trial was selected, and what trials there are."""
    where = f"study {row.name}"
    if selection.cells is not None and len(selection.cells) == 1:
        values = next(itertools.islice(spec.cells(), selection.cells[0], None), None)
        label = selection.cells[0] if values is None else cell_label(values)
        where = f"cell {label} of {where}"
    elif selection.cells is not None:
        where = f"these {len(selection.cells)} cells of {where}"
    has = "have" if selection.cells is not None and len(selection.cells) != 1 else "has"
    others = [f"{count} {state}" for state, count in counts.items() if count]
    if not others:
        return f"{where} {has} no trial yet"
    adjective = _adjective(selection)
    are, them = ("is", "it") if sum(counts.values()) == 1 else ("are", "them")
    return (
        f"{where} {has} no {adjective} trial{' yet' if adjective == 'complete' else ''}: there "
        f"{are} {', '.join(others)} (state=all shows {them})"
    )


def _lines(
    spec: StudySpec, selection: Selection, trials: Sequence[ListedTrial], room: int | None
) -> tuple[str, list[str], list[str]]:
    """The header of the table, its lines, and the parameters for which there was no room."""
    front = set(selection.front)
    columns: list[tuple[str, list[str]]] = [("trial", [str(t.number) for t in trials])]
    if len(selection.states) > 1:
        columns.append(("state", [t.state for t in trials]))
    if "complete" in selection.states:
        columns += [
            (
                value_label(metric),
                ["" if t.values is None else f"{t.values[k]:.6g}" for t in trials],
            )
            for k, metric in enumerate(spec.metrics)
        ]
    columns.append(("took", ["" if t.seconds is None else span_label(t.seconds) for t in trials]))
    remarks = [_remark(trial, front) for trial in trials]
    last = [("", remarks)] if any(remarks) else []

    names = dict.fromkeys(
        [*(axis.path for axis in spec.grid), *(searched.path for searched in spec.search)]
    )
    names |= dict.fromkeys(name for trial in trials for name in trial.params)
    left_out = []
    for name in names:
        column = (value_label(name), [_shown(trial, name) for trial in trials])
        if room is not None and _width([*columns, column, *last]) > room:
            left_out.append(name)
        else:
            columns.append(column)
    columns += last

    aligned = []
    for name, cells in columns:
        right = bool(name) and all(map(_NUMBER.fullmatch, cells))
        width = max(map(_len, (name, *cells)))
        padding = [" " * (width - _len(cell)) for cell in (name, *cells)]
        texts = zip(padding, (name, *cells), strict=True)
        aligned.append([pad + cell if right else cell + pad for pad, cell in texts])
    header, *lines = [(" " * _GAP).join(line).rstrip() for line in zip(*aligned, strict=True)]
    return header, lines, left_out


_NUMBER = re.compile(r"([-+]?[\d.]+(e[-+]?\d+)?|[-+]?inf|nan|\d+ (s|min|h|d))?")


def _width(columns: Sequence[tuple[str, list[str]]]) -> int:
    widths = (max(map(_len, (name, *cells))) for name, cells in columns)
    return sum(widths) + _GAP * (len(columns) - 1)


def _len(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return len(text) if text.isascii() else cell_len(text)


def _shown(trial: ListedTrial, name: str) -> str:
    if name not in trial.params:
        return ""
    value = trial.params[name]
    text = _number(value) if isinstance(value, float) else value_label(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _remark(trial: ListedTrial, front: set[int]) -> str:
    """What else there is to know of the trial, in a few words."""
    notes = []
    if trial.state == "failed":
        notes.append(short_failure(trial))
    if trial.state == "waiting":
        notes.append("waits for a worker")
    if trial.step is not None and trial.last is not None:
        notes.append(f"step {trial.step}: {_number(trial.last)}")
    elif trial.state == "running":
        notes.append("nothing reported yet")
    if trial.number in front:
        notes.append("Pareto front")
    if trial.state == "complete" and not trial.feasible:
        notes.append("breaks a constraint")
    if trial.attempts > 1:
        notes.append(count_label(trial.attempts, "attempt"))
    return ", ".join(notes)


def short_failure(trial: ListedTrial) -> str:
    """Why the trial failed, in a word or two: ``ValueError``, ``out of memory``, ``SIGSEGV``."""
    line = (trial.failure or "unknown").partition("\n")[0]
    if trial.kind in _KINDS:
        return _KINDS[trial.kind]
    pattern = _EXCEPTION.match(line) if trial.kind == "exception" else _CODE.search(line)
    if pattern is not None:
        return pattern[1]
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
