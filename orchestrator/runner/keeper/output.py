"""What a child prints: taken from a pipe, kept in the log within a limit on disk, head and tail."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from pathlib import Path
from typing import Final

from orchestrator.runner.protocol import rundir

MIN_LIMIT: Final = 1000
"""Smallest limit of a log in bytes."""

_PIPE: Final = 1 << 18
_PIPE_MAX: Final = 1 << 20  # what a user's process may enlarge it to
_BLOCK: Final = 1 << 16
_GATHER_MS: Final = 2  # so that who prints line after line does not wake us for each


class Output:
    """Moves everything that comes out of the pipe `source` to the log, from a thread of its own,
    until `finish`.

    A thread, so that a disk that hangs holds up who prints, and not the keeper, which has to end
    it. Start it after the fork. For the same reason it is this thread that syncs the attempt's
    result.
    """

    def __init__(self, source: int, log: Path, limit: int | None) -> None:
        """Takes over `source`, the reading end of a pipe; the log has never more than `limit`
        bytes, None for no limit.
        """
        os.set_blocking(source, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # this user has too many large pipes already
                fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, _PIPE)
        self._source = source
        self._log = _Log(log, limit)
        self._block = _BLOCK if limit is None else min(_BLOCK, limit // 16)
        self._syncs = False
        self._asked, self._ask = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="output", daemon=True)
        self._thread.start()

    def sync_result(self) -> None:
        """Has the result that lies beside the log synced, at the latest when `finish` returns."""
        if not self._syncs:
            self._syncs = True
            os.write(self._ask, b"s")

    def finish(self, timeout: float) -> str | None:
        """Ends once all that was printed up to now is in the log, after `timeout` s at the latest;
        returns what went wrong.

        It does not wait for those who still have the pipe open.
        """
        os.close(self._ask)
        self._thread.join(timeout)
        return (
            f"the log is incomplete, the disk hangs: {self._log.path}"
            if self._thread.is_alive()
            else self._log.problem
        )

    def _pump(self) -> None:
        anything, asked = select.poll(), select.poll()
        anything.register(self._source, select.POLLIN)
        for poller in (anything, asked):
            poller.register(self._asked, select.POLLIN)
        ending, printing = False, True
        try:
            self._log.open()
            while not ending:
                anything.poll()
                if asked.poll(_GATHER_MS):
                    ending = not os.read(self._asked, 16)
                    if not ending:
                        rundir.sync_result(self._log.path.parent)
                if printing and not self._drain():
                    printing = False
                    anything.unregister(self._source)
        finally:
            self._log.close()
            os.close(self._source)
            os.close(self._asked)

    def _drain(self) -> bool:
        """Takes what is in the pipe; False when nobody is left who could print."""
        taken = 0
        # so that who prints without end cannot keep us from being asked to end
        while taken < _PIPE_MAX:
            try:
                data = os.read(self._source, self._block)
            except BlockingIOError:
                break
            if not data:
                return False
            self._log.append(data)
            taken += len(data)
        return True


class _Log:
    """A file of at most `limit` bytes: about its first half, one line that says how much was cut
    there, and the most recent.

    That is so at every moment, whatever happens to this process. What cannot be written is counted
    and let go.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self.path = path
        self.problem: str | None = None
        self._limit = limit
        self._head: int | None = None
        # where the part after the head and its line begins: what the next cut shortens
        self._tail = 0
        self._cut_away = 0
        self._lost = 0
        self._lost_to = ""
        self._size = 0
        self._file: int | None = None

    def open(self) -> None:
        """Adds from here on to what the file holds already; all is let go where it is gone."""
        try:
            self._file = os.open(self.path, os.O_RDWR)
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            self._lost_to = error.strerror or str(error)

    def append(self, data: bytes) -> None:
        """Adds at most a 16th of the limit."""
        if self._lost:
            note = (
                f"[orchestrator: {self._lost:,} bytes could not be written here: {self._lost_to}]\n"
            )
            if not self._write(note.encode()):
                self._lost += len(data)
                return
            self._lost = 0
        if not self._write(data):
            self._lost += len(data)
            self.problem = f"the log is incomplete ({self._lost_to}): {self.path}"

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _write(self, data: bytes) -> bool:
        if self._file is None:
            return False
        try:
            if self._limit is not None and self._size + len(data) > self._limit:
                self._cut(self._file, self._limit)
            _write_at(self._file, data, self._size)
        except OSError as error:
            self._lost_to = error.strerror or str(error)
            return False
        self._size += len(data)
        return True

    def _cut(self, file: int, limit: int) -> None:
        """Leaves the head and the last quarter, each ending or beginning with a whole line unless
        lines are very long.
        """
        reach = min(4096, limit // 16)
        if self._head is None:
            half = limit // 2
            end = os.pread(file, reach, half - reach).rfind(b"\n")
            self._head = self._tail = half if end < 0 else half - reach + end + 1
        start = self._size - limit // 4
        start += os.pread(file, reach, start).find(b"\n") + 1
        cut_away = self._cut_away + start - self._tail
        gap = "" if os.pread(file, 1, self._head - 1) == b"\n" else "\n"
        tail = self._head + _write_at(
            file, f"{gap}[orchestrator: {cut_away:,} bytes cut here]\n".encode(), self._head
        )
        moved = 0
        # Downwards in one file: what this overwrites was read before.
        while block := os.pread(file, min(_BLOCK, self._size - start - moved), start + moved):
            moved += _write_at(file, block, tail + moved)
        os.ftruncate(file, tail + moved)
        self._cut_away, self._tail, self._size = cut_away, tail, tail + moved


def _write_at(file: int, data: bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)
    return written
