"""What takes an attempt away is no verdict on its trial: it is interrupted, and the runner says
whether it counts as lost.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Interrupted
from orchestrator.runner import Job, Runner, attempt_dir
from orchestrator.runner.protocol import rundir
from tests.support.running import (
    alive,
    all_gone,
    finish,
    make_job,
    objective,
    pids_of,
    running_with,
)
from tests.support.waiting import wait_until


def test_a_worker_that_waits_for_something_else_keeps_its_child_alive(tmp_path: Path) -> None:
    target = objective("stops_when_asked", value=1.0)
    with running_with(target, silence_s=0.5) as runner:
        running = runner.start(make_job(tmp_path, target))
        [child] = pids_of(tmp_path)
        threading.Event().wait(2.0)  # as in a driver that waits for a frozen database
        assert alive(child)
        running.ask_to_stop()
        assert finish(running)[0] == Completed((1.0,))
    wait_until(lambda: "sign-of-life" not in {thread.name for thread in threading.enumerate()})


def test_a_worker_that_waits_in_terminate_is_heard_to_the_end_of_the_grace(tmp_path: Path) -> None:
    with running_with(objective("cleans_up"), silence_s=0.5, grace_s=20) as runner:
        running = runner.start(make_job(tmp_path, objective("cleans_up")))
        pids_of(tmp_path)
        running.terminate("given back")
        assert running.outcome == Interrupted("given back")


def test_a_killed_keeper_interrupts_the_attempt_and_is_replaced(tmp_path: Path) -> None:
    with running_with(objective("hangs_with_grandchild")) as runner:
        running = runner.start(make_job(tmp_path, objective("hangs_with_grandchild")))
        child, grandchild, keeper = pids_of(tmp_path)
        os.kill(keeper, signal.SIGKILL)
        outcome, _ = finish(running)
        assert outcome == Interrupted(
            "the keeper, the process between worker and child, died", lost=True
        )
        wait_until(lambda: all_gone([child, grandchild]))
        after = finish(runner.start(make_job(tmp_path, objective("give", what="float"), number=1)))[
            0
        ]
        assert after == Completed((0.5,))


def test_a_hanging_keeper_ended_by_a_worker_that_drains_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runner.running.MARGIN_S", 0.2)
    with running_with(objective("hangs_with_grandchild"), grace_s=0.2) as runner:
        running = runner.start(make_job(tmp_path, objective("hangs_with_grandchild")))
        child, grandchild, keeper = pids_of(tmp_path)
        running.poll(0)
        os.kill(keeper, signal.SIGSTOP)
        running.terminate("the worker was told to end")
        assert running.outcome == Interrupted("the worker was told to end")
        wait_until(lambda: all_gone([child, grandchild]))


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_a_run_directory_removed_before_the_child_begins_is_a_lost_attempt_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    runs = tmp_path / "runs"
    target = objective("give", what="float")
    prepare = rundir.prepare

    def prepare_and_lose(job: Job) -> Path:
        path = prepare(job)
        shutil.rmtree(runs)
        return path

    with running_with(target, start=start) as runner:
        with monkeypatch.context() as patch:
            patch.setattr(rundir, "prepare", prepare_and_lose)
            outcome, _ = finish(runner.start(make_job(runs, target)))
        job_path = attempt_dir(runs, "study", 0, 1) / "job.json"
        reason = (
            f"its run directory vanished before it started: No such file or directory ({job_path})"
        )
        assert outcome == Interrupted(reason, lost=True)
        assert finish(runner.start(make_job(runs, target)))[0] == Completed((0.5,))


def test_a_module_broken_meanwhile_is_a_lost_attempt_and_found_by_the_next_check(
    tmp_path: Path,
) -> None:
    module = tmp_path / "my_objective.py"
    good = "def train(cfg, trial):\n    return 0.5\n"
    module.write_text(good)
    target = {"_target_": "my_objective.train"}
    with running_with(target, cwd=tmp_path, start="spawn") as runner:
        for body, problem in [
            ("def train(:\n    # broken", "SyntaxError"),
            (None, "No module named"),
            ("train = None", "callable"),
        ]:
            shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
            module.unlink() if body is None else module.write_text(body)
            outcome, _ = finish(runner.start(make_job(tmp_path / "runs", target)))
            assert isinstance(outcome, Interrupted)
            assert outcome.lost
            assert outcome.reason.startswith(
                "the objective no longer imports: 'my_objective.train' "
            )
            assert problem in outcome.reason
            with pytest.raises(ConfigError, match=problem):
                runner.check()
            module.write_text(good)
            runner.check()
        assert finish(runner.start(make_job(tmp_path / "runs", target)))[0] == Completed((0.5,))


def test_a_full_disk_names_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = make_job(tmp_path, objective("give", what="float"))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        Runner(job.objective).start(job)
    assert str(caught.value) == f"No space left on device ({job.run_dir})"
    assert caught.value.errno == errno.ENOSPC


def test_a_runs_directory_that_is_a_file_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    job = make_job(tmp_path / "runs", objective("give", what="float"))
    with pytest.raises(OSError, match="Not a directory") as caught:
        Runner(job.objective).start(job)
    assert str(tmp_path / "runs") in str(caught.value)
