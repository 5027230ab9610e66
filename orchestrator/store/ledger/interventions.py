"""What a person may do to a running study: pause, resume or stop it, run a trial by hand, run a
failed one again.

Locks and lost answers as in `ledger`: repeating a call changes nothing more, except that each
`enqueue` adds a trial, and each `repeat` as many as it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.errors import ConfigError
from orchestrator.model import JSONValue, StudySpec, cell_label, count_label
from orchestrator.store.connection.statement import later
from orchestrator.store.ledger import grid, shortages, tickets
from orchestrator.store.optuna import rows as optuna_rows
from orchestrator.store.schema import cell, event, study, ticket, trial
from orchestrator.store.states import LIVE

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

    from orchestrator.store.connection.database import Database

_STOPPED = "stopped by "
_NOT = {
    "FAIL": "failed ('retry' runs a failed trial again)",
    "PRUNED": "was pruned ('enqueue' runs any parameters)",
    **dict.fromkeys(LIVE, "has not ended yet"),
}
"""What keeps a trial of that state from being repeated, in words."""


@dataclass(frozen=True)
class Retried:
    """A failed trial that will run again: within the budget, or `extra`, on top of it, where its
    ticket was used by others.

    `left` is one that will not: its cell was closed, and the budget has no ticket left for it.
    """

    number: int
    extra: bool
    left: bool = False


class Interventions:
    """Each method is one transaction, and takes effect on every worker within a heartbeat."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, study_id: int, who: str, *, now: bool = False) -> None:
        """No trial of the study begins until `resume`. Running trials finish, or with `now` are
        given back unfinished.

        Raises:
            ConfigError: the study is finished, or being stopped.
        """
        with self._study(study_id) as (c, row):
            if row.state in ("FINISHED", "STOPPING"):
                raise ConfigError(
                    f"study {row.name} cannot be paused: it is {row.state.lower()} ({row.reason})"
                )
            self._change(c, row, state="PAUSED", reason=f"paused by {who}", halt=now or row.halt)

    def resume(self, study_id: int, who: str) -> None:
        """Lets trials of the study begin again, if it is paused, or being stopped and not finished
        yet.

        Raises:
            ConfigError: the study is finished, or its time is over.
        """
        with self._study(study_id) as (c, row):
            if row.state == "FINISHED":
                raise ConfigError(
                    f"study {row.name} is finished ({row.reason}); launch it again, with a "
                    "larger budget.trials if necessary"
                )
            self._refuse_late(c, row)
            if row.state != "ACTIVE":
                self._change(
                    c, row, state="ACTIVE", reason=None, halt=False, why=f"resumed by {who}"
                )

    def stop(self, study_id: int, who: str, *, now: bool = False) -> None:
        """No trial of the study begins any more; it is finished once its running trials have ended,
        or were given back (`now`).

        Launching the study again continues it. A finished study is left as it is.
        """
        with self._study(study_id) as (c, row):
            if row.state != "FINISHED":
                self._change(
                    c, row, state="STOPPING", reason=f"{_STOPPED}{who}", halt=now or row.halt
                )

    def enqueue(
        self, study_id: int, cell_values: Mapping[str, JSONValue], fixed: Mapping[str, JSONValue]
    ) -> None:
        """Adds a trial on top of the budget, in the cell of `cell_values`, with the parameters
        `fixed`; it is the next to run.

        Args:
            cell_values: a value for each axis of the grid.
            fixed: values of searched parameters, checked by the caller; the sampler suggests the
                others.

        Raises:
            ConfigError: the grid has no such cell, or the study starts no trials.
        """
        with self._study(study_id) as (c, row):
            cell_row = c.execute(
                sa.select(cell).where(
                    cell.c.study_id == study_id,
                    cell.c.removed_in.is_(None),
                    _same_json(cell.c["values"], dict(cell_values)),
                )
            ).one_or_none()
            if cell_row is None:
                raise ConfigError(f"study {row.name} has no cell {cell_label(cell_values)}")
            self._wake(c, row)
            self._add(c, study_id, cell_row.cell_id, fixed, None)
            self._tell(c, study_id, "enqueued", cell_label({**cell_values, **fixed}))

    def repeat(self, study_id: int, number: int, seeds: int) -> dict[str, JSONValue]:
        """Adds `seeds` trials on top of the budget with the parameters of a complete trial, each
        with a seed of its own; they are the next to run.

        Returns:
            The parameters, by name.

        Raises:
            ConfigError: there is no such trial, it is not complete, its cell is no longer on the
                grid, or the study starts no trials.
        """
        with self._study(study_id) as (c, row):
            one = c.execute(
                sa.select(trial).where(trial.c.study_id == study_id, trial.c.number == number)
            ).one_or_none()
            if one is None:
                raise ConfigError(
                    f"trial={number}: no worker has run a trial with this number in the study"
                )
            if one.state != "COMPLETE":
                raise ConfigError(
                    f"trial={number}: seeds repeat a complete trial, and this one {_NOT[one.state]}"
                )
            self._refuse_off_grid(c, one)
            self._wake(c, row)
            for _ in range(seeds):
                self._add(c, study_id, one.cell_id, self._given(c, one), None)
            what = f"trial {number} is repeated with {count_label(seeds, 'other seed')}"
            self._tell(c, study_id, "repeated", what)
            return dict(one.values)

    def retry(self, study_id: int, number: int | None) -> list[Retried]:
        """Runs failed trials again with the same parameters, as new trials: the failed ones stay as
        they are.

        A closed cell is opened again, with what it lacks of its shares as far as `budget.trials`
        allows. A trial takes its own ticket if that is open, or another one of its cell; else it is
        on top of the budget.

        Args:
            number: of one failed trial; None for every one that was not run again yet: of several
                tries of one ticket the last one, and of a closed cell as many as the budget has
                tickets for.

        Raises:
            ConfigError: there is no such trial, it did not fail, it is being run again, its cell is
                no longer on the grid, or the study starts no trials.
        """
        with self._study(study_id) as (c, row):
            failed = self._failed(c, study_id, number)
            if not failed:
                return []
            self._wake(c, row)
            closed = self._open_cells(c, row, failed)
            retried = [
                self._retry(c, one, leave=number is None and one.cell_id in closed)
                for one in failed
            ]
            tickets.end_study_if_spent(c, study_id)
            return retried

    # ------------------------------------------------------------------------------------ the parts

    @contextmanager
    def _study(self, study_id: int) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction that holds the locks of the study, and its row."""
        with self._database.transaction() as c:
            later(c, optuna_rows.LOCK_STUDY, {"study_id": study_id})
            in_optuna = optuna_rows.has_study(c, study_id)
            row = c.execute(
                sa.select(study).where(study.c.study_id == study_id).with_for_update(key_share=True)
            ).one_or_none()
            if row is None or not in_optuna:
                raise ConfigError(f"study {study_id} was deleted from the database")
            yield c, row

    def _change(
        self,
        c: Connection,
        row: Row[Any],
        *,
        state: str,
        reason: str | None,
        halt: bool,
        why: str | None = None,
    ) -> None:
        c.execute(
            sa.update(study)
            .where(study.c.study_id == row.study_id)
            .values(state=state, reason=reason, halt=halt)
        )
        self._tell(
            c,
            row.study_id,
            state.lower(),
            why or f"{reason}{', running trials are given back' if halt else ''}",
        )

    def _tell(self, c: Connection, study_id: int, kind: str, reason: str) -> None:
        c.execute(sa.insert(event).values(study_id=study_id, kind=kind, reason=reason))

    def _wake(self, c: Connection, row: Row[Any]) -> None:
        """Makes a study that has spent its budget hand out trials again."""
        self._refuse_late(c, row)
        if row.state == "STOPPING":
            raise ConfigError(
                f"study {row.name} starts no trials: {row.reason}; resume it first, or launch it "
                "again"
            )
        if (row.reason or "").startswith(_STOPPED):
            raise ConfigError(
                f"study {row.name} starts no trials: {row.reason}; launch it again first"
            )
        if row.state == "FINISHED":
            c.execute(
                sa.update(study)
                .where(study.c.study_id == row.study_id)
                .values(state="ACTIVE", reason=None)
            )

    def _refuse_late(self, c: Connection, row: Row[Any]) -> None:
        late = sa.select(study.c.deadline_at <= sa.func.clock_timestamp()).where(
            study.c.study_id == row.study_id
        )
        if c.execute(late).scalar_one():
            raise ConfigError(
                f"study {row.name} starts no trials: budget.hours is over; launch it again first"
            )

    def _refuse_off_grid(self, c: Connection, row: Row[Any]) -> None:
        """Raises `ConfigError` if the trial's cell is no longer on the study's grid."""
        removed = sa.select(cell.c.removed_in).where(cell.c.cell_id == row.cell_id)
        if c.execute(removed).scalar_one() is not None:
            raise ConfigError(
                f"trial={row.number}: its cell is no longer on the study's grid, where no trial "
                "starts; choose a trial of the grid with trial=N"
            )

    def _failed(self, c: Connection, study_id: int, number: int | None) -> Sequence[Row[Any]]:
        ours = sa.select(trial).where(trial.c.study_id == study_id).order_by(trial.c.number)
        to_be_repeated = sa.select(ticket.c.retried_from).where(
            ticket.c.study_id == study_id, ticket.c.retried_from.is_not(None)
        )
        if number is None:
            on_grid = trial.c.cell_id.in_(
                sa.select(cell.c.cell_id).where(
                    cell.c.study_id == study_id, cell.c.removed_in.is_(None)
                )
            )
            done = sa.select(trial.c.retried_from).where(
                trial.c.study_id == study_id, trial.c.retried_from.is_not(None)
            )
            # A ticket that failed four times is owed one trial.
            tries = (
                sa.select(sa.func.max(trial.c.number))
                .where(trial.c.study_id == study_id, trial.c.state == "FAIL")
                .group_by(trial.c.ticket_id, trial.c.cell_id)
            )
            return c.execute(
                ours.where(
                    on_grid,
                    trial.c.number.in_(tries),
                    trial.c.number.not_in(to_be_repeated.union(done)),
                )
            ).all()
        rows = c.execute(ours.where(trial.c.number == number)).all()
        if not rows:
            raise ConfigError(
                f"trial={number}: no worker has run a trial with this number in the study"
            )
        if rows[0].state != "FAIL":
            raise ConfigError(
                f"trial={number}: the trial is {rows[0].state}; only a failed trial can be run "
                "again (enqueue runs any parameters)"
            )
        self._refuse_off_grid(c, rows[0])
        if c.execute(to_be_repeated.where(ticket.c.retried_from == number)).first() is not None:
            raise ConfigError(
                f"trial={number}: the trial is being run again, or was run again successfully"
            )
        return rows

    def _open_cells(
        self, c: Connection, study_row: Row[Any], failed: Sequence[Row[Any]]
    ) -> set[int]:
        """Opens the cells of failed trials that are closed, and those that they closed; returns the
        cells' ids.
        """
        opened = set()
        for row in failed:
            mine = (
                sa.select(cell).where(cell.c.cell_id == row.cell_id).with_for_update(key_share=True)
            )
            own = c.execute(mine).one()
            others = shortages.try_again(c, row)
            for one in [own, *(other for other in others if other.cell_id != row.cell_id)]:
                if one.state == "CLOSED":
                    tickets.open_again(c, one, row.ticket_id, f"trial {row.number} is run again")
                    opened.add(int(one.cell_id))
        if opened:
            grid.write_tickets(
                c, study_row.study_id, StudySpec.from_json(study_row.spec), new=False, within=True
            )
        return opened

    def _retry(self, c: Connection, row: Row[Any], *, leave: bool) -> Retried:
        """Runs a trial again; with `leave` not on top of the budget."""
        fixed = self._given(c, row)
        extra = tickets.repeat(c, row.ticket_id, row.cell_id, fixed, row.number)
        if extra is None and leave:
            return Retried(row.number, extra=False, left=True)
        if extra is None:
            self._add(c, row.study_id, row.cell_id, fixed, row.number)
        self._tell(c, row.study_id, "retried", f"trial {row.number} is run again")
        return Retried(row.number, extra=extra is not False)

    def _given(self, c: Connection, row: Row[Any]) -> dict[str, JSONValue]:
        """A trial's parameters but for those of its cell."""
        of_cell = sa.select(cell.c["values"]).where(cell.c.cell_id == row.cell_id)
        axes = c.execute(of_cell).scalar_one().keys()
        return {path: value for path, value in row.values.items() if path not in axes}

    def _add(
        self,
        c: Connection,
        study_id: int,
        cell_id: int,
        fixed: Mapping[str, JSONValue],
        retried_from: int | None,
    ) -> None:
        """One more ticket, on top of the budget."""
        last = sa.select(sa.func.coalesce(sa.func.max(ticket.c.ordinal) + 1, 0)).where(
            ticket.c.study_id == study_id
        )
        made = {
            "study_id": study_id,
            "ordinal": last.scalar_subquery(),
            "cell_id": cell_id,
            "extra": True,
        }
        c.execute(sa.insert(ticket).values(**made, fixed=dict(fixed), retried_from=retried_from))


def _same_json(column: sa.ColumnElement[Any], value: JSONValue) -> sa.ColumnElement[bool]:
    """Whether the stored JSON says the same; as jsonb, for which the order of keys and spaces are
    nothing.
    """
    return sa.cast(column, JSONB) == sa.cast(value, JSONB)
