"""The brake: a study whose first trials all fail alike pauses, and is afterwards as if they had
never run.
"""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.model import Budget, Completed, Failed, Pruned
from orchestrator.store import Attempt, Store, WorkerLease, is_braked, likeness
from tests.support.studies import end, spec, start


def broken(number: int | None) -> Failed:
    return Failed(
        "exception",
        f"RuntimeError: shapes (32x{number}) and (20x5) do not fit\nlog: /runs/trial-{number}\n  "
        "line",
    )


def fail(store: Store, lease: WorkerLease, study: int, most: int = 100) -> int:
    """Runs trials that all fail alike until the study hands out none; returns how many."""
    count = 0
    while count < most and (claim := start(store, lease, study)) is not None:
        end(store, claim, broken(claim.number))
        count += 1
        assert store.doctor.examine().findings == ()
    return count


def cells(store: Store) -> list[tuple[str, int, int]]:
    return [
        (c.state, c.failed, c.bound)
        for c in store.reads.progress(store.reads.find("study"), maximize=True).cells
    ]


@pytest.mark.parametrize(("workers", "expected"), [(1, 5), (2, 8), (9, 20)])
def test_a_bug_that_fails_every_trial_pauses_the_study_after_a_few(
    store: Store, lease: WorkerLease, workers: int, expected: int
) -> None:
    study = store.studies.launch(spec(cells=30, budget=Budget(30))).study_id
    for _ in range(workers - 1):
        store.fleet.register(60)
    store.fleet.register(60, studies=["other"])
    assert fail(store, lease, study) == expected, (
        "with one worker the first cell is given up before a second shows the bug"
    )
    row = store.reads.find("study")
    assert is_braked(row.state, row.reason)
    assert (
        f"the first {expected} trials failed alike, and none produced a result: RuntimeError: "
        "shapes"
    ) in str(row.reason)
    assert {(state, bound) for state, _, bound in cells(store)} == {("OPEN", 1)}, (
        "none stays closed for a bug of them all"
    )


def test_a_study_that_braked_goes_on_from_the_start_and_brakes_again_if_nothing_was_mended(
    store: Store, lease: WorkerLease
) -> None:
    wanted = spec(cells=3, budget=Budget(8, 2))
    study = store.studies.launch(wanted).study_id
    assert fail(store, lease, study) == 5
    store.interventions.resume(study, "ada@lab")
    assert fail(store, lease, study) == 5
    assert store.studies.launch(wanted).changes[0].startswith("study: paused by itself")
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)
    assert [
        c.spent for c in store.reads.progress(store.reads.find("study"), maximize=True).cells
    ] == [3, 3, 2]
    assert store.doctor.examine().findings == ()


@pytest.mark.parametrize(
    "result", [Completed((1.0,)), Pruned(), Failed("exception", "KeyError: 'lr'")]
)
def test_one_result_or_another_failure_leaves_the_rest_to_the_cells(
    store: Store, lease: WorkerLease, result: Any
) -> None:
    study = store.studies.launch(spec(cells=4, budget=Budget(4))).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, result)
    fail(store, lease, study)
    assert store.reads.find("study").state == "FINISHED"
    assert [state for state, *_ in cells(store)].count("CLOSED") >= 3


@pytest.mark.parametrize(("most", "count"), [(None, 12), (2, 5), (7, 7), (100, 12)])
def test_it_is_set_by_hand_or_off(
    store: Store, lease: WorkerLease, most: int | None, count: int
) -> None:
    study = store.studies.launch(
        spec(cells=3, budget=Budget(3, 1, max_failures_at_start=most))
    ).study_id
    assert fail(store, lease, study) == count
    assert store.reads.find("study").state == ("PAUSED" if count < 12 else "FINISHED")


def begin(store: Store, study: int, count: int) -> list[Attempt]:
    """As many trials, each of a worker of its own, all under way."""
    begun = [start(store, store.fleet.register(60), study) for _ in range(count)]
    return [claim for claim in begun if claim is not None]


def test_what_still_ran_when_the_brake_was_pulled_closes_no_cell_if_it_fails_alike(
    store: Store,
) -> None:
    study = store.studies.launch(spec(cells=2, budget=Budget(60, 30))).study_id
    for claim in begin(store, study, 40):
        end(store, claim, broken(claim.number))
    row = store.reads.find("study")
    assert is_braked(row.state, row.reason)
    assert "the first 40 trials failed alike" in str(row.reason)
    assert cells(store) == [("OPEN", 20, 30)] * 2
    assert store.doctor.examine().findings == ()


def test_a_pause_by_a_person_leaves_cells_open_where_all_that_ran_fails_alike(store: Store) -> None:
    study = store.studies.launch(spec(cells=2, budget=Budget(60, 30))).study_id
    running = begin(store, study, 40)
    for claim in running[:3]:
        end(store, claim, broken(claim.number))
    store.interventions.pause(study, "ada@lab", now=True)
    for claim in running[3:]:
        end(store, claim, broken(claim.number))
    assert store.reads.find("study").state == "PAUSED"
    assert cells(store) == [("OPEN", 20, 30)] * 2
    store.interventions.resume(study, "ada@lab")
    assert start(store, store.fleet.register(60), study) is not None


def test_what_fails_in_another_way_after_the_brake_speaks_against_its_cell(store: Store) -> None:
    study = store.studies.launch(spec(cells=2, budget=Budget(60, 30))).study_id
    running = begin(store, study, 40)
    for claim in running[:20]:
        end(store, claim, broken(claim.number))
    for claim in running[20:]:
        end(
            store,
            claim,
            Failed("exception", "KeyError: 'lr'") if claim.cell == 0 else Completed((1.0,)),
        )
    row = store.reads.find("study")
    assert is_braked(row.state, row.reason)
    assert [state for state, *_ in cells(store)] == ["CLOSED", "OPEN"]
    assert store.doctor.examine().findings == ()


def test_one_broken_cell_is_closed_and_the_others_run(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=3, budget=Budget(6, 2))).study_id
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, broken(claim.number) if claim.cell == 0 else None)
    assert store.reads.find("study").reason == "budget spent"
    assert [state for state, *_ in cells(store)] == ["CLOSED", "OPEN", "OPEN"]


def test_a_study_of_one_cell_is_paused_before_that_is_closed(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, budget=Budget(20))).study_id
    assert fail(store, lease, study) == 4
    assert (store.reads.find("study").state, cells(store)[0][0]) == ("PAUSED", "OPEN")


def test_memory_lost_workers_and_trials_by_hand_do_not_pull_it(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=6, budget=Budget(6, 1, max_failures_per_cell=0))
    ).study_id
    store.interventions.enqueue(study, {"a": 0}, {})
    by_hand = start(store, lease, study)
    assert by_hand is not None
    end(store, by_hand, broken(0))
    for _ in range(5):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, Failed("oom", "CUDA out of memory", memory="device"))
    assert store.reads.find("study").state == "ACTIVE"


def test_failures_are_alike_whatever_numbers_they_name() -> None:
    assert likeness("ValueError: lr=1.5e-05 at 0x7f00ab\nlog: a") == likeness(
        "ValueError: lr=0.2 at 0x1\nlog: b"
    )
    assert likeness("ValueError: lr") != likeness("KeyError: lr")
