"""Tickets and cells: which comes next, what spends one, when a cell is closed or opened again and a
study is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.model import JSONValue, TrialNews
from orchestrator.store.connection.statement import Row, Statement, answers, as_text, later
from orchestrator.store.ledger.claims import Place
from orchestrator.store.ledger.fleet import WorkerLease
from orchestrator.store.ledger.shortages import closed_for
from orchestrator.store.schema import LIVE, UNSPENT, cell, event, ticket

MOST_CHOICES = 256
"""Of more open cells an allocation chooses among so many: those it named as likely, then those with
the fewest tickets.
"""


@dataclass(frozen=True)
class Undecided:
    """The next ticket is bound to no cell, and the study's allocation has to choose one of these:
    ordinal and values.
    """

    ordinal: int
    failures: int
    cells: tuple[tuple[int, Mapping[str, JSONValue]], ...]
    news: tuple[list[TrialNews], int] | None = None


@dataclass(frozen=True)
class Choice:
    """The cell that an allocation chose, by its ordinal, and why."""

    cell: int
    why: Mapping[str, JSONValue]


@dataclass(frozen=True)
class Found:
    """What is next in a study, under lock: the trial or the ticket `row_id`.

    `kind` says which: ``trial`` (given back), ``ahead`` (a trial that another worker has prepared
    and not begun), ``ticket``. `cell_id` is the cell that an allocation binds the ticket to, and
    `why`; both None for one that has its cell.
    """

    kind: str
    row_id: int
    cell_id: int | None = None
    why: Mapping[str, JSONValue] | None = None


def look(
    c: Connection, study_id: int, place: Place, lease: WorkerLease, launched: datetime | None = None
) -> Found | None:
    """Locks what has its cell already: a trial given back, else the next ticket by hand, else of
    the next share.

    What others are taking is skipped, not waited for, and so is what belongs to a cell closed for
    the worker's device, but for trials by hand. A trial that ran at `place` comes first: there is
    its checkpoint, and perhaps its result.

    Raises:
        LeaseLostError: the worker was evicted meanwhile.
    """
    later(c, _LOCK_WORKER, lease.proof)
    later(c, _BEFORE_LOOK)
    asked = {
        **lease.proof,
        "host": place.host,
        "runs_dir": place.runs_dir,
        "study_id": study_id,
        "launched": launched,
    }
    (row,) = answers(c, _LOOK[False], asked)
    if row.short:
        (row,) = answers(c, _LOOK[True], asked)
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
    likely: Sequence[int] = (),
    launched: datetime | None = None,
) -> Found | Undecided | None:
    """Locks the next ticket that has no cell, once every share is spent, and chooses its cell; else
    takes another's trial.

    With `adaptive` such a ticket is left alone until the call comes with a `choice`.
    """
    # A row that changed in the moment it was looked at stays locked though it was not returned;
    # whoever changed it may hold the study's lock by now and want it.
    later(c, _UNDO_LOOK)
    # One binding at a time: two that read the same counts would give one cell both tickets. What
    # was read before the lock may
    # be old by now: a launch that holds it may be laying new shares.
    later(c, LOCK_STUDY, {"study_id": study_id})
    chosen = None if choice is None else choice.cell
    asked = {
        "study_id": study_id,
        "worker_id": lease.worker_id,
        "chosen": chosen,
        "launched": launched,
    }
    (row,) = answers(c, _LOOK_FURTHER[False], asked)
    if row.short:
        (row,) = answers(c, _LOOK_FURTHER[True], asked)
    if row.kind is None:
        return None
    if row.kind != "rest" or row.cell_id is not None:
        return Found("ahead" if row.kind == "ahead" else "ticket", row.row_id)
    if adaptive and choice is None:
        cells = _open_cells(c, study_id, lease.worker_id, likely)
        return Undecided(row.ordinal, row.failures, cells) if cells else None
    if choice is not None and row.chosen is not None:
        return Found("ticket", row.row_id, row.chosen, choice.why)
    why: Mapping[str, JSONValue] = {
        "rule": "uniform",
        "why": "of the open cells it had the fewest trials",
    }
    if choice is not None:
        why = {**why, "why": f"{why['why']}; the chosen cell was closed meanwhile"}
    return None if row.fewest is None else Found("ticket", row.row_id, row.fewest, why)


_LOCK_WORKER = Statement(
    "SELECT FROM orchestrator.worker WHERE worker_id = :worker_id AND token = :token AND state = "
    "'ACTIVE' FOR SHARE"
)
_BEFORE_LOOK = b"SAVEPOINT before_look"
_UNDO_LOOK = b"ROLLBACK TO SAVEPOINT before_look"
LOCK_STUDY = Statement(
    "SELECT FROM orchestrator.study WHERE study_id = :study_id FOR NO KEY UPDATE"
)
_ACTIVE = """EXISTS (
    SELECT FROM orchestrator.study s WHERE s.study_id = :study_id
        AND s.launched_at = coalesce(:launched, s.launched_at)
        AND s.state = 'ACTIVE' AND (s.deadline_at IS NULL OR s.deadline_at > clock_timestamp()))"""
SHORT = "EXISTS (SELECT FROM orchestrator.shortage h WHERE h.closed)"
"""Whether any cell is closed for a device: only then is it looked up of which, since to plan for
that takes milliseconds.
"""
_FITS = "NOT " + as_text(closed_for(sa.literal_column(":worker_id"), sa.literal_column("{cell}")))
TRIAL_FITS = f"""(
    EXISTS (SELECT FROM orchestrator.ticket k WHERE k.ticket_id = o.ticket_id AND k.extra)
        OR {_FITS.format(cell="o.cell_id")}
)"""
_OPEN_TICKET = """
    SELECT '{kind}' AS kind, t.* FROM (
        SELECT t.ticket_id AS row_id, t.ordinal, t.failures, t.cell_id FROM orchestrator.ticket t
        WHERE t.study_id = :study_id AND t.state = 'OPEN' AND {which}
        ORDER BY t.ordinal LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ) t
"""


def _look(*, fitting: bool) -> Statement:
    """Each part is only run when those before it found nothing, so that nothing is
    locked in vain.
    """
    extra = _OPEN_TICKET.format(kind="ticket", which="t.extra")
    share = _OPEN_TICKET.format(
        kind="ticket", which=f"t.share IS NOT NULL AND {_of(fitting, 't.cell_id')}"
    )
    return Statement(
        f"""
        SELECT held.worker_id AS held, n.kind, n.row_id, {_short(fitting)} AS short
        FROM (SELECT) AS one
        LEFT JOIN orchestrator.worker held ON held.worker_id = :worker_id AND held.token = :token
            AND held.state = 'ACTIVE'
        LEFT JOIN LATERAL (
            SELECT 'trial' AS kind, o.row_id, NULL::int AS ordinal, NULL::int AS failures,
                NULL::bigint AS cell_id FROM (
                SELECT o.trial_id AS row_id FROM orchestrator.trial o
                WHERE o.study_id = :study_id AND o.state IN ('PREPARED', 'RUNNING')
                    AND o.worker_id IS NULL
                    AND {TRIAL_FITS if fitting else "true"}
                ORDER BY EXISTS (
                    SELECT FROM orchestrator.attempt a
                    WHERE a.trial_id = o.trial_id AND a.attempt = o.attempts AND a.host = :host
                        AND a.runs_dir = :runs_dir
                ) DESC, o.trial_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
            ) o
            UNION ALL {extra}
            UNION ALL {share}
            LIMIT 1
        ) n ON held.worker_id IS NOT NULL AND {_ACTIVE} AND NOT {_short(fitting)}
        """
    )


def _look_further(*, fitting: bool) -> Statement:
    share = _OPEN_TICKET.format(
        kind="ticket", which=f"t.share IS NOT NULL AND {_of(fitting, 't.cell_id')}"
    )
    rest = _OPEN_TICKET.format(
        kind="rest", which=f"t.share IS NULL AND NOT t.extra AND {_of(fitting, 't.cell_id')}"
    )
    open_cell = f"l.study_id = :study_id AND l.state = 'OPEN' AND {_of(fitting, 'l.cell_id')}"
    return Statement(
        f"""
        SELECT n.*, {_short(fitting)} AS short,
            (SELECT l.cell_id FROM orchestrator.cell l
                WHERE {open_cell} ORDER BY l.bound, l.ordinal LIMIT 1) AS fewest,
            (SELECT l.cell_id FROM orchestrator.cell l WHERE {open_cell}
                AND l.ordinal = :chosen) AS chosen
        FROM (SELECT) AS one
        LEFT JOIN LATERAL (
            {share}
            UNION ALL
            SELECT rest.* FROM (SELECT WHERE NOT EXISTS (
                SELECT FROM orchestrator.ticket s
                WHERE s.study_id = :study_id AND s.share IS NOT NULL AND s.state IN ('OPEN', 'LIVE')
            )) AS spent CROSS JOIN LATERAL ({rest}) AS rest
            UNION ALL
            SELECT 'ahead', o.row_id, NULL, NULL, NULL FROM (
                SELECT o.trial_id AS row_id FROM orchestrator.trial o
                WHERE o.study_id = :study_id AND o.state = 'PREPARED' AND o.worker_id <> :worker_id
                    AND {TRIAL_FITS if fitting else "true"}
                ORDER BY o.trial_id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
            ) o
            LIMIT 1
        ) n ON {_ACTIVE} AND NOT {_short(fitting)}
        """
    )


def _of(fitting: bool, cell_id: str) -> str:
    return _FITS.format(cell=cell_id) if fitting else "true"


def _short(fitting: bool) -> str:
    return "false" if fitting else SHORT


_LOOK = {fitting: _look(fitting=fitting) for fitting in (False, True)}
_LOOK_FURTHER = {fitting: _look_further(fitting=fitting) for fitting in (False, True)}


def _open_cells(
    c: Connection, study_id: int, worker_id: int, likely: Sequence[int]
) -> tuple[tuple[int, Mapping[str, JSONValue]], ...]:
    """The open cells by ordinal; of more than `MOST_CHOICES` the `likely` ones, and those with the
    fewest tickets.
    """
    mine = sa.and_(
        cell.c.study_id == study_id, cell.c.state == "OPEN", ~closed_for(worker_id, cell.c.cell_id)
    )
    open_cells = sa.select(cell.c.ordinal, cell.c["values"].label("cell_values")).where(mine)
    found = c.execute(open_cells.order_by(cell.c.ordinal).limit(MOST_CHOICES + 1)).all()
    if len(found) > MOST_CHOICES:
        named = (
            c.execute(open_cells.where(cell.c.ordinal.in_(list(likely)[:MOST_CHOICES]))).all()
            if likely
            else []
        )
        fewest = open_cells.order_by(cell.c.bound, cell.c.ordinal).limit(MOST_CHOICES)
        # the named ones come first
        by_ordinal = {row.ordinal: row for row in [*named, *c.execute(fewest)]}
        found = sorted(list(by_ordinal.values())[:MOST_CHOICES], key=lambda row: int(row.ordinal))
    return tuple((row.ordinal, row.cell_values) for row in found)


_ANYBODYS: Mapping[str, None] = dict.fromkeys(("cell_id", "share", "fixed", "retried_from"))
"""What a ticket says that leaves its cell: what a trial of that cell was to repeat stays behind,
and `retry` may ask again.
"""


def give_back(c: Connection, ticket_id: int, cell_id: int) -> None:
    """The ticket is as if nobody had taken it; no failure is counted. One of a cell closed
    meanwhile goes to the others.
    """
    mine = ticket.c.ticket_id == ticket_id
    cell_row = c.execute(
        sa.select(cell).where(cell.c.cell_id == cell_id).with_for_update(key_share=True)
    ).one()
    extra = c.execute(
        sa.update(ticket).where(mine).values(state="OPEN").returning(ticket.c.extra)
    ).scalar_one()
    if cell_row.state == "CLOSED" and not extra:
        c.execute(sa.update(ticket).where(mine).values(_ANYBODYS))
        c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values(bound=cell.c.bound - 1))


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
    """The share that waits for a complete trial of its cell though this one of it pruned itself;
    None where none waits.

    None waits once more trials of the cell have pruned themselves than its shares and
    `budget.max_failures_per_cell`; that is told then. Under the study's lock.

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
        told = {
            "study_id": row.study_id,
            "cell_id": row.cell_id,
            "trial_id": row.trial_id,
            "kind": NO_COMPLETE_TRIAL,
        }
        c.execute(sa.insert(event).values(**told, reason=reason))
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
    """The share goes over to the free ticket, for this one is spent; without one it is this ticket
    that gets another try.

    Under the study's lock, without which no ticket that has no cell is taken.
    """
    if last.free is None:
        c.execute(_TRY_AGAIN, {"ticket_id": row.ticket_id})
        c.execute(_NO_FAILURE_IN_A_ROW, {"cell_id": row.cell_id})
    else:
        c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(share=None))
        c.execute(
            sa.update(ticket)
            .where(ticket.c.ticket_id == last.free)
            .values(cell_id=row.cell_id, share=last.share)
        )
        c.execute(
            sa.update(cell).where(cell.c.cell_id == row.cell_id).values(bound=cell.c.bound + 1)
        )
    told = {
        "study_id": row.study_id,
        "cell_id": row.cell_id,
        "trial_id": row.trial_id,
        "kind": SHARE_WAITS,
    }
    c.execute(
        sa.insert(event).values(
            **told, reason=f"trial {row.number} pruned itself before its cell had a complete one"
        )
    )


_TRY_AGAIN = sa.text(
    """
    UPDATE orchestrator.ticket SET state = 'OPEN', failures = failures + 1, fixed = NULL,
        retried_from = NULL
    WHERE ticket_id = :ticket_id
    """
)
_NO_FAILURE_IN_A_ROW = sa.text(
    "UPDATE orchestrator.cell SET failures_in_a_row = 0 WHERE cell_id = :cell_id"
)


def reopen(c: Connection, row: Row, failure: str, *, in_a_row: bool = True) -> bool:
    """Gives the ticket of a failed trial another try; closes its cell at more than
    `budget.max_failures_per_cell` in a row.

    The next try is the sampler's again, even if this one was by hand. A ticket on top of the budget
    gets no other try, and its failure says nothing against the cell: False then.

    Args:
        row: of the trial, as `claims.ending` reads it.
        in_a_row: whether the failure is one of those in a row; exhausted memory is counted by
            device, see `infeasible`.
    """
    mine = cell.c.cell_id == row.cell_id
    changed = {
        "state": "VOID" if row.extra else "OPEN",
        "failures": ticket.c.failures + 1,
        "fixed": sa.null(),
    }
    later(
        c,
        sa.update(ticket)
        .where(ticket.c.ticket_id == row.ticket_id)
        .values({**changed, "retried_from": None}),
    )
    if row.extra:
        later(c, sa.update(cell).where(mine).values(failed=cell.c.failed + 1))
        return False
    count = row.failures_in_a_row + in_a_row
    later(c, sa.update(cell).where(mine).values(failed=cell.c.failed + 1, failures_in_a_row=count))
    if row.cell_state == "OPEN":
        if not in_a_row or count <= row.max_failures:
            return True
        reason = (
            f"{count} trials failed in a row; the last: "
            f"{failure.splitlines()[0] if failure else 'unknown'}"
        )
        c.execute(sa.update(cell).where(mine).values(state="CLOSED", reason=reason))
        c.execute(
            sa.insert(event).values(
                study_id=row.study_id, cell_id=row.cell_id, kind="cell closed", reason=reason
            )
        )
    # What a closed cell leaves unspent goes to the others.
    left = sa.update(ticket).where(
        ticket.c.cell_id == row.cell_id, ticket.c.state == "OPEN", ~ticket.c.extra
    )
    freed = c.execute(left.values(_ANYBODYS))
    c.execute(sa.update(cell).where(mine).values(bound=cell.c.bound - freed.rowcount))
    return True


def repeat(
    c: Connection, ticket_id: int, cell_id: int, fixed: Mapping[str, JSONValue], number: int
) -> bool | None:
    """Makes the ticket's next trial one of `fixed` parameters in that cell, if it waits for one;
    under the study's lock.

    Where it waits for none another ticket of the cell is taken that does. A ticket that was given
    to an open allocation meanwhile is bound to the cell again. Returns whether the ticket is on top
    of the budget, None if there is none.
    """
    own = ticket.c.ticket_id == ticket_id
    waits = sa.or_(ticket.c.state == "OPEN", sa.and_(own, ticket.c.state == "VOID", ticket.c.extra))
    here = sa.or_(
        sa.and_(own, sa.or_(ticket.c.cell_id == cell_id, ticket.c.cell_id.is_(None))),
        sa.and_(ticket.c.cell_id == cell_id, ~ticket.c.extra, ticket.c.fixed.is_(None)),
    )
    found = sa.select(ticket).where(waits, here, ticket.c.retried_from.is_(None))
    first = found.order_by(own.desc(), ticket.c.ordinal).limit(1)
    row = c.execute(first.with_for_update(key_share=True)).one_or_none()
    if row is None:
        return None
    changed = {"state": "OPEN", "cell_id": cell_id, "fixed": dict(fixed), "retried_from": number}
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(changed))
    if row.cell_id is None:
        c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values(bound=cell.c.bound + 1))
    return bool(row.extra)


def open_again(c: Connection, cell_row: Row, ticket_id: int, reason: str) -> None:
    """Opens a closed cell: it gets what it lacks of its shares from tickets that nobody uses,
    `ticket_id` before others.

    Within the budget: of tickets that were void because every cell was closed no more come back
    than this cell lacks and `budget.trials` has room for. Under the study's lock.
    """
    mine = cell.c.cell_id == cell_row.cell_id
    c.execute(sa.update(cell).where(mine).values(state="OPEN", reason=None, failures_in_a_row=0))
    which = {"cell_id": cell_row.cell_id, "study_id": cell_row.study_id, "first": ticket_id}
    bound = c.execute(_BIND_SHARES, which).rowcount
    c.execute(sa.update(cell).where(mine).values(bound=cell.c.bound + bound))
    opened = {
        "study_id": cell_row.study_id,
        "cell_id": cell_row.cell_id,
        "kind": "cell opened again",
    }
    c.execute(sa.insert(event).values(**opened, reason=reason))


_BIND_SHARES = sa.text(
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
        FROM unused u, lacking l
        WHERE u.state = 'OPEN' OR u.of_state <= l.room
    )
    UPDATE orchestrator.ticket t SET state = 'OPEN', cell_id = :cell_id, share = l.highest + u.k
    FROM usable u, lacking l
    WHERE t.ticket_id = u.ticket_id AND u.k <= l.shares
    """
)


def end_study_if_spent(c: Connection, study_id: int) -> None:
    """Finishes the study when no ticket is left, or none that an open cell could take; under the
    study's lock.

    One that is being stopped is finished when its last trial is.
    """
    for statement in (_VOID_IF_CLOSED, _FINISH_IF_SPENT, _FINISH_IF_STOPPED):
        later(c, statement, {"study_id": study_id})


_OPEN_CELL = (
    "EXISTS (SELECT FROM orchestrator.cell l WHERE l.study_id = :study_id AND l.state = 'OPEN')"
)
_VOID_IF_CLOSED = Statement(
    f"""
    UPDATE orchestrator.ticket SET state = 'VOID'
    WHERE study_id = :study_id AND state = 'OPEN' AND NOT extra AND NOT {_OPEN_CELL}
    """
)
_FINISH_IF_SPENT = Statement(
    f"""
    UPDATE orchestrator.study
    SET state = 'FINISHED', halt = false, reason = CASE WHEN {_OPEN_CELL} THEN 'budget spent'
        ELSE 'every cell is closed' END
    WHERE study_id = :study_id
        AND NOT EXISTS (SELECT FROM orchestrator.ticket t WHERE t.study_id = :study_id
            AND t.state IN ('OPEN', 'LIVE'))
    """
)
_FINISH_IF_STOPPED = Statement(
    f"""
    UPDATE orchestrator.study SET state = 'FINISHED', halt = false
    WHERE study_id = :study_id AND state = 'STOPPING' AND NOT EXISTS (
        SELECT FROM orchestrator.trial o WHERE o.study_id = :study_id AND o.state IN {LIVE})
    """
)


def unspent(c: Connection, study_id: int) -> int:
    """How many tickets of the study are still to be spent."""
    count = sa.select(sa.func.count()).where(
        ticket.c.study_id == study_id, ticket.c.state.in_(UNSPENT)
    )
    return int(c.execute(count).scalar_one())
