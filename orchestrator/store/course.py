"""How a study went, for reports: what each attempt took and where it ran. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Row, Statement


@dataclass(frozen=True)
class Span:
    """One attempt of a trial, from its start to its end (None: it has not ended).

    `cell` is the ordinal of the trial's cell, `state` the trial's. `outcome` is ``completed``,
    ``pruned``, ``failed``, ``interrupted``, ``lost``, ``retried``, or None while it runs. `device`
    is the key of the device, which is unique on its host; where the attempt left no facts it is
    that of another attempt of the same worker, which holds one device for its whole life, and None
    if there is none.
    """

    number: int
    cell: int
    state: str
    attempt: int
    worker_id: int | None
    host: str
    device: str | None
    device_name: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it runs."""
        if self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


class Course:
    """Queries, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def spans(self, study_id: int) -> list[Span]:
        """Every attempt of our trials of the study, in the order in which they began."""
        rows = self._database.execute(_SPANS, {"study_id": study_id})
        return _spans(rows)

    def foreign(self, study_id: int) -> int:
        """How many finished trials others (plain Optuna, a dashboard) added to the study."""
        (row,) = self._database.execute(_N_FOREIGN, {"study_id": study_id})
        return int(row.trials)


def _spans(rows: Sequence[Row]) -> list[Span]:
    known: dict[int, str] = {
        row.worker_id: row.device for row in rows if row.device and row.worker_id is not None
    }
    return [
        Span(
            row.number,
            row.cell,
            row.state,
            row.attempt,
            row.worker_id,
            row.host,
            row.device or known.get(row.worker_id),
            row.device_name,
            row.started_at.astimezone(UTC),
            None if row.ended_at is None else row.ended_at.astimezone(UTC),
            row.outcome,
        )
        for row in rows
    ]


_SPANS = Statement(
    """
    SELECT o.number, l.ordinal AS cell, o.state, a.attempt, a.worker_id, a.host,
        a.facts #>> '{device,key}' AS device, a.device_name, a.started_at, a.ended_at, a.outcome
    FROM orchestrator.attempt a
    JOIN orchestrator.trial o ON o.trial_id = a.trial_id
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    WHERE o.study_id = :study_id AND o.number IS NOT NULL
    ORDER BY a.started_at, o.number, a.attempt
    """
)
_N_FOREIGN = Statement(
    """
    SELECT count(*) AS trials
    FROM trials q
    WHERE q.study_id = :study_id AND q.state IN ('COMPLETE', 'PRUNED', 'FAIL')
        AND NOT EXISTS (SELECT FROM orchestrator.trial o WHERE o.optuna_trial_id = q.trial_id)
    """
)
