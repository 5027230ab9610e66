"""One engine, one way to open a transaction, and the place where SQLAlchemy's errors
become ours.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, make_url

from orchestrator.errors import (
    ConfigError,
    DeadlockError,
    OrchestratorError,
    SchemaOutdatedError,
    StoreUnavailableError,
)
from orchestrator.store.connection import statement as wire
from orchestrator.store.connection import transactions
from orchestrator.store.connection.transactions import (
    CONNECT_ARGS,
    DURABLE,
    IDLE_TIMEOUT_S,
    LOCK_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
)

RECYCLE_S = 60
"""Connections are replaced after this long: tables grow, and a plan made while they were small may
be slow later.
"""
# SQLSTATE classes and codes of transient errors: connection, a server that takes no writes (a
# standby, or one that protects its full disk), timeouts that ended the session, rollback
# (deadlock), resources, locks, intervention, system; and, while a server is being set up or kept
# closed, a role (28) or database (3D000, 55000) that is not there for us.
_READ_ONLY = "25006"
_DEADLOCK = "40P01"
_PASSING = (
    "08",
    _READ_ONLY,
    "25P03",
    "25P04",
    "28",
    "3D000",
    "40",
    "53",
    "55000",
    "55P03",
    "57",
    "58",
)

# Errors of a statement prepared on the connection: the server does not have it, or has it already
# (behind a pooler that was taken for the server), or a migration changed what it returns. On a new
# connection nothing is prepared yet.
_RESULT_CHANGED = "0A000"
_OF_PREPARED = ("26000", "42P05", _RESULT_CHANGED)

# on connecting, where psycopg2 tells no SQLSTATE (28P01)
_WRONG_PASSWORD = "password authentication failed"


def storage_url(url: str, password_file: str | None = None) -> URL:
    """Returns `url` for psycopg2, with the password from `password_file`.

    A bare ``postgresql://`` (or ``postgres://``) means psycopg2 here; SQLAlchemy 2.1 alone would
    take it for psycopg 3.

    Raises:
        ConfigError: it is not the URL of a PostgreSQL database, or the password file cannot be
            read. Never shows the password.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise ConfigError(
            "storage.url is not a database URL; the form is "
            "postgresql+psycopg2://user@host:5432/database"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername != "postgresql+psycopg2":
        raise ConfigError(
            f"storage.url begins with {parsed.drivername!r}; it must be postgresql+psycopg2://… "
            "(PostgreSQL 14 or newer)"
        )
    if "sslpassword" in parsed.query:
        raise ConfigError(
            "storage.url must not contain sslpassword, which would be visible; use an "
            "unencrypted key file that only you can read"
        )
    # libpq's other spelling; here it would be shown
    if isinstance(password := parsed.query.get("password"), str):
        parsed = parsed.difference_update_query(["password"]).set(password=password)
    if password_file:
        try:
            parsed = parsed.set(password=Path(password_file).read_text(encoding="utf-8").strip())
        except OSError as error:
            raise ConfigError(f"storage.password_file={password_file}: {error.strerror}") from None
    return parsed


class Database:
    """Opens short transactions on one PostgreSQL database; thread-safe, holds at most one idle
    connection.

    Args:
        url: as `storage_url` returns it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        # Driver-level autocommit: `transaction` sends BEGIN (with its timeouts) and COMMIT itself,
        # so a transaction costs two round trips and not three.
        self._engine = sa.create_engine(
            url,
            connect_args=CONNECT_ARGS,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=8,
            pool_use_lifo=True,
            pool_recycle=RECYCLE_S,
            use_native_hstore=False,  # would ask for its type with each new connection
        )
        self._used_at = 0.0
        self._prepares = True

    @property
    def masked_url(self) -> str:
        """The URL with its password masked."""
        return self.url.render_as_string(hide_password=True)

    def rest(self, unused_s: float = 0.0) -> None:
        """Closes connections that were idle for `unused_s` seconds, so that none is held while a
        trial trains.
        """
        if time.monotonic() - self._used_at >= unused_s:
            self._engine.dispose()

    def execute(
        self,
        statement: sa.Executable | wire.Statement,
        parameters: Mapping[str, Any] | None = None,
        *,
        decides: bool = False,
    ) -> Sequence[wire.Row]:
        """The rows that one statement returns, a transaction of its own in one round trip.

        Args:
            decides: what it writes must be on disk when it returns, as with `transaction`.

        Raises:
            StoreUnavailableError, SchemaOutdatedError, OrchestratorError: as `transaction` does.
        """
        with self._connected(STATEMENT_TIMEOUT_S) as connection:
            wire.later(connection, transactions.limits_of_one())
            if decides:
                wire.later(connection, DURABLE)
            if isinstance(statement, wire.Statement):
                return wire.answers(connection, statement, parameters)
            return connection.execute(statement, parameters).all()

    @contextlib.contextmanager
    def transaction(
        self,
        *,
        statement_s: int = STATEMENT_TIMEOUT_S,
        lock_s: int = LOCK_TIMEOUT_S,
        idle_s: int = IDLE_TIMEOUT_S,
    ) -> Iterator[Connection]:
        """One transaction: committed when the block ends, and on disk then; rolled back when it
        raises.

        Raises:
            DeadlockError: it and others waited for each other; nothing in the block was done.
            StoreUnavailableError: the server cannot be reached, went away, does not accept writes,
                or a timeout passed. Nothing in the block can be relied on; whether a lost COMMIT
                took effect is unknown. Trying again may help.
            SchemaOutdatedError: a table or column is missing.
            OrchestratorError: the server rejected a statement; trying again will not help.
        """
        with (
            self._connected(statement_s) as connection,
            transactions.transaction(
                connection,
                statement_s=statement_s,
                lock_s=lock_s,
                idle_s=idle_s,
                errors=exc.SQLAlchemyError,
            ),
        ):
            yield connection

    @contextlib.contextmanager
    def _connected(self, statement_s: int) -> Iterator[Connection]:
        prepared = False
        try:
            with transactions.patient(statement_s), self._engine.connect() as connection:
                below = wire.wire_of(connection)
                if self._prepares:
                    wire.allow_preparing(connection)
                prepared = bool(below.may_prepare)
                try:
                    yield connection
                finally:
                    below.forget()
            self._used_at = time.monotonic()
        except exc.SQLAlchemyError as error:
            self._engine.dispose()  # what the pool holds is of the same age and likely as dead
            raise self._translate(error, prepared=prepared) from error

    def explained(self, error: psycopg2.Error) -> OrchestratorError:
        """What an error of psycopg2's means that another connection met."""
        wrapped = exc.DBAPIError.instance(None, None, error, psycopg2.Error)
        assert isinstance(wrapped, exc.DBAPIError)
        return self._translate(wrapped, prepared=False)

    def _translate(self, error: exc.SQLAlchemyError, *, prepared: bool) -> OrchestratorError:
        cause = getattr(error, "orig", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        text = hide_password(lines[0] if lines else type(cause).__name__, self.url)
        sqlstate = getattr(cause, "pgcode", None)
        if sqlstate in ("42P01", "3F000", "42703"):  # undefined table, schema, column
            return SchemaOutdatedError(
                f"the schema of this database is missing or outdated ({text}); run: orchestrator "
                "db upgrade"
            )
        if prepared and sqlstate in _OF_PREPARED:
            self._prepares = self._prepares and sqlstate == _RESULT_CHANGED
            return StoreUnavailableError(
                f"database {self.masked_url} lost a prepared statement: {text}"
            )
        if sqlstate == _READ_ONLY:
            return StoreUnavailableError(
                f"database {self.masked_url} does not accept writes (a standby, or a server with "
                f"a full disk?): {text}"
            )
        if refused := next((line for line in lines if _WRONG_PASSWORD in line), None):
            return StoreUnavailableError(
                f"database {self.masked_url} rejects the password: "
                f"{hide_password(refused, self.url)}. A server keeps the password that its data "
                "(for a container, its volume) was created with, whatever the password file says "
                "now. Use that password, set the new one on the server (ALTER ROLE "
                f"{self.url.username or 'user'} PASSWORD '…'), or remove the volume with all its "
                "studies"
            )
        if sqlstate == _DEADLOCK:
            return DeadlockError(
                f"database {self.masked_url}: others were in the way, and this was undone: {text}"
            )
        lost = isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)
        lost = lost or getattr(error, "connection_invalidated", False)
        if sqlstate.startswith(_PASSING) if sqlstate else lost:
            return StoreUnavailableError(f"database {self.masked_url} does not answer: {text}")
        return OrchestratorError(f"database {self.masked_url} reports an error: {text}")


def hide_password(text: str, url: URL) -> str:
    """Replaces the URL's password, plain or percent-encoded, with ``***`` wherever it occurs in
    `text`.
    """
    if url.password:
        encoded = re.search(r"://[^:]*:(.*)@", url.render_as_string(hide_password=False))
        for secret in {str(url.password), encoded.group(1) if encoded else ""} - {""}:
            text = text.replace(secret, "***")
    return text
