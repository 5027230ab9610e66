"""A lock on each slot of a device of this host."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import DeviceError


class DeviceLock:
    """A lock on one slot of one device of this host, for this user: the second fence beside the
    lease in the database.

    The lock belongs to the open file, so every process that inherits the descriptor (`fileno`)
    holds it too, and it ends when the last of them is gone, however it went. Containers with a
    ``/tmp`` of their own have locks of their own.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @staticmethod
    def acquire(key: str, slot: int = 0, directory: Path | None = None) -> DeviceLock | None:
        """Takes the lock, or returns None when another process has it; it never waits.

        Args:
            key: The device's key.
            slot: Which share of it, from 0.
            directory: Where the lock files are; default ``/tmp/orchestrator-<uid>/locks``.

        Raises:
            DeviceError: The directory cannot be made, or belongs to somebody else.
        """
        folder = _lock_directory() if directory is None else directory
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', key)}-{slot}.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
            # somebody deleted the file between open and lock: this lock would exclude nobody
            os.close(descriptor)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # for people
        return DeviceLock(descriptor)

    def fileno(self) -> int:
        """The descriptor to hand to children that shall hold the lock as well."""
        if self._descriptor is None:
            raise ValueError("the lock was released")
        return self._descriptor

    def release(self) -> None:
        """Lets go of the lock in this process; children that inherited it keep it. Calling it again
        is allowed.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock_directory() -> Path:
    # Not TMPDIR, which batch systems set for each job: all workers of this user on this host must
    # find the same place.
    root = Path("/tmp") / f"orchestrator-{os.getuid()}"
    folder = root / "locks"
    try:
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise DeviceError(
                    f"{path}: not a directory of this user, so the device locks in it cannot be "
                    "trusted"
                )
            path.chmod(0o700)
    except OSError as error:
        raise DeviceError(
            f"{folder}: the directory for device locks cannot be made: {error}"
        ) from error
    return folder
