"""The parameters that an objective asks for as it runs: written one by one, under the trial's
lease.

Locks and lost answers as in `ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.engine import Connection

from orchestrator.errors import LeaseLostError
from orchestrator.model import JSONValue, Param
from orchestrator.store.connection.database import Database
from orchestrator.store.connection.statement import Row, later
from orchestrator.store.ledger.claims import Attempt, held_by
from orchestrator.store.optuna import rows as optuna_rows
from orchestrator.store.schema import optuna_trial_params, optuna_trials, trial


def write_missing(c: Connection, row: Row, suggested: Sequence[tuple[Param, JSONValue]]) -> None:
    """Adds the parameters that the trial lacks; under its lock.

    Args:
        row: the trial's.
        suggested: parameters with their true values.
    """
    if not suggested:
        return
    known = (
        c.execute(sa.select(trial.c["values"]).where(trial.c.trial_id == row.trial_id)).scalar_one()
        or {}
    )
    missing = [(param, value) for param, value in suggested if param.name not in known]
    if missing:
        optuna_rows.write_params(c, row.optuna_trial_id, [param for param, _ in missing])
        values = {**known, **{param.name: value for param, value in missing}}
        later(c, sa.update(trial).where(trial.c.trial_id == row.trial_id).values(values=values))


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
        """Gives a running trial one more parameter, in Optuna's tables and in ours; a parameter it
        has stays as it is.

        No news: others learn of it when they look at what runs, and with the trial's end.

        Args:
            value: its true value.
            check_first: for a name that the caller has seen in no trial: is called with the
                distribution (JSON) that another trial of the study has for it, if one does, and
                raises if the two do not go together. Two trials that are the first to use a name
                wait for each other.

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
                known = self._distribution(c, held, param.name)
                if known is not None:
                    check_first(known)
            row = c.execute(held_by(held)).one_or_none()
            if (
                row is None
                or row.state not in ("PREPARED", "RUNNING")
                or not optuna_rows.has_trial(c, row.optuna_trial_id)
            ):
                raise LeaseLostError(
                    f"trial {held.number} of study {held.study_id} is another's or has ended by now"
                )
            had = c.execute(
                sa.select(optuna_trial_params).where(
                    optuna_trial_params.c.trial_id == row.optuna_trial_id,
                    optuna_trial_params.c.param_name == param.name,
                )
            ).one_or_none()
            if had is not None:
                return Param(had.param_name, float(had.param_value), had.distribution_json)
            optuna_rows.write_params(c, row.optuna_trial_id, [param])
            values = {**(row.values or {}), param.name: value}
            later(c, sa.update(trial).where(trial.c.trial_id == row.trial_id).values(values=values))
        return param

    def distributions(self, study_id: int) -> dict[str, str]:
        """Every parameter that any trial of the study has, with the distribution (JSON) that one of
        them has for it.
        """
        query = (
            sa.select(optuna_trial_params.c.param_name, optuna_trial_params.c.distribution_json)
            .ext(distinct_on(optuna_trial_params.c.param_name))
            .join(optuna_trials, optuna_trials.c.trial_id == optuna_trial_params.c.trial_id)
            .where(optuna_trials.c.study_id == study_id)
            .order_by(optuna_trial_params.c.param_name, optuna_trial_params.c.param_id.desc())
        )
        return {row.param_name: row.distribution_json for row in self._database.execute(query)}

    def _distribution(self, c: Connection, held: Attempt, name: str) -> str | None:
        """The distribution that another trial of the study has for the name."""
        query = (
            sa.select(optuna_trial_params.c.distribution_json)
            .join(optuna_trials, optuna_trials.c.trial_id == optuna_trial_params.c.trial_id)
            .where(
                optuna_trials.c.study_id == held.study_id, optuna_trial_params.c.param_name == name
            )
            .where(optuna_trials.c.trial_id != held.optuna_trial_id)
            .limit(1)
        )
        found: str | None = c.execute(query).scalar_one_or_none()
        return found
