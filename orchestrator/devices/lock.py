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
    """A lock on one slot of one device of this host, for this user.

    A second safeguard next to the lease.

    The lock belongs to the open file: every process that inherits the descriptor (`fileno`) holds
    it too, and it ends when the last of them ends, in whatever way. Containers with their own
    ``/tmp`` have their own locks.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @staticmethod
    def acquire(key: str, slot: int = 0, directory: Path | None = None) -> DeviceLock | None:
        """Takes the lock, or returns None when another process has it; it never waits.

        Args:
            key: The device's key.
            slot: The slot's number, from 0.
            directory: Where the lock files are; default ``/tmp/orchestrator-<uid>/locks``.

        Raises:
            DeviceError: The directory cannot be created, or belongs to another user.
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
            # The file was deleted between open and lock: this lock would exclude nobody.
            os.close(descriptor)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # only for people who look at the file
        return DeviceLock(descriptor)

    def fileno(self) -> int:
        """The descriptor to pass to children that are to hold the lock as well."""
        if self._descriptor is None:
            raise ValueError("the lock was released")
        return self._descriptor

    def release(self) -> None:
        """Releases the lock in this process; children that inherited it keep it. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock_directory() -> Path:
    # Not TMPDIR, which batch systems set per job: all workers of this user on this host must use
    # the same directory.
    root = Path("/tmp") / f"orchestrator-{os.getuid()}"
    folder = root / "locks"
    try:
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise DeviceError(
                    f"{path}: not a directory that belongs to this user, so device locks in it "
                    "cannot be trusted"
                )
            path.chmod(0o700)
    except OSError as error:
        raise DeviceError(
            f"{folder}: cannot create the directory for device locks: {error}"
        ) from error
    return folder
