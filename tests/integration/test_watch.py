"""What people watch, from the real tables: running trials, what workers hold, the list of studies,
what a cell will get in the end.
"""

from __future__ import annotations

import pytest

from orchestrator.model import Completed, Pruned, Report, Reported
from orchestrator.store import Attempt, Held, Store, WorkerLease
from tests.support.studies import PLACE, begun, end, spec, start, suggestion, take


@pytest.fixture
def lease(store: Store) -> WorkerLease:
    return store.fleet.register(60)


def running(store: Store, lease: WorkerLease, study_id: int) -> Attempt:
    attempt = start(store, lease, study_id)
    assert attempt is not None
    return attempt


def test_a_running_trial_tells_its_last_step_and_how_many_it_reported(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=3)).study_id
    assert store.watch.running(study) == []
    first, second = running(store, lease, study), running(store, lease, study)
    store.ledger.report(first, Report(intermediate={0: 0.5, 10: float("inf"), 5: 0.25}))
    one, other = store.watch.running(study)
    assert (one.number, one.reports, one.first, one.last, one.value) == (0, 3, 0, 10, float("inf"))
    assert (one.attempt, one.worker_id, one.cell) == (1, lease.worker_id, 0)
    assert one.params == {"a": 0, "x": 0.5}
    assert 0 <= one.seconds < 60
    assert (other.number, other.reports, other.last, other.value) == (1, 0, None, None)
    store.ledger.release(second, "test")
    end(store, first)
    assert store.watch.running(study) == []


def test_last_steps_are_those_of_complete_trials_that_reported(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    for steps, outcome in (
        (3, Completed((1.0,))),
        (7, Completed((1.0,))),
        (2, Pruned()),
        (0, Completed((1.0,))),
    ):
        attempt = running(store, lease, study)
        report = Report(intermediate=dict.fromkeys(range(steps), 0.5))
        store.ledger.finish(attempt, outcome, report)
    assert store.watch.last_steps(study) == [(1, 6), (0, 2)]


def test_what_trials_have_reported_is_told_of_those_that_ended(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    assert store.reads.reported(study) == Reported(0, silent=True)
    end(store, running(store, lease, study))
    assert store.reads.reported(study) == Reported(1, silent=True)
    attempt = running(store, lease, study)
    store.ledger.report(attempt, Report(intermediate={3: 0.5, 9: 0.5}))
    assert store.reads.reported(study) == Reported(1, silent=False)
    end(store, attempt, Pruned())
    assert store.reads.reported(study) == Reported(1, silent=False, last=9, most=2)
    attempt = running(store, lease, study)
    store.ledger.finish(
        attempt, Completed((1.0,)), Report(intermediate=dict.fromkeys((0, 1, 2), 1))
    )
    assert store.reads.reported(study) == Reported(2, silent=False, last=9, most=3)


def test_what_a_worker_holds_is_the_trial_that_it_runs_before_one_that_it_prepared(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec("mine", cells=3)).study_id
    assert store.watch.held() == {}
    ticket = take(store, lease, study)
    assert ticket is not None
    assert store.watch.held() == {lease.worker_id: Held("mine", None, "CLAIMED")}
    prepared = store.ledger.create(ticket, suggestion(ticket), lease, PLACE, start=False)
    assert prepared is not None
    assert store.watch.held() == {lease.worker_id: Held("mine", 0, "PREPARED")}
    following = take(store, lease, study)
    assert following is not None
    begun(store, following, lease)
    assert store.watch.held() == {lease.worker_id: Held("mine", 1, "RUNNING")}


def test_a_study_in_the_list_tells_progress_best_and_age(store: Store, lease: WorkerLease) -> None:
    high = store.studies.launch(spec("high", cells=3)).study_id
    store.studies.launch(spec("low", cells=3, directions=("minimize",)))
    low = store.reads.find("low").study_id
    for study in (high, low):
        for value in (2.0, 3.0):
            end(store, running(store, lease, study), Completed((value,)))
    running(store, lease, high)
    rows = [store.reads.find("low"), store.reads.find("high")]
    first, second = store.watch.lines(rows)
    assert (first.row.name, first.spent, first.total, first.running) == ("low", 2, 3, 0)
    assert (first.best, first.best_trial) == (2.0, 0)
    assert (second.row.name, second.spent, second.total, second.running) == ("high", 2, 3, 1)
    assert (second.best, second.best_trial) == (3.0, 1)
    assert 0 <= second.idle_s < 60
    progress = store.reads.progress(rows[1], maximize=True)
    assert [line.best for line in store.watch.lines(rows, {high: progress})] == [2.0, 3.0]
    store.studies.launch(spec("new", cells=2))
    (new,) = store.watch.lines([store.reads.find("new")])
    assert (new.spent, new.total, new.best, new.best_trial) == (0, 2, None, None)


def shares(store: Store, most: int | None = None) -> list[tuple[int, int, bool]]:
    progress = store.reads.progress(store.reads.find("study"), maximize=True, most=most)
    return [(cell.ordinal, cell.share, cell.grows) for cell in progress.cells]


def test_a_uniform_study_says_what_each_cell_gets_in_the_end(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=3, trials=8)).study_id
    expected = [(0, 3, False), (1, 3, False), (2, 2, False)]
    assert shares(store) == expected
    assert shares(store, most=1) == expected[:1]
    for _ in range(8):
        end(store, running(store, lease, study))
        assert shares(store) == expected
    bound = store.reads.progress(store.reads.find("study"), maximize=True).cells
    assert [cell.bound for cell in bound] == [cell[1] for cell in expected]


def test_a_cell_with_more_tickets_than_its_part_keeps_them(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=5)).study_id
    for _ in range(5):
        end(store, running(store, lease, study))
    # the first cell has had three, the other two
    store.studies.launch(spec(cells=2, trials=6))
    assert shares(store) == [(0, 3, False), (1, 3, False)]
    store.studies.launch(spec(cells=2, trials=7))
    assert shares(store) == [(0, 4, False), (1, 3, False)]


def test_an_adaptive_study_says_that_a_cell_may_get_more(store: Store) -> None:
    store.studies.launch(spec(cells=2, trials=5, allocation="adaptive"))
    assert shares(store) == [(0, 1, True), (1, 1, True)]
    store.studies.launch(spec("full", cells=2, allocation="adaptive"))
    full = store.reads.progress(store.reads.find("full"), maximize=True).cells
    assert [(cell.share, cell.grows) for cell in full] == [(1, False), (1, False)]


def test_what_a_worker_said_has_an_age(store: Store, lease: WorkerLease) -> None:
    (worker,) = store.reads.workers()
    assert worker.doing == "starting"
    assert 0 <= worker.doing_s < 30
