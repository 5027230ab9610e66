"""Tickets and cells: which ticket is next, what spends it, when a cell closes or opens again, when
a study is over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, TrialNews
from orchestrator.store.connection.statement import (
    AnyConnection,
    Row,
    Statement,
    answer,
    answers,
    later,
)
from orchestrator.store.ledger.device_types import not_probed_elsewhere
from orchestrator.store.ledger.shortages import TRIAL_FITS, fits
from orchestrator.store.states import ACTIVE, ENOUGH, LIVE, STOPPED, UNSPENT

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.ledger.claims import Place
    from orchestrator.store.ledger.fleet import WorkerLease

MOST_CHOICES = 256
"""If more cells are open, an allocation chooses among this many: the likely ones, then those with
the fewest tickets.
"""


@dataclass(frozen=True)
class Undecided:
    """The next ticket has no cell yet; the study's allocation has to choose one of `cells`, each
    with ordinal and values.

    `confirms` means that it is one of those that may repeat a leading configuration; `confirming`
    are the numbers of the trials that others are about to repeat, of which there is no news yet,
    and `confirmed` those of all that were repeated for this reason or are about to be, as often as
    they were.
    """

    ordinal: int
    failures: int
    cells: tuple[tuple[int, Mapping[str, JSONValue]], ...]
    confirms: bool = False
    confirming: tuple[int, ...] = ()
    confirmed: tuple[int, ...] = ()
    news: tuple[list[TrialNews], int] | None = None


@dataclass(frozen=True)
class Choice:
    """The cell that an allocation chose, by its ordinal, and why; with `confirms` also the
    parameters: those of the trial of that number. That choice is outdated if more tickets than
    `confirmed` have been given to repetitions since; None: whatever others did.
    """

    cell: int
    why: Mapping[str, JSONValue]
    confirms: int | None = None
    confirmed: int | None = None


@dataclass(frozen=True)
class Found:
    """What is next in a study, under lock: the trial or the ticket `row_id`.

    `kind` says which: ``given back`` (a trial), ``prepared`` (a trial that another worker has
    prepared and not begun), ``ticket``. `cell_id` is the cell that an allocation binds the ticket
    to, and `why` its reason; both are None for a ticket that has its cell. `confirms` is the number
    of the trial whose parameters it is to repeat.
    """

    kind: str
    row_id: int
    cell_id: int | None = None
    why: Mapping[str, JSONValue] | None = None
    confirms: int | None = None


def look(
    c: Connection, study_id: int, place: Place, lease: WorkerLease, launched: datetime | None = None
) -> Found | None:
    """Locks a trial that was given back, else the next ticket by hand, else the next share: all
    have their cell.

    What others are taking is skipped, not waited for. So is what belongs to a cell that is closed
    for the worker's device, except trials by hand. A trial that ran at `place` comes first, because
    its checkpoint is there, and perhaps its result.

    Raises:
        LeaseLostError: the worker was evicted meanwhile.
    """
    later(c, _LOCK_WORKER, lease.proof)
    later(c, _BEFORE_LOOK)
    which = {
        **lease.proof,
        "host": place.host,
        "runs_dir": place.runs_dir,
        "study_id": study_id,
        "launched": launched,
    }
    (row,) = answers(c, _LOOK, which)
    if row.held is None:
        raise lease.lost()
    return None if row.kind is None else Found(row.kind, row.row_id)


def look_further(
    c: Connection,
    study_id: int,
    lease: WorkerLease,
    choice: Choice | None = None,
    *,
    adaptive: bool = False,
    confirm: int = 0,
    likely: Sequence[int] = (),
    launched: datetime | None = None,
) -> Found | Undecided | None:
    """Locks the next ticket without a cell, once every share is spent, and chooses its cell; else
    another's prepared trial.

    With `adaptive` such a ticket is not taken before the call has a `choice`, and neither is one of
    the last `confirm`.
    """
    # A row that changed while it was looked at stays locked although it was not returned; whoever
    # changed it may now hold the study's lock and wait for the row.
    later(c, _UNDO_LOOK)
    # One binding at a time: two that read the same counts would give both tickets to one cell. What
    # was read before the lock may be outdated: a launch that held it may have made new shares.
    later(c, LOCK_STUDY, {"study_id": study_id})
    chosen = None if choice is None else choice.cell
    which = {
        "study_id": study_id,
        "worker_id": lease.worker_id,
        "chosen": chosen,
        "launched": launched,
        "confirm": confirm,
    }
    (row,) = answers(c, _LOOK_FURTHER, which)
    if row.kind is None:
        return None
    if row.kind != "rest" or row.cell_id is not None:
        return Found("prepared" if row.kind == "prepared" else "ticket", row.row_id)
    confirms = row.left <= confirm
    outdated = (
        choice is not None
        and choice.confirms is not None
        and choice.confirmed not in (None, row.confirmed)
    )
    if (adaptive or confirms) and (choice is None or outdated):
        cells = _open_cells(c, study_id, lease.worker_id, likely)
        return _undecided(c, study_id, row, cells, confirms=confirms) if cells else None
    if choice is not None and row.chosen is not None:
        return Found("ticket", row.row_id, row.chosen, choice.why, choice.confirms)
    why: Mapping[str, JSONValue] = {
        "rule": "uniform",
        "why": "it had the fewest trials of the open cells",
    }
    if choice is not None:
        why = {**why, "why": f"{why['why']}; the chosen cell had been closed"}
    return None if row.fewest is None else Found("ticket", row.row_id, row.fewest, why)


def _undecided(
    c: Connection,
    study_id: int,
    row: Row,
    cells: tuple[tuple[int, Mapping[str, JSONValue]], ...],
    *,
    confirms: bool,
) -> Undecided:
    """The ticket of `row`, with what others have been given to repeat if it may repeat, too."""
    given = answers(c, _CONFIRMING, {"study_id": study_id}) if confirms else ()
    return Undecided(
        row.ordinal,
        row.failures,
        cells,
        confirms,
        tuple(ticket.confirms for ticket in given if ticket.claimed),
        tuple(ticket.confirms for ticket in given),
    )


_LOCK_WORKER = Statement(
    "SELECT FROM orchestrator.worker WHERE worker_id = :worker_id AND token = :token AND state = "
    "'ACTIVE' FOR SHARE"
)
_BEFORE_LOOK = b"SAVEPOINT before_look"
_UNDO_LOOK = b"ROLLBACK TO SAVEPOINT before_look"
LOCK_STUDY = Statement(
    "SELECT FROM orchestrator.study WHERE study_id = :study_id FOR NO KEY UPDATE"
)
_ACTIVE = f"""EXISTS (
    SELECT FROM orchestrator.study s
    WHERE s.study_id = :study_id AND s.launched_at = coalesce(:launched, s.launched_at)
        AND {ACTIVE})"""


def _open_ticket(kind: str, which: str) -> str:
    """SQL: the first open ticket for which `which` holds, under lock; its rows have this `kind`."""
    return f"""
        SELECT '{kind}' AS kind, t.* FROM (
            SELECT t.ticket_id AS row_id, t.ordinal, t.failures, t.cell_id
                FROM orchestrator.ticket t
            WHERE t.study_id = :study_id AND t.state = 'OPEN' AND {which}
            ORDER BY t.ordinal LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
        ) t
    """


def _takes(cell_id: str) -> str:
    """SQL: whether the worker with the slot `d` may take a ticket of the cell now."""
    return f"{fits(cell_id)} AND {not_probed_elsewhere(cell_id)}"


def _next_trial(which: str, order: str) -> str:
    """SQL: the first trial for which `which` holds, by `order`, under lock."""
    return f"""(
        SELECT o.trial_id AS row_id FROM orchestrator.trial o
        WHERE o.study_id = :study_id AND {which} AND {TRIAL_FITS}
        ORDER BY {order} LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    )"""


_SHARE = _open_ticket("ticket", f"t.share IS NOT NULL AND {_takes('t.cell_id')}")
# Each part is only run when those before it found nothing, so that nothing is locked in vain.
_RAN_HERE = """EXISTS (
    SELECT FROM orchestrator.attempt a
    WHERE a.trial_id = o.trial_id AND a.attempt = o.attempts AND a.host = :host
        AND a.runs_dir = :runs_dir)"""
_GIVEN_BACK = _next_trial(
    "o.state IN ('PREPARED', 'RUNNING') AND o.worker_id IS NULL", f"{_RAN_HERE} DESC, o.trial_id"
)
_LOOK = Statement(
    f"""
    SELECT held.worker_id AS held, n.kind, n.row_id
    FROM (SELECT) AS one
    LEFT JOIN orchestrator.worker held ON held.worker_id = :worker_id AND held.token = :token
        AND held.state = 'ACTIVE'
    LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    LEFT JOIN LATERAL (
        SELECT 'given back' AS kind, o.row_id, NULL::int AS ordinal, NULL::int AS failures,
            NULL::bigint AS cell_id
        FROM {_GIVEN_BACK} o
        UNION ALL {_open_ticket("ticket", "t.extra")}
        UNION ALL {_SHARE}
        LIMIT 1
    ) n ON held.worker_id IS NOT NULL AND {_ACTIVE}
    """
)
_CONFIRMING = Statement(
    """
    SELECT t.confirms, o.state = 'CLAIMED' AS claimed FROM orchestrator.ticket t
    JOIN orchestrator.trial o ON o.ticket_id = t.ticket_id AND o.holds_ticket
    WHERE t.study_id = :study_id AND t.confirms IS NOT NULL
    ORDER BY t.ticket_id
    """
)
_OPEN_CELL_THAT_FITS = f"l.study_id = :study_id AND l.state = 'OPEN' AND {_takes('l.cell_id')}"
_LOOK_FURTHER = Statement(
    f"""
    SELECT n.*,
        (
            SELECT l.cell_id FROM orchestrator.cell l WHERE {_OPEN_CELL_THAT_FITS}
                ORDER BY l.bound, l.ordinal LIMIT 1
        ) AS fewest,
        (SELECT l.cell_id FROM orchestrator.cell l WHERE {_OPEN_CELL_THAT_FITS}
            AND l.ordinal = :chosen) AS chosen,
        (
            SELECT count(*) FROM (
                SELECT FROM orchestrator.ticket t WHERE t.study_id = :study_id
                    AND t.state = 'OPEN' AND t.share IS NULL AND NOT t.extra
                LIMIT CAST(:confirm AS int) + 1
            ) AS last
        ) AS left,
        CASE WHEN :confirm > 0 THEN (
            SELECT count(*) FROM orchestrator.ticket t
            WHERE t.study_id = :study_id AND t.confirms IS NOT NULL
        ) ELSE 0 END AS confirmed
    FROM (SELECT) AS one
    LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    LEFT JOIN LATERAL (
        {_SHARE}
        UNION ALL
        SELECT rest.* FROM (SELECT WHERE NOT EXISTS (
            SELECT FROM orchestrator.ticket t
            WHERE t.study_id = :study_id AND t.share IS NOT NULL AND t.state IN ('OPEN', 'LIVE')
        )) AS spent
        CROSS JOIN LATERAL (
            {_open_ticket("rest", f"t.share IS NULL AND NOT t.extra AND {_takes('t.cell_id')}")}
        ) AS rest
        UNION ALL
        SELECT 'prepared', o.row_id, NULL, NULL, NULL
        FROM {_next_trial("o.state = 'PREPARED' AND o.worker_id <> :worker_id", "o.trial_id")} o
        LIMIT 1
    ) n ON {_ACTIVE}
    """
)


def _open_cells(
    c: Connection, study_id: int, worker_id: int, likely: Sequence[int]
) -> tuple[tuple[int, Mapping[str, JSONValue]], ...]:
    """The open cells by ordinal; of more than `MOST_CHOICES` the `likely` ones, and those with the
    fewest tickets.
    """
    which = {"study_id": study_id, "worker_id": worker_id, "most": MOST_CHOICES}
    cells = answers(c, _FIRST_CELLS, {**which, "most": MOST_CHOICES + 1})
    if len(cells) > MOST_CHOICES:
        named = (
            answers(c, _NAMED_CELLS, {**which, "likely": list(likely)[:MOST_CHOICES]})
            if likely
            else []
        )
        # the named ones come first
        by_ordinal = {row.ordinal: row for row in [*named, *answers(c, _FEWEST_TICKETS, which)]}
        cells = sorted(list(by_ordinal.values())[:MOST_CHOICES], key=lambda row: int(row.ordinal))
    return tuple((row.ordinal, row.cell_values) for row in cells)


_CELLS_THAT_FIT = f"""
    SELECT l.ordinal, l.values AS cell_values
    FROM orchestrator.cell l LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    WHERE {_OPEN_CELL_THAT_FITS}
"""
_FIRST_CELLS = Statement(f"{_CELLS_THAT_FIT} ORDER BY l.ordinal LIMIT :most")
_NAMED_CELLS = Statement(
    f"{_CELLS_THAT_FIT} AND l.ordinal = ANY(CAST(:likely AS int[])) LIMIT :most"
)
_FEWEST_TICKETS = Statement(f"{_CELLS_THAT_FIT} ORDER BY l.bound, l.ordinal LIMIT :most")


def give_back(c: AnyConnection, ticket_id: int, cell_id: int) -> None:
    """Makes the ticket as if nobody had taken it; no failure is counted. If its cell has closed, it
    goes to the other cells; one by hand ends if its cell is no longer on the grid. What it was to
    confirm is decided anew.
    """
    which = {"ticket_id": ticket_id, "cell_id": cell_id}
    later(c, LOCK_CELL, which)
    later(c, _CONFIRM_NOTHING, which)
    (row,) = answers(c, _REOPEN, which)
    if row.bound and row.closed and not row.extra:
        later(c, _LEAVE_CELL, which)
        later(c, _COUNT_FREED, {"cell_id": cell_id, "freed": 1})


DELETE_TRIAL = Statement("DELETE FROM orchestrator.trial WHERE trial_id = :trial_id")
"""Of a trial that was never created, whose ticket is given back."""
LOCK_CELL = Statement("SELECT FROM orchestrator.cell WHERE cell_id = :cell_id FOR NO KEY UPDATE")
_REOPEN = Statement(
    """
    UPDATE orchestrator.ticket t
    SET state = CASE WHEN t.extra AND l.removed_in IS NOT NULL THEN 'VOID' ELSE 'OPEN' END
    FROM orchestrator.cell l
    WHERE t.ticket_id = :ticket_id AND l.cell_id = :cell_id
    RETURNING t.extra, t.cell_id IS NOT NULL AS bound, l.state = 'CLOSED' AS closed
    """
)
# A ticket that leaves its cell also drops the parameters that its trial was to repeat; `retry` can
# set them again.
LEAVE = "cell_id = NULL, share = NULL, fixed = NULL, retried_from = NULL"
_LEAVE_CELL = Statement(f"UPDATE orchestrator.ticket SET {LEAVE} WHERE ticket_id = :ticket_id")
# It was not counted among the tickets of its cell.
_CONFIRM_NOTHING = Statement(
    """
    UPDATE orchestrator.ticket SET confirms = NULL, cell_id = NULL, fixed = NULL
    WHERE ticket_id = :ticket_id AND confirms IS NOT NULL
    """
)
_COUNT_FREED = Statement(
    "UPDATE orchestrator.cell SET bound = bound - :freed WHERE cell_id = :cell_id"
)


def spend(c: Connection, ticket_id: int, cell_id: int, *, pruned: bool) -> None:
    """The ticket is spent by a complete or a pruned trial of its cell."""
    later(c, _SPEND, {"ticket_id": ticket_id})
    later(
        c, _COUNT_SPENT, {"cell_id": cell_id, "completed": int(not pruned), "pruned": int(pruned)}
    )


_SPEND = Statement("UPDATE orchestrator.ticket SET state = 'SPENT' WHERE ticket_id = :ticket_id")
_COUNT_SPENT = Statement(
    """
    UPDATE orchestrator.cell SET completed = completed + :completed, pruned = pruned + :pruned,
        failures_in_a_row = 0
    WHERE cell_id = :cell_id
    """
)


@dataclass(frozen=True)
class LastShare:
    """The last unspent share of a cell that has no complete trial; `free` is a ticket that no cell
    has yet, None if all do.
    """

    share: int
    free: int | None


def last_share(c: Connection, row: Row) -> LastShare | None:
    """The share that goes on waiting for a complete trial of its cell, although this trial pruned
    itself; None if no share waits.

    It stops waiting once more trials of the cell have pruned themselves than it has shares plus
    `budget.max_failures_per_cell`; an event says so. Under the study's lock.

    Args:
        row: of the trial, as `claims.ENDING` reads it; its cell has no complete trial.
    """
    (cell_now,) = answers(
        c,
        _LAST_SHARE,
        {"ticket_id": row.ticket_id, "cell_id": row.cell_id, "study_id": row.study_id},
    )
    if cell_now.share is None or cell_now.others or row.cell_state != "OPEN":
        return None
    pruned = cell_now.pruned + 1
    if pruned >= cell_now.per_cell + row.max_failures:
        reason = (
            f"{'its one trial' if pruned == 1 else f'all its {pruned} trials'} pruned themselves"
        )
        _record_event(c, row, NO_COMPLETE_TRIAL, reason)
        return None
    return LastShare(cell_now.share, cell_now.free)


NO_COMPLETE_TRIAL = "no complete trial"
"""Kind of the event that tells of a cell whose last share no longer waits for a complete trial."""
SHARE_WAITS = "share waits"
"""Kind of the event that tells of a trial that pruned itself, and so left its share to another
ticket of its cell.
"""
_LAST_SHARE = Statement(
    """
    SELECT t.share, CAST(s.spec #>> '{budget,per_cell}' AS int) AS per_cell,
        (SELECT count(*) FROM orchestrator.trial o WHERE o.cell_id = :cell_id
            AND o.state = 'PRUNED') AS pruned,
        EXISTS (
            SELECT FROM orchestrator.ticket k WHERE k.cell_id = :cell_id
                AND k.ticket_id <> t.ticket_id
                AND k.share IS NOT NULL AND k.state IN ('OPEN', 'LIVE')
        ) AS others,
        (
            SELECT k.ticket_id FROM orchestrator.ticket k
            WHERE k.study_id = :study_id AND k.state = 'OPEN' AND k.cell_id IS NULL
                ORDER BY k.ordinal LIMIT 1
        ) AS free
    FROM orchestrator.ticket t JOIN orchestrator.study s ON s.study_id = t.study_id
    WHERE t.ticket_id = :ticket_id
    """
)


def let_share_wait(c: Connection, row: Row, last: LastShare) -> None:
    """Hands the share to the free ticket, because this one is spent; without a free one this ticket
    gets another try.

    Under the study's lock, without which no ticket without a cell is taken.
    """
    which = {"ticket_id": row.ticket_id, "cell_id": row.cell_id}
    if last.free is None:
        later(c, _TRY_AGAIN, which)
        later(c, _NO_FAILURE_IN_A_ROW, which)
    else:
        later(c, _LOSE_SHARE, which)
        later(c, _GET_SHARE, {"ticket_id": last.free, "cell_id": row.cell_id, "share": last.share})
        later(c, _COUNT_FREED, {"cell_id": row.cell_id, "freed": -1})
    _record_event(
        c, row, SHARE_WAITS, f"trial {row.number} pruned itself before its cell had a complete one"
    )


_TRY_AGAIN = Statement(
    """
    UPDATE orchestrator.ticket SET state = 'OPEN', failures = failures + 1, fixed = NULL,
        retried_from = NULL
    WHERE ticket_id = :ticket_id
    """
)
_NO_FAILURE_IN_A_ROW = Statement(
    "UPDATE orchestrator.cell SET failures_in_a_row = 0 WHERE cell_id = :cell_id"
)
_LOSE_SHARE = Statement("UPDATE orchestrator.ticket SET share = NULL WHERE ticket_id = :ticket_id")
_GET_SHARE = Statement(
    "UPDATE orchestrator.ticket SET cell_id = :cell_id, share = :share WHERE ticket_id = :ticket_id"
)


def _record_event(c: Connection, row: Row, kind: str, reason: str) -> None:
    later(
        c,
        _EVENT,
        {
            "study_id": row.study_id,
            "trial_id": row.trial_id,
            "cell_id": row.cell_id,
            "kind": kind,
            "reason": reason,
        },
    )


_EVENT = Statement(
    """
    INSERT INTO orchestrator.event (study_id, trial_id, cell_id, kind, reason)
    VALUES (:study_id, :trial_id, :cell_id, :kind, :reason)
    """
)


def reopen(c: Connection, row: Row, failure: str, *, in_a_row: bool = True) -> bool:
    """Gives the ticket of a failed trial another try; more than `budget.max_failures_per_cell` in a
    row close its cell.

    The next try is suggested by the sampler, even if this one was by hand. A ticket on top of the
    budget gets no other try, and its failure does not count against the cell: then False.

    Args:
        row: of the trial, as `claims.ENDING` reads it.
        in_a_row: whether the failure is one of those in a row; exhausted memory is counted by
            device, see `shortages`.
    """
    which = {"ticket_id": row.ticket_id, "cell_id": row.cell_id}
    later(c, _CONFIRM_NOTHING, which)
    later(c, _FAIL_TICKET, {**which, "state": "VOID" if row.extra else "OPEN"})
    count = row.failures_in_a_row + (in_a_row and not row.extra)
    later(c, _COUNT_FAILED, {**which, "in_a_row": count})
    if row.extra:
        return False
    if row.cell_state == "OPEN":
        if not in_a_row or count <= row.max_failures:
            return True
        reason = (
            f"{count} trials failed in a row; the last: "
            f"{failure.splitlines()[0] if failure else 'unknown'}"
        )
        later(c, _CLOSE_CELL, {**which, "reason": reason})
        closed = {
            "study_id": row.study_id,
            "cell_id": row.cell_id,
            "kind": "cell closed",
            "reason": reason,
        }
        later(c, _EVENT, {**closed, "trial_id": None})
    later(c, _FREE_TICKETS, which)
    return True


def settle(c: Connection, study_id: int, cell_id: int, reason: str, kind: str) -> None:
    """Closes a cell that has had enough trials; its open tickets go to the others. Under the locks
    of study and cell.
    """
    which = {"study_id": study_id, "cell_id": cell_id, "reason": reason}
    later(c, _CLOSE_CELL, which)
    later(c, _EVENT, {**which, "trial_id": None, "kind": kind})
    later(c, _FREE_TICKETS, which)


_FAIL_TICKET = Statement(
    """
    UPDATE orchestrator.ticket SET state = :state, failures = failures + 1, fixed = NULL,
        retried_from = NULL
    WHERE ticket_id = :ticket_id
    """
)
_COUNT_FAILED = Statement(
    "UPDATE orchestrator.cell SET failed = failed + 1, failures_in_a_row = :in_a_row WHERE "
    "cell_id = :cell_id"
)
_CLOSE_CELL = Statement(
    "UPDATE orchestrator.cell SET state = 'CLOSED', reason = :reason WHERE cell_id = :cell_id"
)
# What a closed cell leaves unspent goes to the others.
_FREE_TICKETS = Statement(
    f"""
    WITH freed AS (
        UPDATE orchestrator.ticket SET {LEAVE} WHERE cell_id = :cell_id AND state = 'OPEN'
            AND NOT extra RETURNING ticket_id
    )
    UPDATE orchestrator.cell SET bound = bound - (SELECT count(*) FROM freed)
        WHERE cell_id = :cell_id
    """
)


def repeat(
    c: Connection, ticket_id: int, cell_id: int, fixed: Mapping[str, JSONValue], number: int
) -> bool | None:
    """Gives the ticket's next trial the parameters `fixed` in that cell, if the ticket is open;
    under the study's lock.

    Otherwise another open ticket of the cell is taken. A ticket that lost its cell is bound to it
    again. Returns whether the ticket is on top of the budget, None if there is none.
    """
    row = answer(c, _WAITING, {"ticket_id": ticket_id, "cell_id": cell_id})
    if row is None:
        return None
    which = {"ticket_id": row.ticket_id, "cell_id": cell_id}
    later(c, _REPEAT, {**which, "fixed": json.dumps(dict(fixed)), "number": number})
    if row.cell_id is None:
        later(c, _COUNT_FREED, {"cell_id": cell_id, "freed": -1})
    return bool(row.extra)


_WAITING = Statement(
    """
    SELECT t.ticket_id, t.cell_id, t.extra FROM orchestrator.ticket t
    WHERE (t.state = 'OPEN' OR (t.ticket_id = :ticket_id AND t.state = 'VOID' AND t.extra))
        AND t.retried_from IS NULL AND (
        (t.ticket_id = :ticket_id AND (t.cell_id = :cell_id OR t.cell_id IS NULL))
        OR (t.cell_id = :cell_id AND NOT t.extra AND t.fixed IS NULL)
    )
    ORDER BY t.ticket_id = :ticket_id DESC, t.ordinal LIMIT 1 FOR NO KEY UPDATE
    """
)
_REPEAT = Statement(
    """
    UPDATE orchestrator.ticket
    SET state = 'OPEN', cell_id = :cell_id, fixed = CAST(:fixed AS json), retried_from = :number
    WHERE ticket_id = :ticket_id
    """
)


def open_again(c: Connection, cell_row: Row, ticket_id: int, reason: str) -> None:
    """Opens a closed cell; the shares it lacks come from tickets that nobody uses, `ticket_id`
    before others.

    Within the budget: of the tickets that became void when every cell was closed, no more come back
    than this cell lacks and `budget.trials` has room for. Under the study's lock.
    """
    which = {"cell_id": cell_row.cell_id, "study_id": cell_row.study_id}
    later(c, _OPEN_CELL_AGAIN, which)
    later(c, _BIND_SHARES, {**which, "first": ticket_id})
    later(c, _EVENT, {**which, "trial_id": None, "kind": "cell opened again", "reason": reason})


_OPEN_CELL_AGAIN = Statement(
    "UPDATE orchestrator.cell SET state = 'OPEN', reason = NULL, failures_in_a_row = 0 WHERE "
    "cell_id = :cell_id"
)
_BIND_SHARES = Statement(
    """
    WITH lacking AS (
        SELECT coalesce(max(t.share) FILTER (WHERE t.cell_id = :cell_id), 0) AS highest,
            CAST(s.spec #>> '{budget,per_cell}' AS int) - count(t.share) FILTER
                (WHERE t.cell_id = :cell_id) AS shares,
            CAST(s.spec #>> '{budget,trials}' AS int) - count(*) FILTER (WHERE t.state <> 'VOID'
                AND NOT t.extra) AS room
        FROM orchestrator.study s
        LEFT JOIN orchestrator.ticket t ON t.study_id = s.study_id
        WHERE s.study_id = :study_id
        GROUP BY s.study_id
    ), unused AS (
        SELECT t.ticket_id, t.state, p.place,
            row_number() OVER (PARTITION BY t.state ORDER BY p.place, t.ordinal) AS of_state
        FROM orchestrator.ticket t
        CROSS JOIN LATERAL (
            -- its own ticket, then those that nobody tried, then what other cells left
            SELECT CASE WHEN t.ticket_id = :first THEN 0
                WHEN NOT EXISTS (SELECT FROM orchestrator.trial o WHERE o.ticket_id = t.ticket_id)
                    THEN 1 ELSE 2 END AS place
        ) AS p
        WHERE t.study_id = :study_id AND t.state IN ('OPEN', 'VOID') AND t.cell_id IS NULL
            AND NOT t.extra
    ), usable AS (
        SELECT u.ticket_id, row_number() OVER (ORDER BY u.place, u.state, u.of_state) AS k
        FROM unused u, lacking x
        WHERE u.state = 'OPEN' OR u.of_state <= x.room
    ), bound AS (
        UPDATE orchestrator.ticket t SET state = 'OPEN', cell_id = :cell_id, share = x.highest + u.k
        FROM usable u, lacking x
        WHERE t.ticket_id = u.ticket_id AND u.k <= x.shares
        RETURNING t.ticket_id
    )
    UPDATE orchestrator.cell SET bound = bound + (SELECT count(*) FROM bound)
        WHERE cell_id = :cell_id
    """
)


def end_study_if_spent(c: AnyConnection, study_id: int, *, tell: bool = True) -> None:
    """Finishes the study if no ticket is left, or none that an open cell could take; under the
    study's lock.

    A study that is being stopped is finished when its last trial has ended.

    Args:
        tell: record an event that the study has ended.
    """
    which = {"study_id": study_id, "tell": tell}
    for statement in (_VOID_IF_CLOSED, _FINISH_IF_SPENT, _FINISH_IF_STOPPED):
        later(c, statement, which)


_OPEN_CELL = (
    "EXISTS (SELECT FROM orchestrator.cell l WHERE l.study_id = :study_id AND l.state = 'OPEN')"
)
_VOID_IF_CLOSED = Statement(
    f"""
    UPDATE orchestrator.ticket SET state = 'VOID'
    WHERE study_id = :study_id AND state = 'OPEN' AND NOT extra AND NOT {_OPEN_CELL}
    """
)


def finish(update: str) -> Statement:
    """The statement that makes the study FINISHED as `update` says, and records with `tell` an
    event if it was not.
    """
    return Statement(
        f"""
        WITH before AS (
            SELECT s.state FROM orchestrator.study s WHERE s.study_id = :study_id
        ), ended AS (
            UPDATE orchestrator.study {update} RETURNING study_id, reason
        )
        INSERT INTO orchestrator.event (study_id, kind, reason)
        SELECT ended.study_id, 'finished', ended.reason FROM ended, before
        WHERE before.state <> 'FINISHED' AND CAST(:tell AS bool)
        """
    )


# Said where the study had enough trials, or a cell had and none is open.
_ENOUGH = f"""
    coalesce(
        (
            SELECT e.reason FROM orchestrator.event e
            WHERE e.study_id = s.study_id AND e.kind = '{STOPPED}' AND e.at >= s.launched_at
            ORDER BY e.event_id LIMIT 1
        ),
        CASE WHEN NOT {_OPEN_CELL} AND EXISTS (
            SELECT FROM orchestrator.cell l WHERE l.study_id = s.study_id
                AND starts_with(l.reason, '{ENOUGH}')
        ) THEN '{ENOUGH}every cell has had enough trials, or is closed' END
    ) || (
        SELECT format('; %s of %s trials saved',
            greatest(0, s.budget_trials - count(*)), s.budget_trials)
        FROM orchestrator.ticket t
        WHERE t.study_id = s.study_id AND t.state <> 'VOID' AND NOT t.extra
    )"""
_FINISH_IF_SPENT = finish(
    f"""
    SET state = 'FINISHED', halt = false, reason = coalesce(
        (
            SELECT {_ENOUGH} FROM (
                SELECT s.study_id, s.launched_at,
                    CAST(s.spec #>> '{{budget,trials}}' AS int) AS budget_trials
                FROM orchestrator.study s WHERE s.study_id = :study_id
            ) AS s
        ),
        CASE WHEN {_OPEN_CELL} THEN 'budget spent' ELSE 'every cell is closed' END)
    WHERE study_id = :study_id AND NOT EXISTS (
        SELECT FROM orchestrator.ticket t WHERE t.study_id = :study_id
            AND t.state IN ('OPEN', 'LIVE'))
    """
)
_FINISH_IF_STOPPED = finish(
    f"""
    SET state = 'FINISHED', halt = false
    WHERE study_id = :study_id AND state = 'STOPPING' AND NOT EXISTS (
        SELECT FROM orchestrator.trial o WHERE o.study_id = :study_id AND o.state IN {LIVE})
    """
)


def unspent(c: AnyConnection, study_id: int) -> int:
    """How many tickets of the study are still to be spent."""
    (row,) = answers(c, _UNSPENT, {"study_id": study_id})
    return int(row.n)


_UNSPENT = Statement(
    "SELECT count(*) AS n FROM orchestrator.ticket t WHERE t.study_id = :study_id AND t.state "
    f"IN {UNSPENT}"
)
