"""PostgreSQL crashes and comes back, or stays away for a while: training goes on, nothing is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import TTL_S, Fleet
from tests.support.own_server import OwnServer
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with OwnServer() as running:
        yield running


@pytest.fixture
def commands(server: OwnServer, tmp_path: Path) -> Commands:
    return Commands(server.url, tmp_path)


@pytest.fixture
def store(server: OwnServer) -> Store:
    return Store(server.url)


def test_restarts_and_an_outage_cost_no_worker_and_no_running_trial(
    server: OwnServer,
    commands: Commands,
    store: Store,
    dice: random.Random,
    long: bool,
    figures: Callable[..., None],
) -> None:
    cells, workers, restarts, away_s, seconds = (60, 6, 5, 60.0, 4.0) if long else (10, 4, 2, 2 * TTL_S, 1.5)
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": seconds}
    study_id = store.studies.launch(spec(cells=cells, objective=objective, runner=RUNNER)).study_id
    with Fleet(commands) as fleet:
        for _ in range(workers):
            fleet.start(apart=True)
        for _ in range(restarts):
            wait_until(lambda: len(_running(store, study_id)) > 1)
            time.sleep(dice.uniform(0.0, seconds / 2))  # the moment is the chance
            store.rest()
            server.restart()
        busy = wait_until(lambda: _running(store, study_id))
        store.rest()
        server.stop()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > away_s, away_s + 10)
        assert len(fleet.living()) == workers, "nobody gave up"
        server.start()
        back = time.monotonic()
        wait_until(lambda: _running(store, study_id) - busy, 30)
        first_claim_s = time.monotonic() - back
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 120)
        fleet.dismiss()
    invariants.check(commands, "study", cells=cells)
    attempts = [t.attempts for t in store.reads.trials(study_id)]
    figures(restarts=restarts, away_s=away_s, attempts=sum(attempts), cells=cells, first_claim_s=round(first_claim_s, 1))
    assert attempts == [1] * cells, "no running trial was given up for the database's sake"


@pytest.mark.chaos("long")
def test_told_to_end_while_the_database_is_away_a_worker_with_a_trial_ends_in_order(
    server: OwnServer, commands: Commands, store: Store
) -> None:
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": 1.0}
    store.studies.launch(spec(cells=1, objective=objective, runner=RUNNER))
    store.rest()
    with Fleet(commands, "worker.drain_s=1") as fleet:
        worker = fleet.start(apart=True)
        (job,) = wait_until(lambda: list(commands.directory.glob("runs/study-*/trial-0/attempt-1/job.json")))
        server.stop()
        wait_until(lambda: job.with_name("result.json").exists())
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.ended(10) == 0
        server.start()
        fleet.start(apart=True)
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
    invariants.check(commands, "study", cells=1)
    (trial,) = invariants.plain_trials(server.url, "study")
    assert trial.user_attrs["ran_as"] == 1, "the result that waited on disk was delivered, not computed again"


def _running(store: Store, study_id: int) -> set[int]:
    return {t.number for t in store.reads.trials(study_id, live_only=True) if t.state == "RUNNING" and t.worker_id}
