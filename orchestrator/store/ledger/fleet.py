"""Workers and the device slots they hold. A worker's lease covers its slot and its trials."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from orchestrator.errors import LeaseLostError
from orchestrator.store.connection.statement import Row, Statement
from orchestrator.store.ledger.claims import new_token
from orchestrator.store.schema import slot, worker
from orchestrator.store.states import LIVE

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from orchestrator.store.connection.database import Database

HERE_EVERY_S = 5.0
"""How often a process asks which workers run on its host, between checks of the whole fleet."""


@dataclass(frozen=True)
class WorkerLease:
    """The right of one worker process to its row, its slot and its trials; proved by `token`."""

    worker_id: int
    token: int
    ttl_s: float

    @property
    def proof(self) -> dict[str, int]:
        """What a statement needs to check the lease."""
        return {"worker_id": self.worker_id, "token": self.token}

    def lost(self) -> LeaseLostError:
        """The error to raise when it is no longer valid."""
        return LeaseLostError(
            f"worker {self.worker_id} is no longer registered: its lease ran out, or its row was "
            "lost"
        )


@dataclass(frozen=True)
class Renewed:
    """What a worker learns when it renews its lease.

    `halted`: a person wants its running trial given back at once, or the study of the probe that it
    measures is over. `crowded`: more than half of the server's connections are in use. `strays`:
    the database lists trials or probes for it that it does not hold. `runs`: the database knows of
    the attempt it runs. `slotted`: it holds a device slot. `server`: when the server started, which
    identifies it. `transaction`: the number of this renewal's transaction; on one timeline these
    numbers grow.
    """

    halted: bool
    crowded: bool
    strays: bool
    runs: bool
    slotted: bool
    server: datetime
    transaction: int


@dataclass(frozen=True)
class Silent:
    """A worker to be evicted, and why. `dead`: its process no longer exists, whatever its lease
    says.

    `token` identifies it, because its id may have become another worker's; None: whoever has that
    id.
    """

    worker_id: int
    dead: bool
    reason: str
    token: int | None = None


@dataclass(frozen=True)
class SlotOffer:
    """A slot a worker could take: `scope` is who shares the device (the host), `device` its UUID or
    ``cpu``.

    `gpu_bytes` is the slot's share of a GPU's memory (None for the CPU), `host_bytes` the memory
    that a process of that host may use; 0 where that is unknown.
    """

    scope: str
    device: str
    slot: int
    device_name: str
    gpu_bytes: int | None = None
    host_bytes: int = 0


class Fleet:
    """Registers workers, renews their leases, hands out device slots.

    As of the last call of `silent`: `size` is the number of registered workers, `server` when the
    server started, `now` the time by its clock, and `read_only` whether it rejects writes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._here: dict[int, Row] = {}
        self._here_at = -math.inf
        self.size = 0
        self.server: datetime | None = None
        self.now: datetime | None = None
        self.read_only = False

    def register(
        self, ttl_s: float, checkpoints: str | None = None, studies: Collection[str] | None = None
    ) -> WorkerLease:
        """Registers this process as a worker, with a new lease of `ttl_s` seconds by the database's
        clock.

        Args:
            checkpoints: the place where this worker keeps checkpoints; the same text for all
                workers that share it.
            studies: the names of the only studies it serves.
        """
        with self._database.transaction() as c:
            row = c.execute(
                sa.insert(worker)
                .values(
                    token=new_token(),
                    host=socket.gethostname(),
                    process_scope=process_scope(),
                    pid=os.getpid(),
                    pid_started=_start_of(os.getpid()),
                    ttl_s=ttl_s,
                    lease_until=_until(ttl_s),
                    checkpoints=checkpoints,
                    studies=None if studies is None else list(studies),
                )
                .returning(worker.c.worker_id, worker.c.token)
            ).one()
        return WorkerLease(row.worker_id, row.token, ttl_s)

    def renew(
        self,
        lease: WorkerLease,
        doing: str,
        *,
        holds: Collection[int] = (),
        running: int | None = None,
    ) -> Renewed:
        """Extends the lease to its TTL from now, and writes what the worker does and holds.

        Args:
            holds: the tokens of all claims that the worker holds.
            running: the token of the attempt that it runs.

        Raises:
            LeaseLostError: the worker was evicted; its slot and trials may belong to another.
        """
        renewal = {"ttl_s": lease.ttl_s, "doing": doing, "holds": list(holds), "running": running}
        renewed = self._database.execute(_RENEW, {**lease.proof, **renewal})
        if not renewed:
            raise lease.lost()
        row = renewed[0]
        return Renewed(
            row.halted,
            bool(row.crowded),
            row.strays,
            row.runs,
            row.slotted,
            row.server,
            row.transaction,
        )

    def refuse(self, lease: WorkerLease, refusals: Mapping[int, tuple[int, str]]) -> None:
        """Writes for `Reads.servers` which studies the worker cannot serve: for each the revision,
        and why.

        Raises:
            LeaseLostError: the worker was evicted.
        """
        rows = {
            str(study_id): {"revision": revision, "why": why}
            for study_id, (revision, why) in refusals.items()
        }
        with self._database.transaction() as c:
            hold_worker(c, lease)
            c.execute(
                sa.update(worker)
                .where(worker.c.worker_id == lease.worker_id)
                .values(refusals=rows or None)
            )

    def claim_slot(self, lease: WorkerLease, offers: Sequence[SlotOffer]) -> SlotOffer | None:
        """Takes the first offered slot that nobody holds, or returns None. A worker holds at most
        one slot.

        Raises:
            LeaseLostError: the worker was evicted meanwhile.
        """
        with self._database.transaction() as c:
            hold_worker(c, lease)
            has = c.execute(
                sa.select(slot).where(slot.c.worker_id == lease.worker_id)
            ).one_or_none()
            if has is not None:  # taken before, by a COMMIT whose answer was lost
                return SlotOffer(
                    has.scope, has.device, has.slot, has.device_name, has.gpu_bytes, has.host_bytes
                )
            for offer in offers:
                taken = c.execute(
                    insert(slot)
                    .values(
                        scope=offer.scope,
                        device=offer.device,
                        slot=offer.slot,
                        device_name=offer.device_name,
                        gpu_bytes=offer.gpu_bytes,
                        host_bytes=offer.host_bytes,
                        worker_id=lease.worker_id,
                    )
                    .on_conflict_do_nothing(index_elements=["scope", "device", "slot"])
                )
                if taken.rowcount:
                    return offer
        return None

    def release_slot(self, lease: WorkerLease) -> None:
        """Gives up the worker's slot, if it holds one."""
        with self._database.transaction() as c:
            mine = sa.select(worker.c.worker_id).where(
                worker.c.worker_id == lease.worker_id, worker.c.token == lease.token
            )
            c.execute(sa.delete(slot).where(slot.c.worker_id.in_(mine)))

    def held(
        self, scopes: Collection[str], *, but: WorkerLease | None = None
    ) -> set[tuple[str, str, int]]:
        """The slots of `scopes` that workers hold, except the worker `but`, as (scope, device,
        slot).
        """
        found = sa.select(slot).where(slot.c.scope.in_(scopes))
        if but is not None:
            found = found.where(slot.c.worker_id != but.worker_id)
        with self._database.transaction() as c:
            return {(r.scope, r.device, r.slot) for r in c.execute(found)}

    def holders(self, scope: str) -> list[str]:
        """For people: who holds the slots of `scope`, one line per slot."""
        with self._database.transaction() as c:
            rows = c.execute(
                sa.select(
                    slot.c.device,
                    slot.c.device_name,
                    slot.c.slot,
                    worker.c.worker_id,
                    worker.c.host,
                    worker.c.pid,
                )
                .join(worker, worker.c.worker_id == slot.c.worker_id)
                .where(slot.c.scope == scope)
                .order_by(slot.c.device, slot.c.slot)
            ).all()
        return [
            f"{r.device_name} slot {r.slot}: worker {r.worker_id} (pid {r.pid} on {r.host})"
            for r in rows
        ]

    def silent(self, contact_s: float) -> list[Silent]:
        """Workers whose lease has run out, and workers of this host whose process is dead.

        An expired lease counts only once the server has been up, and the caller in contact with it,
        for the lease's TTL: after an outage, live workers renew first.

        Args:
            contact_s: how long the caller has been in unbroken contact with the database, seconds.
        """
        rows = self._database.execute(_SILENT, {"contact_s": contact_s, "scope": process_scope()})
        self.size, self.server, self.read_only = rows[0].size, rows[0].server, rows[0].read_only
        self.now = rows[0].now
        workers = [row for row in rows if row.worker_id is not None]
        self._remember_here([row for row in workers if row.here])
        dead = {one.worker_id: one for one in self._take_dead()}
        expired = [
            Silent(
                row.worker_id,
                dead=False,
                reason=f"it did not renew its lease for {row.ttl_s:g} s",
                token=row.token,
            )
            for row in workers
            if row.expired and row.worker_id not in dead
        ]
        return sorted([*dead.values(), *expired], key=lambda one: one.worker_id)

    def dead_here(self) -> list[Silent]:
        """Workers of this host whose process is dead; the list of workers is read only every
        `HERE_EVERY_S`.
        """
        if time.monotonic() - self._here_at >= HERE_EVERY_S:
            self._remember_here(self._database.execute(_HERE, {"scope": process_scope()}))
        return self._take_dead()

    def _remember_here(self, here: Sequence[Row]) -> None:
        self._here, self._here_at = {row.worker_id: row for row in here}, time.monotonic()

    def _take_dead(self) -> list[Silent]:
        """The workers of this host that died, each returned once per reading of the list."""
        dead = [row for row in self._here.values() if _is_dead(row.pid, row.pid_started)]
        for row in dead:
            del self._here[row.worker_id]
        return [_died(row) for row in dead]


_RENEW = Statement(
    f"""
    UPDATE orchestrator.worker w
    SET lease_until = clock_timestamp() + make_interval(secs => :ttl_s), doing = :doing,
        holds = CAST(:holds AS bigint[])
    WHERE w.worker_id = :worker_id AND w.token = :token AND w.state = 'ACTIVE'
    RETURNING EXISTS (
        SELECT FROM orchestrator.trial o JOIN orchestrator.study s ON s.study_id = o.study_id
        WHERE o.worker_id = w.worker_id AND o.state = 'RUNNING' AND s.halt
    ) OR EXISTS (
        SELECT FROM orchestrator.probe r JOIN orchestrator.study s ON s.study_id = r.study_id
        WHERE r.worker_id = w.worker_id AND r.state = 'RUNNING'
            AND (s.halt OR s.state = 'FINISHED')
    ) AS halted,
    (SELECT sum(d.numbackends) FROM pg_stat_database d) > current_setting('max_connections')::int /
        2 AS crowded,
    EXISTS (
        SELECT FROM orchestrator.trial o
        WHERE o.worker_id = w.worker_id AND o.state IN {LIVE}
            AND o.token <> ALL(CAST(:holds AS bigint[]))
    ) OR EXISTS (
        SELECT FROM orchestrator.probe r
        WHERE r.worker_id = w.worker_id AND r.state = 'RUNNING'
            AND r.token <> ALL(CAST(:holds AS bigint[]))
    ) AS strays,
    CAST(:running AS bigint) IS NULL OR EXISTS (
        SELECT FROM orchestrator.trial o
        WHERE o.worker_id = w.worker_id AND o.token = CAST(:running AS bigint)
            AND o.state = 'RUNNING'
    ) AS runs,
    EXISTS (SELECT FROM orchestrator.slot d WHERE d.worker_id = w.worker_id) AS slotted,
    pg_postmaster_start_time() AS server,
    CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS transaction
    """
)
_SILENT = Statement(
    """
    SELECT a.size, pg_postmaster_start_time() AS server, clock_timestamp() AS now,
        current_setting('transaction_read_only') = 'on' AS read_only, w.*
    FROM (SELECT count(*) AS size FROM orchestrator.worker WHERE state = 'ACTIVE') AS a
    LEFT JOIN (
        SELECT w.worker_id, w.token, w.pid, w.pid_started, w.host, w.ttl_s,
            w.process_scope = :scope AS here,
            w.lease_until < clock_timestamp() AND w.ttl_s <= :contact_s
                AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => w.ttl_s)
                    AS expired
        FROM orchestrator.worker w WHERE w.state = 'ACTIVE'
    ) AS w ON w.here OR w.expired
    ORDER BY w.worker_id
    """
)
_HERE = Statement(
    """
    SELECT worker_id, token, pid, pid_started, host FROM orchestrator.worker
    WHERE state = 'ACTIVE' AND process_scope = :scope ORDER BY worker_id
    """
)


def _died(row: Row) -> Silent:
    return Silent(
        row.worker_id,
        dead=True,
        reason=f"its process {row.pid} on {row.host} died",
        token=row.token,
    )


def hold_worker(c: Connection, lease: WorkerLease, *, alone: bool = False) -> None:
    """Makes an eviction wait for this transaction, so that nothing is given to a worker that is
    gone.

    Args:
        alone: also wait for other transactions of this worker, such as a claim whose answer was
            lost.

    Raises:
        LeaseLostError: the worker was evicted.
    """
    mine = sa.and_(
        worker.c.worker_id == lease.worker_id,
        worker.c.token == lease.token,
        worker.c.state == "ACTIVE",
    )
    if (
        c.execute(
            sa.select(worker.c.worker_id)
            .where(mine)
            .with_for_update(read=not alone, key_share=alone)
        ).one_or_none()
        is None
    ):
        raise lease.lost()


def _until(ttl_s: float) -> sa.ColumnElement[datetime]:
    return sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, ttl_s)


def _is_dead(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's: alive
    try:
        return _start_of(pid) != started
    except OSError:  # /proc may hide other users' processes
        return False


def _start_of(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (a step of the host's clock does not move it);
    None for a zombie.
    """
    if not Path("/proc/self/stat").exists():
        return int(psutil.Process(pid).create_time())
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = status[status.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


@cache
def process_scope() -> str:
    """Where a PID means this process: the kernel's boot and the PID namespace, so containers do not
    judge each other.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
