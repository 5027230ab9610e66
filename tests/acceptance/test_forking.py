"""A forked command of the tests is what a user's own is: `Commands` may stand for it."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.store import Store
from tests.support import forking
from tests.support.commands import CONFIG, Commands, complaints
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance


def test_a_forked_command_says_and_returns_what_a_fresh_one_does(tmp_path: Path) -> None:
    forked = Commands(None, tmp_path, cwd=tmp_path)
    fresh = replace(forked, fresh=True)
    for words in (
        ("launch", f"--config-dir={CONFIG}", "experiment=tiny", "--dry-run"),
        ("launch", "budget.trails=3"),
    ):
        one, other = forked.run(*words), fresh.run(*words)
        assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
        assert complaints(one) == complaints(other)


def test_a_started_command_is_a_session_of_its_own_that_signals_end(
    commands: Commands, store: Store
) -> None:
    with commands.started("worker", "worker.poll_s=0.1") as worker:
        wait_until(lambda: [w.pid for w in store.reads.workers()] == [worker.pid], 60)
        assert psutil.Process(worker.pid).cwd() == str(commands.cwd)
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        said, _ = worker.communicate(timeout=60)
        assert (worker.wait(), worker.poll(), worker.returncode) == (0, 0, 0)
    assert "ended after 0 trials" in said
    with commands.started("worker") as worker:
        worker.kill()
        assert worker.wait(60) == -signal.SIGKILL


def test_the_workers_of_a_forked_launch_are_its_children(commands: Commands, store: Store) -> None:
    slow = ("objective._target_=tests.support.training.slow", "worker.count=1", "worker.drain_s=0")
    with commands.started("launch", f"--config-dir={CONFIG}", "experiment=tiny", *slow) as launch:
        (worker,) = wait_until(store.reads.workers, 60)
        assert psutil.Process(worker.pid).ppid() == launch.pid


def test_two_forks_draw_different_numbers() -> None:
    drawn = []
    for _ in range(2):
        reader, writer = Pipe(duplex=False)
        with reader, writer:
            forking.start(_draw, writer).join(60)
            drawn.append(json.loads(reader.recv_bytes()))
    assert drawn[0] != drawn[1]


def _draw(writer: Connection) -> None:
    forking.forget()
    writer.send_bytes(json.dumps(list(np.random.random(3))).encode())
