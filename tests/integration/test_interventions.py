"""What a person does to a study under way, on a real PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import optuna
import pytest

from orchestrator.errors import ConfigError, LeaseLostError
from orchestrator.model import Budget, Completed, Failed, Pruned, Report, trial_seed
from orchestrator.store import Attempt, Progress, Silent, Store, Ticket, WorkerLease
from tests.support.invariants import query
from tests.support.studies import PLACE, RUNNER, begun, end, spec, start

BROKEN = Failed("exception", "ValueError: no\nlog: /somewhere", ("exception", "ValueError"))


def state(store: Store, name: str = "study") -> tuple[str, str | None]:
    row = store.reads.find(name)
    return row.state, row.reason


def attrs(store: Store, number: int) -> dict[str, object]:
    study = optuna.load_study(study_name="study", storage=store.url)
    return study.get_trials(deepcopy=False)[number].user_attrs


def fixed_of(store: Store, attempt: Attempt) -> object:
    """What the ticket of the trial prescribes."""
    ticket = (
        "SELECT t.fixed FROM orchestrator.ticket t JOIN orchestrator.trial o USING (ticket_id) "
        "WHERE o.trial_id = %s"
    )
    ((fixed,),) = query(store.url, ticket, attempt.trial_id)
    return fixed


# ------------------------------------------------------------------------------ pause, resume, stop


def test_a_paused_study_hands_out_nothing_until_it_is_resumed(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    running = start(store, lease, study)
    assert running is not None
    store.interventions.pause(study, "ada@lab")
    assert state(store) == ("PAUSED", "paused by ada@lab")
    assert store.fleet.renew(lease, "training").halted is False
    end(store, running)
    assert start(store, lease, study) is None
    store.interventions.resume(study, "ada@lab")
    assert state(store) == ("ACTIVE", None)
    assert start(store, lease, study) is not None


def test_a_pause_at_once_reaches_the_worker_with_its_next_renewal(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    idle = store.fleet.register(60)
    running = start(store, lease, study)
    assert running is not None
    store.interventions.pause(study, "ada@lab", now=True)
    assert store.fleet.renew(lease, "training").halted is True
    assert store.fleet.renew(idle, "idle").halted is False
    store.ledger.release(running, "the study was paused or stopped")
    assert start(store, idle, study) is None
    store.interventions.resume(study, "ada@lab")
    again = start(store, idle, study)
    assert again is not None
    assert (again.number, again.attempt) == (running.number, 2)
    assert store.fleet.renew(idle, "training").halted is False


def test_a_stopped_study_is_finished_once_its_running_trials_are(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    running = start(store, lease, study)
    assert running is not None
    store.interventions.stop(study, "ada@lab")
    assert store.ledger.end_studies() == []
    assert state(store) == ("STOPPING", "stopped by ada@lab")
    end(store, running)
    assert state(store) == ("FINISHED", "stopped by ada@lab")
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE"]
    assert store.studies.launch(spec()).open_tickets == 3


def test_a_study_stopped_at_once_leaves_no_trial_running_and_counts_no_failure(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    running = start(store, lease, study)
    assert running is not None
    store.interventions.stop(study, "ada@lab", now=True)
    assert store.fleet.renew(lease, "training").halted is True
    store.ledger.release(running, "the study was paused or stopped")
    store.ledger.end_studies()
    assert state(store)[0] == "FINISHED"
    (trial,) = store.reads.trials(study)
    assert (trial.state, "stopped by ada@lab" in (trial.failure or "")) == ("FAIL", True)
    assert store.studies.launch(spec()).open_tickets == 4


def test_a_study_that_ends_waits_a_moment_for_the_result_a_dead_worker_left(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    running = start(store, lease, study)
    assert running is not None
    store.interventions.stop(study, "ada@lab")
    store.ledger.evict(Silent(lease.worker_id, dead=True, reason="its process died"))
    assert store.ledger.end_studies() == []
    (left,) = store.ledger.left_at(PLACE)
    assert (left.trial_id, left.token, left.attempt) == (running.trial_id, running.token, 1)
    end(store, left)
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE"]
    assert store.ledger.left_at(PLACE) == []


def test_what_a_finished_study_cannot_do_is_said(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    running = start(store, lease, study)
    assert running is not None
    end(store, running)
    with pytest.raises(ConfigError, match=r"cannot be paused: it is finished \(budget spent\)"):
        store.interventions.pause(study, "ada@lab")
    with pytest.raises(ConfigError, match=r"is finished \(budget spent\); launch it again"):
        store.interventions.resume(study, "ada@lab")
    store.interventions.stop(study, "ada@lab")
    assert state(store) == ("FINISHED", "budget spent")


def test_a_launch_goes_on_with_a_paused_study(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec()).study_id
    store.interventions.pause(study, "ada@lab", now=True)
    assert store.studies.launch(spec()).changes == ("study: paused by ada@lab -> active",)
    assert start(store, lease, study) is not None


# ------------------------------------------------------------------------------------------ enqueue


def test_a_trial_by_hand_is_next_and_on_top_of_the_budget(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=3, trials=4)).study_id
    store.interventions.enqueue(study, {"a": 2}, {"x": 0.25})
    first = start(store, lease, study)
    assert first is not None
    assert (first.cell, fixed_of(store, first)) == (2, {"x": 0.25})
    end(store, first)
    cells = []
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)
        cells.append(claim.cell)
    assert cells == [0, 1, 2, 0]
    assert state(store) == ("FINISHED", "budget spent")
    assert attrs(store, 0) == {"orchestrator:by_hand": True}
    assert attrs(store, 1) == {}


def test_a_trial_by_hand_wakes_a_study_whose_budget_is_spent(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    for _ in range(2):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim)
        assert state(store)[0] == "FINISHED"
        store.interventions.enqueue(study, {"a": 0}, {})
        assert state(store)[0] == "ACTIVE"
    assert store.studies.launch(spec(cells=1)).added == 0
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.spent, progress.total) == (2, 3)


def test_a_trial_by_hand_that_fails_is_not_tried_again_and_says_nothing_against_its_cell(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=1, budget=Budget(1, 1, max_failures_per_cell=0))
    ).study_id
    store.interventions.enqueue(study, {"a": 0}, {"x": 1.0})
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, BROKEN)
    share = start(store, lease, study)
    assert share is not None
    assert fixed_of(store, share) is None
    end(store, share)
    assert state(store) == ("FINISHED", "budget spent")


def test_a_cell_that_is_not_there_and_a_stopped_study_take_no_trial(store: Store) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    with pytest.raises(ConfigError, match="study study has no cell a=7"):
        store.interventions.enqueue(study, {"a": 7}, {})
    store.interventions.stop(study, "ada@lab")
    with pytest.raises(
        ConfigError,
        match="starts no trials: stopped by ada@lab; resume it first, or launch it again",
    ):
        store.interventions.enqueue(study, {"a": 1}, {})
    store.ledger.end_studies()
    with pytest.raises(ConfigError, match="starts no trials: stopped by ada@lab"):
        store.interventions.enqueue(study, {"a": 1}, {})


# --------------------------------------------------------------------------------- rerun with seeds


def test_a_complete_trial_is_repeated_with_other_seeds_on_top_of_the_budget(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    for _ in range(2):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim)
    assert state(store) == ("FINISHED", "budget spent")
    assert store.interventions.repeat(study, 1, 3) == {"a": 1, "x": 0.5}
    assert state(store) == ("ACTIVE", None)
    seeds = set()
    while (again := store.ledger.claim_one(lease, study, PLACE)) is not None:
        assert isinstance(again, Ticket)
        assert (again.cell, again.fixed, again.failures) == (1, {"x": 0.5}, 0)
        seeds.add(trial_seed(0, again.ticket, again.failures))
        end(store, begun(store, again, lease), BROKEN if len(seeds) == 1 else None)
    assert len(seeds | {trial_seed(0, 1, 0)}) == 4
    assert state(store) == ("FINISHED", "budget spent")
    assert attrs(store, 3) == {"orchestrator:by_hand": True}
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert (progress.spent, progress.total, progress.cells[1].failed) == (4, 4, 1)
    assert store.studies.launch(spec(cells=2)).added == 0


def test_only_a_complete_trial_of_a_study_that_runs_is_repeated(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    running, *others = (start(store, lease, study) for _ in range(4))
    for attempt, outcome in zip(others, (BROKEN, Pruned(1), None), strict=True):
        assert attempt is not None
        end(store, attempt, outcome)
    assert running is not None
    for number, said in (
        (0, "has not ended yet"),
        (1, "failed \\('retry' runs a failed trial again\\)"),
        (2, "was pruned"),
        (7, "trial=7: no worker has run a trial with this number"),
    ):
        with pytest.raises(ConfigError, match=said):
            store.interventions.repeat(study, number, 1)
    store.interventions.stop(study, "ada@lab")
    with pytest.raises(ConfigError, match="starts no trials: stopped by ada@lab"):
        store.interventions.repeat(study, 3, 1)
    assert not query(store.url, "SELECT FROM orchestrator.ticket WHERE extra")


# -------------------------------------------------------------------------------------------- retry


def test_a_failed_trial_is_run_again_in_its_own_ticket_as_a_new_trial(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    failed = start(store, lease, study)
    assert failed is not None
    end(store, failed, BROKEN)
    assert [(r.number, r.extra) for r in store.interventions.retry(study, 0)] == [(0, False)]
    with pytest.raises(ConfigError, match="trial=0: the trial is being run again"):
        store.interventions.retry(study, 0)
    again = start(store, lease, study)
    assert again is not None
    assert (again.ticket, again.cell, fixed_of(store, again), again.number) == (
        failed.ticket,
        0,
        {"x": 0.5},
        1,
    )
    end(store, again)
    assert attrs(store, 1) == {"orchestrator:retried_from": 0}
    assert store.interventions.retry(study, None) == []
    assert [t.state for t in store.reads.trials(study)] == ["FAIL", "COMPLETE"]


def test_a_failed_trial_whose_ticket_is_spent_is_run_again_on_top_of_the_budget(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    for outcome in (BROKEN, None):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, outcome)
    assert state(store)[0] == "FINISHED"
    assert [(r.number, r.extra) for r in store.interventions.retry(study, None)] == [(0, True)]
    again = start(store, lease, study)
    assert again is not None
    end(store, again, BROKEN)
    # It failed once more: it is the new one that may be run again.
    assert [(r.number, r.extra) for r in store.interventions.retry(study, None)] == [(2, True)]
    last = start(store, lease, study)
    assert last is not None
    end(store, last)
    assert start(store, lease, study) is None


def test_a_closed_cell_is_opened_again_with_its_share(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(
        spec(cells=2, per_cell=2, budget=Budget(4, 2, max_failures_per_cell=0))
    ).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, BROKEN)
    row = store.reads.find("study")
    assert [c.state for c in store.reads.progress(row, maximize=True).cells] == ["CLOSED", "OPEN"]
    store.interventions.retry(study, 0)
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)
    cells = store.reads.progress(row, maximize=True).cells
    assert [(c.state, c.completed) for c in cells] == [("OPEN", 2), ("OPEN", 2)]
    assert state(store) == ("FINISHED", "budget spent")


def test_a_study_that_ended_with_every_cell_closed_goes_on(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=1, per_cell=3, budget=Budget(3, 3, max_failures_per_cell=0))
    ).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, BROKEN)
    assert state(store) == ("FINISHED", "every cell is closed")
    store.interventions.retry(study, None)
    fixed = []
    while (claim := start(store, lease, study)) is not None:
        fixed.append(fixed_of(store, claim))
        end(store, claim)
    assert sorted(fixed, key=str) == [None, None, {"x": 0.5}]
    assert state(store) == ("FINISHED", "budget spent")


def test_only_a_failed_trial_is_run_again(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim)
    with pytest.raises(
        ConfigError, match="trial=0: the trial is COMPLETE; only a failed trial can be run again"
    ):
        store.interventions.retry(study, 0)
    with pytest.raises(ConfigError, match="trial=9: no worker has run a trial with this number"):
        store.interventions.retry(study, 9)


# ------------------------------------------------------------------------------- failures that pass


def test_what_passes_is_run_again_as_the_same_trial_at_most_so_often(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, runner=replace(RUNNER, retries=2))).study_id
    for attempt in (1, 2):
        claim = start(store, lease, study)
        assert claim is not None
        assert (claim.number, claim.attempt) == (0, attempt)
        assert store.ledger.retry(claim, BROKEN, Report({attempt: 0.5}, {"k": attempt}))
        assert store.ledger.retry(claim, BROKEN, Report())  # its answer was lost on the way
    claim = start(store, lease, study)
    assert claim is not None
    assert not store.ledger.retry(claim, BROKEN, Report())
    end(store, claim, BROKEN)
    (trial,) = optuna.load_study(study_name="study", storage=store.url).trials
    assert trial.state == optuna.trial.TrialState.FAIL
    assert trial.intermediate_values == {1: 0.5, 2: 0.5}
    assert trial.user_attrs["orchestrator:attempt_1"] == "retried: exception: ValueError: no"
    assert (trial.user_attrs["k"], trial.user_attrs["orchestrator:attempts"]) == (2, 3)
    outcomes = [(a.outcome, a.reason) for a in store.reads.attempts(study, 0)]
    assert outcomes[:2] == [("retried", "exception: ValueError: no")] * 2
    assert outcomes[2][0] == "failed"


def test_a_stale_attempt_cannot_have_its_trial_run_again(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1, runner=replace(RUNNER, retries=5))).study_id
    stale = start(store, lease, study)
    assert stale is not None
    store.ledger.release(stale, "test")
    current = start(store, lease, study)
    assert current is not None
    with pytest.raises(LeaseLostError):
        store.ledger.retry(stale, BROKEN, Report({3: 1.0}))
    store.ledger.finish(current, Completed((1.0,)), Report())
    (trial,) = optuna.load_study(study_name="study", storage=store.url).trials
    assert trial.intermediate_values == {}


def test_an_attempt_lost_after_a_failure_that_passes_is_counted_once_it_is_known(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, runner=replace(RUNNER, retries=1))).study_id
    claim = start(store, lease, study)
    assert claim is not None
    store.ledger.evict(Silent(lease.worker_id, dead=True, reason="its process died"))
    (left,) = store.ledger.left_at(PLACE)
    assert store.ledger.retry(left, BROKEN, Report())
    assert [a.outcome for a in store.reads.attempts(study, 0)] == ["retried"]
    assert store.ledger.left_at(PLACE) == [], "its result is known now"
    other = store.fleet.register(60)
    again = start(store, other, study)
    assert again is not None
    assert not store.ledger.retry(again, BROKEN, Report()), "that was the only one"


def test_the_wish_to_have_trials_back_is_not_taken_back_by_a_weaker_one(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec()).study_id
    assert start(store, lease, study) is not None
    store.interventions.pause(study, "ada@lab", now=True)
    store.interventions.stop(study, "ada@lab")
    assert store.fleet.renew(lease, "training").halted is True


def test_a_trial_by_hand_that_was_stopped_runs_once_again(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    store.interventions.enqueue(study, {"a": 0}, {"x": 0.5})
    by_hand = start(store, lease, study)
    assert by_hand is not None
    store.interventions.stop(study, "ada@lab", now=True)
    store.ledger.release(by_hand, "the study was paused or stopped")
    store.ledger.end_studies()
    store.studies.launch(spec(cells=1))
    assert [r.number for r in store.interventions.retry(study, None)] == [0]
    fixed = []
    while (claim := start(store, lease, study)) is not None:
        fixed.append(fixed_of(store, claim))
        end(store, claim)
    assert fixed == [{"x": 0.5}, None]


def test_opening_cells_again_keeps_to_the_budget(store: Store, lease: WorkerLease) -> None:
    closing = spec(cells=3, per_cell=2, budget=Budget(6, 2, max_failures_per_cell=0))
    study = store.studies.launch(closing).study_id
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, BROKEN)
    for number in (0, 1):
        store.interventions.retry(study, number)
        while (claim := start(store, lease, study)) is not None:
            end(store, claim)
    row = store.reads.find("study")
    assert [c.completed for c in store.reads.progress(row, maximize=True).cells] == [2, 2, 0]
    assert store.doctor.examine().findings == ()
    assert store.studies.launch(closing).open_tickets == 2


def test_workers_of_other_studies_and_dead_ones_keep_checkpoints_where_they_like(
    store: Store,
) -> None:
    store.fleet.register(60, checkpoints="here")
    store.fleet.register(60, checkpoints="there", studies=["other"])
    store.fleet.register(-1, checkpoints="nowhere")
    assert set(store.reads.checkpoint_places("study")) == {"here"}
    assert set(store.reads.checkpoint_places("other")) == {"here", "there"}


def progress(store: Store) -> Progress:
    return store.reads.progress(store.reads.find("study"), maximize=True)


def run(store: Store, lease: WorkerLease, study: int, broken: Collection[int] = ()) -> list[int]:
    """Runs the study on, with failures in the broken cells; returns the cells of its trials."""
    cells = []
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, BROKEN if claim.cell in broken else None)
        cells.append(claim.cell)
    assert store.doctor.examine().findings == ()
    return cells


@pytest.mark.parametrize("launched", [False, True])
def test_failed_trials_of_closed_cells_run_again_within_the_budget(
    store: Store, lease: WorkerLease, launched: bool
) -> None:
    wanted = spec(cells=6, budget=Budget(30, 4, max_failures_at_start=None))
    study = store.studies.launch(wanted).study_id
    assert len(run(store, lease, study, range(6))) == 24, "four failures close each cell"
    assert state(store) == ("FINISHED", "every cell is closed")
    if launched:
        assert store.studies.launch(wanted).open_tickets == 0
    retried = store.interventions.retry(study, None)
    assert [(r.number, r.extra, r.left) for r in retried] == [
        (number, False, False) for number in range(3, 24, 4)
    ]
    assert Counter(run(store, lease, study)) == dict.fromkeys(range(6), 5)
    assert (progress(store).spent, progress(store).total) == (30, 30)
    assert store.interventions.retry(study, None) == [], "each ticket has had its trial"
    assert state(store) == ("FINISHED", "budget spent")


def test_a_closed_cell_whose_trials_went_to_others_runs_again_once_the_budget_is_larger(
    store: Store, lease: WorkerLease
) -> None:
    wanted = spec(cells=3, per_cell=2, budget=Budget(6, 2))
    study = store.studies.launch(wanted).study_id
    run(store, lease, study, {1})
    assert (progress(store).spent, progress(store).total) == (6, 6)
    retried = store.interventions.retry(study, None)
    assert [(r.extra, r.left) for r in retried] == [(False, True)]
    assert state(store) == ("FINISHED", "budget spent")
    assert (progress(store).spent, progress(store).total) == (6, 6)
    assert store.studies.launch(replace(wanted, budget=Budget(8, 2))).open_tickets == 2
    assert [(r.extra, r.left) for r in store.interventions.retry(study, None)] == [(False, False)]
    assert run(store, lease, study) == [1, 1]
    assert (progress(store).spent, progress(store).total) == (8, 8)
    assert attrs(store, 10) == {"orchestrator:retried_from": 4}


def test_parameters_to_repeat_stay_behind_when_their_cell_is_closed_and_may_be_asked_for_again(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=8, per_cell=4)).study_id
    other = store.fleet.register(60)
    running = [start(store, store.fleet.register(60), study) for _ in range(8)]
    broken = [claim for claim in running if claim is not None and claim.cell == 0]
    end(store, broken[0], BROKEN)
    number = broken[0].number
    assert number is not None
    assert [r.extra for r in store.interventions.retry(study, number)] == [False]
    for other_claim in broken[1:]:
        end(store, other_claim, BROKEN)
    assert [c.state for c in progress(store).cells] == ["CLOSED", "OPEN"]
    for claim in running:
        if claim is not None and claim.cell == 1:
            end(store, claim)
    claim = start(store, other, study)
    assert claim is not None
    assert (claim.cell, fixed_of(store, claim)) == (1, None), (
        "what is to be repeated is of the other cell"
    )
    end(store, claim)
    assert number in [r.number for r in store.interventions.retry(study, None)]
    assert store.doctor.examine().findings == ()


def test_a_budget_without_room_for_trials_that_are_to_run_again_is_refused(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, trials=4, per_cell=2)).study_id
    for outcome in (BROKEN, None):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, outcome)
    assert [r.extra for r in store.interventions.retry(study, 0)] == [False]
    with pytest.raises(
        ConfigError, match=r"and 1 more are needed .* 'retry'; set budget\.trials to at least 2"
    ):
        store.studies.launch(spec(cells=1, trials=1))
    assert store.studies.launch(spec(cells=1, trials=2)).open_tickets == 1
    run(store, lease, study)
    assert (progress(store).total, progress(store).spent) == (2, 2)
    assert store.doctor.examine().findings == ()
