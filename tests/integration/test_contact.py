"""When a worker keeps its connection from one short trial to the next."""

from __future__ import annotations

import contextlib

import psycopg2
from sqlalchemy.engine import make_url

from orchestrator.config import WorkerConfig
from orchestrator.store import Store
from orchestrator.worker.contact import Contact
from orchestrator.worker.shutdown import Draining
from tests.support.invariants import query
from tests.support.own_server import OwnServer
from tests.support.waiting import wait_until

OTHERS = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> "
    "pg_backend_pid()"
)


def test_between_short_trials_a_connection_is_kept_only_where_the_server_has_enough() -> None:
    with (
        OwnServer(max_connections=10, superuser_reserved_connections=2) as server,
        contextlib.ExitStack() as others,
    ):
        store = Store(server.url)
        contact = Contact(store, WorkerConfig(heartbeat_s=60.0), Draining())
        contact.hold(store.fleet.register(60))
        contact.expect(trial_s=0.1)
        contact.renew()
        contact.rest()
        assert len(query(server.url, OTHERS)) == 1, "there are enough: kept"

        plain = (
            make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        for _ in range(5):
            others.enter_context(contextlib.closing(psycopg2.connect(plain)))
        contact.renew()
        contact.rest()
        wait_until(lambda: len(query(server.url, OTHERS)) == 5, 10)

        others.close()
        wait_until(lambda: not query(server.url, OTHERS), 10)
        contact.renew()
        contact.rest()
        assert len(query(server.url, OTHERS)) == 1
        store.rest()
