"""What people want to be told of: a study that has ended, a cell that was closed, a study that has
paused itself. Each is told once to each target, whoever tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue
from orchestrator.store.connection.statement import Statement, answers, later
from orchestrator.store.reads import best_trial
from orchestrator.store.states import BRAKED, DELETING

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

TOLD = "told"
"""Kind of the event that notes that another one was, or is about to be, told to a target."""


@dataclass(frozen=True)
class Notice:
    """Something to tell people.

    `kind` is ``finished``, ``cell closed`` or ``paused``; `cell` has the values of that cell, and
    is None for the others. `spent` of `total` trials are spent, `failed` have failed. `best` is the
    best value of the first objective, observed by `best_trial`; None if no trial is complete.
    """

    study: str
    kind: str
    reason: str
    at: datetime
    cell: Mapping[str, JSONValue] | None
    metric: str
    spent: int
    total: int
    failed: int
    best: float | None
    best_trial: int | None


class Notices:
    """The notices of one process for one target.

    Args:
        target: names who is told, without saying how: it is stored.
        studies: names of the studies to tell of; None: all.
    """

    def __init__(
        self, database: Database, target: str, studies: Sequence[str] | None = None
    ) -> None:
        self._database = database
        self._target = target
        self._studies = studies
        self._seen: int | None = None

    def take(self, *, last: bool = False) -> list[Notice]:
        """What has happened since the first call, and that no other process has taken for the same
        target; the first call only notes where it begins.

        What is taken is taken, even if it cannot be told then. While another process takes, this
        one leaves it to the next call.

        Args:
            last: there is no next call, so wait for the other one.

        Raises:
            StoreUnavailableError: the database does not answer; what the call may have taken is
                lost.
        """
        with self._database.transaction() as c:
            if self._seen is None:
                (now,) = answers(c, _NOW)
                self._seen = int(now.event_id)
                return []
            target = {"target": self._target}
            if last:
                later(c, _ONE_AT_A_TIME, target)
            else:
                (turn,) = answers(c, _MY_TURN, target)
                if not turn.mine:
                    return []
            which = {
                "seen": self._seen,
                "target": self._target,
                "studies": None if self._studies is None else list(self._studies),
            }
            taken = answers(c, _TAKE, which)
            (now,) = answers(c, _SETTLED, which)
            self._seen = int(now.event_id)
            return [self._notice(c, row.event_id) for row in taken]

    def _notice(self, c: Connection, event_id: int) -> Notice:
        (row,) = answers(c, _NOTICE, {"event_id": event_id})
        best = answers(c, best_trial(maximize=row.maximize), {"study_id": row.study_id})
        return Notice(
            row.study,
            "cell closed" if row.kind == "cell settled" else row.kind,
            row.reason or "",
            row.at,
            row.cell,
            row.metric,
            row.spent,
            row.total,
            row.failed,
            float(best[0].value) if best else None,
            int(best[0].number) if best else None,
        )


_NOW = Statement("SELECT coalesce(max(e.event_id), 0) AS event_id FROM orchestrator.event e")
# Two that ask at once would both find nothing noted yet. The second one looks again later: the
# first may wait for a study that is being deleted.
_TURN = "hashtext('orchestrator notices'), hashtext(CAST(:target AS text))"
_MY_TURN = Statement(f"SELECT pg_try_advisory_xact_lock({_TURN}) AS mine")
_ONE_AT_A_TIME = Statement(f"SELECT pg_advisory_xact_lock({_TURN})")
_TAKE = Statement(
    f"""
    INSERT INTO orchestrator.event (study_id, kind, reason)
    SELECT e.study_id, '{TOLD}', e.event_id || ' ' || CAST(:target AS text)
    FROM orchestrator.event e JOIN orchestrator.study s ON s.study_id = e.study_id
    JOIN studies p ON p.study_id = s.study_id
    WHERE e.event_id > :seen AND (
            e.kind IN ('cell closed', 'cell settled')
            OR (e.kind = 'finished' AND NOT starts_with(e.reason, '{DELETING}'))
            OR (e.kind = 'paused' AND starts_with(e.reason, '{BRAKED}')))
        AND (CAST(:studies AS text[]) IS NULL
            OR p.study_name = ANY(CAST(:studies AS text[]))
            OR s.name = ANY(CAST(:studies AS text[])))
        AND NOT EXISTS (
            SELECT FROM orchestrator.event n WHERE n.study_id = e.study_id
                AND n.event_id > :seen AND n.kind = '{TOLD}'
                AND n.reason = e.event_id || ' ' || CAST(:target AS text)
        )
    ORDER BY e.event_id
    RETURNING CAST(split_part(reason, ' ', 1) AS bigint) AS event_id
    """
)
# Ids are handed out before their rows can be seen: what is younger is looked at again. A database
# that went back in time has lower ids.
_SETTLED = Statement(
    """
    SELECT coalesce(
        (
            SELECT max(e.event_id) FROM orchestrator.event e
            WHERE e.event_id > :seen AND e.at < clock_timestamp() - interval '10 minutes'
        ),
        (SELECT least(:seen, max(e.event_id)) FROM orchestrator.event e), 0) AS event_id
    """
)
_NOTICE = Statement(
    """
    SELECT s.study_id, p.study_name AS study, e.kind, e.reason, e.at, l.values AS cell,
        s.spec #>> '{metrics,0}' AS metric,
        s.spec #>> '{directions,0}' = 'maximize' AS maximize,
        n.spent, n.total, f.failed
    FROM orchestrator.event e
    JOIN orchestrator.study s ON s.study_id = e.study_id
    JOIN studies p ON p.study_id = s.study_id
    LEFT JOIN orchestrator.cell l ON l.cell_id = e.cell_id
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE t.state = 'SPENT') AS spent,
            count(*) FILTER (WHERE t.state <> 'VOID') AS total
        FROM orchestrator.ticket t WHERE t.study_id = s.study_id
    ) AS n
    CROSS JOIN LATERAL (
        SELECT count(*) AS failed FROM orchestrator.trial o
        WHERE o.study_id = s.study_id AND o.state = 'FAIL'
    ) AS f
    WHERE e.event_id = :event_id
    """
)
