"""The worker's side of the runner: starts the keeper and hands it attempts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.errors import ConfigError
from orchestrator.model import Interrupted, JSONValue
from orchestrator.runner.keeper.output import MIN_LIMIT
from orchestrator.runner.keeper_handle import KeeperHandle, environment
from orchestrator.runner.messages import EndRequest
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import Channel
from orchestrator.runner.protocol.contract import MOMENT_S, Job, KeeperOptions
from orchestrator.runner.protocol.target import target_of, words_of
from orchestrator.runner.running import Running
from orchestrator.settings import RunnerSettings

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Runner:
    """Runs attempts of one objective, one at a time, each in a child process with its own session.

    For use by one thread.

    Args:
        objective: ``_target_`` and keyword arguments, or a command; unresolved.
        isolation: With ``trial``, every attempt has its own process. With ``worker``, one process
            runs attempts in turn, until one of them leaves it unfit for another.
        start: ``forkserver`` forks each child from a process that imported the objective once;
            ``spawn`` starts a new interpreter for each. ``forkserver`` falls back to ``spawn`` if
            the import did something that does not survive a fork.
        env: Environment variables for the children (devices, above all), on top of this process's
            own without `keeper_handle.SECRETS`.
        threads: Limit for the thread pools of numerical libraries in a child; None for no limit.
        grace_s: Time from SIGTERM to SIGKILL, seconds.
        max_runtime_s: Time limit of an attempt, seconds; None for no limit.
        silence_s: How long this process may be stopped or gone without a trace before the child is
            ended, seconds. A thread sends signs of life, so this process need not call `poll`
            often.
        cwd: Working directory of the children, first on their module path; default: this process's.
        held: File descriptors that stay open in keeper and child, such as a device's lock.
        log_limit_bytes: Maximum size of a log on disk; a longer log keeps its head and its most
            recent part. None for no limit.
        device: The device, as the facts of each attempt are to describe it.
        moment_s: How long, in seconds, a failure by a signal is held back: if this process is asked
            to end in that time, the failure does not count. Also how long a child that received
            SIGTERM from elsewhere continues if this process received none.

    Raises:
        ConfigError: A setting is out of range, or the objective has no usable ``_target_`` or
            command.
    """

    def __init__(
        self,
        objective: Mapping[str, JSONValue],
        *,
        isolation: str = RunnerSettings.isolation,
        start: str = RunnerSettings.start,
        env: Mapping[str, str] | None = None,
        threads: int | None = None,
        grace_s: float = RunnerSettings.grace_s,
        max_runtime_s: float | None = None,
        silence_s: float = 60.0,
        cwd: Path | None = None,
        held: Sequence[int] = (),
        log_limit_bytes: int | None = None,
        device: Mapping[str, JSONValue] | None = None,
        moment_s: float = MOMENT_S,
    ) -> None:
        if isolation not in ("trial", "worker"):
            raise ConfigError(f"runner.isolation: {isolation!r} is neither 'trial' nor 'worker'")
        if start not in ("forkserver", "spawn"):
            raise ConfigError(f"runner.start: {start!r} is neither 'forkserver' nor 'spawn'")
        _require("threads", threads, threads is None or threads >= 1, "at least 1")
        _require("grace_s", grace_s, grace_s >= 0, "at least 0")
        _require(
            "max_runtime_s",
            max_runtime_s,
            max_runtime_s is None or max_runtime_s > 0,
            "more than 0",
        )
        _require("silence_s", silence_s, silence_s > 0, "more than 0")
        enough = log_limit_bytes is None or log_limit_bytes >= MIN_LIMIT
        _require("log_limit_bytes", log_limit_bytes, enough, f"at least {MIN_LIMIT}")

        self._target, kwargs = target_of(objective)
        self._words = words_of(objective)
        self._kwargs = tuple(kwargs)
        self._isolation = isolation
        self._start = start
        self._env = dict(env or {})
        self._threads = threads
        self._grace_s = grace_s
        self._max_runtime_s = max_runtime_s
        self._silence_s = silence_s
        self._cwd = cwd
        self._held = tuple(held)
        self._log_limit_bytes = log_limit_bytes
        self._device = None if device is None else dict(device)
        self._moment_s = moment_s

        self._keeper: KeeperHandle | None = None
        self._running: Running | None = None

    def begin(self) -> None:
        """Makes a keeper import the objective, without waiting; `check` waits."""
        self._living_keeper()

    def check(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns once a keeper has imported the objective; free if one already has.

        Call it before each claim.

        Args:
            meanwhile: called every 0.25 s during the import, which may take minutes. An exception
                that it raises ends the wait and is passed on; the import continues until `close`.

        Raises:
            ConfigError: The objective does not import, does not exist, or can be called neither as
                ``(cfg, trial, **kwargs)`` nor as ``(trial, **kwargs)``; or a command's program is
                missing.
        """
        keeper = self._living_keeper()
        if (problem := keeper.wait_until_ready([self._target], meanwhile)) is not None:
            self._keeper = None
            keeper.end(0.0)
            raise ConfigError(problem)

    def start(
        self, job: Job, end_request: Callable[[], EndRequest] = lambda: EndRequest.NONE
    ) -> Running:
        """Starts an attempt, without waiting for the child. A keeper that died is replaced.

        Args:
            end_request: What this process has been asked to do so far; called while the attempt
                runs.

        Raises:
            OSError: The run directory cannot be created or written.
            RuntimeError: The previous attempt has not ended yet.
        """
        if self._running is not None and self._running.outcome is None:
            raise RuntimeError("an attempt is running: a runner runs one at a time")
        job = replace(job, grace_s=self._grace_s, moment_s=self._moment_s)
        path = rundir.prepare(job)
        keeper = self._living_keeper()

        ours, theirs = socket.socketpair()
        with theirs:
            order = {
                "do": "start",
                "job": str(path),
                "max_runtime_s": self._max_runtime_s,
                "log_limit_bytes": self._log_limit_bytes,
                "facts": {**job.facts(), "threads": self._threads, "device": self._device},
            }
            # Not sent if the keeper has just died; the first `poll` finds that out.
            keeper.send(order, [theirs.fileno()])
        self._running = Running(
            job, keeper, Channel(ours), end_request, self._max_runtime_s, self._silence_s
        )
        return self._running

    def close(self) -> None:
        """Ends the running attempt and the keeper; both are gone when it returns. Idempotent."""
        if self._running is not None and self._running.outcome is None:
            self._running.terminate("the worker ended")
        if self._keeper is not None:
            self._keeper.end(self._grace_s)
            self._keeper = None

    def _living_keeper(self) -> KeeperHandle:
        last = self._running.outcome if self._running is not None else None
        # After a lost attempt, the objective must prove again that it imports: a keeper that
        # imported it long ago says nothing about its files today.
        lost = isinstance(last, Interrupted) and last.lost
        if self._keeper is not None:
            self._keeper.read()
            if self._keeper.channel.closed or lost:
                self._keeper.end(0.0)
                self._keeper = None
        if lost:
            self._running = None
        if self._keeper is None:
            self._keeper = KeeperHandle(self._options(), self._environment(), self._cwd)
        return self._keeper

    def _options(self) -> KeeperOptions:
        return KeeperOptions(
            control=-1,
            worker_pid=os.getpid(),
            target=self._target,
            kwargs=self._kwargs,
            start=self._start,
            threads=self._threads,
            grace_s=self._grace_s,
            silence_s=self._silence_s,
            words=self._words,
            held=self._held,
            isolation=self._isolation,
        )

    def _environment(self) -> dict[str, str]:
        env = environment()
        if self._threads is not None:
            env |= dict.fromkeys(_THREAD_VARIABLES, str(self._threads))
        return env | self._env


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"runner.{name}: {value!r} must be {rule}")
