"""What people watch: the trials that run now, and the newest studies. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.model import JSONValue
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Row, Statement, answer, answers
from orchestrator.store.optuna.rows import stored_float
from orchestrator.store.reads import Progress, StudyRow, best_trial
from orchestrator.store.states import LIVE, UNSPENT

_LOOKED_AT = 50
"""This many of the newest complete trials tell how many steps a trial has."""


@dataclass(frozen=True)
class RunningRow:
    """A trial that a worker runs now, with what it has reported.

    `seconds` passed since the attempt began. `reports` is the number of steps that were reported,
    `first` and `last` the smallest and the largest of them, `value` the value at `last`; None where
    nothing was reported.
    """

    number: int
    cell: int
    params: Mapping[str, JSONValue]
    attempt: int
    worker_id: int
    seconds: float
    reports: int = 0
    first: int | None = None
    last: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Held:
    """What a worker holds by the trials' own rows; `number` is None while it chooses parameters."""

    study: str
    number: int | None
    state: str


@dataclass(frozen=True)
class StudyLine:
    """A study in a list: `spent` of `total` trials, the best value of the first objective.

    `idle_s` is how long ago a trial last began or ended, or the study was launched.
    """

    row: StudyRow
    total: int
    spent: int
    running: int
    best: float | None
    best_trial: int | None
    idle_s: float


class Watch:
    """Queries for those who look at studies under way, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def running(self, study_id: int) -> list[RunningRow]:
        """The trials of the study that workers run now, by number."""
        rows = self._database.execute(_RUNNING, {"study_id": study_id})
        return [_running_row(row) for row in rows]

    def last_steps(self, study_id: int) -> list[tuple[int, int]]:
        """Cell and last reported step of the newest complete trials that reported any."""
        which = {"study_id": study_id, "most": _LOOKED_AT}
        return [(row.cell, row.step) for row in self._database.execute(_LAST_STEPS, which)]

    def held(self) -> dict[int, Held]:
        """What each worker holds; the trial that it runs before one that it has prepared."""
        found: dict[int, Held] = {}
        for row in self._database.execute(_HELD):
            found.setdefault(row.worker_id, Held(row.study, row.number, row.state))
        return found

    def lines(
        self, rows: Sequence[StudyRow], known: Mapping[int, Progress] | None = None
    ) -> list[StudyLine]:
        """How far each of the studies is, in the same order.

        Args:
            known: the progress of studies that was read already, by their id: their best trials are
                not looked for again.
        """
        known = known or {}
        ids = [row.study_id for row in rows]
        with self._database.transaction() as c:
            found = {row.study_id: row for row in answers(c, _LINES, {"study_ids": ids})}
            best = {
                study_id: answer(c, _BEST[line.maximize], {"study_id": study_id})
                for study_id, line in found.items()
                if line.completed and study_id not in known
            }
        lines = []
        for row in rows:
            line, top = found.get(row.study_id), best.get(row.study_id)
            if line is None:  # deleted meanwhile
                continue
            value, number = (None, None) if top is None else (top.value, top.number)
            if row.study_id in known:
                value, number = known[row.study_id].best, known[row.study_id].best_trial
            lines.append(
                StudyLine(
                    row,
                    total=line.spent + line.unspent,
                    spent=line.spent,
                    running=line.running,
                    best=value,
                    best_trial=number,
                    idle_s=max(0.0, float(line.idle_s)),
                )
            )
        return lines


def _running_row(row: Row) -> RunningRow:
    return RunningRow(
        number=row.number,
        cell=row.cell,
        params=row.params or {},
        attempt=row.attempts,
        worker_id=row.worker_id,
        seconds=max(0.0, float(row.seconds)),
        reports=row.reports,
        first=row.first,
        last=row.last,
        value=stored_float(row.value, row.value_type) if row.reports else None,
    )


_RUNNING = Statement(
    """
    SELECT o.number, l.ordinal AS cell, o.values AS params, o.attempts, o.worker_id,
        extract(epoch FROM clock_timestamp() - coalesce(a.started_at, o.claimed_at)) AS seconds,
        r.reports, r.first, r.last, i.intermediate_value AS value,
        CAST(i.intermediate_value_type AS text) AS value_type
    FROM orchestrator.trial o
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
    CROSS JOIN LATERAL (
        SELECT count(*) AS reports, min(step) AS first, max(step) AS last
        FROM trial_intermediate_values WHERE trial_id = o.optuna_trial_id
    ) AS r
    LEFT JOIN trial_intermediate_values i ON i.trial_id = o.optuna_trial_id AND i.step = r.last
    WHERE o.study_id = :study_id AND o.state = 'RUNNING' AND o.worker_id IS NOT NULL
    ORDER BY o.number
    """
)
# From the newest trial back, so that a large study is not read whole.
_LAST_STEPS = Statement(
    """
    SELECT l.ordinal AS cell, r.step
    FROM (
        SELECT o.cell_id, o.optuna_trial_id FROM orchestrator.trial o
        WHERE o.study_id = :study_id AND o.state = 'COMPLETE'
        ORDER BY o.number DESC LIMIT :most
    ) AS o
    JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    CROSS JOIN LATERAL (
        SELECT max(step) AS step FROM trial_intermediate_values WHERE trial_id = o.optuna_trial_id
    ) AS r
    WHERE r.step IS NOT NULL
    """
)
_HELD = Statement(
    f"""
    SELECT o.worker_id, p.study_name AS study, o.number, o.state
    FROM orchestrator.trial o JOIN studies p ON p.study_id = o.study_id
    WHERE o.worker_id IS NOT NULL AND o.state IN {LIVE}
    ORDER BY o.state = 'RUNNING' DESC, o.trial_id
    """
)
# Spent tickets by the tallies of the cells, of which there are fewer.
_LINES = Statement(
    f"""
    SELECT s.study_id, l.completed, l.spent, t.unspent, o.running,
        d.direction = 'MAXIMIZE' AS maximize,
        extract(epoch FROM clock_timestamp() - greatest(s.launched_at, e.at)) AS idle_s
    FROM orchestrator.study s
    JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(completed), 0) AS completed,
            coalesce(sum(completed + pruned), 0) AS spent
        FROM orchestrator.cell WHERE study_id = s.study_id
    ) AS l
    CROSS JOIN LATERAL (
        SELECT count(*) AS unspent FROM orchestrator.ticket
        WHERE study_id = s.study_id AND state IN {UNSPENT}
    ) AS t
    CROSS JOIN LATERAL (
        SELECT count(*) AS running FROM orchestrator.trial
        WHERE study_id = s.study_id AND state IN {LIVE} AND state = 'RUNNING'
            AND worker_id IS NOT NULL
    ) AS o
    LEFT JOIN LATERAL (
        SELECT coalesce(ended_at, claimed_at) AS at FROM orchestrator.trial
        WHERE study_id = s.study_id AND seq IS NOT NULL ORDER BY seq DESC LIMIT 1
    ) AS e ON true
    WHERE s.study_id = ANY(CAST(:study_ids AS int[]))
    """
)
_BEST = {maximize: best_trial(maximize=maximize) for maximize in (False, True)}
