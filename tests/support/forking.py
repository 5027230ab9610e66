"""`orchestrator` in processes of its own that cost milliseconds: forks of one that has imported the
program already.

A fresh interpreter takes one to three seconds of a core until it begins to do what it was told. The
forks have the environment, working directory, standard streams, session, signals, arguments and
exit code that it would have; see `become`. What needs the real command line or `/proc/PID/environ`
asks for a fresh interpreter: ``Commands(…, fresh=True)``.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn
from unittest import mock

import pytest

from orchestrator.runner.system import linux
from orchestrator.signals import held_back

_ROOT = Path(__file__).parents[2]
_PRELOADED = "tests.support.preloaded"


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A fork of the server of this test process, in which `target` runs; the first call starts the
    server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
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
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    _prepare(environment, cwd)
    sys.argv[:] = ["orchestrator", *arguments]
    from orchestrator.cli import local_workers
    from orchestrator.runner import keeper_handle

    forks = SimpleNamespace(**{**vars(subprocess), "Popen": _LaunchedWorker})
    mock.patch.object(local_workers, "subprocess", forks).start()
    if arguments[0] in ("launch", "worker"):
        # Now, while this process has no other thread.
        forks = SimpleNamespace(**{**vars(subprocess), "Popen": _Nursery().popen})
        mock.patch.object(keeper_handle, "subprocess", forks).start()
    try:
        runpy.run_module("orchestrator", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _prepare(environment: Mapping[str, str], cwd: Path) -> None:
    """Gives this fork the session, directory, environment, module path and standard streams of a
    fresh interpreter, whose outputs are file descriptors 1 and 2.
    """
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
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


def forget() -> None:
    """Leaves behind what a fork has of its parent and a fresh interpreter has not."""
    import numpy as np

    np.random.seed()  # all forks would share its state; random itself sees to that
    atexit._clear()
    gc.freeze()  # what the parent's garbage closes has other owners here
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Nursery:
    """A child of this process, forked while that had no threads, that becomes the first keeper that
    is started here; later ones are fresh interpreters.
    """

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        with theirs, held_back():
            self._pid: int | None = os.fork()
            if self._pid == 0:
                self._orders.close()
                _wait_for_order(theirs)

    def popen(
        self,
        command: Sequence[str],
        *,
        stdout: IO[bytes],
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        cwd: Path | None,
        **settings: Any,
    ) -> _ForkedKeeper | subprocess.Popen[Any]:
        """In place of `subprocess.Popen`, for a keeper."""
        assert list(command[:3]) == [sys.executable, "-m", "orchestrator.runner.keeper"]
        assert settings == {
            "stdin": subprocess.DEVNULL,
            "stderr": stdout,
            "start_new_session": True,
        }
        pid, self._pid = self._pid, None
        order = pickle.dumps((command[3:], dict(env), cwd or Path.cwd(), list(pass_fds)))
        if pid is not None:
            with self._orders, contextlib.suppress(OSError):  # a signal to all has ended it
                socket.send_fds(
                    self._orders, [len(order).to_bytes(4, "big")], [stdout.fileno(), *pass_fds]
                )
                self._orders.sendall(order)
                if self._orders.recv(1):
                    return _ForkedKeeper(pid)
        return subprocess.Popen(
            command, stdout=stdout, pass_fds=pass_fds, env=env, cwd=cwd, **settings
        )


class _ForkedKeeper:
    """What `_Nursery` returns, with as much of a `subprocess.Popen`'s face as the worker needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() >= until:
                assert timeout is not None
                raise subprocess.TimeoutExpired("a forked keeper", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            reaped, status = os.waitpid(self.pid, os.WNOHANG)
            if reaped:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _wait_for_order(orders: socket.socket) -> NoReturn:
    """Becomes the keeper that is asked for, or ends with the process that would ask."""
    head, received, _, _ = socket.recv_fds(orders, 4, 64)
    if not head:
        os._exit(0)
    size, data = int.from_bytes(head, "big"), b""
    while len(data) < size:
        data += orders.recv(size - len(data))
    arguments, environment, cwd, numbers = pickle.loads(data)
    orders.send(b"x")
    orders.detach()
    keep = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for fd in received]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(keep[0], 1)
    os.dup2(keep[0], 2)
    os.closerange(3, 500)
    for fd, number in zip(keep[1:], numbers, strict=True):
        os.dup2(fd, number)
    os.closerange(500, 500 + 2 * len(keep))
    code = 0
    try:
        _prepare(environment, cwd)
        sys.argv[:] = ["orchestrator.runner.keeper", *arguments]
        # It would copy what it shares with all forks, a hundred megabytes; see `preloaded`.
        mock.patch.object(linux, "gather_pages").start()
        runpy.run_module("orchestrator.runner.keeper", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else end.code is not None
    except BaseException:  # noqa: BLE001 - ends as Python does
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
