"""Standard output and error of keeper and child: streams that a fork, an import or user code cannot
leave broken.
"""

from __future__ import annotations

import contextlib
import io
import sys


def open_streams() -> None:
    """Gives this process a stdout and stderr that stay good when their descriptors become pipes, as
    they do in its forks.

    Python's own ask once, when they are made, whether they can seek.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = _Unseekable(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def configure_streams() -> None:
    """Makes what is printed appear at once, in this process and in its forks; an import may have
    changed that.
    """
    for stream in (sys.stdout, sys.stderr):
        # the import may have closed it, or put an object of its own there
        with contextlib.suppress(Exception):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def flush_streams() -> None:
    """Writes out what stdout and stderr hold back; user code may have closed them, or put objects
    of its own there.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


class _Unseekable(io.FileIO):
    def seekable(self) -> bool:
        return False
