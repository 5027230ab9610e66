"""Tickets and cells: which comes next, what spends one, when a cell is closed or opened again and a study is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from orchestrator.model import JSONValue
from orchestrator.store.schema import cell, event, is_active, study, ticket, trial

MOST_CHOICES = 256
"""Of more open cells an allocation chooses among so many: those it named as likely, then those with the fewest tickets."""
_UNSPENT = ("OPEN", "LIVE")
_EXTRA = ticket.c.extra
_SHARE = ticket.c.share.is_not(None)
_REST = sa.and_(ticket.c.share.is_(None), ~ticket.c.extra)


@dataclass(frozen=True)
class Next:
    """The ticket to run, the cell it is bound to, and what its trial is given instead of asking the sampler for it.

    `why` is the reason of an allocation that bound it to its cell just now.
    """

    ticket_id: int
    ordinal: int
    failures: int
    cell_id: int
    fixed: Mapping[str, JSONValue] | None
    retried_from: int | None
    why: Mapping[str, JSONValue] | None


@dataclass(frozen=True)
class Undecided:
    """The next ticket is bound to no cell, and the study's allocation has to choose one of these: ordinal and values."""

    ordinal: int
    failures: int
    cells: tuple[tuple[int, Mapping[str, JSONValue]], ...]


@dataclass(frozen=True)
class Choice:
    """The cell that an allocation chose, by its ordinal, and why."""

    cell: int
    why: Mapping[str, JSONValue]


def take_next(
    c: Connection, study_id: int, choice: Choice | None = None, *, adaptive: bool = False, likely: Sequence[int] = ()
) -> Next | Undecided | None:
    """Marks the next ticket LIVE and returns it; None if there is none now.

    Those by hand come first, then the shares, and the rest once every share is spent. Tickets that others are taking are
    skipped, not waited for. With `adaptive` a ticket without a cell is left alone until the call comes with a `choice`.
    """
    row = _pick(c, study_id, _EXTRA) or _pick(c, study_id, _SHARE)
    cell_id, why = row.cell_id if row else None, None
    if row is None:
        if _shares_left(c, study_id):
            return None
        # One binding at a time: two that read the same counts would give one cell both tickets. What was read before the
        # lock may be old by now: a launch that holds it may be laying new shares.
        c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id).with_for_update(key_share=True))
        row = _pick(c, study_id, _SHARE)
        if row is None and _shares_left(c, study_id):
            return None
        row = row or _pick(c, study_id, _REST)
        if row is None:
            return None
        if adaptive and choice is None and row.cell_id is None:
            return Undecided(row.ordinal, row.failures, _open_cells(c, study_id, likely))
        cell_id, why = (row.cell_id, None) if row.cell_id else _allocate(c, study_id, choice)
    if cell_id is None:
        return None
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="LIVE", cell_id=cell_id))
    return Next(row.ticket_id, row.ordinal, row.failures, cell_id, row.fixed, row.retried_from, why)


def _pick(c: Connection, study_id: int, kind: sa.ColumnElement[bool]) -> Row[Any] | None:
    query = (
        sa.select(ticket)
        .join(study, study.c.study_id == ticket.c.study_id)
        .where(ticket.c.study_id == study_id, ticket.c.state == "OPEN", kind, is_active())
        .order_by(ticket.c.ordinal)
        .limit(1)
        .with_for_update(of=ticket, skip_locked=True, key_share=True)
    )
    row: Row[Any] | None = c.execute(query).one_or_none()
    return row


def _shares_left(c: Connection, study_id: int) -> bool:
    shares = sa.exists().where(ticket.c.study_id == study_id, ticket.c.share.is_not(None), ticket.c.state.in_(_UNSPENT))
    return bool(c.execute(sa.select(shares)).scalar_one())


def _allocate(c: Connection, study_id: int, choice: Choice | None) -> tuple[int | None, Mapping[str, JSONValue]]:
    """Binds one more ticket to the chosen cell, or to the open one that has the fewest; under the study's lock."""
    why: Mapping[str, JSONValue] = {"rule": "uniform", "why": "of the open cells it had the fewest trials"}
    if choice is not None:
        chosen = sa.and_(cell.c.study_id == study_id, cell.c.ordinal == choice.cell, cell.c.state == "OPEN")
        bind = sa.update(cell).where(chosen).values(bound=cell.c.bound + 1).returning(cell.c.cell_id)
        cell_id = c.execute(bind).scalar_one_or_none()
        if cell_id is not None:
            return cell_id, choice.why
        why = {**why, "why": f"{why['why']}; the chosen cell was closed meanwhile"}
    return _allocate_uniform(c, study_id), why


def _open_cells(c: Connection, study_id: int, likely: Sequence[int]) -> tuple[tuple[int, Mapping[str, JSONValue]], ...]:
    """The open cells by ordinal; of more than `MOST_CHOICES` the `likely` ones, and those with the fewest tickets."""
    open_cells = sa.select(cell.c.ordinal, cell.c["values"].label("cell_values")).where(
        cell.c.study_id == study_id, cell.c.state == "OPEN"
    )
    rows = c.execute(open_cells.order_by(cell.c.ordinal).limit(MOST_CHOICES + 1)).all()
    if len(rows) > MOST_CHOICES:
        named = c.execute(open_cells.where(cell.c.ordinal.in_(list(likely)[:MOST_CHOICES]))).all() if likely else []
        fewest = open_cells.order_by(cell.c.bound, cell.c.ordinal).limit(MOST_CHOICES)
        by_ordinal = {row.ordinal: row for row in [*named, *c.execute(fewest)]}  # the named ones come first
        rows = sorted(list(by_ordinal.values())[:MOST_CHOICES], key=lambda row: int(row.ordinal))
    return tuple((row.ordinal, row.cell_values) for row in rows)


def _allocate_uniform(c: Connection, study_id: int) -> int | None:
    """Binds one more ticket to the open cell that has the fewest; under the study's lock."""
    fewest = (
        sa.select(cell.c.cell_id)
        .where(cell.c.study_id == study_id, cell.c.state == "OPEN")
        .order_by(cell.c.bound, cell.c.ordinal)
        .limit(1)
    )
    bind = sa.update(cell).where(cell.c.cell_id == fewest.scalar_subquery()).values(bound=cell.c.bound + 1)
    return c.execute(bind.returning(cell.c.cell_id)).scalar_one_or_none()


def give_back(c: Connection, ticket_id: int, cell_id: int) -> None:
    """The ticket is as if nobody had taken it; no failure is counted. One of a cell closed meanwhile goes to the others."""
    mine = ticket.c.ticket_id == ticket_id
    cell_row = c.execute(sa.select(cell).where(cell.c.cell_id == cell_id).with_for_update(key_share=True)).one()
    extra = c.execute(sa.update(ticket).where(mine).values(state="OPEN").returning(ticket.c.extra)).scalar_one()
    if cell_row.state == "CLOSED" and not extra:
        c.execute(sa.update(ticket).where(mine).values(cell_id=None, share=None))
        c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values(bound=cell.c.bound - 1))


def spend(c: Connection, ticket_id: int, cell_id: int, *, pruned: bool) -> None:
    """The ticket is spent by a complete or a pruned trial of its cell."""
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(state="SPENT"))
    counter = cell.c.pruned if pruned else cell.c.completed
    c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values({counter: counter + 1, cell.c.failures_in_a_row: 0}))


def reopen(c: Connection, ticket_id: int, cell_row: Row[Any], failure: str) -> None:
    """Gives the ticket of a failed trial another try; closes its cell at more than `budget.max_failures_per_cell` in a row.

    The next try is the sampler's again, even if this one was by hand. A ticket on top of the budget gets no other try, and
    its failure says nothing against the cell.
    """
    mine = cell.c.cell_id == cell_row.cell_id
    again = sa.case((ticket.c.extra, "VOID"), else_="OPEN")
    changed = {"state": again, "failures": ticket.c.failures + 1, "fixed": sa.null(), "retried_from": None}
    tried = sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(changed).returning(ticket.c.extra)
    if c.execute(tried).scalar_one():
        c.execute(sa.update(cell).where(mine).values(failed=cell.c.failed + 1))
        return
    in_a_row = cell_row.failures_in_a_row + 1
    c.execute(sa.update(cell).where(mine).values(failed=cell.c.failed + 1, failures_in_a_row=in_a_row))
    setting = study.c.spec["budget"]["max_failures_per_cell"].as_integer()
    allowed = c.execute(sa.select(setting).where(study.c.study_id == cell_row.study_id)).scalar_one()
    if cell_row.state == "OPEN":
        if in_a_row <= allowed:
            return
        reason = f"{in_a_row} trials failed in a row; the last: {failure.splitlines()[0] if failure else 'unknown'}"
        c.execute(sa.update(cell).where(mine).values(state="CLOSED", reason=reason))
        c.execute(
            sa.insert(event).values(study_id=cell_row.study_id, cell_id=cell_row.cell_id, kind="cell closed", reason=reason)
        )
    # What a closed cell leaves unspent goes to the others.
    left = sa.update(ticket).where(ticket.c.cell_id == cell_row.cell_id, ticket.c.state == "OPEN", ~ticket.c.extra)
    freed = c.execute(left.values(cell_id=None, share=None))
    c.execute(sa.update(cell).where(mine).values(bound=cell.c.bound - freed.rowcount))


def repeat(c: Connection, ticket_id: int, cell_id: int, fixed: Mapping[str, JSONValue], number: int) -> bool | None:
    """Makes the ticket's next trial one of `fixed` parameters in that cell, if it waits for one; under the study's lock.

    A ticket that was given to an open allocation meanwhile is bound to the cell again. Returns whether the ticket is on top of
    the budget, None if it waits for no trial.
    """
    mine = sa.and_(ticket.c.ticket_id == ticket_id, ticket.c.retried_from.is_(None))
    waits = sa.or_(ticket.c.state == "OPEN", sa.and_(ticket.c.state == "VOID", ticket.c.extra))
    here = sa.or_(ticket.c.cell_id == cell_id, ticket.c.cell_id.is_(None))
    row = c.execute(sa.select(ticket).where(mine, waits, here).with_for_update(key_share=True)).one_or_none()
    if row is None:
        return None
    changed = {"state": "OPEN", "cell_id": cell_id, "fixed": dict(fixed), "retried_from": number}
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(changed))
    if row.cell_id is None:
        c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values(bound=cell.c.bound + 1))
    return bool(row.extra)


def open_again(c: Connection, cell_row: Row[Any], ticket_id: int, reason: str) -> None:
    """Opens a closed cell: it gets what it lacks of its shares from tickets that nobody uses, `ticket_id` before others.

    Within the budget: of tickets that were void because every cell was closed no more come back than this cell lacks and
    `budget.trials` has room for. Under the study's lock.
    """
    mine = cell.c.cell_id == cell_row.cell_id
    c.execute(sa.update(cell).where(mine).values(state="OPEN", reason=None, failures_in_a_row=0))
    which = {"cell_id": cell_row.cell_id, "study_id": cell_row.study_id, "first": ticket_id}
    bound = c.execute(_BIND_SHARES, which).rowcount
    c.execute(sa.update(cell).where(mine).values(bound=cell.c.bound + bound))
    opened = {"study_id": cell_row.study_id, "cell_id": cell_row.cell_id, "kind": "cell opened again"}
    c.execute(sa.insert(event).values(**opened, reason=reason))


_BIND_SHARES = sa.text(
    """
    WITH lacking AS (
        SELECT coalesce(max(t.share) FILTER (WHERE t.cell_id = :cell_id), 0) AS highest,
            CAST(s.spec #>> '{budget,per_cell}' AS int) - count(t.share) FILTER (WHERE t.cell_id = :cell_id) AS shares,
            CAST(s.spec #>> '{budget,trials}' AS int) - count(*) FILTER (WHERE t.state <> 'VOID' AND NOT t.extra) AS room
        FROM orchestrator.study s
        LEFT JOIN orchestrator.ticket t ON t.study_id = s.study_id
        WHERE s.study_id = :study_id
        GROUP BY s.study_id
    ), unused AS (
        SELECT t.ticket_id, t.state, p.place, row_number() OVER (PARTITION BY t.state ORDER BY p.place, t.ordinal) AS of_state
        FROM orchestrator.ticket t
        CROSS JOIN LATERAL (  -- its own ticket, then those that nobody tried, then what other cells left
            SELECT CASE WHEN t.ticket_id = :first THEN 0
                WHEN NOT EXISTS (SELECT FROM orchestrator.trial o WHERE o.ticket_id = t.ticket_id) THEN 1 ELSE 2 END AS place
        ) AS p
        WHERE t.study_id = :study_id AND t.state IN ('OPEN', 'VOID') AND t.cell_id IS NULL AND NOT t.extra
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
    """Finishes the study when no ticket is left, or none that an open cell could take; under the study's lock.

    One that is being stopped is finished when its last trial is.
    """
    open_cells = sa.exists().where(cell.c.study_id == study_id, cell.c.state == "OPEN")
    if not c.execute(sa.select(open_cells)).scalar_one():
        open_rest = sa.and_(ticket.c.study_id == study_id, ticket.c.state == "OPEN", ~ticket.c.extra)
        c.execute(sa.update(ticket).where(open_rest).values(state="VOID"))
    left = sa.exists().where(ticket.c.study_id == study_id, ticket.c.state.in_(_UNSPENT))
    if not c.execute(sa.select(left)).scalar_one():  # not their number: counting reads every ticket, at the end of every trial
        reason = sa.case((open_cells, "budget spent"), else_="every cell is closed")
        c.execute(sa.update(study).where(study.c.study_id == study_id).values(state="FINISHED", reason=reason, halt=False))
        return
    live = sa.exists().where(trial.c.study_id == study_id, trial.c.state.in_(("CLAIMED", "RUNNING")))
    stopped = sa.and_(study.c.study_id == study_id, study.c.state == "STOPPING", ~live)
    c.execute(sa.update(study).where(stopped).values(state="FINISHED", halt=False))


def unspent(c: Connection, study_id: int) -> int:
    """How many tickets of the study are still to be spent."""
    count = sa.select(sa.func.count()).where(ticket.c.study_id == study_id, ticket.c.state.in_(_UNSPENT))
    return int(c.execute(count).scalar_one())
