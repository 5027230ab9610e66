"""Deletes a study for good: ours, Optuna's, and the knowledge of its files.

The files go between `begin` and `finish`. Until then the rows say where files are, so that a
deletion that was cut short is only to be repeated: nothing is left behind that nobody knows of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.store.connection.statement import Row
from orchestrator.store.optuna.attributes import ARTIFACT_KEY
from orchestrator.store.schema import event, study
from orchestrator.store.states import DELETING, LIVE, SCHEMA

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

_OF_TRIAL = (
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
    "trial_heartbeats",
)
_OF_STUDY = (
    "trials",
    "study_directions",
    "study_user_attributes",
    "study_system_attributes",
    "studies",
)
_SAMPLES = 100
_PATIENCE_S = 600


@dataclass(frozen=True)
class AttemptFolder:
    """What names the run directory of one attempt."""

    number: int
    attempt: int
    token: int | None


@dataclass(frozen=True)
class RunsPlace:
    """Where `attempts` attempts of a study's trials ran, or its probes: the host, and the root of
    its run directories.

    `samples` are the last of them.
    """

    host: str
    runs_dir: str
    attempts: int
    samples: tuple[AttemptFolder, ...]


@dataclass(frozen=True)
class Leavings:
    """What a study has in the database, and where it left files.

    `names` are those under which it was launched and is known now; `artifacts` the ids of its
    artifacts.
    """

    trials: int
    names: tuple[str, ...]
    places: tuple[RunsPlace, ...]
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class Alive:
    """Why a study cannot be deleted now: a launch follows it, or living workers hold trials."""

    followed: bool
    held: int


class Deletion:
    """The steps of a deletion, each one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def examine(self, study_id: int) -> Leavings | Alive:
        """What would be deleted; changes nothing.

        Raises:
            OrchestratorError: this database role may not delete studies.
        """
        with self._database.transaction(statement_s=_PATIENCE_S) as c:
            self._refuse_without_rights(c)
            return self._alive(c, study_id) or self._leavings(c, study_id)

    def begin(self, study_id: int, who: str) -> Leavings | Alive:
        """Finishes the study, so that no worker takes a trial of it, and notes that it is being
        deleted; repeating this changes nothing more.

        Raises:
            OrchestratorError: this database role may not delete studies.
            ConfigError: the study is gone.
        """
        with self._database.transaction(statement_s=_PATIENCE_S) as c:
            self._refuse_without_rights(c)
            row = self._locked(c, study_id)
            if alive := self._alive(c, study_id):
                return alive
            if not _is_marked(row):
                reason = f"{DELETING}{who}"
                c.execute(
                    sa.update(study)
                    .where(study.c.study_id == study_id)
                    .values(state="FINISHED", reason=reason)
                )
                c.execute(
                    sa.insert(event).values(study_id=study_id, kind="finished", reason=reason)
                )
            return self._leavings(c, study_id)

    def finish(self, study_id: int) -> None:
        """Deletes every row of the study, ours and Optuna's.

        Raises:
            ConfigError: the study is gone, or somebody has set it going again since `begin`.
        """
        with self._database.transaction(statement_s=_PATIENCE_S) as c:
            row = self._locked(c, study_id)
            if not _is_marked(row) or self._alive(c, study_id):
                raise ConfigError(
                    f"study {row.name} was set going again while its files were deleted; its rows "
                    "are still in the database"
                )
            which = {"study_id": study_id}
            c.execute(sa.delete(study).where(study.c.study_id == study_id))
            for table in _OF_TRIAL:
                c.execute(
                    sa.text(
                        f"DELETE FROM {table} AS a USING trials q WHERE q.trial_id = a.trial_id "
                        "AND q.study_id = :study_id"
                    ),
                    which,
                )
            for table in _OF_STUDY:
                c.execute(sa.text(f"DELETE FROM {table} WHERE study_id = :study_id"), which)
            why = f"study {row.name} {row.reason}".replace(DELETING, "deleted by ")
            c.execute(sa.insert(event).values(kind="deleted", reason=why))

    def _locked(self, c: Connection, study_id: int) -> Row:
        c.execute(
            sa.text("SELECT FROM studies WHERE study_id = :study_id FOR UPDATE"),
            {"study_id": study_id},
        )
        row: Any = c.execute(
            sa.select(study.c.name, study.c.state, study.c.reason)
            .where(study.c.study_id == study_id)
            .with_for_update()
        ).one_or_none()
        if row is None:
            raise ConfigError("the study was deleted meanwhile")
        return row

    def _refuse_without_rights(self, c: Connection) -> None:
        tables = [f"{SCHEMA}.study", *_OF_TRIAL, *_OF_STUDY]
        role, missing = c.execute(_MISSING_RIGHTS, {"tables": tables}).one()
        if missing:
            raise OrchestratorError(
                f"the database role {role} may not delete studies (no DELETE on "
                f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); run this with the "
                "role that owns the tables"
            )

    def _alive(self, c: Connection, study_id: int) -> Alive | None:
        followed, held = c.execute(_ALIVE, {"study_id": study_id}).one()
        return Alive(followed, held) if followed or held else None

    def _leavings(self, c: Connection, study_id: int) -> Leavings:
        which = {"study_id": study_id}
        names, trials = c.execute(_NAMES, which).one()
        places = c.execute(_PLACES, {**which, "samples": _SAMPLES}).all()
        artifacts = c.execute(_ARTIFACTS, {**which, "key": ARTIFACT_KEY.format("%")}).scalars()
        return Leavings(
            trials,
            tuple(names),
            tuple(
                RunsPlace(
                    row.host,
                    row.runs_dir,
                    row.attempts,
                    tuple(AttemptFolder(*sample) for sample in row.samples),
                )
                for row in places
            ),
            tuple(artifacts),
        )


def _is_marked(row: Row) -> bool:
    return bool(row.state == "FINISHED" and (row.reason or "").startswith(DELETING))


_MISSING_RIGHTS = sa.text(
    """
    SELECT CAST(current_user AS text) AS role,
        array_agg(n.name) FILTER (WHERE NOT has_table_privilege(n.name, 'DELETE')) AS missing
    FROM unnest(CAST(:tables AS text[])) AS n(name)
    """
)
_ALIVE = sa.text(
    f"""
    SELECT coalesce(s.followed_until > clock_timestamp(), false) AS followed,
        (SELECT count(*) FROM orchestrator.trial o
            JOIN orchestrator.worker w ON w.worker_id = o.worker_id
            WHERE o.study_id = s.study_id AND o.state IN {LIVE}
                AND w.state = 'ACTIVE' AND w.lease_until > clock_timestamp())
            + (SELECT count(*) FROM orchestrator.probe r
            JOIN orchestrator.worker w ON w.worker_id = r.worker_id
            WHERE r.study_id = s.study_id AND r.state = 'RUNNING'
                AND w.state = 'ACTIVE' AND w.lease_until > clock_timestamp()) AS held
    FROM orchestrator.study s WHERE s.study_id = :study_id
    """
)
# A dashboard may have renamed the study, and the folders of what ran before have the old name.
_NAMES = sa.text(
    """
    SELECT ARRAY(SELECT DISTINCT n.name FROM unnest(ARRAY[s.name, CAST(p.study_name AS text)])
        AS n(name)) AS names,
        (SELECT count(*) FROM trials q WHERE q.study_id = p.study_id) AS trials
    FROM orchestrator.study s JOIN studies p ON p.study_id = s.study_id
    WHERE s.study_id = :study_id
    """
)
_PLACES = sa.text(
    """
    SELECT a.host, a.runs_dir, count(a.attempt) AS attempts,
        (SELECT coalesce(json_agg(json_build_array(i.number, i.attempt, i.token)), '[]') FROM (
            SELECT b.attempt, b.token, o.number FROM orchestrator.attempt b
            JOIN orchestrator.trial o ON o.trial_id = b.trial_id
            WHERE o.study_id = :study_id AND b.host = a.host AND b.runs_dir = a.runs_dir
            ORDER BY o.number DESC, b.attempt DESC LIMIT :samples
        ) AS i) AS samples
    FROM (
        SELECT a.host, a.runs_dir, a.attempt
        FROM orchestrator.attempt a JOIN orchestrator.trial o ON o.trial_id = a.trial_id
        WHERE o.study_id = :study_id
        UNION ALL
        SELECT r.host, r.runs_dir, NULL FROM orchestrator.probe r WHERE r.study_id = :study_id
    ) AS a
    GROUP BY a.host, a.runs_dir ORDER BY a.host, a.runs_dir
    """
)
_ARTIFACTS = sa.text(
    """
    SELECT substr(a.key, length(:key)) FROM trial_system_attributes a
    JOIN trials q ON q.trial_id = a.trial_id WHERE q.study_id = :study_id AND a.key LIKE :key
    UNION
    SELECT substr(a.key, length(:key)) FROM study_system_attributes a
    WHERE a.study_id = :study_id AND a.key LIKE :key
    """
)
