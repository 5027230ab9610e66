"""Probes, on a real PostgreSQL: each is measured once per cell and device type, by one worker,
before the cell's first trial there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import optuna
import pytest

from orchestrator.cli.probes import outside
from orchestrator.errors import LeaseLostError
from orchestrator.measurement import Measurement
from orchestrator.model import Axis, Budget, Failed, JSONValue
from orchestrator.settings import InfeasibleSettings
from orchestrator.store import (
    Choice,
    Leavings,
    Probe,
    Progress,
    Silent,
    SlotOffer,
    Store,
    Ticket,
    Undecided,
    WorkerLease,
)
from orchestrator.store.ledger.probes import LostRaceError, begin_due
from tests.support.invariants import query
from tests.support.studies import PLACE, RUNNER, begun, end, spec

GIB = 2**30
PROBES: Mapping[str, Mapping[str, JSONValue]] = {"p": {"_target_": "my.probe"}}
KEYS = {"p": "key"}
NARROW = Measurement(bounds={"x": (0.2, 0.4)}, facts={"steps": 300})


def worker(store: Store, name: str = "small", gib: float = 24.0) -> WorkerLease:
    lease = store.fleet.register(60)
    offer = SlotOffer("host", f"GPU-{lease.worker_id}", 0, name, int(gib * GIB), 256 * GIB)
    assert store.fleet.claim_slot(lease, [offer]) == offer
    return lease


def claim(
    store: Store, lease: WorkerLease, study: int, keys: Mapping[str, str] = KEYS, **more: Any
) -> Probe | Ticket | None:
    claimed = store.ledger.claim_one(lease, study, PLACE, keys=keys, max_attempts=3, **more)
    assert claimed is None or isinstance(claimed, Probe | Ticket)
    return claimed


def probe(store: Store, lease: WorkerLease, study: int, keys: Mapping[str, str] = KEYS) -> Probe:
    claimed = claim(store, lease, study, keys)
    assert isinstance(claimed, Probe)
    return claimed


def ticket(store: Store, lease: WorkerLease, study: int) -> Ticket:
    claimed = claim(store, lease, study)
    assert isinstance(claimed, Ticket)
    return claimed


def finish(store: Store, held: Probe, found: Measurement = NARROW) -> list[str]:
    return store.probes.finish(held, found, 1.5, {"host": "here"}, {})


def evict(store: Store, lease: WorkerLease) -> None:
    assert store.ledger.evict(
        Silent(lease.worker_id, dead=True, reason="a test", token=lease.token)
    )


@pytest.fixture
def study(store: Store) -> int:
    """Three cells with two trials each."""
    return store.studies.launch(
        spec(cells=3, per_cell=2, probes=PROBES, infeasible=InfeasibleSettings(monotone={"a": "m"}))
    ).study_id


def test_each_cell_is_measured_before_its_first_trial_and_its_trials_get_what_was_found(
    store: Store, study: int
) -> None:
    lease, cells = worker(store), []
    for _ in range(3):
        held = probe(store, lease, study)
        cells.append(held.cell)
        finish(store, held)
        first = ticket(store, lease, study)
        assert (first.cell, first.measurements) == (held.cell, (NARROW.to_json(),))
        end(store, begun(store, first, lease))
    assert cells == [0, 1, 2]
    for _ in range(3):
        end(store, begun(store, ticket(store, lease, study), lease))
    assert store.reads.find("study").reason == "budget spent"
    rows = store.measured.of(study)
    assert [(row.cell, row.state, row.measurement) for row in rows] == [
        (cell, "DONE", NARROW.to_json()) for cell in range(3)
    ]
    assert store.doctor.examine().findings == ()


def test_a_study_without_probes_asks_for_none(store: Store, study: int) -> None:
    assert isinstance(claim(store, worker(store), study, {}), Ticket)


def test_while_one_worker_measures_a_cell_the_others_go_on_with_other_cells(
    store: Store, study: int
) -> None:
    first, second, third, fourth = (worker(store) for _ in range(4))
    held = [probe(store, lease, study) for lease in (first, second, third)]
    assert [one.cell for one in held] == [0, 1, 2]
    assert claim(store, fourth, study) is None, "every cell is being measured"
    finish(store, held[1])
    mine = ticket(store, fourth, study)
    assert (mine.cell, mine.measurements) == (1, (NARROW.to_json(),))


def test_ten_workers_at_once_measure_each_cell_once(store: Store) -> None:
    study = store.studies.launch(spec(cells=6, per_cell=3, probes=PROBES)).study_id

    def work(_: int) -> int:
        mine = Store(store.url)
        lease, measured = worker(mine), 0
        while mine.reads.find("study").state != "FINISHED":
            claimed = claim(mine, lease, study)
            if isinstance(claimed, Probe):
                finish(mine, claimed)
                measured += 1
            elif claimed is not None:
                assert claimed.measurements == (NARROW.to_json(),)
                end(mine, begun(mine, claimed, lease))
        mine.ledger.deregister(lease, "done")
        mine.rest()
        return measured

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(work, range(10))) == 6
    assert [row.attempt for row in store.measured.of(study)] == [1] * 6
    assert store.doctor.examine().findings == ()


def test_ahead_nothing_is_taken_of_a_cell_that_was_not_measured(store: Store, study: int) -> None:
    lease = worker(store)
    assert claim(store, lease, study, ahead=True) is None
    assert store.measured.of(study) == []
    finish(store, probe(store, lease, study))
    assert isinstance(claim(store, lease, study, ahead=True), Ticket)


def test_every_device_type_measures_for_itself(store: Store, study: int) -> None:
    small, alike, large = worker(store), worker(store, gib=24.1), worker(store, "large", 80.0)
    finish(store, probe(store, small, study))
    assert isinstance(claim(store, alike, study), Ticket), "a model's memory differs a little"
    again = probe(store, large, study)
    assert again.cell == 1, "the share of the first cell is claimed"
    wide = Measurement(bounds={"x": (0.1, 0.9)})
    finish(store, again, wide)
    assert ticket(store, large, study).measurements == (wide.to_json(),)


def test_one_whose_worker_died_is_taken_over_and_a_late_result_is_refused(
    store: Store, study: int
) -> None:
    doomed, other = worker(store), worker(store)
    lost = probe(store, doomed, study)
    evict(store, doomed)
    again = probe(store, other, study)
    assert (again.probe_id, again.attempt) == (lost.probe_id, 2)
    with pytest.raises(LeaseLostError, match="measured by another worker"):
        finish(store, lost)
    finish(store, again)
    assert [row.state for row in store.measured.of(study)] == ["DONE"]


def test_one_that_kills_its_workers_fails_and_its_cell_keeps_the_declared_bounds(
    store: Store, study: int
) -> None:
    for _ in range(3):
        lease = worker(store)
        assert probe(store, lease, study).cell == 0
        evict(store, lease)
    lease = worker(store)
    assert ticket(store, lease, study).measurements == ()
    (row,) = store.measured.of(study)
    assert (row.state, row.reason) == ("FAILED", "3 workers fell silent while they measured it")


def test_whoever_chose_a_cell_too_late_does_not_give_up_what_a_living_worker_measures(
    store: Store, study: int
) -> None:
    holder, late = worker(store), worker(store)
    held = probe(store, holder, study)
    ((ticket_id, cell_id),) = query(
        store.url,
        "SELECT t.ticket_id, r.cell_id FROM orchestrator.ticket t, orchestrator.probe r"
        " WHERE t.fixed IS NULL ORDER BY t.ticket_id LIMIT 1",
    )
    with (
        store.ledger._database.transaction() as c,
        pytest.raises(LostRaceError),
    ):
        begin_due(c, ticket_id, cell_id, late, PLACE, KEYS, max_attempts=1)
    finish(store, held)
    assert [row.state for row in store.measured.of(study)] == ["DONE"]


def test_one_whose_attempts_are_lost_fails_for_the_reason_of_the_last(
    store: Store, study: int
) -> None:
    lease = worker(store)
    for _ in range(3):
        store.probes.release(probe(store, lease, study), "its function is gone", lost=True)
    assert ticket(store, lease, study).measurements == ()
    (row,) = store.measured.of(study)
    assert row.reason == "3 attempts were lost, the last: its function is gone"


def test_however_often_one_is_given_back_it_does_not_fail(store: Store, study: int) -> None:
    lease = worker(store)
    first = probe(store, lease, study)
    for attempt in range(2, 6):
        store.probes.release(probe(store, lease, study), "the worker was told to end")
        again = probe(store, lease, study)
        assert again.probe_id == first.probe_id
        assert again.attempt >= attempt, "each has a run directory of its own"


def test_a_lost_answer_to_a_claim_leaves_nothing_behind(store: Store, study: int) -> None:
    lease = worker(store)
    first, again = probe(store, lease, study), probe(store, lease, study)
    assert (again.probe_id, again.cell) == (first.probe_id, first.cell)
    with pytest.raises(LeaseLostError):
        finish(store, first)
    finish(store, again)


def test_a_transient_failure_is_tried_again_as_often_as_that_of_a_trial(store: Store) -> None:
    once = store.studies.launch(
        spec(probes=PROBES, runner=RUNNER.__class__(retries=1, max_attempts=3))
    ).study_id
    lease = worker(store)
    assert store.probes.retry(probe(store, lease, once), "the disk was full")
    held = probe(store, lease, once)
    assert held.attempt == 2
    assert not store.probes.retry(held, "again")
    store.probes.fail(held, "the disk was full again", 0.1, {})
    assert ticket(store, lease, once).cell == 0


def test_other_code_or_another_declaration_measures_anew_and_the_old_answer_is_kept(
    store: Store, study: int
) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study))
    other = probe(store, lease, study, {"p": "other code"})
    assert other.cell == 0
    wide = Measurement(bounds={"x": (0.1, 0.9)})
    finish(store, other, wide)
    assert ticket(store, lease, study).measurements == (NARROW.to_json(),)
    assert [row.measurement for row in store.measured.of(study)] == [wide.to_json()], "the last"


def test_several_probes_are_measured_in_their_order(store: Store) -> None:
    study = store.studies.launch(spec(probes={"a": {}, "b": {}})).study_id
    lease, keys = worker(store), {"a": "1", "b": "2"}
    held = probe(store, lease, study, keys)
    assert held.name == "a"
    finish(store, held)
    held = probe(store, lease, study, keys)
    assert (held.name, held.cell) == ("b", 0)
    wide = Measurement(bounds={"x": (0.1, 0.9)})
    finish(store, held, wide)
    claimed = claim(store, lease, study, keys)
    assert isinstance(claimed, Ticket)
    assert claimed.measurements == (NARROW.to_json(), wide.to_json())


def test_a_trial_by_hand_and_one_that_was_given_back_need_none(store: Store, study: int) -> None:
    lease = worker(store)
    store.interventions.enqueue(study, {"a": 2}, {"x": 0.9})
    by_hand = claim(store, lease, study)
    assert isinstance(by_hand, Ticket)
    attempt = begun(store, by_hand, lease)
    store.ledger.release(attempt, "told to end")
    again = store.ledger.claim_one(lease, study, PLACE, keys=KEYS)
    assert again is not None
    assert not isinstance(again, Probe)


def test_a_retried_trial_repeats_its_parameters_without_a_probe(store: Store, study: int) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study))
    failed = begun(store, ticket(store, lease, study), lease)
    end(store, failed, Failed("exception", "dice"))
    store.interventions.retry(study, failed.number)
    assert store.probes.again(study, None, None) == 1
    repeated = ticket(store, lease, study)
    assert repeated.fixed == {"x": 0.5}


# ------------------------------------------------------------------------------------- closed cells


def progress(store: Store) -> Progress:
    return store.reads.progress(store.reads.find("study"), maximize=True)


def closed(store: Store) -> dict[int, Sequence[str]]:
    return {
        cell.ordinal: [one.device for one in cell.closed_for]
        for cell in progress(store).cells
        if cell.closed_for
    }


def test_a_cell_that_is_not_feasible_is_closed_for_the_device_type_alone(
    store: Store, study: int
) -> None:
    small, large = worker(store), worker(store, "large", 80.0)
    says = finish(store, probe(store, small, study), Measurement(infeasible="it needs 30 GiB"))
    assert says == ["a=0"]
    assert closed(store) == {0: ["small (24 GiB)"]}
    assert probe(store, small, study).cell == 1
    assert probe(store, large, study).cell == 0
    assert store.doctor.examine().findings == ()


def test_what_is_known_to_be_too_large_is_closed_untried(store: Store) -> None:
    grid = (Axis("a", (0, 1, 2, 3)), Axis("kind", ("s", "l")))
    study = store.studies.launch(
        spec(grid=grid, probes=PROBES, budget=Budget(8, 1, max_failures_at_start=None))
    ).study_id
    lease = worker(store)
    held = probe(store, lease, study)
    assert held.cell_values == {"a": 0, "kind": "s"}
    assert finish(store, held, Measurement(largest={"a": 1.5})) == ["a=2 kind=s", "a=3 kind=s"]
    assert sorted(closed(store)) == [4, 6]
    events = query(
        store.url,
        "SELECT reason FROM orchestrator.event WHERE kind = 'cell closed for a device'",
    )
    assert ("small (24 GiB): probe p: the largest a that fits is 1.5",) in events
    assert store.doctor.examine().findings == ()


def test_a_cell_in_which_a_trial_ran_to_its_end_there_is_not_closed(
    store: Store, study: int
) -> None:
    lease = worker(store)
    done = claim(store, lease, study, {})
    assert isinstance(done, Ticket)
    end(store, begun(store, done, lease))
    other = claim(store, lease, study)
    assert isinstance(other, Probe)
    finish(store, other, Measurement(largest={"a": -1.0}))
    assert sorted(closed(store)) == [1, 2], "but not the first, which has run"


def test_measured_anew_it_is_open_again(store: Store, study: int) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study), Measurement(infeasible="no", largest={"a": -1.0}))
    assert sorted(closed(store)) == [0, 1, 2]
    assert claim(store, lease, study) is None
    assert store.probes.again(study, [0], ["p"]) == 1
    assert closed(store) == {}
    again = probe(store, lease, study)
    assert (again.cell, again.attempt) == (0, 2)
    assert store.probes.again(study, None, None) == 0, "it is being measured"
    finish(store, again)
    assert ticket(store, lease, study).measurements == (NARROW.to_json(),)


# ------------------------------------------------------------------------------------ what is shown


def test_its_artifacts_are_those_of_the_study(store: Store, study: int) -> None:
    lease = worker(store)
    record: dict[str, Any] = {
        "artifact_id": "6c2f0c1e-0a53-4a8e-9a57-2f6b1d2b8d33",
        "filename": "curve.html",
        "mimetype": "text/html",
        "encoding": None,
    }
    store.probes.finish(
        probe(store, lease, study), NARROW, 1.0, {}, {record["artifact_id"]: record}
    )
    loaded = optuna.load_study(study_name="study", storage=store.url)
    (found,) = optuna.artifacts.get_all_artifact_meta(loaded)
    assert (found.artifact_id, found.filename) == (record["artifact_id"], "curve.html")


def test_a_person_who_halts_the_study_halts_its_probes(store: Store, study: int) -> None:
    lease = worker(store)
    probe(store, lease, study)
    assert not store.fleet.renew(lease, "measuring").halted
    store.interventions.pause(study, "a test", now=True)
    assert store.fleet.renew(lease, "measuring").halted


def test_the_events_say_what_was_found_and_what_failed(store: Store, study: int) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study))
    ticket(store, lease, study)
    store.probes.fail(probe(store, lease, study), "ValueError: no", 0.1, {})
    events = query(
        store.url, "SELECT kind, reason FROM orchestrator.event WHERE kind LIKE 'probe%'"
    )
    assert events == [
        ("probe done", "probe p on small: x from 0.2 to 0.4"),
        ("probe failed", "probe p on small: ValueError: no"),
    ]


def test_a_study_whose_cell_is_being_measured_cannot_be_deleted(store: Store, study: int) -> None:
    held = probe(store, worker(store), study)
    assert json.loads(json.dumps(vars(store.deletion.examine(study)))) == {
        "followed": False,
        "held": 1,
    }
    finish(store, held)
    leavings = store.deletion.examine(study)
    assert isinstance(leavings, Leavings)
    places = [(place.host, place.runs_dir, place.attempts) for place in leavings.places]
    assert places == [(PLACE.host, PLACE.runs_dir, 0)], "its run directories, and no trial's"


# ------------------------------------------------------------------------------- found in a review


def test_a_late_answer_of_an_evicted_worker_closes_the_cell_for_the_gpu_it_ran_on(
    store: Store, study: int
) -> None:
    doomed, other = worker(store), worker(store)
    held = probe(store, doomed, study)
    evict(store, doomed)
    finish(store, held, Measurement(infeasible="it needs 30 GiB"))
    assert closed(store) == {0: ["small (24 GiB)"]}
    assert probe(store, other, study).cell == 1


def test_another_declaration_measures_a_closed_cell_anew(store: Store, study: int) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study), Measurement(infeasible="no", largest={"a": -1.0}))
    assert sorted(closed(store)) == [0, 1, 2]
    store.probes.suit(lease, study, KEYS)
    assert claim(store, lease, study) is None
    other = {"p": "other"}
    store.probes.suit(lease, study, other)
    assert closed(store) == {}
    finish(store, probe(store, lease, study, other), Measurement(infeasible="still no"))
    for keys in (KEYS, other):
        store.probes.suit(lease, study, keys)
        assert sorted(closed(store)) == [0], "each version of the code looks for itself, once"


def test_measured_anew_a_cell_that_was_closed_for_all_is_open_again(store: Store) -> None:
    study = store.studies.launch(spec(cells=2, per_cell=2, probes=PROBES)).study_id
    lease = worker(store)
    for _ in range(2):
        finish(store, probe(store, lease, study), Measurement(infeasible="too few samples"))
    store.ledger.end_studies()
    assert store.reads.find("study").reason == "every cell is closed"
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    why = "no living worker can run it; small (24 GiB): probe p: too few samples"
    assert [cell.reason for cell in progress.cells] == [why, why], "nothing is said of memory"
    assert store.probes.again(study, [1], None) == 1
    assert store.reads.find("study").state == "ACTIVE"
    finish(store, probe(store, lease, study))
    for _ in range(2):
        mine = ticket(store, lease, study)
        assert mine.cell == 1
        end(store, begun(store, mine, lease))
    assert store.reads.find("study").reason == "budget spent"
    assert store.doctor.examine().findings == ()


def test_a_study_that_is_stopped_at_once_halts_its_probes(store: Store, study: int) -> None:
    lease = worker(store)
    probe(store, lease, study)
    store.interventions.stop(study, "a test", now=True)
    store.ledger.end_studies()
    assert store.reads.find("study").state == "FINISHED"
    assert store.fleet.renew(lease, "measuring").halted


def test_one_that_failed_when_measured_anew_leaves_the_declared_bounds(
    store: Store, study: int
) -> None:
    lease = worker(store)
    finish(store, probe(store, lease, study))
    store.probes.again(study, [0], None)
    for _ in range(3):
        lease = worker(store)
        assert probe(store, lease, study).cell == 0
        evict(store, lease)
    assert ticket(store, worker(store), study).measurements == ()


def test_a_repetition_needs_no_probe(store: Store) -> None:
    budget = Budget(4, 1, max_failures_at_start=None, confirm=2)
    study = store.studies.launch(spec(cells=2, probes=PROBES, budget=budget)).study_id
    lease, other = worker(store), worker(store, "large", 80.0)
    for _ in range(2):
        finish(store, probe(store, lease, study))
        end(store, begun(store, ticket(store, lease, study), lease))
    asked = store.ledger.claim_one(other, study, PLACE, keys=KEYS, max_attempts=3, confirm=2)
    assert isinstance(asked, Undecided)
    choice = Choice(0, {"rule": "confirm"}, confirms=0)
    claimed = store.ledger.claim_one(
        other, study, PLACE, choice, keys=KEYS, max_attempts=3, confirm=2
    )
    assert isinstance(claimed, Ticket)
    assert claimed.confirms == 0


def test_of_two_types_that_are_alike_one_measurement_counts(store: Store, study: int) -> None:
    low, high = worker(store, gib=24.0), worker(store, gib=24.6)
    first = probe(store, low, study)
    finish(store, first)
    second = store.ledger.claim_one(high, study, PLACE, keys=KEYS, max_attempts=3)
    assert isinstance(second, Probe)
    finish(store, second, Measurement(bounds={"x": (0.1, 0.9)}))
    between = worker(store, gib=24.3)
    assert ticket(store, between, study).measurements == (NARROW.to_json(),)


def test_what_a_worker_does_not_know_that_it_measures_is_given_back(
    store: Store, study: int
) -> None:
    lease, other = worker(store), worker(store)
    lost = probe(store, lease, study)
    assert not store.fleet.renew(lease, "measuring", holds=[lost.token]).strays
    assert store.fleet.renew(lease, "idle").strays
    store.ledger.give_back_held(lease, "the answer to its claim was lost", but=[lost.token])
    assert store.measured.of(study)[0].held
    store.ledger.give_back_held(lease, "the answer to its claim was lost")
    again = probe(store, other, study)
    assert again.probe_id == lost.probe_id
    for _ in range(4):
        store.ledger.deregister(other, "ended in order")
        other = worker(store)
        assert probe(store, other, study).probe_id == lost.probe_id, "never counted as lost"


def test_what_the_study_no_longer_measures_is_not_shown(store: Store, study: int) -> None:
    finish(store, probe(store, worker(store), study))
    launched = spec(cells=3, per_cell=2, probes={"q": PROBES["p"]})
    monotone = InfeasibleSettings(monotone={"a": "m"})
    store.studies.launch(replace(launched, infeasible=monotone))
    assert store.measured.of(study) == []
    store.studies.launch(replace(launched, probes=PROBES, infeasible=monotone))
    assert [row.name for row in store.measured.of(study)] == ["p"]


def test_a_value_outside_is_judged_by_each_amount_of_memory_for_itself(
    store: Store, study: int
) -> None:
    finish(store, probe(store, worker(store), study), Measurement(bounds={"x": (0.1, 0.5)}))
    store.probes.again(study, [0], None)
    larger = worker(store, gib=80.0)
    finish(store, probe(store, larger, study), Measurement(bounds={"x": (0.3, 0.9)}))
    rows = [row for row in store.measured.of(study) if row.cell == 0]
    assert outside(store.reads.spec(study), rows, {"a": 0}, {"x": 0.4}) == []
    assert outside(store.reads.spec(study), rows, {"a": 0}, {"x": 0.2}) == [
        "x=0.2 lies outside what the cell's probe found: 0.3 to 0.9"
    ]


def test_a_lost_answer_to_its_end_changes_nothing(store: Store, study: int) -> None:
    lease = worker(store)
    held = probe(store, lease, study)
    assert finish(store, held, Measurement(infeasible="no")) == ["a=0"]
    assert finish(store, held, Measurement(infeasible="no")) == []
    failed = probe(store, lease, study)
    for _ in range(2):
        store.probes.fail(failed, "ValueError: no", 0.1, {})
    with pytest.raises(LeaseLostError):
        finish(store, failed)
    events = query(store.url, "SELECT kind FROM orchestrator.event WHERE kind LIKE 'probe%'")
    assert events == [("probe done",), ("probe failed",)]


def test_other_code_opens_a_cell_that_was_closed_for_all(store: Store) -> None:
    budget = Budget(4, 1, max_failures_at_start=None)
    study = store.studies.launch(spec(cells=2, probes=PROBES, budget=budget)).study_id
    lease = worker(store)
    finish(store, probe(store, lease, study), Measurement(infeasible="no"))
    finish(store, probe(store, lease, study))
    end(store, begun(store, ticket(store, lease, study), lease))
    store.ledger.end_studies()
    assert [cell.state for cell in progress(store).cells] == ["CLOSED", "OPEN"]
    other = {"p": "other"}
    store.probes.suit(lease, study, other)
    assert [cell.state for cell in progress(store).cells] == ["OPEN", "OPEN"]
    held = probe(store, lease, study, other)
    assert held.cell == 0
    assert store.doctor.examine().findings == ()
