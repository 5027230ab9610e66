"""What an attempt has left behind in its process, and whether another attempt may run there."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from typing import Any


class Traces:
    """The state of the process before an attempt, to compare with the state after it."""

    def __init__(self) -> None:
        self.note()

    def note(self) -> None:
        """Records the current state as the one before the attempt."""
        self._cwd = _cwd()
        self._environment = dict(os.environ)
        self._limits = _limits()
        self._threads = set(threading.enumerate())
        self._streams = (sys.stdout, sys.stderr)
        self._outputs = _outputs()

    def unfit(self) -> str | None:
        """What makes the process unfit for another attempt, in words; None if nothing does.

        Garbage is collected first, which frees GPU memory and ends the helper processes of data
        loaders.
        """
        gc.collect()
        _empty_cuda_cache()
        threads = [
            thread.name
            for thread in set(threading.enumerate()) - self._threads
            if not thread.daemon
        ]
        if threads:
            return f"threads are still running ({', '.join(threads[:5])})"

        if has_children():
            return "it left child processes"
        if _cwd() != self._cwd:
            return "the working directory was changed"
        changed = sorted(name for name, _ in self._environment.items() ^ dict(os.environ).items())
        if changed:
            return f"environment variables were changed ({', '.join(dict.fromkeys(changed[:5]))})"
        if _limits() != self._limits:
            return "resource limits were changed"
        if _open_files() > _limits()[resource.RLIMIT_NOFILE][0] / 2:
            return "it left more than half of the allowed files open"

        replaced = any(
            now is not before
            for now, before in zip((sys.stdout, sys.stderr), self._streams, strict=True)
        )
        if replaced or _outputs() != self._outputs:
            return "stdout or stderr was closed or replaced"
        return None


def has_children() -> bool:
    """Whether this process has a child, including one that has ended but was not waited for."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: cannot be known without reaping it
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _cwd() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - runs after every attempt
    except OSError:
        return None


def _limits() -> dict[int, tuple[int, int]]:
    numbers = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {number: resource.getrlimit(number) for number in numbers}


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208
    except OSError:  # the limit on open files is reached
        return sys.maxsize


def _outputs() -> list[tuple[int, int] | None]:
    """The files behind stdout and stderr, both Python's streams and the descriptors 1 and 2."""
    found: list[tuple[int, int] | None] = []
    for stream in (sys.stdout, sys.stderr, 1, 2):
        try:
            status = os.fstat(stream if isinstance(stream, int) else stream.fileno())
        except Exception:  # noqa: BLE001 - user code may have put any object there
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _empty_cuda_cache() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
