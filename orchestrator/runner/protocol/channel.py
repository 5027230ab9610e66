"""JSON lines over a Unix socket: the only way in which worker, keeper and child communicate."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

Line = dict[str, Any]

MAX_LINE: Final = 1 << 20
"""Maximum length of a line in bytes, including the newline.

The sender refuses and the receiver skips longer ones.
"""

_CHUNK: Final = 1 << 16
_PER_CALL: Final = 4 << 20  # so that a flood of messages cannot keep one `receive` busy forever
_NOSIGNAL: Final = int(getattr(socket, "MSG_NOSIGNAL", 0))
_ANCILLARY: Final = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class MessageTooLongError(ValueError):
    """The message does not fit in one line of `MAX_LINE` bytes; nothing was sent."""


class Channel:
    """One end of a connected stream socket.

    A peer that is gone is a state (`closed`), never an exception.

    `receive` sets that state, once it has everything that the peer sent before. One thread
    receives; another may send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._skipping = False
        self.closed = False
        self.fds: list[int] = []
        """File descriptors that arrived with messages and were not taken yet, the oldest first."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Line, fds: Sequence[int] = (), *, wait: bool = True) -> bool:
        """Sends a message; False if the peer is gone, or if `wait` is False and the buffer full.

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

    def receive(self) -> list[Line]:
        """Returns the messages that have arrived, without waiting.

        Drops whatever is not a JSON object.
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
        """Shuts the connection down, from any thread; both sides then find their peer gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes this end's socket."""
        self.closed = True
        self._socket.close()

    def _take_fds(self, payload: bytes) -> None:
        # Not socket.recv_fds and send_fds: in CPython 3.11 they ignore their flags, so both would
        # block.
        fds = array.array("i")
        fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        self.fds += fds

    def _take_lines(self) -> list[Line]:
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
    """Waits until a channel or descriptor can be read or was hung up, at most `timeout` seconds.

    Returns:
        Whether one can be read or was hung up.
    """
    poller = select.poll()
    for channel in channels:
        poller.register(channel, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))
