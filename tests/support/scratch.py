"""Where servers of the tests keep their data: in memory if there is enough of it."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import psutil

_ENOUGH = 4 * 2**30
"""Bytes, several times what all servers of a run need together."""


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
