"""How statements are sent: several in one message, and frequent ones planned only once.

A `Statement` is text and goes to psycopg2 without SQLAlchemy's machinery, which takes longer than
the server. On a connection that has sent more than a few messages, a statement is prepared the
second time it is sent: the server then does not parse and plan it again, which takes longer than
running it.
"""

from __future__ import annotations

import hashlib
import re
from collections import namedtuple
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg2
import psycopg2.extensions

if TYPE_CHECKING:
    import sqlalchemy as sa

Row: TypeAlias = Any
"""A row that a statement returned, its columns by name."""

_PARAMETER = re.compile(r"(?<![:\\\w]):(\w+)")
_YOUNG = 16
"""After this many messages a connection prepares statements: most are closed earlier, while their
trial trains.
"""


class Statement:
    r"""One statement with ``:name`` parameters, as in `sqlalchemy.text` (and ``\:`` for a colon),
    to be created once.

    The server infers a parameter's type from its first occurrence; write ``CAST(:name AS type)``
    where it cannot, or where it would infer another type. A list is an array.
    """

    def __init__(self, text: str) -> None:
        self.names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
        self.plain = _PARAMETER.sub(r"%(\1)s", text.replace("%", "%%")).replace(r"\:", ":")
        numbered = _PARAMETER.sub(lambda found: f"${self.names.index(found[1]) + 1}", text).replace(
            r"\:", ":"
        )
        # Named by a hash of its text, so that a name means one statement, whoever prepared it.
        self.key = f"orchestrator_{hashlib.sha256(numbered.encode()).hexdigest()[:16]}"
        self.prepare = f"PREPARE {self.key} AS {numbered}".encode()
        self.run = f"EXECUTE {self.key}" + (
            f"({', '.join(['%s'] * len(self.names))})" if self.names else ""
        )
        self._row: Any = None

    def given(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Its parameters in order, as psycopg2 takes them."""
        return {
            name: _array(value) if isinstance(value := parameters[name], list) else value
            for name in self.names
        }

    def rows(self, cursor: Cursor) -> list[Row]:
        """The rows that it returned."""
        if self._row is None:
            self._row = namedtuple("Row", [column.name for column in cursor.description])  # type: ignore[misc]
        return [self._row._make(row) for row in cursor.fetchall()]


class Connection(psycopg2.extensions.connection):  # type: ignore[misc]  # untyped, as the package is
    """Keeps back statements whose answers nobody needs, see `later`; remembers which statements are
    prepared on it.

    `may_prepare` says whether prepared statements persist on it; None until `allow_preparing` has
    found out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept_back: list[bytes] = []
        self.may_prepare: bool | None = None
        self.prepared: set[str] = set()
        self._preparing: set[str] = set()
        self._seen: set[str] = set()
        self.messages = 0
        self._own: Cursor | None = None

    @property
    def own(self) -> Cursor:
        """A cursor for statements that bypass SQLAlchemy."""
        if self._own is None:
            self._own = self.cursor()
        return self._own

    def worded(self, cursor: Cursor, statement: Statement, parameters: Mapping[str, Any]) -> bytes:
        """The statement as it is to be sent next."""
        given = statement.given(parameters)
        key = statement.key
        if not self.may_prepare or key not in self._seen:
            self._seen.add(key)
            return bytes(cursor.mogrify(statement.plain, given))
        run = (
            bytes(cursor.mogrify(statement.run, tuple(given.values())))
            if given
            else statement.run.encode()
        )
        if key in self.prepared or key in self._preparing:
            return run
        self._preparing.add(key)
        return statement.prepare + b";\n" + run

    def unprepared(self, statement: Statement, parameters: Mapping[str, Any]) -> bytes:
        """A statement that no connection may prepare, such as one that declares a cursor."""
        return bytes(self.own.mogrify(statement.plain, statement.given(parameters)))

    def keep_back(self, statement: Statement | bytes, parameters: Mapping[str, Any]) -> None:
        """Has the statement sent with the next one."""
        text = (
            statement
            if isinstance(statement, bytes)
            else self.worded(self.own, statement, parameters)
        )
        self.kept_back.append(text)

    def forget(self) -> None:
        """Drops what was kept back."""
        self.kept_back.clear()
        self._preparing.clear()

    def failed(self) -> None:
        """A statement failed: it is unknown how far the server got with what it was sent."""
        self.may_prepare = False

    def sent(self) -> None:
        """The server has executed what it was sent."""
        self.messages += 1
        self.prepared |= self._preparing
        self._preparing.clear()


class Cursor(psycopg2.extensions.cursor):  # type: ignore[misc]
    """Sends what its connection kept back in one message with the next statement, whose answer is
    the one that is returned.

    The server runs the statements in order, each with its own snapshot, and none after one that
    failed.
    """

    connection: Connection

    def execute(self, query: str | bytes | Statement, parameters: Any = None) -> None:
        connection = self.connection
        if isinstance(query, Statement):
            query, parameters = connection.worded(self, query, parameters or {}), None
        if connection.kept_back:
            query, parameters = (
                b";\n".join([*connection.kept_back, self.mogrify(query, parameters)]),
                None,
            )
            connection.kept_back.clear()
        try:
            super().execute(query, parameters)
        except BaseException:
            connection.failed()
            raise
        connection.sent()


AnyConnection: TypeAlias = "sa.Connection | Connection"
"""A connection of SQLAlchemy's, or one that does without it."""


def wire_of(c: AnyConnection) -> Connection:
    """The connection below SQLAlchemy's."""
    if isinstance(c, Connection):
        return c
    connection = c.connection.dbapi_connection
    assert isinstance(connection, Connection)
    return connection


def later(
    c: AnyConnection, statement: Statement | bytes, parameters: Mapping[str, Any] | None = None
) -> None:
    """Sends a statement with the next one of its transaction, at the latest with COMMIT; its errors
    are raised there too.

    For statements whose answer nobody needs.
    """
    wire_of(c).keep_back(statement, parameters or {})


def allow_preparing(c: sa.Connection) -> None:
    """Lets a connection that has sent more than a few messages prepare statements, unless a pooler
    stands between; call it between transactions.

    A pooler gives each transaction any free connection to the server. It tells its clients a
    process id of its own, because it has to forward their cancel requests.
    """
    connection = wire_of(c)
    if connection.messages >= _YOUNG and connection.may_prepare is None:
        (server,) = answers(c, _SERVER)
        connection.may_prepare = bool(server.pid == connection.get_backend_pid())


def send(
    c: AnyConnection, statement: Statement | bytes, parameters: Mapping[str, Any] | None = None
) -> Cursor:
    """Sends a statement now, after what was kept back; raises SQLAlchemy's errors, on a connection
    without it psycopg2's.
    """
    connection = wire_of(c)
    try:
        connection.own.execute(statement, parameters)
    except BaseException as error:
        if isinstance(c, Connection):
            raise
        from sqlalchemy import exc

        closed = bool(connection.closed)
        if closed:
            c.invalidate(error)
        if not isinstance(error, psycopg2.Error):
            raise
        raise exc.DBAPIError.instance(
            None, None, error, psycopg2.Error, connection_invalidated=closed
        ) from error
    return connection.own


def answers(
    c: AnyConnection, statement: Statement, parameters: Mapping[str, Any] | None = None
) -> list[Row]:
    """The rows that a statement returns."""
    return statement.rows(send(c, statement, parameters))


def answer(
    c: AnyConnection, statement: Statement, parameters: Mapping[str, Any] | None = None
) -> Row | None:
    """The one row that a statement returns, None if it returns none."""
    found = answers(c, statement, parameters)
    return found[0] if found else None


_SERVER = Statement("SELECT pg_backend_pid() AS pid")


def _array(values: list[Any]) -> str:
    """As the server writes an array; its type is that of the parameter."""
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    if isinstance(value, str):
        return '"{}"'.format(value.replace("\\", r"\\").replace('"', r"\""))
    return "NULL" if value is None else str(value)
