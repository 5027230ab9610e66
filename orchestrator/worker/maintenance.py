"""What each worker (and `launch`) does for the whole fleet: evict silent workers, end studies whose
time is over, tell people what has happened.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError, StoreUnavailableError
from orchestrator.logs import logger

if TYPE_CHECKING:
    from orchestrator.store import Silent, Store
    from orchestrator.worker.notifying import Notifier

SWEEPERS = 8
"""Up to this many workers check the whole fleet every time; more of them take turns."""


STEP_S = 1.0
"""The database's clock has stepped if it ran this much ahead of ours between two readings."""


class Maintenance:
    """Sweeps the fleet at most every `every_s` seconds, and less often the more workers there are.

    All workers together check the fleet about `SWEEPERS` times per `every_s`; each checks its own
    host every time.

    Args:
        every_s: shortest time between two sweeps, seconds.
        notifier: tells what has happened; None: nobody is told.
    """

    def __init__(self, store: Store, every_s: float, notifier: Notifier | None = None) -> None:
        self._store = store
        self._notifier = notifier
        self._every_s = every_s
        self._next = 0.0
        self._next_of_fleet = 0.0
        self._in_contact_since: float | None = None
        self._asleep_s = _slept()
        self._server: datetime | None = None
        self._seen: tuple[datetime, float] | None = None

    def lost_contact(self) -> None:
        """Notes that the database did not answer: no worker counts as silent until contact has
        lasted for a TTL again.
        """
        self._in_contact_since = None

    def sweep(self) -> bool:
        """Evicts silent workers and finishes studies that are over, if a sweep is due; True if it
        was.

        Each sweep checks for dead processes of this host, and the rest of the fleet when it is this
        worker's turn.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        now = time.monotonic()
        asleep_s = _slept()
        # the host slept: leases ran on, renewals did not
        if self._in_contact_since is None or asleep_s - self._asleep_s > 1.0:
            self._in_contact_since, self._seen = now, None
        self._asleep_s = asleep_s
        if now < self._next:
            return False
        self._next = now + self._every_s
        if now < self._next_of_fleet:
            self._evict(self._store.fleet.dead_here())
            return True
        found = self._store.fleet.silent(now - self._in_contact_since)
        fleet = self._store.fleet
        # nobody could renew for a while, or what was renewed may be lost, or leases ran out because
        # the clock that they are judged by jumped
        stepped = self._stepped(fleet.now, now)
        if fleet.read_only or fleet.server != self._server or stepped:
            self._server = fleet.server
            self._in_contact_since = now
            found = [one for one in found if one.dead]
        if not fleet.read_only:
            self._evict(found)
        self._store.ledger.end_studies()
        if self._notifier is not None and not fleet.read_only:  # what is told is noted there
            self._notifier.look()
        turns = max(1.0, self._store.fleet.size / SWEEPERS)
        self._next_of_fleet = now + self._every_s * (
            1.0 if turns == 1.0 else turns * random.uniform(0.5, 1.5)
        )
        return True

    def _stepped(self, server_now: datetime | None, asked_at: float) -> bool:
        """Whether the database's clock stepped forward since it was last read.

        Args:
            server_now: what it says now, read after `asked_at` (monotonic clock).
        """
        before, self._seen = self._seen, None
        if server_now is None:
            return False
        self._seen = server_now, asked_at
        if before is None:
            return False
        # The longest that the time between the two readings can have been.
        passed_s = time.monotonic() - before[1]
        ahead_s = (server_now - before[0]).total_seconds() - passed_s
        if ahead_s <= STEP_S:
            return False
        logger.warning(
            "the database server's clock stepped forward by %.0f s: leases that it makes run out "
            "do not count until every worker has had the time to renew",
            ahead_s,
        )
        return True

    def _evict(self, found: Iterable[Silent]) -> None:
        for silent in found:
            try:
                evicted = self._store.ledger.evict(silent)
            except StoreUnavailableError:
                raise
            except OrchestratorError as error:
                # one that cannot be removed must not keep the others in
                logger.error("worker %d cannot be evicted: %s", silent.worker_id, error)
                continue
            if evicted:
                logger.warning(
                    "worker %d is gone: %s; other workers can take up its trial",
                    silent.worker_id,
                    silent.reason,
                )


def _slept() -> float:
    """How long this host has been suspended since it booted, seconds: what the monotonic clock
    leaves out.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if boot is None else time.clock_gettime(boot) - time.monotonic()
