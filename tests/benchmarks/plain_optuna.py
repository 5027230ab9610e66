"""What becomes of a grid of plain Optuna under the faults of `tests/chaos`, in JSON lines: nothing
is promised here.

Workers run `study.optimize` with ``GridSampler``, heartbeat and retry callback, as Optuna's manual
has them, on a PostgreSQL of their own. Shown are how many cells are missing, how many were done
more than once, how many trials run for ever, and how many workers crashed. The faults are those of
`test_kills`, `test_database_away`, `test_zombies` and `test_first_moments` in their long form. Run
as

    python tests/benchmarks/plain_optuna.py kills --seed 7
    python tests/benchmarks/plain_optuna.py             # each fault in turn, about ten minutes
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage, RetryFailedTrialCallback
from optuna.trial import TrialState

from tests.support.commands import kill
from tests.support.own_server import OwnServer
from tests.support.waiting import wait_until

HEARTBEAT_S, GRACE_S = 1, 3
WORKERS = 6
STUDY = "plain"


class PlainFleet:
    """Workers of plain Optuna on a grid of `cells`; all are gone when the block ends.

    Args:
        url: a database without a study of that name.
        seconds: how long a trial takes.
    """

    def __init__(self, url: str, cells: int, seconds: float) -> None:
        self._arguments = (url, cells, seconds)
        self._context = multiprocessing.get_context("forkserver")
        self.members: list[ForkServerProcess] = []
        self.killed: set[int] = set()
        storage = RDBStorage(url)
        optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
        storage.engine.dispose()

    def __enter__(self) -> PlainFleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self.living():
            member.kill()
            member.join(10)

    def start(self) -> ForkServerProcess:
        process = self._context.Process(target=_work, args=self._arguments)
        process.start()
        self.members.append(process)
        return process

    def fill(self) -> None:
        """Starts as many workers as are missing."""
        for _ in range(WORKERS - len(self.living())):
            self.start()

    def living(self) -> list[ForkServerProcess]:
        return [member for member in self.members if member.is_alive()]

    def kill_one(self, dice: random.Random) -> None:
        victim = dice.choice(self.living())
        assert victim.pid is not None
        self.killed.add(victim.pid)
        kill(victim.pid)
        victim.join(10)

    def crashed(self) -> int:
        """How many ended by an error of their own."""
        return sum(m.exitcode not in (None, 0) and m.pid not in self.killed for m in self.members)

    def settle(self, seconds: float) -> None:
        """Waits until every worker has ended by itself, or `seconds` have passed."""
        until = time.monotonic() + seconds
        while self.living() and time.monotonic() < until:
            time.sleep(0.2)


def _work(url: str, cells: int, seconds: float) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = RDBStorage(
        url,
        heartbeat_interval=HEARTBEAT_S,
        grace_period=GRACE_S,
        failed_trial_callback=RetryFailedTrialCallback(),
    )
    sampler = optuna.samplers.GridSampler({"a": list(range(cells))})
    study = optuna.load_study(study_name=STUDY, storage=storage, sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        a = trial.suggest_int("a", 0, cells - 1)
        time.sleep(seconds)
        return float(a)

    study.optimize(objective)  # GridSampler stops it when the grid is exhausted


def tally(url: str, cells: int) -> dict[str, Any]:
    """What became of the grid."""
    storage = RDBStorage(url)
    trials = optuna.load_study(study_name=STUDY, storage=storage).trials
    storage.engine.dispose()
    done = Counter(t.params["a"] for t in trials if t.state == TrialState.COMPLETE)
    return {
        "cells": cells,
        "missing": cells - len(done),
        "more_than_once": sum(count > 1 for count in done.values()),
        "running_for_ever": sum(t.state == TrialState.RUNNING for t in trials),
    }


def kills(server: OwnServer, dice: random.Random) -> dict[str, Any]:
    """SIGKILL of 200 workers at random moments, each replaced at once."""
    cells, count = 300, 200
    with PlainFleet(server.url, cells, seconds=1.0) as fleet:
        fleet.fill()
        next_kill = time.monotonic() + 2
        while len(fleet.killed) < count and fleet.living():
            fleet.fill()
            if time.monotonic() >= next_kill:
                fleet.kill_one(dice)
                next_kill = time.monotonic() + dice.uniform(0.1, 0.5)
            time.sleep(0.05)
        fleet.fill()
        fleet.settle(120)
        return {
            "kills": len(fleet.killed),
            "crashed_workers": fleet.crashed(),
            **tally(server.url, cells),
        }


def no_kills(server: OwnServer, dice: random.Random) -> dict[str, Any]:
    """Six workers whom nothing disturbs."""
    with PlainFleet(server.url, 300, seconds=0.3) as fleet:
        fleet.fill()
        fleet.settle(120)
        return {"kills": 0, "crashed_workers": fleet.crashed(), **tally(server.url, 300)}


def restarts(server: OwnServer, dice: random.Random) -> dict[str, Any]:
    """PostgreSQL restarted five times under six workers."""
    cells = 60
    with PlainFleet(server.url, cells, seconds=4.0) as fleet:
        fleet.fill()
        for _ in range(5):
            time.sleep(dice.uniform(4.0, 6.0))
            server.restart()
        fleet.settle(60)
        crashed = fleet.crashed()
        return {
            "restarts": 5,
            "workers": WORKERS,
            "crashed_workers": crashed,
            **tally(server.url, cells),
        }


def zombie(server: OwnServer, dice: random.Random) -> dict[str, Any]:
    """A worker stopped for longer than its grace period, then continued."""
    with PlainFleet(server.url, 4, seconds=4.0) as fleet:
        stopped = fleet.start()
        assert stopped.pid is not None
        storage = RDBStorage(server.url)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        wait_until(lambda: study.get_trials(states=(TrialState.RUNNING,)))
        wait_until(lambda: study.trials[0].params, 10)
        storage.engine.dispose()
        time.sleep(1.5)  # past its first heartbeat: before that nobody ever looks after it
        os.kill(stopped.pid, signal.SIGSTOP)
        fleet.start()
        time.sleep(3 * GRACE_S)
        os.kill(stopped.pid, signal.SIGCONT)
        fleet.settle(60)
        return {"zombie_exit_code": stopped.exitcode, **tally(server.url, 4)}


def different_spaces(server: OwnServer, dice: random.Random) -> dict[str, Any]:
    """Two studies of one name whose spaces differ."""
    storage = RDBStorage(server.url)
    runs: tuple[tuple[int, Literal["minimize", "maximize"]], ...]
    runs = ((1, "minimize"), (2, "maximize"))
    for high, direction in runs:
        study = optuna.create_study(
            study_name=STUDY, storage=storage, direction=direction, load_if_exists=True
        )
        study.optimize(lambda trial, high=high: trial.suggest_float("x", 0, high), n_trials=1)  # type: ignore[misc]
    trials = optuna.load_study(study_name=STUDY, storage=storage).trials
    storage.engine.dispose()
    return {"launches": 2, "distributions_of_x": len({t.distributions["x"] for t in trials})}


FAULTS: dict[str, Callable[[OwnServer, random.Random], dict[str, Any]]] = {
    made.__name__: made for made in (kills, no_kills, restarts, zombie, different_spaces)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="fault", help=f"of {', '.join(FAULTS)}; all")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args()
    for fault in given.faults or FAULTS:
        with OwnServer() as server:
            figures = FAULTS[fault](server, random.Random(given.seed))
        print(json.dumps({"fault": fault, "seed": given.seed, **figures}), flush=True)


if __name__ == "__main__":
    main()
