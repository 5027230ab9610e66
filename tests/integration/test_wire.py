"""Statements that are sent past SQLAlchemy: prepared where that lasts, and never a reason for a
wrong or lost write.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

import orchestrator.store
from orchestrator.errors import LeaseLostError, OrchestratorError, StoreUnavailableError
from orchestrator.store import Store, WorkerLease
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.connection.statement import Statement, answers, later, send, wire_of
from tests.support.invariants import query
from tests.support.own_server import OwnServer
from tests.support.pooler import Pooler, installed
from tests.support.studies import end, spec, start

ONE = Statement(
    "SELECT CAST(:n AS int) AS n, CAST(:words AS text[]) AS words, '%' AS percent, CAST('1' AS "
    "text)\\:\\:int AS one"
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(storage_url(database_url))
    yield opened
    opened.rest()


def ask(database: Database, n: int = 1) -> Any:
    (row,) = database.execute(ONE, {"n": n, "words": []})
    return row.n


def grow_up(database: Database) -> None:
    """Makes the database's one connection one that prepares."""
    for _ in range(20):
        ask(database)


def prepared(database: Database) -> set[str]:
    """What the server has prepared on that connection."""
    return {
        name for (name,) in database.execute(sa.text("SELECT name FROM pg_prepared_statements"))
    }


def written_in(module: Any) -> Iterator[Statement]:
    for value in vars(module).values():
        yield from (
            one
            for one in (value.values() if isinstance(value, dict) else [value])
            if isinstance(one, Statement)
        )


def test_the_server_can_prepare_every_statement(database_url: str) -> None:
    found = set()
    for module in pkgutil.walk_packages(orchestrator.store.__path__, "orchestrator.store."):
        if ".migrations." not in module.name:
            found |= set(written_in(importlib.import_module(module.name)))
    assert len(found) > 35
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in found:
            cursor.execute(statement.prepare)
    connection.close()


def test_what_is_sent_prepared_means_the_same(database: Database) -> None:
    words = ["", "a", "NULL", None, "q\"u'o\\te", "{x,y}", "z\n\té"]
    rows: list[Any] = []
    for _ in range(25):
        rows += database.execute(ONE, {"n": 7, "words": words})
    assert ONE.key in prepared(database)
    assert {(row.n, tuple(row.words), row.percent, row.one) for row in rows} == {
        (7, tuple(words), "%", 1)
    }
    numbers = Statement(
        "SELECT CAST(:many AS float8[]) AS many, CAST(:none AS text) AS none, CAST(:yes AS bool) "
        "AS yes"
    )
    for _ in range(3):
        (row,) = database.execute(
            numbers, {"many": [0.1, 1e300, -5, None, float("inf")], "none": None, "yes": True}
        )
        assert (row.many, row.none, row.yes) == ([0.1, 1e300, -5.0, None, float("inf")], None, True)


def test_a_young_connection_prepares_nothing(database: Database) -> None:
    for _ in range(10):
        ask(database)
    assert prepared(database) == set()


def test_what_was_not_sent_is_not_held_for_prepared(database: Database) -> None:
    other = Statement("SELECT 5 AS five")
    grow_up(database)
    database.execute(other)
    with pytest.raises(LeaseLostError):
        keep_back_and_fail(database, other)
    assert other.key not in prepared(database)
    with database.transaction() as c:
        later(c, other)
        (row,) = answers(c, other)
        assert row.five == 5
    assert other.key in prepared(database)


def keep_back_and_fail(database: Database, statement: Statement) -> None:
    with database.transaction() as c:
        later(c, statement)  # would prepare it
        raise LeaseLostError("nothing of this is sent")


def send_one_that_fails(database: Database, wrong: Statement, other: Statement) -> None:
    with database.transaction() as c:
        later(c, wrong, {"by": 0})
        later(c, other)  # is not reached, nor is its PREPARE
        send(c, ONE, {"n": 1, "words": []})


def test_after_an_error_in_a_message_the_next_ones_go_well(database: Database) -> None:
    other, wrong = (
        Statement("SELECT 5 AS five"),
        Statement("SELECT 1 / CAST(:by AS int) AS divided"),
    )
    grow_up(database)
    database.execute(other)
    database.execute(wrong, {"by": 1})
    with pytest.raises(OrchestratorError, match="division by zero"):
        send_one_that_fails(database, wrong, other)
    for _ in range(25):
        assert [row.five for row in database.execute(other)] == [5]
        assert [row.divided for row in database.execute(wrong, {"by": 1})] == [1]
    assert {other.key, wrong.key} <= prepared(database)


def test_a_connection_that_the_server_ended_is_replaced(database: Database) -> None:
    grow_up(database)
    with database.transaction() as c:
        pid = wire_of(c).get_backend_pid()
    query(
        database.url.render_as_string(hide_password=False), "SELECT pg_terminate_backend(%s)", pid
    )
    with pytest.raises(StoreUnavailableError):
        ask(database)
    assert ask(database, 3) == 3


def test_a_migration_under_a_live_connection_costs_one_try(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    for statement in ("CREATE TABLE changes (a int)", "INSERT INTO changes VALUES (1)"):
        query(url, statement)
    changes = Statement("SELECT a FROM changes")
    grow_up(database)
    for _ in range(3):
        database.execute(changes)
    assert changes.key in prepared(database)
    query(url, "ALTER TABLE changes ALTER a TYPE text")
    with pytest.raises(StoreUnavailableError, match="prepared statement"):
        database.execute(changes)
    assert [row.a for row in database.execute(changes)] == ["1"]
    grow_up(database)
    assert prepared(database) != set(), "the next connection prepares again"


def test_a_pooler_that_looks_like_the_server_costs_one_try_and_no_more(database: Database) -> None:
    grow_up(database)
    with database.transaction() as c:
        # as if another connection of the pooler served this one now
        wire_of(c).own.execute("DEALLOCATE ALL")
    with pytest.raises(StoreUnavailableError, match="prepared statement"):
        ask(database)
    for _ in range(40):
        assert ask(database, 2) == 2
    assert prepared(database) == set()


@pytest.mark.skipif(installed() is None, reason="needs PgBouncer")
def test_nothing_is_prepared_through_a_pooler() -> None:
    with OwnServer(max_connections=10) as server, Pooler(server, 2) as pooler:
        store = Store(pooler.url)
        study = Store(server.url).studies.launch(spec(cells=10)).study_id
        lease: WorkerLease = store.fleet.register(60)
        for _ in range(10):
            claim = start(store, lease, study)
            assert claim is not None
            end(store, claim)
        assert prepared(store._database) == set()
        with store._database.transaction() as c:
            assert wire_of(c).may_prepare is False
        store.rest()
