"""PgBouncer in transaction mode before a test's own server, as docs/scaling.md says to configure
it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from types import TracebackType

import psutil
from sqlalchemy.engine import make_url

from tests.support.own_server import OwnServer
from tests.support.waiting import wait_until

PORT = 6432


def installed() -> str | None:
    """Where the program is, None if it is not installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Pooler:
    """A running PgBouncer; gone when the block ends.

    Args:
        pool_size: connections to the server at most.

    Attributes:
        url: for workers.
    """

    def __init__(self, server: OwnServer, pool_size: int, clients: int = 5000) -> None:
        self._directory = server.data.parent / "pooler"
        self._directory.mkdir()
        worker = make_url(server.worker_url)
        self.url = worker.update_query_dict(
            {"host": str(self._directory), "port": str(PORT)}
        ).render_as_string()
        configuration = self._directory / "pgbouncer.ini"
        configuration.write_text(
            f"""[databases]
* = host={server.data}
[pgbouncer]
listen_addr =
unix_socket_dir = {self._directory}
listen_port = {PORT}
listen_backlog = 1024
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = {clients}
logfile = {self._directory}/pgbouncer.log
"""
        )
        # `auth_type = any` logs everybody in as the user of the database entry: here the workers'
        # role, without a password.
        text = configuration.read_text().replace(
            f"host={server.data}", f"host={server.data} user={worker.username}"
        )
        configuration.write_text(text)
        # it refuses to run as root, like the server
        owner = pwd.getpwuid(server.data.stat().st_uid)
        for path in (self._directory, configuration):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        switch = (
            {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            if os.geteuid() == 0
            else {}
        )
        program = installed()
        assert program is not None, "pgbouncer is not installed"
        self._process = subprocess.Popen([program, "-q", str(configuration)], cwd="/", **switch)  # type: ignore[call-overload]
        wait_until(
            lambda: (
                (self._directory / f".s.PGSQL.{PORT}").exists() or self._process.poll() is not None
            )
        )
        assert self._process.poll() is None, (self._directory / "pgbouncer.log").read_text()

    def cpu_s(self) -> float:
        """Processor time it has used, seconds."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Pooler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
