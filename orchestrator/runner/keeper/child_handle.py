"""A child process as its keeper sees it: waiting for an attempt, running one, or between two."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.runner.protocol.channel import Channel
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.runner.system import linux

_LOOK_S: Final = 0.002


class ChildHandle:
    """A child, leader of its own session, that runs each attempt that `hand_over` gives it.

    `channel` leads to it. `printed` is the read end of the pipe that it prints to, until a log
    takes it over. `usage` is set once the child was reaped: what it and its reaped descendants
    used.
    """

    def __init__(
        self,
        pid: int,
        channel: Channel,
        printed: int,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid = pid
        self.channel = channel
        self._printed: int | None = printed
        self._process = process
        self.usage: resource.struct_rusage | None = None

    @staticmethod
    def spawn(options: KeeperOptions, example: Path | None) -> ChildHandle:
        """Starts a child in a new interpreter."""
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        try:
            with theirs:
                argument = replace(options, control=theirs.fileno()).to_argument()
                arguments = [
                    argument,
                    str(os.getpid()),
                    *([] if example is None else [str(example)]),
                ]
                process = subprocess.Popen(
                    [sys.executable, "-m", "orchestrator.runner.child", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(), *options.held),
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            os.close(printed)
            raise
        finally:
            os.close(output)
        return ChildHandle(process.pid, Channel(ours), printed, process)

    def fit(self) -> bool:
        """Whether it can run an attempt: it has neither ended nor been stopped."""
        return not self.channel.closed and linux.runs(self.pid)

    def hand_over(self, job: str, sock: int) -> int:
        """Gives it the attempt at `job` and its end of the worker's socket.

        A child that ends meanwhile does not send ``took``.

        Returns:
            The read end of the pipe that it prints to; the caller owns it from now on.
        """
        if self._printed is not None:
            printed, self._printed = self._printed, None
            self.channel.send({"job": job}, [sock])
            return printed
        printed, output = os.pipe()
        self.channel.send({"job": job}, [sock, output])
        os.close(output)
        return printed

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the child's group, announced by a message: it ignores others."""
        self.channel.send({"end": True}, wait=False)
        self.signal_group(signal.SIGTERM)

    def signal_group(self, signum: signal.Signals) -> None:
        """Sends a signal to all processes of the child's group.

        It is not an error if none is left.
        """
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:  # no such group yet: the fork has not reached setsid
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)
        except PermissionError:  # macOS raises this for a group of zombies
            return

    def collect(self) -> int | None:
        """Once the child has ended: kills its group, reaps it, returns its exit code; else None."""
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            # Before the leader is reaped: until then, the group's number cannot be reused by
            # others.
            self.signal_group(signal.SIGKILL)
            _, status, self.usage = os.wait4(self.pid, 0)
        else:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.usage = usage
            self.signal_group(signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        if self._process is not None:
            self._process.returncode = code
        return code

    def used(self) -> tuple[int, float]:
        """Its peak resident size so far in bytes and its processor time in seconds.

        0 where unknown.
        """
        return linux.used(self.pid)

    def cpu_s(self) -> float:
        """Its processor time so far in seconds; 0 if unknown."""
        return linux.cpu_s(self.pid)

    def dismiss(self, grace_s: float) -> None:
        """Ends a child that runs no attempt: it may exit within `grace_s`, then it is killed.

        Returns once it is reaped.
        """
        self.close()
        give_up_at = time.monotonic() + (grace_s if linux.runs(self.pid) else 0.0)
        while self.collect() is None:
            if time.monotonic() >= give_up_at:
                self.signal_group(signal.SIGKILL)
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """Closes this process's descriptors: a child that waits for an attempt then ends."""
        self.channel.close()
        if self._printed is not None:
            os.close(self._printed)
            self._printed = None
