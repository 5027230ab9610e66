"""An embedded PostgreSQL: one server a directory, shared by all commands that name it.

The first of them starts the server and the last one out stops it. What counts is held by the kernel
and never written down, so a process that is killed leaves nothing to clean up:

- ``lock`` (exclusive): one command at a time opens or closes.
- ``users.lock`` (shared): held by each process that uses the server; who can have it alone is the
  last.
- ``server.lock`` (exclusive): inherited by every process of the server. While it is held the data
  is in use, whoever started the server and on whichever host, and no second server is started on
  it.

The data is in ``pgdata``, the server's messages in ``server.log``; a file ``keep`` says that the
server stays up without users.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psycopg2

from orchestrator.errors import ELSEWHERE, OrchestratorError, StoreUnavailableError
from orchestrator.store.embedded.cluster import Cluster, complaint, try_lock


class EmbeddedServer:
    """A running server and this process's share in it; the last share given up stops the server,
    unless it is kept up.

    Safe to open from several threads and processes at once, and several times in one process. A
    child made by ``fork`` holds no share. Should PostgreSQL itself have died meanwhile, opening the
    same path once more starts it again under the same `url`.

    Attributes:
        url: SQLAlchemy URL (psycopg2, Unix socket) of the database ``orchestrator``, which exists.
    """

    def __init__(self, cluster: Cluster, users_fd: int, url: str) -> None:
        self.url = url
        self._cluster = cluster
        self._users_fd: int | None = users_fd
        _OPEN.add(self)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        keep: bool = False,
        patience_s: float | None = None,
        new_data: bool = True,
    ) -> EmbeddedServer:
        """Returns a share in the server of `path`: the running one, else started, on new data if
        there is none yet.

        Args:
            path: Directory of the server, made if missing; its parent directories too.
            keep: Mark the server to stay up without users until `stop`.
            patience_s: How long to wait for the other commands that open or close it, and for the
                server to be ready. None: minutes, for a start on new data or a recovery that takes
                    its time.
            new_data: False where data must be there: it is not made anew then.

        Raises:
            OrchestratorError: The data that must be there is gone.
            StoreUnavailableError: The path cannot be used, belongs to somebody else, holds data of
                another major version, or the server did not start. After `patience_s` too; what was
                begun goes on, and a later call finds it done.
        """
        cluster = Cluster(path)
        until = None if patience_s is None else time.monotonic() + patience_s
        with _translated(cluster.path):
            cluster.make_directory()
            with cluster.locked(patience_s):
                if not new_data and not cluster.data.exists():
                    raise OrchestratorError(
                        f"embedded database in {cluster.path}: its data was removed while in use"
                    )
                users_fd = cluster.open_file("users.lock")
                try:
                    fcntl.flock(users_fd, fcntl.LOCK_SH)
                    url = cluster.ensure_running(
                        None if until is None else max(0.0, until - time.monotonic())
                    )
                    if keep:
                        os.close(cluster.open_file("keep"))
                except StoreUnavailableError:
                    # a server that is still recovering goes on, and the next command finds it ready
                    os.close(users_fd)
                    raise
                except BaseException:
                    _leave(cluster, users_fd)
                    raise
        return cls(cluster, users_fd, url)

    def close(self) -> None:
        """Gives up the share; the last one stops the server, unless it is kept up. A second call
        does nothing.

        Raises:
            StoreUnavailableError: The server did not stop.
        """
        users_fd, self._users_fd = self._users_fd, None
        if users_fd is not None:
            with _translated(self._cluster.path), self._cluster.locked():
                _leave(self._cluster, users_fd)

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _forget(self) -> None:
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None


_OPEN: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A fork shares its parent's lock: it would keep the server up if it outlives the parent, and
    # its close() would unlock both.
    for server in list(_OPEN):
        server._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def keep_up(path: Path) -> str:
    """Returns the URL of the server of `path`, which is up and stays up until `stop`.

    Raises:
        StoreUnavailableError: As `EmbeddedServer.open`.
    """
    with EmbeddedServer.open(path, keep=True) as server:
        return server.url


def stop(path: Path, *, force: bool = False) -> bool:
    """Stops the server of `path` now and ends its being kept up; False if none ran.

    Args:
        path: Directory of the server.
        force: Stop it under the hands of the commands that use it.

    Raises:
        StoreUnavailableError: Other commands use it (then nothing was changed), or it did not stop.
    """
    cluster = Cluster(path)
    if not cluster.path.is_dir():
        return False
    with _translated(cluster.path), cluster.locked():
        users_fd = cluster.open_file("users.lock")
        try:
            if not force and not try_lock(users_fd):
                raise StoreUnavailableError(
                    f"embedded database in {cluster.path}: not stopped, {_users_of(users_fd)}"
                )
            cluster.keep_mark.unlink(missing_ok=True)
            return cluster.stop()
        finally:
            os.close(users_fd)


def running(path: Path) -> bool:
    """Whether the server of `path` runs and accepts connections.

    Raises:
        StoreUnavailableError: The directory belongs to somebody else.
    """
    cluster = Cluster(path)
    with _translated(cluster.path):
        postmaster = cluster.postmaster()
    return postmaster is not None and postmaster.ready


def _leave(cluster: Cluster, users_fd: int) -> None:
    """Gives up a share under the main lock."""
    try:
        if try_lock(users_fd) and not cluster.keep_mark.exists():
            cluster.stop()
    finally:
        # closing does not unlock what a fork in another thread has a copy of
        fcntl.flock(users_fd, fcntl.LOCK_UN)
        os.close(users_fd)


def _users_of(users_fd: int) -> str:
    """How many commands hold a share, and which."""
    inode = f":{os.fstat(users_fd).st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:  # only Linux tells
        return "other commands use it"
    pids = sorted(
        {
            int(lock[4])
            for lock in locks
            if lock[1] == "FLOCK" and lock[3] == "READ" and lock[5].endswith(inode)
        }
    )
    use, process = (" uses", "process") if len(pids) == 1 else ("s use", "processes")
    return f"{len(pids)} other command{use} it ({process} {', '.join(map(str, pids))})"


def _is_unusable(path: Path, error: OSError) -> bool:
    """Whether nobody can keep files at `path`: it may not be written, or cannot be made."""
    on_the_way = error.filename is not None and Path(error.filename) in (path, *path.parents)
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or (
        on_the_way and error.errno in (errno.ENOENT, errno.ENOTDIR)
    )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Errors of the system and of the driver become one line that names the path."""
    try:
        yield
    except OSError as error:
        where = (
            f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        )
        hint = f"; {ELSEWHERE}" if _is_unusable(path, error) else ""
        raise StoreUnavailableError(
            f"embedded database in {path}: {error.strerror or error}{where}{hint}"
        ) from error
    except (psycopg2.Error, subprocess.SubprocessError) as error:
        raise StoreUnavailableError(
            f"embedded database in {path}: {complaint(str(error))}"
        ) from error
