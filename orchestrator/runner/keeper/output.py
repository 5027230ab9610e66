"""A child's output: read from a pipe, written to a log that keeps its head and tail."""

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
_PIPE_MAX: Final = 1 << 20  # the size to which an unprivileged process may enlarge it
_BLOCK: Final = 1 << 16
_GATHER_MS: Final = 2  # so that a process that prints line by line does not wake this one for each


class Output:
    """Copies everything from the pipe `source` to the log, in a separate thread, until `finish`.

    Because of the thread, a disk that hangs blocks the process that prints, but not the keeper,
    which must be able to end it. For the same reason the thread also syncs the attempt's result.
    Create it after the fork.
    """

    def __init__(self, source: int, log: Path, limit: int | None) -> None:
        """Takes ownership of `source`, the read end of a pipe.

        Args:
            limit: The log's maximum size in bytes, None for no limit.
        """
        os.set_blocking(source, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # this user has reached the limit for large pipes
                fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, _PIPE)
        self._source = source
        self._log = _Log(log, limit)
        self._block = _BLOCK if limit is None else min(_BLOCK, limit // 16)
        self._syncs = False
        self._request_reader, self._request_writer = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="output", daemon=True)
        self._thread.start()

    def sync_result(self) -> None:
        """Has the result next to the log synced to disk, before `finish` returns."""
        if not self._syncs:
            self._syncs = True
            os.write(self._request_writer, b"s")

    def finish(self, timeout: float) -> str | None:
        """Returns once everything printed so far is in the log, after `timeout` s at the latest.

        It does not wait for processes that still have the pipe open.

        Returns:
            What went wrong, in words; None if nothing did.
        """
        os.close(self._request_writer)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return f"the log is incomplete, because the disk hangs: {self._log.path}"
        return self._log.problem

    def _pump(self) -> None:
        anything, requests = select.poll(), select.poll()
        anything.register(self._source, select.POLLIN)
        for poller in (anything, requests):
            poller.register(self._request_reader, select.POLLIN)
        ending, printing = False, True
        try:
            self._log.open()
            while not ending:
                anything.poll()
                if requests.poll(_GATHER_MS):
                    ending = not os.read(self._request_reader, 16)
                    if not ending:
                        rundir.sync_result(self._log.path.parent)
                if printing and not self._drain():
                    printing = False
                    anything.unregister(self._source)
        finally:
            self._log.close()
            os.close(self._source)
            os.close(self._request_reader)

    def _drain(self) -> bool:
        """Copies what is in the pipe; False if no process is left that could print."""
        taken = 0
        while taken < _PIPE_MAX:  # so that endless output cannot delay a request to finish
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
    """A file of at most `limit` bytes: about half of it head, a line with the cut size, the tail.

    This holds at every moment, whatever happens to this process. What cannot be written is counted
    and dropped.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self.path = path
        self.problem: str | None = None
        self._limit = limit
        self._head: int | None = None
        # Where the part after the head and the cut line starts; the next cut shortens it.
        self._tail = 0
        self._cut_away = 0
        self._lost = 0
        self._lost_to = ""
        self._size = 0
        self._file: int | None = None

    def open(self) -> None:
        """Opens the file to append to it; if the file is gone, everything appended is dropped."""
        try:
            self._file = os.open(self.path, os.O_RDWR)
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            self._lost_to = error.strerror or str(error)

    def append(self, data: bytes) -> None:
        """Appends `data`, which must be at most a 16th of the limit."""
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
        """Keeps the head and the last quarter, cut at line ends unless lines are very long."""
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
        # Moves data towards the start of the same file: what it overwrites has been read before.
        while block := os.pread(file, min(_BLOCK, self._size - start - moved), start + moved):
            moved += _write_at(file, block, tail + moved)
        os.ftruncate(file, tail + moved)
        self._cut_away, self._tail, self._size = cut_away, tail, tail + moved


def _write_at(file: int, data: bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)
    return written
