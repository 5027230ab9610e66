"""Cells that run out of memory: closed for a device type, and for all once nobody is left who could
run them.

A device type is what a trial can count on: the memory of its GPU, or the RAM of its host. What did
not fit there does not fit into less either. All writes are made under the study's lock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.measurement import Measurement
from orchestrator.model import Failed, JSONValue, cell_label
from orchestrator.store.connection.statement import Row, Statement, answer, answers, later
from orchestrator.store.ledger.claims import JUST_LOST
from orchestrator.store.states import ACTIVE, LIVE, UNSPENT

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

NOBODY = "no living worker "
"""How the reason of a cell begins that is closed for all; what follows says what is missing."""
ALIKE = 1.02
"""GPUs of one model report a little more or less memory."""
CPU = "CPU"
"""The name of a device that is no GPU."""
_GIB = 2**30


def _is_short(short: str, device: str) -> str:
    """SQL: whether the type of a `shortage` has as much of its memory as that device, or more.

    Args:
        short: alias of a row with `memory`, `device_name` and `bytes`.
        device: alias of a row with `device_name`, `gpu_bytes` and `host_bytes`.
    """
    ram = (
        f"({short}.bytes = 0 OR coalesce({device}.host_bytes, 0) = 0 OR {device}.host_bytes <= "
        f"{short}.bytes * {ALIKE})"
    )
    return f"""CASE {short}.memory
        WHEN 'cpu' THEN {device}.gpu_bytes IS NULL AND {ram}
        WHEN 'host' THEN {device}.gpu_bytes IS NOT NULL AND {ram}
        WHEN 'gpu' THEN {device}.gpu_bytes IS NOT NULL AND CASE
            WHEN {short}.bytes = 0 OR {device}.gpu_bytes = 0
                THEN {short}.device_name = {device}.device_name
            ELSE {device}.gpu_bytes <= {short}.bytes * {ALIKE} END
        END"""


SHORT = "EXISTS (SELECT FROM orchestrator.shortage h WHERE h.closed)"
"""SQL: whether any cell is closed for a device type."""


def _closed_for(device: str, cell_id: str) -> str:
    return f"""EXISTS (
        SELECT FROM orchestrator.shortage h WHERE h.cell_id = {cell_id} AND h.closed
            AND {_is_short("h", device)})"""


def fits(cell_id: str) -> str:
    """SQL: whether the cell is open for the device of the slot `d`, of which there may be none.

    Whether there is any shortage at all is looked up once per statement, not once per row.
    """
    return f"(NOT {SHORT} OR NOT {_closed_for('d', cell_id)})"


TRIAL_FITS = f"""(
    {fits("o.cell_id")} OR EXISTS (SELECT FROM orchestrator.ticket t WHERE t.ticket_id = o.ticket_id
        AND t.extra))"""
"""SQL: the same for the cell of the trial `o`; a trial by hand fits everywhere."""


# ------------------------------------------------------------------------------ one trial has ended


def memory_attrs(c: Connection, row: Row, failure: Failed) -> dict[str, JSONValue]:
    """What is known about the memory that ran out, for people and programs; empty for any other
    failure.
    """
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

    With it go the cells above it on the axes that `infeasible.monotone` names, except those in
    which a trial ran to its end on such a device.
    """
    later(
        c,
        _NOTE_PEAK,
        {"trial_id": row.trial_id, "attempt": row.attempts, "peak_bytes": failure.peak_bytes},
    )
    if not counts:
        return
    memory, device_name, size = _type(c, row, failure)
    device_type = {"memory": memory, "device_name": device_name, "bytes": size}
    (count,) = answers(c, _COUNT, {"cell_id": row.cell_id, **device_type})
    allowed, axes = _settings(c, row.study_id)
    if count.in_a_row <= allowed:
        return
    often = (
        f"trial {row.number} ran out of memory"
        if count.in_a_row == 1
        else (
            f"{count.in_a_row} trials in a row, the last of them trial {row.number}, ran out "
            "of memory"
        )
    )
    least = {axis: row.cell_values[axis] for axis in axes}
    above = {
        "axes": axes,
        "least": json.dumps(least),
        "others": json.dumps(
            {axis: value for axis, value in row.cell_values.items() if axis not in axes}
        ),
        "above": (
            f"{often} at {cell_label(least)}, and the memory needed grows with {' and '.join(axes)}"
        ),
    }
    which = {"study_id": row.study_id, "cell_id": row.cell_id, "trial_id": row.trial_id}
    label = device_label(memory, device_name, size)
    later(c, _CLOSE, {**which, **device_type, **above, "own": often, "label": label})


def fitted(c: Connection, row: Row) -> None:
    """Notes that a trial ran to its end: if its cell ran out of memory on such a device, the cell
    was not the reason.
    """
    later(c, _DISPROVE, {"cell_id": row.cell_id, "trial_id": row.trial_id, "attempt": row.attempts})


# -------------------------------------------------------------------------------- a probe has ended


def close_probed(c: Connection, probe_id: int, name: str, measurement: Measurement) -> list[str]:
    """Closes, for the device type of a probe, its cell if that is not feasible, and the cells that
    need more of its memory than there is: those beyond `Measurement.largest` that are alike but for
    axes of `infeasible.monotone`, on none of which they are smaller. Cells in which a trial ran to
    its end there stay open.

    Returns:
        The cells that it closed, in words.
    """
    if measurement.infeasible is None and not measurement.largest:
        return []
    (row,) = answers(c, _PROBED, {"probe_id": probe_id})
    _, monotone = _settings(c, row.study_id)
    device_type = {
        "memory": "cpu" if row.device_name == CPU else "gpu",
        "device_name": row.device_name,
        "bytes": row.bytes,
    }
    which = {
        "study_id": row.study_id,
        "probe_id": probe_id,
        "label": device_label(device_type["memory"], row.device_name, row.bytes),
        **device_type,
    }
    closed = []
    if measurement.infeasible is not None:
        own = {"cell_id": row.cell_id, "reason": f"probe {name}: {measurement.infeasible}"}
        closed += answers(c, _CLOSE_OWN, {**which, **own})
    for axis, largest in measurement.largest.items():
        axes = sorted({*monotone, axis})
        least = {path: row.cell_values[path] for path in axes if path != axis}
        beyond = {
            "axes": axes,
            "axis": axis,
            "largest": largest,
            "least": json.dumps(least),
            "others": json.dumps(
                {path: value for path, value in row.cell_values.items() if path not in axes}
            ),
            "reason": f"probe {name}: the largest {axis} that fits is {largest:g}",
        }
        closed += answers(c, _CLOSE_BEYOND, {**which, **beyond})
    return list(dict.fromkeys(cell_label(cell.values) for cell in closed))


def open_probed(c: Connection, study_id: int, probe_ids: Sequence[int]) -> list[Row]:
    """Opens the cells that these probes closed, for they are to be measured anew; returns those
    that are closed for all.
    """
    which = {"study_id": study_id, "probe_ids": list(probe_ids)}
    cells = {row.cell_id for row in answers(c, _FORGET_PROBED, which)}
    return answers(c, _FOR_ALL, {"cells": sorted(cells), "reason": f"{NOBODY}%"}) if cells else []


_PROBED = Statement(
    """
    SELECT r.study_id, r.cell_id, r.device_name, r.bytes, l.values AS cell_values
    FROM orchestrator.probe r JOIN orchestrator.cell l ON l.cell_id = r.cell_id
    WHERE r.probe_id = :probe_id
    """
)


def _close_probed(which: str) -> Statement:
    return Statement(
        f"""
    WITH closed AS (
        INSERT INTO orchestrator.shortage AS h
            (cell_id, memory, device_name, bytes, closed, reason, probe_id, closed_at)
        SELECT l.cell_id, k.memory, k.device_name, k.bytes, true, CAST(:reason AS text),
            CAST(:probe_id AS bigint), clock_timestamp()
        FROM orchestrator.cell l
        CROSS JOIN (
            SELECT CAST(:memory AS text) AS memory, CAST(:device_name AS text) AS device_name,
                CAST(:bytes AS bigint) AS bytes
        ) AS k
        WHERE l.study_id = :study_id AND {which} AND NOT EXISTS (
            SELECT FROM orchestrator.trial o
            JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
            WHERE o.cell_id = l.cell_id AND o.state = 'COMPLETE' AND {_is_short("k", "a")}
        )
        ON CONFLICT (cell_id, memory, device_name, bytes) DO UPDATE
        SET closed = true, reason = excluded.reason, probe_id = excluded.probe_id,
            trial_id = NULL, closed_at = excluded.closed_at
        WHERE NOT h.closed
        RETURNING cell_id, reason
    ), told AS (
        INSERT INTO orchestrator.event (study_id, cell_id, kind, reason)
        SELECT :study_id, cell_id, 'cell closed for a device',
            CAST(:label AS text) || ': ' || reason FROM closed
    )
    SELECT l.values FROM orchestrator.cell l WHERE l.cell_id IN (SELECT cell_id FROM closed)
    ORDER BY l.ordinal
    """
    )


_CLOSE_OWN = _close_probed("l.cell_id = :cell_id")
_CLOSE_BEYOND = _close_probed(
    """CAST(l.values ->> CAST(:axis AS text) AS numeric) > CAST(:largest AS numeric)
            AND CAST(l.values AS jsonb) - CAST(:axes AS text[]) = CAST(:others AS jsonb)
            AND NOT EXISTS (
                SELECT FROM jsonb_each_text(CAST(:least AS jsonb)) AS x(axis, value)
                WHERE CAST(l.values ->> x.axis AS numeric) < CAST(x.value AS numeric)
            )"""
)
_FORGET_PROBED = Statement(
    """
    DELETE FROM orchestrator.shortage h USING orchestrator.cell l
    WHERE l.cell_id = h.cell_id AND l.study_id = :study_id
        AND h.probe_id = ANY(CAST(:probe_ids AS bigint[]))
    RETURNING h.cell_id
    """
)
_FOR_ALL = Statement(
    """
    SELECT l.cell_id, l.study_id FROM orchestrator.cell l
    WHERE l.cell_id = ANY(CAST(:cells AS bigint[])) AND l.state = 'CLOSED' AND l.reason LIKE :reason
    ORDER BY l.ordinal FOR NO KEY UPDATE
    """
)


_NOTE_PEAK = Statement(
    """
    UPDATE orchestrator.attempt SET peak_bytes = CAST(:peak_bytes AS bigint)
    WHERE trial_id = :trial_id AND attempt = :attempt
    """
)
_COUNT = Statement(
    """
    INSERT INTO orchestrator.shortage AS h (cell_id, memory, device_name, bytes, in_a_row)
    VALUES (:cell_id, :memory, :device_name, :bytes, 1)
    ON CONFLICT (cell_id, memory, device_name, bytes) DO UPDATE SET in_a_row = h.in_a_row + 1
    RETURNING in_a_row
    """
)
# The cells above are alike but for the declared axes, on none of which their value is smaller. A
# trial that pruned itself before it reported anything may have needed no memory.
_CLOSE = Statement(
    f"""
    WITH closed AS (
        INSERT INTO orchestrator.shortage AS h
            (cell_id, memory, device_name, bytes, closed, reason, trial_id, closed_at)
        SELECT l.cell_id, k.memory, k.device_name, k.bytes, true,
            CASE WHEN l.cell_id = :cell_id THEN CAST(:own AS text) ELSE CAST(:above AS text) END,
            CAST(:trial_id AS bigint), clock_timestamp()
        FROM orchestrator.cell l
        CROSS JOIN (
            SELECT CAST(:memory AS text) AS memory, CAST(:device_name AS text) AS device_name,
                CAST(:bytes AS bigint) AS bytes
        ) AS k
        WHERE l.study_id = :study_id AND (l.cell_id = :cell_id OR (
            cardinality(CAST(:axes AS text[])) > 0
            AND CAST(l.values AS jsonb) - CAST(:axes AS text[]) = CAST(:others AS jsonb)
            AND NOT EXISTS (
                SELECT FROM jsonb_each_text(CAST(:least AS jsonb)) AS x(axis, value)
                WHERE CAST(l.values ->> x.axis AS numeric) < CAST(x.value AS numeric)
            )
            AND NOT EXISTS (
                SELECT FROM orchestrator.trial o
                JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
                WHERE o.cell_id = l.cell_id AND {_is_short("k", "a")}
                    AND (o.state = 'COMPLETE' OR (o.state = 'PRUNED' AND EXISTS (
                        SELECT FROM trial_intermediate_values i
                            WHERE i.trial_id = o.optuna_trial_id)))
            )
        ))
        ON CONFLICT (cell_id, memory, device_name, bytes) DO UPDATE
        SET closed = true, reason = excluded.reason, trial_id = excluded.trial_id,
            closed_at = excluded.closed_at
        WHERE NOT h.closed
        RETURNING cell_id, reason
    )
    INSERT INTO orchestrator.event (study_id, trial_id, cell_id, kind, reason)
    SELECT :study_id, :trial_id, cell_id, 'cell closed for a device',
        CAST(:label AS text) || ': ' || reason FROM closed
    """
)
_DISPROVE = Statement(
    f"""
    DELETE FROM orchestrator.shortage h
    USING orchestrator.attempt a
    WHERE h.cell_id = :cell_id AND a.trial_id = :trial_id AND a.attempt = :attempt
        AND {_is_short("h", "a")}
    """
)


def _type(c: Connection, row: Row, failure: Failed) -> tuple[str, str, int]:
    """Whose memory ran out, in the terms of `schema.shortage`; the name of the device and how much
    it has, 0: not known.
    """
    (ran,) = answers(c, _DEVICE_OF, {"trial_id": row.trial_id, "attempt": row.attempts})
    name = ran.device_name or CPU
    if ran.gpu_bytes is None:
        return "cpu", name, ran.host_bytes
    return (
        ("host", name, ran.host_bytes) if failure.memory == "host" else ("gpu", name, ran.gpu_bytes)
    )


_DEVICE_OF = Statement(
    """
    SELECT a.device_name, a.gpu_bytes, a.host_bytes FROM orchestrator.attempt a
    WHERE a.trial_id = :trial_id AND a.attempt = :attempt
    """
)


def _settings(c: Connection, study_id: int) -> tuple[int, list[str]]:
    """How many trials in a row may run out of memory, and the axes along which the need of it
    grows.
    """
    (row,) = answers(c, STUDY_SPEC, {"study_id": study_id})
    settings = row.spec.get("infeasible", {})
    axes = sorted(settings.get("monotone", {}))
    allowed = settings.get("max_per_cell")
    if allowed is None:
        allowed = 0 if axes else row.spec["budget"]["max_failures_per_cell"]
    return int(allowed), axes


STUDY_SPEC = Statement("SELECT s.spec FROM orchestrator.study s WHERE s.study_id = :study_id")


def device_label(memory: str, device_name: str, size: int) -> str:
    """A device type for people: ``NVIDIA H100 80GB HBM3 (79.6 GiB)``; of a host, what it has of
    RAM.
    """
    ram = "" if memory == "gpu" else " of RAM"
    return f"{device_name} ({size / _GIB:.3g} GiB{ram})" if size else device_name


# ----------------------------------------------------------------------------------- nobody is left


def standing_still(database: Database) -> list[int]:
    """The studies that would never end, though workers wait for them: what is left fits on no
    device of theirs.
    """
    return [row.study_id for row in database.execute(_STANDING_STILL)]


def close_for_all(c: Connection, study_id: int) -> str | None:
    """Closes the cells that keep a study from ending, if it still stands still; returns why, None
    if it does not.

    Their tickets go to the others. Under the study's lock.
    """
    which = {"study_id": study_id}
    still = answer(c, _STANDS_STILL, which)
    if still is None:
        return None
    cells = [
        row.cell_id for row in answers(c, _BLOCKING, {**which, "shares_left": still.shares_left})
    ]
    if cells:
        _close_all(c, study_id, cells)
    elif answer(c, _STANDS_STILL, which) is None:  # the last worker left between the two statements
        return None
    return "it ran out of memory on other devices, and no living worker has a larger one"


def _close_all(c: Connection, study_id: int, cells: Sequence[int]) -> None:
    why: dict[int, list[str]] = {}
    ruled_out = set()  # by a probe, which may have other reasons than memory
    for row in answers(c, _WHY_CLOSED, {"cells": list(cells)}):
        why.setdefault(row.cell_id, []).append(
            f"{device_label(row.memory, row.device_name, row.bytes)}: {row.reason}"
        )
        if row.probe_id is not None:
            ruled_out.add(row.cell_id)
    reasons = [
        f"{NOBODY}{'can run it' if cell_id in ruled_out else 'has the memory for it'}; "
        f"{'; '.join(why[cell_id])}"
        for cell_id in cells
    ]
    later(c, _CLOSE_FOR_ALL, {"study_id": study_id, "cells": list(cells), "reasons": reasons})


# The devices of living workers, with each study that they serve.
_SERVING = """
    WITH serving AS (
        SELECT s.study_id, d.device_name, d.gpu_bytes, d.host_bytes
        FROM orchestrator.worker w
        JOIN orchestrator.slot d ON d.worker_id = w.worker_id
        CROSS JOIN orchestrator.study s
        JOIN studies p ON p.study_id = s.study_id
        WHERE w.state = 'ACTIVE' AND w.lease_until > clock_timestamp() AND (
            w.studies IS NULL OR CAST(w.studies AS jsonb) @> to_jsonb(s.name)
            OR CAST(w.studies AS jsonb) @> to_jsonb(CAST(p.study_name AS text)))
    )
"""


def _some_take(cell_id: str) -> str:
    """SQL: whether a living worker that serves the study `s` has a device for which the cell is not
    closed.
    """
    return f"""EXISTS (
        SELECT FROM serving d WHERE d.study_id = s.study_id AND NOT {_closed_for("d", cell_id)})"""


_SHARES_LEFT = f"""EXISTS (
    SELECT FROM orchestrator.ticket t WHERE t.study_id = s.study_id AND t.state IN {UNSPENT}
        AND t.share IS NOT NULL)"""
# Living workers serve the study `s`, nothing of it runs, and what is left is for devices that none
# of them has. Tickets without a share wait until every share is spent.
_STILL = f"""
    {ACTIVE}
    AND EXISTS (
        SELECT FROM orchestrator.cell l JOIN orchestrator.shortage h ON h.cell_id = l.cell_id
            AND h.closed
        WHERE l.study_id = s.study_id
    )
    AND EXISTS (SELECT FROM serving d WHERE d.study_id = s.study_id)
    AND NOT EXISTS (
        SELECT FROM orchestrator.trial o JOIN orchestrator.ticket t ON t.ticket_id = o.ticket_id
        WHERE o.study_id = s.study_id AND o.state IN {LIVE}
            AND (o.worker_id IS NOT NULL OR t.extra OR {_some_take("o.cell_id")})
    )
    AND NOT EXISTS (
        SELECT FROM orchestrator.ticket t
        WHERE t.study_id = s.study_id AND t.state = 'OPEN' AND CASE
            WHEN t.extra THEN true
            WHEN t.share IS NULL AND {_SHARES_LEFT} THEN false
            WHEN t.cell_id IS NOT NULL THEN {_some_take("t.cell_id")}
            ELSE EXISTS (
                SELECT FROM orchestrator.cell l
                WHERE l.study_id = s.study_id AND l.state = 'OPEN' AND {_some_take("l.cell_id")}
            ) END
    )
    AND NOT {JUST_LOST}
"""
_STANDING_STILL = Statement(
    f"{_SERVING} SELECT s.study_id FROM orchestrator.study s WHERE {_STILL} ORDER BY s.study_id"
)
_STANDS_STILL = Statement(
    f"""
    {_SERVING}
    SELECT {_SHARES_LEFT} AS shares_left FROM orchestrator.study s WHERE s.study_id = :study_id
        AND {_STILL}
    """
)
_BLOCKING = Statement(
    f"""
    {_SERVING}
    SELECT l.cell_id
    FROM orchestrator.study s JOIN orchestrator.cell l ON l.study_id = s.study_id
        AND l.state = 'OPEN'
    WHERE s.study_id = :study_id AND EXISTS (SELECT FROM serving d WHERE d.study_id = s.study_id)
        AND NOT {_some_take("l.cell_id")}
        AND EXISTS (
            SELECT FROM orchestrator.ticket t
            WHERE t.study_id = s.study_id AND (
                (t.cell_id = l.cell_id AND t.state IN {UNSPENT} AND NOT t.extra)
                OR (NOT CAST(:shares_left AS bool) AND t.cell_id IS NULL AND t.state = 'OPEN'))
        )
    ORDER BY l.ordinal
    """
)
_WHY_CLOSED = Statement(
    """
    SELECT h.cell_id, h.memory, h.device_name, h.bytes, h.reason, h.probe_id
    FROM orchestrator.shortage h
    WHERE h.cell_id = ANY(CAST(:cells AS bigint[])) AND h.closed ORDER BY h.closed_at
    """
)
_CLOSE_FOR_ALL = Statement(
    """
    WITH freed AS (
        SELECT t.ticket_id, t.cell_id FROM orchestrator.ticket t
        WHERE t.cell_id = ANY(CAST(:cells AS bigint[])) AND t.state = 'OPEN' AND NOT t.extra
    ), unbound AS (
        UPDATE orchestrator.ticket t SET cell_id = NULL, share = NULL FROM freed f
            WHERE t.ticket_id = f.ticket_id
    ), closed AS (
        UPDATE orchestrator.cell l
        SET state = 'CLOSED', reason = v.reason,
            bound = l.bound - (SELECT count(*) FROM freed f WHERE f.cell_id = l.cell_id)
        FROM unnest(CAST(:cells AS bigint[]), CAST(:reasons AS text[])) AS v(cell_id, reason)
        WHERE l.cell_id = v.cell_id
        RETURNING l.cell_id, l.reason
    )
    INSERT INTO orchestrator.event (study_id, cell_id, kind, reason)
    SELECT :study_id, cell_id, 'cell closed', reason FROM closed
    """
)


# --------------------------------------------------------------------------------- a person insists


def try_again(c: Connection, trial_row: Row) -> list[Row]:
    """Opens the cell of a trial, and the cells that it closed, for every device; returns those that
    are closed for all.
    """
    rows = answers(c, _CLOSED_BY, {"cell_id": trial_row.cell_id, "trial_id": trial_row.trial_id})
    later(c, _FORGET, {"cells": [row.cell_id for row in rows]})
    return [row for row in rows if row.state == "CLOSED" and row.reason.startswith(NOBODY)]


_CLOSED_BY = Statement(
    """
    SELECT l.cell_id, l.study_id, l.state, l.reason FROM orchestrator.cell l
    WHERE l.cell_id IN (SELECT h.cell_id FROM orchestrator.shortage h WHERE h.cell_id = :cell_id
        OR h.trial_id = :trial_id)
    ORDER BY l.ordinal FOR NO KEY UPDATE
    """
)
_FORGET = Statement(
    "DELETE FROM orchestrator.shortage WHERE cell_id = ANY(CAST(:cells AS bigint[]))"
)
