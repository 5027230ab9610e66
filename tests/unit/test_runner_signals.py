"""Signals that reach keeper, child, program and helpers as well as the worker: they mean what the
worker was told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.model import Completed, Failed, Interrupted, Outcome
from orchestrator.runner import EndRequest, Running, attempt_dir, read_result
from orchestrator.signals import ENDING
from tests.support.running import alive, finish, make_job, pids_of, running_with
from tests.support.waiting import wait_until

LONG_S = 60.0
"""A moment that is never over: the test decides when the worker is told."""


def target(name: str) -> dict[str, Any]:
    return {"_target_": f"tests.support.signalled.{name}"}


def program(script: str) -> dict[str, Any]:
    braces = script.replace("{", "{{").replace("}", "}}")
    return {
        "command": ["sh", "-c", 'cd "$ORCHESTRATOR_TRIAL_CHECKPOINT_DIR"; ' + braces],
        "overrides": False,
    }


SAY = "echo [$$] > .p; mv .p pids.json; "


class Worker:
    """What the runner is told of its worker."""

    request = EndRequest.NONE

    def __call__(self) -> EndRequest:
        return self.request


def processes(runs: Path, number: int = 0) -> list[psutil.Process]:
    """The keeper and all that it started."""
    child = psutil.Process(pids_of(runs, number)[0])
    keeper = next(p for p in [child, *child.parents()] if p.ppid() == os.getpid())
    return [keeper, *keeper.children(recursive=True)]


def send(to: Iterable[psutil.Process], signum: int) -> None:
    for process in to:
        # what the keeper runs for itself, such as git
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)


def strike(runs: Path, signum: int, number: int = 0) -> None:
    """Sends the signal to the keeper and to all that it started, as a batch system does."""
    send(processes(runs, number), signum)


def checkpoints(runs: Path, number: int = 0) -> Path:
    return attempt_dir(runs, "study", number, 1) / "checkpoints"


def stop(running: Running, worker: Worker) -> Outcome:
    worker.request = EndRequest.STOP
    running.ask_to_stop()
    return finish(running)[0]


def polled(running: Running, seconds: float) -> None:
    """Serves the attempt for so long; it must not end."""
    began = time.monotonic()
    wait_until(lambda: running.poll(0.05) is None or time.monotonic() - began > seconds)
    assert running.outcome is None


@pytest.mark.parametrize(
    ("signum", "options"),
    [
        *((signum, {}) for signum in ENDING),
        *((signum, {"start": "spawn"}) for signum in (signal.SIGTERM, signal.SIGUSR1)),
        (signal.SIGTERM, {"isolation": "worker"}),
    ],
)
def test_the_objective_stops_when_it_is_asked_whatever_signal_came_before(
    tmp_path: Path, signum: signal.Signals, options: dict[str, Any]
) -> None:
    worker, objective = Worker(), target("saves_when_asked")
    with running_with(objective, moment_s=LONG_S, **options) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        [child] = pids_of(tmp_path)
        strike(tmp_path, signum)
        polled(running, 0.1)
        assert alive(child)
        assert stop(running, worker) == Interrupted("stopped when asked")
        assert (checkpoints(tmp_path) / "saved").exists()
        (checkpoints(tmp_path, 1)).mkdir(parents=True)
        (checkpoints(tmp_path, 1) / "saved").touch()
        assert finish(runner.start(make_job(tmp_path, objective, number=1)))[0] == Completed(
            (2.0,)
        ), "the keeper serves on"


@pytest.mark.parametrize("signum", ENDING)
def test_a_program_that_a_signal_to_all_ends_is_interrupted_once_the_worker_learns_of_it(
    tmp_path: Path, signum: signal.Signals
) -> None:
    worker, objective = Worker(), program(SAY + "exec sleep 300")
    with running_with(objective, moment_s=LONG_S) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        pids = pids_of(tmp_path)
        strike(tmp_path, signum)
        wait_until(lambda: running.poll(0.05) is None or not alive(pids[0]))
        polled(running, 0.1)
        worker.request = EndRequest.LEAVE if signum == signal.SIGINT else EndRequest.STOP
        outcome, _ = finish(running)
    assert outcome == Interrupted(
        f"it failed while it was being ended: the program was killed by {signum.name}"
    )


def test_what_a_program_says_after_sigterm_to_all_is_no_result(tmp_path: Path) -> None:
    worker, objective = (
        Worker(),
        program(
            "trap 'exit 0' TERM; echo '{\"value\": 1}'; " + SAY + "while :; do sleep 0.01; done"
        ),
    )
    with running_with(objective, moment_s=LONG_S) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        [pid] = pids_of(tmp_path)
        strike(tmp_path, signal.SIGTERM)
        wait_until(lambda: running.poll(0.05) is None or not alive(pid))
        assert stop(running, worker) == Interrupted("stopped when asked")


def test_what_a_program_says_is_no_result_either_if_it_is_the_first_to_get_sigterm(
    tmp_path: Path,
) -> None:
    worker, objective = (
        Worker(),
        program(
            "trap 'exit 0' TERM; echo '{\"value\": 1}'; " + SAY + "while :; do sleep 0.01; done"
        ),
    )
    with running_with(objective, moment_s=10 * LONG_S) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        [pid] = pids_of(tmp_path)
        others = [process for process in processes(tmp_path) if process.pid != pid]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: running.poll(0.05) is None or not alive(pid))
        send(others, signal.SIGTERM)
        assert stop(running, worker) == Interrupted("stopped when asked")


def test_a_program_that_ends_well_where_only_it_got_a_signal_has_a_result(tmp_path: Path) -> None:
    objective = program("trap '' TERM; echo '{\"value\": 1}'; kill -TERM $PPID; exit 0")
    with running_with(objective, moment_s=0.3) as runner:
        assert finish(runner.start(make_job(tmp_path, objective)))[0] == Completed((1.0,))


@pytest.mark.parametrize("by_all", [True, False])
def test_a_program_gets_sigterm_once(tmp_path: Path, by_all: bool) -> None:
    count = (
        "trap 'echo told >> told' TERM; " + SAY + "while [ ! -e go ]; do sleep 0.01; done; exit 1"
    )
    worker, objective = Worker(), program(count)
    with running_with(objective, moment_s=LONG_S) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        pids_of(tmp_path)
        if by_all:
            strike(tmp_path, signal.SIGTERM)
        worker.request = EndRequest.STOP
        running.ask_to_stop()
        wait_until(lambda: running.poll(0.05) is None or (checkpoints(tmp_path) / "told").exists())
        polled(running, 1.0)
        (checkpoints(tmp_path) / "go").touch()
        assert finish(running)[0] == Interrupted("stopped when asked")
    assert (checkpoints(tmp_path) / "told").read_text() == "told\n"


def test_an_exception_from_a_signal_to_all_is_not_a_failure_and_leaves_none_to_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker, objective = Worker(), target("breaks_with_its_helper")
    with (
        running_with(objective, moment_s=LONG_S) as runner,
        caplog.at_level(logging.WARNING, "orchestrator"),
    ):
        running = runner.start(make_job(tmp_path, objective), worker)
        child, helper = pids_of(tmp_path)
        strike(tmp_path, signal.SIGTERM)
        wait_until(lambda: running.poll(0.05) is None or not (alive(child) or alive(helper)))
        polled(running, 0.1)
        assert read_result(attempt_dir(tmp_path, "study", 0, 1)) is None
        outcome = stop(running, worker)
    reason = "it failed while it was being ended: RuntimeError: the helper is gone"
    assert outcome == Interrupted(reason), "interrupted, and not counted as lost"
    assert "trial 0 failed while it was being ended and is given back" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("late", [False, True])
def test_a_failure_after_a_request_to_stop_is_given_back_and_counts_as_lost_if_it_comes_late(
    tmp_path: Path, late: bool
) -> None:
    worker, objective = Worker(), target("breaks_when_asked")
    with running_with(objective, moment_s=0.2 if late else LONG_S) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        pids_of(tmp_path)
        worker.request = EndRequest.STOP
        running.ask_to_stop()
        if late:
            polled(running, 0.3)
        (checkpoints(tmp_path) / "go").touch()
        given_back = Interrupted(
            "it failed while it was being ended: RuntimeError: no checkpoint", lost=late
        )
        assert finish(running)[0] == given_back
    assert read_result(attempt_dir(tmp_path, "study", 0, 1)) in (None, given_back)


def test_sigterm_to_the_process_of_a_trial_alone_ends_it_after_a_moment_and_that_is_a_failure(
    tmp_path: Path,
) -> None:
    objective = target("never_ends")
    with running_with(objective, moment_s=0.3) as runner:
        running = runner.start(make_job(tmp_path, objective))
        os.kill(pids_of(tmp_path)[0], signal.SIGTERM)
        outcome, _ = finish(running)
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("the process was killed by SIGTERM\n")
    assert outcome.causes == ("signal", "signal:SIGTERM")


def test_a_worker_that_only_lets_its_trial_finish_gets_its_result_and_its_failure(
    tmp_path: Path,
) -> None:
    worker = Worker()
    worker.request = EndRequest.LEAVE
    objective = target("ends_when_it_may")
    with running_with(objective, moment_s=0.3) as runner:
        running = runner.start(make_job(tmp_path, objective), worker)
        pids_of(tmp_path)
        strike(tmp_path, signal.SIGINT)
        polled(running, 0.5)
        (checkpoints(tmp_path) / "go").touch()
        assert finish(running)[0] == Completed((3.0,))
    late = program("trap '' INT; " + SAY + "while [ ! -e go ]; do sleep 0.01; done; exit 3")
    with running_with(late, moment_s=0.3) as runner:
        running = runner.start(make_job(tmp_path, late, number=1), worker)
        pids_of(tmp_path, 1)
        strike(tmp_path, signal.SIGINT, 1)
        polled(running, 0.5)
        (checkpoints(tmp_path, 1) / "go").touch()
        outcome, _ = finish(running)
    assert isinstance(outcome, Failed), "long after the signal it is a failure of its own"
    assert outcome.causes == ("exit", "exit:3")


def test_an_importing_keeper_survives_signals_and_the_child_keeps_the_modules_handlers(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, pathlib, signal, time\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2): "
        "os.kill(os.getpid(), n)\n"
        "noted = []\n"
        "signal.signal(signal.SIGUSR1, lambda n, f: noted.append(n))\n"
        "def train(cfg, trial):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGUSR2)\n"
        "    while not noted: time.sleep(0.01)\n"
        "    return len(noted)\n"
    )
    objective = {"_target_": "mine.train"}
    with running_with(objective, cwd=tmp_path) as runner:
        assert finish(runner.start(make_job(tmp_path / "runs", objective)))[0] == Completed((1.0,))
