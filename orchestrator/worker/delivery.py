"""Writes how an attempt ended: delivers its result, or gives its trial back. Also for workers that
died.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from orchestrator.config import WorkerConfig, never_prunes, nothing_to_judge
from orchestrator.errors import LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.logs import logger
from orchestrator.model import (
    Completed,
    Failed,
    Interrupted,
    JSONValue,
    Outcome,
    Pruned,
    Reported,
    StudySpec,
)
from orchestrator.runner import journal
from orchestrator.runner.protocol import rundir
from orchestrator.runner.system import facts
from orchestrator.store import Ticket
from orchestrator.worker.contact import Contact
from orchestrator.worker.shutdown import Drain
from orchestrator.worker.unwritten import Unwritten

if TYPE_CHECKING:
    from orchestrator.store import Attempt, AttemptRow, Claim, Place, Store, StudyRow

LEFT_EVERY_S = 2.0


class Delivery:
    """Writes how attempts ended, and waits out outages. `ended` counts the trials that ended."""

    def __init__(
        self, store: Store, settings: WorkerConfig, contact: Contact, place: Place
    ) -> None:
        self._store = store
        self._settings = settings
        self._contact = contact
        self._place = place
        self._left = LeftResults()
        self._next_look = 0.0
        self._warned_of_no_reports: set[int] = set()
        self._warned_of_bounds: set[int] = set()
        self.ended = 0

    def earlier_attempts(self, row: StudyRow, attempt: Attempt) -> list[AttemptRow]:
        """The attempts of the trial before the one that begins."""
        if not attempt.resumed:
            return []
        attempts = self._contact.insist(
            lambda: self._store.reads.attempts(row.study_id, attempt.number)
        )
        return [earlier for earlier in attempts if earlier.attempt < attempt.attempt]

    def earlier_result(
        self, row: StudyRow, attempt: Attempt, attempts: Sequence[AttemptRow]
    ) -> tuple[Outcome, Unwritten] | None:
        """A result that an earlier attempt left in a run directory this host sees; delivered
        instead of running again.
        """
        for earlier in reversed(attempts):
            # Any other outcome is in the database already; because of it the trial runs again.
            if earlier.outcome not in ("lost", "interrupted"):
                break
            left = self._left.result_in(
                self.run_dir(row, attempt.number, earlier.attempt, earlier.token)
            )
            if left is not None:
                return left
        return None

    def deliver_left(self) -> None:
        """Delivers results that workers of this host left when they died, even if their study no
        longer starts trials.

        Looks for them at most every `LEFT_EVERY_S`.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LEFT_EVERY_S
        left = self._store.ledger.left_at(self._place)
        rows = {row.study_id: row for row in self._store.reads.studies()} if left else {}
        for attempt in left:
            row = rows.get(attempt.study_id)
            found = None
            if row is not None:
                found = self._left.result_in(
                    self.run_dir(row, attempt.number, attempt.attempt, attempt.ran_under)
                )
            if row is not None and found is not None:
                try:
                    self.deliver(row, self._store.reads.spec(row.study_id), attempt, *found)
                except LeaseLostError as lost:
                    logger.info("%s", lost)

    def deliver(
        self,
        row: StudyRow,
        spec: StudySpec,
        attempt: Attempt,
        outcome: Outcome,
        unwritten: Unwritten,
    ) -> bool:
        """Writes the end of the attempt; False if the trial continues: it was interrupted, or
        failed for a transient reason.
        """
        if isinstance(outcome, Interrupted):
            if unwritten.artifacts:  # their files exist already: without records nobody finds them
                self.flush(attempt, unwritten)
            self.give_back(attempt, outcome, unwritten.facts)
            return False
        try:
            if isinstance(outcome, Failed) and self._runs_again(spec, attempt, outcome, unwritten):
                logger.warning(
                    "trial %s of %s failed and runs again: %s",
                    attempt.number,
                    row.name,
                    outcome.message,
                )
                return False
            self._finish(attempt, outcome, unwritten)
        except (StoreUnavailableError, LeaseLostError):
            raise
        except OrchestratorError as error:
            # What it reported cannot be stored, but the trial must end.
            outcome = Failed(
                "value", f"the database took neither the result nor the attributes: {error}"
            )
            self._finish(attempt, outcome, Unwritten())
        self.ended += 1
        what = f"trial {attempt.number} of {row.name}"
        if isinstance(outcome, Failed):
            logger.warning("%s failed: %s", what, outcome.message)
        elif isinstance(outcome, Pruned):
            logger.info(
                "%s pruned%s", what, "" if outcome.step is None else f" at step {outcome.step}"
            )
        else:
            values = zip(spec.metrics, outcome.values, strict=True)
            logger.info(
                "%s: %s", what, ", ".join(f"{metric}={value:.6g}" for metric, value in values)
            )
            surprise = spec.out_of_bounds(attempt.number, outcome.values)
            if surprise is not None and row.study_id not in self._warned_of_bounds:
                self._warned_of_bounds.add(row.study_id)
                logger.warning("study %s: %s", row.name, surprise)
            if (
                not unwritten.curve
                and row.study_id not in self._warned_of_no_reports
                and (mute := nothing_to_judge(spec, Reported(1, silent=True)))
                and not never_prunes(spec)
            ):
                self._warned_of_no_reports.add(row.study_id)
                logger.warning("study %s: %s", row.name, mute)
        return True

    def give_back(
        self,
        claim: Claim,
        outcome: Interrupted,
        facts: Mapping[str, JSONValue] = MappingProxyType({}),
    ) -> None:
        """Gives an unfinished trial back, so that any worker can take it up.

        After a lost attempt it then waits for `worker.poll_s`.
        """
        ledger = self._store.ledger
        self._contact.insist(
            lambda: ledger.release(claim, outcome.reason, lost=outcome.lost, facts=facts),
            until=Drain.NOW,
        )
        self._contact.gave(claim)
        logger.info(
            "trial %s given back: %s",
            "not begun" if isinstance(claim, Ticket) else claim.number,
            outcome.reason,
        )
        if outcome.lost:
            self._contact.wait(self._settings.poll_s)  # whatever ended it may still be at work

    def _runs_again(
        self, spec: StudySpec, attempt: Attempt, failed: Failed, unwritten: Unwritten
    ) -> bool:
        if not spec.runner.retries or not failed.passes(spec.runner.retry_on):
            return False

        def retry() -> bool:
            server = self._catch_up(attempt, unwritten)
            return self._store.ledger.retry(attempt, failed, unwritten.last_report, server=server)

        return self._contact.insist(retry, until=Drain.NOW)

    def _finish(
        self, attempt: Attempt, outcome: Completed | Pruned | Failed, unwritten: Unwritten
    ) -> None:
        def finish() -> None:
            server = self._catch_up(attempt, unwritten)
            self._store.ledger.finish(attempt, outcome, unwritten.last_report, server=server)

        self._contact.insist(finish, until=Drain.NOW)

    def _catch_up(self, attempt: Attempt, unwritten: Unwritten) -> datetime | None:
        """If another server answers than before, puts all that the attempt reported back into
        `unwritten`: that server may lack some of it.

        Returns:
            When the server started that has everything else; None if `unwritten` has it all.
        """
        if unwritten.anew is not None and unwritten.anew != self._contact.anew:
            if attempt.attempt == 1:
                # That the attempt began may be lost too.
                self._store.ledger.confirm(attempt, self._contact.lease, self._place)
            unwritten.again(self._contact.anew)
        return None if unwritten.anew is None else self._contact.server

    def flush(self, attempt: Attempt, unwritten: Unwritten) -> None:
        """Writes what the trial reported; if that fails, it is tried again later, at the latest
        with the result.
        """
        try:
            self._store.ledger.report(attempt, unwritten.report)
        except StoreUnavailableError as error:
            self._contact.lost(error)
        except LeaseLostError:
            raise
        except OrchestratorError as error:  # refused for good: the end of the trial will say so
            logger.debug("reports of trial %s were refused: %s", attempt.number, error)
        else:
            unwritten.forget()

    def run_dir(self, row: StudyRow, number: int, attempt: int, token: int | None) -> Path:
        """The run directory of one attempt of a trial."""
        return rundir.attempt_dir(Path(self._place.runs_dir), row.folder, number, attempt, token)


class LeftResults:
    """Reads the results that attempts left; warns once about each that cannot be read."""

    def __init__(self) -> None:
        self._unreadable: set[Path] = set()

    def result_in(self, run_dir: Path) -> tuple[Outcome, Unwritten] | None:
        """How the attempt ended and what it reported; None if it left no result or was only
        interrupted.
        """
        try:
            outcome, reported = rundir.read_result(run_dir), journal.read(run_dir)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if run_dir not in self._unreadable:
                logger.warning("%s: the result cannot be read: %s", run_dir, error)
                self._unreadable.add(run_dir)
            return None
        if outcome is None or isinstance(outcome, Interrupted):
            return None
        logger.info("%s holds a result that was not delivered; delivering it", run_dir)
        return outcome, Unwritten(*reported, facts=facts.read(run_dir))
