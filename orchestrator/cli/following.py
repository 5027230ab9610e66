"""What a launch does for the study that it follows, besides showing it: others see that it is
followed; a stall is said.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.cli.screen import View
from orchestrator.errors import OrchestratorError
from orchestrator.model import count_label, span_label
from orchestrator.store import Progress, Servers, Store, StudyRow

FOLLOWED_S: Final = 30.0
"""So long after its last sign a launch counts as gone."""
_SIGN_EVERY_S: Final = 10.0
_ASK_EVERY_S: Final = 1.0
_START_S: Final = 30.0
_MOST_REASONS: Final = 3


class Following:
    """Of one launch and its study, whose `row` may become another one."""

    def __init__(self, call: Call, store: Store, row: StudyRow, view: View) -> None:
        self._call = call
        self._store = store
        self.row = row
        self._view = view
        self._sign_at = 0.0
        self._ask_at = 0.0
        self._workers_by = time.monotonic() + _START_S
        self._said: str | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The study is followed from now on to the end of the block.

        Raises:
            StoreUnavailableError: the database does not answer at the beginning.
        """
        self._give_sign()
        try:
            yield
        finally:
            with suppress(OrchestratorError):  # then it is known a little later
                self._store.studies.follow(self.row.study_id, 0.0)

    def look(self, progress: Progress | None, own: Collection[int] = ()) -> None:
        """Call it as often as you like.

        Args:
            progress: what was just read, None if nothing was.
            own: the processes of this launch's own workers, which take a moment to appear among the
                others.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        now = time.monotonic()
        if now >= self._sign_at:
            self._give_sign()
        if progress is None or now < self._ask_at:
            return
        self._ask_at = now + _ASK_EVERY_S
        problem = None
        if progress.study.state == "ACTIVE" and not progress.running:
            servers = self._store.reads.servers([self.row.study_id])[self.row.study_id]
            problem = unserved(self._call, self.row.name, servers)
            if problem is not None and now < self._workers_by and not self._registered(own):
                return
        if problem != self._said:
            self._view.say(problem or f"study {self.row.name} is served again")
            self._said = problem

    def _registered(self, own: Collection[int]) -> bool:
        host = socket.gethostname()
        return set(own) <= {
            worker.pid for worker in self._store.reads.workers() if worker.host == host
        }

    def _give_sign(self) -> None:
        self._store.studies.follow(self.row.study_id, FOLLOWED_S)
        self._sign_at = time.monotonic() + _SIGN_EVERY_S


def unserved(call: Call, study: str, servers: Servers) -> str | None:
    """Why no living worker serves the study, in a line; None if one may."""
    if servers.able:
        return None
    if servers.refusals:
        told = [
            f"{count_label(count, 'worker')}: {why}"
            for why, count in servers.refusals[:_MOST_REASONS]
        ]
        more = len(servers.refusals) - len(told)
        return (
            f"no worker can serve study {study}: "
            f"{'; '.join(told)}{f'; and {more} more reasons' if more else ''}"
        )
    busy = (
        f"{count_label(servers.elsewhere, 'worker')} serve{'s' if servers.elsewhere == 1 else ''} "
        "other studies only"
    )
    there = f"{busy} (worker.studies)" if servers.elsewhere else "there is none"
    return (
        f"no worker serves study {study}: {there}; start one with: {hints.command(call, 'worker')}"
    )


def unfollowed(call: Call, row: StudyRow) -> str | None:
    """That trials of the study go on though no launch shows it, and how to end it; None if one
    does, or nothing goes on.
    """
    if row.followed or row.state != "ACTIVE":
        return None
    stop = hints.command(call, "stop", f"study.name={row.name}")
    return f"no launch follows it; launched {span_label(row.launched_s)} ago; '{stop}' ends it"
