"""What a running attempt sends to the worker: reports, and questions that it waits on."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.model import JSONValue
from orchestrator.runner.child.study import ABOUT
from orchestrator.runner.child.suggestions import KINDS
from orchestrator.runner.files.artifacts import ArtifactRecord
from orchestrator.runner.protocol.channel import Line
from orchestrator.runner.protocol.values import as_constraint, as_json, as_key, as_number, as_step


class EndRequest(enum.IntEnum):
    """What the worker's process has been asked to do about its own end.

    Later values are more urgent.
    """

    NONE = 0
    LEAVE = 1  # to end after the running attempt
    STOP = 2  # to end the running attempt as well


@dataclass(frozen=True)
class Reported:
    """The objective called ``trial.report(value, step)``; `value` may be NaN or infinite."""

    step: int
    value: float


@dataclass(frozen=True)
class PruneQuestion:
    """The objective waits in ``trial.should_prune()`` for `Running.answer_prune`.

    `step` is the highest one that it reported, None if it reported nothing.
    """

    step: int | None


@dataclass(frozen=True)
class AttrSet:
    """The objective called ``trial.set_user_attr(key, value)``; `value` is plain JSON data."""

    key: str
    value: JSONValue


@dataclass(frozen=True)
class ConstraintSet:
    """The objective called ``trial.set_constraint(key, value)``, once per key.

    `value` is finite.
    """

    key: str
    value: float


@dataclass(frozen=True)
class ArtifactLogged:
    """The objective called ``trial.log_artifact(…)``, and the file is stored."""

    record: ArtifactRecord


@dataclass(frozen=True)
class SuggestQuestion:
    """The objective waits in ``trial.suggest_*`` for `Running.answer_suggest`.

    `arguments` are those of the call, as plain data. `fixed` holds the value that the study's
    ``params`` give the name in this trial, if they do.
    """

    name: str
    kind: str
    arguments: Mapping[str, JSONValue]
    fixed: tuple[JSONValue, ...] = ()


@dataclass(frozen=True)
class StudyQuestion:
    """The objective waits for `Running.answer_study`; `about` is one of `ABOUT`."""

    about: str


Message: TypeAlias = (
    Reported
    | PruneQuestion
    | AttrSet
    | ConstraintSet
    | ArtifactLogged
    | SuggestQuestion
    | StudyQuestion
)


def message_from(line: Line) -> Message | None:
    """The message in a line that the child sent; None if the line is of another kind.

    User code shares the child's process and could write to its socket, so every value is checked.

    Raises:
        KeyError, TypeError, ValueError: The line is malformed.
    """
    if "report" in line:
        step, value = line["report"]
        return Reported(as_step(step), as_number(value))
    if "prune" in line:
        step = line["prune"]
        return PruneQuestion(None if step is None else as_step(step))
    if "attr" in line:
        key, value = line["attr"]
        return AttrSet(as_key(key), as_json(value))
    if "constraint" in line:
        return ConstraintSet(*as_constraint(*line["constraint"]))
    if "artifact" in line:
        return ArtifactLogged(ArtifactRecord.from_json(line["artifact"]))
    if "suggest" in line:
        name, kind, arguments = line["suggest"]
        if not isinstance(name, str) or kind not in KINDS or not isinstance(arguments, dict):
            raise ValueError(kind)
        return SuggestQuestion(name, kind, arguments, tuple(line.get("fixed", ())))
    if "study" in line:
        if line["study"] not in ABOUT:
            raise ValueError(line["study"])
        return StudyQuestion(line["study"])
    return None
