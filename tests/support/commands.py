"""Runs `orchestrator` as a user does: in processes of its own, on a database of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.forking import ForkedCommand

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "support" / "config"


@dataclass(frozen=True)
class Commands:
    """Calls of the program that share a database, a directory for runs and a working directory.

    Attributes:
        url: the database; None for the embedded one.
        fresh: whether each has an interpreter of its own from the start, as a user's has, and is no
            fork of one that has imported the program; for tests that look at command lines,
            environments, or how Python starts.
    """

    url: str | None
    directory: Path
    cwd: Path = ROOT
    fresh: bool = False

    def environment(self) -> dict[str, str]:
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ORCHESTRATOR_", "PYTEST_"))
        }
        env |= {
            "ORCHESTRATOR_DATA_DIR": str(self.directory),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        return env if self.url is None else env | {"ORCHESTRATOR_STORAGE_URL": self.url}

    def line(self, command: str, *words: str) -> list[str]:
        output = [f"hydra.run.dir={self.directory}/output"] if command == "launch" else []
        return [sys.executable, "-m", "orchestrator", command, *words, *output]

    def run(
        self, command: str, *words: str, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end and returns its code and both outputs."""
        line, environment = self.line(command, *words), self.environment()
        if self.fresh:
            return subprocess.run(
                line, cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=timeout
            )
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = ForkedCommand(line[3:], environment, self.cwd, out.fileno(), err.fileno())
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(line, code, out.read().decode(), err.read().decode())

    def check(self, command: str, *words: str, timeout: float = 120) -> str:
        """Runs a command that must succeed; returns its standard output."""
        done = self.run(command, *words, timeout=timeout)
        assert done.returncode == 0, (
            f"{command} {words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    @contextmanager
    def started(self, command: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the background; whatever is left of it is killed with the block."""
        line, environment = self.line(command, *words), self.environment()
        process: subprocess.Popen[str]
        if self.fresh:
            process = subprocess.Popen(
                line,
                cwd=self.cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        else:
            process = ForkedCommand(line[3:], environment, self.cwd)
        try:
            yield process
        finally:
            for left in [*descendants(process.pid), process.pid]:
                kill(left)
            process.wait()


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error, without those that say what a slow machine makes it wait for."""
    return [line for line in done.stderr.splitlines() if not line.endswith(" …")]


def line_with(process: subprocess.Popen[str], words: str, timeout: float = 60) -> str:
    """The next line of the command's output that holds `words`; what comes before it is passed
    over.
    """
    output = process.stdout
    assert output is not None
    reading = ThreadPoolExecutor(1)
    try:
        return reading.submit(lambda: next((line for line in output if words in line), "")).result(
            timeout
        )
    finally:
        reading.shutdown(wait=False)


def descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
