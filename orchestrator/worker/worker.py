"""A worker: one process that holds one device slot and runs trials in turn. Read `Worker.run` and
`Worker._run_trial`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import WorkerConfig
from orchestrator.errors import (
    DeviceError,
    LeaseLostError,
    OrchestratorError,
    StoreUnavailableError,
)
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.model import Interrupted, Pruned, cell_label, count_label
from orchestrator.runner.files import Checkpoints
from orchestrator.store import Place, Probe
from orchestrator.worker.attempt import AbandonedError, Attempts
from orchestrator.worker.claiming import Claiming
from orchestrator.worker.contact import Contact
from orchestrator.worker.delivery import Delivery
from orchestrator.worker.device_slot import HeldSlot, Slots
from orchestrator.worker.probing import Probing
from orchestrator.worker.shutdown import Drain, Draining
from orchestrator.worker.studies import Serving

if TYPE_CHECKING:
    from orchestrator.store import Claim, Store
    from orchestrator.worker.notifying import Notifier


class Worker:
    """Pulls trials of all active studies until there is nothing left to wait for; survives whatever
    user code does.

    Args:
        store: the database, migrated.
        settings: `worker.*` of this host.
        runs_dir: root of the run directories.
        checkpoints: where checkpoints are kept, `paths.checkpoints`.
        artifacts: where artifacts are kept, as `checked_place` returns it; None: in the run
            directories.
        command: turns words such as ``stop study.name=digits`` into the command line that people
            have to type, for messages.
        notifier: tells people what has happened; None: nobody is told.

    Raises:
        ConfigError: checkpoints cannot be kept there, or `worker.health_file` cannot be written.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        runs_dir: Path,
        checkpoints: str | None = None,
        artifacts: str | None = None,
        command: Callable[..., str] = lambda *words: " ".join(("orchestrator", *words)),
        notifier: Notifier | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._runs_dir = runs_dir
        self._place = Place(socket.gethostname(), str(runs_dir))
        self._checkpoints = Checkpoints(checkpoints, runs_dir)
        self._artifacts = artifacts
        self._draining = Draining()
        self._contact = Contact(store, settings, self._draining, notifier)
        self._delivery = Delivery(store, settings, self._contact, self._place)
        self._slots = Slots(store, settings)
        self._command = command

    # ------------------------------------------------------------------------------------- its life

    def run(self) -> int:
        """Serves until drained, idle for too long, or done with `worker.max_trials`; returns how
        many trials it ended.

        Raises:
            DeviceError: no device is free and ``worker.on_no_device=exit`` or
                ``worker.require_idle=refuse``, a named device does not exist, or the worker's
                device is gone; its trial was given back.
        """
        while self._draining.how == Drain.NO:
            try:
                with self._registered(), self._device_slot() as device:
                    if device is not None:
                        self._serve(device)
                    break
            except LeaseLostError as lost:
                logger.warning("%s; registering again", lost)
            except StoreUnavailableError as error:
                if self._draining.how == Drain.NO:
                    raise
                logger.warning("%s; ending anyway, the lease will run out", error)
        logger.info("ended after %s", count_label(self._delivery.ended, "trial"))
        return self._delivery.ended

    def drain(self, how: Drain) -> None:
        """Asks the worker to end; safe to call from a signal handler."""
        self._draining.ask(how)

    def signals(self) -> AbstractContextManager[None]:
        """Within this block signals ask the worker to end, see `Draining.signals`."""
        return self._draining.signals()

    def _serve(self, device: HeldSlot) -> None:
        """Runs trials on the device, one after another."""
        store, settings, contact, draining = (
            self._store,
            self._settings,
            self._contact,
            self._draining,
        )
        delivery, place = self._delivery, self._place
        with Serving(store, settings, contact, self._command, device) as serving:
            claiming = Claiming(
                store, settings, contact, draining, serving, delivery.deliver_left, place
            )
            attempts = Attempts(
                store,
                settings,
                contact,
                draining,
                device,
                serving,
                claiming,
                delivery,
                self._checkpoints,
                place,
                self._artifacts,
            )
            probing = Probing(
                store, settings, contact, draining, device, place, self._runs_dir, self._artifacts
            )
            idle_since = time.monotonic()
            while draining.how == Drain.NO:
                if settings.max_trials is not None and delivery.ended >= settings.max_trials:
                    logger.info("worker.max_trials=%d reached", settings.max_trials)
                    break
                device.check()
                claim = claiming.next()
                if isinstance(claim, Probe):
                    self._run_probe(claim, serving, probing)
                    idle_since = time.monotonic()
                elif claim is not None and draining.how != Drain.NO:  # told to end while it claimed
                    delivery.give_back(claim, Interrupted("the worker was told to end"))
                elif claim is not None:
                    self._run_trial(claim, serving, claiming, attempts)
                    idle_since = time.monotonic()
                elif (
                    settings.idle_timeout_s is not None
                    and time.monotonic() - idle_since >= settings.idle_timeout_s
                ):
                    logger.info("idle for worker.idle_timeout_s=%g", settings.idle_timeout_s)
                    break
                else:
                    contact.say("idle")
                    contact.wait(settings.poll_s)

    def _run_probe(self, held: Probe, serving: Serving, probing: Probing) -> None:
        """Measures a probe, or gives it back if the worker was told to end."""
        if self._draining.how != Drain.NO:
            self._contact.insist(
                lambda: self._store.probes.release(held, "the worker was told to end"),
                until=Drain.NOW,
            )
            self._contact.gave(held)
            return
        probing.run(serving.study(held.study_id), held)

    def _run_trial(
        self, claim: Claim, serving: Serving, claiming: Claiming, attempts: Attempts
    ) -> None:
        """Takes one trial from its claim to its end in the database, or gives it back."""
        served, delivery = serving.study(claim.study_id), self._delivery
        try:
            attempt = claiming.begin(claim)
            if attempt is None:
                return
            claim = attempt
            before = delivery.earlier_attempts(served.row, attempt)
            earlier = delivery.earlier_result(served.row, attempt, before)
            if earlier is not None:
                delivery.deliver(served.row, served.spec, attempt, *earlier)
                return
            self._contact.say(f"trial {attempt.number} of {served.row.name}")
            with attempts.checkpoints(served, attempt, before) as kept:
                job = attempts.job(served, attempt, kept)
                logger.info(
                    "trial %d of %s starts%s: %s",
                    attempt.number,
                    served.row.name,
                    f" (attempt {attempt.attempt})" if attempt.resumed else "",
                    cell_label(attempt.values),
                )
                outcome, unwritten = attempts.run(served, attempt, job)
                crash_step("after-result")
                # Another attempt may want them, or the user the trained model.
                if kept.uploads and not isinstance(outcome, Pruned):
                    self._contact.meanwhile(
                        lambda: kept.close(final=True), hurry=lambda: kept.close(final=False)
                    )
                if delivery.deliver(served.row, served.spec, attempt, outcome, unwritten):
                    kept.discard_older()
            crash_step("after-finish")
        except AbandonedError:
            delivery.give_back(claim, Interrupted("the worker was told to end"))
        except LeaseLostError as lost:
            logger.warning("%s", lost)
            self._contact.gave(claim)
            self._contact.insist(self._contact.renew)  # raises if the worker itself is gone
        finally:
            self._contact.gave(claim)

    # ----------------------------------------------------------------------- its row and its device

    @contextmanager
    def _registered(self) -> Iterator[None]:
        place = self._checkpoints.identity()
        lease = self._contact.insist(
            lambda: self._store.fleet.register(
                self._settings.lease_ttl_s, place, self._settings.studies
            )
        )
        self._contact.hold(lease)
        self._warn_of_places(place)
        try:
            yield
        finally:
            self._contact.let_go()
            try:
                self._store.ledger.deregister(lease, "ended in order")
            except OrchestratorError as error:
                logger.warning("could not deregister; the lease will run out: %s", error)
            self._store.rest()

    def _warn_of_places(self, place: str) -> None:
        others = self._contact.insist(self._store.reads.checkpoint_places)
        hosts = sorted(
            {host for other, hosts in others.items() if other != place for host in hosts}
        )
        if hosts:
            logger.warning(
                "workers on %s use a different paths.checkpoints; a trial that moves between "
                "them and this worker restarts from scratch (paths.checkpoints may name a place "
                "that all workers share)",
                ", ".join(hosts),
            )

    @contextmanager
    def _device_slot(self) -> Iterator[HeldSlot | None]:
        """Holds a device slot for the block; waits for one if `worker.on_no_device` says so. Yields
        None if the worker is told to end first.
        """
        lease = self._contact.lease
        held, warned = self._contact.insist(lambda: self._slots.claim(lease)), False
        while held is None and self._draining.how == Drain.NO:
            text = f"no device is free: {self._contact.insist(self._slots.holders)}"
            if self._settings.on_no_device == "exit":
                raise DeviceError(text)
            if not warned:
                logger.warning(
                    "%s; waiting for one (with worker.on_no_device=exit the worker would exit)",
                    text,
                )
                warned = True
            self._contact.say(self._slots.waiting_for())
            self._contact.insist(self._contact.sweep)
            self._contact.wait(self._settings.poll_s)
            held = self._contact.insist(lambda: self._slots.claim(lease))
        if held is None:
            yield None
            return
        logger.info("using %s, slot %d", held.device.label, held.slot)
        with held:
            self._contact.took_slot()
            yield held
