"""How a trial stops running: it ends, or is given back for others to take up. Under the locks that
`ledger` names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.errors import LeaseLostError, StoreUnavailableError
from orchestrator.model import Completed, Failed, JSONValue, Pruned
from orchestrator.settings import RunnerSettings
from orchestrator.store.connection.statement import Row, Statement, answer, answers, later
from orchestrator.store.ledger import brake, shortages, tickets
from orchestrator.store.ledger.claims import ENDING, IDLE, LOCK_TRIAL, Attempt
from orchestrator.store.optuna import rows as optuna_rows
from orchestrator.store.optuna.attributes import FAILURE_ATTR, fact_attrs
from orchestrator.store.states import LIVE

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Facts: TypeAlias = Mapping[str, JSONValue]
NO_FACTS: Facts = MappingProxyType({})
# User attributes of a trial, for people who look at it in Optuna's tools.
ATTEMPTS_ATTR = "orchestrator:attempts"
ATTEMPT_ATTR = "orchestrator:attempt_{}"


def lock_study(c: Connection, study_id: int) -> None:
    """Takes Optuna's lock, then our row's, so that ids, numbers and news are handed out in commit
    order.
    """
    later(c, optuna_rows.LOCK_STUDY, {"study_id": study_id})
    later(c, tickets.LOCK_STUDY, {"study_id": study_id})


def lock_if_exists(c: Connection, study_id: int) -> bool:
    """Locks the study as `lock_study` does; False if it was deleted from Optuna's tables."""
    lock_study(c, study_id)
    return optuna_rows.has_study(c, study_id)


def lock_to_end(c: Connection, held: Attempt, server: datetime | None = None) -> Row:
    """Takes every lock that the end of a trial needs, and returns what the end depends on
    (`ENDING`); one round trip.

    Args:
        server: when the expected server started; None: any.

    Raises:
        StoreUnavailableError: a different server answers.
        LeaseLostError: the trial was given to another worker, or the study was deleted.
    """
    lock_study(c, held.study_id)
    later(c, LOCK_TRIAL, held.proof)
    later(c, _LOCK_CELL_OF_TRIAL, {"trial_id": held.trial_id})
    row = answer(c, ENDING, held.proof)
    if row is not None and server is not None and row.server != server:
        raise StoreUnavailableError(
            "a different database server answers now; it may lack what was written to the one "
            "before"
        )
    if row is None:
        raise LeaseLostError(refused(held))
    refuse_deleted(held.study_id, row.optuna_study_id)
    return row


def refuse_deleted(study_id: int, optuna_study_id: int | None) -> None:
    """Raises `LeaseLostError` if Optuna's study was deleted."""
    if optuna_study_id is None:
        raise LeaseLostError(f"study {study_id} was deleted from the database")


def refused(held: Attempt) -> str:
    """Why nothing more is written for that attempt."""
    return (
        f"trial {held.number} of study {held.study_id} was given to another worker or has ended; "
        "this result is refused"
    )


def state_of(outcome: Completed | Pruned | Failed) -> str:
    """The state of a trial with that outcome."""
    return (
        "COMPLETE"
        if isinstance(outcome, Completed)
        else "PRUNED"
        if isinstance(outcome, Pruned)
        else "FAIL"
    )


def outcome_of_last(c: Connection, row: Row) -> str | None:
    """How the trial's last attempt ended; None while it runs."""
    (last,) = answers(c, _OUTCOME, {"trial_id": row.trial_id, "attempt": row.attempts})
    outcome: str | None = last.outcome
    return outcome


def runner_setting(c: Connection, study_id: int, name: str) -> int:
    """The study's setting ``runner.<name>``."""
    (row,) = answers(c, _RUNNER_SETTING, {"study_id": study_id, "name": name})
    return int(getattr(RunnerSettings, name) if row.value is None else row.value)


_OUTCOME = Statement(
    "SELECT outcome FROM orchestrator.attempt WHERE trial_id = :trial_id AND attempt = :attempt"
)
_RUNNER_SETTING = Statement(
    "SELECT s.spec #>> ARRAY['runner', :name] AS value FROM orchestrator.study s WHERE "
    "s.study_id = :study_id"
)


def end_attempt(
    c: Connection, row: Row, outcome: str, reason: str | None = None, facts: Facts = NO_FACTS
) -> None:
    """Writes how the trial's last attempt ended."""
    ended = {"outcome": outcome, "reason": reason, "facts": json.dumps(facts) if facts else None}
    later(c, _END_ATTEMPT, {"trial_id": row.trial_id, "attempt": row.attempts, **ended})


def give_back_all(c: Connection, worker_id: int, reason: str, *, but: Collection[int] = ()) -> int:
    """Gives back what a worker holds, except the claims with the tokens in `but`; returns the
    number of trials.
    """
    rows = answers(c, HELD_BY_WORKER, {"worker_id": worker_id, "but": list(but)})
    for row in rows:
        give_back(c, row, "interrupted", reason, in_optuna=False)
    return len(rows)


def give_back_or_fail(
    c: Connection, row: Row, outcome: str, reason: str, *, in_optuna: bool, facts: Facts = NO_FACTS
) -> None:
    """Gives a trial back, or fails it if it lost its last allowed attempt.

    Args:
        in_optuna: Optuna's study still exists, and its lock is held.
    """
    if row.state == "PREPARED":  # it never began: nothing is lost
        outcome = "interrupted"
    may_end = outcome == "lost" and row.state == "RUNNING" and in_optuna
    if may_end and row.lost + 1 >= runner_setting(c, row.study_id, "max_attempts"):
        later(c, _LOCK_CELL_OF_TRIAL, {"trial_id": row.trial_id})
        (row,) = answers(c, ENDING, {"trial_id": row.trial_id, "token": row.token})
        why = f"{row.lost + 1} attempts were lost with their workers, the last: {reason}"
        end(c, row, Failed("lost", why), {}, facts)
    else:
        give_back(c, row, outcome, reason, in_optuna=in_optuna, facts=facts)


def give_back(
    c: Connection, row: Row, outcome: str, reason: str, *, in_optuna: bool, facts: Facts = NO_FACTS
) -> None:
    """Leaves the trial for others to take up; with `in_optuna`, a user attribute in Optuna says how
    its attempt ended.
    """
    if row.state == "CLAIMED":  # no Optuna trial yet: the ticket is as if never touched
        later(c, tickets.DELETE_TRIAL, {"trial_id": row.trial_id})
        tickets.give_back(c, row.ticket_id, row.cell_id)
        return
    # The token stays: a result of the old attempt is accepted until another worker takes the trial
    # up.
    counted = {"lost": int(outcome == "lost"), "retries": int(outcome == "retried")}
    later(c, _GIVE_BACK, {"trial_id": row.trial_id, **counted})
    end_attempt(c, row, outcome, reason, facts)
    if in_optuna and outcome in ("lost", "retried"):
        ended = {ATTEMPT_ATTR.format(row.attempts): f"{outcome}: {reason}"}
        optuna_rows.write_user_attrs(c, row.optuna_trial_id, ended)
    later(c, _RELEASED, {"study_id": row.study_id, "trial_id": row.trial_id, "reason": reason})


HELD_BY_WORKER = Statement(
    f"""
    SELECT o.trial_id, o.study_id, o.ticket_id, o.cell_id, o.worker_id, o.state, o.optuna_trial_id,
        o.attempts, o.lost, o.token
    FROM orchestrator.trial o
    WHERE o.worker_id = :worker_id AND o.state IN {LIVE} AND o.token <> ALL(CAST(:but AS bigint[]))
    ORDER BY o.trial_id FOR NO KEY UPDATE
    """
)
"""What a worker holds, under lock, except the claims with the tokens in `but`."""
_GIVE_BACK = Statement(
    """
    UPDATE orchestrator.trial SET worker_id = NULL, lost = lost + :lost,
        retries = retries + :retries
    WHERE trial_id = :trial_id
    """
)
_RELEASED = Statement(
    """
    INSERT INTO orchestrator.event (study_id, trial_id, kind, reason)
    VALUES (:study_id, :trial_id, 'released', :reason)
    """
)


def end(
    c: Connection,
    row: Row,
    outcome: Completed | Pruned | Failed,
    attrs: Mapping[str, JSONValue],
    facts: Facts = NO_FACTS,
) -> None:
    """Ends a trial with everything that depends on it: attempt, ticket, cell and study; under the
    locks of study and trial. `terminate` alone ends only the trial.
    """
    attrs = {**attrs, **fact_attrs(facts)}
    # The pruner prunes no trial of a cell without a complete one, so this trial pruned itself.
    waits = (
        tickets.last_share(c, row) if isinstance(outcome, Pruned) and not row.completed else None
    )
    spends = not isinstance(outcome, Failed) and (waits is None or waits.free is not None)
    terminate(c, row, outcome, attrs, holds_ticket=spends)
    end_attempt(c, row, type(outcome).__name__.lower(), facts=facts)
    if isinstance(outcome, Failed):
        alike = None if row.completed or row.extra else brake.failures_alike(c, row)
        counts = tickets.reopen(
            c, row, outcome.message, in_a_row=outcome.kind != "oom" and alike is None
        )
        if outcome.kind == "oom":
            shortages.ran_out(c, row, outcome, counts=counts)
        if alike is not None:
            brake.pull(c, row, alike, outcome.message)
    else:
        if spends:
            tickets.spend(c, row.ticket_id, row.cell_id, pruned=isinstance(outcome, Pruned))
        if waits is not None:
            tickets.let_share_wait(c, row, waits)
        # A trial that pruned itself before its first report may not have used the memory yet.
        if isinstance(outcome, Completed) or outcome.step is not None:
            shortages.fitted(c, row)
    tickets.end_study_if_spent(c, row.study_id)


def abandon_all(c: Connection, study_id: int, reason: str, *, kind: str = "budget") -> None:
    """Fails the trials that nobody runs, without counting failures of their cells."""
    for row in answers(c, _UNHELD, {"study_id": study_id}):
        why = (
            reason
            if row.state == "RUNNING"
            else "it was prepared, and its study ended before it began"
        )
        terminate(c, row, Failed(kind, why), {}, holds_ticket=False)
        tickets.give_back(c, row.ticket_id, row.cell_id)


_UNHELD = Statement(
    f"""
    SELECT o.trial_id, o.study_id, o.ticket_id, o.cell_id, o.state, o.optuna_trial_id, o.attempts
    FROM orchestrator.trial o
    WHERE o.study_id = :study_id AND o.state IN ('PREPARED', 'RUNNING') AND {IDLE}
    ORDER BY o.trial_id FOR NO KEY UPDATE
    """
)


def terminate(
    c: Connection,
    row: Row,
    outcome: Completed | Pruned | Failed,
    attrs: Mapping[str, JSONValue],
    *,
    holds_ticket: bool,
) -> None:
    """Makes the trial terminal in Optuna's tables and in ours, and part of the news; leaves
    attempt, ticket and cell alone.
    """
    attrs, failure = dict(attrs), None
    if isinstance(outcome, Completed):
        attrs |= outcome.attrs
    if isinstance(outcome, Failed):
        failure = outcome.message
        memory = shortages.memory_attrs(c, row, outcome)
        attrs[FAILURE_ATTR] = {"kind": outcome.kind, "message": outcome.message, **memory}
    if row.attempts > 1:
        attrs[ATTEMPTS_ATTR] = row.attempts
    values = outcome.values if isinstance(outcome, Completed) else ()
    optuna_rows.end_trial(c, row.optuna_trial_id, state_of(outcome), values, attrs)
    which = {"study_id": row.study_id, "trial_id": row.trial_id}
    later(
        c,
        _TERMINATE,
        {**which, "state": state_of(outcome), "holds_ticket": holds_ticket, "failure": failure},
    )


_LOCK_CELL_OF_TRIAL = Statement(
    """
    SELECT FROM orchestrator.cell
    WHERE cell_id = (SELECT o.cell_id FROM orchestrator.trial o WHERE o.trial_id = :trial_id)
    FOR NO KEY UPDATE
    """
)
_TERMINATE = Statement(
    """
    WITH next AS (UPDATE orchestrator.study SET news = news + 1 WHERE study_id = :study_id
        RETURNING news)
    UPDATE orchestrator.trial
    SET state = :state, holds_ticket = :holds_ticket, worker_id = NULL, failure = :failure,
        seq = next.news,
        ended_at = clock_timestamp()
    FROM next WHERE trial_id = :trial_id
    """
)
_END_ATTEMPT = Statement(
    """
    UPDATE orchestrator.attempt
    SET ended_at = clock_timestamp(), outcome = :outcome, reason = :reason,
        facts = CAST(:facts AS jsonb)
    WHERE trial_id = :trial_id AND attempt = :attempt
    """
)
