"""A worker's contact with the database: renews its lease while it waits or trains, and waits out
outages.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from orchestrator.config import WorkerConfig
from orchestrator.errors import ConfigError, LeaseLostError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.worker.failover import Failover
from orchestrator.worker.maintenance import Maintenance
from orchestrator.worker.shutdown import Drain, Draining

if TYPE_CHECKING:
    from orchestrator.store import Attempt, Claim, Probe, Store, WorkerLease
    from orchestrator.worker.notifying import Notifier

T = TypeVar("T")

BRIEF_S = 4.0
"""Between shorter trials the connection is kept."""
_UNUSED_S = 0.3
_KEPT_S = 5.0
# a trial whose worker died is taken up again within its lease and two of these
_SWEEP_EVERY_S = 1.0


class EndRequestedError(Exception):
    """The worker was told to end while it waited."""


class HealthFile:
    """A file for health checks: it exists while the worker is registered, and its time is that of
    the last renewal.

    Args:
        path: of the file, None for none. A file that an earlier worker left is removed.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._failed = False
        if path is not None:
            try:
                path.touch()
                path.unlink()
            except OSError as error:
                raise ConfigError(f"worker.health_file={path}: {error.strerror}") from error

    def touch(self) -> None:
        """Notes a renewal of the lease; if the file cannot be written, that is logged once and ends
        no trial.
        """
        if self._path is None:
            return
        try:
            self._path.touch()
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("worker.health_file=%s: %s", self._path, error.strerror)
            self._failed = True

    def remove(self) -> None:
        """Notes that the worker has no lease."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


class Contact:
    """Everything a worker asks of the database goes through here, so that it waits out an outage of
    any length.

    `halted_at` is when it became known that a person wants the running trial given back, by the
    monotonic clock; None before. `doubted` says that the database does not know of the attempt that
    runs. `server` is when the server started that answered last. `anew` counts how often another
    server, or another start of it, answered: what was read and written before may be lost then.

    Raises:
        ConfigError: `worker.health_file` cannot be written.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        draining: Draining,
        notifier: Notifier | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._draining = draining
        every_s = min(_SWEEP_EVERY_S, settings.heartbeat_s)
        self._maintenance = Maintenance(store, every_s, notifier)
        self._lease: WorkerLease | None = None
        self._next_beat = math.inf  # nothing to renew yet
        self._doing = "starting"
        self._lost = False
        self._health = HealthFile(settings.health_file)
        # until the server has said how many connections are in use
        self._crowded: bool | None = None
        self._failover = Failover(store)
        self._transaction = 0
        self._held: set[int] = set()
        self._brief = False
        self._running: Attempt | None = None
        self._slotted = False
        self.halted_at: float | None = None
        self.doubted = False
        self.server: datetime | None = None
        self.anew = 0

    def hold(self, lease: WorkerLease) -> None:
        """From now on this lease is renewed; nothing is left of what was held under another one."""
        self._lease = lease
        self._held.clear()
        self._running, self.doubted, self._slotted = None, False, False
        self._health.touch()
        # Soon, because a renewal tells how crowded the server is.
        self._next_beat = time.monotonic() + min(1.0, self._settings.heartbeat_s)

    @property
    def lease(self) -> WorkerLease:
        """The worker's lease; there is one while it is registered."""
        assert self._lease is not None
        return self._lease

    def took(self, claim: Claim | Probe) -> None:
        """The worker holds this claim from now on: each renewal names it, and what a renewal does
        not name is given back.
        """
        self._held.add(claim.token)

    def gave(self, claim: Claim | Probe) -> None:
        """The worker is done with the claim, or has lost it."""
        self._held.discard(claim.token)

    @contextmanager
    def runs(self, attempt: Attempt) -> Iterator[None]:
        """Within the block this attempt runs: each renewal asks whether the database knows of it,
        and whether to halt it.
        """
        self._running, self.halted_at = attempt, None
        try:
            yield
        finally:
            self._running = None

    def measures(self) -> None:
        """A probe runs from now on: each renewal asks whether to halt it."""
        self.halted_at = None

    def confirmed(self) -> None:
        """The database knows again of the attempt that runs."""
        self.doubted = False

    def took_slot(self) -> None:
        """The worker holds a device slot: a renewal that finds none has met a database that lost
        it.
        """
        self._slotted = True

    def expect(self, trial_s: float) -> None:
        """Trials take about `trial_s` seconds; between short ones the connection is kept."""
        self._brief = trial_s < BRIEF_S

    @property
    def held(self) -> frozenset[int]:
        """The tokens of the claims that the worker holds."""
        return frozenset(self._held)

    def let_go(self) -> None:
        """The worker gives up its lease, or lost it: it no longer counts as healthy."""
        self._health.remove()

    def say(self, doing: str) -> None:
        """What `status` shows of this worker from the next renewal on."""
        self._doing = doing

    def insist(self, step: Callable[[], T], until: Drain = Drain.STOP) -> T:
        """Calls `step`, and again with growing, jittered pauses while the database does not answer.

        Raises:
            StoreUnavailableError: the worker is to end as urgently as `until`, or should have ended
                after `worker.drain_s`.
        """
        pause_s = 0.2
        while True:
            try:
                answer = step()
                self._answered()
                return answer
            except StoreUnavailableError as error:
                if self._draining.how >= until or self._overdue():
                    raise
                self.lost(error)
                self.wait(pause_s * random.uniform(0.5, 1.5))
                # With longer pauses, those refused at a connection limit would starve.
                pause_s = min(pause_s * 2, 1.0)

    def meanwhile(self, step: Callable[[], T], hurry: Callable[[], None] | None = None) -> T:
        """Calls `step`, which must not use the database, in a thread of its own, and renews the
        lease meanwhile.

        Args:
            hurry: is called once if the worker should have ended by now; it may make `step` end, or
                raise to abandon it.
        """
        answers: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(step())
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(self.until_beat(0.25))
            self.beat()
            self.rest()
            if hurry is not None and (self._draining.how == Drain.NOW or self._overdue()):
                urgent, hurry = hurry, None
                urgent()
        if errors:
            raise errors[0]
        return answers[0]

    def sweep(self) -> bool:
        """Does what each worker does for the whole fleet, if it is due; True if it was.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        return self._maintenance.sweep()

    def lost(self, error: StoreUnavailableError) -> None:
        """Notes that the database did not answer: logs it once, and restarts the database if it is
        ours.
        """
        self._maintenance.lost_contact()
        if self._lease is not None:  # soon, because another server may answer next
            self._next_beat = min(self._next_beat, time.monotonic() + 1.0)
        if not self._lost:
            logger.warning("%s; trying again", error)
            self._lost = True
        self._store.revive()

    def wait(self, seconds: float) -> None:
        """Waits without a connection and renews the lease when due; a request to end cuts the wait
        short.
        """
        self._store.rest()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._draining.woken.wait(
            self.until_beat(left)
        ):
            self.beat()
            self._store.rest()
        self._draining.woken.silence()

    def rest(self) -> None:
        """Closes the connection unless it is used again soon: a new one costs more than the rest of
        a short trial.

        Between short trials it is kept, as long as the server has connections to spare. With few
        left it is closed at once, because a worker that kept it from one short trial to the next
        would make others wait forever.
        """
        if self._crowded:
            self._store.rest()
        else:
            self._store.rest(_KEPT_S if self._brief and self._crowded is False else _UNUSED_S)

    def keep_on(self) -> None:
        """Renews the lease when due, during a wait for something other than the database.

        Raises:
            LeaseLostError: the worker was evicted.
            EndRequestedError: the worker was told to end.
        """
        if self._draining.how != Drain.NO:
            raise EndRequestedError
        self.beat()
        self.rest()

    def until_beat(self, at_most_s: float) -> float:
        """Seconds until the lease is to be renewed, between 0 and `at_most_s`."""
        return max(0.0, min(at_most_s, self._next_beat - time.monotonic()))

    def beat(self) -> None:
        """Renews the lease if it is due; if the database does not answer, tries again soon.

        Raises:
            LeaseLostError: the worker was evicted.
        """
        if time.monotonic() < self._next_beat:
            return
        try:
            self.renew()
            self.sweep()
        except StoreUnavailableError as error:
            self.lost(error)
            self._next_beat = time.monotonic() + self._settings.heartbeat_s / 2

    def renew(self) -> None:
        """Renews the lease now.

        Raises:
            LeaseLostError: the worker was evicted.
            StoreUnavailableError: the database does not answer.
        """
        assert self._lease is not None
        running = None if self._running is None else self._running.token
        renewed = self._store.fleet.renew(
            self._lease, self._doing, holds=self._held, running=running
        )
        self._note_server(renewed.server, renewed.transaction)
        if self._slotted and not renewed.slotted:
            raise LeaseLostError(
                f"the database has lost the device slot of worker {self._lease.worker_id}"
            )
        self.doubted = not renewed.runs
        if renewed.strays:
            back = self._store.ledger.give_back_held(
                self._lease, "its worker does not know of it", but=self._held
            )
            logger.warning(
                "gave back %d trials or probes that the database lists for this worker but that it "
                "does not run",
                back,
            )
        self.halted_at = (self.halted_at or time.monotonic()) if renewed.halted else None
        self._crowded = renewed.crowded
        self._answered()
        self._health.touch()
        self._next_beat = time.monotonic() + self._settings.heartbeat_s * random.uniform(0.8, 1.0)

    def _note_server(self, server: datetime, transaction: int) -> None:
        behind, self._transaction = transaction <= self._transaction, transaction
        changed, self.server = behind or self._failover.changed(server), server
        if (why := self._failover.note(server, behind=behind)) is not None:
            logger.warning("%s", why)
        if changed:
            self.anew += 1

    def _overdue(self) -> bool:
        """Whether the worker was told to end longer ago than `worker.drain_s`."""
        return (
            self._draining.how >= Drain.STOP
            and time.monotonic() - self._draining.since >= self._settings.drain_s
        )

    def _answered(self) -> None:
        if self._lost:
            logger.info("the database is reachable again")
            self._lost = False
