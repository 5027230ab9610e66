"""A claim reads as little at the end of a large grid as at its beginning, and claims do not queue
behind one another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg2
import pytest

from orchestrator.store import Store, Ticket, WorkerLease
from orchestrator.store.connection import statement as wire
from orchestrator.store.ledger import tickets
from orchestrator.store.news import news_after
from tests.support.invariants import query
from tests.support.large import complete
from tests.support.plans import Ran, watched
from tests.support.postgres import TestServer
from tests.support.studies import PLACE, begun, end, spec, start, take

CELLS = 5_000
LARGE = {"cell", "ticket", "trial", "trials", "trial_params", "trial_values", "attempt"}


@pytest.fixture(scope="module", params=[False, True], ids=["planned anew", "prepared"])
def prepared(request: pytest.FixtureRequest) -> bool:
    """Whether statements are planned for their parameters, or for any, as the server does once they
    are prepared.
    """
    return bool(request.param)


@pytest.fixture(scope="module")
def large(database_server: TestServer, prepared: bool) -> Iterator[tuple[Store, WorkerLease, int]]:
    """A study of that many cells and 50 tickets more, not begun."""
    with database_server.prepared() as url:
        store = Store(url)
        study_id = store.studies.launch(spec(cells=CELLS, trials=CELLS + 50)).study_id
        yield store, store.fleet.register(600), study_id
        store.rest()


def run_one(
    store: Store, lease: WorkerLease, study_id: int, prepared: bool
) -> tuple[list[Ran], int]:
    """Claims, creates and finishes a trial; returns the statements of all that, and the ticket."""
    with watched(store, prepared=prepared) as ran:
        claim = take(store, lease, study_id)
        assert claim is not None
        end(store, begun(store, claim, lease))
    return ran, claim.ticket


def pages(ran: list[Ran]) -> dict[str, int]:
    """Pages by statement; one that ran twice has the sum."""
    counted: dict[str, int] = {}
    for one in ran:
        counted[one.sql] = counted.get(one.sql, 0) + one.pages
    return counted


def read_whole(one: Ran) -> bool:
    """Whether a large table was read without an index, but for the first few pages: an EXISTS ends
    at the first row.
    """
    return bool(one.scanned() & LARGE) and one.pages > 10


def vacuum(store: Store) -> None:
    connection = psycopg2.connect(store.url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute(
        "VACUUM (ANALYZE, PROCESS_TOAST false) orchestrator.cell, orchestrator.ticket, "
        "orchestrator.trial, trials, trial_params, trial_values"
    )
    connection.close()


def test_a_trial_reads_as_few_pages_at_the_last_cells_as_at_the_tenth(
    large: tuple[Store, WorkerLease, int], prepared: bool
) -> None:
    store, lease, study_id = large
    for _ in range(10):
        claim = start(store, lease, study_id)
        assert claim is not None
        end(store, claim)
    early, first = run_one(store, lease, study_id, prepared)
    complete(store.url, study_id, 11, CELLS - 12)
    vacuum(store)
    # a vacuumed table is entered once by way of its map of free space
    run_one(store, lease, study_id, prepared)
    late, last = run_one(store, lease, study_id, prepared)
    assert (first, last) == (10, CELLS - 10)
    assert [one for one in (*early, *late) if read_whole(one)] == [], (
        "no large table is read from end to end"
    )
    before, after = pages(early), pages(late)
    assert before.keys() == after.keys(), "the same statements"
    # An index of many entries is a level or two higher than one of ten, and several are written.
    assert {sql: (before[sql], n) for sql, n in after.items() if n > before[sql] + 12} == {}
    # The tickets past the shares: the shares are looked for in vain first, then a cell with the
    # fewest trials is taken.
    for number in range(CELLS - 9, CELLS):
        claim = start(store, lease, study_id)
        assert claim is not None
        assert claim.ticket == number
        end(store, claim)
    rest, ticket = run_one(store, lease, study_id, prepared)
    assert ticket == CELLS
    assert [one for one in rest if read_whole(one)] == []
    assert max(one.pages for one in rest) < 40, [
        (one.pages, one.sql) for one in rest if one.pages >= 40
    ]


def test_the_latest_news_of_many_trials_are_looked_up_and_planned_once(
    large: tuple[Store, WorkerLease, int], prepared: bool
) -> None:
    store, *_ = large
    study_id = store.studies.launch(spec("another", cells=2_000)).study_id
    complete(store.url, study_id, 0, 1_989)
    vacuum(store)
    position = 2 * 1_990 - 5
    with watched(store, prepared=prepared) as ran, store._database.transaction() as c:
        news, _ = news_after(c, study_id, position)
    assert [one.number for one in news] == [1_987, 1_988, 1_989]
    assert max(one.pages for one in ran) < 60
    assert [one for one in ran if read_whole(one)] == []
    with store._database.transaction() as c:
        connection = wire.wire_of(c)
        connection.may_prepare = True
        for back in range(10):
            news_after(c, study_id, position - back)
        ((anew,),) = c.exec_driver_sql(
            "SELECT custom_plans FROM pg_prepared_statements WHERE name LIKE 'orchestrator_%%' "
            "AND statement LIKE '%%o.seq >%%'"
        ).all()
    assert anew <= 5, "then the server knows that a plan for any cursor is as good"


def test_the_tables_whose_rows_change_state_are_vacuumed_by_the_thousand(store: Store) -> None:
    options = (
        "SELECT relname, reloptions FROM pg_class WHERE relnamespace = "
        "'orchestrator'::regnamespace AND relkind = 'r'"
    )
    set_for = {name for name, given in query(store.url, options) if given}
    assert set_for == {"ticket", "trial", "worker"}
    assert all(
        set(given) == {"autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000"}
        for _, given in query(store.url, options)
        if given
    )


def test_sixteen_claims_hold_sixteen_tickets_at_once_and_none_waits(
    store: Store, lease: WorkerLease
) -> None:
    study_id = store.studies.launch(spec(cells=32)).study_id
    others = [Store(store.url) for _ in range(16)]
    leases = [other.fleet.register(60) for other in others]
    all_hold = threading.Barrier(16, timeout=20)
    claims: list[Ticket] = []

    def claim(other: Store, mine: WorkerLease) -> None:
        with other._database.transaction(lock_s=1) as c:
            found = tickets.look(c, study_id, PLACE, mine)
            assert found is not None
            claims.append(other.ledger._take_ticket(c, mine, study_id, found))
            # nobody has committed yet: had one waited for another, they would never meet here
            all_hold.wait()

    threads = [
        threading.Thread(target=claim, args=pair) for pair in zip(others, leases, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.rest()
    assert sorted(claim.ticket for claim in claims) == list(range(16))
