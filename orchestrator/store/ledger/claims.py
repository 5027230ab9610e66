"""What a worker holds of a trial, and the statements that find the trial's row by it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.model import JSONValue, TrialNews
from orchestrator.store.connection.statement import Row, Statement
from orchestrator.store.states import LIVE


def new_token() -> int:
    """A number that proves a lease. It is random: a database that went back in time would draw the
    same number from a sequence again.
    """
    return secrets.randbits(63)


@dataclass(frozen=True)
class _Held:
    """What a worker holds of a trial under its lease; every later write must show the `token`.

    `ticket` and `cell` are ordinals within the study; `failures` counts the trials that this ticket
    has lost to failures.
    """

    study_id: int
    trial_id: int
    token: int
    ticket: int
    failures: int
    cell: int
    cell_values: Mapping[str, JSONValue]

    @property
    def proof(self) -> dict[str, int]:
        """What a statement needs to check that the trial is still held."""
        return {"trial_id": self.trial_id, "token": self.token}


@dataclass(frozen=True)
class Ticket(_Held):
    """A ticket that was taken: it has no parameters and no Optuna trial yet."""

    fixed: Mapping[str, JSONValue] | None = None
    """The values that a trial by hand prescribes for searched parameters; the sampler suggests the
    others.
    """
    why: Mapping[str, JSONValue] | None = None
    """Why an allocation chose this cell."""
    confirms: int | None = None
    """The number of the trial whose parameters it repeats with another seed."""
    copied_from: Mapping[str, JSONValue] | None = None
    """The trial of another study that `fixed` was copied from: ``study`` and ``trial``; without
    `fixed` it says nothing, for another trial of the ticket had those parameters.
    """
    measurements: tuple[Mapping[str, JSONValue], ...] = ()
    """What the study's probes found in its cell on the worker's device type."""
    news: tuple[list[TrialNews], int] | None = None
    """The study's news since a position and their last position, if the claim asked for them."""

    def prepared(
        self, number: int, optuna_trial_id: int, values: Mapping[str, JSONValue]
    ) -> Prepared:
        """The trial that this ticket became."""
        return Prepared(
            self.study_id,
            self.trial_id,
            self.token,
            self.ticket,
            self.failures,
            self.cell,
            self.cell_values,
            number,
            optuna_trial_id,
            values,
        )


@dataclass(frozen=True)
class Prepared(_Held):
    """A trial with its parameters and its Optuna trial, of which no attempt has begun."""

    number: int
    optuna_trial_id: int
    values: Mapping[str, JSONValue]

    def begun(self, attempt: int = 1) -> Attempt:
        """The attempt of that number, which begins under this claim."""
        return Attempt(
            self.study_id,
            self.trial_id,
            self.token,
            self.ticket,
            self.failures,
            self.cell,
            self.cell_values,
            self.number,
            self.optuna_trial_id,
            self.values,
            attempt,
            self.token,
        )


@dataclass(frozen=True)
class Attempt(_Held):
    """One attempt of a trial, which runs or ran; `attempt` counts from 1."""

    number: int
    optuna_trial_id: int
    values: Mapping[str, JSONValue]
    attempt: int
    ran_under: int | None
    """The token under which it began, which is part of the name of its run directory; None for an
    attempt of a version whose names had no token.
    """

    @property
    def resumed(self) -> bool:
        """Whether earlier attempts of the trial have run."""
        return self.attempt > 1


Claim: TypeAlias = Ticket | Prepared | Attempt
"""What a worker got: a new trial, one that another worker has prepared, or one that
was given back.
"""


@dataclass(frozen=True)
class Place:
    """Where attempts run: the host's name, and the root of the run directories there."""

    host: str
    runs_dir: str


TRIALS = """
    SELECT o.study_id, o.trial_id, o.token, o.number, o.optuna_trial_id, o.values, o.attempts,
        t.ordinal, t.failures,
        l.ordinal AS cell, l.values AS cell_values
    FROM orchestrator.trial o
    JOIN orchestrator.ticket t ON t.ticket_id = o.ticket_id
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
"""
"""SQL: trials with their ticket and cell, as `prepared_of` reads them."""
IDLE = "(o.worker_id IS NULL OR o.state = 'PREPARED')"
"""SQL: whether nobody runs the unfinished trial `o`: it was given back, or has not begun."""
LEFT_RESULT_S = 10.0
"""How long, in seconds, a study that is over waits for a result that a dead worker may have left on
its host.
"""
JUST_LOST = f"""EXISTS (
    SELECT FROM orchestrator.trial o JOIN orchestrator.attempt a ON a.trial_id = o.trial_id
    WHERE o.study_id = s.study_id AND o.state IN {LIVE} AND a.outcome = 'lost'
        AND a.ended_at > clock_timestamp() - make_interval(secs => {LEFT_RESULT_S}))"""
"""SQL: whether a worker that ran a trial of the study `s` died a moment ago."""


def prepared_of(row: Row) -> Prepared:
    """The trial of a row of `TRIALS`, as if no attempt had begun; `Prepared.begun` adds one."""
    return Prepared(
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
HELD_TRIAL = Statement(
    """
    SELECT o.trial_id, o.study_id, o.ticket_id, o.cell_id, o.worker_id, o.state, o.optuna_trial_id,
        o.attempts, o.lost, o.token,
        o.values
    FROM orchestrator.trial o
    WHERE o.trial_id = :trial_id AND o.token = :token FOR NO KEY UPDATE
    """
)
"""The trial's row under lock, if the token is still its last."""
