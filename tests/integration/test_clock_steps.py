"""A step of the database server's clock, by which leases are judged, is no silence of workers."""

from __future__ import annotations

import time

import psycopg2
import pytest

from orchestrator.store import Store
from orchestrator.worker.maintenance import Maintenance

TTL_S = 2.0  # a busy machine may not let us renew for a second
# In the place of PostgreSQL's own, for all connections that begin later.
CLOCK = """
    CREATE SCHEMA stepped;
    CREATE TABLE stepped.ahead (seconds float8 NOT NULL);
    INSERT INTO stepped.ahead VALUES (0);
    CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS
        $$ SELECT pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => seconds)
           FROM stepped.ahead $$;
    DO $$ BEGIN
        EXECUTE pg_catalog.format(
            'ALTER DATABASE %I SET search_path = stepped, public, pg_catalog', current_database());
    END $$;
"""


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2", "postgresql"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture
def stepping(store: Store) -> Store:
    """The store on a server whose clock can be set."""
    execute(store.url, CLOCK)
    return Store(store.url)


def evictions(store: Store, lease_of: int) -> bool:
    return any(one.worker_id == lease_of for one in store.fleet.silent(10 * TTL_S))


def test_when_the_servers_clock_steps_living_workers_stay(stepping: Store) -> None:
    lease = stepping.fleet.register(TTL_S)
    sweeper = Maintenance(stepping, every_s=0.01)

    def sweep_for(seconds: float, *, renews: bool) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if renews:
                stepping.fleet.renew(lease, "training")
            sweeper.sweep()
            time.sleep(0.05)

    sweep_for(2 * TTL_S, renews=True)
    execute(stepping.url, "UPDATE stepped.ahead SET seconds = 3600")
    assert evictions(stepping, lease.worker_id), "by its lease it is silent"
    sweeper.sweep()
    sweep_for(2 * TTL_S, renews=True)  # raises LeaseLostError if it was evicted
    sweep_for(3 * TTL_S, renews=False)
    assert not evictions(stepping, lease.worker_id), "one that is silent is evicted as ever"
    assert stepping.fleet.size == 0
