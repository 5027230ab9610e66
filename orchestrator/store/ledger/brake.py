"""The brake: a study whose first trials all fail alike pauses itself, because that is a bug, not a
property of its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from orchestrator.store.connection.statement import Row, Statement, answer, answers
from orchestrator.store.ledger import tickets
from orchestrator.store.ledger.shortages import NOBODY
from orchestrator.store.schema import cell, event, study
from orchestrator.store.states import BRAKED, is_braked, likeness

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

A_WORKER = 4
"""By default this many identical failures per worker that serves the study, but at most `AT_MOST`,
pull the brake.
"""
AT_MOST = 20
# of the machine or the fleet, and memory has rules of its own
_NOT_ALIKE = ("oom", "lost", "budget", "device", "import")


def failures_alike(c: Connection, row: Row) -> int | None:
    """How many trials have failed, all alike, since the study was launched or resumed, if that is
    enough to pause it.

    None if it is not: a trial of the study has produced a result, the failures differ, they are
    fewer than `budget.max_failures_at_start`, or all are in one cell and other cells are left to
    try. Once the brake is pulled, trials that still ran and fail alike are counted in any case.
    Under the study's lock.

    Args:
        row: of the trial that just failed, as `claims.ENDING` reads it.
    """
    rule = answer(c, _RULE, {"study_id": row.study_id})
    if rule is None or rule.most is None:
        return None
    found = answers(c, _FAILURES, {"study_id": row.study_id, "none": list(_NOT_ALIKE)})
    most = min(AT_MOST, A_WORKER * max(1, rule.workers)) if rule.most == "auto" else int(rule.most)
    if len({likeness(failed.failure or "") for failed in found}) > 1:
        return None
    if is_braked(rule.state, rule.reason):
        return len(found)
    if len(found) < most:
        return None
    cells = {failed.cell_id for failed in found}
    if len(cells) == 1 and rule.open_cells > 1 and len(found) < max(most, AT_MOST):
        return None
    return len(found)


def pull(c: Connection, row: Row, count: int, failure: str) -> None:
    """Pauses the study and takes back what the failures counted against its cells. Under the
    study's lock.

    A study that a person has paused stays paused as they chose, and shows why it would have paused
    itself.
    """
    line = failure.partition("\n")[0]
    reason = f"{BRAKED}the first {count} trials failed alike, and none produced a result: {line}"
    mine = study.c.study_id == row.study_id
    c.execute(sa.update(study).where(mine).values(state="PAUSED", reason=reason))
    c.execute(
        sa.insert(event).values(
            study_id=row.study_id, trial_id=row.trial_id, kind="paused", reason=reason
        )
    )
    for closed in _closed(c, row.study_id):
        tickets.open_again(c, closed, row.ticket_id, "all trials failed alike")
    of_study = sa.and_(cell.c.study_id == row.study_id, cell.c.failures_in_a_row > 0)
    c.execute(sa.update(cell).where(of_study).values(failures_in_a_row=0))


def _closed(c: Connection, study_id: int) -> Sequence[Row]:
    closed = sa.and_(
        cell.c.study_id == study_id,
        cell.c.state == "CLOSED",
        ~sa.func.starts_with(cell.c.reason, NOBODY),
    )
    return c.execute(
        sa.select(cell).where(closed).order_by(cell.c.ordinal).with_for_update(key_share=True)
    ).all()


# A trial by hand says nothing of the others.
_RULE = Statement(
    """
    SELECT s.state, s.reason, coalesce(s.spec #> '{budget,max_failures_at_start}',
        '"auto"') #>> '{}' AS most,
        (SELECT count(*) FROM orchestrator.cell l WHERE l.study_id = s.study_id
            AND l.state = 'OPEN') AS open_cells,
        (
            SELECT count(*) FROM orchestrator.worker w
            WHERE w.state = 'ACTIVE' AND w.lease_until > clock_timestamp()
                AND (w.studies IS NULL OR CAST(w.studies AS jsonb) @> to_jsonb(s.name))
        ) AS workers
    FROM orchestrator.study s
    WHERE s.study_id = :study_id AND s.state IN ('ACTIVE', 'PAUSED') AND NOT EXISTS (
        SELECT FROM orchestrator.trial o WHERE o.study_id = s.study_id
            AND o.state IN ('COMPLETE', 'PRUNED')
    )
    """
)
_FAILURES = Statement(
    """
    SELECT o.failure, o.cell_id
    FROM orchestrator.trial o
    JOIN orchestrator.ticket t ON t.ticket_id = o.ticket_id AND NOT t.extra
    JOIN trial_user_attributes u ON u.trial_id = o.optuna_trial_id
        AND u.key = 'orchestrator\\:failure'
    WHERE o.study_id = :study_id AND o.state = 'FAIL'
        AND CAST(u.value_json AS json) ->> 'kind' <> ALL(CAST(:none AS text[]))
        AND o.ended_at >= (
            SELECT greatest(s.launched_at, max(e.at)) FROM orchestrator.study s
            LEFT JOIN orchestrator.event e ON e.study_id = s.study_id
                AND e.kind IN ('active', 'retried')
            WHERE s.study_id = :study_id GROUP BY s.launched_at
        )
    """
)
