"""The signals that tell a worker to end, and how its processes take them.

A batch system, a service manager or a closing terminal sends them to every process alike, in no
order. The worker alone decides what they mean.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SIGUSR1 and SIGUSR2 are what batch systems send ahead of SIGTERM (Slurm's ``--signal``,
submitit).
"""


def handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Has `handler` called for each of `ENDING`; returns the handlers before, as `restore` takes
    them.

    SIGHUP stays ignored where whoever started this process wanted that, as ``nohup`` does.
    """
    taken = [
        number
        for number in ENDING
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    return {number: signal.signal(number, handler) for number in taken}


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """Undoes `handle`."""
    for number, handler in handlers.items():
        if handler is not None:  # None: it was not set by Python, and cannot be by it
            signal.signal(number, handler)


def end_at_once(code: int) -> None:
    """From here on each of `ENDING` ends this process with exit code `code`: for as long as nothing
    was begun.
    """
    handle(lambda *_: os._exit(code))


def shut_out() -> None:
    """From here on none of `ENDING` reaches this process, which ends by itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@contextmanager
def held_back() -> Iterator[None]:
    """A process started in this block gets none of `ENDING` before it calls `let_in`: those sent
    meanwhile come then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """Lets this process get `ENDING`, whoever started it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class Ending:
    """Within this block each of `ENDING` ends the program in order: the first raises `SystemExit`,
    others change nothing.

    `asked` says whether one came. Once it is set, by whomever, nothing is raised any more.
    """

    def __init__(self, code: int) -> None:
        self.asked = False
        self._code = code
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Ending:
        self._before = handle(self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        restore(self._before)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            raise SystemExit(self._code)
