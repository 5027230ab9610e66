"""Every transition of a trial: claim, create, report, finish, release, evict. One method, one transaction, one lease shown.

Locks are always taken in the order worker, Optuna's study row, our study row, trial, cell, ticket (a ticket that is claimed is
only ever skipped, never waited for); what a transition decides by is read in a statement after the lock, because a statement's
snapshot is older than the lock it waited for. Our rows are locked FOR NO KEY UPDATE, which lets foreign key checks pass.

Every method may be called again after its answer was lost on the way: it then finds its work done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from orchestrator.errors import LeaseLostError
from orchestrator.model import Completed, Failed, JSONValue, Pruned, Suggestion, TrialNews
from orchestrator.store import optuna_rows, tickets
from orchestrator.store.claims import Claim, Place, claim_of, held_by, ran_at, with_ticket
from orchestrator.store.database import Database
from orchestrator.store.fleet import Silent, WorkerLease, hold_worker
from orchestrator.store.reads import news_after
from orchestrator.store.schema import attempt, cell, event, is_active, slot, study, ticket, token_seq, trial, worker
from orchestrator.store.tickets import Choice, Undecided

_LIVE = ("CLAIMED", "RUNNING")
LEFT_RESULT_S = 10.0
"""How long a study that ends waits for the result that a worker may have left on its host when it died, seconds."""
# User attributes of a trial, for people who look at it in Optuna's tools.
FAILURE_ATTR = "orchestrator:failure"
ATTEMPTS_ATTR = "orchestrator:attempts"
ATTEMPT_ATTR = "orchestrator:attempt_{}"
WHY_ATTR = "orchestrator:why"
BY_HAND_ATTR = "orchestrator:by_hand"
RETRIED_FROM_ATTR = "orchestrator:retried_from"


class Ledger:
    """The writes of the trials of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------------------------------------- claiming

    def claim(self, lease: WorkerLease, studies: Sequence[int], place: Place) -> Claim | None:
        """Takes what is next in `studies` (in that order), every cell beyond its share alike; see `claim_one`."""
        for study_id in studies:
            claimed = self.claim_one(lease, study_id, place)
            if isinstance(claimed, Claim):
                return claimed
        return None

    def claim_one(
        self,
        lease: WorkerLease,
        study_id: int,
        place: Place,
        choice: Choice | None = None,
        *,
        adaptive: bool = False,
        likely: Sequence[int] = (),
    ) -> Claim | Undecided | None:
        """Takes what is next in a study: a trial given back, else the next ticket; None if nothing is open.

        The worker must be done with what it claimed before; when it got no answer it must `give_back_held` first. Trials by
        hand come first, then the cells' guaranteed shares: no other ticket is handed out before every share of every open
        cell is spent.

        Args:
            adaptive: let the caller choose the cell of a ticket that has none: nothing is taken then, and the answer is what
                there is to choose from. The next call brings the `choice`.
            likely: ordinals of the cells it would choose among if there are more than `MOST_CHOICES`.

        Raises:
            LeaseLostError: the worker was evicted meanwhile.
        """
        with self._database.transaction() as c:
            hold_worker(c, lease)
            resumed = self._resume(c, lease, study_id, place)
            return resumed or self._begin(c, lease, study_id, choice, adaptive=adaptive, likely=likely)

    def _resume(self, c: Connection, lease: WorkerLease, study_id: int, place: Place) -> Claim | None:
        row = c.execute(
            with_ticket()
            .join(study, study.c.study_id == trial.c.study_id)
            .where(trial.c.study_id == study_id, trial.c.state == "RUNNING", trial.c.worker_id.is_(None), is_active())
            .order_by(ran_at(place).desc(), trial.c.trial_id)  # where its checkpoints and perhaps its result are
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
        return replace(claim_of(row), token=token, attempt=row.attempts + 1)

    def _begin(
        self,
        c: Connection,
        lease: WorkerLease,
        study_id: int,
        choice: Choice | None,
        *,
        adaptive: bool,
        likely: Sequence[int] = (),
    ) -> Claim | Undecided | None:
        next_ticket = tickets.take_next(c, study_id, choice, adaptive=adaptive, likely=likely)
        if next_ticket is None or isinstance(next_ticket, Undecided):
            return next_ticket
        made = c.execute(
            sa.insert(trial)
            .values(
                study_id=study_id,
                ticket_id=next_ticket.ticket_id,
                cell_id=next_ticket.cell_id,
                worker_id=lease.worker_id,
                token=token_seq.next_value(),
                retried_from=next_ticket.retried_from,
            )
            .returning(trial.c.trial_id, trial.c.token)
        ).one()
        place = c.execute(
            sa.select(cell.c.ordinal, cell.c["values"].label("cell_values")).where(cell.c.cell_id == next_ticket.cell_id)
        ).one()
        if next_ticket.why is not None:
            told = {"study_id": study_id, "trial_id": made.trial_id, "cell_id": next_ticket.cell_id}
            c.execute(sa.insert(event).values(**told, kind="allocated", reason=json.dumps(next_ticket.why)))
        return Claim(
            study_id,
            made.trial_id,
            made.token,
            next_ticket.ordinal,
            next_ticket.failures,
            place.ordinal,
            place.cell_values,
            fixed=next_ticket.fixed,
            why=next_ticket.why,
        )

    # ------------------------------------------------------------------------------------------------------- while it runs

    def create(
        self,
        claim: Claim,
        suggestion: Suggestion | Callable[[list[TrialNews], int], Suggestion],
        lease: WorkerLease,
        place: Place,
        *,
        known: int | None = None,
    ) -> Claim | None:
        """Creates the Optuna trial of a fresh claim, RUNNING, with all its parameters; returns the claim with its number.

        None, and nothing is created, if others have created trials since the caller knew the study's news up to `known`: it
        may have suggested what they did. A function instead of a suggestion is called under the study's lock, with the news
        since `known` and their last position; what it suggests is known to be up to date.

        Raises:
            LeaseLostError: the claim is no longer ours, or the study is gone; nothing was created.
        """
        with self._database.transaction() as c:
            self._lock_study(c, claim.study_id)
            ours = c.execute(held_by(claim).where(trial.c.state.in_(_LIVE))).one_or_none()
            if ours is None:
                raise LeaseLostError(f"the ticket {claim.ticket} of study {claim.study_id} was given to another worker")
            if ours.state == "RUNNING":
                return replace(claim, number=ours.number, optuna_trial_id=ours.optuna_trial_id, values=ours.values)
            if callable(suggestion):
                suggestion = suggestion(*news_after(c, claim.study_id, known or 0))
            elif known is not None and self._created_since(c, claim.study_id, known):
                return None
            optuna_trial_id, number = optuna_rows.create_trial(c, claim.study_id, suggestion)
            seq = self._next_seq(c, claim.study_id)
            changed = {"state": "RUNNING", "number": number, "optuna_trial_id": optuna_trial_id, "attempts": 1}
            values = {**changed, "values": dict(suggestion.values), "seq": seq, "created_seq": seq}
            c.execute(sa.update(trial).where(trial.c.trial_id == claim.trial_id).values(values))
            origin: dict[str, JSONValue] = {} if claim.why is None else {WHY_ATTR: dict(claim.why)}
            if claim.fixed is not None:
                origin |= {BY_HAND_ATTR: True} if ours.retried_from is None else {RETRIED_FROM_ATTR: ours.retried_from}
            optuna_rows.write_user_attrs(c, optuna_trial_id, origin)
            self._begin_attempt(c, claim.trial_id, 1, lease, place)
        return replace(claim, number=number, optuna_trial_id=optuna_trial_id, values=dict(suggestion.values))

    def report(
        self,
        claim: Claim,
        reports: Mapping[int, float],
        attrs: Mapping[str, JSONValue],
        constraints: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Writes what a running trial reported; a step and a constraint keep their first value, an attribute its last.

        Raises:
            LeaseLostError: another attempt holds the trial, or it has ended; nothing was written.
        """
        with self._database.transaction() as c:
            row = self._lock_trial(c, claim)
            if row.state != "RUNNING" or not optuna_rows.has_trial(c, row.optuna_trial_id):
                raise LeaseLostError(_refused(claim))
            optuna_rows.write_reports(c, row.optuna_trial_id, reports)
            optuna_rows.write_user_attrs(c, row.optuna_trial_id, attrs)
            optuna_rows.write_constraints(c, row.optuna_trial_id, constraints)

    def may_prune(self, claim: Claim) -> bool:
        """Whether the trial's cell has a complete trial already; until then nothing in it is pruned."""
        query = sa.select(cell.c.completed > 0).join(trial, trial.c.cell_id == cell.c.cell_id)
        with self._database.transaction() as c:
            return bool(c.execute(query.where(trial.c.trial_id == claim.trial_id)).scalar_one_or_none())

    # --------------------------------------------------------------------------------------------------------------- ending

    def finish(
        self,
        claim: Claim,
        outcome: Completed | Pruned | Failed,
        *,
        reports: Mapping[int, float],
        attrs: Mapping[str, JSONValue],
        constraints: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Ends the trial with its last reports and attributes, accepted once; the ticket is spent, or reopened for another try.

        Raises:
            LeaseLostError: another attempt holds the trial or has ended it, or it was failed meanwhile; nothing was written.
        """
        with self._database.transaction() as c:
            self._lock_study(c, claim.study_id)
            row = self._lock_trial(c, claim)
            if row.state != "RUNNING":
                if row.state != _state(outcome):
                    raise LeaseLostError(_refused(claim))
                return
            optuna_rows.write_reports(c, row.optuna_trial_id, reports)
            optuna_rows.write_constraints(c, row.optuna_trial_id, constraints)
            self._end(c, row, outcome, attrs)

    def retry(
        self,
        claim: Claim,
        failure: Failed,
        *,
        reports: Mapping[int, float],
        attrs: Mapping[str, JSONValue],
        constraints: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """Gives a trial back whose attempt failed for a reason that passes: the same trial runs again, as its next attempt.

        False, and nothing is written, when it has had `runner.retries` of them: then `finish` it.

        Raises:
            LeaseLostError: another attempt holds the trial or has ended it; nothing was written.
        """
        with self._database.transaction() as c:
            self._lock_study(c, claim.study_id)
            row = self._lock_trial(c, claim)
            if row.state != "RUNNING":
                raise LeaseLostError(_refused(claim))
            if row.worker_id is None and self._outcome_of_last(c, row) == "retried":  # by a COMMIT whose answer was lost
                return True
            if row.retries >= self._runner_setting(c, claim.study_id, "retries", 0):
                return False
            optuna_rows.write_reports(c, row.optuna_trial_id, reports)
            optuna_rows.write_user_attrs(c, row.optuna_trial_id, attrs)
            optuna_rows.write_constraints(c, row.optuna_trial_id, constraints)
            self._give_back(c, row, "retried", f"{failure.kind}: {failure.message.splitlines()[0]}", known=True)
        return True

    def give_back_held(self, lease: WorkerLease, reason: str) -> None:
        """Gives back whatever the worker holds: a worker that runs nothing holds what it was given by an answer that was lost.

        Raises:
            LeaseLostError: the worker was evicted meanwhile; then nothing is its own.
        """
        with self._database.transaction() as c:
            hold_worker(c, lease)
            self._give_back_all(c, lease.worker_id, reason)

    def release(self, claim: Claim, reason: str, *, lost: bool = False) -> None:
        """Gives an unfinished trial back: another worker takes up the same trial.

        Nobody's fault and not counted, unless the attempt was `lost` as if with its worker: then as `evict` says. A lease that
        was lost meanwhile is no error: then there is nothing left to give back.
        """
        with self._database.transaction() as c:
            known = self._lock_study(c, claim.study_id, missing_ok=True)
            row = c.execute(held_by(claim).where(trial.c.state.in_(_LIVE), trial.c.worker_id.is_not(None))).one_or_none()
            if row is not None:
                self._give_back_or_fail(c, row, "lost" if lost else "interrupted", reason, known=known)

    def deregister(self, lease: WorkerLease, reason: str) -> None:
        """The worker leaves in order: its row ends, its slot is free, and what it should still hold is given back."""
        with self._database.transaction() as c:
            mine = sa.and_(worker.c.worker_id == lease.worker_id, worker.c.token == lease.token, worker.c.state == "ACTIVE")
            if self._remove_worker(c, mine, lease.worker_id, reason):
                self._give_back_all(c, lease.worker_id, reason)

    def evict(self, silent: Silent) -> bool:
        """Removes a silent worker: its slot is free, its trials are given back.

        A trial that lost `runner.max_attempts` attempts this way fails: one that kills its host every time must end.
        Returns False when somebody else did it, or the worker renewed its lease in time.
        """
        with self._database.transaction() as c:
            lapsed = sa.or_(worker.c.lease_until < sa.func.clock_timestamp(), sa.literal(silent.dead))
            gone = sa.and_(worker.c.worker_id == silent.worker_id, worker.c.state == "ACTIVE", lapsed)
            if not self._remove_worker(c, gone, silent.worker_id, silent.reason):
                return False
            live = sa.and_(trial.c.worker_id == silent.worker_id, trial.c.state.in_(_LIVE))
            studies = c.execute(sa.select(trial.c.study_id).distinct().where(live)).scalars()
            known = {study_id for study_id in sorted(studies) if self._lock_study(c, study_id, missing_ok=True)}
            for row in c.execute(sa.select(trial).where(live).order_by(trial.c.trial_id).with_for_update(key_share=True)).all():
                self._give_back_or_fail(c, row, "lost", silent.reason, known=row.study_id in known)
            c.execute(sa.insert(event).values(worker_id=silent.worker_id, kind="evicted", reason=silent.reason))
        return True

    def left_at(self, place: Place) -> list[Claim]:
        """Trials that nobody runs and whose last attempt ran at `place`, where its result may lie, as that attempt's claims.

        Such a claim may still `finish` its trial, until another attempt takes it up; also in a study that hands out no trials.
        """
        unknown = attempt.c.outcome.in_(("lost", "interrupted"))  # the result of others is known
        query = with_ticket().where(trial.c.state == "RUNNING", trial.c.worker_id.is_(None), ran_at(place, unknown))
        with self._database.transaction() as c:
            return [claim_of(row) for row in c.execute(query.order_by(trial.c.trial_id))]

    def end_studies(self) -> list[int]:
        """Finishes studies that were stopped, or are past their deadline, and run nothing any more; returns their ids.

        Trials given back and not taken up again by then end as failed, so that none stays RUNNING for ever; their tickets
        stay for a launch with more time. One whose worker died a moment ago is left to that host, where its result may be.
        """
        live = sa.and_(trial.c.study_id == study.c.study_id, trial.c.state.in_(_LIVE))
        held = sa.exists().where(live, trial.c.worker_id.is_not(None))
        stranded = sa.exists().where(live, trial.c.worker_id.is_(None))
        just_lost = sa.exists().where(
            live,
            attempt.c.trial_id == trial.c.trial_id,
            attempt.c.outcome == "lost",
            attempt.c.ended_at > sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, LEFT_RESULT_S),
        )
        past = sa.and_(study.c.state.in_(("ACTIVE", "PAUSED")), study.c.deadline_at <= sa.func.clock_timestamp())
        late = sa.and_(sa.or_(past, study.c.state == "STOPPING"), ~held)
        over = sa.and_(sa.or_(late, sa.and_(study.c.state == "FINISHED", stranded)), ~just_lost)
        self._end_closed_studies()
        ended = []
        with self._database.transaction() as c:
            for study_id in c.execute(sa.select(study.c.study_id).where(over).order_by(study.c.study_id)).scalars().all():
                known = self._lock_study(c, study_id, missing_ok=True)
                row = c.execute(
                    sa.select(study.c.state, study.c.reason).where(study.c.study_id == study_id, over)
                ).one_or_none()
                if row is None or not known:
                    continue
                why = "budget.hours is over" if row.state in ("ACTIVE", "PAUSED") else row.reason
                self._abandon_all(c, study_id, f"{why}, and nobody had taken the trial up again")
                if row.state != "FINISHED":
                    changed = {"state": "FINISHED", "reason": why, "halt": False}
                    c.execute(sa.update(study).where(study.c.study_id == study_id).values(changed))
                    ended.append(study_id)
        return ended

    # -------------------------------------------------------------------------------------------------------------- the parts

    def _end_closed_studies(self) -> None:
        """Finishes studies that have no open cell left: a ticket given back after its last cell closed ends nothing itself."""
        open_cell = sa.exists().where(cell.c.study_id == study.c.study_id, cell.c.state == "OPEN")
        in_use = sa.or_(ticket.c.state == "LIVE", sa.and_(ticket.c.state == "OPEN", ticket.c.extra))
        used = sa.exists().where(ticket.c.study_id == study.c.study_id, in_use)
        closed = sa.and_(study.c.state != "FINISHED", ~open_cell, ~used)
        with self._database.transaction() as c:
            for study_id in c.execute(sa.select(study.c.study_id).where(closed).order_by(study.c.study_id)).scalars().all():
                if self._lock_study(c, study_id, missing_ok=True):
                    tickets.end_study_if_spent(c, study_id)

    def _lock_study(self, c: Connection, study_id: int, *, missing_ok: bool = False) -> bool:
        """Takes Optuna's lock, then our row's: ids, numbers and news are handed out in commit order. False if it is gone."""
        found = optuna_rows.lock_study(c, study_id)
        if not found and not missing_ok:
            raise LeaseLostError(f"study {study_id} was deleted from the database")
        c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id).with_for_update(key_share=True))
        return found

    def _lock_trial(self, c: Connection, claim: Claim) -> Row[Any]:
        row = c.execute(held_by(claim)).one_or_none()
        if row is None:
            raise LeaseLostError(_refused(claim))
        return row

    def _outcome_of_last(self, c: Connection, row: Row[Any]) -> str | None:
        last = sa.and_(attempt.c.trial_id == row.trial_id, attempt.c.attempt == row.attempts)
        outcome: str | None = c.execute(sa.select(attempt.c.outcome).where(last)).scalar_one()
        return outcome

    def _created_since(self, c: Connection, study_id: int, known: int) -> bool:
        newer = sa.exists().where(trial.c.study_id == study_id, trial.c.created_seq > known)
        return bool(c.execute(sa.select(newer)).scalar_one())

    def _next_seq(self, c: Connection, study_id: int) -> int:
        bump = sa.update(study).where(study.c.study_id == study_id).values(news=study.c.news + 1).returning(study.c.news)
        return int(c.execute(bump).scalar_one())

    def _begin_attempt(self, c: Connection, trial_id: int, number: int, lease: WorkerLease, place: Place) -> None:
        where = {"worker_id": lease.worker_id, "host": place.host, "runs_dir": place.runs_dir}
        c.execute(sa.insert(attempt).values(trial_id=trial_id, attempt=number, **where))

    def _end_attempt(self, c: Connection, row: Row[Any], outcome: str, reason: str | None = None) -> None:
        c.execute(
            sa.update(attempt)
            .where(attempt.c.trial_id == row.trial_id, attempt.c.attempt == row.attempts)
            .values(ended_at=sa.func.clock_timestamp(), outcome=outcome, reason=reason)
        )

    def _runner_setting(self, c: Connection, study_id: int, name: str, default: int) -> int:
        setting = sa.func.coalesce(study.c.spec["runner"][name].as_integer(), default)
        return int(c.execute(sa.select(setting).where(study.c.study_id == study_id)).scalar_one())

    def _remove_worker(self, c: Connection, which: sa.ColumnElement[bool], worker_id: int, reason: str) -> bool:
        changed = {"state": "GONE", "reason": reason, "doing": "gone", "ended_at": sa.func.clock_timestamp()}
        if not c.execute(sa.update(worker).where(which).values(changed)).rowcount:
            return False
        c.execute(sa.delete(slot).where(slot.c.worker_id == worker_id))
        return True

    def _give_back_all(self, c: Connection, worker_id: int, reason: str) -> None:
        held = sa.select(trial).where(trial.c.worker_id == worker_id, trial.c.state.in_(_LIVE)).order_by(trial.c.trial_id)
        for row in c.execute(held.with_for_update(key_share=True)).all():
            self._give_back(c, row, "interrupted", reason, known=False)

    def _give_back_or_fail(self, c: Connection, row: Row[Any], outcome: str, reason: str, *, known: bool) -> None:
        """Gives a trial back, or fails it when it lost its last attempt; under the study's lock if that is `known`."""
        may_end = outcome == "lost" and row.state == "RUNNING" and known
        if may_end and row.lost + 1 >= self._runner_setting(c, row.study_id, "max_attempts", 1):
            self._end(c, row, Failed("lost", f"{row.lost + 1} attempts were lost with their workers, the last: {reason}"), {})
        else:
            self._give_back(c, row, outcome, reason, known=known)

    def _give_back(self, c: Connection, row: Row[Any], outcome: str, reason: str, *, known: bool) -> None:
        """The trial is open to others; how its attempt ended is told in Optuna's study, if that is `known` to be there."""
        if row.state == "CLAIMED":  # no Optuna trial yet: the ticket is as if never touched
            c.execute(sa.delete(trial).where(trial.c.trial_id == row.trial_id))
            tickets.give_back(c, row.ticket_id, row.cell_id)
            return
        # The token stays: a result of the old attempt is still welcome until somebody takes the trial up.
        counted = {"lost": trial.c.lost + int(outcome == "lost"), "retries": trial.c.retries + int(outcome == "retried")}
        c.execute(sa.update(trial).where(trial.c.trial_id == row.trial_id).values(worker_id=None, **counted))
        self._end_attempt(c, row, outcome, reason)
        if known and outcome in ("lost", "retried"):
            ended = {ATTEMPT_ATTR.format(row.attempts): f"{outcome}: {reason}"}
            optuna_rows.write_user_attrs(c, row.optuna_trial_id, ended)
        c.execute(sa.insert(event).values(study_id=row.study_id, trial_id=row.trial_id, kind="released", reason=reason))

    def _end(self, c: Connection, row: Row[Any], outcome: Completed | Pruned | Failed, attrs: Mapping[str, JSONValue]) -> None:
        """Writes the terminal state of trial, ticket and cell; under the locks of study and trial."""
        cell_row = c.execute(sa.select(cell).where(cell.c.cell_id == row.cell_id).with_for_update(key_share=True)).one()
        # A cell's guaranteed trials hold at least one complete one: a trial that prunes itself before that counts as failed.
        spends = isinstance(outcome, Completed) or (isinstance(outcome, Pruned) and cell_row.completed > 0)
        failure = "pruned itself before its cell had a complete trial" if isinstance(outcome, Pruned) else None
        self._terminate(c, row, outcome, attrs, holds_ticket=spends, failure=None if spends else failure)
        self._end_attempt(c, row, type(outcome).__name__.lower())
        if spends:
            tickets.spend(c, row.ticket_id, row.cell_id, pruned=isinstance(outcome, Pruned))
        else:
            tickets.reopen(c, row.ticket_id, cell_row, outcome.message if isinstance(outcome, Failed) else str(failure))
        tickets.end_study_if_spent(c, row.study_id)

    def _abandon_all(self, c: Connection, study_id: int, reason: str) -> None:
        """Fails the trials that nobody holds; nobody's fault, so no failure of their cell is counted."""
        unheld = sa.and_(trial.c.study_id == study_id, trial.c.state == "RUNNING", trial.c.worker_id.is_(None))
        for row in c.execute(sa.select(trial).where(unheld).order_by(trial.c.trial_id).with_for_update(key_share=True)).all():
            self._terminate(c, row, Failed("budget", reason), {}, holds_ticket=False)
            tickets.give_back(c, row.ticket_id, row.cell_id)

    def _terminate(
        self,
        c: Connection,
        row: Row[Any],
        outcome: Completed | Pruned | Failed,
        attrs: Mapping[str, JSONValue],
        *,
        holds_ticket: bool,
        failure: str | None = None,
    ) -> None:
        """The trial becomes terminal, in Optuna's tables and in ours, and news."""
        attrs = dict(attrs)
        if isinstance(outcome, Completed):
            attrs |= outcome.attrs
        if isinstance(outcome, Failed):
            failure = outcome.message
            attrs[FAILURE_ATTR] = {"kind": outcome.kind, "message": outcome.message}
        if row.attempts > 1:
            attrs[ATTEMPTS_ATTR] = row.attempts
        optuna_rows.write_user_attrs(c, row.optuna_trial_id, attrs)
        values = outcome.values if isinstance(outcome, Completed) else ()
        optuna_rows.end_trial(c, row.optuna_trial_id, _state(outcome), values)
        changed = {"state": _state(outcome), "holds_ticket": holds_ticket, "worker_id": None, "failure": failure}
        ended = {"seq": self._next_seq(c, row.study_id), "ended_at": sa.func.clock_timestamp()}
        c.execute(sa.update(trial).where(trial.c.trial_id == row.trial_id).values({**changed, **ended}))


def _state(outcome: Completed | Pruned | Failed) -> str:
    return "COMPLETE" if isinstance(outcome, Completed) else "PRUNED" if isinstance(outcome, Pruned) else "FAIL"


def _refused(claim: Claim) -> str:
    return f"trial {claim.number} of study {claim.study_id} is another's or has ended by now; this result is refused"
