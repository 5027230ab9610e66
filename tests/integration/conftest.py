"""A store and a worker's lease on the test's database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.store import Store, WorkerLease


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store(database_url)
    yield opened
    opened.rest()


@pytest.fixture
def lease(store: Store) -> WorkerLease:
    return store.fleet.register(60)
