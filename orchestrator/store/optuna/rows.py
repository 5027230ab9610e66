"""What we write into Optuna's own tables, as Optuna would: under the lock it takes, terminal once,
numbers 0…n-1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.model import JSONValue, Param, Suggestion
from orchestrator.store.connection.statement import Statement, answer, later
from orchestrator.store.optuna.attributes import artifact_attrs

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

LOCK_STUDY = Statement("SELECT FROM studies WHERE study_id = :study_id FOR UPDATE")
"""Takes the lock that Optuna takes before it draws a trial's id.

Readers that cache (Optuna's do) ask for ids above the last they saw: drawn before the lock, one
could commit late and be missed forever.
"""


def has_study(c: Connection, study_id: int) -> bool:
    """Whether the study is still there; a dashboard may have deleted it."""
    return answer(c, _STUDY, {"study_id": study_id}) is not None


def has_trial(c: Connection, trial_id: int) -> bool:
    """Whether the trial is still there, and keeps it there until the transaction ends; a dashboard
    may have deleted its study.
    """
    return answer(c, _SHARE_TRIAL, {"trial_id": trial_id}) is not None


def create_trial(
    c: Connection, study_id: int, trial_id: int, number: int, suggestion: Suggestion
) -> None:
    """Inserts a RUNNING trial with all its parameters; its id and number were drawn under the
    study's lock.
    """
    later(c, _INSERT_TRIAL, {"trial_id": trial_id, "study_id": study_id, "number": number})
    write_params(c, trial_id, suggestion.params)
    _write_attrs(c, _SET_SYSTEM_ATTRS, trial_id, suggestion.system_attrs)


_STUDY = Statement("SELECT study_id FROM studies WHERE study_id = :study_id")
_SHARE_TRIAL = Statement("SELECT trial_id FROM trials WHERE trial_id = :trial_id FOR SHARE")
# Optuna stores naive UTC. Arrays instead of one statement per row: 60,000 reports are one, whose
# text is always the same.
_INSERT_TRIAL = Statement(
    """
    INSERT INTO trials (trial_id, study_id, number, state, datetime_start)
    VALUES (:trial_id, :study_id, :number, 'RUNNING', timezone('utc', clock_timestamp()))
    """
)
_INSERT_PARAMS = Statement(
    """
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT :trial_id, p.name, p.value, p.distribution
    FROM unnest(CAST(:names AS text[]), CAST(:values AS float8[]), CAST(:distributions AS text[]))
        AS p(name, value, distribution)
    """
)
_INSERT_VALUES = Statement(
    """
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT :trial_id, v.objective - 1, v.value, CAST(v.type AS trialvaluetype)
    FROM unnest(CAST(:values AS float8[]), CAST(:types AS text[])) WITH ORDINALITY AS v(value, type,
        objective)
    """
)
_END_TRIAL = Statement(
    """
    UPDATE trials SET state = CAST(:state AS trialstate),
        datetime_complete = timezone('utc', clock_timestamp())
    WHERE trial_id = :trial_id
    """
)
_ATTRS = """
    INSERT INTO {table} (trial_id, key, value_json)
    SELECT :trial_id, a.key, a.value
        FROM unnest(CAST(:keys AS text[]), CAST(:values AS text[])) AS a(key, value)
    ON CONFLICT (trial_id, key) DO {otherwise}
"""
_SET = "UPDATE SET value_json = excluded.value_json"
_SET_USER_ATTRS = Statement(_ATTRS.format(table="trial_user_attributes", otherwise=_SET))
_SET_SYSTEM_ATTRS = Statement(_ATTRS.format(table="trial_system_attributes", otherwise=_SET))
_KEEP_SYSTEM_ATTRS = Statement(_ATTRS.format(table="trial_system_attributes", otherwise="NOTHING"))


def write_params(c: Connection, trial_id: int, params: Sequence[Param]) -> None:
    """Adds parameters; the trial has none of these names yet."""
    if params:
        columns = zip(*((p.name, float(p.internal), p.distribution) for p in params), strict=True)
        names, values, distributions = (list(column) for column in columns)
        given = {"names": names, "values": values, "distributions": distributions}
        later(c, _INSERT_PARAMS, {"trial_id": trial_id, **given})


def write_reports(c: Connection, trial_id: int, reports: Mapping[int, float]) -> None:
    """Adds intermediate values; a step that has one keeps it."""
    if reports:
        rows = [(step, *_stored(value, "v").values()) for step, value in reports.items()]
        steps, values, types = (list(column) for column in zip(*rows, strict=True))
        later(
            c,
            _INSERT_REPORTS,
            {"trial_id": trial_id, "steps": steps, "values": values, "types": types},
        )


_INSERT_REPORTS = Statement(
    """
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value,
        intermediate_value_type)
    SELECT :trial_id, r.step, r.value, CAST(r.type AS trialintermediatevaluetype)
    FROM unnest(CAST(:steps AS int[]), CAST(:values AS float8[]), CAST(:types AS text[])) AS r(step,
        value, type)
    ON CONFLICT (trial_id, step) DO NOTHING
    """
)


def write_user_attrs(c: Connection, trial_id: int, attrs: Mapping[str, JSONValue]) -> None:
    """Sets user attributes; a later value of a key replaces an earlier one."""
    _write_attrs(c, _SET_USER_ATTRS, trial_id, attrs)


def write_constraints(
    c: Connection,
    trial_id: int,
    constraints: Mapping[str, float],
    artifacts: Mapping[str, JSONValue],
) -> None:
    """Adds constraints as Optuna's `set_constraint` does, and records of artifacts; what is there
    keeps its value.
    """
    attrs = {
        **{f"constraints:{key}": value for key, value in constraints.items()},
        **artifact_attrs(artifacts),
    }
    _write_attrs(c, _KEEP_SYSTEM_ATTRS, trial_id, attrs)


def end_trial(
    c: Connection,
    trial_id: int,
    state: str,
    values: Sequence[float],
    attrs: Mapping[str, JSONValue],
) -> None:
    """Makes the trial terminal, with its last user attributes, and its objective values if it is
    COMPLETE.
    """
    if values:
        rows = [tuple(_stored(value).values()) for value in values]
        stored, types = (list(column) for column in zip(*rows, strict=True))
        later(c, _INSERT_VALUES, {"trial_id": trial_id, "values": stored, "types": types})
    _write_attrs(c, _SET_USER_ATTRS, trial_id, attrs)
    later(c, _END_TRIAL, {"trial_id": trial_id, "state": state})


def _write_attrs(
    c: Connection, statement: Statement, trial_id: int, attrs: Mapping[str, JSONValue]
) -> None:
    if attrs:
        values = [json.dumps(value) for value in attrs.values()]
        later(c, statement, {"trial_id": trial_id, "keys": list(attrs), "values": values})


def _stored(value: float, name: str = "value") -> dict[str, Any]:
    """Optuna's columns for a float that may be infinite, or NaN for an intermediate one."""
    kind = (
        "NAN"
        if math.isnan(value)
        else "FINITE"
        if math.isfinite(value)
        else "INF_POS"
        if value > 0
        else "INF_NEG"
    )
    return {name: value if kind == "FINITE" else None, f"{name}_type": kind}


def stored_values(stored: Sequence[Sequence[Any]] | None) -> tuple[float, ...] | None:
    """The objective values that Optuna stored as pairs of value and type; None if
    there are none.
    """
    return tuple(stored_float(value, kind) for value, kind in stored) if stored else None


def stored_float(value: float | None, kind: str) -> float:
    """The number that Optuna stored as `value` and its type."""
    if kind == "FINITE" and value is not None:
        return float(value)
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind, math.nan)
