"""runner.isolation=worker: one process runs attempt after attempt, each as if it were alone, until
one leaves it unfit.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model import Completed, Failed, Interrupted, Outcome, Pruned
from orchestrator.runner import AttrSet, Reported, Runner, attempt_dir, journal
from tests.support.running import (
    alive,
    all_gone,
    children_of,
    finish,
    make_job,
    objective,
    own_children,
    pids_of,
    running_with,
)
from tests.support.waiting import wait_until

LOOK = {"_target_": "tests.support.resident.look"}


def leaving(what: str) -> dict[str, Any]:
    return {"_target_": "tests.support.resident.leave", "what": what}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with running_with(LOOK, isolation="worker", grace_s=0.5) as runner:
        yield runner


def outcome_of(runner: Runner, runs: Path, target: dict[str, Any], number: int) -> Outcome:
    return finish(runner.start(make_job(runs, target, number=number)))[0]


def pid_of(runner: Runner, runs: Path, number: int) -> int:
    """The process that a good attempt ran in."""
    outcome = outcome_of(runner, runs, LOOK, number)
    assert isinstance(outcome, Completed)
    pid = outcome.attrs["pid"]
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_attempts_share_a_process_and_nothing_else(tmp_path: Path, start: str) -> None:
    seen = []
    with running_with(LOOK, isolation="worker", start=start) as runner:
        for number in range(3):
            changes = {
                "number": number,
                "seed": 5 + number // 2,
                "values": {"optim.lr": 0.1 * number},
            }
            outcome, messages = finish(runner.start(make_job(tmp_path, LOOK, **changes)))
            assert isinstance(outcome, Completed)
            assert messages == [Reported(1, float(number)), AttrSet("number", number)]
            run_dir = attempt_dir(tmp_path, "study", number, 1)
            log = (run_dir / "output.log").read_text()
            assert log.splitlines() == [f"this is trial {number}", f"a program of trial {number}"]
            assert journal.read(run_dir) == ({1: float(number)}, {"number": number}, {}, {})
            seen.append(outcome.attrs)
    assert len({each["pid"] for each in seen}) == 1
    assert [each["before"] for each in seen] == [0, 1, 2]
    assert [each["lr"] for each in seen] == [0.0, 0.1, 0.2]
    assert seen[0]["random"] == seen[1]["random"] != seen[2]["random"]
    assert all_gone([seen[0]["pid"]])


def test_a_process_goes_on_after_a_pruned_trial_and_garbage_that_ends_its_processes(
    runner: Runner, tmp_path: Path
) -> None:
    pid = pid_of(runner, tmp_path, 0)
    assert outcome_of(runner, tmp_path, leaving("prune"), 1) == Pruned(None)
    collected = outcome_of(runner, tmp_path, leaving("garbage"), 2)
    assert isinstance(collected, Completed)
    assert (
        pids_of(tmp_path, 1) == [collected.attrs["pid"]] == [pid] == [pid_of(runner, tmp_path, 3)]
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("thread", "threads are still running (mine)"),
        ("process", "it left child processes"),
        ("daemon", "it left processes in other sessions"),
        ("cwd", "the working directory was changed"),
        ("environment", "environment variables were changed (MY_SETTING)"),
        ("limit", "resource limits were changed"),
        ("files", "it left more than half of the allowed files open"),
        ("stdout", "stdout or stderr was closed or replaced"),
    ],
)
def test_a_process_that_a_trial_left_unfit_is_replaced_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, why: str
) -> None:
    with running_with(LOOK, isolation="worker") as runner:
        outcome = outcome_of(runner, tmp_path, leaving(what), 0)
        assert isinstance(outcome, Completed)
        assert all_gone([outcome.attrs["pid"], *outcome.attrs["left"]])
        assert pid_of(runner, tmp_path, 1) == pid_of(runner, tmp_path, 2) != outcome.attrs["pid"]
    said = "runner.isolation=worker: the process of a trial is not used again: "
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(said)] == [
        said + why
    ]


def test_a_process_is_replaced_after_a_failure_and_after_an_attempt_was_terminated(
    runner: Runner, tmp_path: Path
) -> None:
    assert isinstance(outcome_of(runner, tmp_path, leaving("failure"), 0), Failed)
    [failed] = pids_of(tmp_path)
    assert not alive(failed)
    running = runner.start(make_job(tmp_path, objective("finishes_when_terminated"), number=1))
    [terminated] = pids_of(tmp_path, 1)
    running.terminate()
    assert running.outcome == Completed((0.5,))
    assert not alive(terminated)
    running = runner.start(make_job(tmp_path, objective("stops_when_asked"), number=2))
    [stopped] = pids_of(tmp_path, 2)
    running.ask_to_stop()
    assert finish(running)[0] == Interrupted("stopped when asked")
    assert not alive(stopped)
    assert len({failed, terminated, stopped, pid_of(runner, tmp_path, 3)}) == 4


def test_a_process_is_replaced_after_its_time_was_up(tmp_path: Path) -> None:
    with running_with(LOOK, isolation="worker", max_runtime_s=1.0, grace_s=0.2) as runner:
        first = pid_of(runner, tmp_path, 0)
        outcome = outcome_of(runner, tmp_path, objective("hangs_with_grandchild"), 1)
        assert isinstance(outcome, Failed)
        assert outcome.kind == "timeout"
        assert all_gone(pids_of(tmp_path, 1)[:2])
        assert pids_of(tmp_path, 1)[0] == first != pid_of(runner, tmp_path, 2)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_process_damaged_between_two_trials_fails_none(
    runner: Runner, tmp_path: Path, signum: int
) -> None:
    first = pid_of(runner, tmp_path, 0)
    os.kill(first, signum)
    assert pid_of(runner, tmp_path, 1) != first
    assert not alive(first)


def test_a_trial_that_is_over_says_nothing_more(runner: Runner, tmp_path: Path) -> None:
    assert isinstance(outcome_of(runner, tmp_path, leaving("reporter"), 0), Completed)
    lines = (attempt_dir(tmp_path, "study", 0, 1) / "journal.jsonl").read_text()
    outcome, messages = finish(runner.start(make_job(tmp_path, LOOK, number=1)))
    assert isinstance(outcome, Completed)
    assert messages == [Reported(1, 1.0), AttrSet("number", 1)]
    assert (attempt_dir(tmp_path, "study", 0, 1) / "journal.jsonl").read_text() == lines


def test_exit_functions_run_when_the_process_ends(tmp_path: Path) -> None:
    before = set(own_children())
    with running_with(LOOK, isolation="worker") as runner:
        outcome = outcome_of(runner, tmp_path, leaving("exit function"), 0)
        assert isinstance(outcome, Completed)
        assert pid_of(runner, tmp_path, 1) == outcome.attrs["pid"]
        exited = attempt_dir(tmp_path, "study", 0, 1) / "checkpoints" / "exited"
        assert not exited.exists()
        [keeper] = set(own_children()) - before
        pids = [keeper, *children_of(keeper)]
    assert exited.exists()
    assert all_gone(pids)
    assert (
        json.loads((attempt_dir(tmp_path, "study", 1, 1) / "result.json").read_text())["outcome"]
        == "completed"
    )
    wait_until(lambda: set(own_children()) == before)
