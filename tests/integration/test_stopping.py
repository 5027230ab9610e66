"""A study, or a cell, that has had enough trials, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

from orchestrator.model import Budget, Failed, StudySpec
from orchestrator.prior import Enqueued, Observation, Prior
from orchestrator.settings import StopSettings
from orchestrator.store import Attempt, Store, Undecided, WorkerLease
from tests.support.invariants import query
from tests.support.studies import PLACE, end, spec, start, take

BROKEN = Failed("exception", "ValueError: no", ("exception", "ValueError"))
WHY = "nothing more to gain"


def made(trials: int = 10, **changes: Any) -> StudySpec:
    """Three cells with one guaranteed trial each."""
    changes = {"stop_when": StopSettings(patience=5), **changes}
    return spec(cells=3, trials=trials, **changes)


def run(store: Store, lease: WorkerLease, study: int, count: int) -> list[Attempt]:
    attempts = [start(store, lease, study) for _ in range(count)]
    assert None not in attempts
    return [attempt for attempt in attempts if attempt is not None]


def finish(store: Store, attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        end(store, attempt)


def enough(store: Store, study: int, reason: str = WHY, **more: Any) -> bool:
    launched = store.reads.find("study").launched_at
    return store.stopping.end_study(study, reason, launched, **more)


def state(store: Store) -> tuple[str, str | None]:
    row = store.reads.find("study")
    return row.state, row.reason


def events(store: Store, kind: str = "enough") -> list[str]:
    told = "SELECT reason FROM orchestrator.event WHERE kind = %s ORDER BY event_id"
    return [reason for (reason,) in query(store.url, told, kind)]


def test_what_ten_workers_find_at_once_is_done_once_and_running_trials_end_as_ever(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(made()).study_id
    finish(store, run(store, lease, study, 3))
    *others, running = run(store, lease, study, 2)
    finish(store, others)
    launched = store.reads.find("study").launched_at

    def ends(worker: int) -> bool:
        return Store(store.url).stopping.end_study(study, f"found by {worker}", launched)

    with ThreadPoolExecutor(10) as ten:
        assert sum(ten.map(ends, range(10))) == 1
    (told,) = events(store)
    assert told.startswith("enough: found by ")
    assert state(store) == ("ACTIVE", None)
    again = store.studies.launch(made(config="with: a setting more"))
    assert (again.added, again.open_tickets) == (0, 1), "the one that runs"
    launched = store.reads.find("study").launched_at
    assert start(store, lease, study) is None
    end(store, running)
    assert state(store) == ("FINISHED", f"{told}; 5 of 10 trials saved")
    assert store.doctor.examine().findings == ()
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.spent, progress.total) == (5, 5)


def test_every_cell_has_its_share_first(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(made()).study_id
    first, *others = run(store, lease, study, 3)
    assert not enough(store, study), "they run"
    finish(store, others)
    end(store, first, BROKEN)
    assert not enough(store, study), "one waits for another try"
    (again,) = run(store, lease, study, 1)
    assert again.cell == first.cell
    end(store, again)
    before = store.reads.find("study").launched_at - timedelta(seconds=1)
    assert not store.stopping.end_study(study, WHY, before), "it has been launched again since"
    assert enough(store, study)
    assert state(store) == ("FINISHED", f"enough: {WHY}; 7 of 10 trials saved")
    assert store.doctor.examine().findings == ()


def test_what_failed_is_given_back_or_comes_back_later_is_left_too(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(made()).study_id
    finish(store, run(store, lease, study, 3))
    failed, running = run(store, lease, study, 2)
    held = take(store, lease, study)
    assert held is not None
    end(store, failed, BROKEN)
    assert enough(store, study)
    store.ledger.release(held, "told to end")
    assert store.doctor.examine().findings == ()
    assert enough(store, study), "the one that was given back"
    assert len(events(store)) == 1
    assert start(store, lease, study) is None
    end(store, running)
    assert state(store) == ("FINISHED", f"enough: {WHY}; 6 of 10 trials saved")
    assert store.doctor.examine().findings == ()


def test_the_same_launch_adds_nothing_and_another_one_continues(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(made()).study_id
    finish(store, run(store, lease, study, 3))
    assert enough(store, study)
    why = f"enough: {WHY}; 7 of 10 trials saved"
    again = store.studies.launch(made(config="with: a setting more"))
    assert (again.added, again.open_tickets, again.reason) == (0, 0, why)
    store.interventions.enqueue(study, {"a": 2}, {"x": 0.25})
    finish(store, run(store, lease, study, 1))
    assert state(store) == ("FINISHED", why), "the trial by hand changes nothing"

    assert store.stopping.counts_from(study) == 0
    continued = store.studies.launch(made(stop_when=StopSettings()))
    store.studies.launch(made(stop_when=StopSettings()))
    assert store.stopping.counts_from(study) == 4, "it begins anew with what changes the study"
    assert continued.open_tickets == 7
    assert "stop_when.patience: 5 -> None" in continued.changes
    while (attempt := start(store, lease, study)) is not None:
        end(store, attempt)
    assert state(store) == ("FINISHED", "budget spent")
    assert store.doctor.examine().findings == ()


def test_a_configuration_that_was_promised_to_run_is_run(store: Store, lease: WorkerLease) -> None:
    first = [Enqueued(0, {"x": x}, "source", k) for k, x in enumerate((0.1, 0.2, 0.3))]
    prior = Prior("source", 77, (Observation(0, {"x": 0.5, "a": 0}, 1.0),))
    promised = made(warm_start=("source",), enqueue_best=3)
    study = store.studies.launch(promised, priors=[prior], enqueued=first).study_id
    finish(store, run(store, lease, study, 3))
    assert enough(store, study)
    assert state(store) == ("ACTIVE", None)
    left = run(store, lease, study, 2)
    end(store, left[0])
    end(store, left[1], BROKEN)
    assert start(store, lease, study) is not None, "its ticket is one as any other now"
    assert store.doctor.examine().findings == ()


def test_the_trials_that_confirm_are_left_to_be_run(store: Store, lease: WorkerLease) -> None:
    budget = Budget(10, 1, confirm=2)
    study = store.studies.launch(made(budget=budget)).study_id
    finish(store, run(store, lease, study, 3))
    assert enough(store, study, confirm=2)
    assert not enough(store, study, confirm=2)
    confirming = store.ledger.claim_one(lease, study, PLACE, confirm=2)
    assert isinstance(confirming, Undecided)
    assert confirming.confirms
    finish(store, run(store, lease, study, 1))
    assert enough(store, study), "there is nothing to confirm any more"
    assert state(store) == ("FINISHED", f"enough: {WHY}; 6 of 10 trials saved")
    assert store.doctor.examine().findings == ()


def test_a_settled_cell_leaves_its_trials_to_the_others_until_all_are_settled(
    store: Store, lease: WorkerLease
) -> None:
    cells = StopSettings(patience=1, scope="cell")
    study = store.studies.launch(made(stop_when=cells)).study_id

    def settle(*ordinals: int) -> bool:
        launched = store.reads.find("study").launched_at
        return store.stopping.settle_cells(study, dict.fromkeys(ordinals, WHY), launched)

    finish(store, run(store, lease, study, 2))
    assert not settle(0), "the third cell has not had its share"
    finish(store, run(store, lease, study, 1))
    (running,) = run(store, lease, study, 1)
    assert running.cell == 0
    assert settle(0, 2)
    assert not settle(0, 2)
    store.studies.launch(made(stop_when=cells))
    assert events(store, "cell settled") == [f"enough: {WHY}"] * 2
    others = run(store, lease, study, 2)
    assert {attempt.cell for attempt in others} == {1}
    end(store, running, BROKEN)
    assert settle(1)
    assert state(store) == ("ACTIVE", None)
    finish(store, others)
    why = "enough: every cell has had enough trials, or is closed; 5 of 10 trials saved"
    assert state(store) == ("FINISHED", why)
    assert store.doctor.examine().findings == ()
    assert store.studies.launch(made(stop_when=cells)).reason == why

    more = store.studies.launch(made(stop_when=replace(cells, patience=3)))
    assert more.open_tickets == 5
    finish(store, run(store, lease, study, 5))
    assert state(store) == ("FINISHED", "budget spent")
    assert store.doctor.examine().findings == ()
