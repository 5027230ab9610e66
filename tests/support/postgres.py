"""A real PostgreSQL for the tests: one server for all workers of a run, one prepared template, one
database a test.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
from sqlalchemy.engine import make_url

from orchestrator.search import create_optuna_tables
from orchestrator.store import Store
from orchestrator.store.embedded.server import EmbeddedServer

_TEMPLATE = "prepared"
_LOCK = 0x7465737473  # "tests": one worker makes the template, the others wait for it
_numbers = itertools.count()


def prepare(url: str) -> None:
    """Brings a new database to the state in which every test finds its own; leaves no connection
    open.
    """
    store = Store(url)
    store.migrate(create_optuna_tables)
    store.rest()


class TestServer:
    """The server of this test run, shared by its workers; holds a share in it until `close`.

    Args:
        path: Directory of the embedded server, the same for all workers of the run and for no other
            run.
        url: A server that runs already, and on which this user may create databases and roles; None
            for an embedded one.
    """

    __test__ = False

    def __init__(self, path: Path, url: str | None = None) -> None:
        self._embedded = None
        if url is None:
            self._embedded = EmbeddedServer.open(path)
            url = self._embedded.url
        self._url = make_url(url)
        with self._connect() as connection, connection.cursor() as cursor:
            # What the tests write is thrown away with the machine's next crash; the server's own
            # default is to be safe.
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                cursor.execute(f"ALTER SYSTEM SET {setting} = off")
            cursor.execute("SELECT pg_reload_conf()")
            # The default since 15 writes each page to the log as well, which pays where a
            # checkpoint is dear.
            self._strategy = " STRATEGY file_copy" if connection.server_version >= 150000 else ""

    def url(self, database: str) -> str:
        """The URL of a database of this server."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    @contextlib.contextmanager
    def empty(self) -> Iterator[str]:
        """A database without any tables, for as long as the block lasts."""
        with self._database("template0") as url:
            yield url

    @contextlib.contextmanager
    def prepared(self) -> Iterator[str]:
        """A database that `prepare` has prepared, for as long as the block lasts."""
        self._ensure_template()
        with self._database(_TEMPLATE) as url:
            yield url

    def close(self) -> None:
        """Gives up the share; the last worker's stops the server."""
        if self._embedded is not None:
            self._embedded.close()

    def _ensure_template(self) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (_TEMPLATE,))
            if cursor.fetchone() is None:
                # of a worker whose `prepare` failed
                cursor.execute(f"DROP DATABASE IF EXISTS {_TEMPLATE}_new WITH (FORCE)")
                cursor.execute(f"CREATE DATABASE {_TEMPLATE}_new")
                prepare(self.url(f"{_TEMPLATE}_new"))
                cursor.execute(f"ALTER DATABASE {_TEMPLATE}_new RENAME TO {_TEMPLATE}")

    @contextlib.contextmanager
    def _database(self, template: str) -> Iterator[str]:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}{self._strategy}")
        try:
            yield self.url(name)
        finally:
            with self._connect() as connection, connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def _connect(self) -> Iterator[psycopg2.extensions.connection]:
        connection = psycopg2.connect(
            self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        )
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()
