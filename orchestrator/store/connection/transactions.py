"""What every connection of ours keeps to, with SQLAlchemy or without: time limits, and how a
transaction begins and ends.
"""

from __future__ import annotations

import contextlib
import functools
import select
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import psycopg2
import psycopg2.extensions

from orchestrator import faults
from orchestrator.store.connection import statement as wire

if TYPE_CHECKING:
    import sqlalchemy as sa

# SET LOCAL ends with the transaction, so that a pooler in transaction mode (PgBouncer) may hand the
# server connection to anyone afterwards; a session-wide SET could not be trusted there.
_LIMITS = (
    "{begin}SET LOCAL statement_timeout = '{statement_s}s'; SET LOCAL lock_timeout = '{lock_s}s'; "
    "SET LOCAL idle_in_transaction_session_timeout = '{idle_s}s'"
)
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 15
IDLE_TIMEOUT_S = 5
CONNECT_TIMEOUT_S = 5
ANSWER_MARGIN_S = 5
OTHERS_PATIENCE_S = 300  # for statements of others in this process, such as the dashboard's

# A commit waits until its data is on disk, whatever the server's default; stricter levels are kept.
DURABLE = (
    b"SELECT set_config('synchronous_commit', 'on', true)"
    b" WHERE current_setting('synchronous_commit') = 'off'"
)

CONNECT_ARGS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "orchestrator",
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connection_factory": wire.Connection,
    "cursor_factory": wire.Cursor,
}


def _wait(connection: psycopg2.extensions.connection) -> None:
    """Waits for the server as libpq does, but with a time limit, and lets Python's signal handlers
    run meanwhile.

    Neither the server's timeouts nor TCP's notice a stopped pooler, whose kernel still acknowledges
    packets.
    """
    connecting = connection.status == psycopg2.extensions.STATUS_SETUP
    deadline = time.monotonic() + (
        CONNECT_TIMEOUT_S if connecting else getattr(_patience, "seconds", OTHERS_PATIENCE_S)
    )
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        left = deadline - time.monotonic()
        if left <= 0:
            # psycopg2 closes the connection then
            raise psycopg2.OperationalError("no answer from the server")
        poller = select.poll()
        poller.register(
            connection.fileno(),
            select.POLLIN if state == psycopg2.extensions.POLL_READ else select.POLLOUT,
        )
        poller.poll(left * 1000)


_patience = threading.local()
psycopg2.extensions.set_wait_callback(_wait)


@functools.cache
def limits(begin: str, statement_s: int, lock_s: int, idle_s: int) -> bytes:
    """The statement that limits what follows in its transaction, after `begin`."""
    return _LIMITS.format(
        begin=begin, statement_s=statement_s, lock_s=lock_s, idle_s=idle_s
    ).encode()


def limits_of_one() -> bytes:
    """The same for one statement that is a transaction of its own: it goes in one message with it,
    and one message is one transaction.
    """
    return limits("", STATEMENT_TIMEOUT_S, LOCK_TIMEOUT_S, IDLE_TIMEOUT_S)


@contextlib.contextmanager
def patient(statement_s: float) -> Iterator[None]:
    """Within this block the server may take as long as the statement's timeout, plus a margin for
    the network.
    """
    _patience.seconds = statement_s + ANSWER_MARGIN_S
    try:
        yield
    finally:
        del _patience.seconds


@contextlib.contextmanager
def transaction(
    c: sa.Connection | wire.Connection,
    *,
    statement_s: int,
    lock_s: int,
    idle_s: int,
    errors: type[Exception],
) -> Iterator[None]:
    """One transaction on a connection in autocommit mode: committed when the block ends, and on
    disk then; rolled back when it raises.

    Args:
        errors: what a statement raises on this connection when it fails.
    """
    below = wire.wire_of(c)
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED; "
    wire.later(c, limits(begin, statement_s, lock_s, idle_s))
    try:
        yield
        faults.step("before-commit")
        wire.later(c, DURABLE)
        wire.send(c, b"COMMIT")  # with what was kept back: its errors come here
    except BaseException:
        below.forget()
        if not below.closed:
            with contextlib.suppress(errors):
                wire.send(c, b"ROLLBACK")
        raise
    faults.step("after-commit")
