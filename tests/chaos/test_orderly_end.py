"""SIGTERM in the middle of a trial, also to the first process of a container: given back, and
resumed elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import psutil
import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import LEASE, Fleet
from tests.support.running import all_gone
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

DRAIN_S = 1.0
ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Runs a command as the first process of a PID namespace, as a container does."""


@cache
def _no_namespaces() -> str | None:
    try:
        done = subprocess.run([*ALONE, "true"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


def _mid_trial(commands: Commands) -> None:
    wait_until(lambda: list(commands.directory.glob("runs/study-*/trial-0/attempt-*/**/step")), 60)


def _ended_in_order(commands: Commands, store: Store, study_id: int) -> None:
    """Nothing is held any more, and the next worker resumes the trial from its checkpoint; no
    attempt counts as lost.
    """
    (row,) = invariants.query(store.url, "SELECT state, worker_id, lost FROM orchestrator.trial")
    assert row == ("RUNNING", None, 0)
    assert store.reads.workers() == []
    with Fleet(commands) as fleet:
        fleet.start(apart=True)
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        fleet.dismiss()
    invariants.check(commands, "study", cells=1)
    (trial,) = invariants.plain_trials(store.url, "study")
    assert trial.user_attrs["first_step"] > 0, "it went on where it had been"
    assert list(trial.intermediate_values) == list(range(10)), "one curve of both attempts"
    assert [a.outcome for a in store.reads.attempts(study_id, 0)] == ["interrupted", "completed"]


def _launch(store: Store) -> int:
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": 3.0, "steps": 10}
    return store.studies.launch(
        spec(cells=1, objective=objective, runner=replace(RUNNER, max_attempts=1))
    ).study_id


@pytest.mark.chaos("long")
def test_a_terminated_worker_gives_its_trial_back_uncounted(
    commands: Commands, store: Store, figures: Callable[..., None]
) -> None:
    study_id = _launch(store)
    with Fleet(commands, f"worker.drain_s={DRAIN_S}") as fleet:
        worker = fleet.start()
        _mid_trial(commands)
        family = [child.pid for child in psutil.Process(worker.pid).children(recursive=True)]
        told = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.ended(DRAIN_S + 5) == 0
        figures(ended_after_s=round(time.monotonic() - told, 1))
        assert all_gone(family)
    _ended_in_order(commands, store, study_id)


@pytest.mark.chaos("long")
def test_the_first_process_of_a_container_obeys_sigterm_all_the_same(
    commands: Commands, store: Store
) -> None:
    if reason := _no_namespaces():
        pytest.skip(f"no PID namespaces here: {reason}")
    study_id = _launch(store)
    line = [*ALONE, *commands.line("worker", *LEASE, f"worker.drain_s={DRAIN_S}")]
    process = subprocess.Popen(
        line,
        cwd=commands.cwd,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _mid_trial(commands)
        (first,) = psutil.Process(process.pid).children()
        assert [w.pid for w in store.reads.workers()] == [1]
        os.kill(first.pid, signal.SIGTERM)
        assert process.wait(DRAIN_S + 10) == 0, process.communicate()[0]
    finally:
        process.kill()
        process.wait()
    _ended_in_order(commands, store, study_id)
