"""PostgreSQL crashes and comes back, or stays away for a while: training goes on, nothing is lost
or doubled.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import Fleet
from tests.support.own_server import OwnServer
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

TTL_S = 8.0
"""Longer than a crowded machine keeps a worker from its renewal: what is given up here is given up
for the database.
"""


def test_restarts_and_an_outage_cost_no_worker_and_no_running_trial(
    server: OwnServer,
    commands: Commands,
    store: Store,
    dice: random.Random,
    long: bool,
    figures: Callable[..., None],
) -> None:
    cells, workers, restarts, away_s, seconds = (
        (60, 6, 5, 60.0, 4.0) if long else (10, 4, 2, TTL_S + 2.0, 1.5)
    )
    # The last trials, one a worker, wait until the database is away: however slow this process is,
    # there are some to look at.
    gate = commands.directory / "gate"
    gated = {"gate": str(gate), "gated_from": cells - workers}
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": seconds, **gated}
    study_id = store.studies.launch(spec(cells=cells, objective=objective, runner=RUNNER)).study_id
    with Fleet(commands, f"worker.lease_ttl_s={TTL_S}") as fleet:
        for _ in range(workers):
            fleet.start(apart=True)
        for _ in range(restarts):
            wait_until(lambda: len(_running(store, study_id)) > 1)
            time.sleep(dice.uniform(0.0, seconds / 2))  # the moment is the chance
            store.rest()
            server.restart()
        wait_until(lambda: len(_running(store, study_id)) > 1)
        ended = _ended(store, study_id)
        store.rest()
        server.stop()
        gate.touch()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > away_s, away_s + 10)
        assert len(fleet.living()) == workers, "nobody gave up"
        server.start()
        back = time.monotonic()
        wait_until(lambda: _ended(store, study_id) > ended, 60)
        first_end_s = time.monotonic() - back
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 120)
        fleet.dismiss()
    invariants.check(commands, "study", cells=cells)
    attempts = [t.attempts for t in store.reads.trials(study_id)]
    figures(
        restarts=restarts,
        away_s=away_s,
        attempts=sum(attempts),
        cells=cells,
        first_end_s=round(first_end_s, 1),
    )
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
        (job,) = wait_until(
            lambda: list(commands.directory.glob("runs/study-*/trial-0/attempt-1-*/job.json"))
        )
        server.stop()
        wait_until(lambda: job.with_name("result.json").exists())
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.ended() == 0
        server.start()
        fleet.start(apart=True)
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
    invariants.check(commands, "study", cells=1)
    (trial,) = invariants.plain_trials(server.url, "study")
    assert trial.user_attrs["ran_as"] == 1, (
        "the result that waited on disk was delivered, not computed again"
    )


def _ended(store: Store, study_id: int) -> int:
    return sum(t.state == "COMPLETE" for t in store.reads.trials(study_id))


def _running(store: Store, study_id: int) -> set[int]:
    return {
        t.number
        for t in store.reads.trials(study_id, live_only=True)
        if t.state == "RUNNING" and t.worker_id
    }
