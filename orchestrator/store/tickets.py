"""Tickets and cells: which comes next, what spends one, when a cell is closed and a study is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from orchestrator.store.schema import cell, event, is_active, study, ticket

_UNSPENT = ("OPEN", "LIVE")


@dataclass(frozen=True)
class Next:
    """The ticket to run and the cell it is bound to."""

    ticket_id: int
    ordinal: int
    failures: int
    cell_id: int


def take_next(c: Connection, study_id: int) -> Next | None:
    """Marks the next ticket LIVE and returns it: shares first, the rest once every share is spent; None if there is none now.

    Tickets that others are taking are skipped, not waited for.
    """
    row = _pick(c, study_id, share=True)
    cell_id = row.cell_id if row else None
    if row is None:
        if _shares_left(c, study_id):
            return None
        # One binding at a time: two that read the same counts would give one cell both tickets. What was read before the
        # lock may be old by now: a launch that holds it may be laying new shares.
        c.execute(sa.select(study.c.study_id).where(study.c.study_id == study_id).with_for_update(key_share=True))
        row = _pick(c, study_id, share=True)
        if row is None and _shares_left(c, study_id):
            return None
        row = row or _pick(c, study_id, share=False)
        if row is None:
            return None
        cell_id = row.cell_id or _allocate_uniform(c, study_id)
    if cell_id is None:
        return None
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == row.ticket_id).values(state="LIVE", cell_id=cell_id))
    return Next(row.ticket_id, row.ordinal, row.failures, cell_id)


def _pick(c: Connection, study_id: int, *, share: bool) -> Row[Any] | None:
    query = (
        sa.select(ticket.c.ticket_id, ticket.c.ordinal, ticket.c.failures, ticket.c.cell_id)
        .join(study, study.c.study_id == ticket.c.study_id)
        .where(ticket.c.study_id == study_id, ticket.c.state == "OPEN", is_active())
        .where(ticket.c.share.is_not(None) if share else ticket.c.share.is_(None))
        .order_by(ticket.c.ordinal)
        .limit(1)
        .with_for_update(of=ticket, skip_locked=True, key_share=True)
    )
    row: Row[Any] | None = c.execute(query).one_or_none()  # type: ignore[assignment]
    return row


def _shares_left(c: Connection, study_id: int) -> bool:
    shares = sa.exists().where(ticket.c.study_id == study_id, ticket.c.share.is_not(None), ticket.c.state.in_(_UNSPENT))
    return bool(c.execute(sa.select(shares)).scalar_one())


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


def give_back(c: Connection, ticket_id: int) -> None:
    """The ticket is as if nobody had taken it; no failure is counted."""
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(state="OPEN"))


def spend(c: Connection, ticket_id: int, cell_id: int, *, pruned: bool) -> None:
    """The ticket is spent by a complete or a pruned trial of its cell."""
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(state="SPENT"))
    counter = cell.c.pruned if pruned else cell.c.completed
    c.execute(sa.update(cell).where(cell.c.cell_id == cell_id).values({counter: counter + 1, cell.c.failures_in_a_row: 0}))


def reopen(c: Connection, ticket_id: int, cell_row: Row[Any], failure: str) -> None:
    """Gives the ticket of a failed trial another try; closes its cell at more than `budget.max_failures_per_cell` in a row."""
    in_a_row = cell_row.failures_in_a_row + 1
    c.execute(sa.update(ticket).where(ticket.c.ticket_id == ticket_id).values(state="OPEN", failures=ticket.c.failures + 1))
    mine = cell.c.cell_id == cell_row.cell_id
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
    left = sa.update(ticket).where(ticket.c.cell_id == cell_row.cell_id, ticket.c.state == "OPEN")
    freed = c.execute(left.values(cell_id=None, share=None))
    c.execute(sa.update(cell).where(mine).values(bound=cell.c.bound - freed.rowcount))


def end_study_if_spent(c: Connection, study_id: int) -> None:
    """Finishes the study when no ticket is left, or none that an open cell could take; under the study's lock."""
    open_cells = sa.exists().where(cell.c.study_id == study_id, cell.c.state == "OPEN")
    if not c.execute(sa.select(open_cells)).scalar_one():
        c.execute(sa.update(ticket).where(ticket.c.study_id == study_id, ticket.c.state == "OPEN").values(state="VOID"))
    if not unspent(c, study_id):
        reason = sa.case((open_cells, "budget spent"), else_="every cell is closed")
        c.execute(sa.update(study).where(study.c.study_id == study_id).values(state="FINISHED", reason=reason))


def unspent(c: Connection, study_id: int) -> int:
    """How many tickets of the study are still to be spent."""
    count = sa.select(sa.func.count()).where(ticket.c.study_id == study_id, ticket.c.state.in_(_UNSPENT))
    return int(c.execute(count).scalar_one())
