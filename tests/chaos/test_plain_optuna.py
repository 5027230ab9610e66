"""The faults that can be given to plain Optuna as well: nothing is promised here, the figures stand
beside ours.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import optuna
import pytest
from optuna.storages import RDBStorage

from tests.chaos.plain_optuna import GRACE_S, STUDY, PlainFleet, tally
from tests.support.own_server import OwnServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos("long")


def _let_it_settle(fleet: PlainFleet, seconds: float) -> None:
    """Until every worker has ended by itself, or `seconds` have passed."""
    until = time.monotonic() + seconds
    while fleet.living() and time.monotonic() < until:
        time.sleep(0.2)


def test_kills(empty_database_url: str, dice: random.Random, figures: Callable[..., None]) -> None:
    cells, kills = 300, 200
    with PlainFleet(empty_database_url, cells, seconds=1.0) as fleet:
        for _ in range(6):
            fleet.start()
        next_kill = time.monotonic() + 2
        while len(fleet.killed) < kills and (fleet.living() or len(fleet.members) < 6):
            for _ in range(6 - len(fleet.living())):
                fleet.start()
            if time.monotonic() >= next_kill:
                fleet.kill_one(dice)
                next_kill = time.monotonic() + dice.uniform(0.1, 0.5)
            time.sleep(0.05)
        for _ in range(6 - len(fleet.living())):
            fleet.start()
        _let_it_settle(fleet, 120)
        figures(
            kills=len(fleet.killed),
            crashed_workers=fleet.crashed(),
            **tally(empty_database_url, cells),
        )


def test_no_kills_at_all(empty_database_url: str, figures: Callable[..., None]) -> None:
    with PlainFleet(empty_database_url, 300, seconds=0.3) as fleet:
        for _ in range(6):
            fleet.start()
        _let_it_settle(fleet, 120)
        figures(kills=0, crashed_workers=fleet.crashed(), **tally(empty_database_url, 300))


def test_restarts(dice: random.Random, figures: Callable[..., None]) -> None:
    cells = 60
    with OwnServer() as server, PlainFleet(server.url, cells, seconds=4.0) as fleet:
        for _ in range(6):
            fleet.start()
        for _ in range(5):
            time.sleep(dice.uniform(4.0, 6.0))
            server.restart()
        _let_it_settle(fleet, 60)
        figures(restarts=5, workers=6, crashed_workers=fleet.crashed(), **tally(server.url, cells))


def test_a_zombie(empty_database_url: str, figures: Callable[..., None]) -> None:
    with PlainFleet(empty_database_url, 4, seconds=4.0) as fleet:
        zombie = fleet.start()
        assert zombie.pid is not None
        storage = RDBStorage(empty_database_url)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        wait_until(lambda: study.get_trials(states=(optuna.trial.TrialState.RUNNING,)))
        wait_until(lambda: study.trials[0].params, 10)
        storage.engine.dispose()
        time.sleep(1.5)  # past its first heartbeat: before that nobody ever looks after it
        os.kill(zombie.pid, signal.SIGSTOP)
        fleet.start()
        time.sleep(3 * GRACE_S)
        os.kill(zombie.pid, signal.SIGCONT)
        _let_it_settle(fleet, 60)
        figures(zombie_exit_code=zombie.exitcode, **tally(empty_database_url, 4))


def test_different_spaces(empty_database_url: str, figures: Callable[..., None]) -> None:
    storage = RDBStorage(empty_database_url)
    accepted = 0
    for direction in ("minimize", "maximize"):
        study = optuna.create_study(
            study_name=STUDY, storage=storage, direction=direction, load_if_exists=True
        )

        def objective(trial: optuna.Trial, high: float = accepted + 1) -> float:
            return trial.suggest_float("x", 0, high)

        study.optimize(objective, n_trials=1)
        accepted += 1
    ranges = {
        t.distributions["x"] for t in optuna.load_study(study_name=STUDY, storage=storage).trials
    }
    storage.engine.dispose()
    figures(launches=2, accepted=accepted, refused=2 - accepted, distributions_of_x=len(ranges))
