"""`orchestrator` in processes of its own that cost milliseconds: forks of one that has imported the
program already.

A fresh interpreter takes one to three seconds of a core until it begins to do what it was told. The
forks have the environment, working directory, standard streams, session, signals, arguments and
exit code that it would have; see `become`. What needs the real command line or `/proc/PID/environ`
asks for a fresh interpreter: ``Commands(…, fresh=True)``.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import pytest

_ROOT = Path(__file__).parents[2]
_PRELOAD = [
    "orchestrator.cli",
    "orchestrator.worker.worker",
    "orchestrator.dashboard",
    "tests.support.fleet",
]


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A fork of the server of this test process, in which `target` runs; the first call starts the
    server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    process = context.Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(_ROOT))  # where the server looks for the program
        process.start()
    return process


def become(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, stdout: int, stderr: int
) -> None:
    """Ends this process as ``python -m orchestrator ARGUMENTS`` would, whose outputs are these file
    descriptors.
    """
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    # Open for as long as the process lives.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    forget()
    found = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [
        str(cwd),
        *found,
        *(path for path in sys.path if path not in ("", str(cwd), *found)),
    ]
    sys.argv[:] = ["orchestrator", *arguments]
    from orchestrator.cli import local_workers

    forks = SimpleNamespace(**{**vars(subprocess), "Popen": _LaunchedWorker})
    mock.patch.object(local_workers, "subprocess", forks).start()
    try:
        runpy.run_module("orchestrator", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def forget() -> None:
    """Leaves behind what a fork has of its parent and a fresh interpreter has not."""
    import numpy as np

    np.random.seed()  # all forks would share its state; random itself sees to that
    atexit._clear()
    gc.freeze()  # what the parent's garbage closes has other owners here
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ForkedCommand(subprocess.Popen[str]):
    """A command that was forked, with the face of one that was spawned.

    Args:
        arguments: of `orchestrator`.
        environment: all of the process's environment variables.
        cwd: its working directory.
        stdout: its standard output; None for a pipe, that this object reads.
        stderr: its standard error; None for where its standard output goes.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self.args = ["orchestrator", *arguments]
        self.stdin = self.stdout = self.stderr = None
        if stdout is None:
            reader, stdout = os.pipe()
            self.stdout = open(reader, encoding="utf-8")  # noqa: SIM115 - the caller's, as any Popen's
        else:
            stdout = os.dup(stdout)
        with (
            Connection(stdout) as out,
            Connection(os.dup(stdout if stderr is None else stderr)) as err,
        ):
            self._process = start(_command, list(arguments), dict(environment), cwd, out, err)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:  # type: ignore[override]
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def communicate(
        self, input: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        assert input is None
        assert self.stdout is not None
        reading = ThreadPoolExecutor(1)
        try:
            said = reading.submit(self.stdout.read).result(timeout)
        except TimeoutError:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout) from None
        finally:
            reading.shutdown(wait=False)
        self.wait(timeout)
        return said, ""

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)


def _command(
    arguments: list[str],
    environment: dict[str, str],
    cwd: Path,
    stdout: Connection,
    stderr: Connection,
) -> None:
    with stdout, stderr:
        become(arguments, environment, cwd, stdout.fileno(), stderr.fileno())


class _LaunchedWorker:
    """What `launch` starts in place of an interpreter: a fork of itself, and so its child, as its
    workers must be.
    """

    def __init__(
        self, command: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str], **settings: Any
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "orchestrator"]
        assert settings == {
            "stdin": subprocess.DEVNULL,
            "stderr": stdout,
            "start_new_session": True,
        }
        process = multiprocessing.get_context("fork").Process(
            target=_worker, args=(command[3:], env, stdout.fileno())
        )
        process.start()
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _worker(arguments: Sequence[str], environment: Mapping[str, str], log: int) -> None:
    os.dup2(log, 1)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # above all the launch's connection to the database
    become(arguments, environment, Path.cwd(), 1, 1)
