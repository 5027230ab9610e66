"""One attempt of one trial, from its checkpoint directory to the outcome of its child. Read
`Attempts.run`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from orchestrator.config import WorkerConfig
from orchestrator.devices import torch_device
from orchestrator.errors import LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.faults import step as crash_step
from orchestrator.logs import logger
from orchestrator.model import Outcome, trial_seed
from orchestrator.runner import Job, PruneQuestion
from orchestrator.runner.files import CheckpointError, Checkpoints, Kept
from orchestrator.worker.claiming import Claiming
from orchestrator.worker.contact import Contact
from orchestrator.worker.delivery import Delivery
from orchestrator.worker.device_slot import HeldSlot
from orchestrator.worker.end_requests import EndRequests
from orchestrator.worker.questions import Questions
from orchestrator.worker.shutdown import Draining
from orchestrator.worker.studies import Served, Serving
from orchestrator.worker.unwritten import Unwritten

if TYPE_CHECKING:
    from orchestrator.store import Attempt, AttemptRow, Place, Store, StudyRow

REPORTS_EVERY_S = 1.0


class AbandonedError(Exception):
    """The worker was told to end before the attempt began."""


def abandon() -> NoReturn:
    raise AbandonedError


class Attempts:
    """Runs the attempts of one worker, one after the other, on the device that it holds."""

    def __init__(
        self,
        store: Store,
        settings: WorkerConfig,
        contact: Contact,
        draining: Draining,
        device: HeldSlot,
        serving: Serving,
        claiming: Claiming,
        delivery: Delivery,
        checkpoints: Checkpoints,
        place: Place,
        artifacts: str | None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._ending = EndRequests(draining, contact, settings.drain_s)
        self._contact = contact
        self._device = device
        self._serving = serving
        self._claiming = claiming
        self._delivery = delivery
        self._checkpoints = checkpoints
        self._place = place
        self._artifacts = artifacts

    @contextmanager
    def checkpoints(
        self, served: Served, attempt: Attempt, earlier: Sequence[AttemptRow]
    ) -> Iterator[Kept]:
        """This attempt's checkpoint directory, filled from the previous attempt's. If that fails,
        the trial is given back.
        """
        folder, resume = served.row.folder, served.spec.runner.resume
        tokens = {row.attempt: row.token for row in earlier} | {attempt.attempt: attempt.token}
        try:
            kept = self._contact.meanwhile(
                lambda: self._checkpoints.begin(
                    folder, attempt.number, attempt.attempt, resume=resume, tokens=tokens
                ),
                hurry=abandon,
            )
        except CheckpointError:
            self._release(attempt, "cannot keep its checkpoints")
            raise
        with kept:
            yield kept

    def _release(self, attempt: Attempt, what: str) -> None:
        """Gives the trial back: this host cannot run it."""
        self._contact.insist(
            lambda: self._store.ledger.release(attempt, f"{self._place.host} {what}")
        )

    def job(self, served: Served, attempt: Attempt, kept: Kept) -> Job:
        """What the child needs to run the attempt."""
        values = served.declared(attempt.values)
        return Job(
            study=served.row.name,
            number=attempt.number,
            attempt=attempt.attempt,
            seed=trial_seed(served.spec.seed, attempt.ticket, attempt.failures),
            device=torch_device(self._device.device),
            params=served.spec.params,
            values=values,
            contents=served.spec.contents(values),
            options=served.spec.options,
            objective=served.spec.objective,
            directions=served.spec.directions,
            metrics=served.spec.metrics,
            run_dir=self._delivery.run_dir(
                served.row, attempt.number, attempt.attempt, attempt.ran_under
            ),
            checkpoint_dir=kept.directory,
            resumed=attempt.resumed,
            resumed_from=kept.resumed_from,
            artifacts=self._artifacts,
        )

    def run(self, served: Served, attempt: Attempt, job: Job) -> tuple[Outcome, Unwritten]:
        """Runs the child to its end; returns its outcome, and what it reported that is not written
        yet.
        """
        with self._contact.runs(attempt):
            return self._run(served, attempt, job)

    def _run(self, served: Served, attempt: Attempt, job: Job) -> tuple[Outcome, Unwritten]:
        unwritten = Unwritten(sent=self._reported(served.row, attempt), anew=self._contact.anew)
        questions = Questions(self._store, self._contact, served, attempt, unwritten)
        next_flush = 0.0
        if self._device.gpu is not None:
            self._contact.meanwhile(self._device.settle, hurry=abandon)
        try:
            running = served.runner.start(job, self._ending.now)
        except OSError as error:
            self._release(attempt, "cannot write its run directory")
            raise OrchestratorError(f"paths.runs={self._place.runs_dir}: {error}") from error
        crash_step("after-start")
        since = time.monotonic()
        try:
            while running.outcome is None:
                last = (
                    self._settings.max_trials is not None
                    and self._delivery.ended + 1 >= self._settings.max_trials
                )
                prepare_in_s = self._claiming.prepare(attempt, time.monotonic() - since, last=last)
                for message in running.poll(self._contact.until_beat(min(1.0, prepare_in_s))):
                    crash_step("mid-run")
                    unwritten.note(message)
                    questions.note(message)
                    if isinstance(message, PruneQuestion):
                        running.answer_prune(self._should_prune(served, attempt, unwritten.curve))
                questions.serve(running)
                if (
                    unwritten.anything
                    and time.monotonic() >= next_flush
                    and running.outcome is None
                ):
                    self._delivery.flush(attempt, unwritten)
                    next_flush = time.monotonic() + REPORTS_EVERY_S
                self._contact.beat()
                if self._contact.doubted:
                    self._confirm(attempt)
                if self._contact.anew != unwritten.anew:
                    unwritten.again(self._contact.anew)
                    self._serving.keep_current()
                self._contact.rest()
                self._ending.pass_on(running)
        except BaseException:
            running.terminate()
            raise
        self._claiming.ran(attempt, time.monotonic() - since)
        for message in running.poll(0):
            unwritten.note(message)
        unwritten.end(running.facts)
        return self._device.verdict(running.outcome, job.run_dir), unwritten

    def _confirm(self, attempt: Attempt) -> None:
        """Makes sure that the database knows of the running attempt: it may have lost the record
        that the attempt began.

        Raises:
            LeaseLostError: the database has lost the trial, or that this worker holds it.
        """
        try:
            confirmed = attempt.attempt == 1 and self._store.ledger.confirm(
                attempt, self._contact.lease, self._place
            )
        except StoreUnavailableError as error:
            self._contact.lost(error)
            return  # the next renewal finds the same, and this is tried again
        self._contact.confirmed()
        if not confirmed:
            raise LeaseLostError(
                f"the database has lost track of trial {attempt.number}, which runs here; ending it"
            )
        logger.warning(
            "the database had lost track of trial %s, which runs here; it was registered again",
            attempt.number,
        )

    def _reported(self, row: StudyRow, attempt: Attempt) -> dict[int, float]:
        """What earlier attempts of the trial reported: this attempt continues their curve."""
        if not attempt.resumed:
            return {}
        running = self._contact.insist(lambda: self._store.news.running(row.study_id))
        return next(
            (dict(news.intermediate) for news in running if news.number == attempt.number), {}
        )

    def _should_prune(self, served: Served, attempt: Attempt, curve: dict[int, float]) -> bool:
        """The pruner's verdict, given what other trials have reported; False until the cell has a
        complete trial.
        """
        if served.spec.pruner.name == "none" or len(served.spec.directions) > 1:
            return False
        try:
            if not self._store.ledger.may_prune(attempt):
                return False
            served.learn(self._store)
            served.search.feed(self._store.news.running(served.row.study_id))
        except StoreUnavailableError as error:
            self._contact.lost(error)
            return False
        return served.search.should_prune(attempt.number, reports=curve)
