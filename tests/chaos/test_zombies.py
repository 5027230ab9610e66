"""Processes that are stopped and come back: what they write too late is refused, and they go on
with other work.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands, descendants
from tests.support.fleet import HEARTBEAT_S, TTL_S, Fleet, Member
from tests.support.running import all_gone
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

LONGER_THAN_THE_LEASE_S = 1.5 * TTL_S
OBJECTIVE = "tests.support.chaos_objective.train"


def _launch(store: Store, cells: int, seconds: float) -> int:
    objective = {"_target_": OBJECTIVE, "seconds": seconds, "steps": 20}
    runner = replace(RUNNER, grace_s=0.3, resume=False)
    return store.studies.launch(spec(cells=cells, objective=objective, runner=runner)).study_id


def _freeze(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def _thaw(pids: list[int]) -> None:
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


def _runs_trial(store: Store, study_id: int, number: int, attempt: int = 1) -> bool:
    rows = [
        t
        for t in store.reads.trials(study_id, live_only=True)
        if t.number == number and t.worker_id
    ]
    return bool(rows) and rows[0].attempts == attempt


@pytest.mark.parametrize(
    "with_its_child",
    [
        pytest.param(False, id="worker"),
        pytest.param(True, id="worker-and-child", marks=pytest.mark.chaos("long")),
    ],
)
def test_a_worker_stopped_past_its_lease_is_refused_and_goes_on_with_another_trial(
    commands: Commands,
    store: Store,
    tmp_path: Path,
    figures: Callable[..., None],
    with_its_child: bool,
) -> None:
    # Long enough for the second attempt to run still when the first, thawed, wants to write.
    study_id = _launch(store, cells=2, seconds=1.5 * TTL_S)
    with Fleet(commands) as fleet:
        # Run directories of its own, or the one that takes over would deliver what this one left
        # behind.
        zombie = fleet.start(f"paths.runs={tmp_path}/elsewhere", apart=True)
        wait_until(lambda: _runs_trial(store, study_id, 0))
        child = wait_until(lambda: _child_of(zombie))
        frozen = [zombie.pid, *(descendants(zombie.pid) if with_its_child else [])]
        _freeze(frozen)
        stopped = time.monotonic()
        rescuer = fleet.start("worker.max_trials=2", apart=True)
        wait_until(
            lambda: _runs_trial(store, study_id, 0, attempt=2) or _is_over(store, study_id, 0), 30
        )
        taken_over_s = time.monotonic() - stopped
        if not with_its_child:
            wait_until(lambda: all_gone([child]), LONGER_THAN_THE_LEASE_S)
        _thaw(frozen)
        thawed = time.monotonic()
        wait_until(lambda: all_gone([child]), 30)
        child_gone_s = time.monotonic() - thawed
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        fleet.dismiss()
        assert (zombie.process.exitcode, rescuer.process.exitcode) == (0, 0)
        assert "registering again" in zombie.text()
    invariants.check(commands, "study", cells=2)
    first = optuna.load_study(study_name="study", storage=store.url).trials[0]
    assert (first.user_attrs["who"], first.user_attrs["ran_as"]) == (rescuer.name, 2), (
        "the late result is not the trial's"
    )
    outcomes = [a.outcome for a in store.reads.attempts(study_id, 0)]
    assert outcomes == ["lost", "completed"]
    figures(taken_over_s=round(taken_over_s, 1), child_gone_s=round(child_gone_s, 1))
    assert child_gone_s <= HEARTBEAT_S + 2


@pytest.mark.chaos("long")
def test_a_stopped_child_keeps_its_trial_and_goes_on(commands: Commands, store: Store) -> None:
    study_id = _launch(store, cells=1, seconds=1.0)
    with Fleet(commands) as fleet:
        workers = [fleet.start(apart=True) for _ in range(2)]
        child = wait_until(lambda: _child_of(workers[0]) or _child_of(workers[1]))
        _freeze([child])
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > LONGER_THAN_THE_LEASE_S)
        assert _runs_trial(store, study_id, 0), "its worker renews for it"
        _thaw([child])
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
    invariants.check(commands, "study", cells=1)
    assert [a.outcome for a in store.reads.attempts(study_id, 0)] == ["completed"]


def _child_of(worker: Member) -> int | None:
    """The process that runs user code: the child of the keeper."""
    for keeper in psutil.Process(worker.pid).children():
        for child in keeper.children():
            return int(child.pid)
    return None


def _is_over(store: Store, study_id: int, number: int) -> bool:
    return any(t.number == number and t.state == "COMPLETE" for t in store.reads.trials(study_id))
