"""What a study takes from the trials of others when it is launched: plain immutable values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.model import Direction, JSONValue, StudySpec, TrialNews


@dataclass(frozen=True)
class SourceStudy:
    """A study that another one is to be warm started from, as the database has it.

    `spec` is None, and `metrics` empty where nobody named them, for a study that plain Optuna made;
    `trials` are the finished ones, by number.
    """

    name: str
    study_id: int
    directions: tuple[Direction, ...]
    metrics: tuple[str, ...]
    spec: StudySpec | None
    trials: tuple[TrialNews, ...]


@dataclass(frozen=True)
class Observation:
    """A trial of another study as this one sees it: the values of those parameters of this study
    that it has, and its result (of a pruned one, its last report).
    """

    number: int
    values: Mapping[str, JSONValue]
    value: float
    pruned: bool = False


@dataclass(frozen=True)
class Prior:
    """What a study takes from another one when it is launched; kept with it, so that it stays the
    same whatever becomes of the source.

    `left_out` counts trials of the source that were not taken, by the reason in words.
    """

    source: str
    study_id: int
    observations: tuple[Observation, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    remark: str = ""
    """What is to be said of the source, such as another metric; empty: nothing."""

    def to_json(self) -> dict[str, JSONValue]:
        data: dict[str, JSONValue] = json.loads(json.dumps(asdict(self)))
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Prior:
        return Prior(
            **{**data, "observations": tuple(Observation(**o) for o in data["observations"])}
        )


@dataclass(frozen=True)
class Enqueued:
    """A configuration of another study that this one runs first: its cell, by ordinal, and values
    of searched parameters; the sampler suggests those that the source lacks.
    """

    cell: int
    fixed: Mapping[str, JSONValue]
    source: str
    number: int
