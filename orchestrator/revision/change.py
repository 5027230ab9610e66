"""A difference between two declarations of a study, and what makes the one into the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.model import JSONValue, Param, StudySpec


@dataclass(frozen=True)
class Change:
    """One difference between a study and the declaration that is launched now.

    `what` is the setting, `there` and `here` its value in the study and in the declaration, in
    words. `refusal` says why the study cannot be changed so; None: it can.
    """

    what: str
    there: str
    here: str
    refusal: str | None = None

    @property
    def difference(self) -> str:
        """``grid data.batch_size ([32,64] there, [32,128] here)``."""
        return f"{self.what} ({self.there} there, {self.here} here)"

    def __str__(self) -> str:
        return f"{self.what}: {self.there} -> {self.here}"


@dataclass(frozen=True)
class Extension:
    """The next revision of a study.

    `distributions` has, by name, the distribution that trials so far have and the one that they get
    (JSON), where the two differ; what they mean by their internal values is the same in both.
    `added` are the parameters that trials so far lack, with the true value that they get.
    """

    spec: StudySpec
    changes: tuple[str, ...]
    distributions: Mapping[str, tuple[str, str]]
    added: tuple[tuple[Param, JSONValue], ...]


Extend: TypeAlias = Callable[[StudySpec, StudySpec], Extension]
"""Makes the extension of a study (first) by a declaration in the form of `continued`; raises
`ConfigError` if it cannot be extended so, naming every difference that is in the way.
"""
