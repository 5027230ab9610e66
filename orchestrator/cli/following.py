"""Announces that a launch follows its study, says what it waits for at the beginning, and warns
when no worker serves the study.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.cli.running import Running
from orchestrator.cli.screen import View
from orchestrator.errors import OrchestratorError
from orchestrator.model import count_label, span_label

if TYPE_CHECKING:
    from orchestrator.store import Progress, Reading, Relaunching, Servers, StudyRow, WorkerRow

FOLLOWED_S: Final = 30.0
"""Time without a sign of life after which a launch counts as gone."""
_SIGN_EVERY_S: Final = 10.0
_CHECK_EVERY_S: Final = 1.0
_START_S: Final = 30.0  # for this launch's own workers to register
_MOST_REASONS: Final = 3


class Following:
    """One launch that follows one study; `row` may be replaced if the study is launched again, and
    `store` by another way to the same database.

    Args:
        probes: whether the study has probes.
    """

    def __init__(
        self, call: Call, store: Relaunching, row: StudyRow, view: View, *, probes: bool = False
    ) -> None:
        self._call = call
        self._probes = probes
        self.store = store
        self.row = row
        self._view = view
        self._sign_at = 0.0
        self._check_at = 0.0
        self._workers_by = time.monotonic() + _START_S
        self._problem: str | None = None
        self._began = False

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Marks the study as followed, for as long as the block lasts.

        Raises:
            StoreUnavailableError: the database does not answer at the beginning.
        """
        self._give_sign()
        try:
            yield
        finally:
            with suppress(OrchestratorError):  # the mark expires by itself
                self.store.studies.follow(self.row.study_id, 0.0)

    def check(self, progress: Progress | None, own: Collection[int] = ()) -> None:
        """Renews the mark, and prints a warning when the study stalls; cheap to call often.

        Args:
            progress: what was just read, None if nothing was.
            own: process ids of this launch's own workers, which take a moment to register.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        now = time.monotonic()
        if now >= self._sign_at:
            self._give_sign()
        if progress is None or now < self._check_at:
            return
        self._check_at = now + _CHECK_EVERY_S

        problem = None
        if progress.study.state == "ACTIVE" and not progress.running:
            servers = self.store.reads.servers([self.row.study_id])[self.row.study_id]
            problem = unserved(self._call, self.row.name, servers)
            if problem is not None and now < self._workers_by and not self._registered(own):
                return
        if problem != self._problem:
            self._view.say(problem or f"study {self.row.name} is served again")
            self._problem = problem

    def waits_for(self, progress: Progress, own: Collection[int]) -> str | None:
        """What this launch's own workers do until its first trial runs, in one line.

        None after that, and if it has no workers.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        self._began = self._began or bool(progress.running or progress.spent_since)
        if self._began or progress.study.state != "ACTIVE" or not own:
            return None
        here = self._own(own)
        starting = len(own) - len(here)
        queued = sum(worker.doing.startswith("waiting for a device") for worker in here)
        measuring = 0
        if self._probes:
            measuring = sum(one.held for one in self.store.measured.of(self.row.study_id))
        importing = max(0, len(here) - queued - measuring)
        parts = [
            f"{count_label(count, 'worker')} {what}"
            for count, what in (
                (starting, "starting"),
                (queued, "waiting for a device"),
                (min(measuring, len(here)), "measuring a probe"),
                (importing, "importing the objective and choosing parameters"),
            )
            if count
        ]
        return f"waiting for the first trial: {', '.join(parts)}"

    def _registered(self, own: Collection[int]) -> bool:
        return len(self._own(own)) == len(own)

    def _own(self, own: Collection[int]) -> list[WorkerRow]:
        """Those of this launch's own workers that have registered."""
        host = socket.gethostname()
        return [w for w in self.store.reads.workers() if w.host == host and w.pid in own]

    def _give_sign(self) -> None:
        self.store.studies.follow(self.row.study_id, FOLLOWED_S)
        self._sign_at = time.monotonic() + _SIGN_EVERY_S


def read_running(store: Reading, study_id: int) -> Running:
    """The trials of the study that run now, with what they have reported.

    Raises:
        StoreUnavailableError: the database does not answer.
    """
    trials = store.watch.running(study_id)
    told = any(trial.last is not None for trial in trials)
    return Running(trials, store.watch.last_steps(study_id) if told else ())


def unserved(call: Call, study: str, servers: Servers) -> str | None:
    """Why no living worker serves the study, in one line; None if one may."""
    if servers.able:
        return None
    if servers.refusals:
        reasons = [
            f"{count_label(count, 'worker')}: {why}"
            for why, count in servers.refusals[:_MOST_REASONS]
        ]
        more = len(servers.refusals) - len(reasons)
        if more:
            reasons.append(f"and {count_label(more, 'other reason')}")
        return f"no worker can serve study {study}: {'; '.join(reasons)}"

    why = "no worker is running"
    if servers.elsewhere:
        serve = "serves" if servers.elsewhere == 1 else "serve"
        elsewhere = count_label(servers.elsewhere, "worker")
        why = f"{elsewhere} {serve} only other studies (worker.studies)"
    start = hints.command(call, "worker")
    return f"no worker serves study {study}: {why}; start one with: {start}"


def unfollowed(call: Call, row: StudyRow) -> str | None:
    """A note that an active study runs without a launch that follows it, and how to end it.

    None for any other study.
    """
    if row.followed or row.state != "ACTIVE":
        return None
    stop = hints.command(call, "stop", f"study.name={row.name}")
    return f"no launch follows it; launched {span_label(row.launched_s)} ago; '{stop}' ends it"
