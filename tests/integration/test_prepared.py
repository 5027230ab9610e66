"""A trial that is prepared ahead: known to all, not begun, and nobody's loss whatever becomes of
its worker.
"""

from __future__ import annotations

import optuna
import pytest

from orchestrator.errors import LeaseLostError
from orchestrator.store import Attempt, Prepared, Silent, Store, Ticket, WorkerLease
from tests.support.studies import PLACE, end, spec, start, suggestion


@pytest.fixture
def other(store: Store) -> WorkerLease:
    return store.fleet.register(60)


def prepare(store: Store, lease: WorkerLease, study: int) -> Prepared:
    ticket = store.ledger.claim_one(lease, study, PLACE, ahead=True)
    assert isinstance(ticket, Ticket)
    made = store.ledger.create(ticket, suggestion(ticket), lease, PLACE, start=False)
    assert isinstance(made, Prepared)
    return made


def trials(store: Store, name: str = "study") -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(store.url)
    try:
        return optuna.load_study(study_name=name, storage=storage).trials
    finally:
        storage.engine.dispose()


def healthy(store: Store) -> bool:
    return not store.doctor.examine().findings


def test_no_attempt_of_a_prepared_trial_counts_until_it_begins(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    running = start(store, lease, study)
    prepared = prepare(store, lease, study)
    assert running is not None
    assert store.reads.attempts(study, 1) == []
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.running, progress.waiting) == (1, 0)
    assert healthy(store)
    before = trials(store)[1]
    assert before.state.name == "RUNNING"
    assert before.params == {"a": 1, "x": 0.5}
    end(store, running)
    begun = store.ledger.start(prepared, lease, PLACE)
    assert begun is not None
    assert store.ledger.start(prepared, lease, PLACE) == begun, "as when the first answer was lost"
    assert [a.attempt for a in store.reads.attempts(study, 1)] == [1]
    after = trials(store)[1].datetime_start
    assert before.datetime_start is not None
    assert after is not None
    assert after > before.datetime_start, "it starts when its child does"
    end(store, begun)
    assert healthy(store)


def test_an_idle_worker_takes_over_what_another_has_prepared(
    store: Store, lease: WorkerLease, other: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    assert start(store, lease, study) is not None
    prepared = prepare(store, lease, study)
    assert store.ledger.claim_one(other, study, PLACE, ahead=True) is None, (
        "one that is busy leaves it alone"
    )
    taken = store.ledger.claim_one(other, study, PLACE)
    assert isinstance(taken, Prepared)
    assert (taken.number, taken.values) == (prepared.number, prepared.values)
    assert not store.ledger.start(prepared, lease, PLACE)
    store.ledger.release(prepared, "too late")
    with pytest.raises(LeaseLostError):
        end(store, prepared.begun())
    begun = store.ledger.start(taken, other, PLACE)
    assert begun is not None
    assert store.ledger.claim_one(lease, study, PLACE) is None, "what has begun is not taken over"
    end(store, begun)
    assert healthy(store)


def test_what_was_given_back_comes_before_anything_is_prepared(
    store: Store, lease: WorkerLease, other: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    claim = start(store, other, study)
    assert claim is not None
    store.ledger.release(claim, "test")
    assert store.ledger.claim_one(lease, study, PLACE, ahead=True) is None
    again = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(again, Attempt)
    assert (again.number, again.attempt) == (0, 2)


def test_a_prepared_trial_is_released_and_lost_intact(
    store: Store, lease: WorkerLease, other: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    prepared = prepare(store, lease, study)
    store.ledger.release(prepared, "told to end")
    assert healthy(store)
    second = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(second, Attempt)
    assert (second.number, second.attempt) == (0, 1)
    third = prepare(store, lease, study)
    assert store.ledger.evict(Silent(lease.worker_id, dead=True, reason="died"))
    assert healthy(store)
    taken = [
        store.ledger.claim_one(other, study, PLACE),
        store.ledger.claim_one(other, study, PLACE),
    ]
    assert {(c.number, c.attempt) for c in taken if isinstance(c, Attempt)} == {
        (0, 2),
        (third.number, 1),
    }


def test_a_prepared_trial_of_a_paused_study_does_not_begin(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    running, prepared = start(store, lease, study), prepare(store, lease, study)
    assert running is not None
    store.interventions.pause(study, "me")
    assert not store.ledger.start(prepared, lease, PLACE)
    store.ledger.release(prepared, "paused")
    end(store, running)
    store.interventions.resume(study, "me")
    again = store.ledger.claim_one(lease, study, PLACE)
    assert isinstance(again, Attempt)
    assert (again.number, again.attempt) == (prepared.number, 1)


def test_halting_another_study_does_not_end_the_running_trial(
    store: Store, lease: WorkerLease
) -> None:
    one, two = (store.studies.launch(spec(name)).study_id for name in ("one", "two"))
    assert start(store, lease, one) is not None
    prepare(store, lease, two)
    store.interventions.pause(two, "me", now=True)
    assert not store.fleet.renew(lease, "running").halted
    store.interventions.pause(one, "me", now=True)
    assert store.fleet.renew(lease, "running").halted


def test_one_that_never_began_when_its_study_was_stopped_ends_and_counts_for_nothing(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    prepared = prepare(store, lease, study)
    store.interventions.stop(study, "me")
    store.ledger.release(prepared, "stopped")
    assert store.ledger.end_studies() == [study]
    (row,) = store.reads.trials(study)
    assert (row.state, row.failure) == (
        "FAIL",
        "it was prepared, and its study ended before it began",
    )
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.spent, sum(cell.failed for cell in progress.cells)) == (0, 0)
    assert healthy(store)


def test_a_prepared_trial_does_not_keep_its_stopped_study_from_ending(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    prepared = prepare(store, lease, study)
    store.interventions.stop(study, "me")
    assert store.ledger.end_studies() == [study], (
        "its worker may be busy with another study for hours"
    )
    assert not store.ledger.start(prepared, lease, PLACE)
    store.ledger.release(prepared, "too late")
    assert [row.state for row in store.reads.trials(study)] == ["FAIL"]
    assert healthy(store)


def test_what_was_created_by_a_lost_answer_is_given_back_whole(
    store: Store, lease: WorkerLease, other: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    claim = store.ledger.claim_one(lease, study, PLACE, ahead=True)
    assert isinstance(claim, Ticket)
    assert store.ledger.create(claim, suggestion(claim), lease, PLACE, start=False) is not None
    again = store.ledger.create(claim, suggestion(claim, x=0.7), lease, PLACE, start=True)
    assert isinstance(again, Prepared), "it was prepared: it has to start"
    store.ledger.release(claim, "not sure")
    taken = store.ledger.claim_one(other, study, PLACE)
    assert isinstance(taken, Attempt)
    assert (taken.number, taken.attempt) == (0, 1)
    assert healthy(store)
