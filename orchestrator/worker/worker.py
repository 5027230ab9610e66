"""A worker: one process that holds one device slot and runs trials in turn. Read `Worker.run` and `Worker._run_trial`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.config import WorkerConfig, has_pruner, never_prunes, nothing_reported
from orchestrator.devices import torch_device
from orchestrator.errors import DeviceError, LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.model import (
    Completed,
    Failed,
    Interrupted,
    JSONValue,
    Outcome,
    Pruned,
    StudySpec,
    cell_label,
    count_label,
    trial_seed,
)
from orchestrator.runner import Job, PruneAsked, Running, Told
from orchestrator.runner.files import CheckpointError, Checkpoints, Kept
from orchestrator.runner.protocol import rundir
from orchestrator.store import AttemptRow, Claim, Place, Store, StudyRow, WorkerLease
from orchestrator.worker.claiming import Claiming
from orchestrator.worker.contact import Contact
from orchestrator.worker.device_slot import HeldSlot, Slots
from orchestrator.worker.left_results import LeftResults, Said
from orchestrator.worker.questions import Suggesting
from orchestrator.worker.shutdown import Drain, Draining
from orchestrator.worker.studies import Served, Serving

REPORTS_EVERY_S = 1.0
LEFT_EVERY_S = 2.0


class _AbandonedError(Exception):
    """The worker was told to end before the attempt began."""


def _abandon() -> NoReturn:
    raise _AbandonedError


class Worker:
    """Pulls trials of all active studies until there is nothing left to wait for; survives whatever user code does.

    Args:
        store: the database, migrated.
        settings: `worker.*` of this host.
        runs_dir: root of the run directories.
        checkpoints: where checkpoints are kept, `paths.checkpoints`.
        artifacts: where artifacts are kept, as `checked_place` returns it; None: in the run directories.
        command: writes the command line that people can type for some words: ``stop study.name=digits``.

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
    ) -> None:
        self._store = store
        self._settings = settings
        self._place = Place(socket.gethostname(), str(runs_dir))
        self._checkpoints = Checkpoints(checkpoints, runs_dir)
        self._artifacts = artifacts
        self._draining = Draining()
        self._contact = Contact(store, settings, self._draining)
        self._ended = 0
        self._mute: set[int] = set()
        self._next_look = 0.0
        self._left = LeftResults()
        self._serving = Serving(store, settings, self._contact, command)
        self._claiming = Claiming(
            store, settings, self._contact, self._draining, self._serving, self._place, self._deliver_left
        )
        self._lease: WorkerLease
        self._slots = Slots(store, settings)
        self._device: HeldSlot

    # ------------------------------------------------------------------------------------------------------------- its life

    def run(self) -> int:
        """Serves until drained, idle for too long, or done with `worker.max_trials`; returns how many trials it ended.

        Raises:
            DeviceError: no device is free and ``worker.on_no_device=exit`` or ``worker.require_idle=refuse``, the one named
                does not exist, or the one held is gone; its trial was given back.
        """
        while self._draining.how == Drain.NO:
            try:
                with self._registered(), self._device_slot():
                    self._serve()
                    break
            except LeaseLostError as lost:
                logger.warning("%s; registering anew", lost)
            except StoreUnavailableError as error:
                if self._draining.how == Drain.NO:
                    raise
                logger.warning("%s; ending all the same, the lease will run out", error)
        logger.info("ended after %s", count_label(self._ended, "trial"))
        return self._ended

    def drain(self, how: Drain) -> None:
        """Asks the worker to end; safe to call from a signal handler."""
        self._draining.ask(how)

    def signals(self) -> AbstractContextManager[None]:
        """Within this block signals ask the worker to end, see `Draining.signals`."""
        return self._draining.signals()

    def _serve(self) -> None:
        """Runs trials one after the other."""
        idle_since = time.monotonic()
        while self._draining.how == Drain.NO:
            if self._settings.max_trials is not None and self._ended >= self._settings.max_trials:
                logger.info("worker.max_trials=%d reached", self._settings.max_trials)
                break
            self._device.check()
            claim = self._claiming.next()
            if claim is not None and self._draining.how != Drain.NO:  # told to end while it claimed
                self._give_back(claim, Interrupted("the worker was told to end"))
            elif claim is not None:
                self._run_trial(claim)
                idle_since = time.monotonic()
            elif self._settings.idle_timeout_s is not None and time.monotonic() - idle_since >= self._settings.idle_timeout_s:
                logger.info("idle for worker.idle_timeout_s=%g", self._settings.idle_timeout_s)
                break
            else:
                self._contact.say("idle")
                self._contact.wait(self._settings.poll_s)

    # ---------------------------------------------------------------------------------------------------- one trial, in order

    def _run_trial(self, claim: Claim) -> None:
        """Takes one claimed trial from its parameters to its end in the database, or gives it back."""
        served = self._serving.study(claim.study_id)
        try:
            begun = self._claiming.begun(claim)
            if begun is None:
                return
            claim = begun
            attempts = self._earlier_attempts(served.row, claim)
            earlier = self._earlier_result(served.row, claim, attempts)
            if earlier is not None:
                self._deliver(served.row, served.spec, claim, *earlier)
                return
            self._contact.say(f"trial {claim.number} of {served.row.name}")
            with self._kept(served, claim, attempts) as kept:
                job = self._job(served, claim, kept)
                logger.info(
                    "trial %d of %s starts%s: %s",
                    claim.number,
                    served.row.name,
                    f" (attempt {claim.attempt})" if claim.resumed else "",
                    cell_label(claim.values or {}),
                )
                outcome, said = self._attempt(served, claim, job)
                crash_step("after-result")
                # Another attempt may want them, or the user the trained model.
                if kept.uploads and not isinstance(outcome, Pruned):
                    self._contact.meanwhile(lambda: kept.close(final=True), hurry=lambda: kept.close(final=False))
                if self._deliver(served.row, served.spec, claim, outcome, said):
                    kept.discard_older()
            crash_step("after-finish")
        except _AbandonedError:
            self._give_back(claim, Interrupted("the worker was told to end"))
        except LeaseLostError as lost:
            logger.warning("%s", lost)
            self._contact.gave(claim)
            self._contact.insist(self._contact.renew)  # raises if the worker itself is gone
        finally:
            self._contact.gave(claim)

    @contextmanager
    def _kept(self, served: Served, claim: Claim, earlier: Sequence[AttemptRow]) -> Iterator[Kept]:
        """This attempt's checkpoint directory, filled from the one before; the trial is given back if it cannot be made."""
        folder, resume = served.row.folder, bool(served.spec.runner.get("resume", True))
        number = claim.number
        assert number is not None
        tokens = {attempt.attempt: attempt.token for attempt in earlier} | {claim.attempt: claim.token}
        try:
            kept = self._contact.meanwhile(
                lambda: self._checkpoints.begin(folder, number, claim.attempt, resume=resume, tokens=tokens), hurry=_abandon
            )
        except CheckpointError:
            self._release(claim, "cannot keep its checkpoints")
            raise
        with kept:
            yield kept

    def _release(self, claim: Claim, what: str) -> None:
        """Gives the trial back: this host cannot run it."""
        self._contact.insist(lambda: self._store.ledger.release(claim, f"{self._place.host} {what}"))

    def _job(self, served: Served, claim: Claim, kept: Kept) -> Job:
        assert claim.number is not None
        values = served.declared(claim.values or {})
        return Job(
            study=served.row.name,
            number=claim.number,
            attempt=claim.attempt,
            seed=trial_seed(served.spec.seed, claim.ticket, claim.failures),
            device=torch_device(self._device.device),
            params=served.spec.params,
            values=values,
            contents=served.spec.contents(values),
            options=served.spec.options,
            objective=served.spec.objective,
            directions=served.spec.directions,
            metrics=served.spec.metrics,
            run_dir=self._run_dir(served.row, claim, claim.attempt, claim.token),
            checkpoint_dir=kept.directory,
            resumed=claim.resumed,
            resumed_from=kept.resumed_from,
            artifacts=self._artifacts,
        )

    def _run_dir(self, row: StudyRow, claim: Claim, attempt: int, token: int | None) -> Path:
        assert claim.number is not None
        return rundir.attempt_dir(Path(self._place.runs_dir), row.folder, claim.number, attempt, token)

    def _attempt(self, served: Served, claim: Claim, job: Job) -> tuple[Outcome, Said]:
        """Runs the child to its end; returns its outcome with what it said that is not written yet."""
        said = Said(sent=self._reported(served.row, claim))
        suggesting = Suggesting(self._store, self._contact, served, claim, said)
        self._contact.halted_at = None  # that was the trial before
        said.anew = self._contact.anew
        next_flush = 0.0
        if self._device.gpu is not None:
            self._contact.meanwhile(self._device.settle, hurry=_abandon)
        try:
            running = served.runner.start(job, self._told)
        except OSError as error:
            self._release(claim, "cannot write its run directory")
            raise OrchestratorError(f"paths.runs={self._place.runs_dir}: {error}") from error
        crash_step("after-start")
        since = time.monotonic()
        self._contact.running = claim
        try:
            while running.outcome is None:
                last = self._settings.max_trials is not None and self._ended + 1 >= self._settings.max_trials
                prepare_in_s = self._claiming.prepare(claim, time.monotonic() - since, last=last)
                for message in running.poll(self._contact.until_beat(min(1.0, prepare_in_s))):
                    crash_step("mid-run")
                    said.note(message)
                    suggesting.note(message)
                    if isinstance(message, PruneAsked):
                        running.answer_prune(self._should_prune(served, claim, said.curve))
                suggesting.serve(running)
                if said.anything and time.monotonic() >= next_flush and running.outcome is None:
                    self._flush(claim, said)
                    next_flush = time.monotonic() + REPORTS_EVERY_S
                self._contact.beat()
                if self._contact.doubted:
                    self._confirm(claim)
                if self._contact.anew != said.anew:
                    said.anew = self._contact.anew
                    said.again()
                    self._serving.keep_current()
                self._contact.rest()
                self._obey(running)
        except BaseException:
            running.terminate()
            raise
        finally:
            self._contact.running = None
        self._claiming.ran(claim, time.monotonic() - since)
        for message in running.poll(0):
            said.note(message)
        said.facts = running.facts
        return self._device.verdict(running.outcome, job.run_dir), said

    def _confirm(self, claim: Claim) -> None:
        """Sees to it that the database knows of the attempt that runs: it may have lost that it began.

        Raises:
            LeaseLostError: it has lost the trial, or this worker's claim to it.
        """
        try:
            begun = claim.attempt == 1 and self._store.ledger.start(claim, self._lease, self._place)
        except StoreUnavailableError as error:
            self._contact.lost(error)
            return  # the next renewal asks for it again
        self._contact.doubted = False
        if not begun:
            raise LeaseLostError(f"the database has lost that trial {claim.number} runs here: ending it")
        logger.warning("the database had lost that trial %s runs here; it is told again", claim.number)

    def _reported(self, row: StudyRow, claim: Claim) -> dict[int, float]:
        """What earlier attempts of the trial reported: its curve goes on."""
        if not claim.resumed:
            return {}
        running = self._contact.insist(lambda: self._store.reads.running(row.study_id))
        return next((dict(news.intermediate) for news in running if news.number == claim.number), {})

    def _flush(self, claim: Claim, said: Said) -> None:
        """Writes what the trial reported; if that does not work now it is tried again later, at last with the result."""
        try:
            self._store.ledger.report(claim, **said.rows)
        except StoreUnavailableError as error:
            self._contact.lost(error)
        except LeaseLostError:
            raise
        except OrchestratorError as error:  # refused for good: the end of the trial will say so
            logger.debug("reports of trial %s were refused: %s", claim.number, error)
        else:
            said.forget()

    def _should_prune(self, served: Served, claim: Claim, curve: dict[int, float]) -> bool:
        """The pruner's verdict, knowing what the others have reported by now; never before the cell has a complete trial."""
        if served.spec.pruner.get("name") == "none" or len(served.spec.directions) > 1:
            return False
        assert claim.number is not None
        try:
            if not self._store.ledger.may_prune(claim):
                return False
            served.learn(self._store)
            served.search.feed(self._store.reads.running(served.row.study_id))
        except StoreUnavailableError as error:
            self._contact.lost(error)
            return False
        return served.search.should_prune(claim.number, reports=curve)

    def _told(self) -> Told:
        if self._draining.how >= Drain.STOP or self._contact.halted_at is not None:
            return Told.STOP
        return Told.NOTHING if self._draining.how == Drain.NO else Told.LEAVE

    def _obey(self, running: Running) -> None:
        """Passes a request to end on to the child, and ends it when its time is up."""
        draining = self._draining
        asked = [(draining.since, "the worker was told to end")] if draining.how >= Drain.STOP else []
        asked += [(self._contact.halted_at, "the study was paused or stopped")] if self._contact.halted_at is not None else []
        if not asked:
            return
        since, reason = min(asked)
        running.ask_to_stop()
        if draining.how == Drain.NOW or time.monotonic() - since >= self._settings.drain_s:
            self._contact.meanwhile(lambda: running.terminate(reason))

    # ------------------------------------------------------------------------------------------------------ its end, written

    def _earlier_attempts(self, row: StudyRow, claim: Claim) -> list[AttemptRow]:
        """The attempts of the trial before the one that begins."""
        number = claim.number
        if number is None or not claim.resumed:
            return []
        attempts = self._contact.insist(lambda: self._store.reads.attempts(row.study_id, number))
        return [earlier for earlier in attempts if earlier.attempt < claim.attempt]

    def _earlier_result(self, row: StudyRow, claim: Claim, attempts: Sequence[AttemptRow]) -> tuple[Outcome, Said] | None:
        """A result that an earlier attempt left in a run directory this host sees: delivered, not run again."""
        for earlier in reversed(attempts):
            if earlier.outcome not in ("lost", "interrupted"):  # its result is known, and made the trial run again
                break
            left = self._left.result_in(self._run_dir(row, claim, earlier.attempt, earlier.token))
            if left is not None:
                return left
        return None

    def _deliver_left(self) -> None:
        """Delivers results that workers of this host left when they died, also of studies that hand out no trials any more.

        Looks for them every `LEFT_EVERY_S` at most.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LEFT_EVERY_S
        left = self._store.ledger.left_at(self._place)
        rows = {row.study_id: row for row in self._store.reads.studies()} if left else {}
        for claim in left:
            row = rows.get(claim.study_id)
            found = None
            if row is not None:
                found = self._left.result_in(self._run_dir(row, claim, claim.attempt, claim.ran_under))
            if row is not None and found is not None:
                try:
                    self._deliver(row, self._store.reads.spec(row.study_id), claim, *found)
                except LeaseLostError as lost:
                    logger.info("%s", lost)

    def _deliver(self, row: StudyRow, spec: StudySpec, claim: Claim, outcome: Outcome, said: Said) -> bool:
        """Writes the end of the attempt; False if the trial goes on: it was interrupted, or failed for what passes."""
        if isinstance(outcome, Interrupted):
            if said.artifacts:  # their files are there, and nobody would know of them
                self._flush(claim, said)
            self._give_back(claim, outcome, said.facts)
            return False
        try:
            if isinstance(outcome, Failed) and self._runs_again(spec, claim, outcome, said):
                logger.warning("trial %s of %s failed and runs again: %s", claim.number, row.name, outcome.message)
                return False
            self._finish(claim, outcome, said)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except OrchestratorError as error:  # what it reported cannot be stored; the trial must end all the same
            outcome = Failed("value", f"the database took neither the result nor the attributes: {error}")
            self._finish(claim, outcome, Said())
        self._ended += 1
        what = f"trial {claim.number} of {row.name}"
        if isinstance(outcome, Failed):
            logger.warning("%s failed: %s", what, outcome.message)
        elif isinstance(outcome, Pruned):
            logger.info("%s pruned%s", what, "" if outcome.step is None else f" at step {outcome.step}")
        else:
            values = zip(spec.metrics, outcome.values, strict=True)
            logger.info("%s: %s", what, ", ".join(f"{metric}={value:.6g}" for metric, value in values))
            if not said.curve and has_pruner(spec) and not never_prunes(spec) and row.study_id not in self._mute:
                self._mute.add(row.study_id)
                logger.warning("study %s: %s", row.name, nothing_reported(spec, 1))
        return True

    def _give_back(self, claim: Claim, outcome: Interrupted, facts: Mapping[str, JSONValue] | None = None) -> None:
        ledger = self._store.ledger
        self._contact.insist(lambda: ledger.release(claim, outcome.reason, lost=outcome.lost, facts=facts), until=Drain.NOW)
        self._contact.gave(claim)
        logger.info("trial %s given back: %s", "not begun" if claim.number is None else claim.number, outcome.reason)
        if outcome.lost:
            self._contact.wait(self._settings.poll_s)  # whatever ended it may be at it still

    def _runs_again(self, spec: StudySpec, claim: Claim, failed: Failed, said: Said) -> bool:
        if not spec.runner.get("retries", 0) or not failed.passes(spec.runner.get("retry_on")):
            return False
        ledger = self._store.ledger
        return self._contact.insist(lambda: ledger.retry(claim, failed, **self._all_of(claim, said)), until=Drain.NOW)

    def _finish(self, claim: Claim, outcome: Completed | Pruned | Failed, said: Said) -> None:
        ledger = self._store.ledger
        self._contact.insist(lambda: ledger.finish(claim, outcome, **self._all_of(claim, said)), until=Drain.NOW)

    def _all_of(self, claim: Claim, said: Said) -> dict[str, Any]:
        """What an attempt said, for the server that answers now: all of it, if that is another than it was told to."""
        if said.anew is not None and said.anew != self._contact.anew:
            if claim.attempt == 1:
                self._store.ledger.start(claim, self._lease, self._place)  # that it began may be lost too
            said.anew = self._contact.anew
            said.again()
        server = None if said.anew is None else self._contact.server
        return {**said.rows, "facts": said.facts, "suggested": said.lost_suggestions, "server": server}

    # ------------------------------------------------------------------------------------------------ its row and its device

    @contextmanager
    def _registered(self) -> Iterator[None]:
        place = self._checkpoints.identity()
        self._lease = self._contact.insist(
            lambda: self._store.fleet.register(self._settings.lease_ttl_s, place, self._settings.studies)
        )
        self._contact.hold(self._lease)
        self._claiming.hold(self._lease)
        self._warn_of_places(place)
        try:
            yield
        finally:
            self._contact.let_go()
            self._serving.keep_only([])
            try:
                self._store.ledger.deregister(self._lease, "ended in order")
            except OrchestratorError as error:
                logger.warning("could not deregister, the lease will run out: %s", error)
            self._store.rest()

    def _warn_of_places(self, place: str) -> None:
        others = self._contact.insist(self._store.reads.checkpoint_places)
        hosts = sorted({host for other, hosts in others.items() if other != place for host in hosts})
        if hosts:
            logger.warning(
                "the workers on %s keep checkpoints elsewhere: a trial that moves between them and this one starts anew"
                " (paths.checkpoints may name a place that all share)",
                ", ".join(hosts),
            )

    @contextmanager
    def _device_slot(self) -> Iterator[None]:
        """Holds one slot of one device for the block; waits for one as `worker.on_no_device` says."""
        held, said = self._contact.insist(lambda: self._slots.claim(self._lease)), False
        while held is None and self._draining.how == Drain.NO:
            text = f"no device is free: {self._contact.insist(self._slots.holders)}"
            if self._settings.on_no_device == "exit":
                raise DeviceError(text)
            if not said:
                logger.warning("%s; waiting for one (worker.on_no_device=exit ends instead)", text)
                said = True
            self._contact.say(self._slots.waiting_for())
            self._contact.insist(self._contact.sweep)
            self._contact.wait(self._settings.poll_s)
            held = self._contact.insist(lambda: self._slots.claim(self._lease))
        if held is None:
            yield
            return
        logger.info("holds %s, slot %d", held.device.label, held.slot)
        with held:
            self._serving.device = self._device = held
            self._contact.slotted = True
            yield
