"""How urgently a worker is asked to end, and the signals that ask for it."""

from __future__ import annotations

import enum
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from orchestrator import signals

_ONE_CTRL_C_S: Final = 0.25
_ONE_REQUEST_S: Final = 1.0
"""So soon after the first another signal is the same request: `launch` passes on what a batch
system sent to its workers too, kernel and shell both tell of a closing terminal, and a service
manager may send SIGHUP right after SIGTERM.
"""


class Drain(enum.IntEnum):
    """How urgently the worker is to end; it only grows."""

    NO = 0
    FINISH = 1  # finish the running trial, start no other
    STOP = 2  # tell the child, give the trial back after `worker.drain_s`
    NOW = 3  # give the trial back at once


class Bell:
    """Wakes the thread that waits for it; unlike a `threading.Event`, a signal handler of that same
    thread may ring it.

    An Event's lock may be held by the code that the handler interrupts, which would then never
    continue.
    """

    def __init__(self) -> None:
        self._hears, self._rings = socket.socketpair()
        for end in (self._hears, self._rings):
            end.setblocking(False)

    def ring(self) -> None:
        """Wakes the thread that waits now, or the next one to wait."""
        with suppress(BlockingIOError):  # full: it was rung often enough
            self._rings.send(b"\0")

    def wait(self, seconds: float) -> bool:
        """Waits for it to be rung; returns whether it was. It stays so until `silence`."""
        poller = select.poll()
        poller.register(self._hears, select.POLLIN)
        return bool(poller.poll(max(0.0, seconds) * 1000))

    def silence(self) -> None:
        """Forgets that it was rung."""
        with suppress(BlockingIOError):
            while self._hears.recv(4096):
                pass


class Draining:
    """What was asked so far: `how` urgently, and `since` when by the monotonic clock. `woken` is
    rung by every new request.
    """

    def __init__(self) -> None:
        self.how = Drain.NO
        self.since = 0.0
        self.woken = Bell()

    def ask(self, how: Drain) -> None:
        """Asks to end; safe to call from a signal handler."""
        if how > self.how:
            self.how = how
            self.since = time.monotonic()
        self.woken.ring()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this block signals ask to end.

        SIGINT finishes the running trial, a second one gives it back. SIGTERM, SIGHUP, SIGUSR1 and
        SIGUSR2 give it back in order, another of them at once.
        """

        def ask(number: int, _frame: FrameType | None) -> None:
            after_s = time.monotonic() - self.since
            if number == signal.SIGINT:
                if self.how == Drain.NO or after_s >= _ONE_CTRL_C_S:
                    self.ask(Drain.FINISH if self.how == Drain.NO else Drain.NOW)
            elif self.how < Drain.STOP or after_s >= _ONE_REQUEST_S:
                self.ask(Drain.STOP if self.how < Drain.STOP else Drain.NOW)

        before = signals.handle(ask)
        try:
            yield
        finally:
            signals.restore(before)
