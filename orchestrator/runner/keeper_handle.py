"""The keeper process as the worker sees it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.passwords import is_kept
from orchestrator.runner.protocol.channel import Channel, Line, wait_readable
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.signals import held_back

logger = logging.getLogger(__name__)

MARGIN_S: Final = 5.0
"""Time that a keeper may need to end a child, in addition to the child's grace, seconds."""
LONGEST_POLL_S: Final = 0.25
"""The longest single wait, so that the caller can look at what its signal handlers did."""
SECRETS: Final = (
    "ORCHESTRATOR_STORAGE_URL",
    "ORCHESTRATOR_STORAGE_PASSWORD_FILE",
    "ORCHESTRATOR_NOTIFY_URL",
    "PGPASSWORD",
    "PGPASSFILE",
)
"""Environment variables that are removed from every process with user code in it, as are those
that hold what is kept (`passwords.keep`).
"""


def environment() -> dict[str, str]:
    """This process's environment, as processes with user code have it."""
    env = {
        key: value for key, value in os.environ.items() if key not in SECRETS and not is_kept(value)
    }
    # Without this, torch.cuda.is_available(), which many modules call at import, initialises
    # CUDA, and the keeper could not be forked any more.
    env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    return env


class KeeperHandle:
    """The keeper process as the worker sees it.

    A daemon thread sends signs of life, whatever this process's other threads wait for. So they
    cease only if the process is stopped or dead, and only that makes the keeper end the child.

    Attributes:
        ready: Whether it has imported all that it is to import.
        imported: How many functions it has imported so far.
        problem: What is wrong with the next one; None if nothing is known to be.
    """

    def __init__(self, options: KeeperOptions, env: Mapping[str, str], cwd: Path | None) -> None:
        self.ready = False
        self.imported = 0
        self.problem: str | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`

        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self._sending = threading.Lock()
        self._hung_up = threading.Event()
        with theirs, held_back():
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "orchestrator.runner.keeper",
                    replace(options, control=theirs.fileno()).to_argument(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(theirs.fileno(), *options.held),
                # Ctrl-C in the worker's terminal must reach the worker only
                start_new_session=True,
                env=dict(env),
                cwd=cwd,
            )

        every_s = min(5.0, options.silence_s / 8)
        threading.Thread(
            target=self._ping, args=[every_s], name="sign-of-life", daemon=True
        ).start()

    def send(self, message: Line, fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Like `Channel.send`, from any thread; False after `kill` or `end`."""
        with self._sending:
            return not self.channel.closed and self.channel.send(message, fds, wait=wait)

    def read(self) -> list[Line]:
        """The lines that have arrived and are about an attempt.

        Handles those about the keeper itself.
        """
        lines = []
        for line in self.channel.receive():
            match line.get("is"):
                case "imported":
                    self.imported += 1
                case "ready":
                    self.ready = True
                    logger.debug("keeper %d is ready (%s)", self._process.pid, line["start"])
                case "broken":
                    self.problem = line["message"]
                    logger.debug("the keeper's output:\n%s", self._read_output())
                case "note":
                    logger.warning("%s", line["message"])
                case _:
                    lines.append(line)
        return lines

    def wait_until_ready(
        self, targets: Sequence[str], meanwhile: Callable[[], None] = lambda: None
    ) -> str | None:
        """Waits until it has imported all of `targets`; returns what is wrong with the next one.

        Args:
            targets: The objective, and what else it was told to import, in that order.
            meanwhile: called every 0.25 s. An exception that it raises ends the wait.
        """
        while not self.ready:
            meanwhile()
            wait_readable([self.channel], LONGEST_POLL_S)
            self.read()
            if self.problem is not None or self.channel.closed:
                next_one = targets[min(self.imported, len(targets) - 1)]
                return self.problem or self.last_words(next_one)
        return None

    def last_words(self, target: str) -> str:
        """The error message about a keeper that ended before it was ready."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(MARGIN_S)
        code = self._process.returncode
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        last = next(
            (line for line in reversed(self._read_output().splitlines()) if line.strip()), ""
        )
        return (
            f"objective._target_: importing {target!r} ended the process "
            f"({how}){': ' + last.strip() if last else ''}"
        )

    def kill(self) -> None:
        """Kills the keeper at once; the kernel kills its child with it."""
        self._process.kill()
        self._hang_up()

    def end(self, grace_s: float) -> None:
        """Ends the keeper, which ends its child first; returns when it is gone."""
        self._hang_up()
        try:
            self._process.wait(grace_s + MARGIN_S if self.ready else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _ping(self, every_s: float) -> None:
        while not self._hung_up.wait(every_s):
            self.send({"do": "ping"}, wait=False)

    def _hang_up(self) -> None:
        self._hung_up.set()
        with self._sending:  # a thread that is sending must not write to a reused descriptor
            self.channel.close()

    def _read_output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")
