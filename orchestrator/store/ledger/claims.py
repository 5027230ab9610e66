"""What a worker holds of a trial, and the ways to find a trial's row by it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from orchestrator.model import JSONValue, TrialNews
from orchestrator.store.connection.statement import Row, Statement
from orchestrator.store.schema import attempt, cell, ticket, trial


def new_token() -> int:
    """Proves a lease: random, for a database that went back in time would draw the same from a
    sequence again.
    """
    return secrets.randbits(63)


@dataclass(frozen=True)
class Claim:
    """A ticket held under a lease: what to run, and the token every later write must show.

    `number` is None until `create`; for a trial taken up again it is the number it always had, with
    `values` its parameters and `attempt` the attempt that begins now.
    """

    study_id: int
    trial_id: int
    token: int
    ticket: int
    failures: int
    cell: int
    cell_values: Mapping[str, JSONValue]
    number: int | None = None
    optuna_trial_id: int | None = None
    values: Mapping[str, JSONValue] | None = None
    attempt: int = 1
    fixed: Mapping[str, JSONValue] | None = None
    """What a trial by hand is given for searched parameters; the sampler is asked for
    the others.
    """
    why: Mapping[str, JSONValue] | None = None
    """Why an allocation chose this cell."""
    news: tuple[list[TrialNews], int] | None = None
    """What became known in the study by then and its last position, if that was asked for."""
    begun: bool = False
    """Whether this attempt is counted; a trial that was prepared ahead has to `start` first."""
    ran_under: int | None = None
    """Of an attempt that was left: the token under which it began; None if it is older than that is
    kept.
    """

    @property
    def shown(self) -> dict[str, int]:
        """What a statement needs to check the claim."""
        return {"trial_id": self.trial_id, "token": self.token}

    @property
    def resumed(self) -> bool:
        return self.attempt > 1


@dataclass(frozen=True)
class Place:
    """Where an attempt runs: its host's name and the root of the run directories there."""

    host: str
    runs_dir: str


def with_ticket() -> sa.Select[Any]:
    """Trials with what a `Claim` says of their ticket and cell."""
    of_cell = (cell.c.ordinal.label("cell"), cell.c["values"].label("cell_values"))
    query = sa.select(trial, ticket.c.ordinal, ticket.c.failures, *of_cell)
    return query.join(ticket, ticket.c.ticket_id == trial.c.ticket_id).join(
        cell, cell.c.cell_id == trial.c.cell_id
    )


def claim_of(row: Row) -> Claim:
    """The claim of a trial's last attempt."""
    return Claim(
        study_id=row.study_id,
        trial_id=row.trial_id,
        token=row.token,
        ticket=row.ordinal,
        failures=row.failures,
        cell=row.cell,
        cell_values=row.cell_values,
        number=row.number,
        optuna_trial_id=row.optuna_trial_id,
        values=row.values,
        attempt=row.attempts,
    )


def ran_at(place: Place, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether the trial's last attempt ran at that place, under further conditions on
    that attempt.
    """
    last = sa.and_(attempt.c.trial_id == trial.c.trial_id, attempt.c.attempt == trial.c.attempts)
    return sa.exists().where(
        last, attempt.c.host == place.host, attempt.c.runs_dir == place.runs_dir, *conditions
    )


LOCK_TRIAL = Statement(
    "SELECT FROM orchestrator.trial WHERE trial_id = :trial_id AND token = :token FOR NO KEY UPDATE"
)
"""Locks the trial's row, if the token is still its last."""
ENDING = Statement(
    """
    SELECT o.trial_id, o.token, o.study_id, o.ticket_id, o.cell_id, o.worker_id, o.state, o.number,
        o.optuna_trial_id,
        o.attempts, o.lost, o.retries, t.extra,
        l.values AS cell_values, l.state AS cell_state, l.completed, l.failures_in_a_row,
        CAST(s.spec #>> '{budget,max_failures_per_cell}' AS int) AS max_failures,
            p.study_id AS optuna_study_id,
        pg_postmaster_start_time() AS server
    FROM orchestrator.trial o
    JOIN orchestrator.ticket t ON t.ticket_id = o.ticket_id
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    JOIN orchestrator.study s ON s.study_id = o.study_id
    LEFT JOIN studies p ON p.study_id = o.study_id
    WHERE o.trial_id = :trial_id AND o.token = :token
    """
)
"""The trial with what its end depends on: its ticket, its cell, the study's rules."""


def held_by(claim: Claim) -> sa.Select[Any]:
    """The trial's row under lock, if the claim's token is still its last."""
    mine = sa.and_(trial.c.trial_id == claim.trial_id, trial.c.token == claim.token)
    return sa.select(trial).where(mine).with_for_update(key_share=True)
