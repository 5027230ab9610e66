"""Workers that suggest as real ones do, for studies that are extended while they run."""

from __future__ import annotations

from typing import Any

import psycopg2

from orchestrator.errors import LeaseLostError
from orchestrator.model import Completed, Report, StudySpec, Suggestion
from orchestrator.search import Search, extension
from orchestrator.store import Attempt, Launched, Prepared, Store, Ticket, WorkerLease
from tests.support.studies import PLACE


class Suggesting:
    """A worker with the study as it was when it last looked."""

    def __init__(self, store: Store, study: int, lease: WorkerLease | None = None) -> None:
        self.store = store
        self.study = study
        self.lease = lease or store.fleet.register(60)
        self.look()

    def look(self) -> None:
        """Reads the study anew, as a worker does after each launch."""
        self.row = next(r for r in self.store.reads.studies() if r.study_id == self.study)
        self.spec = self.store.reads.spec(self.study)
        self.search = Search(self.spec)
        self.cursor = 0

    def claim(self) -> Ticket | None:
        claim = self.store.ledger.claim_one(
            self.lease, self.study, PLACE, launched=self.row.launched_at
        )
        assert claim is None or isinstance(claim, Ticket)
        return claim

    def suggest(self, ticket: Ticket) -> Suggestion:
        news, self.cursor = self.store.news.since(self.study, self.cursor)
        self.search.feed(news)
        given = {k: v for k, v in (ticket.fixed or {}).items() if self.spec.declares(k)}
        return self.search.ask(
            ticket.cell_values, ticket=ticket.ticket, retry=ticket.failures, given=given
        )

    def create(self, ticket: Ticket, *, start: bool = True) -> Attempt | Prepared:
        made = self.store.ledger.create(
            ticket,
            self.suggest(ticket),
            self.lease,
            PLACE,
            start=start,
            revision=self.spec.revision,
        )
        assert made is not None
        return made

    def run(self, most: int = 1000) -> int:
        """Runs trials until there is none; returns how many ended."""
        for ended in range(most):
            if (ticket := self.claim()) is None:
                self.look()
                if (ticket := self.claim()) is None:
                    return ended
            try:
                attempt = self.create(ticket)
            except LeaseLostError:
                continue
            assert isinstance(attempt, Attempt)
            self.end(attempt)
        return most

    def end(self, attempt: Attempt) -> None:
        value = sum(v for v in attempt.values.values() if isinstance(v, int | float))
        self.store.ledger.finish(attempt, Completed((float(value),)), Report())


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a query, in a transaction of its own."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()
    finally:
        connection.close()


def extended(store: Store, spec: StudySpec) -> Launched:
    return store.studies.launch(spec, extension)
