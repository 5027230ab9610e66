"""What any worker (and `launch`) does for all of them: remove the silent, end studies whose time is over."""

from __future__ import annotations

import time

from orchestrator.logs import logger
from orchestrator.store import Store


class Maintenance:
    """Sweeps the fleet at most every `every_s` seconds.

    Args:
        every_s: shortest time between two sweeps, seconds.
    """

    def __init__(self, store: Store, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._next = 0.0
        self._in_contact_since: float | None = None

    def lost_contact(self) -> None:
        """Tells that the database did not answer: nobody is judged silent until contact has lasted for a TTL again."""
        self._in_contact_since = None

    def sweep(self) -> None:
        """Evicts workers that fell silent and finishes studies past their deadline, if it is time to look again.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        now = time.monotonic()
        if self._in_contact_since is None:
            self._in_contact_since = now
        if now < self._next:
            return
        self._next = now + self._every_s
        for worker_id in self._store.fleet.silent(now - self._in_contact_since):
            if self._store.ledger.evict(worker_id, "its process died or fell silent"):
                logger.warning("worker %d died or fell silent; its trial is open to others", worker_id)
        self._store.ledger.end_studies()
