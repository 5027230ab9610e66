"""Plain Optuna under the same faults: workers of `study.optimize` with heartbeat and retry
callback, as its manual has them.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryFailedTrialCallback
from optuna.trial import TrialState

from tests.support.commands import kill

HEARTBEAT_S, GRACE_S = 1, 3
STUDY = "plain"
CELL_ATTR = "cell"


class PlainFleet:
    """Workers of plain Optuna on a grid of `cells`, replaced when killed; all are gone when the
    block ends.

    Args:
        url: an empty database.
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
    """What became of the grid: how many cells are missing, done more than once, and how many trials
    run for ever.
    """
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
