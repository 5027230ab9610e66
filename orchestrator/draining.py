"""How urgently a worker is asked to end, and the signals that ask it."""

from __future__ import annotations

import enum
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Drain(enum.IntEnum):
    """How urgently the worker is to end; it only grows."""

    NO = 0
    FINISH = 1  # finish the running trial, start no other
    STOP = 2  # tell the child, give the trial back after `worker.drain_s`
    NOW = 3  # give the trial back at once


class Draining:
    """What was asked so far: `how` urgently, and `since` when by the monotonic clock. `woken` is set by every new request."""

    def __init__(self) -> None:
        self.how = Drain.NO
        self.since = 0.0
        self.woken = threading.Event()

    def ask(self, how: Drain) -> None:
        """Asks to end; safe to call from a signal handler."""
        if how > self.how:
            self.how = how
            self.since = time.monotonic()
        self.woken.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this block SIGINT finishes the running trial (a second gives it back) and SIGTERM gives it back in order."""

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            self.ask(Drain.FINISH if self.how == Drain.NO else Drain.NOW)

        def terminate(_signal: int, _frame: FrameType | None) -> None:
            self.ask(Drain.STOP if self.how < Drain.STOP else Drain.NOW)

        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
