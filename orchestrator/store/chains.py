"""What people and launches learn of chains of studies. Nothing here writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from orchestrator.model import Axis, JSONValue, StudySpec, at, has
from orchestrator.stages import Inherited
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Row, Statement


@dataclass(frozen=True)
class StageRow:
    """A stage that has begun: its study as Optuna calls it, and what it inherited.

    `settled`: a launch found it at its end, has said how it stands and, where it asks on a
    terminal, been told to go on. `followed`: a launch shows it now.
    """

    ordinal: int
    name: str
    study_id: int
    study: str
    state: str
    reason: str | None
    inherited: Inherited
    settled: bool
    spent: int
    complete: int
    followed: bool


@dataclass(frozen=True)
class ChainRow:
    """A chain: every stage as it was last declared (`stages`), and those that have begun.

    `state` is that of its next stages, see `ledger.stages`.
    """

    name: str
    state: str
    reason: str | None
    stages: tuple[dict[str, Any], ...]
    begun: tuple[StageRow, ...]
    late: bool = False

    @property
    def newest(self) -> StageRow | None:
        return self.begun[-1] if self.begun else None

    @property
    def finished(self) -> bool:
        """Whether every stage has ended."""
        return len(self.begun) >= len(self.stages) and all(
            s.state == "FINISHED" for s in self.begun
        )

    def set_by(self, spec: StudySpec, study_id: int) -> tuple[dict[str, JSONValue], list[Axis]]:
        """What a study that is one of the stages has of them: the values of params that earlier
        stages and it itself have set, by path, and the axes of those that are options of config
        groups; nothing for another study.
        """
        place = self.place(study_id)
        if place is None:
            return {}, []
        declared = self.stages[place]
        (inherited,) = (stage.inherited for stage in self.begun if stage.ordinal == place)
        params = spec.params
        own = {path: at(params, path) for path in declared["own"] if has(params, path)}
        contents = inherited.params
        options = [replace(axis, contents=(contents[axis.path],)) for axis in inherited.options]
        return {**own, **inherited.frozen}, options

    def place(self, study_id: int) -> int | None:
        """The place of a study among the stages."""
        return next((s.ordinal for s in self.begun if s.study_id == study_id), None)


class Chains:
    """Queries, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def find(self, name: str) -> ChainRow | None:
        """The chain of that name."""
        return self._read(name=name)

    def of(self, study_id: int) -> ChainRow | None:
        """The chain that a study is a stage of."""
        return self._read(study_id=study_id)

    def names(self) -> list[str]:
        """The names of all chains."""
        return [row.name for row in self._database.execute(_CHAINS, _which())]

    def all(self) -> list[ChainRow]:
        """All chains, the newest first."""
        return [self._chain(row) for row in self._database.execute(_CHAINS, _which())]

    def _read(self, *, name: str | None = None, study_id: int | None = None) -> ChainRow | None:
        rows = self._database.execute(_CHAINS, _which(name, study_id))
        return self._chain(rows[0]) if rows else None

    def _chain(self, row: Row) -> ChainRow:
        stages = self._database.execute(_STAGES, {"chain_id": row.chain_id})
        return ChainRow(
            row.name, row.state, row.reason, tuple(row.stages), tuple(map(_stage, stages)), row.late
        )


def _which(name: str | None = None, study_id: int | None = None) -> dict[str, Any]:
    return {"name": name, "study_id": study_id}


def _stage(row: Row) -> StageRow:
    return StageRow(
        row.ordinal,
        row.name,
        row.study_id,
        row.study_name,
        row.state,
        row.reason,
        Inherited.from_json(row.inherited),
        row.settled,
        row.spent,
        row.complete,
        row.followed,
    )


_CHAINS = Statement(
    """
    SELECT k.chain_id, k.name, k.state, k.reason, k.stages,
        coalesce(k.deadline_at <= clock_timestamp(), false) AS late
    FROM orchestrator.chain k
    WHERE (CAST(:name AS text) IS NULL OR k.name = :name)
        AND (CAST(:study_id AS int) IS NULL OR k.chain_id IN (
            SELECT g.chain_id FROM orchestrator.stage g WHERE g.study_id = :study_id))
    ORDER BY k.created_at DESC, k.chain_id DESC
    """
)
_STAGES = Statement(
    """
    SELECT g.ordinal, g.name, g.study_id, p.study_name, s.state, s.reason, g.inherited,
        g.settled_at IS NOT NULL AS settled,
        (SELECT count(*) FROM orchestrator.ticket t
            WHERE t.study_id = g.study_id AND t.state = 'SPENT') AS spent,
        (SELECT coalesce(sum(l.completed), 0) FROM orchestrator.cell l
            WHERE l.study_id = g.study_id) AS complete,
        coalesce(s.followed_until > clock_timestamp(), false) AS followed
    FROM orchestrator.stage g JOIN orchestrator.study s ON s.study_id = g.study_id
    JOIN studies p ON p.study_id = s.study_id
    WHERE g.chain_id = :chain_id ORDER BY g.ordinal
    """
)
