"""What we write into Optuna's own tables, as Optuna would: under the lock it takes, terminal once, numbers 0…n-1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from orchestrator.model import JSONValue, Param, Suggestion
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


def lock_study(c: Connection, study_id: int) -> bool:
    """Takes the lock that Optuna takes before it draws a trial's id; False if the study is gone.

    Readers that cache (Optuna's do) ask for ids above the last they saw: drawn before the lock, one could commit late and be
    missed for ever.
    """
    query = sa.select(optuna_studies.c.study_id).where(optuna_studies.c.study_id == study_id).with_for_update()
    return c.execute(query).one_or_none() is not None


def has_trial(c: Connection, trial_id: int) -> bool:
    """Whether the trial is still there; a dashboard may have deleted its study."""
    query = sa.select(optuna_trials.c.trial_id).where(optuna_trials.c.trial_id == trial_id).with_for_update(read=True)
    return c.execute(query).one_or_none() is not None


def create_trial(c: Connection, study_id: int, suggestion: Suggestion) -> tuple[int, int]:
    """Inserts a RUNNING trial with all its parameters; returns its id and number. Under the study's lock."""
    # The highest id has the highest number, for both are drawn under the lock, here as in Optuna.
    last = (
        sa.select(optuna_trials.c.number)
        .where(optuna_trials.c.study_id == study_id)
        .order_by(optuna_trials.c.trial_id.desc())
        .limit(1)
        .scalar_subquery()
    )
    made = c.execute(
        sa.insert(optuna_trials)
        .values(study_id=study_id, number=sa.func.coalesce(last + 1, 0), state="RUNNING", datetime_start=_UTC_NOW)
        .returning(optuna_trials.c.trial_id, optuna_trials.c.number)
    ).one()
    write_params(c, made.trial_id, suggestion.params)
    _write_attrs(c, optuna_trial_system_attributes, made.trial_id, suggestion.system_attrs)
    return int(made.trial_id), int(made.number)


def write_params(c: Connection, trial_id: int, params: Sequence[Param]) -> None:
    """Adds parameters; the trial has none of these names yet."""
    if params:
        rows = [
            {"trial_id": trial_id, "param_name": p.name, "param_value": p.internal, "distribution_json": p.distribution}
            for p in params
        ]
        c.execute(sa.insert(optuna_trial_params).values(rows))


def write_reports(c: Connection, trial_id: int, reports: Mapping[int, float]) -> None:
    """Adds intermediate values; a step that has one keeps it."""
    if reports:
        rows = [(step, *_stored(value, "v").values()) for step, value in reports.items()]
        # Arrays instead of a row each: 60,000 reports are one statement.
        steps, values, types = (list(column) for column in zip(*rows, strict=True))
        c.execute(_INSERT_REPORTS, {"trial_id": trial_id, "steps": steps, "values": values, "types": types})


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
        c.execute(keep)


def end_trial(c: Connection, trial_id: int, state: str, values: Sequence[float]) -> None:
    """Makes the trial terminal, with its objective values if it is COMPLETE. Attributes are written before."""
    if values:
        rows = [{"trial_id": trial_id, "objective": i, **_stored(v)} for i, v in enumerate(values)]
        c.execute(sa.insert(optuna_trial_values).values(rows))
    c.execute(
        sa.update(optuna_trials).where(optuna_trials.c.trial_id == trial_id).values(state=state, datetime_complete=_UTC_NOW)
    )


def _write_attrs(c: Connection, table: sa.Table, trial_id: int, attrs: Mapping[str, JSONValue]) -> None:
    if attrs:
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        statement = insert(table).values(rows)
        value = {"value_json": statement.excluded.value_json}
        c.execute(statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=value))


def _stored(value: float, name: str = "value") -> dict[str, Any]:
    """Optuna's columns for a float that may be infinite, or NaN for an intermediate one."""
    kind = "NAN" if math.isnan(value) else "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"
    return {name: value if kind == "FINITE" else None, f"{name}_type": kind}
