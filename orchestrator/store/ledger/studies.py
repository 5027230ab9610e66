"""Registers studies: Optuna's row, ours, the cells and the tickets, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec, limits_label, value_label
from orchestrator.store.ledger import grid, tickets
from orchestrator.store.ledger.deletion import DELETING
from orchestrator.store.schema import (
    event,
    optuna_directions,
    optuna_studies,
    optuna_study_system_attributes,
    optuna_study_user_attributes,
    study,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

_METRIC_NAMES = "study:metric_names"
"""The system attribute that Optuna's ``Study.set_metric_names`` sets."""


@dataclass(frozen=True)
class Launched:
    """What a launch did: `created` or continued the study, how many tickets it `added`, and in
    words what else it changed.
    """

    study_id: int
    created: bool
    added: int
    open_tickets: int
    changes: tuple[str, ...]
    reason: str | None
    """Why the study is finished already, if it is."""


class Studies:
    """The transitions of a study as a whole."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def launch(self, spec: StudySpec) -> Launched:
        """Creates the study or continues the one of that name; tickets are added up to
        ``spec.budget``, never beyond.

        Raises:
            ConfigError: a study of that name has a different identity (the message says what
                differs), was not created by us, or its guaranteed shares no longer fit into
                ``budget.trials``.
        """
        with self._database.transaction(statement_s=300, lock_s=60, idle_s=30) as c:
            study_id, new = self._optuna_study(c, spec)
            row = c.execute(
                sa.select(study).where(study.c.study_id == study_id).with_for_update(key_share=True)
            ).one_or_none()
            if row is None and not new:
                raise ConfigError(
                    f"study.name={spec.name}: the database has a study of this name that "
                    "orchestrator did not create; choose another name: study.name=…"
                )
            if row is None:
                self._create(c, study_id, spec)
                changes: tuple[str, ...] = ()
            else:
                old = StudySpec.from_json(row.spec)
                spec = spec.as_launched_before(old)
                changes = self._continue(c, study_id, old, spec)
            self._name_metrics(c, study_id, spec)
            added = grid.write_tickets(c, study_id, spec, new=row is None)
            tickets.end_study_if_spent(c, study_id)
            open_tickets = tickets.unspent(c, study_id)
            reason = c.execute(
                sa.select(study.c.reason).where(study.c.study_id == study_id)
            ).scalar_one()
            c.execute(
                sa.insert(event).values(
                    study_id=study_id,
                    kind="launched",
                    reason=f"{added} tickets added; {'; '.join(changes) or 'no change'}",
                )
            )
            return Launched(study_id, new, added, open_tickets, changes, reason)

    def follow(self, study_id: int, for_s: float) -> None:
        """Notes that a launch follows the study for the next `for_s` seconds; 0: it no
        longer does.
        """
        until = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, for_s)
        with self._database.transaction() as c:
            c.execute(
                sa.update(study).where(study.c.study_id == study_id).values(followed_until=until)
            )

    def _optuna_study(self, c: Connection, spec: StudySpec) -> tuple[int, bool]:
        """Returns the id of Optuna's study, and whether it was created now; its row is locked as
        Optuna locks it.
        """
        made = c.execute(
            insert(optuna_studies)
            .values(study_name=spec.name)
            .on_conflict_do_nothing(index_elements=["study_name"])
            .returning(optuna_studies.c.study_id)
        ).scalar_one_or_none()
        if made is not None:
            c.execute(
                sa.insert(optuna_directions),
                [
                    {"study_id": made, "objective": i, "direction": d.upper()}
                    for i, d in enumerate(spec.directions)
                ],
            )
            attrs = {
                "grid": [a.path for a in spec.grid],
                "metrics": list(spec.metrics),
                "sampler": spec.sampler.name,
            }
            c.execute(
                sa.insert(optuna_study_user_attributes),
                [
                    {"study_id": made, "key": f"orchestrator:{k}", "value_json": json.dumps(v)}
                    for k, v in attrs.items()
                ],
            )
            # A study deleted in a dashboard leaves our rows behind; ids are never reused, so they
            # only ever wait for this.
            c.execute(
                sa.delete(study).where(
                    study.c.study_id.not_in(sa.select(optuna_studies.c.study_id))
                )
            )
            return int(made), True
        found = c.execute(
            sa.select(optuna_studies.c.study_id)
            .where(optuna_studies.c.study_name == spec.name)
            .with_for_update()
        ).scalar_one()
        return int(found), False

    def _name_metrics(self, c: Connection, study_id: int, spec: StudySpec) -> None:
        """Tells Optuna's tools the names of the objectives, also for a study of a version that did
        not; existing names stay.
        """
        if not c.execute(
            sa.select(sa.func.has_table_privilege(optuna_study_system_attributes.name, "INSERT"))
        ).scalar_one():
            return  # a role from before this needed the right; without names a study works as well
        named = insert(optuna_study_system_attributes).values(
            study_id=study_id, key=_METRIC_NAMES, value_json=json.dumps(list(spec.metrics))
        )
        c.execute(named.on_conflict_do_nothing(index_elements=["study_id", "key"]))

    def _create(self, c: Connection, study_id: int, spec: StudySpec) -> None:
        c.execute(
            sa.insert(study).values(
                study_id=study_id,
                name=spec.name,
                spec=spec.to_json(),
                spec_hash=spec.spec_hash(),
                priority=spec.priority,
                deadline_at=_deadline(spec),
            )
        )
        grid.write_cells(c, study_id, spec)

    def _continue(
        self, c: Connection, study_id: int, old: StudySpec, new: StudySpec
    ) -> tuple[str, ...]:
        state, reason = c.execute(
            sa.select(study.c.state, study.c.reason).where(study.c.study_id == study_id)
        ).one()
        if (reason or "").startswith(DELETING):
            raise ConfigError(
                f"study.name={new.name}: this study is {reason}; complete that with 'orchestrator "
                f"delete study.name={new.name}', or choose another name"
            )
        if differences := _differences(old, new):
            raise ConfigError(
                f"study.name={new.name}: a study of this name exists with a different "
                f"{'; a different '.join(differences)}. Launch it under another name "
                "(study.name=…) or with the settings it has"
            )
        c.execute(
            sa.update(study)
            .where(study.c.study_id == study_id)
            .values(
                name=new.name,
                spec=new.to_json(),
                spec_hash=new.spec_hash(),
                revision=study.c.revision + 1,
                state="ACTIVE",
                reason=None,
                halt=False,
                priority=new.priority,
                launched_at=sa.func.clock_timestamp(),
                deadline_at=_deadline(new),
            )
        )
        before, after = _settings(old), _settings(new)
        resumed = (f"study: {reason} -> active",) if state in ("PAUSED", "STOPPING") else ()
        return resumed + tuple(
            f"{key}: {before.get(key)} -> {after.get(key)}"
            for key in sorted(before | after)
            if before.get(key) != after.get(key)
        )


def _deadline(spec: StudySpec) -> sa.ColumnElement[Any] | None:
    """`budget.hours` from now by the database's clock; each launch starts it again."""
    if spec.budget.hours is None:
        return None
    return sa.func.clock_timestamp() + sa.func.make_interval(
        0, 0, 0, 0, 0, 0, spec.budget.hours * 3600
    )


def _settings(spec: StudySpec) -> dict[str, Any]:
    """What may change between launches, flattened for the announcement."""
    data = spec.to_json()
    settings = {f"budget.{key}": value for key, value in data["budget"].items()}
    settings |= {
        "allocation": data["allocation"],
        "study.seed": data["seed"],
        "study.priority": data["priority"],
        "study.bounds": _bounds_label(spec),
    }
    for section in ("infeasible", "sampler", "pruner", "runner"):
        settings |= {f"{section}.{key}": value for key, value in data[section].items()}
    return settings


def _bounds_label(spec: StudySpec) -> str:
    return ", ".join(map(limits_label, spec.bounds)) or "no limit"


def _differences(old: StudySpec, new: StudySpec) -> list[str]:
    """In words, what of the identity differs: ``grid data.batch_size ([32,64] there, [32,128]
    here)``.
    """
    found: list[str] = []
    if old.spec_hash() == new.spec_hash():
        return found
    for word, a, b in (
        ("study.direction", old.directions, new.directions),
        ("study.metric", old.metrics, new.metrics),
    ):
        if a != b:
            found.append(f"{word} ({', '.join(a)} there, {', '.join(b)} here)")
    sections: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
        ("grid", _by_path(old, "grid"), _by_path(new, "grid")),
        ("search", _by_path(old, "search"), _by_path(new, "search")),
        ("objective", _flat(old.objective), _flat(new.objective)),
        ("params", _flat(old.params), _flat(new.params)),
    )
    for section, there, here in sections:
        for key in sorted(there.keys() | here.keys()):
            if json.dumps(there.get(key, _ABSENT), sort_keys=True) != json.dumps(
                here.get(key, _ABSENT), sort_keys=True
            ):  # 1 is not True here
                found.append(
                    f"{section} {key} ({_value_text(there, key)} there, {_value_text(here, key)} "
                    "here)"
                )
    return found


_ABSENT = {"absent": True}


def _value_text(section: Mapping[str, Any], key: str) -> str:
    if key not in section:
        return "none"
    text = value_label(section[key])
    return text if len(text) <= 80 else f"{text[:77]}…"


def _by_path(spec: StudySpec, section: str) -> dict[str, Any]:
    data = spec.to_json()[section]
    if section == "grid":
        return {
            axis["path"]: dict(zip(axis["values"], axis["contents"], strict=True))
            if "contents" in axis
            else axis["values"]
            for axis in data
        }
    return {
        p["path"]: {
            k: v
            for k, v in p.items()
            if k != "path" and v is not None and v is not False and v not in ([], {})
        }
        for p in data
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
