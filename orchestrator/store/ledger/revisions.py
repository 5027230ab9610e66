"""Extends a study: what its trials have in Optuna's tables, its cells and its tickets.

All of it is part of the transaction of a launch, under the study's locks. Every open ticket is
locked first, so that no claim begins; a claim holds its ticket when it refers to its cell, and
would wait for one whose ordinal has changed. Then come trials, then cells, then tickets.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import ConfigError
from orchestrator.faults import step as crash_step
from orchestrator.model import JSONValue, count_label
from orchestrator.store.connection.statement import AnyConnection, Statement, answers, send
from orchestrator.store.ledger import grid, tickets

if TYPE_CHECKING:
    from orchestrator.model import Param, StudySpec
    from orchestrator.revision import Extension

_AT_ONCE = 10_000
T = TypeVar("T")


def record(c: AnyConnection, study_id: int, spec: StudySpec, changes: tuple[str, ...] = ()) -> None:
    """Keeps the revision that `spec` begins; one that is kept already stays as it is."""
    row = {"spec": json.dumps(spec.to_json()), "changes": json.dumps(changes)}
    send(c, _RECORD, {"study_id": study_id, "revision": spec.revision, **row})


def extend(
    c: AnyConnection, study_id: int, old: StudySpec, extension: Extension
) -> tuple[str, ...]:
    """Makes the study's trials and cells those of its next revision; returns in words what became
    of the cells.

    Trials so far keep their values, and get the default of each parameter that is new; so does what
    waits with parameters of its own for everything that was searched, as a repetition does. Cells
    that the grid has no longer are closed, and what they had not begun is free for others. What was
    claimed and has no parameters yet is given back. The caller writes the study's row and then the
    tickets, see `grid.write_tickets`.

    Raises:
        ConfigError: a trial has a parameter of that name already, which its objective asked for.
    """
    spec = extension.spec
    send(c, _LOCK_TICKETS, {"study_id": study_id})
    _give_back_claims(c, study_id)
    _rewrite(c, study_id, old, extension)
    words = _regrid(c, study_id, spec, {p.name: value for p, value in extension.added})
    crash_step("mid-extend")
    freed = send(c, _FREE_TICKETS, {"study_id": study_id}).rowcount
    send(c, _VOID_BY_HAND, {"study_id": study_id})
    grid.count_bound(c, study_id)
    record(c, study_id, old)  # of a study that an older version has made since
    record(c, study_id, spec, extension.changes)
    return (*words, f"{count_label(freed, 'ticket')} freed") if freed else words


def _give_back_claims(c: AnyConnection, study_id: int) -> None:
    """Gives back what was claimed under the revision before and has no parameters yet, whatever the
    version of the worker that holds it: what it suggests is refused from now on.
    """
    for row in answers(c, _CLAIMED, {"study_id": study_id}):
        send(c, tickets.DELETE_TRIAL, {"trial_id": row.trial_id})
        tickets.give_back(c, row.ticket_id, row.cell_id)


# --------------------------------------------------------------------------------------- the trials


def _rewrite(c: AnyConnection, study_id: int, old: StudySpec, extension: Extension) -> None:
    which = {"study_id": study_id}
    if extension.distributions:
        names, both = zip(*extension.distributions.items(), strict=True)
        were, are = zip(*both, strict=True)
        texts = {"names": list(names), "were": list(were), "are": list(are)}
        send(c, _SET_DISTRIBUTIONS, {**which, **texts})
    added = {param.name: value for param, value in extension.added}
    for param, _ in extension.added:
        if answers(c, _HAS_PARAMETER, {**which, "name": param.name}):
            raise ConfigError(
                f"{param.name}: trials of the study have a parameter of that name already, which "
                "the objective asked for as it ran; it cannot be declared now"
            )
        _add(c, study_id, extension.spec, param, added)
    _complete_given(c, study_id, old, extension.spec, added)
    axes = [axis.path for axis in extension.spec.grid]
    if any(param.name in axes for param, _ in extension.added):
        send(c, _NAME_AXES, {**which, "axes": json.dumps(axes)})


def _add(
    c: AnyConnection, study_id: int, spec: StudySpec, param: Param, added: Mapping[str, JSONValue]
) -> None:
    """Gives trials so far a parameter, those in whose cell it exists.

    Args:
        added: the value of every parameter that is new, axes included, which no cell has yet.
    """
    searched = next((item for item in spec.search if item.path == param.name), None)
    cells = None
    if searched is not None and searched.when:
        rows = answers(c, _CELLS, {"study_id": study_id})
        cells = [row.cell_id for row in rows if searched.exists_in({**added, **row.values})]
    which = {"study_id": study_id, "name": param.name, "cells": cells}
    stored = {"internal": param.internal, "distribution": param.distribution}
    send(c, _ADD_PARAMETER, {**which, **stored})
    send(c, _ADD_VALUE, {**which, "value": json.dumps(added[param.name])})


def _complete_given(
    c: AnyConnection, study_id: int, old: StudySpec, new: StudySpec, added: Mapping[str, JSONValue]
) -> None:
    """Gives the new parameters to tickets that wait with a value for everything that was searched
    in their cell: they repeat a trial that has them by now, or were written down as a whole.
    """
    found = []
    for row in answers(c, _GIVEN, {"study_id": study_id}):
        if all(item.path in row.fixed for item in old.search if item.exists_in(row.values)):
            cell = {**added, **row.values}
            more = {
                item.path: added[item.path]
                for item in new.search
                if item.path in added and item.exists_in(cell)
            }
            found.append((row.ticket_id, json.dumps({**row.fixed, **more})))
    for some in _batches(found):
        ids, texts = (list(column) for column in zip(*some, strict=True))
        send(c, _GIVE, {"ids": ids, "texts": texts})


# ---------------------------------------------------------------------------------------- the cells


def _regrid(
    c: AnyConnection, study_id: int, spec: StudySpec, added: dict[str, JSONValue]
) -> tuple[str, ...]:
    """Makes the cells those of the grid, each with its place in it as its ordinal; those that were
    taken from it come after them.
    """
    places = {_key(values): place for place, values in enumerate(spec.cells())}
    rows = answers(c, _CELLS, {"study_id": study_id})
    found, beyond, removed, returned = [], len(places), 0, 0
    for row in rows:
        values = {
            axis.path: row.values[axis.path] if axis.path in row.values else added[axis.path]
            for axis in spec.grid
        }
        place = places.pop(_key(values), None)
        removed += place is None and row.removed_in is None
        returned += place is not None and row.removed_in is not None
        ordinal = beyond if place is None else place
        beyond += place is None
        found.append((row.cell_id, ordinal, json.dumps(values), place is None))
    # Not in one statement, in which an ordinal would be taken before its cell has given it up.
    send(c, _LEAVE_PLACES, {"study_id": study_id})
    for some in _batches(found):
        ids, ordinals, texts, gone = (list(column) for column in zip(*some, strict=True))
        to = {"ids": ids, "ordinals": ordinals, "texts": texts, "gone": gone}
        send(c, _PLACE_CELLS, {**to, "revision": spec.revision})
    for new in _batches(places.items()):
        made = {"texts": [key for key, _ in new], "ordinals": [place for _, place in new]}
        send(c, _INSERT_CELLS, {**made, "study_id": study_id})
    counts = (
        (len(places), "added"),
        (removed, "taken from the grid, its trials stay" if removed == 1 else
         "taken from the grid, their trials stay"),
        (returned, "back on the grid"),
    )  # fmt: skip
    return tuple(f"{count_label(count, 'cell')} {what}" for count, what in counts if count)


def _key(values: dict[str, JSONValue]) -> str:
    return json.dumps(values)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(itertools.islice(left, _AT_ONCE)):
        yield batch


_RECORD = Statement(
    """
    INSERT INTO orchestrator.revision (study_id, revision, spec, changes)
    VALUES (:study_id, :revision, CAST(:spec AS json), CAST(:changes AS json))
    ON CONFLICT (study_id, revision) DO NOTHING
    """
)
# Also of trials that others made with the very same distribution: a study has one for each name.
_SET_DISTRIBUTIONS = Statement(
    """
    UPDATE trial_params p SET distribution_json = d.is_now
    FROM trials q, unnest(CAST(:names AS text[]), CAST(:were AS text[]), CAST(:are AS text[]))
        AS d(name, was, is_now)
    WHERE q.study_id = :study_id AND p.trial_id = q.trial_id AND p.param_name = d.name
        AND (p.distribution_json = d.was
            OR EXISTS (SELECT FROM orchestrator.trial o WHERE o.optuna_trial_id = q.trial_id))
    """
)
_HAS_PARAMETER = Statement(
    """
    SELECT p.param_id FROM trial_params p JOIN trials q ON q.trial_id = p.trial_id
    WHERE q.study_id = :study_id AND p.param_name = :name LIMIT 1
    """
)
_OF_CELLS = "(CAST(:cells AS bigint[]) IS NULL OR o.cell_id = ANY(CAST(:cells AS bigint[])))"
_ADD_PARAMETER = Statement(
    f"""
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT o.optuna_trial_id, :name, CAST(:internal AS float8), :distribution
    FROM orchestrator.trial o JOIN trials q ON q.trial_id = o.optuna_trial_id
    WHERE o.study_id = :study_id AND {_OF_CELLS}
    """
)
_ADD_VALUE = Statement(
    f"""
    UPDATE orchestrator.trial o SET values = (
        SELECT json_object_agg(n.key, n.value ORDER BY n.place) FROM (
            SELECT j.key, j.value, j.ordinality AS place
                FROM json_each(o.values) WITH ORDINALITY AS j
            UNION ALL SELECT :name, CAST(:value AS json), 1000000
        ) AS n
    )
    WHERE o.study_id = :study_id AND o.values IS NOT NULL AND {_OF_CELLS}
    """
)
_GIVEN = Statement(
    """
    SELECT t.ticket_id, t.fixed, l.values FROM orchestrator.ticket t
    JOIN orchestrator.cell l ON l.cell_id = t.cell_id
    WHERE t.study_id = :study_id AND t.state = 'OPEN' AND t.fixed IS NOT NULL
    """
)
_GIVE = Statement(
    """
    UPDATE orchestrator.ticket t SET fixed = CAST(n.text AS json)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:texts AS text[])) AS n(ticket_id, text)
    WHERE t.ticket_id = n.ticket_id
    """
)
_NAME_AXES = Statement(
    r"""
    UPDATE study_user_attributes SET value_json = :axes
    WHERE study_id = :study_id AND key = 'orchestrator\:grid'
    """
)
_LOCK_TICKETS = Statement(
    """
    SELECT t.ticket_id FROM orchestrator.ticket t
    WHERE t.study_id = :study_id AND t.state = 'OPEN' ORDER BY t.ordinal FOR NO KEY UPDATE
    """
)
# In a statement after that lock: what was claimed before it is seen here.
_CLAIMED = Statement(
    """
    SELECT o.trial_id, o.ticket_id, o.cell_id FROM orchestrator.trial o
    WHERE o.study_id = :study_id AND o.state = 'CLAIMED' ORDER BY o.trial_id FOR UPDATE
    """
)
_CELLS = Statement(
    """
    SELECT l.cell_id, l.values, l.removed_in FROM orchestrator.cell l
    WHERE l.study_id = :study_id ORDER BY l.ordinal FOR NO KEY UPDATE
    """
)
_LEAVE_PLACES = Statement(
    "UPDATE orchestrator.cell SET ordinal = -1 - ordinal WHERE study_id = :study_id"
)
_PLACE_CELLS = Statement(
    """
    UPDATE orchestrator.cell l
    SET ordinal = n.ordinal, values = CAST(n.text AS json),
        state = CASE WHEN n.gone THEN 'CLOSED' WHEN l.removed_in IS NOT NULL THEN 'OPEN'
            ELSE l.state END,
        reason = CASE WHEN n.gone AND l.removed_in IS NULL
                THEN 'not on the grid since revision ' || CAST(CAST(:revision AS int) AS text)
            WHEN NOT n.gone AND l.removed_in IS NOT NULL THEN NULL ELSE l.reason END,
        failures_in_a_row = CASE WHEN NOT n.gone AND l.removed_in IS NOT NULL THEN 0
            ELSE l.failures_in_a_row END,
        removed_in = CASE WHEN n.gone THEN coalesce(l.removed_in, CAST(:revision AS int)) END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:ordinals AS int[]), CAST(:texts AS text[]),
        CAST(:gone AS bool[])) AS n(cell_id, ordinal, text, gone)
    WHERE l.cell_id = n.cell_id
    """
)
_INSERT_CELLS = Statement(
    """
    INSERT INTO orchestrator.cell (study_id, ordinal, values)
    SELECT CAST(:study_id AS int), n.ordinal, CAST(n.text AS json)
    FROM unnest(CAST(:ordinals AS int[]), CAST(:texts AS text[])) AS n(ordinal, text)
    """
)
# What nobody ever tried is made anew where it is needed; the place in the budget of what was tried
# is free as well. A trial that ends later without spending its ticket leaves its closed cell, too.
_FREE_TICKETS = Statement(
    f"""
    UPDATE orchestrator.ticket t
    SET state = CASE WHEN EXISTS (SELECT FROM orchestrator.trial o WHERE o.ticket_id = t.ticket_id)
            THEN 'VOID' ELSE 'OPEN' END, {tickets.LEAVE}
    FROM orchestrator.cell l
    WHERE t.study_id = :study_id AND l.cell_id = t.cell_id AND l.removed_in IS NOT NULL
        AND t.state = 'OPEN' AND NOT t.extra
    """
)
_VOID_BY_HAND = Statement(
    """
    UPDATE orchestrator.ticket t SET state = 'VOID'
    FROM orchestrator.cell l
    WHERE t.study_id = :study_id AND l.cell_id = t.cell_id AND l.removed_in IS NOT NULL
        AND t.state = 'OPEN' AND t.extra
    """
)
