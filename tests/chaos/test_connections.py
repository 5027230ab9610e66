"""A server with fewer connections than workers, and a client that is frozen while it holds the
study's lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import ROOT, Commands
from tests.support.fleet import Fleet
from tests.support.own_server import OwnServer
from tests.support.proxy import Proxy
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

IDLE_IN_TRANSACTION_S = 5.0  # of orchestrator.store.connection.database
HOLD_AND_FREEZE = """
import os, signal, sys
from orchestrator.store.connection import statement
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.optuna import rows
with Database(storage_url(sys.argv[1])).transaction() as c:
    assert statement.answer(c, rows.LOCK_STUDY, {"study_id": int(sys.argv[2])}) is not None
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.chaos("long")
def test_more_workers_than_connections_wait_their_turn_and_all_run(
    tmp_path: Path, long: bool, figures: Callable[..., None]
) -> None:
    limit, workers, per_worker = (20, 60, 5) if long else (6, 8, 6)
    cells = workers * per_worker
    with OwnServer(max_connections=limit, superuser_reserved_connections=3) as server:
        commands, store = Commands(server.worker_url, tmp_path), Store(server.url)
        with Fleet(
            commands, "worker.lease_ttl_s=30", "worker.heartbeat_s=3", "worker.poll_s=1"
        ) as fleet:
            for _ in range(workers):
                fleet.start(apart=True)
            wait_until(lambda: len(store.reads.workers()) == workers, 120)
            objective = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.3}
            store.studies.launch(spec(cells=cells, objective=objective, runner=RUNNER))
            began = time.monotonic()
            wait_until(lambda: store.reads.find("study").state == "FINISHED", 300)
            took_s = time.monotonic() - began
            store.rest()
            fleet.dismiss(120)
            said = sum("too many" in m.text() or "reserved" in m.text() for m in fleet.members)
        invariants.check(Commands(server.url, tmp_path), "study", cells=cells)
        ran = invariants.query(
            server.url, "SELECT count(DISTINCT worker_id) FROM orchestrator.attempt"
        )[0][0]
    figures(max_connections=limit, workers=workers, ran=ran, said_so=said, seconds=round(took_s))
    assert ran >= 0.9 * workers, "none keeps the others from their turn"
    assert said, "they said what they wait for"


def test_a_worker_holds_one_connection_at_most_and_none_while_it_trains(
    commands: Commands, store: Store
) -> None:
    gate = commands.directory / "gate"
    objective = {"_target_": "tests.support.chaos_objective.train", "gate": str(gate)}
    store.studies.launch(spec(cells=1, objective=objective, runner=RUNNER))
    with Proxy(str(commands.url)) as proxy, Fleet(commands) as fleet:
        fleet.start("worker.lease_ttl_s=30", "worker.heartbeat_s=2", url=proxy.url)
        wait_until(lambda: list(commands.directory.glob("runs/study-*/trial-0/attempt-*/job.json")))
        # the trial goes on until the gate opens: each look is at a worker that trains
        for _ in range(2):
            before = proxy.accepted
            wait_until(lambda before=before: proxy.accepted > before)  # type: ignore[misc]  # for a renewal or a sweep
            wait_until(lambda: proxy.connections == 0)
        gate.touch()
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
        assert proxy.most == 1


@pytest.mark.chaos("long")
def test_a_client_frozen_with_the_study_s_lock_holds_up_the_others_for_seconds_only(
    commands: Commands, store: Store, figures: Callable[..., None]
) -> None:
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.2}
    study_id = store.studies.launch(spec(cells=16, objective=objective, runner=RUNNER)).study_id
    with Fleet(commands) as fleet:
        fleet.start()
        fleet.start()
        wait_until(lambda: _completed(store, study_id) >= 2)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_AND_FREEZE, str(commands.url), str(study_id)], cwd=ROOT
        )
        try:
            wait_until(
                lambda: (
                    Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0]
                    == "T"
                )
            )
            frozen, before = time.monotonic(), _completed(store, study_id)
            wait_until(lambda: _completed(store, study_id) > before + 1)
            held_up_s = time.monotonic() - frozen
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
    invariants.check(commands, "study", cells=16)
    figures(held_up_s=round(held_up_s, 1))
    assert held_up_s <= IDLE_IN_TRANSACTION_S + 1


def _completed(store: Store, study_id: int) -> int:
    return sum(t.state == "COMPLETE" for t in store.reads.trials(study_id))
