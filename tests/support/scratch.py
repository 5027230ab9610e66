"""Where servers of the tests keep their data: in memory if there is enough of it."""

from __future__ import annotations

import atexit
import fcntl
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

_ENOUGH = 4 * 2**30
"""Bytes, several times what all servers of a run need together."""
_run: Path | None = None
"""The directory of this test run."""


@cache
def scratch() -> Path:
    """A directory for data that no crash of the machine need outlive.

    A new database is 300 files, so that most of what a test with a database costs is its file
    system.
    """
    memory = Path("/dev/shm")
    if (
        memory.is_dir()
        and min(shutil.disk_usage(memory).free, psutil.virtual_memory().available) > _ENOUGH
    ):
        return memory
    return Path("/tmp")


def scratch_directory(prefix: str) -> Path:
    """A new directory in `scratch`, that other accounts may pass through: a server started by root
    runs as another user.
    """
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch()))
    made.chmod(0o711)
    return made


def share(directory: Path) -> None:
    """Makes this the directory of the test run, the same in all its processes."""
    global _run
    _run = directory


@cache
def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A directory that `make` has filled, once in a test run: for the first process that asks.

    Nobody may change it. Outside of a test run it is this process's own.
    """
    run = _run
    if run is None:
        run = scratch_directory("orchestrator-made-")
        atexit.register(shutil.rmtree, run, ignore_errors=True)
    made, unfinished = run / name, run / f"{name}.new"
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process whose `make` failed
            unfinished.mkdir(mode=0o711)
            make(unfinished)
            unfinished.rename(made)
    return made
