"""The keeper: between worker and child, so that a child can neither outlive its worker nor take it down.

One process per worker and study. It imports the objective once (a child is then a fork that takes milliseconds, with torch
warm), never calls it, and has one duty: to end the child's whole process group when the worker says so, dies or falls silent,
or when the trial's time is up. It works while user code holds the interpreter lock, for it runs none.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import ConfigError
from orchestrator.runner import child, linux, rundir
from orchestrator.runner.channel import Channel, Message, wait_readable
from orchestrator.runner.contract import KeeperOptions
from orchestrator.runner.output import Output, flush_streams, open_streams
from orchestrator.runner.target import check_call, describe_import_error, locate

_TICK_S: Final = 1.0
_CLEANUP_S: Final = 3.0
_DRAIN_S: Final = 1.5


@dataclass
class _Attempt:
    """The child that runs now."""

    pid: int
    ends_at: float | None
    grace_s: float
    oom_kills: int
    output: Output
    process: subprocess.Popen[bytes] | None = None
    cause: str | None = None
    asked: bool = False
    kill_at: float | None = None
    peak_bytes: int = 0

    def signal_group(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:  # it is younger than its group: the fork has not come to setsid yet
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                return
        except PermissionError:  # macOS says so of a group of zombies
            return

    def end(self, cause: str) -> None:
        """Asks the group to end, and sees to it `grace_s` later; the first cause given stays."""
        if not self.asked:
            self.asked = True
            self.signal_group(signal.SIGTERM)
        self.cause = self.cause or cause
        self.end_within(self.grace_s)

    def end_within(self, seconds: float) -> None:
        """Leaves the child `seconds` from now to end by itself."""
        at = time.monotonic() + seconds
        self.kill_at = at if self.kill_at is None else min(at, self.kill_at)


@dataclass(frozen=True)
class _Fork:
    """Returned by `Keeper.serve` in the child, which leaves the keeper's stack behind."""

    sock: socket.socket
    job_path: Path
    keeper_pid: int


class Keeper:
    def __init__(self, channel: Channel, options: KeeperOptions) -> None:
        self._channel = channel
        self._options = options
        self._pid = os.getpid()
        self._own = linux.own_children()  # started by the objective's import: not ours to end
        self._attempt: _Attempt | None = None
        self._leaving = False
        self._heard_at = time.monotonic()
        self._wake, self._wake_writer = socket.socketpair()
        for end in (self._wake, self._wake_writer):
            end.setblocking(False)

    def serve(self) -> _Fork | None:
        """Runs attempts until the worker is gone, then returns None; in a forked child it returns what to run there."""
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, lambda *_: None)  # only to be woken
        while self._attempt is not None or not self._leaving:
            self._wait()
            for message in self._channel.receive():
                self._heard_at = time.monotonic()
                if (fork := self._obey(message)) is not None:
                    return fork
            # SIGTERM to a whole service reaches us too: as long as the worker lives, it is the worker that decides.
            if self._channel.closed or os.getppid() != self._options.worker_pid:
                self._leaving = True
                if self._attempt is not None:
                    self._attempt.end("the worker is gone")
            self._enforce()
            self._reap()
        return None

    def _wait(self) -> None:
        now = time.monotonic()
        until = now + _TICK_S
        if self._attempt is not None:
            until = min([until, *(at for at in (self._attempt.ends_at, self._attempt.kill_at) if at is not None)])
        wait_readable([self._wake.fileno(), *([] if self._channel.closed else [self._channel])], until - now)
        try:
            while self._wake.recv(4096):
                pass
        except BlockingIOError:
            pass
        # Slept far too long: we were stopped ourselves (machine suspended, container frozen), so the silence was ours.
        overslept = time.monotonic() - until
        if overslept > _TICK_S:
            self._heard_at += overslept

    def _obey(self, message: Message) -> _Fork | None:
        attempt = self._attempt
        match message.get("do"):
            case "start" if attempt is None and not self._leaving:
                return self._start(message)
            case "terminate" if attempt is not None:
                attempt.end("terminated")
            case "linger" if attempt is not None:  # the result is there; what the process still does is not waited for
                attempt.end_within(self._options.grace_s)
            case "quit":
                self._leaving = True
                if attempt is not None:
                    attempt.end("terminated")
        return None

    def _start(self, message: Message) -> _Fork | None:
        sock = socket.socket(fileno=self._channel.fds.pop(0))
        job_path = Path(message["job"])
        limit = message["max_runtime_s"]
        oom_kills = linux.oom_kills()
        printed, output = os.pipe()
        process = None
        if self._options.start == "spawn":
            process = self._spawn(sock, job_path, output)
            pid = process.pid
        else:
            flush_streams()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of native threads, which `_reason_to_spawn` judged
                pid = os.fork()
            if pid == 0:
                os.close(printed)
                return self._become_child(sock, job_path, output)
        sock.close()
        os.close(output)
        ends_at = None if limit is None else time.monotonic() + limit
        log = Output(printed, rundir.log_path(job_path.parent), message["log_limit_bytes"])
        self._attempt = _Attempt(pid, ends_at, self._options.grace_s, oom_kills, log, process)
        self._channel.send({"is": "started", "pid": pid})
        return None

    def _become_child(self, sock: socket.socket, job_path: Path, output: int) -> _Fork:
        os.setsid()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        self._channel.close()
        self._wake.close()
        self._wake_writer.close()
        _forget_exit_functions()
        return _Fork(sock, job_path, self._pid)

    def _spawn(self, sock: socket.socket, job_path: Path, output: int) -> subprocess.Popen[bytes]:
        arguments = [str(sock.fileno()), str(job_path), str(self._pid), str(self._options.threads or 0)]
        command = [sys.executable, "-m", "orchestrator.runner.child", *arguments]
        descriptors = (sock.fileno(), *self._options.held)
        nothing = subprocess.DEVNULL
        return subprocess.Popen(
            command, stdin=nothing, stdout=output, stderr=output, pass_fds=descriptors, start_new_session=True
        )

    def _enforce(self) -> None:
        attempt, now = self._attempt, time.monotonic()
        if attempt is None:
            return
        if attempt.ends_at is not None and now >= attempt.ends_at:
            attempt.ends_at = None
            attempt.end("timeout")
        if now - self._heard_at >= self._options.silence_s:
            attempt.end("silence")
        if attempt.kill_at is not None and now >= attempt.kill_at:
            attempt.kill_at = now + _TICK_S  # again, should it have forked in this very moment
            attempt.signal_group(signal.SIGKILL)

    def _reap(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        self._reap_adopted(attempt.pid)
        if (status := _collect(attempt)) is None:
            return
        self._attempt = None
        code = os.waitstatus_to_exitcode(status)
        if attempt.process is not None:
            attempt.process.returncode = code
        self._end_adopted()
        if (problem := attempt.output.finish(_DRAIN_S)) is not None:
            self._channel.send({"is": "note", "message": problem})
        out_of_memory = linux.oom_kills() > attempt.oom_kills
        ended = {"code": code, "cause": attempt.cause, "oom": out_of_memory, "peak_bytes": attempt.peak_bytes}
        self._channel.send({"is": "ended", **ended})

    def _reap_adopted(self, leader: int | None) -> set[int]:
        """Reaps the ended ones among the orphans we adopted; returns those that live."""
        orphans = linux.own_children() - self._own - {leader}
        for pid in list(orphans):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    orphans.discard(pid)
        return orphans

    def _end_adopted(self) -> None:
        """Kills and reaps what the child left running, also those that went into sessions of their own: all are ours now."""
        give_up_at = time.monotonic() + _CLEANUP_S
        while (left := self._reap_adopted(None)) and time.monotonic() < give_up_at:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def main() -> None:
    """``python -m orchestrator.runner.keeper OPTIONS``: serves the worker at the other end of the control socket."""
    options = KeeperOptions.from_argument(sys.argv[1])
    linux.die_with_parent(signal.SIGTERM, options.worker_pid)
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=options.control))
    open_streams()
    del sys.argv[1:]  # a module that reads them when it is imported must not meet ours
    if not options.checked:
        if (problem := _import_objective(options)) is not None:
            channel.send({"is": "broken", "message": problem})
            return
        reason = _reason_to_spawn() if options.start == "forkserver" else None
        if reason is not None:
            channel.send({"is": "note", "message": f"every trial starts a fresh interpreter: {reason}"})
        if reason is not None or options.start == "spawn":
            _start_over(replace(options, start="spawn", checked=True))
    linux.adopt_orphans()
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # numpy loads it at first use: every child would, to seed it
    gc.collect()
    gc.freeze()  # forked children then share these pages instead of copying them at their first collection
    channel.send({"is": "ready", "start": options.start})
    fork = Keeper(channel, options).serve()
    if fork is not None:
        child.run(fork.sock, fork.job_path, fork.keeper_pid, options.threads)


def _import_objective(options: KeeperOptions) -> str | None:
    """Imports the objective into this process; returns what is wrong with it, or None."""
    cwd = str(Path.cwd())
    if sys.path[:1] != [cwd]:
        sys.path.insert(0, cwd)
    try:
        check_call(options.target, locate(options.target), options.kwargs)
    except ConfigError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
        traceback.print_exc()
        return describe_import_error(options.target, error)
    return None


def _reason_to_spawn() -> str | None:
    """Why this process, after importing the objective, must not be forked; None when it may be."""
    torch: Any = sys.modules.get("torch")
    if (torch is not None and torch.cuda.is_initialized()) or linux.uses_cuda_memory():
        return "importing the objective initialises CUDA, which does not survive a fork"
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        return f"importing the objective starts threads ({', '.join(others)}), which do not survive a fork"
    if linux.native_threads() - 1 > _fork_safe_threads():
        # Seen with torch's OpenMP: one parallel operation at import, and the same operation hangs for ever in the fork.
        return "importing the objective starts native threads (a parallel torch operation?), which do not survive a fork"
    return None


def _fork_safe_threads() -> int:
    """Threads of OpenBLAS pools, which numpy and scipy start when imported: OpenBLAS restarts them after a fork by itself."""
    if "numpy" not in sys.modules:
        return 0
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return 0
    return sum(pool["num_threads"] - 1 for pool in pools if pool["internal_api"] == "openblas")


def _forget_exit_functions() -> None:
    """Leaves to the keeper what its import wants done at exit: the first child would remove the temporary files of them all."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # so that the next one registers it again
    atexit._clear()
    # These two act for the process that runs them, and a child that spawned would have them.
    atexit.register(logging.shutdown)
    if "multiprocessing.util" in sys.modules:
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)


def _start_over(options: KeeperOptions) -> None:
    """Replaces this process by a keeper that has not imported the objective: frees a CUDA context, threads and memory."""
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, True)
    flush_streams()
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator.runner.keeper", options.to_argument()])


def _collect(attempt: _Attempt) -> int | None:
    """Once the child has ended: kills the rest of its group, reaps it and returns its wait status; None before."""
    if hasattr(os, "waitid"):  # macOS before Python 3.13 has none
        if os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Before the leader is reaped, for until then the group's number cannot pass to strangers.
        attempt.signal_group(signal.SIGKILL)
        _, status, usage = os.wait4(attempt.pid, 0)
        attempt.peak_bytes = linux.peak_bytes(usage)
        return status
    pid, status, usage = os.wait4(attempt.pid, os.WNOHANG)
    if pid == 0:
        return None
    attempt.signal_group(signal.SIGKILL)
    attempt.peak_bytes = linux.peak_bytes(usage)
    return status


if __name__ == "__main__":
    main()
