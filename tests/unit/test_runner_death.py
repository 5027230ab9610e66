"""A child never outlives its worker: the worker is killed, stopped or falls silent, with real
processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.model import Completed
from orchestrator.runner import attempt_dir, journal, read_result
from tests.support.running import ROOT, alive, all_gone, children_of, leads, pids_of
from tests.support.waiting import wait_until

_WORKER = """
import sys
from pathlib import Path
from orchestrator.runner import Runner
from tests.support.running import make_job, objective
runs, name, silence_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
runner = Runner(objective(name), grace_s=0.2, silence_s=silence_s)
running = runner.start(make_job(runs, objective(name)))
while running.outcome is None:
    running.poll(1.0)
print(running.outcome, flush=True)
runner.close()
"""


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    name, silence_s = request.param
    command = [sys.executable, "-c", _WORKER, str(tmp_path), name, str(silence_s)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("worker", [("hangs_with_grandchild", 60)], indirect=True)
def test_a_killed_workers_child_and_grandchild_are_gone_within_seconds(
    tmp_path: Path, worker: subprocess.Popen[str]
) -> None:
    child, grandchild, keeper = pids_of(tmp_path)
    assert children_of(worker.pid) == [keeper]
    [standby] = wait_until(lambda: {pid for pid in children_of(keeper) if leads(pid)} - {child})
    worker.kill()
    worker.wait()
    wait_until(lambda: all_gone([child, grandchild, standby, keeper]), timeout=10)


@pytest.mark.parametrize("worker", [("hangs_with_grandchild", 60)], indirect=True)
def test_a_keeper_killed_with_its_worker_takes_the_child_along(
    tmp_path: Path, worker: subprocess.Popen[str]
) -> None:
    child, grandchild, keeper = pids_of(tmp_path)
    [standby] = wait_until(lambda: {pid for pid in children_of(keeper) if leads(pid)} - {child})
    os.kill(worker.pid, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    worker.kill()
    wait_until(lambda: all_gone([child, standby]), timeout=10)
    os.kill(grandchild, signal.SIGKILL)  # nobody is left who could


@pytest.mark.parametrize("worker", [("hangs_with_grandchild", 0.8)], indirect=True)
def test_a_stopped_workers_child_is_ended_and_the_worker_learns_it_when_it_goes_on(
    tmp_path: Path, worker: subprocess.Popen[str]
) -> None:
    child, grandchild, keeper = pids_of(tmp_path)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: all_gone([child, grandchild]), timeout=15)
    assert alive(keeper)
    os.kill(worker.pid, signal.SIGCONT)
    output, _ = worker.communicate(timeout=30)
    assert "Interrupted(reason='the worker gave no sign of life for 0.8 s', lost=False)" in output
    assert worker.returncode == 0


@pytest.mark.parametrize("worker", [("result_then_hangs", 60)], indirect=True)
def test_a_result_survives_the_worker_that_was_to_deliver_it(
    tmp_path: Path, worker: subprocess.Popen[str]
) -> None:
    pids = pids_of(tmp_path)
    os.kill(worker.pid, signal.SIGSTOP)  # it cannot take the result any more
    run_dir = attempt_dir(tmp_path, "study", 0, 1)
    wait_until((run_dir / "result.json").exists)
    worker.kill()
    wait_until(lambda: all_gone(pids), timeout=10)
    assert read_result(run_dir) == Completed((0.75,))
    assert journal.read(run_dir) == ({1: 0.5}, {"note": "as sent"}, {}, {})
    assert json.loads((run_dir / "job.json").read_text())["number"] == 0
