"""What probes have found, for people. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.model import JSONValue
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.statement import Statement
from orchestrator.store.ledger.device_types import HOLDER_LIVES


@dataclass(frozen=True)
class ProbeRow:
    """A probe of a cell on a device type, as it was last measured there.

    `cell` is the ordinal of the cell, `measurement` as `Measurement.to_json` wrote it, None until
    there is one; `reason` why it failed or was given back. `held` says that a living worker
    measures it now, which began `since_s` ago; `seconds` is how long the last attempt ran.
    """

    cell: int
    values: Mapping[str, JSONValue]
    name: str
    device_name: str
    bytes: int
    state: str
    measurement: Mapping[str, Any] | None
    reason: str | None
    seconds: float | None
    attempt: int
    token: int
    host: str
    runs_dir: str
    facts: Mapping[str, Any] | None
    started_at: datetime
    held: bool
    since_s: float


class Measured:
    """Queries about probes, each in one short transaction."""

    def __init__(self, database: Source) -> None:
        self._database = database

    def of(self, study_id: int) -> list[ProbeRow]:
        """The probes that a study declares, by cell, name and device type; of those that were
        measured with different code or declarations only the last.
        """
        return [ProbeRow(*row) for row in self._database.execute(_OF, {"study_id": study_id})]


_OF = Statement(
    f"""
    SELECT DISTINCT ON (l.ordinal, r.name, r.device_name, r.bytes)
        l.ordinal AS cell, l.values, r.name, r.device_name, r.bytes, r.state, r.measurement,
        r.reason, r.seconds, r.attempts AS attempt, r.token, r.host, r.runs_dir, r.facts,
        r.started_at, r.state = 'RUNNING' AND {HOLDER_LIVES} AS held,
        CAST(extract(epoch FROM clock_timestamp() - r.started_at) AS double precision) AS since_s
    FROM orchestrator.probe r JOIN orchestrator.cell l ON l.cell_id = r.cell_id
    JOIN orchestrator.study s ON s.study_id = r.study_id
    WHERE r.study_id = :study_id AND jsonb_exists(CAST(s.spec -> 'probes' AS jsonb), r.name)
    ORDER BY l.ordinal, r.name, r.device_name, r.bytes, r.started_at DESC, r.probe_id DESC
    """
)
