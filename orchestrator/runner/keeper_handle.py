"""The keeper process as the worker sees it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.runner.protocol.channel import Channel, Message
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.signals import held_back

logger = logging.getLogger(__name__)

MARGIN_S: Final = 5.0
"""What a keeper may take for its own part of ending a child, beyond the child's grace."""


class KeeperHandle:
    """The keeper process as the worker sees it.

    A daemon thread tells it that this process is alive, whatever its other threads wait for. A
    process that is stopped or dead stops all its threads, and only that is to end the child.
    """

    def __init__(self, options: KeeperOptions, env: Mapping[str, str], cwd: Path | None) -> None:
        self.ready = False
        self.problem: str | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the keeper
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
                start_new_session=True,  # Ctrl-C in the worker's terminal is the worker's affair
                env=dict(env),
                cwd=cwd,
            )
        every_s = min(5.0, options.silence_s / 8)
        threading.Thread(
            target=self._show_life, args=[every_s], name="sign-of-life", daemon=True
        ).start()

    def send(self, message: Message, fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """As `Channel.send`, from any thread; False once `kill` or `end` was called."""
        with self._sending:
            return not self.channel.closed and self.channel.send(message, fds, wait=wait)

    def read(self) -> list[Message]:
        """The lines that have arrived and concern an attempt; takes in those that concern the
        keeper itself.
        """
        lines = []
        for line in self.channel.receive():
            match line.get("is"):
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

    def last_words(self, target: str) -> str:
        """What to tell the user about a keeper that ended before it was ready."""
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
        self._process.kill()
        self._hang_up()

    def end(self, grace_s: float) -> None:
        """Ends the process, its child first; returns when it is gone."""
        self._hang_up()
        try:
            self._process.wait(grace_s + MARGIN_S if self.ready else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _show_life(self, every_s: float) -> None:
        while not self._hung_up.wait(every_s):
            self.send({"do": "ping"}, wait=False)

    def _hang_up(self) -> None:
        self._hung_up.set()
        # else a thread in the middle of sending could meet the descriptor's next owner
        with self._sending:
            self.channel.close()

    def _read_output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")
