"""What people and workers learn of studies, trials and the fleet; `news` is what samplers learn.
Nothing here writes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import ConfigError, OrchestratorError, StoreUnavailableError, did_you_mean
from orchestrator.model import JSONValue, Limits, Reported, StudySpec
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import AnyConnection, Row, Statement, answer, answers
from orchestrator.store.ledger.shortages import device_label
from orchestrator.store.optuna.attributes import ARTIFACT_KEY
from orchestrator.store.optuna.rows import stored_values
from orchestrator.store.states import ACTIVE, ENOUGH, LIVE, UNSPENT


@dataclass(frozen=True)
class StudyRow:
    """A study as it was last launched; `active` is false once its budget, its time or its open
    cells are used up.

    Its id and `revision` may come again after the database went back in time; `launched_at`, which
    the database's clock tells to the microsecond, is of this launch alone. `launched_s` is how long
    ago that was, `followed` whether a launch shows it now.
    """

    study_id: int
    name: str
    revision: int
    state: str
    reason: str | None
    active: bool
    created_at: datetime
    launched_at: datetime
    launched_s: float = field(default=0.0, compare=False)
    followed: bool = False

    @property
    def folder(self) -> str:
        """Name of the study's folder among the run directories; another one for a later study of
        the same name.
        """
        return self.folder_of(self.name)

    def folder_of(self, name: str) -> str:
        """The same under another name that the study has had."""
        return f"{name}-{self.created_at.astimezone(UTC):%Y%m%d-%H%M%S}"


@dataclass(frozen=True)
class ClosedFor:
    """A device type that gets no trial of a cell, and why; `bytes` of `memory`: ``gpu``, or ``cpu``
    or ``host`` (RAM).
    """

    device: str
    memory: str
    bytes: int | None
    reason: str


@dataclass(frozen=True)
class CellRow:
    """One cell's tally; `best` and `best_trial` of its complete trials by the first objective.

    `spent` of the `bound` tickets are; `pruned` trials spend theirs, but for one that pruned itself
    and left the cell's last share to another try. `share` is how many tickets the cell will have in
    the end, as far as that is known now; with `grows` an allocation may still give it more.
    """

    ordinal: int
    values: dict[str, JSONValue]
    state: str
    reason: str | None
    bound: int
    completed: int
    pruned: int
    failed: int
    running: int
    best: float | None
    best_trial: int | None
    spent: int
    closed_for: tuple[ClosedFor, ...] = ()
    share: int = 0
    grows: bool = False

    @property
    def only_pruned(self) -> bool:
        """Whether the cell has no complete trial, and what it had prunes itself, so that it waits
        for one no longer.
        """
        return self.completed == 0 and 0 < self.spent == self.bound

    @property
    def settled(self) -> bool:
        """Whether it was closed because it had enough trials, see `stop_when`."""
        return self.state == "CLOSED" and (self.reason or "").startswith(ENOUGH)


@dataclass(frozen=True)
class TrialRow:
    """One trial with its true parameter values and, when complete, its objective values.

    `feasible` unless it broke a constraint.
    """

    number: int
    state: str
    cell: int
    params: dict[str, JSONValue]
    values: tuple[float, ...] | None
    attempts: int
    failure: str | None
    worker_id: int | None
    seconds: float | None
    feasible: bool = True


@dataclass(frozen=True)
class FailureRow:
    """A failed trial, and why it failed; `seq` is its position in the news."""

    number: int
    seq: int
    message: str


@dataclass(frozen=True)
class Progress:
    """Where a study stands; `total` counts tickets that are or will be run.

    `seconds` passed since the last launch by the database's clock, and `spent_since` tickets were
    spent in them. `best` and `best_trial` are those of the first objective among all `n_cells`
    cells, of which `cells` may be a part. `news` is the study's last news number, which only grows.
    `closed` of the cells get no more trials. `launched_at` is the newest launch's, where `study`
    is the one that was asked for.
    """

    study: StudyRow
    total: int
    spent: int
    running: int
    waiting: int
    failed: int
    spent_since: int
    seconds: float
    seconds_left: float | None
    n_cells: int
    best: float | None
    best_trial: int | None
    cells: tuple[CellRow, ...]
    news: int = 0
    closed: int = 0
    launched_at: datetime | None = None


@dataclass(frozen=True)
class WorkerRow:
    """A worker of the fleet and what it holds; `doing` as it said `doing_s` seconds ago."""

    worker_id: int
    host: str
    pid: int
    doing: str
    device: str | None
    slot: int | None
    silent_s: float
    device_key: str | None = None
    doing_s: float = 0.0


@dataclass(frozen=True)
class Servers:
    """The living workers as one study sees them.

    `able` is how many of them may serve it, `elsewhere` how many are set to serve other studies
    only. `refusals` says why others cannot: each reason, and how many workers give it.
    """

    able: int = 0
    elsewhere: int = 0
    refusals: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class CodeRow:
    """The trials that ran one state of the objective's code, by their facts, and whose value is in
    the study.

    `git` and `source` as the facts of an attempt have them; `numbers` in order.
    """

    git: dict[str, Any] | None
    source: dict[str, Any] | None
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class RevisionRow:
    """One revision of a study, when it was made, and what it changed in words."""

    revision: int
    made_at: datetime
    changes: tuple[str, ...]


@dataclass(frozen=True)
class AttemptRow:
    """Where one attempt of a trial ran, and how it ended (None: it runs); `reason` if it ended
    without a result.

    `facts`: what it ran on and used; None if it has not ended, or was lost with its worker. `token`
    names its run directory; None if it is older than that.
    """

    attempt: int
    host: str
    runs_dir: str
    outcome: str | None
    reason: str | None
    facts: dict[str, Any] | None = None
    token: int | None = None


@dataclass(frozen=True)
class TimeLine:
    """Which history of which cluster a server continues: its system identifier, and its time line
    (8 hex digits).

    `timeline` is None on a standby, which follows that of another server.
    """

    system: int
    timeline: str | None


class Reads:
    """Queries, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    # ---------------------------------------------------------------------------------- for workers

    def studies(
        self, names: Collection[str] | None = None, *, active_only: bool = False
    ) -> list[StudyRow]:
        """All studies (or those named), in the order workers serve them: by priority, then age."""
        which = {"names": None if names is None else list(names), "active_only": active_only}
        return [_study_row(r) for r in self._database.execute(_STUDIES, which)]

    def spec(self, study_id: int) -> StudySpec:
        """The study as it was last launched.

        Raises:
            ConfigError: it was deleted.
        """
        rows = self._database.execute(_SPEC, {"study_id": study_id})
        if not rows:
            raise ConfigError("the study was deleted from the database")
        return StudySpec.from_json(rows[0].spec)

    def revisions(self, study_id: int) -> list[RevisionRow]:
        """What the study has been, the first revision first."""
        rows = self._database.execute(_REVISIONS, {"study_id": study_id})
        return [RevisionRow(r.revision, r.made_at, tuple(r.changes)) for r in rows]

    def spec_of(self, study_id: int, number: int) -> StudySpec:
        """The study as it was when the revision began under which the trial of that number was
        suggested.
        """
        rows = self._database.execute(_SPEC_OF, {"study_id": study_id, "number": number})
        return StudySpec.from_json(rows[0].spec) if rows else self.spec(study_id)

    def server(self) -> datetime:
        """When the server started that answers."""
        (row,) = self._database.execute(_SERVER)
        started: datetime = row.server
        return started

    def time_line(self) -> TimeLine | None:
        """Which history the server continues; None where it does not tell, as some that are managed
        by others.

        Raises:
            StoreUnavailableError: it does not answer.
        """
        try:
            (row,) = self._database.execute(_TIME_LINE)
        except StoreUnavailableError:
            raise
        except OrchestratorError:
            return None
        return TimeLine(row.system, row.timeline)

    def checkpoint_places(self, name: str | None = None) -> dict[str, set[str]]:
        """The hosts of the living workers by the place where they keep checkpoints.

        Args:
            name: only of workers that serve the study of that name.
        """
        places: dict[str, set[str]] = {}
        for row in self._database.execute(_CHECKPOINT_PLACES):
            if name is None or row.studies is None or name in row.studies:
                places.setdefault(row.checkpoints, set()).add(row.host)
        return places

    # ----------------------------------------------------------------------------------- for people

    def find(self, name: str | None) -> StudyRow:
        """The study of that name, or the newest one; of a chain of that name, its newest stage.

        Raises:
            ConfigError: there is none.
        """
        rows = self.studies()
        if name is None:
            if not rows:
                raise ConfigError(
                    "there is no study in this database yet; start one with: orchestrator launch "
                    "experiment=…"
                )
            return max(rows, key=lambda r: (r.created_at, r.study_id))
        for row in rows:
            if row.name == name:
                return row
        chains = {chain.name: chain.newest for chain in self._database.execute(_NEWEST_STAGES)}
        for row in rows:
            if row.study_id == chains.get(name):
                return row
        if name in chains:
            raise ConfigError(f"study.name={name}: no stage of this chain has begun yet")
        raise ConfigError(
            f"study.name={name}: the database has no study of this "
            f"name{did_you_mean(name, [*(r.name for r in rows), *chains])}"
        )

    def progress(self, row: StudyRow, *, maximize: bool, most: int | None = None) -> Progress:
        """Counts and cells of a study; the best of a cell is its largest value if `maximize`.

        Args:
            most: of more cells than this only so many are read: the best ones first, then those
                that run trials, then the others in their order.

        Raises:
            ConfigError: the study was deleted.
        """
        with self._database.transaction() as c:
            which = {"study_id": row.study_id}
            (counts,) = answers(c, _TICKETS, which)
            (live,) = answers(c, _LIVE_TRIALS, which)
            now = answer(c, _NOW, {**which, "created_at": row.created_at})
            if now is None:
                raise ConfigError(f"study {row.name} was deleted from the database")
            (n_cells,) = answers(c, _N_CELLS, which)[0]
            part = most is not None and n_cells > most
            query = _cells(maximize=maximize, best_first=part)
            cells = answers(c, query, {**which, "most": max(1, most or 0) if part else None})
            level = _level(c, row.study_id, counts.unbound)
        return Progress(
            study=StudyRow(**{**row.__dict__, "state": now.state, "reason": now.reason}),
            total=counts.total,
            spent=counts.spent,
            running=live.running,
            waiting=live.waiting,
            failed=live.failed,
            spent_since=live.spent_since,
            seconds=float(now.seconds),
            seconds_left=None if now.left is None else float(now.left),
            n_cells=n_cells,
            best=cells[0].best_of_all if cells else None,
            best_trial=cells[0].trial_of_all if cells else None,
            cells=tuple(_cell_row(r, level) for r in cells[:most]),
            news=now.news,
            closed=cells[0].closed_of_all if cells else 0,
            launched_at=now.launched_at,
        )

    def trials(
        self,
        study_id: int,
        *,
        live_only: bool = False,
        state: str | None = None,
        number: int | None = None,
    ) -> list[TrialRow]:
        """Our trials of the study by number; if asked for, only those that have not ended, those in
        a state, or one.
        """
        which = {"study_id": study_id, "live_only": live_only, "state": state, "number": number}
        return [_trial_row(r) for r in self._database.execute(_TRIALS, which)]

    def failures(self, study_id: int, *, after: int = 0) -> list[FailureRow]:
        """The trials that failed since the study was last launched, by their position in the news,
        from `after` on.
        """
        rows = self._database.execute(_FAILURES, {"study_id": study_id, "after": after})
        return [FailureRow(row.number, row.seq, row.failure) for row in rows]

    def reported(self, study_id: int) -> Reported:
        """What the trials of the study have reported, as far as a pruner depends on it."""
        ((complete, silent, last, most),) = self._database.execute(
            _REPORTED, {"study_id": study_id}
        )
        return Reported(int(complete), bool(silent), last, int(most))

    def out_of_bounds(
        self, study_id: int, bounds: Sequence[Limits], *, after: int = 0
    ) -> TrialRow | None:
        """The first complete trial with a result outside the limits of its metric, by its position
        in the news, from `after` on; None if there is none.
        """
        limits = {"lows": [low for low, _ in bounds], "highs": [high for _, high in bounds]}
        found = self._database.execute(
            _OUT_OF_BOUNDS, {"study_id": study_id, "after": after, **limits}
        )
        return self.trials(study_id, number=found[0].number)[0] if found else None

    def contenders(self, study_id: int, directions: Sequence[str]) -> list[TrialRow]:
        """The complete trials among which the best are: where there is one objective, that one
        trial, and none if none is.
        """
        if len(directions) > 1:
            return self.trials(study_id, state="COMPLETE")
        query = best_trial(maximize=directions[0] == "maximize")
        best = self._database.execute(query, {"study_id": study_id})
        return self.trials(study_id, number=best[0].number) if best else []

    def about(self, what: str, study_id: int, number: int, directions: Sequence[str]) -> JSONValue:
        """What an objective asks of its study, or of its own trial `number`.

        ``best``: number, values and parameters of the best trial that is complete, None if none is
        or there are several objectives; ``user_attrs`` of the study; ``started``: when the trial
        began, in ISO format; ``distributions`` (JSON) of the parameters that it has.
        """
        if what == "best":
            best = self.contenders(study_id, directions) if len(directions) == 1 else []
            best = [trial for trial in best if trial.feasible and trial.values]
            return (
                {"number": best[0].number, "values": best[0].values, "params": best[0].params}
                if best
                else None
            )
        if what == "user_attrs":
            rows = self._database.execute(_USER_ATTRS, {"study_id": study_id})
            return {row.key: json.loads(row.value_json) for row in rows}
        mine = {"study_id": study_id, "number": number}
        if what == "started":
            began = [row.began for row in self._database.execute(_STARTED, mine)]
            return f"{began[0].isoformat()}+00:00" if began and began[0] is not None else None
        rows = self._database.execute(_DISTRIBUTIONS, mine)
        return {row.param_name: row.distribution_json for row in rows}

    def attempts(self, study_id: int, number: int) -> list[AttemptRow]:
        """The attempts of trial `number`, the first one first.

        Raises:
            ConfigError: the study has no such trial of ours.
        """
        rows = self._database.execute(_ATTEMPTS, {"study_id": study_id, "number": number})
        if not rows:
            raise ConfigError(
                f"trial={number}: no worker has run a trial with this number in the study"
            )
        return [
            AttemptRow(r.attempt, r.host, r.runs_dir, r.outcome, r.reason, r.facts, r.token)
            for r in rows
            if r.attempt is not None
        ]

    def code(self, study_id: int) -> list[CodeRow]:
        """What code the complete and pruned trials of the study ran, those with the lowest number
        first.

        Trials whose facts nobody wrote down are left out.
        """
        rows = self._database.execute(_CODE, {"study_id": study_id})
        return [CodeRow(r.git, r.source, tuple(r.numbers)) for r in rows]

    def artifacts(self, study_id: int, numbers: Collection[int]) -> dict[int, list[dict[str, Any]]]:
        """The records of the artifacts that these trials of ours have, by number, in the order in
        which they were stored; each as Optuna's `ArtifactMeta`.
        """
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        which = {
            "study_id": study_id,
            "numbers": list(numbers),
            "key": ARTIFACT_KEY.format("%"),
        }
        for row in self._database.execute(_ARTIFACTS, which):
            record = json.loads(json.loads(row.value_json))
            if record is not None:  # a dashboard writes null when it deletes one
                found[row.number].append(record)
        return found

    def servers(self, study_ids: Collection[int]) -> dict[int, Servers]:
        """Who of the living workers could serve each of these studies; one that has not tried yet
        counts as able.
        """
        found = {study_id: Servers() for study_id in study_ids}
        for row in self._database.execute(_SERVERS, {"study_ids": list(study_ids)}):
            so_far = found[row.study_id]
            if row.elsewhere:
                found[row.study_id] = replace(so_far, elsewhere=so_far.elsewhere + row.workers)
            elif row.why is not None:
                found[row.study_id] = replace(
                    so_far, refusals=(*so_far.refusals, (row.why, row.workers))
                )
            else:
                found[row.study_id] = replace(so_far, able=so_far.able + row.workers)
        return found

    def workers(self) -> list[WorkerRow]:
        """The workers that are registered now."""
        return [
            WorkerRow(
                r.worker_id,
                r.host,
                r.pid,
                r.doing,
                r.device_name,
                r.slot,
                max(0.0, float(r.late)),
                r.device,
                max(0.0, r.ttl_s + float(r.late)),
            )
            for r in self._database.execute(_WORKERS)
        ]


def _study_row(r: Row) -> StudyRow:
    return StudyRow(
        r.study_id,
        r.study_name,
        r.revision,
        r.state,
        r.reason,
        r.active,
        r.created_at,
        r.launched_at,
        float(r.launched_s),
        r.followed,
    )


@dataclass(frozen=True)
class _Level:
    """How the tickets without a cell will be shared out: each open cell with fewer than `tickets`
    is filled up to that, and those up to `last` (an ordinal) get one more. With `grows` any of them
    may get more: trials that repeat leading configurations.
    """

    tickets: int = 0
    last: int = -1
    grows: bool = False

    def share(self, bound: int, ordinal: int) -> int:
        if bound > self.tickets:
            return bound
        return self.tickets + (ordinal <= self.last)


def _level(c: AnyConnection, study_id: int, unbound: int) -> _Level | None:
    """Where the tickets that have no cell yet will go; None if an allocation decides it later."""
    if not unbound:
        return _Level()
    (stored,) = answers(c, _ALLOCATION, {"study_id": study_id})
    if stored.allocation != "uniform":
        return None
    unbound -= min(unbound, stored.confirm)
    grows = stored.confirm > 0
    if not unbound:
        return _Level(grows=grows)
    filled = tickets = 0  # this many cells have `tickets` each
    for bound, cells in answers(c, _OPEN_BY_BOUND, {"study_id": study_id}):
        if filled and (bound - tickets) * filled > unbound:
            break
        unbound -= (bound - tickets) * filled
        filled, tickets = filled + cells, bound
    if not filled:
        return _Level(grows=grows)
    more, rest = divmod(unbound, filled)
    last = -1
    if rest:
        which = {"study_id": study_id, "tickets": tickets + more, "skip": rest - 1}
        (last,) = answers(c, _NTH_OPEN, which)[0]
    return _Level(tickets + more, last, grows)


def _cell_row(r: Row, level: _Level | None) -> CellRow:
    grows = (level is None or level.grows) and r.state == "OPEN"
    share = r.bound
    if level is not None and r.state == "OPEN":
        share += level.share(r.bound_by_budget, r.ordinal) - r.bound_by_budget
    return CellRow(
        r.ordinal,
        r.values,
        r.state,
        r.reason,
        r.bound,
        r.completed,
        r.pruned,
        r.failed,
        r.running,
        r.best,
        r.best_trial,
        r.spent,
        _closed_for(r.closed_for),
        share,
        grows,
    )


def _trial_row(r: Row) -> TrialRow:
    return TrialRow(
        r.number,
        r.state,
        r.cell,
        r.params or {},
        stored_values(r.values),
        r.attempts,
        r.failure,
        r.worker_id,
        None if r.seconds is None else float(r.seconds),
        r.feasible,
    )


def _closed_for(stored: Sequence[Sequence[Any]] | None) -> tuple[ClosedFor, ...]:
    rows = stored or ()
    return tuple(
        ClosedFor(device_label(memory, name, size), memory, size or None, why)
        for memory, name, size, why in rows
    )


# By the name it was launched under too: a dashboard may have renamed it meanwhile.
_STUDIES = Statement(
    f"""
    SELECT s.study_id, s.revision, s.state, s.reason, s.created_at, s.launched_at, p.study_name,
        ({ACTIVE}) AS active,
        extract(epoch FROM clock_timestamp() - s.launched_at) AS launched_s,
        coalesce(s.followed_until > clock_timestamp(), false) AS followed
    FROM orchestrator.study s JOIN studies p ON p.study_id = s.study_id
    WHERE (CAST(:names AS text[]) IS NULL
            OR p.study_name = ANY(CAST(:names AS text[])) OR s.name = ANY(CAST(:names AS text[])))
        AND (NOT CAST(:active_only AS bool) OR {ACTIVE})
    ORDER BY s.priority DESC, s.created_at, s.study_id
    """
)
_NEWEST_STAGES = Statement(
    """
    SELECT k.name, (
        SELECT g.study_id FROM orchestrator.stage g JOIN studies p ON p.study_id = g.study_id
        WHERE g.chain_id = k.chain_id ORDER BY g.ordinal DESC LIMIT 1
    ) AS newest
    FROM orchestrator.chain k ORDER BY k.name
    """
)
_SPEC = Statement("SELECT spec FROM orchestrator.study WHERE study_id = :study_id")
_REVISIONS = Statement(
    """
    SELECT v.revision, v.made_at, v.changes FROM orchestrator.revision v
    WHERE v.study_id = :study_id ORDER BY v.revision
    """
)
_SPEC_OF = Statement(
    """
    SELECT v.spec FROM orchestrator.trial o
    JOIN orchestrator.revision v ON v.study_id = o.study_id AND v.revision = o.revision
    WHERE o.study_id = :study_id AND o.number = :number
    """
)
_CHECKPOINT_PLACES = Statement(
    """
    SELECT checkpoints, host, studies FROM orchestrator.worker
    WHERE state = 'ACTIVE' AND lease_until > clock_timestamp() AND checkpoints IS NOT NULL
    """
)
_TICKETS = Statement(
    f"""
    SELECT count(*) FILTER (WHERE state <> 'VOID') AS total,
        count(*) FILTER (WHERE state = 'SPENT') AS spent,
        count(*) FILTER (WHERE state IN {UNSPENT} AND cell_id IS NULL AND NOT extra) AS unbound
    FROM orchestrator.ticket WHERE study_id = :study_id
    """
)
_LIVE_TRIALS = Statement(
    """
    SELECT count(*) FILTER (WHERE o.state = 'RUNNING' AND o.worker_id IS NOT NULL) AS running,
        count(*) FILTER (WHERE o.state IN ('PREPARED', 'RUNNING') AND o.worker_id IS NULL)
            AS waiting,
        count(*) FILTER (WHERE o.state = 'FAIL') AS failed,
        count(*) FILTER (WHERE o.holds_ticket AND o.ended_at >= s.launched_at) AS spent_since
    FROM orchestrator.trial o JOIN orchestrator.study s ON s.study_id = o.study_id
    WHERE o.study_id = :study_id
    """
)
_NOW = Statement(
    """
    SELECT s.state, s.reason, s.news, s.launched_at,
        extract(epoch FROM clock_timestamp() - s.launched_at) AS seconds,
        extract(epoch FROM s.deadline_at - clock_timestamp()) AS left
    FROM orchestrator.study s JOIN studies p ON p.study_id = s.study_id
    WHERE s.study_id = :study_id AND s.created_at = :created_at
    """
)
_N_CELLS = Statement("SELECT count(*) AS cells FROM orchestrator.cell WHERE study_id = :study_id")
_USER_ATTRS = Statement(
    "SELECT key, value_json FROM study_user_attributes WHERE study_id = :study_id"
)
_STARTED = Statement(
    """
    SELECT datetime_start AS began FROM trials WHERE study_id = :study_id AND number = :number
    """
)
_DISTRIBUTIONS = Statement(
    """
    SELECT r.param_name, r.distribution_json
    FROM trial_params r JOIN trials q ON q.trial_id = r.trial_id
    WHERE q.study_id = :study_id AND q.number = :number
    ORDER BY r.param_id
    """
)
# One row without an attempt for a trial that has none yet.
_ATTEMPTS = Statement(
    """
    SELECT a.attempt, a.host, a.runs_dir, a.outcome, a.reason, a.facts, a.token
    FROM orchestrator.trial o LEFT JOIN orchestrator.attempt a ON a.trial_id = o.trial_id
    WHERE o.study_id = :study_id AND o.number = :number
    ORDER BY a.attempt
    """
)
_ARTIFACTS = Statement(
    """
    SELECT o.number, r.value_json
    FROM trial_system_attributes r
    JOIN orchestrator.trial o ON o.optuna_trial_id = r.trial_id
    WHERE o.study_id = :study_id AND o.number = ANY(CAST(:numbers AS int[])) AND r.key LIKE :key
    ORDER BY o.number, r.trial_system_attribute_id
    """
)
_WORKERS = Statement(
    """
    SELECT w.worker_id, w.host, w.pid, w.doing, d.device_name, d.device, d.slot,
        extract(epoch FROM clock_timestamp() - w.lease_until) AS late, w.ttl_s
    FROM orchestrator.worker w LEFT JOIN orchestrator.slot d ON d.worker_id = w.worker_id
    WHERE w.state = 'ACTIVE'
    ORDER BY w.worker_id
    """
)
_SERVER = Statement("SELECT pg_postmaster_start_time() AS server")
_TIME_LINE = Statement(
    """
    SELECT s.system_identifier AS system,
        CASE WHEN NOT pg_is_in_recovery()
            THEN substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) END AS timeline
    FROM pg_control_system() AS s
    """
)
# A worker that waits for a device cannot serve it either, and says so as what it does.
_SERVERS = Statement(
    """
    SELECT s.study_id, w.elsewhere, CASE WHEN NOT w.elsewhere
        THEN w.why END AS why, count(*) AS workers
    FROM orchestrator.study s
    JOIN studies p ON p.study_id = s.study_id
    CROSS JOIN LATERAL (
        SELECT
            w.studies IS NOT NULL AND NOT EXISTS (
                SELECT FROM json_array_elements_text(w.studies) AS n(name)
                    WHERE n.name IN (s.name, p.study_name)
            ) AS elsewhere,
            CASE
                WHEN w.refusals #>> ARRAY[CAST(s.study_id AS text),
                    'revision'] = CAST(s.revision AS text)
                    THEN w.refusals #>> ARRAY[CAST(s.study_id AS text), 'why']
                WHEN w.doing LIKE 'waiting for a device%' THEN w.doing
            END AS why
        FROM orchestrator.worker w
        WHERE w.state = 'ACTIVE' AND w.lease_until > clock_timestamp()
    ) AS w
    WHERE s.study_id = ANY(CAST(:study_ids AS int[]))
    GROUP BY 1, 2, 3
    ORDER BY workers DESC, why
    """
)
# By the hash of the sources where there is one: many commits change nothing that the objective
# runs.
_CODE = Statement(
    """
    SELECT (array_agg(f.git ORDER BY f.number DESC))[1] AS git,
        (array_agg(f.source ORDER BY f.number DESC))[1] AS source,
        array_agg(f.number ORDER BY f.number) AS numbers
    FROM (
        SELECT o.number, nullif(a.facts -> 'git', 'null') AS git,
            nullif(a.facts -> 'source', 'null') AS source
        FROM orchestrator.trial o
        JOIN orchestrator.attempt a ON a.trial_id = o.trial_id AND a.attempt = o.attempts
        WHERE o.study_id = :study_id AND o.state IN ('COMPLETE', 'PRUNED') AND a.facts IS NOT NULL
        OFFSET 0
    ) AS f
    GROUP BY coalesce(f.source ->> 'hash',
        (f.git ->> 'commit') || coalesce(f.git ->> 'diff', f.git ->> 'dirty', ''))
    ORDER BY min(f.number)
    """
)
FEASIBLE = """
    NOT EXISTS (SELECT FROM trial_system_attributes a WHERE a.trial_id = o.optuna_trial_id
        AND a.key LIKE 'constraints:%' AND CAST(a.value_json AS float8) > 0)
"""
_TRIALS = Statement(
    f"""
    SELECT o.number, o.state, l.ordinal AS cell, o.values AS params, o.attempts, o.failure,
        o.worker_id,
        extract(epoch FROM coalesce(o.ended_at, clock_timestamp()) - o.claimed_at) AS seconds,
        (SELECT json_agg(json_build_array(v.value, v.value_type) ORDER BY v.objective)
           FROM trial_values v WHERE v.trial_id = o.optuna_trial_id) AS values,
        {FEASIBLE} AS feasible
    FROM orchestrator.trial o JOIN orchestrator.cell l ON l.cell_id = o.cell_id
    WHERE o.study_id = :study_id AND o.number IS NOT NULL AND (NOT :live_only OR o.state IN {LIVE})
        AND o.state = coalesce(:state, o.state) AND o.number = coalesce(:number, o.number)
    ORDER BY o.number
    """
)
_FAILURES = Statement(
    """
    SELECT o.number, o.seq, coalesce(o.failure, 'unknown') AS failure
    FROM orchestrator.trial o JOIN orchestrator.study s ON s.study_id = o.study_id
    WHERE o.study_id = :study_id AND o.state = 'FAIL' AND o.seq > :after
        AND o.ended_at >= s.launched_at
    ORDER BY o.seq
    """
)
# Of at most 50 trials, so that a long study costs no more.
_REPORTED = Statement(
    """
    SELECT (
            SELECT count(*) FROM orchestrator.trial
            WHERE study_id = :study_id AND state = 'COMPLETE'
        ) AS complete,
        NOT EXISTS (
            SELECT FROM trials q JOIN trial_intermediate_values i ON i.trial_id = q.trial_id
            WHERE q.study_id = :study_id
        ) AS silent,
        max(r.last) AS last, coalesce(max(r.most), 0) AS most
    FROM (
        SELECT optuna_trial_id FROM orchestrator.trial
        WHERE study_id = :study_id AND state IN ('COMPLETE', 'PRUNED')
        ORDER BY number DESC LIMIT 50
    ) AS o
    CROSS JOIN LATERAL (
        SELECT max(step) AS last, count(*) AS most
        FROM trial_intermediate_values WHERE trial_id = o.optuna_trial_id
    ) AS r
    """
)
VALUE = """
    CASE v.value_type WHEN 'INF_POS' THEN CAST('Infinity' AS float8)
        WHEN 'INF_NEG' THEN CAST('-Infinity' AS float8)
        ELSE v.value END
"""
_OUT_OF_BOUNDS = Statement(
    f"""
    SELECT o.number
    FROM orchestrator.trial o JOIN trial_values v ON v.trial_id = o.optuna_trial_id
    WHERE o.study_id = :study_id AND o.state = 'COMPLETE' AND o.seq > :after
        AND ({VALUE} < (CAST(:lows AS float8[]))[v.objective + 1]
            OR {VALUE} > (CAST(:highs AS float8[]))[v.objective + 1])
    ORDER BY o.seq LIMIT 1
    """
)
# Sorted first (OFFSET 0 keeps it apart), so that constraints are looked up from the best trial on
# and seldom further.
_BEST_TRIAL = """
    SELECT o.number, o.value
    FROM (
        SELECT o.number, o.optuna_trial_id, {value} AS value
        FROM orchestrator.trial o
        JOIN trial_values v ON v.trial_id = o.optuna_trial_id AND v.objective = 0
        WHERE o.study_id = :study_id AND o.state = 'COMPLETE'
        ORDER BY {value} {order}, o.number
        OFFSET 0
    ) AS o
    WHERE {feasible}
    LIMIT 1
"""


@functools.cache
def best_trial(*, maximize: bool) -> Statement:
    """The complete feasible trial of a study whose first value is the best, and that value."""
    order = "DESC" if maximize else "ASC"
    return Statement(_BEST_TRIAL.format(order=order, value=VALUE, feasible=FEASIBLE))


_ALLOCATION = Statement(
    """
    SELECT coalesce(spec ->> 'allocation', 'uniform') AS allocation,
        coalesce(CAST(spec #>> '{budget,confirm}' AS int), 0) AS confirm
    FROM orchestrator.study WHERE study_id = :study_id
    """
)
_OPEN_BY_BOUND = Statement(
    """
    SELECT bound, count(*) AS cells FROM orchestrator.cell
    WHERE study_id = :study_id AND state = 'OPEN' GROUP BY bound ORDER BY bound
    """
)
_NTH_OPEN = Statement(
    """
    SELECT ordinal FROM orchestrator.cell
    WHERE study_id = :study_id AND state = 'OPEN' AND bound <= :tickets
    ORDER BY ordinal OFFSET :skip LIMIT 1
    """
)
# The best value of each cell, then the first trial that has it: to sort all trials takes longer.
_CELLS = """
    WITH done AS MATERIALIZED (
        SELECT o.cell_id, o.number, {value} AS value
        FROM orchestrator.trial o
        JOIN trial_values v ON v.trial_id = o.optuna_trial_id AND v.objective = 0
        WHERE o.study_id = :study_id AND o.state = 'COMPLETE' AND {feasible}
    ), top AS (
        SELECT cell_id, {best}(value) AS best FROM done GROUP BY cell_id
    )
    SELECT l.ordinal, l.values, l.state, l.reason, l.bound + coalesce(x.extra, 0) AS bound,
        l.completed, l.failed,
        l.pruned + coalesce(n.waited, 0) AS pruned, l.completed + l.pruned AS spent,
        coalesce(n.running, 0) AS running, m.best, m.best_trial,
        first_value(m.best) OVER best AS best_of_all,
            first_value(m.best_trial) OVER best AS trial_of_all,
        count(*) FILTER (WHERE l.state = 'CLOSED') OVER () AS closed_of_all,
        l.bound AS bound_by_budget,
        (SELECT json_agg(json_build_array(h.memory, h.device_name, h.bytes,
            h.reason) ORDER BY h.closed_at, h.bytes)
           FROM orchestrator.shortage h WHERE h.cell_id = l.cell_id AND h.closed) AS closed_for
    FROM orchestrator.cell l
    LEFT JOIN (
        SELECT top.cell_id, top.best, min(done.number) AS best_trial
        FROM top JOIN done ON done.cell_id = top.cell_id AND done.value = top.best
        GROUP BY top.cell_id, top.best
    ) m ON m.cell_id = l.cell_id
    LEFT JOIN (
        SELECT o.cell_id,
            count(*) FILTER (WHERE o.state = 'PRUNED' AND NOT o.holds_ticket
                AND o.failure IS NULL) AS waited,
            count(*) FILTER (WHERE o.state = 'RUNNING' AND o.worker_id IS NOT NULL) AS running
        FROM orchestrator.trial o
        WHERE o.study_id = :study_id AND o.state IN ('PRUNED', 'RUNNING')
        GROUP BY o.cell_id
    ) n ON n.cell_id = l.cell_id
    LEFT JOIN (
        SELECT t.cell_id, count(*) AS extra FROM orchestrator.ticket t
        WHERE t.study_id = :study_id AND (t.extra OR t.confirms IS NOT NULL)
            AND t.state <> 'VOID'
        GROUP BY t.cell_id
    ) x ON x.cell_id = l.cell_id
    WHERE l.study_id = :study_id
    WINDOW best AS (ORDER BY m.best {order} NULLS LAST, m.best_trial)
    ORDER BY {first} l.ordinal
    LIMIT :most
"""
_LOOK_FIRST = "m.best {order} NULLS LAST, coalesce(n.running, 0) DESC,"


@functools.cache
def _cells(*, maximize: bool, best_first: bool) -> Statement:
    order = "DESC" if maximize else "ASC"
    first = _LOOK_FIRST.format(order=order) if best_first else ""
    best = "max" if maximize else "min"
    return Statement(
        _CELLS.format(best=best, order=order, value=VALUE, feasible=FEASIBLE, first=first)
    )
