"""Counts what is sent to the database: messages, each a round trip, and transactions."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.store.connection import statement as wire


class Counted:
    """Messages and transactions since the last `take`."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @property
    def transactions(self) -> int:
        """Each COMMIT, and each message outside a transaction."""
        inside, count = False, 0
        for message in self.messages:
            inside = inside or "BEGIN" in message
            if not inside or message.endswith("COMMIT"):
                inside, count = False, count + 1
        return count

    def take(self) -> tuple[int, int]:
        taken = len(self.messages), self.transactions
        self.messages.clear()
        return taken


def count_messages(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts from now on, in this process."""
    counted, execute = Counted(), wire.Cursor.execute

    def count(cursor: Any, query: Any, parameters: Any = None) -> None:
        said = query.plain if isinstance(query, wire.Statement) else query
        last = said if isinstance(said, bytes) else said.encode()
        counted.messages.append(b";".join([*cursor.connection.kept_back, last]).decode())
        execute(cursor, query, parameters)

    monkeypatch.setattr(wire.Cursor, "execute", count)
    return counted
