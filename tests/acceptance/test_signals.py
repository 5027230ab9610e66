"""A worker or a launch and all that it started get a signal, as from a batch system, a service
manager or a closed terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
SAVES = {"_target_": "tests.support.signalled.saves_when_asked"}
NEVER_ENDS = {"_target_": "tests.support.signalled.never_ends"}
BREAKS = {"_target_": "tests.support.signalled.breaks_with_its_helper"}
DIES = {
    "command": [
        "sh",
        "-c",
        'cd "$ORCHESTRATOR_TRIAL_CHECKPOINT_DIR"; if [ "$ORCHESTRATOR_TRIAL_RESUMED" = true ]; '
        'then echo "$1"; exit; fi;'
        " echo [] > pids.json; exec sleep 300",
        "sh",
        '{{"value": 2}}',
    ],
    "overrides": False,
}
QUICK = ("worker.poll_s=0.1", "worker.slots_per_device=1")


def family(pid: int) -> list[int]:
    """The process and all that it started, itself first."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def send(pids: Sequence[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def trains(commands: Commands) -> bool:
    return bool(
        list(commands.directory.glob("runs/study-*/trial-0/attempt-1-*/checkpoints/pids.json"))
    )


def goes_on(commands: Commands, store: Store) -> None:
    """The study is not harmed: the trial was given back uncounted, and the next worker completes
    it.
    """
    [trial] = [t for t in store.reads.trials(store.reads.find("study").study_id) if t.attempts]
    assert (trial.number, trial.state, trial.worker_id, trial.failure) == (0, "RUNNING", None, None)
    assert store.reads.workers() == []
    store.rest()
    commands.check("worker", "worker.idle_timeout_s=0.2", *QUICK, timeout=60)
    study_id = store.reads.find("study").study_id
    assert [(t.state, t.values) for t in store.reads.trials(study_id)] == [("COMPLETE", (2.0,))]
    assert [a.outcome for a in store.reads.attempts(study_id, 0)] == ["interrupted", "completed"]
    assert store.doctor.examine().findings == ()


@pytest.mark.parametrize(
    ("objective", "signum", "first", "drain_s"),
    [
        (SAVES, signal.SIGTERM, "worker", 60),
        (SAVES, signal.SIGTERM, "children", 60),
        (SAVES, signal.SIGUSR1, "worker alone", 60),
        (NEVER_ENDS, signal.SIGTERM, "children", 0.5),
        (BREAKS, signal.SIGTERM, "worker", 60),
        (BREAKS, signal.SIGUSR2, "children", 60),
        (DIES, signal.SIGTERM, "worker", 60),
        (DIES, signal.SIGTERM, "children", 60),
        (DIES, signal.SIGINT, "children", 60),
        (DIES, signal.SIGHUP, "worker", 60),
    ],
)
def test_a_signal_to_the_worker_and_to_all_that_it_started_gives_the_trial_back(
    commands: Commands,
    store: Store,
    objective: dict[str, object],
    signum: signal.Signals,
    first: str,
    drain_s: float,
) -> None:
    store.studies.launch(spec(cells=1, objective=objective, runner=replace(RUNNER, max_attempts=1)))
    store.rest()
    with commands.started("worker", f"worker.drain_s={drain_s}", *QUICK) as worker:
        wait_until(lambda: trains(commands), 60)
        pids = family(worker.pid)
        send({"worker": pids, "children": pids[::-1], "worker alone": pids[:1]}[first], signum)
        assert worker.wait(timeout=40) == 0, worker.communicate()[0]
    goes_on(commands, store)


def test_children_that_get_the_signal_a_second_before_their_worker_are_not_held_to_have_failed(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec(cells=1, objective=BREAKS, runner=replace(RUNNER, max_attempts=1)))
    store.rest()
    with commands.started("worker", *QUICK) as worker:
        wait_until(lambda: trains(commands), 60)
        send(family(worker.pid)[1:], signal.SIGTERM)
        child = next(commands.directory.glob("runs/study-*/trial-0/attempt-1-*")) / "output.log"
        wait_until(lambda: "the helper is gone" in child.read_text())
        assert store.reads.find("study").active
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=40) == 0, worker.communicate()[0]
    goes_on(commands, store)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_launch_and_all_its_processes_signalled_at_once_leave_the_study_to_go_on(
    commands: Commands, store: Store, signum: signal.Signals
) -> None:
    words = (
        "study.name=study",
        "objective._target_=tests.support.signalled.breaks_with_its_helper",
        "+a=1",
        "budget.per_cell=1",
    )
    with commands.started(
        "launch", *words, "budget.trials=1", "worker.count=1", "worker.drain_s=60"
    ) as launch:
        wait_until(lambda: trains(commands), 60)
        send(family(launch.pid), signum)
        assert launch.wait(timeout=60) == 130, launch.communicate()[0]
    goes_on(commands, store)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_end_while_an_objective_is_imported_does_not_wait_for_that(
    commands: Commands, store: Store, signum: signal.Signals
) -> None:
    store.studies.launch(
        spec(cells=1, objective={"_target_": "tests.support.hangs_at_import.train"})
    )
    store.rest()
    with commands.started("worker", "worker.heartbeat_s=0.2", *QUICK) as worker:
        importing = "importing the objective of study"
        wait_until(lambda: importing in [told.doing for told in store.reads.workers()], 60)
        pids = family(worker.pid)
        worker.send_signal(signum)
        assert worker.wait(timeout=60) == 0, worker.communicate()[0]
    assert store.reads.workers() == [], "it took its leave"
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))


@pytest.mark.parametrize(("command", "code"), [("worker", 0), ("dashboard", 0), ("launch", 130)])
def test_told_to_end_while_it_is_still_imported_a_command_ends_in_order(
    tmp_path: Path, command: str, code: int
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "yaml.py").write_text(
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(300)\n"
    )
    commands = Commands(None, tmp_path, fresh=True)
    environment = commands.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        begun.unlink(missing_ok=True)
        process = subprocess.Popen(
            commands.line(command), env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(begun.exists)
            process.send_signal(signum)
            assert process.wait(30) == code
            assert process.communicate()[1] == ""
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "on_exit"), reason="glibc has on_exit")
@pytest.mark.parametrize(
    ("command", "signum"), [("worker", signal.SIGTERM), ("launch", signal.SIGUSR1)]
)
def test_a_signal_while_python_takes_its_leave_changes_no_exit_code(
    command: str, signum: signal.Signals
) -> None:
    script = (
        f"import ctypes, sys; sys.argv = ['orchestrator', '{command}']; import "
        "orchestrator.__main__\n"
        # it gets the exit code as its argument
        "libc = ctypes.CDLL(None); libc.on_exit(getattr(libc, 'raise'), None)\n"
        f"sys.exit({signum.value})"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == signum


def test_a_launch_whose_terminal_closes_gives_its_trials_back(
    commands: Commands, store: Store
) -> None:
    words = (
        "study.name=study",
        "objective._target_=tests.support.signalled.saves_when_asked",
        "+a=1",
        "budget.per_cell=1",
    )
    line = commands.line("launch", *words, "budget.trials=1", "worker.count=1", "worker.drain_s=60")
    ours, theirs = pty.openpty()
    tty = os.ttyname(theirs)
    process = subprocess.Popen(
        # a session leader's first terminal becomes its own
        ["sh", "-c", f'exec "$@" <{tty} >{tty} 2>&1', "sh", *line],
        env=commands.environment(),
        cwd=commands.cwd,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        wait_until(lambda: trains(commands), 60)
        os.close(ours)
        assert process.wait(60) == 130
    finally:
        process.kill()
    goes_on(commands, store)
