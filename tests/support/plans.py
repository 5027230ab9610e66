"""How the server runs each statement of a block: its plan, and how many pages it looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.store import Store
from orchestrator.store.connection import statement as wire


@dataclass(frozen=True)
class Ran:
    """One statement: its plan's nodes as (kind, table), and the pages it read or found
    in memory.
    """

    sql: str
    nodes: tuple[tuple[str, str], ...]
    pages: int

    def scanned(self) -> set[str]:
        """The tables that were read from end to end."""
        return {table for kind, table in self.nodes if kind == "Seq Scan"}


@contextmanager
def watched(store: Store, *, prepared: bool = False) -> Iterator[list[Ran]]:
    """Within this block each statement of a transaction of `store` is run once more before, under
    EXPLAIN, and that is undone.

    Args:
        prepared: statements that may be prepared are planned for any parameters, as the server does
            after a while.
    """
    ran: list[Ran] = []
    execute, keep_back = wire.Cursor.execute, wire.Connection.keep_back

    def explain(connection: wire.Connection, statement: Any, parameters: Any) -> None:
        text = statement.plain if isinstance(statement, wire.Statement) else statement
        text = text if isinstance(text, str) else text.decode()
        if connection.dsn == dsn and text.lstrip().upper().startswith(
            ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
        ):
            with connection.cursor() as beside:
                execute(beside, "SAVEPOINT plan")
                given = (
                    statement.given(parameters or {})
                    if isinstance(statement, wire.Statement)
                    else parameters
                )
                asked = text
                if prepared and isinstance(statement, wire.Statement):
                    execute(beside, "SET LOCAL plan_cache_mode = force_generic_plan")
                    execute(beside, statement.prepare.decode().replace(statement.key, "watched"))
                    asked, given = (
                        statement.run.replace(statement.key, "watched"),
                        tuple(given.values()),
                    )
                execute(beside, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}", given)
                plan = beside.fetchone()[0][0]["Plan"]
                execute(beside, "ROLLBACK TO SAVEPOINT plan")
                if asked is not text:
                    execute(beside, "DEALLOCATE watched")
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            ran.append(Ran(" ".join(text.split()), tuple(_nodes(plan)), pages))

    def explain_sent(cursor: wire.Cursor, statement: Any, parameters: Any = None) -> None:
        explain(cursor.connection, statement, parameters)
        execute(cursor, statement, parameters)

    def explain_kept_back(connection: wire.Connection, statement: Any, parameters: Any) -> None:
        explain(connection, statement, parameters)
        keep_back(connection, statement, parameters)

    with store._database._engine.connect() as connection:
        dsn = wire.wire_of(connection).dsn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.Cursor, "execute", explain_sent)
        patch.setattr(wire.Connection, "keep_back", explain_kept_back)
        yield ran


def _nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield plan["Node Type"], plan.get("Relation Name", "")
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
