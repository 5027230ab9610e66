"""Studies in the same database that plain Optuna made, and that have no ledger. Nothing here
writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.model import Direction
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Statement
from orchestrator.store.news import News

if TYPE_CHECKING:
    from orchestrator.model import TrialNews


@dataclass(frozen=True)
class PlainStudy:
    """A study that plain Optuna made; `metrics` as `Study.set_metric_names` named them."""

    study_id: int
    name: str
    directions: tuple[Direction, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class PlainTrial:
    """One of its finished trials. Optuna 5 stores times in UTC; one before stored local ones."""

    news: TrialNews
    started_at: datetime | None
    ended_at: datetime | None


class PlainStudies:
    """Queries, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database
        self._news = News(database)

    def all(self) -> list[PlainStudy]:
        """All of them, the newest last."""
        return [
            PlainStudy(
                row.study_id,
                row.study_name,
                tuple("maximize" if d == "MAXIMIZE" else "minimize" for d in row.directions),
                _metrics(row.metrics, len(row.directions)),
            )
            for row in self._database.execute(_STUDIES)
        ]

    def trials(self, study_id: int) -> list[PlainTrial]:
        """The finished trials of such a study, by number."""
        rows = self._database.execute(_TIMES, {"study_id": study_id})
        times = {row.number: (_utc(row.began), _utc(row.ended)) for row in rows}
        return [
            PlainTrial(news, *times.get(news.number, (None, None)))
            for news in self._news.foreign(study_id, ())
        ]

    def unfinished(self, study_id: int) -> tuple[int, int]:
        """How many of its trials run, and how many wait in Optuna's queue."""
        (row,) = self._database.execute(_UNFINISHED, {"study_id": study_id})
        return int(row.running), int(row.waiting)


def _metrics(stored: str | None, count: int) -> tuple[str, ...]:
    if stored is not None:
        names: Sequence[object] = json.loads(stored)
        return tuple(map(str, names))
    return ("value",) if count == 1 else tuple(f"value {k + 1}" for k in range(count))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


_STUDIES = Statement(
    r"""
    SELECT p.study_id, p.study_name,
        (SELECT json_agg(d.direction ORDER BY d.objective)
           FROM study_directions d WHERE d.study_id = p.study_id) AS directions,
        (SELECT a.value_json FROM study_system_attributes a
           WHERE a.study_id = p.study_id AND a.key = 'study\:metric_names') AS metrics
    FROM studies p
    WHERE NOT EXISTS (SELECT FROM orchestrator.study s WHERE s.study_id = p.study_id)
    ORDER BY p.study_id
    """
)
_TIMES = Statement(
    """
    SELECT number, datetime_start AS began, datetime_complete AS ended
    FROM trials WHERE study_id = :study_id
    """
)
_UNFINISHED = Statement(
    """
    SELECT count(*) FILTER (WHERE state = 'RUNNING') AS running,
        count(*) FILTER (WHERE state = 'WAITING') AS waiting
    FROM trials WHERE study_id = :study_id
    """
)
