"""Cells that run out of memory, on a real PostgreSQL: closed for a device type, the larger ones
too, and never for ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import psycopg2

from orchestrator.model import (
    Axis,
    Budget,
    Completed,
    Failed,
    JSONValue,
    Param,
    StudySpec,
    Suggestion,
)
from orchestrator.settings import InfeasibleSettings
from orchestrator.store import Attempt, CellRow, SlotOffer, Store, Ticket, Undecided, WorkerLease
from tests.support.studies import PLACE, RUNNER, begun, end, spec, start, take

GIB = 2**30
OOM = Failed("oom", "OutOfMemoryError: CUDA out of memory", memory="device", peak_bytes=23 * GIB)
HOST_OOM = Failed("oom", "the kernel's out-of-memory killer", memory="host", peak_bytes=60 * GIB)
GROWS = InfeasibleSettings(monotone={"a": "memory"})
NOT_DECLARED = InfeasibleSettings()


def worker(
    store: Store,
    name: str = "small",
    gpu_gib: float | None = 24,
    host_gib: int = 256,
    studies: list[str] | None = None,
) -> WorkerLease:
    """A worker that holds a device of its own."""
    lease = store.fleet.register(60, studies=studies)
    gpu_bytes = None if gpu_gib is None else int(gpu_gib * GIB)
    offer = SlotOffer("host", f"GPU-{lease.worker_id}", 0, name, gpu_bytes, host_gib * GIB)
    assert store.fleet.claim_slot(lease, [offer]) == offer
    return lease


def launch(
    store: Store, cells: int = 3, infeasible: InfeasibleSettings = GROWS, **changes: Any
) -> int:
    return store.studies.launch(spec(cells=cells, infeasible=infeasible, **changes)).study_id


def begin(store: Store, lease: WorkerLease, study: int) -> Attempt:
    claim = start(store, lease, study)
    assert claim is not None
    return claim


def work(store: Store, lease: WorkerLease, study: int, fits: int = 1_000_000) -> list[int]:
    """Runs all that there is for this worker, where a cell above `fits` exhausts memory; returns
    the cells in order.
    """
    ran = []
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, OOM if claim.cell > fits else None)
        ran.append(claim.cell)
    return ran


def state(store: Store) -> tuple[str, str | None]:
    row = store.reads.find("study")
    return row.state, row.reason


def healthy(store: Store) -> bool:
    return store.doctor.examine().findings == ()


def cells(store: Store) -> tuple[CellRow, ...]:
    return store.reads.progress(store.reads.find("study"), maximize=True).cells


def closed(store: Store) -> dict[int, list[str]]:
    """For each cell the devices that get no trial of it."""
    return {
        c.ordinal: [f"{k.device}: {k.reason}" for k in c.closed_for]
        for c in cells(store)
        if c.closed_for
    }


# -------------------------------------------------------------------------------- for a device type


def test_one_death_closes_the_cell_and_those_above_it_for_that_device_type_alone(
    store: Store,
) -> None:
    study = launch(store, cells=4)
    small, alike, large = worker(store), worker(store), worker(store, "large", 80)
    assert work(store, small, study, fits=1) == [0, 1, 2]
    assert closed(store) == {
        2: ["small (24 GiB): trial 2 ran out of memory"],
        3: ["small (24 GiB): trial 2 ran out of memory at a=2, and the memory needed grows with a"],
    }
    assert start(store, alike, study) is None, "another device of that type need not try"
    assert work(store, large, study) == [2, 3]
    assert state(store) == ("FINISHED", "budget spent")
    assert healthy(store)


def test_a_device_with_less_memory_is_closed_too_and_one_that_reports_a_little_more_is_the_same(
    store: Store,
) -> None:
    study = launch(store, cells=2)
    assert work(store, worker(store), study, fits=-1) == [0]
    assert start(store, worker(store, "tiny", 8), study) is None
    assert start(store, worker(store, "small", 24.2), study) is None
    assert start(store, worker(store, "half a large one", 40), study) is not None


def test_a_cell_is_known_by_its_other_values_and_by_the_order_of_numbers(store: Store) -> None:
    grid = (Axis("a", (8, 0.5, 64)), Axis("b", ("x", "y")))
    made = spec(trials=6, grid=grid, infeasible=GROWS)
    study = store.studies.launch(made).study_id
    first = begin(store, worker(store), study)
    assert first.cell_values == {"a": 8, "b": "x"}
    end(store, first, OOM)
    assert [made_cell(made, k) for k in closed(store)] == [{"a": 8, "b": "x"}, {"a": 64, "b": "x"}]


def made_cell(made: StudySpec, ordinal: int) -> dict[str, JSONValue]:
    return list(made.cells())[ordinal]


def test_with_two_declared_axes_only_what_is_larger_in_both_is_closed(store: Store) -> None:
    grid = (Axis("a", (1, 2, 3)), Axis("b", (1, 2)))
    both = InfeasibleSettings(max_per_cell=0, monotone={"a": "memory", "b": "memory"})
    made = spec(trials=6, grid=grid, infeasible=both)
    study, lease = store.studies.launch(made).study_id, worker(store)
    while (claim := take(store, lease, study)) is not None:
        end(
            store,
            begun(store, claim, lease, params(claim)),
            OOM if claim.cell_values == {"a": 2, "b": 1} else None,
        )
    assert [made_cell(made, k) for k in closed(store)] == [
        {"a": a, "b": b} for a in (2, 3) for b in (1, 2)
    ]


def params(claim: Ticket) -> Suggestion:
    json = (
        '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 9}}'
    )
    stored = tuple(Param(path, float(value), json) for path, value in claim.cell_values.items())
    return Suggestion(stored, dict(claim.cell_values))


def test_without_a_declaration_memory_is_counted_by_device_and_not_among_other_failures(
    store: Store,
) -> None:
    budget = Budget(1, 1, max_failures_per_cell=1)
    study = launch(store, cells=1, infeasible=NOT_DECLARED, budget=budget)
    small, large = worker(store), worker(store, "large", 80)
    for lease in (small, large):
        end(store, begin(store, lease, study), OOM)
    end(store, begin(store, small, study), Failed("exception", "broken"))
    assert closed(store) == {}
    end(store, begin(store, small, study), OOM)
    assert closed(store) == {
        0: ["small (24 GiB): 2 trials in a row, the last of them trial 3, ran out of memory"]
    }
    assert start(store, small, study) is None
    end(store, begin(store, large, study))
    assert state(store) == ("FINISHED", "budget spent")
    assert healthy(store)


def test_a_trial_that_runs_to_its_end_there_opens_the_cell_again(store: Store) -> None:
    study = launch(store, cells=2, per_cell=2)
    one, two = worker(store), worker(store)
    first, second = begin(store, one, study), begin(store, two, study)
    end(store, first, OOM)
    assert set(closed(store)) == {0, 1}
    end(store, second)
    assert set(closed(store)) == {0}, "cell 1 fits, as was seen"
    assert healthy(store)


def test_a_cell_that_ran_to_its_end_on_such_a_device_is_not_closed_for_what_another_cell_did(
    store: Store,
) -> None:
    study = launch(store, cells=2)
    one, two = worker(store), worker(store)
    first, second = begin(store, one, study), begin(store, two, study)
    end(store, second)
    end(store, first, OOM)
    assert set(closed(store)) == {0}


def test_the_hosts_memory_is_not_the_devices(store: Store) -> None:
    """Died with so many GiB of GPU (None: on the CPU, 0: not told) and of RAM; whether another
    device still gets the cell.
    """
    for number, (died_on, failure, other, gets_one) in enumerate(
        (
            ((None, 64), HOST_OOM, (None, 64), False),
            ((None, 64), OOM, (None, 64), False),  # whatever the library calls the memory of a CPU
            ((None, 64), HOST_OOM, (None, 512), True),
            ((None, 64), HOST_OOM, (24, 64), True),
            ((24, 64), HOST_OOM, (80, 64), False),
            ((24, 64), HOST_OOM, (24, 512), True),
            ((24, 64), OOM, (24, 512), False),
            ((24, 64), OOM, (None, 64), True),
            ((0, 64), OOM, (0, 64), False),  # a name is a type then
        )
    ):
        study = store.studies.launch(spec(f"study-{number}", cells=1, infeasible=GROWS)).study_id
        end(store, begin(store, worker(store, "it", *died_on), study), failure)
        assert (start(store, worker(store, "it", *other), study) is not None) is gets_one, (
            died_on,
            failure,
            other,
        )


def test_what_is_known_of_the_death_is_told_with_the_trial_and_kept_with_its_attempt(
    store: Store,
) -> None:
    study = launch(store, cells=1)
    end(store, begin(store, worker(store), study), OOM)
    (trial,) = optuna.load_study(study_name="study", storage=store.url).trials
    assert trial.state.name == "FAIL"
    assert trial.constraints == {}, "plain Optuna reads a FAIL and no more"
    told = trial.user_attrs["orchestrator:failure"]
    assert {key: told[key] for key in ("kind", "memory", "device", "bytes", "peak_bytes")} == {
        "kind": "oom",
        "memory": "gpu",
        "device": "small",
        "bytes": 24 * GIB,
        "peak_bytes": 23 * GIB,
    }
    rows = sql(
        store.url, "SELECT device_name, gpu_bytes, host_bytes, peak_bytes FROM orchestrator.attempt"
    )
    assert rows == [("small", 24 * GIB, 256 * GIB, 23 * GIB)]


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


# ------------------------------------------------------------------ what is given to whom, and when


def test_a_trial_given_back_is_not_taken_up_where_its_cell_does_not_fit(store: Store) -> None:
    study = launch(store, cells=1, per_cell=2)
    small, large = worker(store), worker(store, "large", 80)
    held, dies = begin(store, large, study), begin(store, small, study)
    end(store, dies, OOM)
    store.ledger.release(held, "drained")
    assert start(store, small, study) is None
    taken_up = begin(store, worker(store, "large", 80), study)
    assert (taken_up.number, taken_up.attempt) == (held.number, 2)


def test_beyond_the_shares_a_device_gets_the_cells_it_can_run(store: Store) -> None:
    study = launch(store, cells=2, trials=6)
    small, large = worker(store), worker(store, "large", 80)
    assert work(store, small, study, fits=0) == [0, 1], (
        "the share of cell 1 is the large one's: no cell gets more before"
    )
    end(store, begin(store, large, study))
    assert work(store, small, study, fits=0) == [0, 0, 0, 0]
    assert state(store) == ("FINISHED", "budget spent")
    assert healthy(store)


def test_an_adaptive_allocation_is_offered_the_cells_that_fit(store: Store) -> None:
    study = launch(store, cells=3, trials=5, allocation="adaptive")
    small, large = worker(store), worker(store, "large", 80)
    work(store, small, study, fits=1)
    end(store, begin(store, large, study))
    for lease, offered in ((small, [0, 1]), (large, [0, 1, 2])):
        undecided = store.ledger.claim_one(lease, study, PLACE, adaptive=True)
        assert isinstance(undecided, Undecided)
        assert [ordinal for ordinal, _ in undecided.cells] == offered


def test_a_trial_by_hand_runs_wherever_it_is_taken(store: Store) -> None:
    study = launch(store, cells=1)
    small = worker(store)
    end(store, begin(store, small, study), OOM)
    store.interventions.enqueue(study, {"a": 0}, {"x": 0.25})
    by_hand = begin(store, small, study)
    end(store, by_hand, OOM)
    assert healthy(store)


# ------------------------------------------------------------------------------- and never for ever


def test_what_no_living_worker_can_run_is_closed_for_all_once_nothing_else_is_left(
    store: Store,
) -> None:
    study = launch(store, cells=3, trials=5)
    small, alike = worker(store), worker(store)
    running = begin(store, alike, study)
    end(store, begin(store, small, study), OOM)
    assert start(store, small, study) is None
    store.ledger.end_studies()
    assert [c.state for c in cells(store)] == ["OPEN", "OPEN", "OPEN"], "something runs"
    end(store, running)
    store.ledger.end_studies()
    assert [c.state for c in cells(store)] == ["OPEN", "CLOSED", "CLOSED"]
    assert (
        cells(store)[1].reason
        == "no living worker has the memory for it; small (24 GiB): trial 1 ran out of memory"
    )
    assert work(store, small, study) == [0, 0, 0, 0], "their tickets go to the others"
    assert state(store) == ("FINISHED", "budget spent")
    assert healthy(store)


def test_it_waits_for_a_larger_device_that_lives_and_serves_the_study(store: Store) -> None:
    study = launch(store, cells=1)
    small, large = worker(store), worker(store, "large", 80)
    elsewhere = worker(store, "larger", 141, studies=["another"])
    end(store, begin(store, small, study), OOM)
    store.ledger.end_studies()
    assert state(store) == ("ACTIVE", None)
    store.ledger.deregister(large, "done")
    store.ledger.end_studies()
    assert state(store) == ("FINISHED", "every cell is closed")
    store.ledger.deregister(elsewhere, "done")
    assert healthy(store)


def test_without_any_living_worker_nothing_is_closed_for_all(store: Store) -> None:
    study = launch(store, cells=1)
    small = worker(store)
    end(store, begin(store, small, study), OOM)
    store.ledger.deregister(small, "done")
    store.ledger.end_studies()
    assert state(store) == ("ACTIVE", None)
    assert healthy(store)


def test_a_trial_that_waits_for_a_device_that_is_gone_ends_with_its_cell(store: Store) -> None:
    study = launch(store, cells=1, per_cell=2)
    small, large = worker(store), worker(store, "large", 80)
    held, dies = begin(store, large, study), begin(store, small, study)
    end(store, dies, OOM)
    store.ledger.release(held, "drained")
    store.ledger.end_studies()
    assert state(store) == ("ACTIVE", None), "the large one lives"
    store.ledger.deregister(large, "done")
    store.ledger.end_studies()
    assert state(store) == ("FINISHED", "every cell is closed")
    trials = store.reads.trials(study)
    assert [t.state for t in trials] == ["FAIL", "FAIL"]
    assert "no living worker has a larger one" in (trials[0].failure or "")
    assert healthy(store)


def test_a_trial_given_back_in_a_cell_that_other_failures_closed_does_not_wait_for_ever(
    store: Store,
) -> None:
    study = launch(store, cells=1, per_cell=3, budget=Budget(3, 3, max_failures_per_cell=0))
    small, alike, large = worker(store), worker(store), worker(store, "large", 80)
    held, dies, fails = (
        begin(store, large, study),
        begin(store, small, study),
        begin(store, alike, study),
    )
    end(store, dies, OOM)
    end(store, fails, Failed("exception", "broken"))
    assert cells(store)[0].state == "CLOSED"
    store.ledger.release(held, "drained")
    store.ledger.deregister(large, "done")
    assert start(store, small, study) is None
    store.ledger.end_studies()
    assert state(store) == ("FINISHED", "every cell is closed")
    assert healthy(store)


def test_a_retry_opens_the_cell_and_all_that_the_trial_closed_for_every_device(
    store: Store,
) -> None:
    study = launch(store, cells=3)
    small = worker(store)
    assert work(store, small, study, fits=0) == [0, 1]
    store.ledger.end_studies()
    assert work(store, small, study) == [0, 0], "the tickets of the others"
    assert state(store) == ("FINISHED", "budget spent")
    store.studies.launch(replace(spec(cells=3, infeasible=GROWS), budget=Budget(9)))
    store.interventions.retry(study, 1)
    assert closed(store) == {}
    assert [c.state for c in cells(store)] == ["OPEN", "OPEN", "OPEN"]
    assert set(work(store, small, study)) == {1, 2}, "cell 0 has had as many before"
    assert healthy(store)


def test_an_older_study_without_the_section_goes_on(store: Store) -> None:
    study = launch(store, cells=1, runner=RUNNER)
    sql(
        store.url,
        "UPDATE orchestrator.study SET spec = CAST(CAST(spec AS jsonb) - 'infeasible' AS json)",
    )
    lease = worker(store)
    end(store, begin(store, lease, study), OOM)
    end(store, begin(store, lease, study), Completed((1.0,)))
    assert state(store) == ("FINISHED", "budget spent")
