"""Trials that repeat a leading configuration with another seed, on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from orchestrator.model import Budget, Failed
from orchestrator.store import Attempt, Choice, Prepared, Store, Ticket, Undecided, WorkerLease
from tests.support.invariants import query
from tests.support.studies import PLACE, begun, end, spec, suggestion

WHY = {"rule": "confirm", "why": "it leads"}


def next_of(
    store: Store, lease: WorkerLease, study: int, choice: Choice | None = None, confirm: int = 2
) -> Ticket | Undecided | None:
    claim = store.ledger.claim_one(lease, study, PLACE, choice, confirm=confirm)
    assert claim is None or isinstance(claim, Ticket | Undecided)
    return claim


def confirming(store: Store, lease: WorkerLease, study: int, number: int, cell: int) -> Ticket:
    claim = next_of(store, lease, study, Choice(cell, WHY, confirms=number))
    assert isinstance(claim, Ticket)
    return claim


@pytest.fixture
def study(store: Store, lease: WorkerLease) -> int:
    """Three cells and six trials, of which the last two may confirm; the other four are spent."""
    study = store.studies.launch(spec(cells=3, budget=Budget(6, 1, confirm=2))).study_id
    for number in range(4):
        claim = next_of(store, lease, study)
        assert isinstance(claim, Ticket)
        end(store, begun(store, claim, lease, suggestion(claim, x=number / 10)))
    return study


def test_the_last_trials_repeat_what_the_caller_chooses_and_say_so(
    store: Store, lease: WorkerLease, study: int
) -> None:
    undecided = next_of(store, lease, study)
    assert isinstance(undecided, Undecided)
    assert undecided.confirms
    claim = confirming(store, lease, study, number=2, cell=2)
    assert (claim.cell, claim.fixed, claim.confirms) == (2, {"x": 0.2}, 2)
    end(store, begun(store, claim, lease, suggestion(claim, x=0.2)))
    repeated = optuna.load_study(study_name="study", storage=store.url).trials[4]
    assert repeated.user_attrs["orchestrator:confirms"] == 2
    assert repeated.user_attrs["orchestrator:why"] == WHY
    assert "orchestrator:by_hand" not in repeated.user_attrs
    # Without a choice, the cell with the fewest tickets gets the last one.
    last = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(last, Ticket)
    assert (last.cell, last.fixed, last.confirms) == (1, None, None)
    end(store, begun(store, last, lease))
    assert store.reads.find("study").reason == "budget spent"
    assert store.doctor.examine().findings == ()


def test_a_choice_that_did_not_know_of_another_one_is_made_again(
    store: Store, lease: WorkerLease, study: int
) -> None:
    undecided = next_of(store, lease, study)
    assert isinstance(undecided, Undecided)
    assert (undecided.confirming, undecided.confirmed) == ((), ())
    other = store.fleet.register(60)
    theirs = next_of(store, other, study, Choice(2, WHY, 2, confirmed=0))
    assert isinstance(theirs, Ticket)
    again = next_of(store, lease, study, Choice(2, WHY, 2, confirmed=0))
    assert isinstance(again, Undecided), "nothing was taken"
    assert (again.confirming, again.confirmed) == ((2,), (2,))
    end(store, begun(store, theirs, other, suggestion(theirs, x=0.2)))
    mine = next_of(store, lease, study, Choice(0, WHY, 0, confirmed=1))
    assert isinstance(mine, Ticket)
    assert (mine.cell, mine.confirms) == (0, 0)
    end(store, begun(store, mine, lease, suggestion(mine, x=0.0)))
    assert store.doctor.examine().findings == ()


def test_they_never_count_against_the_share_of_a_cell(
    store: Store, lease: WorkerLease, study: int
) -> None:
    for _ in range(2):
        claim = confirming(store, lease, study, number=2, cell=2)
        end(store, begun(store, claim, lease, suggestion(claim, x=0.2)))
    row = store.reads.find("study")
    cells = store.reads.progress(row, maximize=True).cells
    assert [(c.spent, c.bound, c.share) for c in cells] == [(2, 2, 2), (1, 1, 1), (3, 3, 3)]
    more = replace(store.reads.spec(study), budget=Budget(9, 2))
    assert store.studies.launch(more).open_tickets == 3
    shares = "SELECT cell_id, count(*) FROM orchestrator.ticket WHERE state = 'OPEN' AND share IS "
    owed = query(store.url, f"{shares}NOT NULL GROUP BY cell_id ORDER BY cell_id")
    assert [n for _, n in owed] == [1, 1], "the second and the third cell lack one each"
    assert store.doctor.examine().findings == ()


def test_the_cells_may_get_more_than_is_known_before(
    store: Store, lease: WorkerLease, study: int
) -> None:
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert [(c.share, c.grows) for c in progress.cells] == [(2, True), (1, True), (1, True)]


def test_one_that_is_given_back_is_decided_anew(
    store: Store, lease: WorkerLease, study: int
) -> None:
    store.ledger.release(confirming(store, lease, study, number=2, cell=2), "told to end")
    assert isinstance(next_of(store, lease, study), Undecided)
    claim = confirming(store, lease, study, number=0, cell=0)
    assert claim.fixed == {"x": 0.0}
    assert store.doctor.examine().findings == ()


def test_one_that_is_prepared_and_given_back_stays_what_it_is(
    store: Store, lease: WorkerLease, study: int
) -> None:
    claim = confirming(store, lease, study, number=2, cell=2)
    made = store.ledger.create(claim, suggestion(claim, x=0.2), lease, PLACE, start=False)
    assert isinstance(made, Prepared)
    store.ledger.release(made, "told to end")
    taken = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(taken, Attempt)
    assert (taken.number, taken.values) == (4, {"a": 2, "x": 0.2})
    end(store, taken)
    assert store.doctor.examine().findings == ()


def test_one_that_fails_is_decided_anew_and_never_more_than_the_budget_is_spent(
    store: Store, lease: WorkerLease, study: int
) -> None:
    claim = confirming(store, lease, study, number=2, cell=2)
    end(store, begun(store, claim, lease), Failed("exception", "no"))
    undecided = next_of(store, lease, study)
    assert isinstance(undecided, Undecided)
    assert undecided.failures == 1
    assert store.doctor.examine().findings == ()
    for _ in range(2):
        claim = confirming(store, lease, study, number=2, cell=2)
        end(store, begun(store, claim, lease, suggestion(claim, x=0.2)))
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.study.reason, progress.spent, progress.total) == ("budget spent", 6, 6)
    assert store.doctor.examine().findings == ()


def test_a_cell_that_closed_meanwhile_gets_none(store: Store, lease: WorkerLease) -> None:
    budget = Budget(4, 1, max_failures_per_cell=0, confirm=2)
    study = store.studies.launch(spec(cells=2, budget=budget)).study_id
    for _ in range(2):
        claim = next_of(store, lease, study)
        assert isinstance(claim, Ticket)
        end(store, begun(store, claim, lease))
    claim = confirming(store, lease, study, number=1, cell=1)
    end(store, begun(store, claim, lease), Failed("exception", "no"))
    claim = confirming(store, lease, study, number=1, cell=1)
    assert (claim.cell, claim.confirms, claim.fixed) == (0, None, None)
    assert store.doctor.examine().findings == ()
