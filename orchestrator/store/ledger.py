"""Every transition of a trial: claim, create, report, finish, release, evict. One method, one transaction, one lease shown.

Locks are always taken in the order worker, Optuna's study row, our study row, trial, cell, ticket (a ticket that is claimed is
only ever skipped, never waited for); what a transition decides by is read in a statement after the lock, because a statement's
snapshot is older than the lock it waited for. Our rows are locked FOR NO KEY UPDATE, which lets foreign key checks pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row

from orchestrator.errors import LeaseLostError
from orchestrator.model import Completed, Failed, JSONValue, Pruned, Suggestion
from orchestrator.store.database import Database
from orchestrator.store.fleet import WorkerLease
from orchestrator.store.schema import (
    attempt,
    cell,
    event,
    optuna_intermediate_values,
    optuna_studies,
    optuna_trial_params,
    optuna_trial_system_attributes,
    optuna_trial_user_attributes,
    optuna_trial_values,
    optuna_trials,
    slot,
    study,
    ticket,
    token_seq,
    trial,
    worker,
)

_LIVE = ("CLAIMED", "RUNNING")
# Optuna stores naive UTC.
_UTC_NOW = sa.func.timezone("utc", sa.func.clock_timestamp())


@dataclass(frozen=True)
class Claim:
    """A ticket held under a lease: what to run, and the token every later write must show.

    `number` is None until `create`; for a trial taken up again it is the number it always had, with `values` its parameters
    and `attempt` the attempt that begins now.
    """

    study_id: int
    trial_id: int
    token: int
    ticket: int
    failures: int
    cell: int
    cell_values: Mapping[str, JSONValue]
    number: int | None = None
    optuna_trial_id: int | None = None
    values: Mapping[str, JSONValue] | None = None
    attempt: int = 1

    @property
    def resumed(self) -> bool:
        return self.attempt > 1


@dataclass(frozen=True)
class Place:
    """Where an attempt runs: its host's name and the root of the run directories there."""

    host: str
    runs_dir: str


class Ledger:
    """The writes of the trials of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------------------------------------- claiming

    def claim(self, lease: WorkerLease, studies: Sequence[int], place: Place) -> Claim | None:
        """Takes what is next in `studies` (in that order): a trial given back, else the next ticket; None when nothing is open.

        The worker must be done with what it claimed before. A cell's guaranteed shares come first: no other ticket is handed out before every share of every open cell is spent.

        Raises:
            LeaseLostError: the worker was evicted meanwhile.
        """
        for study_id in studies:
            with self._database.transaction() as c:
                self._hold_worker(c, lease)
                self._give_back_forgotten(c, lease)
                claimed = self._resume(c, lease, study_id, place) or self._next_ticket(c, lease, study_id)
            if claimed is not None:
                return claimed
        return None

    def _hold_worker(self, c: Connection, lease: WorkerLease) -> None:
        """Makes an eviction wait for this transaction, so a claim is never made for a worker that is already gone."""
        held = c.execute(
            sa.select(worker.c.worker_id)
            .where(worker.c.worker_id == lease.worker_id, worker.c.token == lease.token, worker.c.state == "ACTIVE")
            .with_for_update(read=True)
        ).one_or_none()
        if held is None:
            raise LeaseLostError(f"worker {lease.worker_id} was evicted: its lease had run out")

    def _give_back_forgotten(self, c: Connection, lease: WorkerLease) -> None:
        """A worker runs one trial at a time, so what it holds now came by a claim whose answer was lost."""
        rows = c.execute(
            sa.select(trial)
            .where(trial.c.worker_id == lease.worker_id, trial.c.state.in_(_LIVE))
            .with_for_update(key_share=True)
        ).all()
        for row in rows:
            self._give_back(c, row, "interrupted", "its claim was lost on the way to the worker")

    def _resume(self, c: Connection, lease: WorkerLease, study_id: int, place: Place) -> Claim | None:
        row = c.execute(
            sa.select(
                trial, ticket.c.ordinal, ticket.c.failures, cell.c.ordinal.label("cell"), cell.c["values"].label("cell_values")
            )
            .join(ticket, ticket.c.ticket_id == trial.c.ticket_id)
            .join(cell, cell.c.cell_id == trial.c.cell_id)
            .join(study, study.c.study_id == trial.c.study_id)
            .where(trial.c.study_id == study_id, trial.c.state == "RUNNING", trial.c.worker_id.is_(None), _is_active())
            .order_by(trial.c.trial_id)
            .limit(1)
            .with_for_update(of=trial, skip_locked=True, key_share=True)
        ).one_or_none()
        if row is None:
            return None
        token = c.execute(
            sa.update(trial)
            .where(trial.c.trial_id == row.trial_id)
            .values(worker_id=lease.worker_id, token=token_seq.next_value(), attempts=trial.c.attempts + 1)
            .returning(trial.c.token)
        ).scalar_one()
        self._begin_attempt(c, row.trial_id, row.attempts + 1, lease, place)
        return Claim(
            study_id=study_id,
            trial_id=row.trial_id,
            token=token,
            ticket=row.ordinal,
            failures=row.failures,
            cell=row.cell,
            cell_values=row.cell_values,
            number=row.number,
            optuna_trial_id=row.optuna_trial_id,
            values=row.values,
            attempt=row.attempts + 1,
        )

    def _next_ticket(self, c: Connection, lease: WorkerLease, study_id: int) -> Claim | None:
        columns = (ticket.c.ticket_id, ticket.c.ordinal, ticket.c.failures, ticket.c.cell_id)
        next_open = (
            sa.select(*columns)
            .join(study, study.c.study_id == ticket.c.study_id)
            .where(ticket.c.study_id == study_id, ticket.c.state == "OPEN", _is_active())
            .order_by(ticket.c.ordinal)
            .limit(1)
            .with_for_update(of=ticket, skip_locked=True, key_share=True)
        )
        row = c.execute(next_open.where(ticket.c.share.is_not(None))).one_or_none()
        if row is None:
            unspent = sa.exists().where(
                ticket.c.study_id == study_id, ticket.c.share.is_not(None), ticket.c.state.in_(("OPEN", "LIVE"))
            )
            if c.execute(sa.select(unspent)).scalar_one():
                return None
            # One binding at a time: two that read the same counts would give one cell both tickets.
            c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id).with_for_update(key_share=True))
            row = c.execute(next_open.where(ticket.c.share.is_(None))).one_or_none()
            if row is None:
                return None
        cell_id: int | None = row.cell_id or self._allocate_uniform(c, study_id)
        return None if cell_id is None else self._take(c, lease, study_id, row, cell_id)

    def _allocate_uniform(self, c: Connection, study_id: int) -> int | None:
        """Binds one more ticket to the open cell that has the fewest; under the study's lock."""
        fewest = (
            sa.select(cell.c.cell_id)
            .where(cell.c.study_id == study_id, cell.c.state == "OPEN")
            .order_by(cell.c.bound, cell.c.ordinal)
            .limit(1)
        )
        return c.execute(
            sa.update(cell)
            .where(cell.c.cell_id == fewest.scalar_subquery())
            .values(bound=cell.c.bound + 1)
            .returning(cell.c.cell_id)
        ).scalar_one_or_none()

    def _take(self, c: Connection, lease: WorkerLease, study_id: int, row: Row[Any, Any, Any, Any], cell_id: int) -> Claim:
        c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="LIVE", cell_id=cell_id))
        made = c.execute(
            sa.insert(trial)
            .values(
                study_id=study_id,
                ticket_id=row.ticket_id,
                cell_id=cell_id,
                worker_id=lease.worker_id,
                token=token_seq.next_value(),
            )
            .returning(trial.c.trial_id, trial.c.token)
        ).one()
        where = c.execute(
            sa.select(cell.c.ordinal, cell.c["values"].label("cell_values")).where(cell.c.cell_id == cell_id)
        ).one()
        return Claim(study_id, made.trial_id, made.token, row.ordinal, row.failures, where.ordinal, where.cell_values)

    # ------------------------------------------------------------------------------------------------------- while it runs

    def create(self, claim: Claim, suggestion: Suggestion, lease: WorkerLease, place: Place) -> Claim:
        """Creates the Optuna trial of a fresh claim, RUNNING, with all its parameters; returns the claim with its number.

        Raises:
            LeaseLostError: the claim is no longer ours, or the study is gone; nothing was created.
        """
        with self._database.transaction() as c:
            self._lock_study(c, claim.study_id)
            ours = c.execute(
                sa.select(trial)
                .where(trial.c.trial_id == claim.trial_id, trial.c.token == claim.token, trial.c.state.in_(_LIVE))
                .with_for_update(key_share=True)
            ).one_or_none()
            if ours is None:
                raise LeaseLostError(f"the ticket {claim.ticket} of study {claim.study_id} was given to another worker")
            if ours.state == "RUNNING":  # done before, by a COMMIT whose answer was lost
                return replace(claim, number=ours.number, optuna_trial_id=ours.optuna_trial_id, values=ours.values)
            # The highest id has the highest number: ids are drawn under the lock of the study's row, here as in Optuna.
            last = (
                sa.select(optuna_trials.c.number)
                .where(optuna_trials.c.study_id == claim.study_id)
                .order_by(optuna_trials.c.trial_id.desc())
                .limit(1)
                .scalar_subquery()
            )
            made = c.execute(
                sa.insert(optuna_trials)
                .values(study_id=claim.study_id, number=sa.func.coalesce(last + 1, 0), state="RUNNING", datetime_start=_UTC_NOW)
                .returning(optuna_trials.c.trial_id, optuna_trials.c.number)
            ).one()
            if suggestion.params:
                c.execute(
                    sa.insert(optuna_trial_params).values(
                        [
                            {
                                "trial_id": made.trial_id,
                                "param_name": p.name,
                                "param_value": p.internal,
                                "distribution_json": p.distribution,
                            }
                            for p in suggestion.params
                        ]
                    )
                )
            _write_attrs(c, optuna_trial_system_attributes, made.trial_id, suggestion.system_attrs)
            seq = self._next_seq(c, claim.study_id)
            c.execute(
                sa.update(trial)
                .where(trial.c.trial_id == claim.trial_id)
                .values(
                    state="RUNNING",
                    number=made.number,
                    optuna_trial_id=made.trial_id,
                    values=dict(suggestion.values),
                    seq=seq,
                    attempts=1,
                )
            )
            self._begin_attempt(c, claim.trial_id, 1, lease, place)
        return replace(claim, number=made.number, optuna_trial_id=made.trial_id, values=dict(suggestion.values))

    def report(self, claim: Claim, reports: Mapping[int, float], attrs: Mapping[str, JSONValue]) -> None:
        """Writes intermediate values and user attributes of a running trial; a step already reported keeps its first value.

        Raises:
            LeaseLostError: another attempt holds the trial, or it has ended; nothing was written.
        """
        with self._database.transaction() as c:
            self._lock_trial(c, claim)
            _write_reports(c, claim, reports)
            _write_attrs(c, optuna_trial_user_attributes, claim.optuna_trial_id, attrs)

    def may_prune(self, claim: Claim) -> bool:
        """Whether the trial's cell has a complete trial already; until then nothing in it is pruned."""
        with self._database.transaction() as c:
            return bool(
                c.execute(
                    sa.select(cell.c.completed > 0)
                    .join(trial, trial.c.cell_id == cell.c.cell_id)
                    .where(trial.c.trial_id == claim.trial_id)
                ).scalar_one_or_none()
            )

    # --------------------------------------------------------------------------------------------------------------- ending

    def finish(
        self,
        claim: Claim,
        outcome: Completed | Pruned | Failed,
        *,
        reports: Mapping[int, float],
        attrs: Mapping[str, JSONValue],
    ) -> None:
        """Ends the trial with its last reports and attributes, accepted once; the ticket is spent, or reopened for another try.

        Showing the same claim again after it was accepted is no error and changes nothing.

        Raises:
            LeaseLostError: another attempt holds the trial or has ended it; nothing was written.
        """
        with self._database.transaction() as c:
            self._lock_study(c, claim.study_id)
            row = self._lock_trial(c, claim, or_ended=True)
            if row.state != "RUNNING":
                return
            cell_row = c.execute(sa.select(cell).where(cell.c.cell_id == row.cell_id).with_for_update(key_share=True)).one()
            all_attrs = {**attrs, **(outcome.attrs if isinstance(outcome, Completed) else {})}
            if isinstance(outcome, Failed):
                all_attrs["failure"] = {"kind": outcome.kind, "message": outcome.message}
            if row.attempts > 1:
                all_attrs["attempts"] = row.attempts
            _write_reports(c, claim, reports)
            _write_attrs(c, optuna_trial_user_attributes, row.optuna_trial_id, all_attrs)
            self._end(c, row, cell_row, outcome)

    def release(self, claim: Claim, reason: str) -> None:
        """Gives an unfinished trial back, nobody's fault: another worker takes up the same trial, and no failure is counted.

        A lease that was lost meanwhile is no error: then there is nothing left to give back.
        """
        with self._database.transaction() as c:
            row = c.execute(
                sa.select(trial)
                .where(trial.c.trial_id == claim.trial_id, trial.c.token == claim.token, trial.c.state.in_(_LIVE))
                .with_for_update(key_share=True)
            ).one_or_none()
            if row is not None:
                self._give_back(c, row, "interrupted", reason)

    def evict(self, worker_id: int, reason: str) -> bool:
        """Removes a silent worker: its slot is free, its trials are given back.

        A trial that lost `runner.max_attempts` attempts this way fails: one that kills its host every time must end.

        Returns False when somebody else did it, or it renewed its lease in time.
        """
        with self._database.transaction() as c:
            gone = c.execute(
                sa.update(worker)
                .where(worker.c.worker_id == worker_id, worker.c.state == "ACTIVE")
                .values(state="GONE", reason=reason, ended_at=sa.func.clock_timestamp(), doing="gone")
            )
            if not gone.rowcount:
                return False
            held = c.execute(
                sa.select(trial.c.study_id).distinct().where(trial.c.worker_id == worker_id, trial.c.state == "RUNNING")
            ).scalars()
            for study_id in sorted(held):
                self._lock_study(c, study_id, missing_ok=True)
            c.execute(sa.delete(slot).where(slot.c.worker_id == worker_id))
            rows = c.execute(
                sa.select(trial)
                .where(trial.c.worker_id == worker_id, trial.c.state.in_(_LIVE))
                .order_by(trial.c.trial_id)
                .with_for_update(key_share=True)
            ).all()
            for row in rows:
                if row.state == "RUNNING" and row.lost + 1 >= self._max_attempts(c, row.study_id):
                    cell_row = c.execute(
                        sa.select(cell).where(cell.c.cell_id == row.cell_id).with_for_update(key_share=True)
                    ).one()
                    message = f"{row.lost + 1} attempts were lost with their workers, the last with: {reason}"
                    _write_attrs(
                        c, optuna_trial_user_attributes, row.optuna_trial_id, {"failure": {"kind": "lost", "message": message}}
                    )
                    self._end(c, row, cell_row, Failed("lost", message))
                else:
                    self._give_back(c, row, "lost", reason)
            c.execute(sa.insert(event).values(worker_id=worker_id, kind="evicted", reason=reason))
        return True

    def end_studies(self) -> list[int]:
        """Finishes active studies that are past their deadline and run nothing any more; returns their ids.

        Trials given back and not taken up again by then end as failed, so that none stays RUNNING for ever.
        """
        over = sa.and_(study.c.state == "ACTIVE", study.c.deadline_at <= sa.func.clock_timestamp())
        held = sa.exists().where(trial.c.study_id == study.c.study_id, trial.c.state.in_(_LIVE), trial.c.worker_id.is_not(None))
        ended = []
        with self._database.transaction() as c:
            for study_id in (
                c.execute(sa.select(study.c.study_id).where(over, ~held).order_by(study.c.study_id)).scalars().all()
            ):
                self._lock_study(c, study_id, missing_ok=True)
                if (
                    c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id, over, ~held)).one_or_none()
                    is None
                ):
                    continue
                rows = c.execute(
                    sa.select(trial)
                    .where(trial.c.study_id == study_id, trial.c.state == "RUNNING")
                    .with_for_update(key_share=True)
                ).all()
                for row in rows:
                    cell_row = c.execute(
                        sa.select(cell).where(cell.c.cell_id == row.cell_id).with_for_update(key_share=True)
                    ).one()
                    self._end(c, row, cell_row, Failed("budget", "budget.hours was over before the trial was taken up again"))
                c.execute(
                    sa.update(study).where(study.c.study_id == study_id).values(state="FINISHED", reason="budget.hours is over")
                )
                ended.append(study_id)
        return ended

    # -------------------------------------------------------------------------------------------------------------- the parts

    def _lock_study(self, c: Connection, study_id: int, *, missing_ok: bool = False) -> None:
        """Takes the lock Optuna itself takes, so that ids, numbers and news are handed out in commit order; then our row's."""
        found = c.execute(
            sa.select(optuna_studies.c.study_id).where(optuna_studies.c.study_id == study_id).with_for_update()
        ).one_or_none()
        if found is None and not missing_ok:
            raise LeaseLostError(f"study {study_id} was deleted from the database")
        c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id).with_for_update(key_share=True))

    def _lock_trial(self, c: Connection, claim: Claim, *, or_ended: bool = False) -> Row[Any]:
        row = c.execute(
            sa.select(trial)
            .where(trial.c.trial_id == claim.trial_id, trial.c.token == claim.token)
            .with_for_update(key_share=True)
        ).one_or_none()
        if row is None or (row.state != "RUNNING" and not or_ended):
            raise LeaseLostError(f"trial {claim.number} of study {claim.study_id} is another's by now; this result is refused")
        return row

    def _next_seq(self, c: Connection, study_id: int) -> int:
        return int(
            c.execute(
                sa.update(study).where(study.c.study_id == study_id).values(news=study.c.news + 1).returning(study.c.news)
            ).scalar_one()
        )

    def _begin_attempt(self, c: Connection, trial_id: int, number: int, lease: WorkerLease, place: Place) -> None:
        c.execute(
            sa.insert(attempt).values(
                trial_id=trial_id, attempt=number, worker_id=lease.worker_id, host=place.host, runs_dir=place.runs_dir
            )
        )

    def _end_attempt(self, c: Connection, row: Row[Any], outcome: str) -> None:
        c.execute(
            sa.update(attempt)
            .where(attempt.c.trial_id == row.trial_id, attempt.c.attempt == row.attempts)
            .values(ended_at=sa.func.clock_timestamp(), outcome=outcome)
        )

    def _max_attempts(self, c: Connection, study_id: int) -> int:
        setting = study.c.spec["runner"]["max_attempts"].as_integer()
        return int(c.execute(sa.select(sa.func.coalesce(setting, 5)).where(study.c.study_id == study_id)).scalar_one())

    def _give_back(self, c: Connection, row: Row[Any], outcome: str, reason: str) -> None:
        if row.state == "CLAIMED":  # no Optuna trial yet: the ticket is as if never touched
            c.execute(sa.delete(trial).where(trial.c.trial_id == row.trial_id))
            c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="OPEN"))
            return
        # The token stays: a result of the old attempt is still welcome until somebody takes the trial up.
        c.execute(
            sa.update(trial)
            .where(trial.c.trial_id == row.trial_id)
            .values(worker_id=None, lost=trial.c.lost + (1 if outcome == "lost" else 0))
        )
        self._end_attempt(c, row, outcome)
        c.execute(sa.insert(event).values(study_id=row.study_id, trial_id=row.trial_id, kind="released", reason=reason))

    def _end(self, c: Connection, row: Row[Any], cell_row: Row[Any], outcome: Completed | Pruned | Failed) -> None:
        """Writes the terminal state of trial, ticket and cell; under the locks of study, trial and cell."""
        state = {Completed: "COMPLETE", Pruned: "PRUNED", Failed: "FAIL"}[type(outcome)]
        if isinstance(outcome, Completed):
            c.execute(
                sa.insert(optuna_trial_values).values(
                    [{"trial_id": row.optuna_trial_id, "objective": i, **_stored(v)} for i, v in enumerate(outcome.values)]
                )
            )
        c.execute(
            sa.update(optuna_trials)
            .where(optuna_trials.c.trial_id == row.optuna_trial_id)
            .values(state=state, datetime_complete=_UTC_NOW)
        )
        # A cell's guaranteed trials hold at least one complete one: a trial that prunes itself before that counts as failed.
        spends = isinstance(outcome, Completed) or (isinstance(outcome, Pruned) and cell_row.completed > 0)
        failure = (
            None
            if spends
            else outcome.message
            if isinstance(outcome, Failed)
            else "pruned itself before its cell had a complete trial"
        )
        c.execute(
            sa.update(trial)
            .where(trial.c.trial_id == row.trial_id)
            .values(
                state=state,
                holds_ticket=spends,
                worker_id=None,
                failure=failure,
                seq=self._next_seq(c, row.study_id),
                ended_at=sa.func.clock_timestamp(),
            )
        )
        self._end_attempt(c, row, {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}[state])
        if spends:
            c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="SPENT"))
            counter = cell.c.completed if isinstance(outcome, Completed) else cell.c.pruned
            c.execute(
                sa.update(cell).where(cell.c.cell_id == row.cell_id).values({counter: counter + 1, cell.c.failures_in_a_row: 0})
            )
        else:
            self._reopen(c, row, cell_row, failure or "")
        self._end_study_if_spent(c, row.study_id)

    def _reopen(self, c: Connection, row: Row[Any], cell_row: Row[Any], failure: str) -> None:
        """Gives the ticket another try; closes its cell at more than `budget.max_failures_per_cell` failures in a row."""
        in_a_row = cell_row.failures_in_a_row + 1
        c.execute(
            sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="OPEN", failures=ticket.c.failures + 1)
        )
        c.execute(
            sa.update(cell).where(cell.c.cell_id == row.cell_id).values(failed=cell.c.failed + 1, failures_in_a_row=in_a_row)
        )
        allowed = c.execute(
            sa.select(study.c.spec["budget"]["max_failures_per_cell"].as_integer()).where(study.c.study_id == row.study_id)
        ).scalar_one()
        if cell_row.state == "OPEN" and in_a_row <= allowed:
            return
        if cell_row.state == "OPEN":
            reason = f"{in_a_row} trials failed in a row; the last: {failure.splitlines()[0] if failure else 'unknown'}"
            c.execute(sa.update(cell).where(cell.c.cell_id == row.cell_id).values(state="CLOSED", reason=reason))
            c.execute(sa.insert(event).values(study_id=row.study_id, cell_id=row.cell_id, kind="cell closed", reason=reason))
        # What a closed cell leaves unspent goes to the others.
        freed = c.execute(
            sa.update(ticket).where(ticket.c.cell_id == row.cell_id, ticket.c.state == "OPEN").values(cell_id=None, share=None)
        )
        c.execute(sa.update(cell).where(cell.c.cell_id == row.cell_id).values(bound=cell.c.bound - freed.rowcount))

    def _end_study_if_spent(self, c: Connection, study_id: int) -> None:
        open_cells = sa.exists().where(cell.c.study_id == study_id, cell.c.state == "OPEN")
        if not c.execute(sa.select(open_cells)).scalar_one():
            c.execute(sa.update(ticket).where(ticket.c.study_id == study_id, ticket.c.state == "OPEN").values(state="VOID"))
        unspent = sa.exists().where(ticket.c.study_id == study_id, ticket.c.state.in_(("OPEN", "LIVE")))
        if not c.execute(sa.select(unspent)).scalar_one():
            void = sa.exists().where(ticket.c.study_id == study_id, ticket.c.state == "VOID")
            c.execute(
                sa.update(study)
                .where(study.c.study_id == study_id)
                .values(state="FINISHED", reason=sa.case((void, "every cell is closed"), else_="budget spent"))
            )


def _is_active() -> sa.ColumnElement[bool]:
    return sa.and_(
        study.c.state == "ACTIVE", sa.or_(study.c.deadline_at.is_(None), study.c.deadline_at > sa.func.clock_timestamp())
    )


def _write_attrs(c: Connection, table: sa.Table, trial_id: int | None, attrs: Mapping[str, JSONValue]) -> None:
    if attrs:
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        statement = insert(table).values(rows)
        c.execute(
            statement.on_conflict_do_update(
                index_elements=["trial_id", "key"], set_={"value_json": statement.excluded.value_json}
            )
        )


def _write_reports(c: Connection, claim: Claim, reports: Mapping[int, float]) -> None:
    if reports:
        rows = [
            {"trial_id": claim.optuna_trial_id, "step": step, **_stored(value, "intermediate_value")}
            for step, value in reports.items()
        ]
        c.execute(insert(optuna_intermediate_values).values(rows).on_conflict_do_nothing(index_elements=["trial_id", "step"]))


def _stored(value: float, name: str = "value") -> dict[str, Any]:
    """Optuna's columns for a float that may be infinite, or NaN for an intermediate one."""
    kind = "NAN" if math.isnan(value) else "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {name: value if kind == "FINITE" else None, f"{name}_type": kind}
