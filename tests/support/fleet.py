"""A fleet of real worker processes that tests may kill, stop and replace at little cost.

They are forks (see `tests.support.forking`), so that hundreds can be killed within a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from unittest import mock

from orchestrator.faults import CRASH_AT
from tests.support.chaos_objective import WHO
from tests.support.commands import ROOT, Commands, descendants, kill
from tests.support.forking import become, start
from tests.support.waiting import wait_until

TTL_S, HEARTBEAT_S, POLL_S = 2.0, 0.5, 0.1
LEASE = (
    f"worker.lease_ttl_s={TTL_S}",
    f"worker.heartbeat_s={HEARTBEAT_S}",
    f"worker.poll_s={POLL_S}",
)
"""The lease of the chaos tests; every time limit in them is reckoned from these three."""


@dataclass
class Member:
    """One worker: its process, its log, and whether a test meant it to die."""

    name: str
    process: ForkServerProcess
    log: Path
    expected_dead: bool = False

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process.is_alive()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ended(self, timeout: float = 60) -> int:
        """Its exit code, once it has ended."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, (
            f"{self.name} still runs after {timeout:g} s:\n{self.text()[-2000:]}"
        )
        return self.process.exitcode


class Fleet:
    """Workers on one database, each with a log; all of them are gone when the block ends.

    Args:
        commands: database, directory and environment, as for whole commands.
        words: overrides of every worker, after `LEASE`.
    """

    def __init__(self, commands: Commands, *words: str) -> None:
        self._commands = commands
        self._words = (*LEASE, *words)
        self.members: list[Member] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self.members:
            if member.alive():
                for left in [*descendants(member.pid), member.pid]:
                    kill(left)
        for member in self.members:
            member.process.join(30)
        if kind is not None:
            for member in self.members:
                print(
                    f"---- {member.name} (exit code "
                    f"{member.process.exitcode})\n{member.text()[-3000:]}"
                )

    def start(
        self,
        *words: str,
        command: str = "worker",
        apart: bool = False,
        url: str | None = None,
        crash_at: str | None = None,
    ) -> Member:
        """One more worker, or another command at the same price.

        Args:
            words: its own overrides.
            command: what to run instead of a worker.
            apart: as if on a host of its own, so that nobody sees by its process that it is dead:
                only the lease tells.
            url: its own way to the database.
            crash_at: the step at which it dies as by SIGKILL.
        """
        name = f"{command}-{len(self.members)}"
        log = self._commands.directory / f"{name}.log"
        environment = {**self._commands.environment(), WHO: name}
        if url is not None:
            environment["ORCHESTRATOR_STORAGE_URL"] = url
        if crash_at is not None:
            environment[CRASH_AT] = crash_at
        given = (*self._words, *words)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = start(_run, [command, *given], environment, log, name if apart else None)
        self.members.append(Member(name, process, log))
        return self.members[-1]

    def living(self) -> list[Member]:
        return [member for member in self.members if member.alive()]

    def kill(self, member: Member) -> float:
        """SIGKILL; returns when that was, by the host's clock (epoch seconds)."""
        member.expected_dead = True
        at = time.time()
        kill(member.pid)
        member.process.join(10)
        return at

    def none_crashed(self) -> None:
        """Asserts that every worker lives, was killed by the test, or ended with exit code 0 and
        without a traceback.
        """
        for member in self.members:
            if not member.expected_dead:
                assert member.process.exitcode in (None, 0), (
                    f"{member.name} ended: {member.process.exitcode}\n{member.text()}"
                )
            assert "Traceback" not in member.text(), member.text()

    def dismiss(self, timeout: float = 60) -> None:
        """Ends the workers as a container's stop does, and asserts that each one obeys with exit
        code 0.
        """
        for member in self.living():
            if not member.expected_dead:
                os.kill(member.pid, signal.SIGTERM)
        wait_until(lambda: not self.living(), timeout)
        self.none_crashed()


def _run(arguments: list[str], environment: Mapping[str, str], log: Path, host: str | None) -> None:
    """`orchestrator ARGUMENTS` in this process, as if on `host`."""
    if host is not None:
        from orchestrator.store.ledger import fleet

        mock.patch.object(socket, "gethostname", return_value=host).start()
        mock.patch.object(fleet, "process_scope", return_value=f"the processes of {host}").start()
    with log.open("ab") as file:
        become(arguments, environment, ROOT, file.fileno(), file.fileno())
