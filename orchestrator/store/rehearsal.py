"""Transactions that are tried and taken back, for who wants to know what a launch would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator.store.connection import statement as wire
from orchestrator.store.connection.plain import Source
from orchestrator.store.connection.transactions import (
    IDLE_TIMEOUT_S,
    LOCK_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
)


class Rehearsal:
    """A database in which every transaction does what it does, refusals and locks included, and is
    rolled back: nobody else ever sees anything of it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def execute(
        self, statement: wire.Statement, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[wire.Row]:
        """As of the database; for statements that only read."""
        return self._source.execute(statement, parameters)

    def rest(self, unused_s: float = 0.0) -> None:
        """As of the database."""
        self._source.rest(unused_s)

    @contextmanager
    def transaction(
        self,
        *,
        statement_s: int = STATEMENT_TIMEOUT_S,
        lock_s: int = LOCK_TIMEOUT_S,
        idle_s: int = IDLE_TIMEOUT_S,
    ) -> Iterator[wire.AnyConnection]:
        """One transaction, rolled back when the block ends."""
        limits = {"statement_s": statement_s, "lock_s": lock_s, "idle_s": idle_s}
        with suppress(_TakenBackError), self._source.transaction(**limits) as c:
            yield c
            raise _TakenBackError


class _TakenBackError(Exception):
    """Ends a transaction that was only tried."""
