"""Every transition of a trial: claim, create, report, finish, release, evict. Each is one method
and one transaction.

Locks are always taken in the order worker, Optuna's study row, our study row, trial, cell, ticket.
A ticket that another worker is claiming is skipped, never waited for. What a transition depends on
is read in a statement after the lock, because a statement's snapshot is older than the lock it
waited for. Our rows are locked FOR NO KEY UPDATE, which lets foreign key checks pass.

Every method may be called again if its answer was lost: it then finds its work done. `later` sends
a statement with the next one, see `connection.statement`; the aliases of tables are in `schema`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import LeaseLostError
from orchestrator.model import Completed, Failed, JSONValue, Pruned, Report, Suggestion, TrialNews
from orchestrator.store.connection.statement import Row, Statement, answer, answers, later
from orchestrator.store.ledger import endings, probes, shortages, tickets
from orchestrator.store.ledger.claims import (
    HELD_TRIAL,
    IDLE,
    JUST_LOST,
    LOCK_TRIAL,
    TRIALS,
    Attempt,
    Claim,
    Place,
    Prepared,
    Ticket,
    new_token,
    prepared_of,
)
from orchestrator.store.ledger.endings import (
    NO_FACTS,
    Facts,
    lock_if_exists,
    lock_study,
    lock_to_end,
    refused,
)
from orchestrator.store.ledger.fleet import Silent, WorkerLease, hold_worker
from orchestrator.store.ledger.probes import Probe
from orchestrator.store.ledger.shortages import TRIAL_FITS
from orchestrator.store.ledger.suggested import write_missing
from orchestrator.store.ledger.tickets import Choice, Found, Undecided
from orchestrator.store.news import news_after
from orchestrator.store.optuna import rows as optuna_rows
from orchestrator.store.states import ACTIVE, LIVE

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

NO_PROBES: Mapping[str, str] = MappingProxyType({})
# User attributes of a trial, for people who look at it in Optuna's tools.
WHY_ATTR = "orchestrator:why"
BY_HAND_ATTR = "orchestrator:by_hand"
CONFIRMS_ATTR = "orchestrator:confirms"
COPIED_FROM_ATTR = "orchestrator:copied_from"
RETRIED_FROM_ATTR = "orchestrator:retried_from"


class _Measured(Enum):
    """Says that a cell has been measured by every probe."""

    YES = 1


_MEASURED: Final = _Measured.YES


class Ledger:
    """The writes of the trials of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------------- claiming

    def claim_one(
        self,
        lease: WorkerLease,
        study_id: int,
        place: Place,
        choice: Choice | None = None,
        *,
        adaptive: bool = False,
        confirm: int = 0,
        likely: Sequence[int] = (),
        ahead: bool = False,
        since: int | None = None,
        launched: datetime | None = None,
        keys: Mapping[str, str] = NO_PROBES,
        max_attempts: int = 1,
    ) -> Claim | Probe | Undecided | None:
        """Takes what is next in a study: a trial given back, else the next ticket, else a trial
        that another has prepared.

        None if there is none of these. The worker must have finished what it claimed before, unless
        it claims ahead; if it got no answer to a claim, it must call `give_back_held` first. Among
        tickets, those by hand come first, then the cells' guaranteed shares: no other ticket is
        handed out before every share of every open cell is spent.

        Args:
            adaptive: the caller chooses the cell of a ticket that has none. Then nothing is taken
                yet, and the answer lists the cells; the next call passes the `choice`.
            confirm: so many of the last tickets may repeat a leading configuration. The answer is
                as for `adaptive` then, whatever the allocation.
            likely: ordinals of the cells to choose from if there are more than `MOST_CHOICES`.
            ahead: take only a ticket, and only while no trial waits that was given back.
            since: include the study's news since this position in the answer.
            launched: when the study was launched, as the caller knows it; None is returned if it
                was launched again since.
            keys: of the study's probes by name, see `measurement.probe_key`. If the cell of the
                next ticket has not been measured by all of them on the worker's device type, the
                ticket is left, and the next such probe is begun. Ahead nothing is taken then.
            max_attempts: how many workers a probe may lose.

        Raises:
            LeaseLostError: the worker was evicted meanwhile.
        """
        with self._database.transaction() as c:
            found: Found | Undecided | None = tickets.look(c, study_id, place, lease, launched)
            if found is None:
                found = tickets.look_further(
                    c,
                    study_id,
                    lease,
                    choice,
                    adaptive=adaptive,
                    confirm=confirm,
                    likely=likely,
                    launched=launched,
                )
            if found is None or (ahead and isinstance(found, Found) and found.kind != "ticket"):
                return None
            if isinstance(found, Found) and found.kind == "given back":
                return self._take_up(c, found.row_id, lease, place)
            if isinstance(found, Found) and found.kind == "prepared":
                return self._take_over(c, found.row_id, lease)
            if isinstance(found, Found) and keys and found.confirms is None:
                due = self._probe(c, lease, place, found, keys, max_attempts, ahead=ahead)
                if due is not _MEASURED:
                    return due
            taken = (
                found
                if isinstance(found, Undecided)
                else self._take_ticket(c, lease, study_id, found, keys)
            )
            return taken if since is None else replace(taken, news=news_after(c, study_id, since))

    def _take_up(self, c: Connection, trial_id: int, lease: WorkerLease, place: Place) -> Attempt:
        """Takes a trial that was given back, and begins its next attempt."""
        later(
            c, _TAKE_UP, {"trial_id": trial_id, "worker_id": lease.worker_id, "token": new_token()}
        )
        later(c, _BEGIN_ATTEMPT, {"trial_id": trial_id, **_where(lease, place)})
        later(c, _START_OPTUNA_TRIAL, {"trial_id": trial_id})
        (row,) = answers(c, _TRIAL, {"trial_id": trial_id})
        return prepared_of(row).begun(row.attempts)

    def _take_over(self, c: Connection, trial_id: int, lease: WorkerLease) -> Prepared:
        """Takes a trial that another worker has prepared; whatever that worker does with it is
        refused from now on.
        """
        later(
            c,
            _TAKE_OVER,
            {"trial_id": trial_id, "worker_id": lease.worker_id, "token": new_token()},
        )
        (row,) = answers(c, _TRIAL, {"trial_id": trial_id})
        return prepared_of(row)

    def _probe(
        self,
        c: Connection,
        lease: WorkerLease,
        place: Place,
        found: Found,
        keys: Mapping[str, str],
        max_attempts: int,
        *,
        ahead: bool,
    ) -> Probe | _Measured | None:
        """The probe that the cell of a ticket still needs, begun; None if nothing may be begun now,
        `_MEASURED` if it needs none.
        """
        if ahead:
            needs = probes.needs(c, found.row_id, found.cell_id, lease, keys)
            return None if needs else _MEASURED
        try:
            due = probes.begin_due(c, found.row_id, found.cell_id, lease, place, keys, max_attempts)
        except probes.LostRaceError:
            return None
        return _MEASURED if due is None else due

    def _take_ticket(
        self,
        c: Connection,
        lease: WorkerLease,
        study_id: int,
        found: Found,
        keys: Mapping[str, str] = NO_PROBES,
    ) -> Ticket:
        """Makes a trial for the ticket, in the cell that it has or that was chosen for it."""
        later(c, _TAKE_TICKET, {"ticket_id": found.row_id, "cell_id": found.cell_id})
        which = {"ticket_id": found.row_id, "number": found.confirms}
        # A trial that a failover has lost cannot be repeated.
        repeats = found.confirms is not None and answer(c, _REPEAT_TRIAL, which) is not None
        if found.cell_id is not None and not repeats:
            later(c, _COUNT_BOUND, {"cell_id": found.cell_id})
        later(
            c,
            _INSERT_TRIAL,
            {"ticket_id": found.row_id, "worker_id": lease.worker_id, "token": new_token()},
        )
        if found.why is not None:
            why = {"ticket_id": found.row_id, "reason": json.dumps(found.why)}
            later(c, _RECORD_ALLOCATION, why)
        (row,) = answers(c, _NEW_TRIAL, {"ticket_id": found.row_id})
        return Ticket(
            study_id,
            row.trial_id,
            row.token,
            row.ordinal,
            row.failures,
            row.cell,
            row.cell_values,
            fixed=row.fixed,
            why=found.why,
            confirms=row.confirms,
            copied_from=row.copied_from,
            measurements=probes.measurements(c, row.cell, study_id, lease, keys) if keys else (),
        )

    # -------------------------------------------------------------------------------- while it runs

    def create(
        self,
        held: Ticket,
        suggestion: Suggestion | Callable[[list[TrialNews], int], Suggestion],
        lease: WorkerLease,
        place: Place,
        *,
        since: int | None = None,
        alike: bool = False,
        start: bool = True,
        revision: int | None = None,
    ) -> Prepared | Attempt | None:
        """Creates the Optuna trial of a ticket, RUNNING, with all its parameters, and begins its
        first attempt.

        If an earlier call did the work and its answer was lost, the trial is returned as that call
        left it.

        Args:
            suggestion: the parameters, or a function that suggests them. The function is called
                under the study's lock, with the news after `since` and their last position, so that
                what it suggests is up to date.
            since: how far the caller has read the study's news. If others have created trials since
                then, the suggestion may repeat theirs: nothing is created, and None is returned.
                None: that is not checked.
            alike: only a trial with the very same parameters makes a suggestion outdated.
            start: begin the first attempt. If False, the trial is only prepared, and no attempt is
                counted until the method `start` is called.
            revision: of the study, under which the suggestion is made. If the ticket was claimed
                while the study was extended, it is given back instead, for its cell may be gone and
                what is searched may be different; what was claimed before that is lost anyway.
                None: that is not checked.

        Raises:
            LeaseLostError: the ticket was given to another worker or given back, or the study was
                deleted; nothing was created.
        """
        with self._database.transaction() as c:
            lock_study(c, held.study_id)
            later(c, LOCK_TRIAL, held.proof)
            values = None if callable(suggestion) else json.dumps(dict(suggestion.values))
            look = {
                **held.proof,
                "study_id": held.study_id,
                "since": since,
                "values": values if alike else None,
            }
            (ours,) = answers(c, _LOOK_BEFORE_CREATE, look)
            endings.refuse_deleted(held.study_id, ours.optuna_study_id)
            if ours.state not in LIVE:
                raise LeaseLostError(
                    f"the ticket {held.ticket} of study {held.study_id} was given back, or to "
                    "another worker"
                )
            if ours.state != "CLAIMED":
                made = held.prepared(ours.number, ours.optuna_trial_id, ours.values)
                return made if ours.state == "PREPARED" else made.begun(ours.attempts)
            if revision is not None and revision != ours.revision:
                endings.give_back(
                    c, answers(c, HELD_TRIAL, held.proof)[0], "interrupted", "", in_optuna=True
                )
                extended = ours.revision
            else:
                return self._create(c, held, ours, suggestion, lease, place, since, start=start)
        raise LeaseLostError(
            f"study {held.study_id} was extended (revision {extended}) after the ticket "
            f"{held.ticket} was claimed, which was given back"
        )

    def _create(
        self,
        c: Connection,
        held: Ticket,
        ours: Row,
        suggestion: Suggestion | Callable[[list[TrialNews], int], Suggestion],
        lease: WorkerLease,
        place: Place,
        since: int | None,
        *,
        start: bool,
    ) -> Prepared | Attempt | None:
        """What `create` does once the ticket is known to be free for it."""
        if callable(suggestion):
            suggestion = suggestion(*news_after(c, held.study_id, since or 0))
        elif ours.newer:
            return None
        optuna_rows.create_trial(c, held.study_id, ours.next_id, ours.next_number, suggestion)
        made = held.prepared(ours.next_number, ours.next_id, dict(suggestion.values))
        created = {
            "number": made.number,
            "optuna_trial_id": made.optuna_trial_id,
            "values": json.dumps(made.values),
            "revision": ours.revision,
        }
        which = {"study_id": held.study_id, "trial_id": held.trial_id}
        later(
            c,
            _CREATE,
            {
                **which,
                **created,
                "state": "RUNNING" if start else "PREPARED",
                "attempts": int(start),
            },
        )
        origin: dict[str, JSONValue] = {} if held.why is None else {WHY_ATTR: dict(held.why)}
        if held.confirms is not None:
            origin[CONFIRMS_ATTR] = held.confirms
        elif held.fixed is not None:
            if ours.retried_from is not None:
                origin[RETRIED_FROM_ATTR] = ours.retried_from
            elif held.copied_from is not None:
                origin[COPIED_FROM_ATTR] = dict(held.copied_from)
            else:
                origin[BY_HAND_ATTR] = True
        optuna_rows.write_user_attrs(c, ours.next_id, origin)
        if start:
            later(c, _BEGIN_ATTEMPT, {"trial_id": held.trial_id, **_where(lease, place)})
        return made.begun() if start else made

    def start(self, prepared: Prepared, lease: WorkerLease, place: Place) -> Attempt | None:
        """Begins a prepared trial: its first attempt counts from now. None if it must not begin;
        then give it back.

        It must not begin if another worker has taken it over, its study no longer starts trials, or
        its cell has been closed for the worker's device.
        """
        attempt = prepared.begun()
        return attempt if self.confirm(attempt, lease, place) else None

    def confirm(self, first: Attempt, lease: WorkerLease, place: Place) -> bool:
        """Begins a trial's first attempt, or finds that it has begun; False if it must not begin,
        as in `start`.

        Call it for a running attempt too: the database may have lost the record that it began.
        """
        (row,) = self._database.execute(
            _START, {**first.proof, **_where(lease, place)}, decides=True
        )
        return bool(row.begun)

    def report(self, held: Attempt, report: Report) -> None:
        """Writes what a running trial reported; a step and a constraint keep their first value, an
        attribute its last.

        Raises:
            LeaseLostError: another attempt holds the trial, or it has ended; nothing was written.
        """
        with self._database.transaction() as c:
            row = answer(c, HELD_TRIAL, held.proof)
            if (
                row is None
                or row.state not in ("PREPARED", "RUNNING")
                or not optuna_rows.has_trial(c, row.optuna_trial_id)
            ):
                raise LeaseLostError(refused(held))
            optuna_rows.write_reports(c, row.optuna_trial_id, report.intermediate)
            optuna_rows.write_user_attrs(c, row.optuna_trial_id, report.attrs)
            optuna_rows.write_constraints(
                c, row.optuna_trial_id, report.constraints, report.artifacts
            )

    def may_prune(self, held: Attempt) -> bool:
        """Whether the trial's cell has a complete trial; until then no trial of it is pruned."""
        rows = self._database.execute(_CELL_HAS_RESULT, {"trial_id": held.trial_id})
        return bool(rows and rows[0].completed)

    # --------------------------------------------------------------------------------------- ending

    def finish(
        self,
        held: Attempt,
        outcome: Completed | Pruned | Failed,
        report: Report,
        *,
        server: datetime | None = None,
    ) -> None:
        """Ends the trial with its last report, once; its ticket is spent, or reopened for another
        try.

        Args:
            server: when the server started that everything else was written to. If a different one
                answers, which may have lost that, nothing is written.

        Raises:
            StoreUnavailableError: as `transaction` does, and if a different server answers.
            LeaseLostError: another attempt holds the trial, or the trial has ended in another
                state; nothing was written.
        """
        with self._database.transaction() as c:
            row = lock_to_end(c, held, server)
            if row.state != "RUNNING":
                if row.state != endings.state_of(outcome):
                    raise LeaseLostError(refused(held))
                return
            write_missing(c, row, report.suggested)
            optuna_rows.write_reports(c, row.optuna_trial_id, report.intermediate)
            optuna_rows.write_constraints(
                c, row.optuna_trial_id, report.constraints, report.artifacts
            )
            endings.end(c, row, outcome, report.attrs, report.facts)

    def retry(
        self,
        held: Attempt,
        failure: Failed,
        report: Report,
        *,
        server: datetime | None = None,
    ) -> bool:
        """Gives a trial back whose attempt failed for a transient reason: the same trial runs
        again, as its next attempt.

        False, and nothing is written, if it has had `runner.retries` retries; then call `finish`.
        Arguments as there.

        Raises:
            StoreUnavailableError: as `finish` does.
            LeaseLostError: another attempt holds the trial or has ended it; nothing was written.
        """
        with self._database.transaction() as c:
            row = lock_to_end(c, held, server)
            if row.state != "RUNNING":
                raise LeaseLostError(refused(held))
            # An earlier call did it, and the answer to its COMMIT was lost.
            if row.worker_id is None and endings.outcome_of_last(c, row) == "retried":
                return True
            if row.retries >= endings.runner_setting(c, held.study_id, "retries"):
                return False
            write_missing(c, row, report.suggested)
            optuna_rows.write_reports(c, row.optuna_trial_id, report.intermediate)
            optuna_rows.write_user_attrs(c, row.optuna_trial_id, report.attrs)
            optuna_rows.write_constraints(
                c, row.optuna_trial_id, report.constraints, report.artifacts
            )
            why = f"{failure.kind}: {failure.message.splitlines()[0]}"
            endings.give_back(c, row, "retried", why, in_optuna=True, facts=report.facts)
        return True

    def give_back_held(self, lease: WorkerLease, reason: str, *, but: Collection[int] = ()) -> int:
        """Gives back what the database lists for the worker, as after a lost answer; returns the
        number of trials and probes.

        Args:
            but: the tokens of the claims that the worker does hold.

        Raises:
            LeaseLostError: the worker was evicted; it holds nothing any more.
        """
        with self._database.transaction() as c:
            hold_worker(c, lease, alone=True)
            measured = probes.give_back_all(c, lease.worker_id, reason, but=but)
            return measured + endings.give_back_all(c, lease.worker_id, reason, but=but)

    def release(
        self, held: Claim, reason: str, *, lost: bool = False, facts: Facts = NO_FACTS
    ) -> None:
        """Gives an unfinished trial back, so that another worker takes up the same trial.

        This is not a failure and not counted, unless the attempt was `lost` as if with its worker;
        then see `evict`. If the lease was lost, there is nothing to give back, and that is not an
        error.
        """
        with self._database.transaction() as c:
            in_optuna = lock_if_exists(c, held.study_id)
            row = answer(c, HELD_TRIAL, held.proof)
            if row is not None and row.state in LIVE and row.worker_id is not None:
                endings.give_back_or_fail(
                    c,
                    row,
                    "lost" if lost else "interrupted",
                    reason,
                    in_optuna=in_optuna,
                    facts=facts,
                )

    def deregister(self, lease: WorkerLease, reason: str) -> None:
        """The worker ends in order: its row ends, its slot is freed, and what it still holds is
        given back.
        """
        with self._database.transaction() as c:
            if self._remove_worker(c, _DEREGISTER, {**lease.proof, "reason": reason}):
                probes.give_back_all(c, lease.worker_id, reason)
                endings.give_back_all(c, lease.worker_id, reason)

    def evict(self, silent: Silent) -> bool:
        """Removes a silent worker: its slot is freed, its trials are given back.

        A trial that lost `runner.max_attempts` attempts this way fails, because one that kills its
        host every time must end. Returns False if another process removed the worker, or it renewed
        its lease in time.
        """
        with self._database.transaction() as c:
            gone = {
                "worker_id": silent.worker_id,
                "token": silent.token,
                "dead": silent.dead,
                "reason": silent.reason,
            }
            if not self._remove_worker(c, _EVICT, gone):
                return False
            later(c, _NAME_PREPARED, {"worker_id": silent.worker_id})
            studies = answers(c, _STUDIES_OF, {"worker_id": silent.worker_id})
            in_optuna = {row.study_id for row in studies if lock_if_exists(c, row.study_id)}
            held = {"worker_id": silent.worker_id, "but": []}
            for row in answers(c, endings.HELD_BY_WORKER, held):
                endings.give_back_or_fail(
                    c, row, "lost", silent.reason, in_optuna=row.study_id in in_optuna
                )
            later(c, _EVICTED, {"worker_id": silent.worker_id, "reason": silent.reason})
        return True

    def left_at(self, place: Place) -> list[Attempt]:
        """The last attempts of trials that nobody runs, of those that ran at `place`, where their
        results may lie.

        Such an attempt may still `finish` its trial until another attempt takes it up, even if the
        study starts no trials.
        """
        rows = self._database.execute(_LEFT_AT, {"host": place.host, "runs_dir": place.runs_dir})
        return [
            replace(prepared_of(row).begun(row.attempts), ran_under=row.ran_under) for row in rows
        ]

    def end_studies(self) -> list[int]:
        """Finishes studies that were stopped or are past their deadline, once none of their trials
        runs; returns their ids.

        Trials that were given back and not taken up again fail, so that none stays RUNNING forever;
        their tickets remain for a launch with more time. A trial whose worker has just died is left
        for its host, where its result may be.
        """
        found = self._database.execute(_TO_END)
        closed = [row.study_id for row in found if row.closed]
        for study_id in closed:
            self._end_closed_study(study_id)
        short = any(row.short for row in found)
        still = shortages.standing_still(self._database) if short else []
        for study_id in still:
            self._close_what_fits_nowhere(study_id)
        if closed or still:
            found = self._database.execute(_TO_END)
        return [row.study_id for row in found if row.over and self._end_study(row.study_id)]

    # ------------------------------------------------------------------------------------ the parts

    def _end_closed_study(self, study_id: int) -> None:
        """Finishes a study that has no open cell left; needed because giving back a ticket does not
        do that, and one may be given back after the last cell closed.
        """
        with self._database.transaction() as c:
            if lock_if_exists(c, study_id):
                tickets.end_study_if_spent(c, study_id)

    def _close_what_fits_nowhere(self, study_id: int) -> None:
        """Closes cells for all where a study waits for a device that no living worker has; their
        tickets go to the others.
        """
        with self._database.transaction() as c:
            if lock_if_exists(c, study_id):
                reason = shortages.close_for_all(c, study_id)
                if reason is not None:
                    endings.abandon_all(c, study_id, reason, kind="device")
                    tickets.end_study_if_spent(c, study_id)

    def _end_study(self, study_id: int) -> bool:
        """Finishes a study that is over, failing the trials that nobody runs; False if it is not
        over, or was finished.
        """
        with self._database.transaction() as c:
            in_optuna = lock_if_exists(c, study_id)
            row = answer(c, _IS_OVER, {"study_id": study_id})
            if row is None or not in_optuna:
                return False
            why = "budget.hours is over" if row.state in ("ACTIVE", "PAUSED") else row.reason
            endings.abandon_all(c, study_id, f"{why}, and nobody had taken the trial up again")
            if row.state == "FINISHED":
                return False
            later(c, _FINISH, {"study_id": study_id, "reason": why, "tell": True})
            return True

    def _remove_worker(self, c: Connection, removing: Statement, which: Mapping[str, Any]) -> bool:
        """Ends the worker's row and frees its slot, if `removing` finds it; False if not."""
        gone = answer(c, removing, which) is not None
        if gone:
            later(c, _FREE_SLOT, {"worker_id": which["worker_id"]})
        return gone


_REMOVE = """
    UPDATE orchestrator.worker SET state = 'GONE', reason = :reason, doing = 'gone',
        ended_at = clock_timestamp()
    WHERE worker_id = :worker_id AND state = 'ACTIVE'
"""
_DEREGISTER = Statement(f"{_REMOVE} AND token = :token RETURNING worker_id")
_EVICT = Statement(
    f"""
    {_REMOVE}
        AND token = coalesce(CAST(:token AS bigint), token)
        AND (lease_until < clock_timestamp() OR CAST(:dead AS bool))
    RETURNING worker_id
    """
)
_FREE_SLOT = Statement("DELETE FROM orchestrator.slot WHERE worker_id = :worker_id")
_STUDIES_OF = Statement(
    f"""
    SELECT DISTINCT o.study_id FROM orchestrator.trial o
    WHERE o.worker_id = :worker_id AND o.state IN {LIVE} ORDER BY o.study_id
    """
)
_EVICTED = Statement(
    "INSERT INTO orchestrator.event (worker_id, kind, reason) VALUES (:worker_id, 'evicted', "
    ":reason)"
)
# An attempt with any other outcome has delivered its result.
_LEFT_AT = Statement(
    TRIALS.replace("l.values AS cell_values", "l.values AS cell_values, a.token AS ran_under")
    + """
    JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
    WHERE o.state = 'RUNNING' AND o.worker_id IS NULL
        AND a.host = :host AND a.runs_dir = :runs_dir AND a.outcome IN ('lost', 'interrupted')
    ORDER BY o.trial_id
    """
)
_CELL_HAS_RESULT = Statement(
    """
    SELECT l.completed FROM orchestrator.trial o JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    WHERE o.trial_id = :trial_id
    """
)
_INSERT_TRIAL = Statement(
    """
    INSERT INTO orchestrator.trial (study_id, ticket_id, cell_id, worker_id, token, retried_from)
    SELECT t.study_id, t.ticket_id, t.cell_id, :worker_id, :token, t.retried_from
    FROM orchestrator.ticket t WHERE t.ticket_id = :ticket_id
    """
)
_NEW_TRIAL = Statement(
    """
    SELECT o.trial_id, o.token, t.ordinal, t.failures, t.fixed, t.confirms, t.copied_from,
        l.ordinal AS cell, l.values AS cell_values
    FROM orchestrator.trial o
    JOIN orchestrator.ticket t ON t.ticket_id = o.ticket_id
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    WHERE o.ticket_id = :ticket_id AND o.holds_ticket
    """
)
_TRIAL = Statement(f"{TRIALS} WHERE o.trial_id = :trial_id")
_TAKE_UP = Statement(
    """
    UPDATE orchestrator.trial SET state = 'RUNNING', attempts = attempts + 1,
        worker_id = :worker_id, token = :token
    WHERE trial_id = :trial_id
    """
)
_TAKE_OVER = Statement(
    "UPDATE orchestrator.trial SET worker_id = :worker_id, token = :token WHERE trial_id = "
    ":trial_id"
)
_COUNT_BOUND = Statement("UPDATE orchestrator.cell SET bound = bound + 1 WHERE cell_id = :cell_id")
_TAKE_TICKET = Statement(
    "UPDATE orchestrator.ticket SET state = 'LIVE', cell_id = coalesce(:cell_id, cell_id) WHERE "
    "ticket_id = :ticket_id"
)
# All but the values of its cell, as they were stored.
_REPEAT_TRIAL = Statement(
    """
    UPDATE orchestrator.ticket t
    SET confirms = o.number, fixed = coalesce(
        (
            SELECT json_object_agg(v.key, v.value) FROM json_each(o.values) v
            WHERE v.key NOT IN (SELECT json_object_keys(l.values))
        ), '{}')
    FROM orchestrator.trial o JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    WHERE t.ticket_id = :ticket_id AND o.study_id = t.study_id AND o.number = :number
        AND o.cell_id = t.cell_id
    RETURNING t.ticket_id
    """
)
_RECORD_ALLOCATION = Statement(
    """
    INSERT INTO orchestrator.event (study_id, trial_id, cell_id, kind, reason)
    SELECT o.study_id, o.trial_id, o.cell_id, 'allocated', :reason
    FROM orchestrator.trial o WHERE o.ticket_id = :ticket_id AND o.holds_ticket
    """
)
# The highest id has the highest number, for both are drawn under the lock, here as in Optuna.
_LOOK_BEFORE_CREATE = Statement(
    """
    SELECT s.study_id AS optuna_study_id, o.state, o.number, o.optuna_trial_id, o.values,
        o.attempts, o.retried_from,
        coalesce((SELECT max(v.revision) FROM orchestrator.revision v
            WHERE v.study_id = :study_id), 1) AS revision,
        EXISTS (
            SELECT FROM (
                SELECT n.values FROM orchestrator.trial n WHERE n.study_id = :study_id
                    AND n.created_seq > :since
                ORDER BY n.created_seq OFFSET 0
                -- by its index, however many there may be when that is planned
            ) AS n
            WHERE CAST(:values AS text) IS NULL OR CAST(n.values AS jsonb) = CAST(:values AS jsonb)
        ) AS newer,
        coalesce((SELECT t.number FROM trials t
            WHERE t.study_id = :study_id ORDER BY t.trial_id DESC LIMIT 1) + 1, 0)
            AS next_number,
        nextval(pg_get_serial_sequence('trials', 'trial_id')) AS next_id
    FROM (SELECT) AS one
    LEFT JOIN studies s ON s.study_id = :study_id
    LEFT JOIN orchestrator.trial o ON o.trial_id = :trial_id AND o.token = :token
    """
)
_CREATE = Statement(
    """
    WITH next AS (UPDATE orchestrator.study SET news = news + 1 WHERE study_id = :study_id
        RETURNING news)
    UPDATE orchestrator.trial
    SET state = :state, number = :number, optuna_trial_id = :optuna_trial_id,
        values = CAST(:values AS json), revision = :revision,
        attempts = :attempts, seq = next.news, created_seq = next.news
    FROM next WHERE trial_id = :trial_id
    """
)
_BEGIN_ATTEMPT = Statement(  # the one that the trial's row counts by now
    """
    INSERT INTO orchestrator.attempt
        (trial_id, attempt, token, worker_id, host, runs_dir, device_name, gpu_bytes, host_bytes)
    SELECT o.trial_id, o.attempts, o.token, :worker_id, :host, :runs_dir, d.device_name,
        d.gpu_bytes, coalesce(d.host_bytes, 0)
    FROM orchestrator.trial o LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    WHERE o.trial_id = :trial_id
    """
)
# What a worker of a version before the state had a name has prepared.
_NAME_PREPARED = Statement(
    """
    UPDATE orchestrator.trial SET state = 'PREPARED'
    WHERE worker_id = :worker_id AND state = 'RUNNING' AND attempts = 0
    """
)
_START_OPTUNA_TRIAL = Statement(
    """
    UPDATE trials SET datetime_start = timezone('utc', clock_timestamp())
    FROM orchestrator.trial o WHERE o.trial_id = :trial_id AND o.attempts = 1
        AND trials.trial_id = o.optuna_trial_id
    """
)
_START = Statement(
    f"""
    WITH begun AS (
        UPDATE orchestrator.trial o SET state = 'RUNNING', attempts = 1
        FROM orchestrator.study s LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
        WHERE o.trial_id = :trial_id AND o.token = :token AND o.state = 'PREPARED'
            AND o.worker_id = :worker_id
            AND s.study_id = o.study_id AND {ACTIVE} AND {TRIAL_FITS}
        RETURNING o.trial_id, o.token, o.optuna_trial_id
    ), counted AS (
        INSERT INTO orchestrator.attempt
            (trial_id, attempt, token, worker_id, host, runs_dir, device_name, gpu_bytes,
                host_bytes)
        SELECT b.trial_id, 1, b.token, :worker_id, :host, :runs_dir, d.device_name, d.gpu_bytes,
            coalesce(d.host_bytes, 0)
        FROM begun b LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    ), started AS (
        UPDATE trials SET datetime_start = timezone('utc', clock_timestamp())
        FROM begun b WHERE trials.trial_id = b.optuna_trial_id
    )
    SELECT EXISTS (SELECT FROM begun) OR EXISTS (
        -- by a call whose answer was lost
        SELECT FROM orchestrator.trial o
        WHERE o.trial_id = :trial_id AND o.token = :token AND o.worker_id = :worker_id
            AND o.state = 'RUNNING'
    ) AS begun
    """
)
# A study has to end: it was stopped or its time is over, and nothing of it runs; or it was ended
# with trials left.
_OF_STUDY = f"SELECT FROM orchestrator.trial o WHERE o.study_id = s.study_id AND o.state IN {LIVE}"
_OVER = f"""(
    NOT {JUST_LOST} AND CASE s.state
        WHEN 'FINISHED' THEN EXISTS ({_OF_STUDY} AND {IDLE})
        WHEN 'STOPPING' THEN NOT EXISTS ({_OF_STUDY} AND NOT {IDLE})
        ELSE s.deadline_at <= clock_timestamp() AND NOT EXISTS ({_OF_STUDY} AND NOT {IDLE}) END)"""
_IS_OVER = Statement(
    f"SELECT s.state, s.reason FROM orchestrator.study s WHERE s.study_id = :study_id AND {_OVER}"
)
_FINISH = tickets.finish(
    "SET state = 'FINISHED', reason = :reason, halt = false WHERE study_id = :study_id"
)
# No cell is open, and no ticket is in use or by hand.
_CLOSED = """(s.state <> 'FINISHED'
    AND NOT EXISTS (SELECT FROM orchestrator.cell l WHERE l.study_id = s.study_id
        AND l.state = 'OPEN')
    AND NOT EXISTS (
        SELECT FROM orchestrator.ticket t
        WHERE t.study_id = s.study_id AND (t.state = 'LIVE' OR (t.state = 'OPEN' AND t.extra))))"""
_TO_END = Statement(
    f"""
    SELECT s.study_id, {_CLOSED} AS closed, {_OVER} AS over, false AS short
    FROM orchestrator.study s WHERE {_CLOSED} OR {_OVER}
    UNION ALL
    SELECT NULL, false, false, true WHERE {shortages.SHORT}
    ORDER BY study_id
    """
)
"""The studies of which something has to end, and a row more if any cell is closed for a device; all
ask again and again.
"""


def _where(lease: WorkerLease, place: Place) -> dict[str, Any]:
    return {"worker_id": lease.worker_id, "host": place.host, "runs_dir": place.runs_dir}
