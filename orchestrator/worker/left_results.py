"""What an attempt said and how it ended, as its run directory tells: for results that nobody delivered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.logs import logger
from orchestrator.model import Interrupted, JSONValue, Outcome, Param
from orchestrator.runner import ArtifactLogged, AttrSet, ConstraintSet, Message, Reported, journal
from orchestrator.runner.protocol import rundir
from orchestrator.runner.system import facts


@dataclass
class Said:
    """What an attempt reported, set and stored, and nobody has written to the database yet.

    `sent` are the reports that are there; `facts` say of an attempt that ended what it ran on and what it took. `suggested` are
    the parameters that were written as it ran. `anew` is `Contact.anew` when the last of it was written; None of an attempt
    that is known from its run directory, where all is.
    """

    reports: dict[int, float] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    sent: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    suggested: dict[str, tuple[Param, JSONValue]] = field(default_factory=dict)
    anew: int | None = None
    _written: list[dict[str, Any]] = field(default_factory=list)
    _lost: bool = False

    def note(self, message: Message) -> None:
        """The first value of a step and of a constraint counts, an attribute's last."""
        if isinstance(message, Reported):
            self.reports.setdefault(message.step, message.value)
        elif isinstance(message, AttrSet):
            self.attrs[message.key] = message.value
        elif isinstance(message, ConstraintSet):
            self.constraints.setdefault(message.key, message.value)
        elif isinstance(message, ArtifactLogged):
            self.artifacts[message.record.artifact_id] = message.record.to_json()

    @property
    def anything(self) -> bool:
        """Whether there is something to write."""
        return bool(self.reports or self.attrs or self.constraints or self.artifacts)

    @property
    def rows(self) -> dict[str, Any]:
        """It, by the names that the ledger's writes give it."""
        told = {"reports": self.reports, "attrs": self.attrs, "constraints": self.constraints}
        return {**told, "artifacts": self.artifacts}

    def forget(self) -> None:
        """It is written."""
        self.sent |= self.reports
        self._written.append(self.rows)
        self.reports, self.attrs, self.constraints, self.artifacts = {}, {}, {}, {}

    def again(self) -> None:
        """What was written may be lost: all of it is to be written again."""
        for name in ("reports", "attrs", "constraints", "artifacts"):
            known: dict[Any, Any] = {}
            for rows in [*self._written, self.rows]:
                known = {**known, **rows[name]} if name == "attrs" else {**rows[name], **known}
            setattr(self, name, known)
        self._written.clear()
        self._lost = True

    @property
    def lost_suggestions(self) -> list[tuple[Param, JSONValue]]:
        """The parameters that were written, with their true values, if they may be lost."""
        return list(self.suggested.values()) if self._lost else []

    @property
    def curve(self) -> dict[int, float]:
        return {**self.reports, **self.sent}


class LeftResults:
    """Reads the results that attempts left; one that cannot be read is warned of once."""

    def __init__(self) -> None:
        self._unreadable: set[Path] = set()

    def result_in(self, run_dir: Path) -> tuple[Outcome, Said] | None:
        """How the attempt ended and what it said, None if it left no result or was only interrupted."""
        try:
            outcome, said = rundir.read_result(run_dir), journal.read(run_dir)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if run_dir not in self._unreadable:
                logger.warning("%s: the result cannot be read: %s", run_dir, error)
                self._unreadable.add(run_dir)
            return None
        if outcome is None or isinstance(outcome, Interrupted):
            return None
        logger.info("%s holds a result that was not delivered; delivering it", run_dir)
        return outcome, Said(*said, facts=facts.read(run_dir))
