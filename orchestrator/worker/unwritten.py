"""What an attempt reported that is not in the database yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.model import JSONValue, Param, Report
from orchestrator.runner import ArtifactLogged, AttrSet, ConstraintSet, Message, Reported


@dataclass
class Unwritten:
    """What an attempt reported, set and stored that is not in the database yet.

    It also remembers what was written, in case the database loses it: `sent` are the reports that
    are in the database, `suggested` the parameters that were written while the attempt ran. `facts`
    say what an attempt that ended ran on and used. `anew` is `Contact.anew` as of the last write;
    None for an attempt that is read from its run directory, which has everything.
    """

    reports: dict[int, float] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    sent: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    suggested: dict[str, tuple[Param, JSONValue]] = field(default_factory=dict)
    anew: int | None = None
    _written: list[Report] = field(default_factory=list)
    _lost: bool = False

    def note(self, message: Message) -> None:
        """Adds a message; the first value of a step or a constraint counts, and the last value of
        an attribute.
        """
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
    def report(self) -> Report:
        """All of it."""
        return Report(
            dict(self.reports), dict(self.attrs), dict(self.constraints), dict(self.artifacts)
        )

    @property
    def last_report(self) -> Report:
        """All of it, with what is only written at the end."""
        suggested = tuple(self.suggested.values()) if self._lost else ()
        return replace(self.report, suggested=suggested, facts=self.facts)

    def forget(self) -> None:
        """Notes that it was written."""
        self.sent |= self.reports
        self._written.append(self.report)
        self.reports, self.attrs, self.constraints, self.artifacts = {}, {}, {}, {}

    def end(self, facts: dict[str, Any]) -> None:
        """The attempt has ended, with these facts."""
        self.facts = facts

    def again(self, anew: int) -> None:
        """Makes everything unwritten again, because another server answers and may lack it; `anew`
        is `Contact.anew` now.
        """
        self.anew = anew
        for report in reversed(self._written):
            self.reports = {**self.reports, **report.intermediate}
            self.attrs = {**report.attrs, **self.attrs}
            self.constraints = {**self.constraints, **report.constraints}
            self.artifacts = {**self.artifacts, **report.artifacts}
        self._written.clear()
        self._lost = True

    @property
    def curve(self) -> dict[int, float]:
        """Every reported value by step, written or not."""
        return {**self.reports, **self.sent}
