"""Writes a study's cells and tickets in bulk, whatever the size of the grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.store.connection.statement import AnyConnection, Statement, answers, send

if TYPE_CHECKING:
    from orchestrator.model import StudySpec

CELLS_AT_ONCE = 10_000
"""At most this many cells are sent in one statement, and held in memory here."""


def write_cells(c: AnyConnection, study_id: int, spec: StudySpec) -> None:
    """Makes the cells of a new study; each counts the shares that `write_tickets`
    binds to it next.
    """
    first = 0
    for texts in _batches(json.dumps(values) for values in spec.cells()):
        which = {
            "study_id": study_id,
            "first": first,
            "cells": texts,
            "bound": spec.budget.per_cell,
        }
        send(c, _INSERT_CELLS, which)
        first += len(texts)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(texts, CELLS_AT_ONCE)):
        yield batch


def write_tickets(
    c: AnyConnection,
    study_id: int,
    spec: StudySpec,
    *,
    new: bool,
    within: bool = False,
    section: str = "",
) -> int:
    """Brings the tickets in line with the budget; returns how many were added. Under the study's
    lock.

    Only tickets that no trial ever held are removed, so a smaller budget ends a study early and a
    larger one continues it. If a larger budget is all that changed, tickets are added and none is
    replaced.

    Args:
        new: `write_cells` has just made the study's cells, and there is no ticket yet.
        within: do only what fits into the budget. No ticket is removed, shares that exceed
            ``budget.trials`` are not made, and tickets without a cell are only made if no cell is
            closed.
        section: what comes before ``budget`` where it is set: ``stages.NAME.`` of a stage.

    Raises:
        ConfigError: the guaranteed shares, or trials that are to run again, do not fit into
            ``budget.trials``.
    """
    # With every cell closed, the tickets stay as they are, for cells that are opened again.
    if not new and not _has_cell(c, study_id, "OPEN"):
        return 0
    which = {"study_id": study_id, "per_cell": spec.budget.per_cell, "trials": spec.budget.trials}
    rebuilds = new or within or _count(c, _MUST_REBUILD, which) > 0
    gone = _take_back(c, study_id) if rebuilds and not new and not within else 0
    (there,) = answers(c, _TICKETS, which)
    kept, next_ordinal = int(there.kept), int(there.next_ordinal)
    waiting = _untouched(c, study_id) if rebuilds and not new and not within else 0
    room = max(0, spec.budget.trials - kept) if within else None
    shares = (
        send(c, _INSERT_SHARES, {**which, "first": next_ordinal, "room": room}).rowcount
        if rebuilds
        else 0
    )
    if shares + waiting and kept + shares > spec.budget.trials:
        more = (
            [f"{section}budget.per_cell={spec.budget.per_cell} guarantees {shares} more"]
            if shares
            else []
        )
        more += (
            [f"{waiting} more are needed for cells without a complete trial, or for 'retry'"]
            if waiting
            else []
        )
        raise ConfigError(
            f"{section}budget.trials={spec.budget.trials} is too small: {kept - waiting} trials "
            f"are spent or running, and {' and '.join(more)}; set {section}budget.trials to at "
            f"least {kept + shares}"
        )
    if rebuilds and not new:
        count_bound(c, study_id)
    rest = (
        0
        if within and _has_cell(c, study_id, "CLOSED")
        else max(0, spec.budget.trials - kept - shares)
    )
    send(c, _INSERT_REST, {**which, "first": next_ordinal + shares, "rest": rest})
    return max(0, int(shares + rest - gone))


def count_bound(c: AnyConnection, study_id: int) -> None:
    """Counts the tickets of each cell anew."""
    send(c, _COUNT_BOUND, {"study_id": study_id})


def _has_cell(c: AnyConnection, study_id: int, state: str) -> bool:
    return _count(c, _CELLS, {"study_id": study_id, "state": state}) > 0


def _take_back(c: AnyConnection, study_id: int) -> int:
    """Removes the tickets that no trial ever held; returns how many.

    Those stay that wait for a complete trial of their cell, or have been given the parameters of a
    failed one.
    """
    return int(send(c, _DELETE_UNUSED, {"study_id": study_id}).rowcount)


def _untouched(c: AnyConnection, study_id: int) -> int:
    """How many tickets wait that no trial ever held."""
    return _count(c, _WAITING, {"study_id": study_id})


def _count(c: AnyConnection, statement: Statement, which: Mapping[str, Any]) -> int:
    (row,) = answers(c, statement, which)
    return int(row.n)


_CELLS = Statement(
    """
    SELECT count(*) AS n FROM (
        SELECT FROM orchestrator.cell l WHERE l.study_id = :study_id AND l.state = :state LIMIT 1
    ) AS found
    """
)

_TICKETS = Statement(
    """
    SELECT count(*) FILTER (WHERE t.state <> 'VOID' AND NOT t.extra) AS kept,
        coalesce(max(t.ordinal) + 1, 0) AS next_ordinal
    FROM orchestrator.ticket t WHERE t.study_id = :study_id
    """
)

_UNTOUCHED = "NOT EXISTS (SELECT FROM orchestrator.trial o WHERE o.ticket_id = t.ticket_id)"

_DELETE_UNUSED = Statement(
    f"""
    DELETE FROM orchestrator.ticket t
    WHERE t.study_id = :study_id AND t.state IN ('OPEN', 'VOID') AND NOT t.extra AND {_UNTOUCHED}
        AND t.fixed IS NULL AND NOT (t.share IS NOT NULL AND EXISTS (
            SELECT FROM orchestrator.cell l
            WHERE l.cell_id = t.cell_id AND l.completed = 0 AND l.pruned > 0))
    """
)

_WAITING = Statement(
    f"""
    SELECT count(*) AS n FROM orchestrator.ticket t
    WHERE t.study_id = :study_id AND t.state = 'OPEN' AND NOT t.extra AND {_UNTOUCHED}
    """
)

_INSERT_CELLS = Statement(
    """
    INSERT INTO orchestrator.cell (study_id, ordinal, values, bound)
    SELECT CAST(:study_id AS int), :first + v.ordinality - 1, CAST(v.text AS json),
        CAST(:bound AS int)
    FROM unnest(CAST(:cells AS text[])) WITH ORDINALITY AS v(text, ordinality)
    """
)

# Whether unused tickets must be replaced: there are too many, a cell lacks a share or has one too
# many, or some are void.
_MUST_REBUILD = Statement(
    """
    SELECT CAST(EXISTS (
            SELECT FROM orchestrator.cell l WHERE l.study_id = :study_id AND l.state = 'OPEN'
                AND l.bound < :per_cell
        ) OR (
            SELECT count(*) FILTER (WHERE t.state <> 'VOID') > :trials
                OR count(*) FILTER (WHERE t.state = 'VOID') > 0
                OR count(*) FILTER (WHERE t.state = 'OPEN' AND t.share > :per_cell) > 0
            FROM orchestrator.ticket t WHERE t.study_id = :study_id AND NOT t.extra
        ) AS int) AS n
    """
)

# The shares a cell still lacks, share-major: every cell's k-th trial comes before any cell's
# (k+1)-th.
_INSERT_SHARES = Statement(
    """
    INSERT INTO orchestrator.ticket (study_id, ordinal, cell_id, share)
    SELECT CAST(:study_id AS int), :first + row_number() OVER (ORDER BY s.share, l.ordinal) - 1,
        l.cell_id, s.share
    FROM orchestrator.cell l
    LEFT JOIN (
        SELECT t.cell_id, max(t.share) AS highest,
            count(*) FILTER (WHERE t.state <> 'VOID' AND NOT t.extra
                AND t.confirms IS NULL) AS n
        FROM orchestrator.ticket t WHERE t.study_id = :study_id GROUP BY t.cell_id
    ) AS had ON had.cell_id = l.cell_id
    CROSS JOIN LATERAL generate_series(
        coalesce(had.highest, 0) + 1, coalesce(had.highest,
            0) + CAST(:per_cell AS int) - coalesce(had.n, 0)
    ) AS s(share)
    WHERE l.study_id = :study_id AND l.state = 'OPEN'
    ORDER BY s.share, l.ordinal LIMIT CAST(:room AS int)
    """
)

# Written only where it changes: the column is part of an index, and each write leaves a dead row in
# all of them.
_COUNT_BOUND = Statement(
    """
    UPDATE orchestrator.cell l SET bound = n.n
    FROM (
        SELECT l.cell_id, count(t.ticket_id) AS n
        FROM orchestrator.cell l
        LEFT JOIN orchestrator.ticket t ON t.cell_id = l.cell_id AND t.state <> 'VOID'
            AND NOT t.extra AND t.confirms IS NULL
        WHERE l.study_id = :study_id
        GROUP BY l.cell_id
    ) AS n
    WHERE n.cell_id = l.cell_id AND l.bound <> n.n
    """
)

_INSERT_REST = Statement(
    """
    INSERT INTO orchestrator.ticket (study_id, ordinal)
    SELECT CAST(:study_id AS int), CAST(:first AS int) + i
    FROM generate_series(0, CAST(:rest AS int) - 1) AS i
    """
)
