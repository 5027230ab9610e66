"""PgBouncer in transaction mode: a server connection is another worker's after each COMMIT, and
nothing notices.
"""

from __future__ import annotations

import threading

import pytest

from orchestrator.store import Store
from tests.support.invariants import query
from tests.support.own_server import OwnServer
from tests.support.pooler import Pooler, installed
from tests.support.studies import spec, work


@pytest.mark.skipif(installed() is None, reason="needs PgBouncer (Debian: pgbouncer)")
def test_forty_workers_share_four_connections_of_a_pooler_in_transaction_mode() -> None:
    workers, cells = 40, 80
    with (
        OwnServer(max_connections=8, superuser_reserved_connections=3) as server,
        Pooler(server, 4) as pooler,
    ):
        store = Store(server.url)
        study_id = store.studies.launch(spec(cells=cells)).study_id
        ended: list[int] = []

        def run(seed: int) -> None:
            ended.append(work(pooler.url, study_id, release=0.1, seed=seed))

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(ended), sum(ended)) == (workers, cells), (
            "every worker came to its end, every trial was ended once"
        )
        assert store.doctor.examine().findings == ()
        assert query(server.url, "SELECT count(*) FROM trials WHERE state = 'COMPLETE'") == [
            (cells,)
        ]
        store.rest()
