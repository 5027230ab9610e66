"""The trials of a study for people, filtered, sorted and cut by the server. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from orchestrator.model import Direction, JSONValue
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import (
    AnyConnection,
    Row,
    Statement,
    answers,
    later,
    send,
    wire_of,
)
from orchestrator.store.optuna.attributes import FAILURE_ATTR
from orchestrator.store.optuna.rows import stored_float, stored_values
from orchestrator.store.reads import FEASIBLE, VALUE

SortKey: TypeAlias = Literal["value", "number", "seconds", "ended"]
AT_ONCE: Final = 1_000
"""At most this many trials are held in memory here."""

STATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "complete": "o.state = 'COMPLETE'",
        "pruned": "o.state = 'PRUNED'",
        "failed": "o.state = 'FAIL'",
        "running": "o.state = 'RUNNING' AND o.worker_id IS NOT NULL",
        "prepared": "o.state = 'PREPARED' AND o.worker_id IS NOT NULL",
        "waiting": "o.state IN ('PREPARED', 'RUNNING') AND o.worker_id IS NULL",
    }
)
"""The states by which trials are listed: each trial with a number is in exactly one of them.

A waiting one was given back, and no worker has it.
"""


@dataclass(frozen=True)
class Selection:
    """Which trials, in which order, and how many.

    `states` are keys of `STATES`, `cells` ordinals (None: all cells). By ``value`` the best come
    first, by ``number`` the lowest, by ``seconds`` the shortest, by ``ended`` the earliest; with
    `reverse` the last of them. `front` are the numbers of trials that come before all others by
    ``value``. `most` is None for no limit.
    """

    directions: Sequence[Direction]
    states: tuple[str, ...] = tuple(STATES)
    cells: tuple[int, ...] | None = None
    sort: SortKey = "value"
    reverse: bool = False
    front: tuple[int, ...] = ()
    most: int | None = None


@dataclass(frozen=True)
class ListedTrial:
    """One trial; `state` is a key of `STATES`, `values` None unless it is complete.

    `seconds` is how long its last attempt took, or has run so far; `step` and `last` are the last
    that it reported of those that run or were pruned. `failure` is why it failed in full, `kind`
    the same in one word. `revision` is the study's under which its parameters were suggested.
    """

    number: int
    state: str
    cell: int
    params: dict[str, JSONValue]
    values: tuple[float, ...] | None
    attempts: int
    seconds: float | None
    ended: datetime | None
    host: str | None
    step: int | None
    last: float | None
    failure: str | None
    kind: str | None
    feasible: bool
    revision: int = 1


class Listing:
    """Queries, each in one transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def counts(self, study_id: int, cells: Sequence[int] | None = None) -> dict[str, int]:
        """How many trials there are in each of `STATES`.

        Args:
            cells: only of the cells with these ordinals.
        """
        columns = ", ".join(
            f"count(*) FILTER (WHERE {which}) AS {state}" for state, which in STATES.items()
        )
        query = Statement(f"SELECT {columns} {_FROM} {_of_cells(cells)}")
        (row,) = self._database.execute(query, {"study_id": study_id, "cells": _listed(cells)})
        return {state: int(getattr(row, state)) for state in STATES}

    def parameters(self, study_id: int, selection: Selection) -> list[str]:
        """The names of all parameters that the selected trials have, in alphabetical order; `most`
        is ignored.
        """
        query = Statement(
            f"SELECT DISTINCT json_object_keys(o.values) AS name {_FROM} {_of(selection)} "
            "AND o.values IS NOT NULL ORDER BY 1"
        )
        which = {"study_id": study_id, "cells": _listed(selection.cells)}
        return [row.name for row in self._database.execute(query, which)]

    def outcomes(
        self, study_id: int, cells: Sequence[int] | None = None
    ) -> list[tuple[int, tuple[float, ...]]]:
        """Number and values of every complete feasible trial of these cells, or of all."""
        query = Statement(
            f"SELECT o.number, {_VALUES} AS values {_FROM} {_of_cells(cells)} "
            f"AND o.state = 'COMPLETE' AND {FEASIBLE}"
        )
        rows = self._database.execute(query, {"study_id": study_id, "cells": _listed(cells)})
        return [(row.number, stored_values(row.values) or ()) for row in rows]

    def each(self, study_id: int, selection: Selection) -> Iterator[list[ListedTrial]]:
        """The selected trials in order, in lists of at most `AT_ONCE`.

        The transaction lasts until the last list was taken: do not wait for anyone meanwhile.
        """
        left = selection.most
        with self._database.transaction(statement_s=300, idle_s=60) as c:
            for where, key in _parts(selection):
                if left == 0:
                    return
                for rows in _read(c, study_id, selection, where, key, left):
                    left = None if left is None else left - len(rows)
                    yield [_listed_trial(row) for row in rows]


_FROM = "FROM orchestrator.trial o WHERE o.study_id = :study_id AND o.number IS NOT NULL"
_CELLS = (
    "AND o.cell_id IN (SELECT l.cell_id FROM orchestrator.cell l WHERE l.study_id = :study_id "
    "AND l.ordinal = ANY(CAST(:cells AS int[])))"
)
_VALUES = """
    (SELECT json_agg(json_build_array(v.value, v.value_type) ORDER BY v.objective)
        FROM trial_values v WHERE v.trial_id = o.optuna_trial_id)
"""
_SECONDS = "extract(epoch FROM coalesce(a.ended_at, clock_timestamp()) - a.started_at)"
_KEYS: Mapping[str, str] = {
    "value": VALUE,
    "number": "o.number",
    "seconds": _SECONDS,
    "ended": "o.ended_at",
}
# Sorted and cut first (OFFSET 0 keeps it apart), so that the rest is looked up of the listed trials
# alone, and constraints from the best trial on and seldom further.
_LIST = """
    SELECT o.number, l.ordinal AS cell, o.values AS params, o.attempts, o.failure, o.ended_at,
        o.revision,
        CASE {states} END AS state,
        v.value, v.value_type, {more} AS more, a.host, {seconds} AS seconds,
        r.step, r.value AS last, r.type AS last_type,
        {feasible} AS feasible,
        CASE WHEN o.state = 'FAIL' THEN (
            SELECT CAST(u.value_json AS json) ->> 'kind' FROM trial_user_attributes u
            WHERE u.trial_id = o.optuna_trial_id AND u.key = :failure_attr
        ) END AS kind
    FROM (
        SELECT o.trial_id, o.key
        FROM (
            SELECT o.trial_id, o.optuna_trial_id, o.number, o.state, {key} AS key
            FROM orchestrator.trial o {join}
            WHERE o.study_id = :study_id AND o.number IS NOT NULL {which}
            ORDER BY key {order} NULLS LAST, o.number {by_number}
            OFFSET 0
        ) AS o
        WHERE {where}
        LIMIT :most
    ) AS n
    JOIN orchestrator.trial o ON o.trial_id = n.trial_id
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    LEFT JOIN trial_values v ON v.trial_id = o.optuna_trial_id AND v.objective = 0
    LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
    LEFT JOIN LATERAL (
        SELECT i.step, i.intermediate_value AS value, i.intermediate_value_type AS type
        FROM trial_intermediate_values i
        WHERE i.trial_id = o.optuna_trial_id AND o.state IN ('RUNNING', 'PRUNED')
        ORDER BY i.step DESC LIMIT 1
    ) AS r ON true
    ORDER BY n.key {order} NULLS LAST, o.number {by_number}
"""
_JOINS: Mapping[str, str] = {
    "value": "LEFT JOIN trial_values v ON v.trial_id = o.optuna_trial_id AND v.objective = 0",
    "seconds": (
        "LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts"
    ),
}


def _parts(selection: Selection) -> list[tuple[str, str]]:
    """The conditions of the parts of which the list consists, one after the other, and what each is
    sorted by.

    By value, what has none comes last, after what broke a constraint.
    """
    if selection.sort != "value":
        return [("true", selection.sort)]
    parts: list[tuple[str, str]] = []
    if "complete" in selection.states:
        complete = "o.state = 'COMPLETE'"
        leading = "o.number = ANY(CAST(:front AS int[]))"
        if selection.front:
            parts.append((leading, "value"))
        other = f"{complete} AND NOT {leading}" if selection.front else complete
        parts += [(f"{other} AND {FEASIBLE}", "value"), (f"{other} AND NOT {FEASIBLE}", "value")]
        if selection.reverse:
            parts.reverse()
        if selection.states != ("complete",):
            parts.append((f"NOT {complete}", "number"))
        return parts
    return [("true", "number")]


def _read(
    c: AnyConnection, study_id: int, selection: Selection, where: str, key: str, most: int | None
) -> Iterator[Sequence[Row]]:
    largest_first = (key == "value" and selection.directions[0] == "maximize") != selection.reverse
    text = _LIST.format(
        states=" ".join(f"WHEN {which} THEN '{state}'" for state, which in STATES.items()),
        more=_VALUES if len(selection.directions) > 1 else "NULL",
        seconds=_SECONDS,
        feasible=FEASIBLE,
        key=_KEYS[key],
        join=_JOINS.get(key, ""),
        which=_of(selection),
        where=where,
        order="DESC" if largest_first else "ASC",
        by_number="DESC" if key == "number" and selection.reverse else "ASC",
    )
    given = {
        "study_id": study_id,
        "cells": _listed(selection.cells),
        "front": list(selection.front),
        "most": most,
        "failure_attr": FAILURE_ATTR,
    }
    query = Statement(text)
    if most is not None and most <= AT_ONCE:
        if rows := answers(c, query, given):
            yield rows
        return

    # All of them are read, so the plan that is the fastest for all of them is the best.
    later(c, b"SET LOCAL cursor_tuple_fraction = 1")
    declare = Statement(f"DECLARE listed NO SCROLL CURSOR FOR {text}")
    later(c, wire_of(c).unprepared(declare, given))
    while rows := query.rows(send(c, f"FETCH {AT_ONCE} FROM listed".encode())):
        yield rows
    later(c, b"CLOSE listed")


def _of(selection: Selection) -> str:
    states = " OR ".join(f"({STATES[state]})" for state in selection.states)
    return f"AND ({states}) {_of_cells(selection.cells)}"


def _of_cells(cells: Sequence[int] | None) -> str:
    return "" if cells is None else _CELLS


def _listed(cells: Sequence[int] | None) -> list[int] | None:
    return None if cells is None else list(cells)


def _listed_trial(r: Row) -> ListedTrial:
    values: tuple[float, ...] | None = None
    if r.more is not None:
        values = stored_values(r.more)
    elif r.value_type is not None:
        values = (stored_float(r.value, r.value_type),)
    return ListedTrial(
        number=r.number,
        state=r.state,
        cell=r.cell,
        params=r.params or {},
        values=values,
        attempts=r.attempts,
        seconds=None if r.seconds is None else float(r.seconds),
        ended=r.ended_at,
        host=r.host,
        step=r.step,
        last=None if r.last_type is None else stored_float(r.last, r.last_type),
        failure=r.failure,
        kind=r.kind,
        feasible=r.feasible,
        revision=r.revision,
    )
