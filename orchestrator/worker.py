"""A worker: one process that holds one device slot and runs trials in turn. Read `Worker.run` and `Worker._run_trial`."""

from __future__ import annotations

import enum
import math
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from orchestrator.config import WorkerConfig
from orchestrator.devices import child_environment, torch_device
from orchestrator.errors import ConfigError, DeviceError, LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.maintenance import Maintenance
from orchestrator.model import Completed, Failed, Interrupted, Outcome, Pruned, StudySpec, cell_label, trial_seed
from orchestrator.runner import AttrSet, Job, Message, PruneAsked, Reported, Runner, Running, rundir
from orchestrator.search import Search
from orchestrator.slots import HeldSlot, Slots
from orchestrator.store import Claim, Place, Store, StudyRow, WorkerLease

T = TypeVar("T")

FOREIGN_EVERY_S = 10.0
IMPORT_AGAIN_S = 30.0
REPORTS_EVERY_S = 1.0


class Drain(enum.IntEnum):
    """How urgently the worker is to end; it only grows."""

    NO = 0
    FINISH = 1  # finish the running trial, start no other
    STOP = 2  # tell the child, give the trial back after `worker.drain_s`
    NOW = 3  # give the trial back at once


@dataclass
class _Served:
    """A study this worker serves: its spec as last launched, the sampler fed with its news, the runner of its objective."""

    row: StudyRow
    spec: StudySpec
    search: Search
    runner: Runner
    cursor: int = 0
    foreign: set[int] = field(default_factory=set)
    foreign_at: float = 0.0


class Worker:
    """Pulls trials of all active studies until there is nothing left to wait for; survives whatever user code does.

    Args:
        store: the database, migrated.
        settings: `worker.*` of this host.
        runs_dir: root of the run directories.
    """

    def __init__(self, store: Store, settings: WorkerConfig, runs_dir: Path) -> None:
        self._store = store
        self._settings = settings
        self._place = Place(socket.gethostname(), str(runs_dir))
        self._maintenance = Maintenance(store, settings.heartbeat_s)
        self._drain = Drain.NO
        self._drain_at = 0.0
        self._wake = threading.Event()
        self._next_beat = math.inf  # nothing to renew yet
        self._doing = "starting"
        self._out_of_contact = False
        self._ended = 0
        self._served: dict[int, _Served] = {}
        self._unservable: dict[tuple[int, int], float] = {}
        self._lease: WorkerLease
        self._slots = Slots(store, settings)
        self._held: HeldSlot

    # ------------------------------------------------------------------------------------------------------------- its life

    def run(self) -> int:
        """Serves until drained, idle for too long, or done with `worker.max_trials`; returns how many trials it ended.

        Raises:
            DeviceError: no device is free and ``worker.on_no_device=exit``, or the one named does not exist.
        """
        while self._drain == Drain.NO:
            try:
                with self._registered(), self._device_slot():
                    self._serve()
                    break
            except LeaseLostError as lost:
                logger.warning("%s; registering anew", lost)
            except StoreUnavailableError as error:
                if self._drain == Drain.NO:
                    raise
                logger.warning("%s; ending all the same, the lease will run out", error)
        logger.info("ended after %d trials", self._ended)
        return self._ended

    def drain(self, how: Drain) -> None:
        """Asks the worker to end; safe to call from a signal handler."""
        if how > self._drain:
            self._drain = how
            self._drain_at = time.monotonic()
        self._wake.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this block SIGINT finishes the running trial (a second gives it back) and SIGTERM gives it back in order."""

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            self.drain(Drain.FINISH if self._drain == Drain.NO else Drain.NOW)

        def terminate(_signal: int, _frame: FrameType | None) -> None:
            self.drain(Drain.STOP if self._drain < Drain.STOP else Drain.NOW)

        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _serve(self) -> None:
        """Runs trials one after the other."""
        idle_since = time.monotonic()
        while self._drain == Drain.NO:
            if self._settings.max_trials is not None and self._ended >= self._settings.max_trials:
                logger.info("worker.max_trials=%d reached", self._settings.max_trials)
                break
            claim = self._insist(self._claim)
            if claim is not None and self._drain != Drain.NO:  # told to end while it claimed
                self._give_back(claim, Interrupted("the worker was told to end"))
            elif claim is not None:
                self._run_trial(claim)
                idle_since = time.monotonic()
            elif self._settings.idle_timeout_s is not None and time.monotonic() - idle_since >= self._settings.idle_timeout_s:
                logger.info("idle for worker.idle_timeout_s=%g", self._settings.idle_timeout_s)
                break
            else:
                self._say("idle")
                self._wait(self._settings.poll_s)

    # ---------------------------------------------------------------------------------------------------- one trial, in order

    def _claim(self) -> Claim | None:
        """The next trial of the first active study that has one and whose objective runs here."""
        self._maintenance.sweep()
        rows = self._store.reads.studies(self._settings.studies, active_only=True)
        for study_id in self._served.keys() - {row.study_id for row in rows}:
            self._served.pop(study_id).runner.close()
        for row in rows:
            if self._drain == Drain.NO and self._serve_study(row) is not None:
                claim = self._store.ledger.claim(self._lease, [row.study_id], self._place)
                if claim is not None:
                    return claim
        return None

    def _run_trial(self, claim: Claim) -> None:
        """Takes one claimed trial from its parameters to its end in the database, or gives it back."""
        served = self._served[claim.study_id]
        try:
            if claim.number is None:
                claim = self._create(served, claim)
            job = self._job(served, claim)
            self._say(f"trial {claim.number} of {served.row.name}")
            logger.info(
                "trial %d of %s starts%s: %s",
                claim.number,
                served.row.name,
                f" (attempt {claim.attempt})" if claim.resumed else "",
                cell_label(claim.values or {}),
            )
            outcome, reports, attrs = self._earlier_result(served, claim) or self._attempt(served, claim, job)
            self._deliver(served, claim, outcome, reports, attrs)
        except LeaseLostError as lost:
            logger.warning("%s", lost)
            self._insist(self._renew)  # raises if the worker itself is gone

    def _create(self, served: _Served, claim: Claim) -> Claim:
        """Asks the sampler for this cell, knowing all that is in the database now, and creates the Optuna trial."""

        def ask() -> Claim:
            self._learn(served)
            suggestion = served.search.ask(claim.cell_values, ticket=claim.ticket, retry=claim.failures)
            return self._store.ledger.create(claim, suggestion, self._lease, self._place)

        return self._insist(ask, until=Drain.NOW)

    def _learn(self, served: _Served) -> None:
        news, served.cursor = self._store.reads.news(served.row.study_id, served.cursor)
        if time.monotonic() - served.foreign_at >= FOREIGN_EVERY_S:
            foreign = self._store.reads.foreign(served.row.study_id, served.foreign)
            served.foreign |= {t.number for t in foreign}
            served.foreign_at = time.monotonic()
            news += foreign
        served.search.feed(news)

    def _job(self, served: _Served, claim: Claim) -> Job:
        assert claim.number is not None
        runs = Path(self._place.runs_dir)
        return Job(
            study=served.row.name,
            number=claim.number,
            attempt=claim.attempt,
            seed=trial_seed(served.spec.seed, claim.ticket, claim.failures),
            device=torch_device(self._held.device),
            params=served.spec.params,
            values=claim.values or {},
            objective=served.spec.objective,
            metrics=served.spec.metrics,
            run_dir=rundir.attempt_dir(runs, served.row.folder, claim.number, claim.attempt),
            checkpoint_dir=rundir.checkpoint_dir(runs, served.row.folder, claim.number),
            resumed=claim.resumed,
        )

    def _earlier_result(self, served: _Served, claim: Claim) -> tuple[Outcome, dict[int, float], dict[str, Any]] | None:
        """A result that an earlier attempt left in a run directory this host sees: delivered, not run again."""
        for attempt in range(claim.attempt - 1, 0, -1):
            assert claim.number is not None
            run_dir = rundir.attempt_dir(Path(self._place.runs_dir), served.row.folder, claim.number, attempt)
            try:
                outcome = rundir.read_result(run_dir)
            except (OSError, ValueError, KeyError) as error:
                logger.warning("%s: the result cannot be read: %s", run_dir, error)
                continue
            if isinstance(outcome, Completed | Pruned | Failed):
                logger.info("trial %d: attempt %d had left its result; delivering it", claim.number, attempt)
                return outcome, {}, {}
        return None

    def _attempt(self, served: _Served, claim: Claim, job: Job) -> tuple[Outcome, dict[int, float], dict[str, Any]]:
        """Runs the child to its end; returns its outcome with the reports and attributes not written yet."""
        reports: dict[int, float] = {}
        attrs: dict[str, Any] = {}
        sent: dict[int, float] = {}
        next_flush = 0.0
        try:
            running = served.runner.start(job)
        except OSError as error:
            self._insist(lambda: self._store.ledger.release(claim, f"{self._place.host} cannot write its run directory"))
            raise OrchestratorError(f"paths.runs={self._place.runs_dir}: {error}") from error
        self._store.rest()
        try:
            while running.outcome is None:
                for message in running.poll(min(1.0, max(0.0, self._next_beat - time.monotonic()))):
                    _note(message, reports, attrs)
                    if isinstance(message, PruneAsked):
                        running.answer_prune(self._should_prune(served, claim, {**sent, **reports}))
                if (reports or attrs) and time.monotonic() >= next_flush and running.outcome is None:
                    if self._flush(claim, reports, attrs):
                        sent |= reports
                        reports, attrs = {}, {}
                    next_flush = time.monotonic() + REPORTS_EVERY_S
                self._beat()
                self._obey(running)
        except BaseException:
            running.terminate()
            raise
        for message in running.poll(0):
            _note(message, reports, attrs)
        return running.outcome, reports, attrs

    def _flush(self, claim: Claim, reports: dict[int, float], attrs: dict[str, Any]) -> bool:
        """Writes what the trial reported; False if that did not work now: it is tried again later, at last with the result."""
        try:
            self._store.ledger.report(claim, reports, attrs)
        except LeaseLostError:
            raise
        except StoreUnavailableError as error:
            self._lost_contact(error)
            return False
        except OrchestratorError:  # refused for good: the end of the trial will say so
            return False
        finally:
            self._store.rest()
        return True

    def _should_prune(self, served: _Served, claim: Claim, reports: dict[int, float]) -> bool:
        """The pruner's verdict, knowing what the others have reported by now; never before the cell has a complete trial."""
        if served.spec.pruner.get("name") == "none" or len(served.spec.directions) > 1:
            return False
        assert claim.number is not None
        try:
            if not self._store.ledger.may_prune(claim):
                return False
            self._learn(served)
            served.search.feed(self._store.reads.running(served.row.study_id))
        except StoreUnavailableError as error:
            self._lost_contact(error)
            return False
        finally:
            self._store.rest()
        return served.search.should_prune(claim.number, reports=reports)

    def _obey(self, running: Running) -> None:
        """Passes a request to end on to the child, and ends it when its time is up."""
        if self._drain in (Drain.STOP, Drain.NOW):
            running.ask_to_stop()
            if self._drain == Drain.NOW or time.monotonic() - self._drain_at >= self._settings.drain_s:
                running.terminate("the worker was told to end")

    def _deliver(
        self, served: _Served, claim: Claim, outcome: Outcome, reports: dict[int, float], attrs: dict[str, Any]
    ) -> None:
        """Writes the end of the attempt; an interrupted trial is given back."""
        if isinstance(outcome, Interrupted):
            self._give_back(claim, outcome)
            return
        try:
            self._finish(claim, outcome, reports, attrs)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except OrchestratorError as error:  # what it reported cannot be stored; the trial must end all the same
            outcome = Failed("value", f"the database took neither the result nor the attributes: {error}")
            self._finish(claim, outcome, {}, {})
        self._ended += 1
        what = f"trial {claim.number} of {served.row.name}"
        if isinstance(outcome, Failed):
            logger.warning("%s failed: %s", what, outcome.message)
        elif isinstance(outcome, Pruned):
            logger.info("%s pruned%s", what, "" if outcome.step is None else f" at step {outcome.step}")
        else:
            values = zip(served.spec.metrics, outcome.values, strict=True)
            logger.info("%s: %s", what, ", ".join(f"{metric}={value:.6g}" for metric, value in values))

    def _give_back(self, claim: Claim, outcome: Interrupted) -> None:
        self._insist(lambda: self._store.ledger.release(claim, outcome.reason, lost=outcome.lost), until=Drain.NOW)
        logger.info("trial %s given back: %s", "not begun" if claim.number is None else claim.number, outcome.reason)
        if outcome.lost:
            self._wait(self._settings.poll_s)  # whatever ended it may be at it still

    def _finish(
        self, claim: Claim, outcome: Completed | Pruned | Failed, reports: dict[int, float], attrs: dict[str, Any]
    ) -> None:
        self._insist(lambda: self._store.ledger.finish(claim, outcome, reports=reports, attrs=attrs), until=Drain.NOW)

    # --------------------------------------------------------------------------------------------------- studies it can serve

    def _serve_study(self, row: StudyRow) -> _Served | None:
        """The study ready to run here, or None while its objective does not import on this host: said once, tried again."""
        if time.monotonic() < self._unservable.get((row.study_id, row.revision), 0.0):
            return None
        served = self._served.get(row.study_id)
        try:
            if served is None or served.row.revision != row.revision:
                if served is not None:
                    self._served.pop(row.study_id).runner.close()
                self._say(f"importing the objective of {row.name}")
                spec = self._store.reads.spec(row.study_id)
                served = self._served[row.study_id] = _Served(row, spec, Search(spec), self._runner(spec))
            served.runner.check()
        except ConfigError as error:
            if row.study_id in self._served:
                self._served.pop(row.study_id).runner.close()
            if (row.study_id, row.revision) not in self._unservable:
                logger.error("not claiming from study %s: %s", row.name, error)
            self._unservable[row.study_id, row.revision] = time.monotonic() + IMPORT_AGAIN_S
            return None
        self._unservable.pop((row.study_id, row.revision), None)
        return served

    def _runner(self, spec: StudySpec) -> Runner:
        minutes = spec.runner.get("max_runtime_min")
        return Runner(
            spec.objective,
            start=spec.runner.get("start", "forkserver"),
            env=child_environment(self._held.device),
            threads=self._held.threads,
            grace_s=spec.runner.get("grace_s", 5.0),
            max_runtime_s=None if minutes is None else minutes * 60,
            silence_s=self._settings.lease_ttl_s,
            held=self._held.descriptors,
        )

    # ------------------------------------------------------------------------------------------------ its row and its device

    @contextmanager
    def _registered(self) -> Iterator[None]:
        self._lease = self._insist(lambda: self._store.fleet.register(self._settings.lease_ttl_s))
        self._next_beat = time.monotonic() + self._settings.heartbeat_s
        try:
            yield
        finally:
            for served in self._served.values():
                served.runner.close()
            self._served.clear()
            try:
                self._store.ledger.deregister(self._lease, "ended in order")
            except OrchestratorError as error:
                logger.warning("could not deregister, the lease will run out: %s", error)
            self._store.rest()

    @contextmanager
    def _device_slot(self) -> Iterator[None]:
        """Holds one slot of one device for the block; waits for one as `worker.on_no_device` says."""
        held, said = self._insist(lambda: self._slots.claim(self._lease)), False
        while held is None and self._drain == Drain.NO:
            text = f"no device is free: {self._insist(self._slots.holders)}"
            if self._settings.on_no_device == "exit":
                raise DeviceError(text)
            if not said:
                logger.warning("%s; waiting for one (worker.on_no_device=exit ends instead)", text)
                said = True
            self._say("waiting for a device")
            self._maintain()
            self._wait(self._settings.poll_s)
            held = self._insist(lambda: self._slots.claim(self._lease))
        if held is None:
            yield
            return
        logger.info("holds %s, slot %d", held.device.name, held.slot)
        with held as self._held:
            yield

    # ----------------------------------------------------------------------------------------------- time and the database

    def _insist(self, step: Callable[[], T], until: Drain = Drain.STOP) -> T:
        """Does `step`, again and again with growing, jittered pauses while the database does not answer.

        Raises:
            StoreUnavailableError: the worker is to end as urgently as `until`.
        """
        pause_s = 0.2
        while True:
            try:
                answer = step()
                self._in_contact()
                return answer
            except StoreUnavailableError as error:
                if self._drain >= until:
                    raise
                self._lost_contact(error)
                self._wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 5.0)

    def _lost_contact(self, error: StoreUnavailableError) -> None:
        self._maintenance.lost_contact()
        if not self._out_of_contact:
            logger.warning("%s; trying again", error)
            self._out_of_contact = True
        self._store.revive()

    def _in_contact(self) -> None:
        if self._out_of_contact:
            logger.info("the database answers again")
            self._out_of_contact = False

    def _maintain(self) -> None:
        try:
            self._maintenance.sweep()
        except StoreUnavailableError as error:
            self._lost_contact(error)

    def _wait(self, seconds: float) -> None:
        """Waits without a connection, renewing the lease when due; a request to end cuts it short."""
        self._store.rest()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._wake.is_set():
            self._wake.wait(max(0.0, min(left, self._next_beat - time.monotonic())))
            self._beat()
        self._wake.clear()

    def _beat(self) -> None:
        """Renews the lease if it is time to; an unreachable database is met by another try soon."""
        if time.monotonic() < self._next_beat:
            return
        try:
            self._renew()
        except StoreUnavailableError as error:
            self._lost_contact(error)
            self._next_beat = time.monotonic() + self._settings.heartbeat_s / 2
        finally:
            self._store.rest()

    def _renew(self) -> None:
        self._store.fleet.renew(self._lease, self._doing)
        self._in_contact()
        self._next_beat = time.monotonic() + self._settings.heartbeat_s * random.uniform(0.8, 1.0)

    def _say(self, doing: str) -> None:
        """What `status` shows of this worker from the next renewal on."""
        self._doing = doing


def _note(message: Message, reports: dict[int, float], attrs: dict[str, Any]) -> None:
    """Keeps what the child reported until it is written; a step's first value counts, an attribute's last."""
    if isinstance(message, Reported):
        reports.setdefault(message.step, message.value)
    elif isinstance(message, AttrSet):
        attrs[message.key] = message.value
