"""Registers studies: Optuna's row, ours, the cells and the tickets, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError, DifferentStudyError
from orchestrator.faults import step as crash_step
from orchestrator.model import StudySpec, limits_label, value_label
from orchestrator.prior import Enqueued, Prior
from orchestrator.revision import Change, Extend, continued
from orchestrator.revision import changes as changes_of
from orchestrator.store.connection.statement import (
    AnyConnection,
    Row,
    Statement,
    answer,
    answers,
    later,
    send,
)
from orchestrator.store.ledger import grid, revisions, sources, tickets
from orchestrator.store.optuna.attributes import KEEP_STUDY_ATTR
from orchestrator.store.states import DELETING, ENOUGH, NO_CHANGE, STOPPED, is_ended_early

if TYPE_CHECKING:
    from orchestrator.store.connection.plain import Source

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

    def __init__(self, database: Source) -> None:
        self._database = database

    def launch(
        self,
        spec: StudySpec,
        extend: Extend | None = None,
        *,
        revision: int | None = None,
        priors: Sequence[Prior] = (),
        enqueued: Sequence[Enqueued] = (),
    ) -> Launched:
        """Creates the study or continues the one of that name; tickets are added up to
        ``spec.budget``, never beyond. A study that has had enough trials is left as it is unless
        something has changed, and so is a cell; `config` does not count.

        Args:
            extend: makes the study's next revision if the one of that name has a different
                identity; called under the study's locks. None: that is refused.
            revision: the revision that the caller has seen and wants to extend; None: any.
            priors: what it takes from the studies of ``spec.warm_start``. What it has taken from
                one before stays as it was then.
            enqueued: what runs first, the best first, if the study is created now: each takes a
                share of its cell, or a ticket that no cell has yet. What finds none is not run.

        Raises:
            DifferentStudyError: a study of that name has a different identity (the message says
                what differs), and `extend` is None or the study is of another revision by now.
            ConfigError: the study was not created by us, cannot be extended so, or its guaranteed
                shares no longer fit into ``budget.trials``; a chain has that name, or it is a
                stage's.
        """
        with self._database.transaction(statement_s=300, lock_s=60, idle_s=30) as c:
            later(c, LOCK_NAME, {"name": spec.name})
            held = answer(c, _OF_CHAIN, {"name": spec.name})
            if held is not None and held.stage is None:
                raise ConfigError(
                    f"study.name={spec.name}: the database has a chain of stages of this name; "
                    "choose another name: study.name=…"
                )
            if held is not None:
                raise ConfigError(
                    f"study.name={spec.name}: this study is the stage {held.stage} of "
                    f"{held.chain}, whose budget bounds all its stages; launch them "
                    f"(study.name={held.chain}), with stages.{held.stage}.KEY=… to change this one"
                )
            return self.register(c, spec, extend, revision, priors, enqueued)

    def register(
        self,
        c: AnyConnection,
        spec: StudySpec,
        extend: Extend | None = None,
        revision: int | None = None,
        priors: Sequence[Prior] = (),
        enqueued: Sequence[Enqueued] = (),
        section: str = "",
    ) -> Launched:
        """What `launch` does once the name is known to be no chain's and no stage's, in a
        transaction of the caller's.

        Args:
            section: as of `grid.write_tickets`.

        Raises:
            ConfigError: as `launch`.
        """
        study_id, new = self._optuna_study(c, spec)
        row = answer(c, _LOCK, {"study_id": study_id})
        if row is None and not new:
            raise ConfigError(
                f"study.name={spec.name}: the database has a study of this name that "
                "orchestrator did not create; choose another name: study.name=…"
            )
        verdict: Row | None = None
        if row is None:
            self._create(c, study_id, spec)
            changes: tuple[str, ...] = ()
        else:
            old = StudySpec.from_json(row.spec)
            spec = continued(spec, old)
            (now,) = answers(c, _STATE, {"study_id": study_id})
            same = spec.is_same(old)
            if same and is_ended_early(now.state, now.reason):
                return Launched(study_id, False, 0, 0, (), now.reason)
            verdict = answer(c, _VERDICT, {"study_id": study_id}) if same else None
            spec, changes = self._continue(c, study_id, old, spec, extend, revision)
            if verdict is not None:  # it holds for this launch as well
                later(c, _UPHOLD, {"study_id": study_id, "reason": verdict.reason})
            elif not same:
                send(c, _OPEN_SETTLED, {"study_id": study_id})
        self._name_metrics(c, study_id, spec)
        # What had enough trials leaves its tickets void, which others would take the place of.
        added = (
            0
            if verdict
            else grid.write_tickets(c, study_id, spec, new=row is None, section=section)
        )
        sources.keep(c, study_id, spec, priors)
        if row is None:
            sources.enqueue(c, study_id, spec, enqueued)
        crash_step("mid-launch")
        # whoever launches it sees that nothing is left to run
        tickets.end_study_if_spent(c, study_id, tell=False)
        open_tickets = tickets.unspent(c, study_id)
        (now,) = answers(c, _STATE, {"study_id": study_id})
        what = f"{added} tickets added; {'; '.join(changes) or NO_CHANGE}"
        later(c, _TELL, {"study_id": study_id, "reason": what})
        return Launched(study_id, new, added, open_tickets, changes, now.reason)

    def follow(self, study_id: int, for_s: float) -> None:
        """Notes that a launch follows the study for the next `for_s` seconds; 0: it no
        longer does.
        """
        with self._database.transaction() as c:
            later(c, _FOLLOW, {"study_id": study_id, "for_s": for_s})

    def _optuna_study(self, c: AnyConnection, spec: StudySpec) -> tuple[int, bool]:
        """Returns the id of Optuna's study, and whether it was created now; its row is locked as
        Optuna locks it.
        """
        made = answer(c, _INSERT_OPTUNAS, {"name": spec.name})
        if made is not None:
            directions = [direction.upper() for direction in spec.directions]
            send(c, _INSERT_DIRECTIONS, {"study_id": made.study_id, "directions": directions})
            attrs = {
                "grid": [a.path for a in spec.grid],
                "metrics": list(spec.metrics),
                "sampler": spec.sampler.name,
            }
            texts = {f"orchestrator:{key}": json.dumps(value) for key, value in attrs.items()}
            which = {"study_id": made.study_id, "keys": [*texts], "texts": [*texts.values()]}
            send(c, _INSERT_ATTRIBUTES, which)
            # A study deleted in a dashboard leaves our rows behind; ids are never reused, so they
            # only ever wait for this.
            send(c, _DELETE_ABANDONED)
            return int(made.study_id), True
        (found,) = answers(c, _LOCK_OPTUNAS, {"name": spec.name})
        return int(found.study_id), False

    def _name_metrics(self, c: AnyConnection, study_id: int, spec: StudySpec) -> None:
        """Tells Optuna's tools the names of the objectives, also for a study of a version that did
        not; existing names stay.
        """
        (allowed,) = answers(c, _MAY_NAME)
        if not allowed.may:
            return  # a role from before this needed the right; without names a study works as well
        text = json.dumps(list(spec.metrics))
        send(c, KEEP_STUDY_ATTR, {"study_id": study_id, "key": _METRIC_NAMES, "text": text})

    def _create(self, c: AnyConnection, study_id: int, spec: StudySpec) -> None:
        send(c, _INSERT, _columns(study_id, spec))
        revisions.record(c, study_id, spec)
        grid.write_cells(c, study_id, spec)

    def _continue(
        self,
        c: AnyConnection,
        study_id: int,
        old: StudySpec,
        new: StudySpec,
        extend: Extend | None,
        revision: int | None,
    ) -> tuple[StudySpec, tuple[str, ...]]:
        """Returns the study's spec as it is now, and in words what has changed."""
        (before_that,) = answers(c, _STATE, {"study_id": study_id})
        state, reason = before_that.state, before_that.reason
        if (reason or "").startswith(DELETING):
            raise ConfigError(
                f"study.name={new.name}: this study is {reason}; complete that with 'orchestrator "
                f"delete study.name={new.name}', or choose another name"
            )
        if new.enqueue_best != old.enqueue_best:
            raise ConfigError(
                f"enqueue_best={new.enqueue_best}: the study {new.name} was created with "
                f"{old.enqueue_best}, and what runs first is chosen when a study is created; set "
                "enqueue_best to that, and add single configurations with 'orchestrator enqueue'"
            )
        extended: tuple[str, ...] = ()
        if found := changes_of(old, new):
            if extend is None or revision not in (None, old.revision):
                raise different(new.name, old.revision, found)
            extension = extend(old, new)
            new = extension.spec
            extended = (*extension.changes, *revisions.extend(c, study_id, old, extension))
        send(c, _UPDATE, _columns(study_id, new))
        resumed = (f"study: {reason} -> active",) if state in ("PAUSED", "STOPPING") else ()
        return new, (*resumed, *extended, *settings_changed(old, new))


def different(name: str, revision: int, found: Sequence[Change]) -> DifferentStudyError:
    """The error of a launch whose declaration differs from the study's revision by `found`."""
    refused = [change for change in found if change.refusal]
    how = ", ".join(change.what for change in refused)
    return DifferentStudyError(
        f"study.name={name}: a study of this name exists with a different "
        f"{'; a different '.join(change.difference for change in found)}. Launch it under another "
        "name (study.name=…) or with the settings it has"
        + (
            f". A study cannot be changed in {how}: {refused[0].refusal}"
            if refused
            else ", or add study.extend=true to change this study"
        ),
        revision,
        tuple(map(str, found)),
        extendable=not refused,
    )


def _columns(study_id: int, spec: StudySpec) -> dict[str, Any]:
    """What our row of a study says of its spec, as parameters; `hours` is None for no deadline."""
    return {
        "study_id": study_id,
        "name": spec.name,
        "spec": json.dumps(spec.to_json()),
        "spec_hash": spec.spec_hash(),
        "priority": spec.priority,
        "hours": spec.budget.hours,
    }


LOCK_NAME = Statement(f"SELECT pg_advisory_xact_lock({0x6E616D65}, hashtext(:name))")  # "name"
"""Held by whoever makes a study or a chain, so that no two get the same name at once."""
_OF_CHAIN = Statement(
    """
    SELECT k.name AS chain, NULL AS stage FROM orchestrator.chain k WHERE k.name = :name
    UNION ALL
    SELECT k.name, g.name FROM orchestrator.chain k
    JOIN orchestrator.stage g ON g.chain_id = k.chain_id
    JOIN studies p ON p.study_id = g.study_id
    WHERE p.study_name = :name
    """
)
_LOCK = Statement(
    "SELECT s.spec FROM orchestrator.study s WHERE s.study_id = :study_id FOR NO KEY UPDATE"
)
_STATE = Statement(
    "SELECT s.state, s.reason FROM orchestrator.study s WHERE s.study_id = :study_id"
)
# By the database's clock; each launch starts it again. NULL without `hours`.
DEADLINE = "clock_timestamp() + make_interval(secs => CAST(:hours AS double precision) * 3600)"
_INSERT = Statement(
    f"""
    INSERT INTO orchestrator.study (study_id, name, spec, spec_hash, priority, deadline_at)
    VALUES (:study_id, :name, CAST(:spec AS json), :spec_hash, :priority, {DEADLINE})
    """
)
_UPDATE = Statement(
    f"""
    UPDATE orchestrator.study
    SET name = :name, spec = CAST(:spec AS json), spec_hash = :spec_hash,
        revision = revision + 1, state = 'ACTIVE', reason = NULL, halt = false,
        priority = :priority, launched_at = clock_timestamp(), deadline_at = {DEADLINE}
    WHERE study_id = :study_id
    """
)
# Why the study has had enough trials, while some of them still run.
_VERDICT = Statement(
    f"""
    SELECT e.reason FROM orchestrator.event e
    JOIN orchestrator.study s ON s.study_id = e.study_id
    WHERE e.study_id = :study_id AND e.kind = '{STOPPED}' AND e.at >= s.launched_at
    ORDER BY e.event_id LIMIT 1
    """
)
_UPHOLD = Statement(
    f"""
    INSERT INTO orchestrator.event (study_id, kind, reason)
    VALUES (:study_id, '{STOPPED}', :reason)
    """
)
# Cells that had enough trials by what the launch before counted as enough.
_OPEN_SETTLED = Statement(
    f"""
    UPDATE orchestrator.cell SET state = 'OPEN', reason = NULL
    WHERE study_id = :study_id AND state = 'CLOSED' AND starts_with(reason, '{ENOUGH}')
    """
)
_TELL = Statement(
    """
    INSERT INTO orchestrator.event (study_id, kind, reason)
    VALUES (:study_id, 'launched', :reason)
    """
)
_FOLLOW = Statement(
    """
    UPDATE orchestrator.study
    SET followed_until = clock_timestamp()
        + make_interval(secs => CAST(:for_s AS double precision))
    WHERE study_id = :study_id
    """
)
_INSERT_OPTUNAS = Statement(
    """
    INSERT INTO studies (study_name) VALUES (:name)
    ON CONFLICT (study_name) DO NOTHING RETURNING study_id
    """
)
_LOCK_OPTUNAS = Statement("SELECT p.study_id FROM studies p WHERE p.study_name = :name FOR UPDATE")
_INSERT_DIRECTIONS = Statement(
    """
    INSERT INTO study_directions (study_id, objective, direction)
    SELECT CAST(:study_id AS int), d.ordinality - 1, CAST(d.direction AS studydirection)
    FROM unnest(CAST(:directions AS text[])) WITH ORDINALITY AS d(direction, ordinality)
    """
)
_INSERT_ATTRIBUTES = Statement(
    """
    INSERT INTO study_user_attributes (study_id, key, value_json)
    SELECT CAST(:study_id AS int), v.key, v.text
    FROM unnest(CAST(:keys AS text[]), CAST(:texts AS text[])) AS v(key, text)
    """
)
_DELETE_ABANDONED = Statement(
    "DELETE FROM orchestrator.study s WHERE s.study_id NOT IN (SELECT p.study_id FROM studies p)"
)
_MAY_NAME = Statement("SELECT has_table_privilege('study_system_attributes', 'INSERT') AS may")


def settings_changed(old: StudySpec, new: StudySpec) -> list[str]:
    """In words, what differs of that which may change between launches."""
    was, now = _settings_of(old), _settings_of(new)
    return [
        f"{key}: {was.get(key)} -> {now.get(key)}"
        for key in sorted(was | now)
        if was.get(key) != now.get(key)
    ]


def _settings_of(spec: StudySpec) -> dict[str, Any]:
    """What may change between launches, flattened for the announcement."""
    data = spec.to_json()
    settings = {f"budget.{key}": value for key, value in data["budget"].items()}
    settings |= {
        "allocation": data["allocation"],
        "study.seed": data["seed"],
        "study.priority": data["priority"],
        "study.bounds": _bounds_label(spec),
        "warm_start": ", ".join(map(value_label, spec.warm_start)) or "none",
    }
    settings |= {f"stop_when.{key}": value for key, value in vars(spec.stop_when).items()}
    settings |= {f"probes.{name}": probe for name, probe in data.get("probes", {}).items()}
    for section in ("infeasible", "sampler", "pruner", "runner"):
        settings |= {f"{section}.{key}": value for key, value in data[section].items()}
    return settings


def _bounds_label(spec: StudySpec) -> str:
    return ", ".join(map(limits_label, spec.bounds)) or "no limit"
