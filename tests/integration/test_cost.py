"""What a trial costs in the database, counted: messages to the server, each a round trip, and
transactions.
"""

from __future__ import annotations

import pytest

from orchestrator.model import Completed, Failed, Report
from orchestrator.store import Attempt, Prepared, Store, Ticket, WorkerLease
from tests.support.counting import Counted, count_messages
from tests.support.studies import PLACE, spec, suggestion


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return count_messages(monkeypatch)


def test_a_trial_takes_few_round_trips_and_transactions(
    store: Store, lease: WorkerLease, counted: Counted
) -> None:
    study = store.studies.launch(spec(cells=2, trials=4)).study_id
    store.reads.studies()
    counted.take()
    for share in (True, True, False, False):
        claim = store.ledger.claim_one(lease, study, PLACE, since=0)
        assert isinstance(claim, Ticket)
        assert counted.take() == ((4, 1) if share else (5, 1)), (
            "what is next, what was taken, the news, COMMIT"
        )
        made = store.ledger.create(
            claim, suggestion(claim), lease, PLACE, since=10_000, start=False
        )
        assert isinstance(made, Prepared)
        assert counted.take() == (2, 1), (
            "locks with what is read under them, what is written with COMMIT"
        )
        attempt = store.ledger.start(made, lease, PLACE)
        assert attempt is not None
        assert counted.take() == (1, 1)
        store.ledger.report(attempt, Report({0: 0.1}, {"k": 1}))
        assert counted.take() == (2 + 1, 1)
        outcome = Completed((0.5,)) if share else Failed("exception", "no")
        store.ledger.finish(attempt, outcome, Report({1: 0.2}, {"k": 2}, constraints={"c": 0.0}))
        assert counted.take() == (2, 1)
        store.fleet.renew(lease, "idle")
        assert counted.take() == (1, 1)


def test_what_a_trial_costs_does_not_depend_on_its_parameters_and_reports(
    store: Store, lease: WorkerLease, counted: Counted
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    claim = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(claim, Ticket)
    made = store.ledger.create(claim, suggestion(claim), lease, PLACE)
    assert isinstance(made, Attempt)
    counted.take()
    reports = dict.fromkeys(range(1_000), 0.5)
    attrs = {f"k{i}": i for i in range(50)}
    store.ledger.finish(made, Completed((0.5,)), Report(reports, attrs))
    assert counted.take() == (2, 1)
