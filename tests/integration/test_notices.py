"""What people are told of, on a real PostgreSQL: what happened since, once to each target."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from orchestrator.model import Budget, Completed, Failed
from orchestrator.settings import StopSettings
from orchestrator.store import Notices, Store, WorkerLease
from tests.support.studies import end, spec, start

BROKEN = Failed("exception", "ValueError: no\nlog: /somewhere", ("exception", "ValueError"))


def told(notices: Notices) -> list[tuple[str, str, str]]:
    return [(n.study, n.kind, n.reason) for n in notices.take()]


def run(store: Store, lease: WorkerLease, study: int, count: int = 99) -> None:
    while count and (attempt := start(store, lease, study)) is not None:
        end(store, attempt)
        count -= 1


def test_an_end_is_told_once_whoever_looks(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    workers = [Store(store.url).notices("team") for _ in range(6)]
    assert [worker.take() for worker in workers] == [[]] * 6
    other = store.notices("somebody else")
    elsewhere = store.notices("team of other studies", ["other"])
    assert (other.take(), elsewhere.take()) == ([], [])
    run(store, lease, study)

    with ThreadPoolExecutor(6) as six:
        taken = [notice for found in six.map(Notices.take, workers) for notice in found]
    (notice,) = taken
    assert (notice.study, notice.kind, notice.reason) == ("study", "finished", "budget spent")
    assert (notice.spent, notice.total, notice.failed) == (2, 2, 0)
    assert (notice.metric, notice.best, notice.best_trial) == ("value", 1.0, 1)
    assert told(other) == [("study", "finished", "budget spent")]
    assert told(elsewhere) == []
    late = store.notices("team")
    assert (late.take(), late.take()) == ([], []), "what happened before is not told"
    assert store.studies.launch(spec(cells=2)).added == 0
    assert told(workers[0]) == [], "a launch that adds nothing ends nothing"
    store.interventions.enqueue(study, {"a": 0}, {})
    run(store, lease, study)
    assert told(workers[1]) == [("study", "finished", "budget spent")]


def test_closed_cells_a_pulled_brake_and_every_kind_of_end_are_told(
    store: Store, lease: WorkerLease
) -> None:
    notices = store.notices("team")
    notices.take()
    closing = spec(cells=2, budget=Budget(2, 1, max_failures_per_cell=0))
    study = store.studies.launch(closing).study_id
    first, second = start(store, lease, study), start(store, lease, study)
    assert first is not None
    assert second is not None
    end(store, second, Completed((0.5,)))
    end(store, first, BROKEN)
    (cell,) = notices.take()
    assert (cell.kind, cell.cell, cell.failed) == ("cell closed", {"a": 0}, 1)
    assert cell.reason.startswith("1 trials failed in a row")

    braking = spec("braked", cells=4, budget=Budget(4, 1, max_failures_at_start=2))
    braked = store.studies.launch(braking).study_id
    for attempt in [start(store, lease, braked) for _ in range(2)]:
        assert attempt is not None
        end(store, attempt, BROKEN)
    (pause,) = told(notices)
    assert pause[:2] == ("braked", "paused")
    store.interventions.pause(study, "ada@lab")
    assert told(notices) == [], "whoever pauses a study knows it"
    store.interventions.stop(braked, "ada@lab")
    store.ledger.end_studies()
    assert told(notices) == [("braked", "finished", "stopped by ada@lab")]

    enough = spec("enough", cells=1, trials=5, stop_when=StopSettings(patience=1))
    early = store.studies.launch(enough).study_id
    run(store, lease, early, 1)
    row = store.reads.find("enough")
    assert store.stopping.end_study(early, "no better", row.launched_at)
    why = "enough: no better; 4 of 5 trials saved"
    assert told(notices) == [("enough", "finished", why)]
    store.deletion.begin(early, "ada@lab")
    assert told(notices) == []
