"""A child stands by while a trial runs: the next trial begins in it at once, and what happens to it
harms no trial.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.model import Completed
from orchestrator.runner import Runner
from tests.support.running import (
    all_gone,
    children_of,
    finish,
    leads,
    make_job,
    objective,
    own_children,
    pids_of,
    running_with,
)
from tests.support.waiting import wait_until

SEE = objective("see")


def keeper_of(before: set[int]) -> int:
    [keeper] = set(own_children()) - before
    return keeper


def standby_of(keeper: int, *others: int) -> int:
    """The child that is at no attempt, once there is one."""
    [standby] = wait_until(lambda: {pid for pid in children_of(keeper) if leads(pid)} - set(others))
    return int(standby)


def blocked(pid: int) -> set[int]:
    """The signals that the process has blocked."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigBlk")), 16)
    return {number for number in signal.valid_signals() if mask & (1 << number - 1)}


def pid_of(runner: Runner, runs: Path, number: int = 0) -> int:
    outcome, _ = finish(runner.start(make_job(runs, SEE, number=number)))
    assert isinstance(outcome, Completed)
    assert isinstance(outcome.attrs["pid"], int)
    return outcome.attrs["pid"]


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_the_next_trial_runs_in_the_child_that_stood_by(tmp_path: Path, start: str) -> None:
    before = set(own_children())
    target = objective("stops_when_asked", value=1.0)
    with running_with(target, start=start) as runner:
        keeper = keeper_of(before)
        running = runner.start(make_job(tmp_path, target))
        [first] = pids_of(tmp_path)
        standby = standby_of(keeper, first)
        running.ask_to_stop()
        assert finish(running)[0] == Completed((1.0,))
        assert pid_of(runner, tmp_path, 1) == standby
        assert standby_of(keeper) != standby
        left = children_of(keeper)
    assert all_gone([keeper, *left])


def test_a_child_stands_by_before_the_first_trial(tmp_path: Path) -> None:
    before = set(own_children())
    with running_with(SEE) as runner:
        standby = standby_of(keeper_of(before))
        assert pid_of(runner, tmp_path) == standby


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_standby_that_was_killed_or_stopped_is_replaced_and_no_trial_fails(
    tmp_path: Path, signum: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(own_children())
    with running_with(SEE) as runner:
        keeper = keeper_of(before)
        for number in range(2):
            damaged = standby_of(keeper)
            os.kill(damaged, signum)
            assert pid_of(runner, tmp_path, number) != damaged
            assert all_gone([damaged])
        assert pid_of(runner, tmp_path, 2)
    assert not caplog.records


def test_a_stopped_standby_does_not_keep_a_runner_from_ending(tmp_path: Path) -> None:
    before = set(own_children())
    with running_with(SEE) as runner:
        keeper = keeper_of(before)
        standby = standby_of(keeper)
        os.kill(standby, signal.SIGSTOP)
        runner.close()
    assert all_gone([keeper, standby])


@pytest.mark.parametrize(("uses_cuda", "ahead"), [(False, True), (True, False)])
def test_a_standby_imports_ahead_unless_that_would_take_the_device(
    tmp_path: Path, uses_cuda: bool, ahead: bool
) -> None:
    (tmp_path / "torch.py").write_text(
        f"class cuda:\n    is_initialized = staticmethod(lambda: {uses_cuda})\n"
        "def manual_seed(seed): pass\ndef set_num_threads(count): pass\n"
    )
    (tmp_path / "my_import.py").write_text(
        "import os, pathlib, time, torch\n"
        "imported = time.monotonic_ns()\n"
        "with open('imports', 'a') as file: file.write(f'{os.getpid()}\\n')\n"
        "def train(cfg, trial):\n"
        "    while trial.number == 0 and not trial.should_stop(): time.sleep(0.005)\n"
        "    return {'score': 1.0, 'imported': str(imported)}\n"
    )
    target = {"_target_": "my_import.train"}
    before = set(own_children())
    with running_with(target, cwd=tmp_path, start="spawn") as runner:
        running = runner.start(make_job(tmp_path / "runs", target))
        standby = wait_until(lambda: children_of(keeper_of(before))[1:])[0]
        if ahead:
            wait_until(lambda: str(standby) in (tmp_path / "imports").read_text().split())
        running.ask_to_stop()
        finish(running)
        started = time.monotonic_ns()
        outcome, _ = finish(runner.start(make_job(tmp_path / "runs", target, number=1)))
    assert isinstance(outcome, Completed)
    assert (int(str(outcome.attrs["imported"])) < started) == ahead


def test_code_that_changed_while_a_child_stood_by_is_the_code_that_runs(tmp_path: Path) -> None:
    module = tmp_path / "my_code.py"
    code = (
        "import os, time\n"
        "with open('imports', 'a') as file: file.write(f'{os.getpid()}\\n')\n"
        "def train(cfg, trial):\n"
        "    open('begun', 'w').close()\n"
        "    while trial.number == 0 and not trial.should_stop(): time.sleep(0.005)\n"
        "    print('written by', os.getpid())\n"
        "    return 1.0\n"
    )
    module.write_text(code)
    target = {"_target_": "my_code.train"}
    before = set(own_children())
    with running_with(target, cwd=tmp_path, start="spawn") as runner:
        running = runner.start(make_job(tmp_path / "runs", target))
        standby = wait_until(lambda: children_of(keeper_of(before))[1:])[0]
        wait_until(
            lambda: (
                (tmp_path / "begun").exists()
                and str(standby) in (tmp_path / "imports").read_text().split()
            )
        )
        module.write_text(code.replace("return 1.0", "return 2.25"))
        running.ask_to_stop()
        assert finish(running)[0] == Completed((1.0,))
        job = make_job(tmp_path / "runs", target, number=1)
        assert finish(runner.start(job))[0] == Completed((2.25,))
    log = (job.run_dir / "output.log").read_text()
    assert log.startswith("written by ")
    assert str(standby) not in log


def test_code_that_changed_while_a_child_imported_it_is_the_code_that_runs(
    tmp_path: Path,
) -> None:
    # The first imports of the module change its file, whichever processes do them.
    (tmp_path / "my_code.py").write_text(
        "with open('imports', 'a+') as file:\n"
        "    file.write('x')\n"
        "    count = file.tell()\n"
        "if count < 4:\n"
        "    with open(__file__, 'a') as file: file.write(f'VALUE = {count}.0\\n')\n"
        "VALUE = 0.0\n"
        "def train(cfg, trial):\n"
        "    return VALUE\n"
    )
    target = {"_target_": "my_code.train"}
    with running_with(target, cwd=tmp_path, start="spawn") as runner:
        outcome, _ = finish(runner.start(make_job(tmp_path / "runs", target)))
    assert outcome == Completed((3.0,))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells which signals are blocked"
)
def test_a_keeper_hears_its_children_end_whatever_signals_its_starter_had_blocked() -> None:
    before = set(own_children())
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        with running_with(SEE):
            keeper = keeper_of(before)
            # all are while it forks
            wait_until(lambda: not blocked(keeper) & {signal.SIGCHLD, signal.SIGTERM})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
