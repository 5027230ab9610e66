"""Probes: each is measured once per cell and device type, before the cell's first trial there.

A row is made when a worker begins to measure. It is held while it is RUNNING and its worker ACTIVE:
a worker that is evicted holds nothing any more, and another one measures again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import LeaseLostError
from orchestrator.measurement import Measurement
from orchestrator.model import JSONValue, StudySpec
from orchestrator.store.connection.statement import Row, Statement, answer, answers, later
from orchestrator.store.ledger import endings, grid, shortages, tickets
from orchestrator.store.ledger.claims import Place, new_token
from orchestrator.store.ledger.device_types import HOLDER_LIVES, SAME_TYPE
from orchestrator.store.ledger.fleet import WorkerLease
from orchestrator.store.optuna.attributes import KEEP_STUDY_ATTR, artifact_attrs

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database


@dataclass(frozen=True)
class Probe:
    """A probe that a worker measures under its lease; every later write must show the `token`.

    `cell` is an ordinal within the study, `attempt` counts from 1.
    """

    study_id: int
    probe_id: int
    token: int
    name: str
    cell: int
    cell_values: Mapping[str, JSONValue]
    attempt: int

    @property
    def proof(self) -> dict[str, int]:
        """What a statement needs to check that the probe is still held."""
        return {"probe_id": self.probe_id, "token": self.token}


def begin_due(
    c: Connection,
    ticket_id: int,
    cell_id: int | None,
    lease: WorkerLease,
    place: Place,
    keys: Mapping[str, str],
    max_attempts: int,
) -> Probe | None:
    """Begins the next probe that the ticket's cell needs on the worker's device type; None if it
    needs none.

    A ticket whose parameters are given needs none. A probe that lost `max_attempts` workers has
    failed.

    Args:
        cell_id: the cell that an allocation chose for the ticket; None: it has its cell.
        keys: of the probes of the study by name, in their order, see `measurement.probe_key`.

    Raises:
        LostRaceError: another worker has just begun it.
    """
    for due in _due(c, ticket_id, cell_id, lease, keys):
        # Its worker fell silent. Its own row: the answer to an earlier claim was lost.
        lost = due.lost + (due.state == "RUNNING" and due.worker_id != lease.worker_id)
        if lost >= max_attempts:
            _give_up(c, due, lost, lease)
            continue
        begun = {
            "cell_id": due.cell_id,
            "name": due.name,
            "key": due.key,
            "device_name": due.device_name,
            "bytes": due.bytes,
            "lost": lost,
            "worker_id": lease.worker_id,
            "token": new_token(),
            "host": place.host,
            "runs_dir": place.runs_dir,
        }
        row = answer(c, _BEGIN, begun)
        if row is None:
            raise LostRaceError
        return Probe(
            row.study_id,
            row.probe_id,
            row.token,
            row.name,
            due.cell,
            due.cell_values,
            row.attempts,
        )
    return None


def needs(
    c: Connection,
    ticket_id: int,
    cell_id: int | None,
    lease: WorkerLease,
    keys: Mapping[str, str],
) -> bool:
    """Whether the ticket's cell needs a probe; arguments as of `begin_due`."""
    return bool(_due(c, ticket_id, cell_id, lease, keys))


def _due(
    c: Connection,
    ticket_id: int,
    cell_id: int | None,
    lease: WorkerLease,
    keys: Mapping[str, str],
) -> list[Row]:
    """The probes that the ticket's cell needs, in their order; arguments as of `begin_due`."""
    which = {"ticket_id": ticket_id, "cell_id": cell_id, "worker_id": lease.worker_id}
    return answers(c, _DUE, {**which, **_named(keys)})


def _named(keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Probes and their keys, as statements take them."""
    return {"names": list(keys), "keys": list(keys.values())}


def _give_up(c: Connection, due: Row, lost: int, lease: WorkerLease) -> None:
    """A probe that lost too many attempts has failed.

    Raises:
        LostRaceError: another worker has just begun it.
    """
    reason = f"{lost} workers fell silent while they measured it"
    if lost == 1:
        reason = "the worker that measured it fell silent"
    if due.state == "OPEN":
        reason = f"{lost} attempts were lost, the last: {due.reason}"
    gave_up = {
        "probe_id": due.probe_id,
        "token": due.token,
        "worker_id": lease.worker_id,
        "reason": reason,
        "lost": lost,
    }
    if answer(c, _GIVE_UP, gave_up) is None:
        raise LostRaceError
    later(c, _EVENT_OF, {"probe_id": due.probe_id, "kind": FAILED, "reason": reason})


class LostRaceError(Exception):
    """Another worker has just begun the same probe."""


def measurements(
    c: Connection, cell: int, study_id: int, lease: WorkerLease, keys: Mapping[str, str]
) -> tuple[Mapping[str, JSONValue], ...]:
    """What the study's probes found in a cell on the worker's device type, in their order."""
    which = {"study_id": study_id, "cell": cell, "worker_id": lease.worker_id, **_named(keys)}
    return tuple(row.measurement for row in answers(c, _MEASUREMENTS, which))


def give_back_all(c: Connection, worker_id: int, reason: str, *, but: Collection[int] = ()) -> int:
    """Gives back what a worker measures, except the probes with the tokens in `but`; returns how
    many.
    """
    return len(answers(c, _GIVE_BACK, {"worker_id": worker_id, "reason": reason, "but": list(but)}))


class Probes:
    """The transitions of a probe after it has begun."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def finish(
        self,
        held: Probe,
        measurement: Measurement,
        seconds: float,
        facts: Mapping[str, JSONValue],
        artifacts: Mapping[str, JSONValue],
    ) -> list[str]:
        """Writes what the probe found, once; a cell that is not feasible is closed for the device
        type, as are those that are known to need too much of its memory.

        Returns:
            The cells that it closed, in words; none if an earlier call did that and its answer was
            lost.

        Raises:
            LeaseLostError: another worker measures it, or the study was deleted; nothing was
                written.
        """
        with self._database.transaction() as c:
            if not self._end(c, held, "DONE", measurement.to_json(), None, seconds, facts):
                return []
            _write_artifacts(c, held, artifacts)
            closed = shortages.close_probed(c, held.probe_id, held.name, measurement)
            later(
                c, _EVENT_OF, {"probe_id": held.probe_id, "kind": DONE, "reason": measurement.label}
            )
        return closed

    def keep(self, held: Probe, artifacts: Mapping[str, JSONValue]) -> None:
        """Records artifacts of a probe that found nothing, whoever measures it by now."""
        with self._database.transaction() as c:
            if endings.lock_if_exists(c, held.study_id):
                _write_artifacts(c, held, artifacts)

    def fail(
        self, held: Probe, reason: str, seconds: float, facts: Mapping[str, JSONValue]
    ) -> None:
        """The probe has failed for good: the trials of the cell have the declared bounds.

        Raises:
            LeaseLostError: as `finish`.
        """
        with self._database.transaction() as c:
            if self._end(c, held, "FAILED", None, reason, seconds, facts):
                later(c, _EVENT_OF, {"probe_id": held.probe_id, "kind": FAILED, "reason": reason})

    def retry(self, held: Probe, reason: str) -> bool:
        """Lets the probe be measured again, because its failure was transient; False, and nothing
        is written, if it has had `runner.retries` retries, or if another worker measures it.
        """
        rows = self._database.execute(_RETRY, {**held.proof, "reason": reason})
        return bool(rows)

    def release(self, held: Probe, reason: str, *, lost: bool = False) -> None:
        """Gives the probe back unfinished. This counts against it only if the attempt was `lost` as
        if with its worker.
        """
        self._database.execute(_RELEASE, {**held.proof, "reason": reason, "lost": int(lost)})

    def again(self, study_id: int, cells: list[int] | None, names: list[str] | None) -> int:
        """Makes workers measure probes anew before the next trial of their cells; returns how many.
        What they found is kept until then, but the cells that they closed are open again. Those
        that are being measured are left alone.

        Args:
            cells: ordinals of the only cells; None: all.
            names: of the only probes; None: all.
        """
        with self._database.transaction() as c:
            endings.lock_study(c, study_id)
            rows = answers(c, _AGAIN, {"study_id": study_id, "cells": cells, "names": names})
            if _open_cells(c, study_id, rows):
                (study,) = answers(c, shortages.STUDY_SPEC, {"study_id": study_id})
                spec = StudySpec.from_json(study.spec)
                grid.write_tickets(c, study_id, spec, new=False, within=True)
                later(c, _WAKE, {"study_id": study_id})
                tickets.end_study_if_spent(c, study_id)
        return len(rows)

    def suit(self, lease: WorkerLease, study_id: int, keys: Mapping[str, str]) -> None:
        """Opens for the worker's device type the cells that a probe closed there which was declared
        otherwise or ran other code, unless that probe was measured anew since.

        Args:
            keys: of the study's probes by name, as this worker would measure them.
        """
        which = {"study_id": study_id, "worker_id": lease.worker_id, **_named(keys)}
        if not self._database.execute(_OUTDATED, which):
            return
        with self._database.transaction() as c:
            endings.lock_study(c, study_id)
            rows = answers(c, _OUTDATED, which)
            _open_cells(c, study_id, rows)

    def _end(
        self,
        c: Connection,
        held: Probe,
        state: str,
        measurement: Mapping[str, JSONValue] | None,
        reason: str | None,
        seconds: float,
        facts: Mapping[str, JSONValue],
    ) -> bool:
        """Writes how the probe ended; False if an earlier call did, whose answer was lost."""
        exists = endings.lock_if_exists(c, held.study_id)
        ended = {
            **held.proof,
            "state": state,
            "measurement": None if measurement is None else json.dumps(measurement),
            "reason": reason,
            "seconds": seconds,
            "facts": json.dumps(dict(facts)),
        }
        if exists and answer(c, _END, ended) is not None:
            return True
        if exists and answer(c, _HAS_ENDED, {**held.proof, "state": state}) is not None:
            return False
        raise LeaseLostError(
            f"probe {held.name} of cell {held.cell} is measured by another worker, or its "
            "study was deleted; what was found here is dropped"
        )


def _open_cells(c: Connection, study_id: int, probe_rows: list[Row]) -> bool:
    """Opens the cells that these probes closed, with what they lack of their shares as far as there
    are tickets; returns whether any had been closed for all.
    """
    closed = shortages.open_probed(c, study_id, [row.probe_id for row in probe_rows])
    for cell_row in closed:
        tickets.open_again(c, cell_row, _NO_TICKET, "its probe is measured anew")
    return bool(closed)


def _write_artifacts(c: Connection, held: Probe, artifacts: Mapping[str, JSONValue]) -> None:
    for key, text in artifact_attrs(artifacts).items():
        later(c, KEEP_STUDY_ATTR, {"study_id": held.study_id, "key": key, "text": json.dumps(text)})


DONE = "probe done"
"""Kind of the event that tells what a probe found."""
FAILED = "probe failed"
"""Kind of the event that tells why a probe failed."""

# The row of the same device type, should there be one: two hosts with nearly the same memory share
# it.
_DUE = Statement(
    f"""
    SELECT l.cell_id, l.ordinal AS cell, l.values AS cell_values, n.name, n.key, r.probe_id,
        r.state, r.worker_id, r.token, r.reason, coalesce(r.lost, 0) AS lost,
        coalesce(r.device_name, d.device_name, 'CPU') AS device_name,
        coalesce(r.bytes, d.gpu_bytes, d.host_bytes, 0) AS bytes
    FROM orchestrator.ticket t
    JOIN orchestrator.cell l ON l.cell_id = coalesce(CAST(:cell_id AS bigint), t.cell_id)
    CROSS JOIN unnest(CAST(:names AS text[]), CAST(:keys AS text[]))
        WITH ORDINALITY AS n(name, key, place)
    LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    LEFT JOIN LATERAL (
        SELECT r.* FROM orchestrator.probe r
        WHERE r.cell_id = l.cell_id AND r.name = n.name AND r.key = n.key AND {SAME_TYPE}
        ORDER BY r.probe_id LIMIT 1
    ) AS r ON true
    WHERE t.ticket_id = :ticket_id AND t.fixed IS NULL AND NOT t.extra
        AND (r.state IS NULL OR r.state IN ('OPEN', 'RUNNING'))
    ORDER BY n.place
    """
)
_BEGIN = Statement(
    f"""
    INSERT INTO orchestrator.probe AS r
        (study_id, cell_id, name, device_name, bytes, key, state, worker_id, token, attempts, lost,
            host, runs_dir)
    SELECT l.study_id, l.cell_id, CAST(:name AS text), CAST(:device_name AS text),
        CAST(:bytes AS bigint), CAST(:key AS text), 'RUNNING', CAST(:worker_id AS bigint),
        CAST(:token AS bigint), 1, CAST(:lost AS int), CAST(:host AS text),
        CAST(:runs_dir AS text)
    FROM orchestrator.cell l WHERE l.cell_id = :cell_id
    ON CONFLICT (cell_id, name, device_name, bytes, key) DO UPDATE
    SET state = 'RUNNING', worker_id = excluded.worker_id, token = excluded.token,
        attempts = r.attempts + 1, lost = excluded.lost, host = excluded.host,
        runs_dir = excluded.runs_dir, started_at = clock_timestamp(), ended_at = NULL,
        reason = NULL
    WHERE r.state = 'OPEN' OR (r.state = 'RUNNING'
        AND (r.worker_id = excluded.worker_id OR NOT {HOLDER_LIVES}))
    RETURNING r.study_id, r.probe_id, r.token, r.name, r.attempts
    """
)
# Not while another worker measures it that has only just begun.
_GIVE_UP = Statement(
    f"""
    UPDATE orchestrator.probe r SET state = 'FAILED', measurement = NULL, reason = :reason,
        lost = :lost, ended_at = clock_timestamp()
    WHERE r.probe_id = :probe_id AND r.token = :token AND (r.state = 'OPEN'
        OR (r.state = 'RUNNING' AND (r.worker_id = :worker_id OR NOT {HOLDER_LIVES})))
    RETURNING r.probe_id
    """
)
_END = Statement(
    """
    UPDATE orchestrator.probe
    SET state = :state, measurement = CAST(:measurement AS json), reason = :reason,
        seconds = :seconds, facts = CAST(:facts AS jsonb), ended_at = clock_timestamp()
    WHERE probe_id = :probe_id AND token = :token AND state = 'RUNNING'
    RETURNING probe_id
    """
)
_HAS_ENDED = Statement(
    """
    SELECT r.probe_id FROM orchestrator.probe r
    WHERE r.probe_id = :probe_id AND r.token = :token AND r.state = :state
    """
)
_RETRY = Statement(
    """
    UPDATE orchestrator.probe r
    SET state = 'OPEN', retries = r.retries + 1, reason = :reason, ended_at = clock_timestamp()
    FROM orchestrator.study s
    WHERE r.probe_id = :probe_id AND r.token = :token AND r.state = 'RUNNING'
        AND s.study_id = r.study_id
        AND r.retries < coalesce(CAST(s.spec #>> '{runner,retries}' AS int), 0)
    RETURNING r.probe_id
    """
)
_GIVE_BACK = Statement(
    """
    UPDATE orchestrator.probe
    SET state = 'OPEN', reason = :reason, ended_at = clock_timestamp()
    WHERE worker_id = :worker_id AND state = 'RUNNING' AND token <> ALL(CAST(:but AS bigint[]))
    RETURNING probe_id
    """
)
_RELEASE = Statement(
    """
    UPDATE orchestrator.probe
    SET state = 'OPEN', lost = lost + :lost, reason = :reason, ended_at = clock_timestamp()
    WHERE probe_id = :probe_id AND token = :token AND state = 'RUNNING'
    RETURNING probe_id
    """
)
_AGAIN = Statement(
    """
    UPDATE orchestrator.probe r
    SET state = 'OPEN', lost = 0, retries = 0, reason = NULL
    FROM orchestrator.cell l
    WHERE r.study_id = :study_id AND l.cell_id = r.cell_id AND r.state IN ('DONE', 'FAILED')
        AND (CAST(:cells AS int[]) IS NULL OR l.ordinal = ANY(CAST(:cells AS int[])))
        AND (CAST(:names AS text[]) IS NULL OR r.name = ANY(CAST(:names AS text[])))
    RETURNING r.probe_id
    """
)
_MEASUREMENTS = Statement(
    f"""
    SELECT r.measurement
    FROM unnest(CAST(:names AS text[]), CAST(:keys AS text[]))
        WITH ORDINALITY AS n(name, key, place)
    LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    JOIN orchestrator.cell l ON l.study_id = :study_id AND l.ordinal = :cell
    CROSS JOIN LATERAL (
        SELECT r.measurement FROM orchestrator.probe r
        WHERE r.cell_id = l.cell_id AND r.name = n.name AND r.key = n.key AND {SAME_TYPE}
        ORDER BY r.probe_id LIMIT 1
    ) AS r
    WHERE r.measurement IS NOT NULL
    ORDER BY n.place
    """
)
# Probes of the worker's device type that closed a cell and that it would measure otherwise, but has
# not yet.
_OUTDATED = Statement(
    f"""
    WITH own AS (
        SELECT n.* FROM unnest(CAST(:names AS text[]), CAST(:keys AS text[])) AS n(name, key)
    )
    SELECT r.probe_id FROM orchestrator.probe r
    LEFT JOIN orchestrator.slot d ON d.worker_id = :worker_id
    WHERE r.study_id = :study_id AND {SAME_TYPE}
        AND EXISTS (SELECT FROM orchestrator.shortage h WHERE h.probe_id = r.probe_id AND h.closed)
        AND NOT EXISTS (SELECT FROM own WHERE own.name = r.name AND own.key = r.key)
        AND NOT EXISTS (
            SELECT FROM orchestrator.probe b JOIN own ON own.name = b.name AND own.key = b.key
            WHERE b.cell_id = r.cell_id AND b.name = r.name AND b.device_name = r.device_name
                AND b.state IN ('DONE', 'FAILED'))
    """
)
# Whoever stopped the study, or gave it so much time, meant it.
_WAKE = Statement(
    """
    UPDATE orchestrator.study SET state = 'ACTIVE', reason = NULL
    WHERE study_id = :study_id AND state = 'FINISHED'
        AND reason IN ('budget spent', 'every cell is closed')
    """
)
_NO_TICKET = 0
"""No ticket has this id."""
_EVENT_OF = Statement(
    """
    INSERT INTO orchestrator.event (study_id, cell_id, worker_id, kind, reason)
    SELECT r.study_id, r.cell_id, r.worker_id, CAST(:kind AS text), 'probe ' || r.name || ' on '
        || r.device_name || ': ' || CAST(:reason AS text)
    FROM orchestrator.probe r WHERE r.probe_id = :probe_id
    """
)
