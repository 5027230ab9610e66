"""How the server runs each statement of a block: its plan, and how many pages it looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from orchestrator.store import Store


@dataclass(frozen=True)
class Ran:
    """One statement: its plan's nodes as (kind, table), and the pages it read or found in memory."""

    sql: str
    nodes: tuple[tuple[str, str], ...]
    pages: int

    def scanned(self) -> set[str]:
        """The tables that were read from end to end."""
        return {table for kind, table in self.nodes if kind == "Seq Scan"}


@contextmanager
def watched(store: Store) -> Iterator[list[Ran]]:
    """Within this block each statement of `store` is run once more before, under EXPLAIN, and that is undone."""
    ran: list[Ran] = []

    def explain(_c: Any, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            kept_back, cursor.connection.keeps_back = cursor.connection.keeps_back, False
            with cursor.connection.cursor() as beside:
                beside.execute("SAVEPOINT plan")
                beside.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
                plan = beside.fetchone()[0][0]["Plan"]
                beside.execute("ROLLBACK TO SAVEPOINT plan")
            cursor.connection.keeps_back = kept_back
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            ran.append(Ran(" ".join(statement.split()), tuple(_nodes(plan)), pages))

    engine: sa.Engine = store._database._engine
    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield ran
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def _nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield plan["Node Type"], plan.get("Relation Name", "")
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
