"""The parameters that an objective asks for as it runs, written one by one under the trial's lease.

Locks and lost answers as in `ledger`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import LeaseLostError
from orchestrator.model import JSONValue, Param
from orchestrator.store.connection.statement import Row, Statement, answer, answers, later
from orchestrator.store.ledger.claims import HELD_TRIAL, Attempt
from orchestrator.store.optuna import rows as optuna_rows

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database


def write_missing(c: Connection, row: Row, suggested: Sequence[tuple[Param, JSONValue]]) -> None:
    """Adds the parameters that the trial lacks; under its lock.

    Args:
        row: the trial's.
        suggested: parameters with their true values.
    """
    if not suggested:
        return
    (trial,) = answers(c, _VALUES, {"trial_id": row.trial_id})
    values = trial.values or {}
    missing = [(param, value) for param, value in suggested if param.name not in values]
    if missing:
        optuna_rows.write_params(c, row.optuna_trial_id, [param for param, _ in missing])
        values = {**values, **{param.name: value for param, value in missing}}
        later(c, _SET_VALUES, {"trial_id": row.trial_id, "values": json.dumps(values)})


class Suggested:
    """The parameters that trials got after they were created."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        held: Attempt,
        param: Param,
        value: JSONValue,
        *,
        check_first: Callable[[str], None] | None = None,
    ) -> Param:
        """Adds a parameter to a running trial, in Optuna's tables and in ours; a parameter it
        already has is not changed.

        This is not news: others learn of it when they read the running trials, and when the trial
        ends.

        Args:
            value: its true value.
            check_first: for a name that the caller has not seen in any trial. It is called with the
                distribution (JSON) of that name in another trial of the study, if there is one, and
                raises if the two do not match. Two trials that are the first to use a name wait for
                each other.

        Returns:
            What the trial has under that name now.

        Raises:
            LeaseLostError: another attempt holds the trial, or it has ended; nothing was written.
        """
        with self._database.transaction() as c:
            if check_first is not None:
                later(c, optuna_rows.LOCK_STUDY, {"study_id": held.study_id})
                if not optuna_rows.has_study(c, held.study_id):
                    raise LeaseLostError(f"study {held.study_id} was deleted from the database")
                distribution = self._distribution(c, held, param.name)
                if distribution is not None:
                    check_first(distribution)
            row = answer(c, HELD_TRIAL, held.proof)
            if (
                row is None
                or row.state not in ("PREPARED", "RUNNING")
                or not optuna_rows.has_trial(c, row.optuna_trial_id)
            ):
                raise LeaseLostError(
                    f"trial {held.number} of study {held.study_id} was given to another worker "
                    "or has ended"
                )
            had = answer(c, _PARAM, {"trial_id": row.optuna_trial_id, "name": param.name})
            if had is not None:
                return Param(had.param_name, float(had.param_value), had.distribution_json)
            optuna_rows.write_params(c, row.optuna_trial_id, [param])
            values = {**(row.values or {}), param.name: value}
            later(c, _SET_VALUES, {"trial_id": row.trial_id, "values": json.dumps(values)})
        return param

    def distributions(self, study_id: int) -> dict[str, str]:
        """Every parameter of any trial of the study, with its distribution (JSON) in
        one of them.
        """
        rows = self._database.execute(_DISTRIBUTIONS, {"study_id": study_id})
        return {row.param_name: row.distribution_json for row in rows}

    def _distribution(self, c: Connection, held: Attempt, name: str) -> str | None:
        """The distribution that another trial of the study has for the name."""
        which = {"study_id": held.study_id, "trial_id": held.optuna_trial_id, "name": name}
        found = answer(c, _DISTRIBUTION, which)
        return None if found is None else str(found.distribution_json)


_VALUES = Statement("SELECT o.values FROM orchestrator.trial o WHERE o.trial_id = :trial_id")
_SET_VALUES = Statement(
    "UPDATE orchestrator.trial SET values = CAST(:values AS json) WHERE trial_id = :trial_id"
)
_PARAM = Statement(
    """
    SELECT p.param_name, p.param_value, p.distribution_json FROM trial_params p
    WHERE p.trial_id = :trial_id AND p.param_name = :name
    """
)
_DISTRIBUTIONS = Statement(
    """
    SELECT DISTINCT ON (p.param_name) p.param_name, p.distribution_json
    FROM trial_params p JOIN trials q ON q.trial_id = p.trial_id
    WHERE q.study_id = :study_id ORDER BY p.param_name, p.param_id DESC
    """
)
_DISTRIBUTION = Statement(
    """
    SELECT p.distribution_json FROM trial_params p JOIN trials q ON q.trial_id = p.trial_id
    WHERE q.study_id = :study_id AND p.param_name = :name AND q.trial_id <> :trial_id LIMIT 1
    """
)
