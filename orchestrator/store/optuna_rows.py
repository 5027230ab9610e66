"""What we write into Optuna's own tables, as Optuna would: under the lock it takes, terminal once, numbers 0…n-1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from orchestrator.model import JSONValue, Suggestion
from orchestrator.store.database import later
from orchestrator.store.schema import (
    optuna_studies,
    optuna_trial_params,
    optuna_trial_system_attributes,
    optuna_trial_user_attributes,
    optuna_trial_values,
    optuna_trials,
)

# Optuna stores naive UTC.
_UTC_NOW = sa.func.timezone("utc", sa.func.clock_timestamp())


LOCK_STUDY = sa.text("SELECT FROM studies WHERE study_id = :study_id FOR UPDATE")
"""Takes the lock that Optuna takes before it draws a trial's id.

Readers that cache (Optuna's do) ask for ids above the last they saw: drawn before the lock, one could commit late and be missed
for ever.
"""


def has_study(c: Connection, study_id: int) -> bool:
    """Whether the study is still there; a dashboard may have deleted it."""
    query = sa.select(optuna_studies.c.study_id).where(optuna_studies.c.study_id == study_id)
    return c.execute(query).one_or_none() is not None


def has_trial(c: Connection, trial_id: int) -> bool:
    """Whether the trial is still there; a dashboard may have deleted its study."""
    query = sa.select(optuna_trials.c.trial_id).where(optuna_trials.c.trial_id == trial_id).with_for_update(read=True)
    return c.execute(query).one_or_none() is not None


def create_trial(c: Connection, study_id: int, trial_id: int, number: int, suggestion: Suggestion) -> None:
    """Inserts a RUNNING trial with all its parameters; its id and number were drawn under the study's lock."""
    made = {"trial_id": trial_id, "study_id": study_id, "number": number, "state": "RUNNING", "datetime_start": _UTC_NOW}
    later(c, sa.insert(optuna_trials).inline().values(made))
    if suggestion.params:
        rows = [
            {"trial_id": trial_id, "param_name": p.name, "param_value": p.internal, "distribution_json": p.distribution}
            for p in suggestion.params
        ]
        later(c, sa.insert(optuna_trial_params).inline().values(rows))
    _write_attrs(c, optuna_trial_system_attributes, trial_id, suggestion.system_attrs)


def write_reports(c: Connection, trial_id: int, reports: Mapping[int, float]) -> None:
    """Adds intermediate values; a step that has one keeps it."""
    if reports:
        rows = [(step, *_stored(value, "v").values()) for step, value in reports.items()]
        # Arrays instead of a row each: 60,000 reports are one statement.
        steps, values, types = (list(column) for column in zip(*rows, strict=True))
        later(c, _INSERT_REPORTS, {"trial_id": trial_id, "steps": steps, "values": values, "types": types})


_INSERT_REPORTS = sa.text(
    """
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT :trial_id, r.step, r.value, CAST(r.type AS trialintermediatevaluetype)
    FROM unnest(CAST(:steps AS int[]), CAST(:values AS float8[]), CAST(:types AS text[])) AS r(step, value, type)
    ON CONFLICT (trial_id, step) DO NOTHING
    """
)


def write_user_attrs(c: Connection, trial_id: int, attrs: Mapping[str, JSONValue]) -> None:
    """Sets user attributes; a later value of a key replaces an earlier one."""
    _write_attrs(c, optuna_trial_user_attributes, trial_id, attrs)


def write_constraints(c: Connection, trial_id: int, constraints: Mapping[str, float]) -> None:
    """Adds constraints as Optuna's `set_constraint` does; one that is there keeps its value."""
    if constraints:
        rows = [
            {"trial_id": trial_id, "key": f"constraints:{key}", "value_json": json.dumps(value)}
            for key, value in constraints.items()
        ]
        keep = insert(optuna_trial_system_attributes).values(rows).on_conflict_do_nothing(index_elements=["trial_id", "key"])
        later(c, keep)


def end_trial(c: Connection, trial_id: int, state: str, values: Sequence[float]) -> None:
    """Makes the trial terminal, with its objective values if it is COMPLETE. Attributes are written before."""
    if values:
        rows = [{"trial_id": trial_id, "objective": i, **_stored(v)} for i, v in enumerate(values)]
        later(c, sa.insert(optuna_trial_values).inline().values(rows))
    ended = {"state": state, "datetime_complete": _UTC_NOW}
    later(c, sa.update(optuna_trials).where(optuna_trials.c.trial_id == trial_id).values(ended))


def _write_attrs(c: Connection, table: sa.Table, trial_id: int, attrs: Mapping[str, JSONValue]) -> None:
    if attrs:
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        statement = insert(table).values(rows)
        value = {"value_json": statement.excluded.value_json}
        later(c, statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=value))


def _stored(value: float, name: str = "value") -> dict[str, Any]:
    """Optuna's columns for a float that may be infinite, or NaN for an intermediate one."""
    kind = "NAN" if math.isnan(value) else "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {name: value if kind == "FINITE" else None, f"{name}_type": kind}
