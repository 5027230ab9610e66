"""Ends a study, or closes a cell, that has had enough trials: what is left of the budget is not
spent, or goes to other cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.store.connection.statement import Statement, answer, answers, later
from orchestrator.store.ledger import tickets
from orchestrator.store.ledger.endings import lock_if_exists
from orchestrator.store.states import ENOUGH, NO_CHANGE, SETTLED, STOPPED

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database


class Stopping:
    """Each method is one transaction, and does nothing before every guaranteed share is spent.

    Any number of workers may call it at once, knowing more or less: the first one ends the study or
    the cell, the others find that done. Running trials end as ever. A launch with other settings
    continues the study.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def end_study(
        self, study_id: int, reason: str, launched: datetime, *, confirm: int = 0
    ) -> bool:
        """Leaves the study's open tickets unspent, but for the last `confirm`, those of trials
        that a person had run again, and configurations of other studies that were promised to run;
        it is finished once its running trials have ended.

        Args:
            reason: why it has had enough trials, in words.
            launched: when it was launched, as the caller knows it; nothing is done if it was
                launched again since.

        Returns:
            Whether any ticket was left.
        """
        with self._database.transaction() as c:
            if not self._may_end(c, study_id, launched):
                return False
            which = {"study_id": study_id, "confirm": confirm}
            (left,) = answers(c, _LEAVE_TICKETS, which)
            if left.n:
                later(c, _TELL_OF_STUDY, {"study_id": study_id, "reason": f"{ENOUGH}{reason}"})
                tickets.end_study_if_spent(c, study_id)
            return bool(left.n)

    def settle_cells(self, study_id: int, reasons: Mapping[int, str], launched: datetime) -> bool:
        """Closes cells, by their ordinals: the trials beyond their shares go to the others. Without
        another open one the study is finished once its running trials have ended.

        Args:
            reasons: why each has had enough trials, in words.
            launched: as of `end_study`.

        Returns:
            Whether any cell was closed.
        """
        with self._database.transaction() as c:
            if not self._may_end(c, study_id, launched):
                return False
            which = {"study_id": study_id, "ordinals": list(reasons)}
            found = answers(c, _LOCK_CELLS, which)
            for row in found:
                tickets.settle(c, study_id, row.cell_id, f"{ENOUGH}{reasons[row.ordinal]}", SETTLED)
            if found:
                tickets.end_study_if_spent(c, study_id)
            return bool(found)

    def counts_from(self, study_id: int) -> int:
        """The number of the first trial that ``stop_when.patience`` counts: those from before the
        last launch that changed the study say nothing about what it is now.
        """
        (row,) = self._database.execute(_COUNTS_FROM, {"study_id": study_id})
        return int(row.number)

    def _may_end(self, c: Connection, study_id: int, launched: datetime) -> bool:
        """Locks the study; whether it is as it was launched then, with every share spent."""
        which = {"study_id": study_id, "launched": launched}
        return lock_if_exists(c, study_id) and answer(c, _MAY_END, which) is not None


_COUNTS_FROM = Statement(
    f"""
    SELECT coalesce(max(o.number) + 1, 0) AS number FROM orchestrator.trial o
    WHERE o.study_id = :study_id AND o.claimed_at < (
        SELECT max(e.at) FROM orchestrator.event e
        WHERE e.study_id = :study_id AND e.kind = 'launched'
            AND right(e.reason, {len(NO_CHANGE)}) <> '{NO_CHANGE}'
    )
    """
)
_MAY_END = Statement(
    """
    SELECT s.study_id FROM orchestrator.study s
    WHERE s.study_id = :study_id AND s.launched_at = :launched AND s.state = 'ACTIVE'
        AND NOT EXISTS (
            SELECT FROM orchestrator.ticket t WHERE t.study_id = :study_id
                AND t.share IS NOT NULL AND t.state IN ('OPEN', 'LIVE')
        )
    """
)
# A ticket that failed waits in its cell for another try; it is not counted there any more.
_LEAVE_TICKETS = Statement(
    """
    WITH rest AS (
        SELECT t.ticket_id, t.cell_id FROM orchestrator.ticket t
        WHERE t.study_id = :study_id AND t.state = 'OPEN' AND NOT t.extra
            AND t.retried_from IS NULL AND (t.copied_from IS NULL OR t.fixed IS NULL)
        ORDER BY t.ordinal DESC OFFSET CAST(:confirm AS int)
    ), freed AS (
        UPDATE orchestrator.cell l SET bound = l.bound - n.n
        FROM (
            SELECT cell_id, count(*) AS n FROM rest WHERE cell_id IS NOT NULL GROUP BY cell_id
        ) AS n
        WHERE l.cell_id = n.cell_id
    ), unspent AS (
        UPDATE orchestrator.ticket t SET state = 'VOID', cell_id = NULL, fixed = NULL
        FROM rest WHERE t.ticket_id = rest.ticket_id
    )
    SELECT count(*) AS n FROM rest
    """
)
# Told once, although a ticket that is given back later is left as well.
_TELL_OF_STUDY = Statement(
    f"""
    INSERT INTO orchestrator.event (study_id, kind, reason)
    SELECT s.study_id, '{STOPPED}', :reason FROM orchestrator.study s
    WHERE s.study_id = :study_id AND NOT EXISTS (
        SELECT FROM orchestrator.event e WHERE e.study_id = s.study_id
            AND e.kind = '{STOPPED}' AND e.at >= s.launched_at
    )
    """
)
_LOCK_CELLS = Statement(
    """
    SELECT l.cell_id, l.ordinal FROM orchestrator.cell l
    WHERE l.study_id = :study_id AND l.state = 'OPEN'
        AND l.ordinal = ANY(CAST(:ordinals AS int[]))
    ORDER BY l.cell_id FOR NO KEY UPDATE
    """
)
