"""What any worker (and `launch`) does for all of them: remove the silent, end studies whose time is over."""

from __future__ import annotations

import random
import time

from orchestrator.errors import OrchestratorError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.store import Store

_SWEEPERS = 4  # so many sweep every `every_s`, of many more workers each time others
_AT_MOST_S = 5.0


class Maintenance:
    """Sweeps the fleet every `every_s` seconds, with more than four workers less often each: together they sweep often enough.

    Args:
        every_s: shortest time between two sweeps, seconds.
        at_most_s: longest time, however many workers there are.
    """

    def __init__(self, store: Store, every_s: float, at_most_s: float = _AT_MOST_S) -> None:
        self._store = store
        self._every_s = every_s
        self._at_most_s = max(every_s, at_most_s)
        self._next = 0.0
        self._in_contact_since: float | None = None
        self._asleep_s = _slept()

    def lost_contact(self) -> None:
        """Tells that the database did not answer: nobody is judged silent until contact has lasted for a TTL again."""
        self._in_contact_since = None

    def sweep(self) -> bool:
        """Evicts workers that fell silent and finishes studies that are over, if it is time to look again; True if it was.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        now = time.monotonic()
        asleep_s = _slept()
        if self._in_contact_since is None or asleep_s - self._asleep_s > 1.0:  # the host slept: leases ran on, renewals did not
            self._in_contact_since = now
        self._asleep_s = asleep_s
        if now < self._next:
            return False
        silent_ones, active = self._store.fleet.silent(now - self._in_contact_since)
        self._next = now + min(self._at_most_s, self._every_s * max(1.0, active / _SWEEPERS * random.uniform(0.75, 1.25)))
        for silent in silent_ones:
            try:
                evicted = self._store.ledger.evict(silent)
            except StoreUnavailableError:
                raise
            except OrchestratorError as error:  # one that cannot be removed must not keep the others in
                logger.error("worker %d cannot be evicted: %s", silent.worker_id, error)
                continue
            if evicted:
                logger.warning("worker %d is gone: %s; its trial is open to others", silent.worker_id, silent.reason)
        self._store.ledger.end_studies()
        return True


def _slept() -> float:
    """How long this host has been suspended since it booted, seconds: what the monotonic clock leaves out."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if boot is None else time.clock_gettime(boot) - time.monotonic()
