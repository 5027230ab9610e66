"""What a launch would do to a study that is there already, for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cli.call import Call
from orchestrator.cli.waiting import waiting
from orchestrator.errors import (
    ConfigError,
    OrchestratorError,
    SchemaOutdatedError,
    StudyFailedError,
)
from orchestrator.model import count_label

if TYPE_CHECKING:
    from orchestrator.store import Launched, Relaunching, Store


@dataclass(frozen=True)
class Foreseen:
    """What a launch would do to `subject`, ``study digits``: `launched`, None if there is nothing
    of that name yet, or if the database was not asked, as `unasked` then says.
    """

    subject: str
    launched: Launched | None = None
    unasked: str | None = None

    def lines(self) -> list[str]:
        """For people."""
        if self.unasked is not None:
            return [f"the database was not asked what it has of this name: {self.unasked}"]
        launched = self.launched
        if launched is None:
            return [f"{self.subject} is new"]
        trials = count_label(launched.added, "trial")
        if launched.created:
            text = f"{self.subject} would begin: {trials}"
        elif launched.open_tickets:
            more = f"{trials} would be added, " if launched.added > 0 else ""
            text = f"{self.subject} is there: {more}{launched.open_tickets} left to run"
        else:
            text = f"{self.subject} is there; nothing would be added: {launched.reason}"
        return [text, *(f"  would change {change}" for change in launched.changes)]

    def data(self) -> dict[str, Any]:
        """For JSON."""
        launched = self.launched
        asked = self.unasked is None
        return {
            "asked": asked,
            "subject": self.subject,
            "exists": launched is not None and not launched.created if asked else None,
            "added": None if launched is None else launched.added,
            "left": None if launched is None else launched.open_tickets,
            "changes": [] if launched is None else list(launched.changes),
        }


def foreseen(
    call: Call,
    subject: str,
    names: Sequence[str],
    launch: Callable[[Relaunching, Callable[[], Store]], tuple[str, Launched]],
) -> Foreseen:
    """Tries the launch in a transaction that is rolled back, if the database has anything under one
    of the names. Starts no server, and creates no tables.

    Args:
        launch: launches in the database that it is given; returns what, and what became of it.

    Raises:
        ConfigError, SchemaOutdatedError, StudyFailedError: the launch would be refused, so.
    """
    try:
        with waiting("asking the database"), call.relaunching() as opened:
            if opened is None:
                return Foreseen(subject, unasked=_why_unasked(call))
            store, whole = opened
            if not _has_any(store, names):
                return Foreseen(subject)
            return Foreseen(*launch(store.rehearsal(), whole))
    except (ConfigError, SchemaOutdatedError, StudyFailedError):
        raise
    except OrchestratorError as error:  # it is not there, or this role may not launch
        return Foreseen(subject, unasked=str(error))


def _has_any(store: Relaunching, names: Sequence[str]) -> bool:
    return (
        bool(store.reads.studies(names))
        or not {*store.chains.names()}.isdisjoint(names)
        or not {study.name for study in store.plain_studies.all()}.isdisjoint(names)
    )


def _why_unasked(call: Call) -> str:
    storage = call.host.storage
    if storage.kind == "embedded":
        from orchestrator.store.embedded import server

        assert storage.path is not None
        if not server.running(storage.path):
            return "it is not running, and a dry run does not start it"
    return "a launch would first create or upgrade its tables, or its URL is of an unusual form"
