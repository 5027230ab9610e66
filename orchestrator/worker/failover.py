"""Notices that a different database answers: a promoted standby, a backup, a copy that lacks the
last seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.errors import StoreUnavailableError

if TYPE_CHECKING:
    from orchestrator.store import Store, TimeLine


class Failover:
    """Compares the server that answers with the one before.

    A database can go back in time only if its server was restarted or replaced, and each start has
    its own time. Most restarts lose nothing; `note` says why something may be lost.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._server: datetime | None = None
        self._line: TimeLine | None = None
        self._behind = False
        self._unread = False

    def changed(self, server: datetime) -> bool:
        """Whether this server, or its start, differs from the last one noted."""
        return self._server is not None and server != self._server

    def note(self, server: datetime, *, behind: bool = False) -> str | None:
        """Notes which server answers; returns why it may have lost what was written before, None if
        there is no sign of that.

        Args:
            server: when it started.
            behind: its state was seen to be older than before.
        """
        behind = behind or self._behind
        if server == self._server and not behind and not self._unread:
            return None
        before, self._server = self._line, server
        try:
            self._line = self._store.reads.time_line() or before
        except StoreUnavailableError:  # it went away again: the next note asks
            self._behind, self._unread = behind, True
            return None
        self._behind, self._unread = False, False
        if before is None or self._line is None or self._line == before:
            what = "its state is older than before" if behind else None
        elif self._line.system != before.system:
            what = "it is a different cluster"
        else:
            what = (
                f"timeline {before.timeline} became {self._line.timeline}: a standby was "
                "promoted, or a backup restored"
            )
        return (
            None
            if what is None
            else f"the database went back in time ({what}); what it has lost is written again"
        )
