"""JSON lines over a Unix socket: the one way in which worker, keeper and child talk."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

Message = dict[str, Any]

MAX_LINE: Final = 1 << 20
"""Longest line in bytes, newline included. A longer one is refused by the sender and skipped by the
receiver.
"""

_CHUNK: Final = 1 << 16
_PER_CALL: Final = 4 << 20  # so that a flood of messages cannot keep one `receive` busy for ever
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_ANCILLARY: Final = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class MessageTooLongError(ValueError):
    """The message does not fit in one line of `MAX_LINE` bytes; nothing was sent."""


class Channel:
    """One end of a connected stream socket; a peer that is gone is a state (`closed`), never an
    exception.

    The state is found by `receive`, once it has everything that the peer said before. One thread
    receives; another may send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._skipping = False
        self.closed = False
        self.fds: list[int] = []
        """File descriptors that came with messages and were not taken yet, oldest first."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Sends one message; False when the peer is gone, or when `wait` is False and its buffer is
        full.

        Raises:
            MessageTooLongError: The encoded message is longer than `MAX_LINE`.
        """
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise MessageTooLongError(f"{len(line)} bytes of JSON, at most {MAX_LINE} are allowed")
        flags = _NOSIGNAL if wait else _NOSIGNAL | socket.MSG_DONTWAIT
        try:
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                line = line[self._socket.sendmsg([line], [rights], flags) :]
            if line:
                self._socket.sendall(line, flags)
        except BlockingIOError:
            return False
        except OSError:
            return False
        return True

    def receive(self) -> list[Message]:
        """Returns the messages that have arrived, without waiting; what is not a JSON object is
        dropped.
        """
        taken = 0
        while not self.closed and taken < _PER_CALL:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _CHUNK, _ANCILLARY, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                break
            except OSError:
                self.closed = True
                break
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._take_fds(payload)
            self.closed = not data
            taken += len(data)
            self._buffer += data
        return self._take_lines()

    def shut(self) -> None:
        """Ends the conversation, from any thread; who waits for the peer finds it gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed = True
        self._socket.close()

    def _take_fds(self, payload: bytes) -> None:
        # Not socket.recv_fds and send_fds: they drop their flags (CPython 3.11), so both would
        # wait.
        fds = array.array("i")
        fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        self.fds += fds

    def _take_lines(self) -> list[Message]:
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        messages = []
        for line in lines:
            if self._skipping or len(line) > MAX_LINE:
                self._skipping = False
                continue
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                messages.append(message)
        if len(rest) > MAX_LINE:
            self._buffer = bytearray()
            self._skipping = True
        return messages


def wait_readable(channels: Iterable[Channel | int], timeout: float | None) -> bool:
    """Waits until one of the channels or descriptors has something to read or was hung up,
    `timeout` seconds at most.

    Returns whether one has or was.
    """
    poller = select.poll()
    for channel in channels:
        poller.register(channel, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))
