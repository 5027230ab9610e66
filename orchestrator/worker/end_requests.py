"""Passes on what a worker was told about ending to the child that it runs."""

from __future__ import annotations

import time

from orchestrator.runner import EndRequest, Running
from orchestrator.worker.contact import Contact
from orchestrator.worker.shutdown import Drain, Draining


class EndRequests:
    """What a worker was told about its end, and about that of what it runs.

    Args:
        drain_s: how long a child may go on after it was asked to stop, seconds.
    """

    def __init__(self, draining: Draining, contact: Contact, drain_s: float) -> None:
        self._draining = draining
        self._contact = contact
        self._drain_s = drain_s

    def now(self) -> EndRequest:
        """What was asked so far, as `Runner.start` takes it."""
        if self._draining.how >= Drain.STOP or self._contact.halted_at is not None:
            return EndRequest.STOP
        return EndRequest.NONE if self._draining.how == Drain.NO else EndRequest.LEAVE

    def pass_on(self, running: Running) -> None:
        """Passes a request to end on to the child, and ends the child when its time is up."""
        draining = self._draining
        requests = (
            [(draining.since, "the worker was told to end")] if draining.how >= Drain.STOP else []
        )
        if self._contact.halted_at is not None:
            requests.append((self._contact.halted_at, "the study was paused or stopped"))
        if not requests:
            return
        since, reason = min(requests)
        running.ask_to_stop()
        if draining.how == Drain.NOW or time.monotonic() - since >= self._drain_s:
            self._contact.meanwhile(lambda: running.terminate(reason))
