"""Says what a command waits for, if it takes longer than a moment."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

MOMENT_S: Final = 0.5
"""What takes less than this is not mentioned."""
_ERASE = "\r\x1b[K"


@contextmanager
def waiting(what: str, *, only_on_terminal: bool = False) -> Iterator[None]:
    """Prints ``what …`` on standard error if the block takes longer than `MOMENT_S`.

    On a terminal it is erased when the block ends.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if only_on_terminal and not terminal:
        yield
        return
    turn, said, over = threading.Lock(), False, False

    def say() -> None:
        nonlocal said
        with turn:
            if not over:
                said = True
                _write(f"{what} …" if terminal else f"{what} …\n")

    timer = threading.Timer(MOMENT_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with turn:
            over = True
        if said and terminal:
            _write(_ERASE)


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it
        sys.stderr.write(text)
        sys.stderr.flush()
