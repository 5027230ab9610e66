"""What an attempt leaves behind in its process, and whether another one may run there."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from typing import Any


class Traces:
    """What is there before an attempt, to be compared with what is there after it."""

    def __init__(self) -> None:
        self.note()

    def note(self) -> None:
        """Takes what is there now for what was there before."""
        self._cwd = _cwd()
        self._environment = dict(os.environ)
        self._limits = _limits()
        self._threads = set(threading.enumerate())
        self._streams = (sys.stdout, sys.stderr)
        self._outputs = _outputs()

    def unfit(self) -> str | None:
        """What makes the process unfit for another attempt, in words; None if nothing does.

        What nobody holds any more is freed first: with it go GPU memory and the helper processes of
        data loaders.
        """
        gc.collect()
        _empty_cuda_cache()
        threads = [
            thread.name
            for thread in set(threading.enumerate()) - self._threads
            if not thread.daemon
        ]
        if threads:
            return f"threads run on ({', '.join(threads[:5])})"
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
            return "it left more files open than may be again"
        replaced = any(
            now is not before
            for now, before in zip((sys.stdout, sys.stderr), self._streams, strict=True)
        )
        if replaced or _outputs() != self._outputs:
            return "stdout or stderr was closed or replaced"
        return None


def has_children() -> bool:
    """Whether this process has a child, be it only one that has ended and nobody waited for."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: nothing tells without reaping it
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _cwd() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - Path.cwd would need a directory that exists as well
    except OSError:
        return None


def _limits() -> dict[int, tuple[int, int]]:
    numbers = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {number: resource.getrlimit(number) for number in numbers}


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208
    except OSError:  # not one more can be opened
        return sys.maxsize


def _outputs() -> list[tuple[int, int] | None]:
    """Which files stdout and stderr are: those of Python and those of everybody else."""
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
