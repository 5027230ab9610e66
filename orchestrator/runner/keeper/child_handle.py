"""A child process as its keeper sees it: waiting for an attempt, at one, or between two."""

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
    """A child, leader of a session of its own, that takes an attempt whenever `hand_over` gives it
    one.

    `channel` leads to it; `printed` is the reading end of the pipe it prints to, until a log takes
    it over. `usage` is what it had used, with all that it reaped, once it was reaped itself.
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
        """Starts one in an interpreter of its own."""
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
        """Whether it can take an attempt: it has neither ended nor been stopped."""
        return not self.channel.closed and linux.runs(self.pid)

    def hand_over(self, job: str, sock: int) -> int:
        """Gives it the attempt at `job` and its end of the worker's socket; returns the reading end
        of what it prints.

        From then on the descriptor is the caller's. A child that ends meanwhile does not say
        ``took``.
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
        """Sends SIGTERM to the child and all in its process group, and says that it is meant: one
        of others is not.
        """
        self.channel.send({"end": True}, wait=False)
        self.signal_group(signal.SIGTERM)

    def signal_group(self, signum: signal.Signals) -> None:
        """Sends a signal to the child and all in its process group; none left is no error."""
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            # it is younger than its group: the fork has not come to setsid yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)
        except PermissionError:  # macOS says so of a group of zombies
            return

    def collect(self) -> int | None:
        """Once the child has ended: kills the rest of its group, reaps it and returns its exit
        code; None before.
        """
        if hasattr(os, "waitid"):  # macOS before Python 3.13 has none
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            # Before the leader is reaped, for until then the group's number cannot pass to
            # strangers.
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
        """The largest resident size that it had so far, bytes, and its processor time, seconds; 0
        where nobody says.
        """
        return linux.used(self.pid)

    def cpu_s(self) -> float:
        """Its processor time so far, as `used` tells it."""
        return linux.cpu_s(self.pid)

    def dismiss(self, grace_s: float) -> None:
        """Ends a child that is at no attempt: in order within `grace_s`, else by force. It is
        reaped when this returns.
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
