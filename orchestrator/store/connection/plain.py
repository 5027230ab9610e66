"""Reading without SQLAlchemy, whose import takes longer than all that a short command reads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import psycopg2

from orchestrator.store.connection import statement as wire
from orchestrator.store.connection import transactions
from orchestrator.store.connection.transactions import (
    CONNECT_ARGS,
    IDLE_TIMEOUT_S,
    LOCK_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
)

# The usual form of a URL; whatever else there is, SQLAlchemy reads.
_URL = re.compile(
    r"postgres(?:ql(?:\+psycopg2)?)?://"
    r"(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<host>[A-Za-z0-9._-]*)(?::(?P<port>\d{1,5}))?/(?P<dbname>[A-Za-z0-9_.-]+)"
    r"(?:\?(?P<query>[^?#]*))?"
)
_OF_QUERY = ("host", "port", "sslmode", "sslrootcert", "connect_timeout", "options")


class Source(Protocol):
    """Where `Reads` and the like read: a `Database`, or one `Plain` connection to it."""

    def execute(
        self, statement: wire.Statement, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[wire.Row]:
        """The rows that one statement returns, a transaction of its own."""

    def transaction(
        self, *, statement_s: int = ..., lock_s: int = ..., idle_s: int = ...
    ) -> contextlib.AbstractContextManager[wire.AnyConnection]:
        """One transaction."""

    def rest(self, unused_s: float = 0.0) -> None:
        """Closes connections that were idle for `unused_s` seconds."""


def connection_words(url: str, password_file: str | None) -> dict[str, Any] | None:
    """Returns what psycopg2 connects with; None where that is not plain to see, or wrong."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    words: dict[str, Any] = {key: value for key, value in found.groupdict().items() if value}
    query = parse_qsl(words.pop("query", ""), keep_blank_values=True)
    if len(dict(query)) < len(query) or any(key not in _OF_QUERY for key, _ in query):
        return None
    for key in ("user", "password"):
        if key in words:
            words[key] = unquote(words[key])
    words |= query
    if password_file:
        try:
            words["password"] = Path(password_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    return words


class Plain:
    """One connection to a PostgreSQL database, for one thread; opened when it is needed. For
    commands that read a little and end.

    Args:
        url, password_file: as of `Store`.
        words: as `connection_words` returns them.

    Raises:
        StoreUnavailableError, SchemaOutdatedError, OrchestratorError: in every method, as
            `Database.transaction` does.
    """

    def __init__(self, url: str, password_file: str | None, words: Mapping[str, Any]) -> None:
        self._url = url
        self._password_file = password_file
        self._words = words
        self._connection: wire.Connection | None = None

    def rest(self, unused_s: float = 0.0) -> None:
        """Closes the connection, however long ago it was used."""
        self.close()

    def close(self) -> None:
        """Closes the connection; the next statement opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def execute(
        self, statement: wire.Statement, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[wire.Row]:
        """The rows that one statement returns, a transaction of its own in one round trip."""
        with self._connected(STATEMENT_TIMEOUT_S) as c:
            wire.later(c, transactions.limits_of_one())
            return wire.answers(c, statement, parameters)

    @contextlib.contextmanager
    def transaction(
        self,
        *,
        statement_s: int = STATEMENT_TIMEOUT_S,
        lock_s: int = LOCK_TIMEOUT_S,
        idle_s: int = IDLE_TIMEOUT_S,
    ) -> Iterator[wire.Connection]:
        """One transaction: committed when the block ends; rolled back when it raises."""
        with (
            self._connected(statement_s) as c,
            transactions.transaction(
                c, statement_s=statement_s, lock_s=lock_s, idle_s=idle_s, errors=psycopg2.Error
            ),
        ):
            yield c

    @contextlib.contextmanager
    def _connected(self, statement_s: int) -> Iterator[wire.Connection]:
        try:
            with transactions.patient(statement_s):
                if self._connection is None:
                    self._connection = psycopg2.connect(**{**self._words, **CONNECT_ARGS})
                    self._connection.autocommit = True
                yield self._connection
        except psycopg2.Error as error:
            self.close()
            # Slow to import, and seldom needed.
            from orchestrator.store.connection.database import Database, storage_url

            database = Database(storage_url(self._url, self._password_file))
            raise database.explained(error) from error
