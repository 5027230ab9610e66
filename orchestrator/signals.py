"""The signals that end a worker, and how its processes handle them.

A batch system, a service manager or a closing terminal sends them to every process, in no
particular order. Only the worker decides what they mean.
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
"""Batch systems send SIGUSR1 and SIGUSR2 ahead of SIGTERM (Slurm's ``--signal``, submitit)."""


def handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Installs `handler` for each of `ENDING`; returns the previous handlers, for `restore`.

    SIGHUP stays ignored if the parent process set that, as ``nohup`` does.
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
        if handler is not None:  # None: not installed from Python, so Python cannot reinstall it
            signal.signal(number, handler)


def end_at_once(code: int) -> None:
    """From now on, each of `ENDING` exits this process with `code`.

    Use it as long as there is nothing to undo.
    """
    handle(lambda *_: os._exit(code))


def shut_out() -> None:
    """From now on, none of `ENDING` reaches this process, which is about to exit by itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@contextmanager
def held_back() -> Iterator[None]:
    """A process started in this block receives none of `ENDING` until it calls `let_in`.

    Then the pending ones.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """Lets this process receive `ENDING`, even if its parent blocked them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class Ending:
    """Within this block, the first signal of `ENDING` raises `SystemExit`; later ones are ignored.

    `requested` is True once one arrived. Setting it also keeps later signals from raising.
    """

    def __init__(self, code: int) -> None:
        self.requested = False
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
        if not self.requested:
            self.requested = True
            raise SystemExit(self._code)
