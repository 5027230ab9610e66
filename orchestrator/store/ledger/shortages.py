"""Cells that run out of memory: closed for a device type, and for all once nobody is left who could
run them.

A device type is what a trial can count on: the memory of its GPU, or the RAM of its host. What did
not fit there does not fit into less either. All writes are made under the study's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.engine import Connection

from orchestrator.model import Failed, JSONValue, cell_label
from orchestrator.store.connection.database import Database
from orchestrator.store.connection.statement import Row, Statement, as_text, later
from orchestrator.store.schema import (
    LIVE,
    UNSPENT,
    attempt,
    cell,
    event,
    is_active,
    optuna_studies,
    shortage,
    slot,
    study,
    ticket,
    trial,
    worker,
)

NOBODY = "no living worker has the memory for it"
"""How the reason of a cell begins that is closed for all."""
ALIKE = 1.02
"""GPUs of one model report a little more or less memory."""
_GIB = 2**30


class _Device(Protocol):
    """Columns that say what a trial can count on, as `schema.slot` and
    `schema.attempt` have them.
    """

    device_name: Any
    gpu_bytes: Any
    host_bytes: Any


def _is_short(short: Any, on: _Device) -> sa.ColumnElement[bool]:
    """Whether the type of a `shortage` has as much of its memory as that device, or more."""
    host_bytes = sa.func.coalesce(on.host_bytes, 0)
    same = short.device_name == on.device_name
    gpu = sa.case(
        (sa.or_(short.bytes == 0, on.gpu_bytes == 0), same),
        else_=on.gpu_bytes <= short.bytes * ALIKE,
    )
    ram = sa.or_(short.bytes == 0, host_bytes == 0, host_bytes <= short.bytes * ALIKE)
    which = sa.case((on.gpu_bytes.is_(None), "cpu"), else_="gpu")
    return sa.case(
        (short.memory == "gpu", sa.and_(which == "gpu", gpu)),
        (short.memory == "cpu", sa.and_(which == "cpu", ram)),
        else_=sa.and_(which == "gpu", ram),
    )


def closed_for(
    worker_id: int | sa.ColumnElement[Any], cell_id: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    """Whether the cell is closed for the device that the worker holds."""
    held = sa.select(slot.c.device_name, slot.c.gpu_bytes, slot.c.host_bytes, worker.c.worker_id)
    here = held.select_from(
        worker.outerjoin(slot, slot.c.worker_id == worker.c.worker_id)
    ).subquery()
    short = sa.and_(shortage.c.cell_id == cell_id, shortage.c.closed, _is_short(shortage.c, here.c))
    return sa.exists().where(short, here.c.worker_id == worker_id).correlate_except(shortage, here)


# ------------------------------------------------------------------------------ one trial has ended


def told(c: Connection, row: Row, failure: Failed) -> dict[str, JSONValue]:
    """What the failure of a trial tells of the memory that ran out, for people and programs."""
    if failure.kind != "oom":
        return {}
    memory, device_name, size = _type(c, row, failure)
    return {
        "memory": memory,
        "device": device_name,
        "bytes": size or None,
        "peak_bytes": failure.peak_bytes,
    }


def ran_out(c: Connection, row: Row, failure: Failed, *, counts: bool) -> None:
    """Notes that a trial exhausted the memory of its device; one too many `counts` in a row close
    its cell for that type.

    With it go the cells above it on the axes that `infeasible.monotone` names, but those that ran
    to an end on such a device.
    """
    mine = sa.and_(attempt.c.trial_id == row.trial_id, attempt.c.attempt == row.attempts)
    c.execute(sa.update(attempt).where(mine).values(peak_bytes=failure.peak_bytes))
    if not counts:
        return
    memory, device_name, size = _type(c, row, failure)
    kind = {"memory": memory, "device_name": device_name, "bytes": size}
    one_more = insert(shortage).values(cell_id=row.cell_id, **kind, in_a_row=1)
    count = one_more.on_conflict_do_update(
        index_elements=["cell_id", "memory", "device_name", "bytes"],
        set_={"in_a_row": shortage.c.in_a_row + 1},
    ).returning(shortage.c.in_a_row)
    in_a_row = c.execute(count).scalar_one()
    allowed, axes = _settings(c, row.study_id)
    if in_a_row > allowed:
        often = (
            f"trial {row.number} ran"
            if in_a_row == 1
            else f"{in_a_row} trials in a row, the last of them trial {row.number}, ran"
        )
        _close(c, row, kind, often, axes)


def fitted(c: Connection, row: Row) -> None:
    """Notes that a trial ran to its end: whatever ran out of memory in its cell, it is not the cell
    on such a device.
    """
    later(
        c, _DISPROVED, {"cell_id": row.cell_id, "trial_id": row.trial_id, "attempt": row.attempts}
    )


def _disproved() -> Statement:
    short = as_text(_is_short(shortage.c, attempt.c))
    return Statement(
        f"""
        DELETE FROM orchestrator.shortage
        USING orchestrator.attempt
        WHERE shortage.cell_id = :cell_id AND attempt.trial_id = :trial_id
            AND attempt.attempt = :attempt AND {short}
        """
    )


_DISPROVED = _disproved()


def _type(c: Connection, row: Row, failure: Failed) -> tuple[str, str, int]:
    """Whose memory ran out, by the words of `schema.shortage`; the name of the device and how much
    it has, 0: not known.
    """
    mine = sa.and_(attempt.c.trial_id == row.trial_id, attempt.c.attempt == row.attempts)
    ran = c.execute(
        sa.select(attempt.c.device_name, attempt.c.gpu_bytes, attempt.c.host_bytes).where(mine)
    ).one()
    name = ran.device_name or "CPU"
    if ran.gpu_bytes is None:
        return "cpu", name, ran.host_bytes
    return (
        ("host", name, ran.host_bytes) if failure.memory == "host" else ("gpu", name, ran.gpu_bytes)
    )


def _settings(c: Connection, study_id: int) -> tuple[int, list[str]]:
    """How many trials in a row may run out of memory, and the axes along which the need of it
    grows.
    """
    spec = c.execute(sa.select(study.c.spec).where(study.c.study_id == study_id)).scalar_one()
    settings = spec.get("infeasible", {})
    axes = sorted(settings.get("monotone", {}))
    allowed = settings.get("max_per_cell")
    if allowed is None:
        allowed = 0 if axes else spec["budget"]["max_failures_per_cell"]
    return int(allowed), axes


def _close(c: Connection, row: Row, kind: Mapping[str, Any], often: str, axes: list[str]) -> None:
    own = cell.c.cell_id == row.cell_id
    there = cell_label({axis: row.cell_values[axis] for axis in axes})
    above = f"{often} out of memory at {there}, and the need of it grows with {' and '.join(axes)}"
    closing = sa.select(
        cell.c.cell_id,
        *(sa.literal(value).label(name) for name, value in kind.items()),
        sa.true(),
        sa.case((own, f"{often} out of memory"), else_=above),
        sa.literal(row.trial_id),
        sa.func.clock_timestamp(),
    ).where(
        cell.c.study_id == row.study_id,
        sa.or_(own, sa.and_(_above(row, axes), ~_ran_to_its_end(kind))),
    )
    columns = ["cell_id", *kind, "closed", "reason", "trial_id", "closed_at"]
    made = insert(shortage).from_select(columns, closing)
    changed = {name: made.excluded[name] for name in ("closed", "reason", "trial_id", "closed_at")}
    closed = c.execute(
        made.on_conflict_do_update(
            index_elements=["cell_id", "memory", "device_name", "bytes"],
            set_=changed,
            where=~shortage.c.closed,
        ).returning(shortage.c.cell_id, shortage.c.reason)
    ).all()
    where = device_label(kind["memory"], kind["device_name"], kind["bytes"])
    events = [
        {
            "cell_id": one.cell_id,
            "reason": f"{where}: {one.reason}",
            "study_id": row.study_id,
            "trial_id": row.trial_id,
        }
        for one in closed
    ]
    if events:
        c.execute(sa.insert(event).values(kind="cell closed for a device"), events)


def _above(row: Row, axes: list[str]) -> sa.ColumnElement[bool]:
    """Cells alike but for values of these axes, none of which is smaller."""
    if not axes:
        return sa.false()
    values = sa.cast(cell.c["values"], JSONB)
    others = values.op("-", return_type=JSONB())(
        sa.cast(sa.literal(axes, ARRAY(sa.Text)), ARRAY(sa.Text))
    )
    own = {axis: value for axis, value in row.cell_values.items() if axis not in axes}
    larger = [
        sa.cast(values[axis].astext, sa.Numeric) >= sa.literal(row.cell_values[axis], sa.Numeric)
        for axis in axes
    ]
    return sa.and_(others == sa.literal(own, JSONB), *larger)


def _ran_to_its_end(kind: Mapping[str, Any]) -> sa.ColumnElement[bool]:
    """Whether a trial of the cell did, on a device with no more of that memory."""
    short = sa.select(*(sa.literal(value).label(name) for name, value in kind.items())).subquery()
    last = sa.and_(attempt.c.trial_id == trial.c.trial_id, attempt.c.attempt == trial.c.attempts)
    # One that pruned itself before it reported anything may have needed none of it.
    reported = sa.text(
        "EXISTS (SELECT FROM trial_intermediate_values i WHERE i.trial_id = "
        "orchestrator.trial.optuna_trial_id)"
    )
    ended = sa.or_(trial.c.state == "COMPLETE", sa.and_(trial.c.state == "PRUNED", reported))
    done = sa.and_(trial.c.cell_id == cell.c.cell_id, ended)
    return (
        sa.exists()
        .where(done, last, _is_short(short.c, attempt.c))
        .correlate_except(trial, attempt, short)
    )


def device_label(memory: str, device_name: str, size: int) -> str:
    """A device type for people: ``NVIDIA H100 80GB HBM3 (79.6 GiB)``; of a host, what it has of
    RAM.
    """
    ram = "" if memory == "gpu" else " of RAM"
    return f"{device_name} ({size / _GIB:.3g} GiB{ram})" if size else device_name


# ----------------------------------------------------------------------------------- nobody is left


def _serving() -> Any:
    """Living workers that hold a device, with the names of the only studies they serve."""
    alive = sa.and_(worker.c.state == "ACTIVE", worker.c.lease_until > sa.func.clock_timestamp())
    device = (slot.c.device_name, slot.c.gpu_bytes, slot.c.host_bytes)
    named = sa.cast(worker.c.studies, JSONB)
    serves = sa.or_(
        named.is_(None),
        named.contains(sa.func.to_jsonb(study.c.name)),
        named.contains(sa.func.to_jsonb(sa.cast(optuna_studies.c.study_name, sa.Text))),
    )
    query = sa.select(study.c.study_id, *device).select_from(
        worker.join(slot, slot.c.worker_id == worker.c.worker_id)
        .join(study, sa.true())
        .join(optuna_studies, optuna_studies.c.study_id == study.c.study_id)
    )
    return query.where(alive, serves).cte("serving")


def _taken_by_some(serving: Any, study_id: Any, cell_id: Any) -> sa.ColumnElement[bool]:
    """Whether a living worker of the study has a device for which the cell is not closed."""
    closed = sa.exists().where(
        shortage.c.cell_id == cell_id, shortage.c.closed, _is_short(shortage.c, serving.c)
    )
    return (
        sa.exists()
        .where(serving.c.study_id == study_id, ~closed.correlate_except(shortage))
        .correlate_except(serving)
    )


def _stands_still(just_lost: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether living workers serve the study, nothing of it runs, and what is left is for devices
    that none of them has.
    """
    serving = _serving()
    live = sa.and_(trial.c.study_id == study.c.study_id, trial.c.state.in_(LIVE))
    goes_on = sa.or_(
        trial.c.worker_id.is_not(None),
        _taken_by_some(serving, trial.c.study_id, trial.c.cell_id),
        ticket.c.extra,
    )
    running = sa.exists().where(live, ticket.c.ticket_id == trial.c.ticket_id, goes_on)
    of_study = sa.and_(ticket.c.study_id == study.c.study_id, ticket.c.state == "OPEN")
    bound = sa.and_(
        of_study,
        ticket.c.cell_id.is_not(None),
        _taken_by_some(serving, ticket.c.study_id, ticket.c.cell_id),
    )
    open_cell = sa.and_(cell.c.study_id == study.c.study_id, cell.c.state == "OPEN")
    some_cell = sa.exists().where(
        open_cell, _taken_by_some(serving, cell.c.study_id, cell.c.cell_id)
    )
    rest = sa.or_(
        sa.exists().where(bound, ticket.c.share.is_(None)),
        sa.and_(sa.exists().where(of_study, ticket.c.cell_id.is_(None)), some_cell),
    )
    by_hand = sa.exists().where(of_study, ticket.c.extra)
    next_ones = sa.or_(
        by_hand,
        sa.exists().where(bound, ticket.c.share.is_not(None)),
        sa.and_(~_shares_left(), rest),
    )
    somewhere = sa.and_(cell.c.study_id == study.c.study_id, shortage.c.cell_id == cell.c.cell_id)
    closed_somewhere = sa.exists().where(somewhere, shortage.c.closed)
    served = sa.exists().where(serving.c.study_id == study.c.study_id)
    return sa.and_(is_active(), closed_somewhere, served, ~running, ~next_ones, ~just_lost)


def _shares_left() -> sa.ColumnElement[bool]:
    of_study = sa.and_(ticket.c.study_id == study.c.study_id, ticket.c.state.in_(UNSPENT))
    return sa.exists().where(of_study, ticket.c.share.is_not(None))


def standing_still(database: Database, just_lost: sa.ColumnElement[bool]) -> list[int]:
    """The studies that would never end, though workers wait for them: what is left fits on no
    device of theirs.

    Args:
        just_lost: whether a result of the study may still be left where a worker died.
    """
    query = sa.select(study.c.study_id).where(_stands_still(just_lost)).order_by(study.c.study_id)
    return [row.study_id for row in database.execute(query)]


def close_for_all(c: Connection, study_id: int, just_lost: sa.ColumnElement[bool]) -> str | None:
    """Closes the cells that keep a study from ending, if it still stands still; returns why, None
    if it does not.

    Their tickets go to the others. Under the study's lock.
    """
    look = (
        sa.select(_shares_left())
        .select_from(study)
        .where(study.c.study_id == study_id, _stands_still(just_lost))
    )
    still = c.execute(look).one_or_none()
    if still is None:
        return None
    serving = _serving()
    mine = sa.and_(cell.c.study_id == study_id, cell.c.state == "OPEN")
    some = sa.exists().where(serving.c.study_id == study_id).correlate_except(serving)
    nobody = sa.and_(some, ~_taken_by_some(serving, sa.literal(study_id), cell.c.cell_id))
    waits = sa.exists().where(
        ticket.c.cell_id == cell.c.cell_id, ticket.c.state.in_(UNSPENT), ~ticket.c.extra
    )
    unbound = sa.exists().where(
        ticket.c.study_id == study_id, ticket.c.state == "OPEN", ticket.c.cell_id.is_(None)
    )
    blocking = waits if still[0] else sa.or_(waits, unbound)
    cells = (
        c.execute(sa.select(cell.c.cell_id).where(mine, nobody, blocking).order_by(cell.c.ordinal))
        .scalars()
        .all()
    )
    if cells:
        _close_all(c, study_id, cells)
    elif c.execute(look).one_or_none() is None:  # the last worker left between the two statements
        return None
    return "it ran out of memory on other devices, and no living worker has a larger one"


def _close_all(c: Connection, study_id: int, cells: Sequence[int]) -> None:
    closed = (
        sa.select(shortage)
        .where(shortage.c.cell_id.in_(cells), shortage.c.closed)
        .order_by(shortage.c.closed_at)
    )
    told: dict[int, list[str]] = {}
    for row in c.execute(closed):
        told.setdefault(row.cell_id, []).append(
            f"{device_label(row.memory, row.device_name, row.bytes)}: {row.reason}"
        )
    reasons = {cell_id: f"{NOBODY}; {'; '.join(told[cell_id])}" for cell_id in cells}
    waiting = sa.and_(ticket.c.cell_id.in_(cells), ticket.c.state == "OPEN", ~ticket.c.extra)
    freed = Counter(c.execute(sa.select(ticket.c.cell_id).where(waiting)).scalars())
    c.execute(sa.update(ticket).where(waiting).values(cell_id=None, share=None))
    which = {
        "cells": list(cells),
        "reasons": list(reasons.values()),
        "freed": [freed[cell_id] for cell_id in cells],
    }
    c.execute(_CLOSE_CELLS, which)
    events = [
        {"study_id": study_id, "cell_id": cell_id, "reason": reason}
        for cell_id, reason in reasons.items()
    ]
    c.execute(sa.insert(event).values(kind="cell closed"), events)


# Arrays instead of a row each: thousands of cells are one statement.
_CLOSE_CELLS = sa.text(
    """
    UPDATE orchestrator.cell c SET state = 'CLOSED', reason = v.reason, bound = c.bound - v.freed
    FROM unnest(CAST(:cells AS bigint[]), CAST(:reasons AS text[]),
        CAST(:freed AS int[])) AS v(cell_id, reason, freed)
    WHERE c.cell_id = v.cell_id
    """
)


# --------------------------------------------------------------------------------- a person insists


def try_again(c: Connection, trial_row: Row) -> list[Row]:
    """Opens the cell of a trial, and the cells that it closed, for every device; returns those that
    are closed for all.
    """
    touched = sa.select(shortage.c.cell_id).where(
        sa.or_(shortage.c.cell_id == trial_row.cell_id, shortage.c.trial_id == trial_row.trial_id)
    )
    query = (
        sa.select(cell)
        .where(cell.c.cell_id.in_(touched))
        .order_by(cell.c.ordinal)
        .with_for_update(key_share=True)
    )
    rows = c.execute(query).all()
    c.execute(sa.delete(shortage).where(shortage.c.cell_id.in_([row.cell_id for row in rows])))
    return [row for row in rows if row.state == "CLOSED" and row.reason.startswith(NOBODY)]
