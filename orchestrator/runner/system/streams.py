"""Standard output and error of keeper and child, robust against forks, imports and user code."""

from __future__ import annotations

import contextlib
import io
import sys


def open_streams() -> None:
    """Gives this process a stdout and stderr that still work in forks, where they become pipes.

    Python's own streams check only when they are created whether they can seek.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = _Unseekable(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def configure_streams() -> None:
    """Makes printed lines appear at once, in this process and its forks.

    An import may have changed that.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the import may have closed or replaced it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def flush_streams() -> None:
    """Flushes stdout and stderr, unless user code has closed or replaced them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


class _Unseekable(io.FileIO):
    def seekable(self) -> bool:
        return False
