"""The promises of the ledger, each named as the sentence it proves, on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event

import optuna
import psycopg2
import pytest

from orchestrator.errors import ConfigError, LeaseLostError
from orchestrator.model import Axis, Budget, Completed, Direction, Failed, Report, Searched
from orchestrator.settings import pruner_settings
from orchestrator.store import Attempt, Silent, SlotOffer, Store, WorkerLease
from orchestrator.store.ledger import fleet
from tests.support.counting import count_messages
from tests.support.studies import PLACE, begun, end, spec, start, suggestion, take, work
from tests.support.waiting import wait_until


def gone(lease: WorkerLease) -> Silent:
    return Silent(lease.worker_id, dead=True, reason="its process died")


def run_all(store: Store, lease: WorkerLease, study_id: int) -> list[Attempt]:
    done = []
    while (claim := start(store, lease, study_id)) is not None:
        end(store, claim)
        done.append(claim)
    return done


def sql(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


# -------------------------------------------------------------------------------- shares and budget


def test_every_cell_gets_its_share_before_any_gets_more(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=3, per_cell=2, trials=11)).study_id
    cells = [claim.cell for claim in run_all(store, lease, study)]
    assert cells[:6] == [0, 1, 2, 0, 1, 2]
    assert sorted(Counter(cells).values()) == [3, 4, 4]


def test_no_open_ticket_is_handed_out_while_a_share_is_still_running(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=5)).study_id
    first, second = start(store, lease, study), start(store, store.fleet.register(60), study)
    assert first is not None
    assert second is not None
    end(store, first)
    assert store.ledger.claim_one(lease, study, PLACE) is None
    end(store, second)
    assert store.ledger.claim_one(lease, study, PLACE) is not None


def test_the_total_never_exceeds_the_budget_and_a_spent_study_is_finished(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=5)).study_id
    assert len(run_all(store, lease, study)) == 5
    row = store.reads.find("study")
    assert (row.state, row.reason, row.active) == ("FINISHED", "budget spent", False)


def test_launching_again_adds_nothing_and_a_larger_budget_goes_on(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=5)).study_id
    run_all(store, lease, study)
    again = store.studies.launch(spec(cells=2, trials=5))
    assert (again.created, again.added, again.open_tickets) == (False, 0, 0)
    assert store.reads.find("study").state == "FINISHED"
    more = store.studies.launch(spec(cells=2, trials=9))
    assert (more.added, more.changes) == (4, ("budget.trials: 5 -> 9",))
    assert len(run_all(store, lease, study)) == 4


def test_bounds_change_without_a_new_study_and_results_outside_are_found(
    store: Store, lease: WorkerLease, database_url: str
) -> None:
    study = store.studies.launch(spec(cells=2, trials=5)).study_id
    values = [0.5, float("inf"), 0.1, -1.0, 0.7]
    for value in values:
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, Completed((value,)))
    again = store.studies.launch(replace(spec(cells=2, trials=5), bounds=((0.0, 1.0),)))
    assert (again.created, again.changes) == (False, ("study.bounds: no limit -> 0 to 1",))
    assert store.reads.spec(study).bounds == ((0.0, 1.0),)

    def first_outside(*limits: float | None, after: int = 0) -> int | None:
        found = store.reads.out_of_bounds(study, [(limits[0], limits[1])], after=after)
        return None if found is None else found.number

    ((seq,),) = sql(database_url, "SELECT seq FROM orchestrator.trial WHERE number = 1")
    assert isinstance(seq, int)
    assert first_outside(0.0, 1.0) == 1
    assert first_outside(0.0, 1.0, after=seq) == 3
    assert first_outside(0.0, None) == 3
    assert first_outside(None, 0.6, after=seq) == 4
    assert first_outside(-1.0, None) is None


def test_a_study_launched_with_five_startup_trials_keeps_them(store: Store) -> None:
    """Five was the default of an earlier version, stored like any number."""
    earlier = spec(cells=4, trials=12, pruner=pruner_settings("median", n_startup_trials=5))
    study = store.studies.launch(earlier).study_id
    same = store.studies.launch(replace(earlier, pruner=pruner_settings("median")))
    assert same.changes == ()
    assert store.reads.spec(study).pruner == earlier.pruner
    other = replace(earlier, pruner=pruner_settings("median", n_startup_trials=1))
    assert store.studies.launch(other).changes == ("pruner.n_startup_trials: 5 -> 1",)


def test_a_smaller_budget_takes_back_only_what_nobody_started(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=10)).study_id
    for _ in range(3):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim)
    store.studies.launch(spec(cells=2, trials=4))
    assert len(run_all(store, lease, study)) == 1


def test_a_larger_share_is_laid_for_every_cell_counting_what_it_has(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=3, trials=5)).study_id  # 3 shares and 2 by allocation
    run_all(store, lease, study)
    launched = store.studies.launch(spec(cells=3, trials=9, per_cell=3))
    assert launched.added == 4
    assert Counter(c.cell for c in run_all(store, lease, study)) == {0: 1, 1: 1, 2: 2}
    assert {
        c.completed for c in store.reads.progress(store.reads.find("study"), maximize=True).cells
    } == {3}


def test_shares_that_no_longer_fit_into_the_budget_are_refused(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=8)).study_id
    run_all(store, lease, study)
    with pytest.raises(
        ConfigError, match=r"budget.trials=9 is too small: 8 trials are spent .* guarantees 2 more"
    ):
        store.studies.launch(replace(spec(cells=2), budget=Budget(9, 5)))
    assert store.reads.find("study").state == "FINISHED", "a refused launch changes nothing"


def test_another_space_under_the_same_name_is_refused_and_named(store: Store) -> None:
    store.studies.launch(spec())
    other = replace(spec(), search=(Searched("x", "float", 0.0, 2.0),), directions=("minimize",))
    with pytest.raises(
        ConfigError,
        match=r"study.direction \(maximize there, minimize here\).*search x .*study.name",
    ):
        store.studies.launch(other)


def test_values_that_python_holds_equal_make_another_grid(store: Store) -> None:
    store.studies.launch(replace(spec(), grid=(Axis("a", (0, 1)),), budget=Budget(2)))
    with pytest.raises(
        ConfigError, match=r"a different grid a \(\[0,1\] there, \[false,true\] here\)"
    ):
        store.studies.launch(replace(spec(), grid=(Axis("a", (False, True)),), budget=Budget(2)))


def test_a_study_of_plain_optuna_is_not_taken_over(store: Store) -> None:
    optuna.create_study(study_name="study", storage=store.url)
    with pytest.raises(ConfigError, match="orchestrator did not create"):
        store.studies.launch(spec())


@pytest.mark.parametrize(
    ("directions", "metrics"),
    [(("maximize",), ("acc",)), (("minimize", "maximize"), ("loss", "acc"))],
)
def test_optuna_knows_the_objectives_by_their_names(
    store: Store, directions: tuple[Direction, ...], metrics: tuple[str, ...]
) -> None:
    made = replace(spec(), directions=directions, metrics=metrics)
    study = store.studies.launch(made).study_id
    assert optuna.load_study(study_name="study", storage=store.url).metric_names == list(metrics)
    # as an older version left it
    sql(store.url, f"DELETE FROM study_system_attributes WHERE study_id = {study}")
    store.studies.launch(made)
    named = optuna.load_study(study_name="study", storage=store.url)
    assert named.metric_names == list(metrics)
    named.set_metric_names([f"my {metric}" for metric in metrics])
    store.studies.launch(made)
    assert optuna.load_study(study_name="study", storage=store.url).metric_names == [
        f"my {metric}" for metric in metrics
    ]


def test_of_two_launches_with_different_spaces_one_wins(database_url: str) -> None:
    answers: list[object] = []

    def launch(high: float) -> None:
        store = Store(database_url)
        try:
            answers.append(
                store.studies.launch(
                    replace(spec(), search=(Searched("x", "float", 0.0, high),))
                ).created
            )
        except ConfigError as error:
            answers.append(str(error))
        store.rest()

    threads = [threading.Thread(target=launch, args=(high,)) for high in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in answers
    assert any("a different search x" in str(a) for a in answers)


def test_a_claim_late_in_a_large_grid_walks_an_index(store: Store, lease: WorkerLease) -> None:
    launched = store.studies.launch(spec(cells=20_000))
    assert launched.added == 20_000
    sql(store.url, "UPDATE orchestrator.ticket SET state = 'SPENT' WHERE ordinal < 19990")
    sql(store.url, "ANALYZE orchestrator.ticket")
    plan = "\n".join(
        str(r[0])
        for r in sql(
            store.url,
            f"EXPLAIN SELECT * FROM orchestrator.ticket WHERE study_id = {launched.study_id} AND "
            "state = 'OPEN' AND share IS NOT NULL ORDER BY ordinal LIMIT 1 FOR UPDATE SKIP LOCKED",
        )
    )
    assert "ticket_share_open" in plan
    assert "Sort" not in plan


# ----------------------------------------------------------------------------------------- failures


def test_a_failed_ticket_is_tried_three_times_more_then_its_cell_is_closed(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, per_cell=2, trials=4)).study_id
    tried: Counter[int] = Counter()
    while (claim := start(store, lease, study)) is not None:
        tried[claim.cell] += 1
        end(
            store, claim, Failed("exception", "ValueError: no\nlog: x") if claim.cell == 0 else None
        )
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    closed, healthy = progress.cells
    assert tried[0] == 4
    assert (closed.state, closed.reason) == (
        "CLOSED",
        "4 trials failed in a row; the last: ValueError: no",
    )
    assert healthy.completed == 4, "what the closed cell left goes to the others"
    assert progress.study.state == "FINISHED"


def test_when_every_cell_is_closed_the_study_ends_and_says_so(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=20)).study_id
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, Failed("exception", "no"))
    assert store.reads.find("study").reason == "every cell is closed"
    again = store.studies.launch(spec(cells=2, trials=30))
    assert (again.added, again.open_tickets, again.reason) == (0, 0, "every cell is closed")


def test_failures_in_a_row_are_counted_not_failures_in_all(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, trials=10)).study_id
    turns = 0
    while (claim := start(store, lease, study)) is not None:
        turns += 1
        end(store, claim, Failed("exception", "now and then") if turns % 2 else None)
    cell = store.reads.progress(store.reads.find("study"), maximize=True).cells[0]
    assert (cell.state, cell.completed, cell.failed) == ("OPEN", 10, 10)


# ------------------------------------------------------------------------------------------- leases


def test_a_released_trial_goes_on_as_the_same_trial(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    first = start(store, lease, study)
    assert first is not None
    store.ledger.release(first, "drained")
    again = start(store, lease, study)
    assert again is not None
    assert (again.number, again.values, again.attempt, again.resumed) == (
        first.number,
        first.values,
        2,
        True,
    )
    assert again.token != first.token
    end(store, again)
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.state.name for t in trials] == ["COMPLETE"]
    assert trials[0].user_attrs["orchestrator:attempts"] == 2


def test_a_claim_given_back_before_its_trial_exists_leaves_no_trace(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = take(store, lease, study)
    assert claim is not None
    store.ledger.release(claim, "drained")
    assert store.ledger.claim_one(lease, study, PLACE) is not None
    with pytest.raises(LeaseLostError):
        store.ledger.create(claim, suggestion(claim), lease, PLACE)
    assert optuna.load_study(study_name="study", storage=store.url).trials == []


def test_the_result_of_an_old_lease_is_refused_once_another_holds_the_trial(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    old = start(store, lease, study)
    assert old is not None
    store.ledger.release(old, "thought dead")
    new = start(store, store.fleet.register(60), study)
    assert new is not None
    with pytest.raises(LeaseLostError):
        end(store, old, Completed((1.0,)))
    with pytest.raises(LeaseLostError):
        store.ledger.report(old, Report({1: 0.5}, {}))
    end(store, new, Completed((2.0,)))
    assert optuna.load_study(study_name="study", storage=store.url).best_value == 2.0


def test_a_late_result_is_welcome_while_nobody_took_the_trial_up(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    store.ledger.evict(gone(lease))
    end(store, claim, Completed((3.0,)))
    assert start(store, store.fleet.register(60), study) is None
    assert optuna.load_study(study_name="study", storage=store.url).best_value == 3.0


def test_finishing_twice_is_accepted_once(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, Completed((1.0,)))
    end(store, claim, Completed((9.0,)))
    assert optuna.load_study(study_name="study", storage=store.url).best_value == 1.0


def test_a_step_whose_answer_was_lost_can_be_done_again(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    store.ledger.claim_one(lease, study, PLACE)  # the worker never learns of this one
    store.ledger.give_back_held(lease, "its answer was lost")
    claim = take(store, lease, study)
    assert claim is not None
    assert claim.ticket == 0
    first = begun(store, claim, lease)
    again = store.ledger.create(claim, suggestion(claim, x=0.9), lease, PLACE)
    assert again == first
    assert len(optuna.load_study(study_name="study", storage=store.url).trials) == 1
    end(store, first)
    assert len(run_all(store, lease, study)) == 1


def test_a_worker_that_leaves_gives_back_what_it_holds(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    running = start(store, lease, study)
    other = store.fleet.register(60)
    store.ledger.claim_one(other, study, PLACE)
    store.ledger.deregister(lease, "an error")
    store.ledger.deregister(other, "an error")
    assert running is not None
    assert [c.number for c in run_all(store, store.fleet.register(60), study)] == [0, 1]
    assert store.reads.find("study").state == "FINISHED"


def test_a_worker_that_renewed_in_time_is_not_evicted(store: Store, lease: WorkerLease) -> None:
    assert not store.ledger.evict(
        Silent(lease.worker_id, dead=False, reason="looked silent a moment ago")
    )
    store.fleet.renew(lease, "idle")


def test_no_slot_is_given_to_a_worker_that_is_gone(store: Store, lease: WorkerLease) -> None:
    store.ledger.evict(gone(lease))
    with pytest.raises(LeaseLostError):
        store.fleet.claim_slot(lease, [SlotOffer("host", "GPU-0", 0, "H100")])


def test_attempts_that_are_lost_with_their_keeper_are_counted(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    for _ in range(3):
        claim = start(store, lease, study)
        assert claim is not None
        store.ledger.release(claim, "the keeper died", lost=True)
    assert store.reads.trials(study)[0].state == "FAIL"


def test_a_deleted_study_does_not_stop_the_eviction_of_its_worker(
    store: Store, lease: WorkerLease
) -> None:
    once = replace(spec(cells=1), runner=replace(spec().runner, max_attempts=1))
    study = store.studies.launch(once).study_id
    start(store, lease, study)
    optuna.delete_study(study_name="study", storage=store.url)
    assert store.ledger.evict(gone(lease))


def test_a_launch_beside_a_claim_does_not_deadlock(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=2, trials=30)).study_id
    stop = threading.Event()
    errors: list[Exception] = []

    def claims() -> None:
        mine = Store(store.url)
        own = mine.fleet.register(60)
        while not stop.is_set():
            try:
                claim = start(mine, own, study)
                if claim is not None:
                    mine.ledger.release(claim, "test")
            except Exception as error:  # noqa: BLE001 - whatever it is fails the test
                errors.append(error)
                return
        mine.rest()

    threads = [threading.Thread(target=claims) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(15):
        store.studies.launch(spec(cells=2, trials=30 + turn % 2))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_evicted_worker_can_neither_renew_nor_claim(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec()).study_id
    assert store.ledger.evict(gone(lease))
    assert not store.ledger.evict(gone(lease)), "done once"
    with pytest.raises(LeaseLostError):
        store.fleet.renew(lease, "idle")
    with pytest.raises(LeaseLostError):
        store.ledger.claim_one(lease, study, PLACE)


def test_a_trial_that_loses_every_worker_fails_in_the_end(store: Store) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    for attempt in range(1, 4):  # runner.max_attempts is 3
        lease = store.fleet.register(60)
        claim = start(store, lease, study)
        assert claim is not None
        assert (claim.number, claim.attempt) == (0, attempt)
        store.ledger.evict(gone(lease))
    trial = optuna.load_study(study_name="study", storage=store.url).trials[0]
    assert trial.state.name == "FAIL"
    assert "3 attempts were lost" in trial.user_attrs["orchestrator:failure"]["message"]
    retry = start(store, store.fleet.register(60), study)
    assert retry is not None
    assert (retry.number, retry.failures) == (1, 1)


def test_only_a_lease_that_ran_out_by_the_databases_clock_is_silent(store: Store) -> None:
    short, long = store.fleet.register(0.2), store.fleet.register(60)
    sql(store.url, "UPDATE orchestrator.worker SET process_scope = 'another host'")
    wait_until(
        lambda: [s.worker_id for s in store.fleet.silent(60)] == [short.worker_id], timeout=5
    )
    assert store.fleet.silent(0.1) == [], "the caller must have been in contact for the lease's TTL"
    store.fleet.renew(short, "idle")
    store.fleet.renew(long, "idle")


def test_a_dead_process_of_this_host_is_silent_at_once(store: Store) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_register_and_die, args=(store.url,)
    )
    child.start()
    child.join()
    assert len(store.fleet.silent(0)) == 1


def test_the_processes_of_this_host_are_looked_at_more_often_than_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = multiprocessing.get_context("spawn")
    ends = spawn.Event()
    child = spawn.Process(target=_register_and_wait, args=(store.url, ends))
    child.start()
    wait_until(lambda: store.fleet.silent(0) == [] and store.fleet.size == 1, timeout=30)
    counted = count_messages(monkeypatch)
    assert store.fleet.dead_here() == []
    ends.set()
    child.join()
    assert [one.dead for one in store.fleet.dead_here()] == [True]
    assert store.fleet.dead_here() == [], "it is told once"
    assert counted.take() == (0, 0)
    monkeypatch.setattr(fleet, "HERE_EVERY_S", 0.0)
    assert [one.dead for one in store.fleet.dead_here()] == [True], (
        "and again if nobody could evict it"
    )
    assert counted.take() == (1, 1)


def _register_and_wait(url: str, ends: Event) -> None:
    _register_and_die(url)
    ends.wait(60)


def _register_and_die(url: str) -> None:
    Store(url).fleet.register(600)


def test_a_slot_is_held_by_one_worker_until_it_leaves(store: Store) -> None:
    offers = [SlotOffer("host", f"GPU-{k}", 0, "H100") for k in range(2)]
    workers = [store.fleet.register(60) for _ in range(3)]
    held = [store.fleet.claim_slot(worker, offers) for worker in workers]
    assert held == [offers[0], offers[1], None]
    assert store.fleet.claim_slot(workers[0], offers) == offers[0], (
        "asked again, after an answer that was lost"
    )
    assert len(store.fleet.holders("host")) == 2
    store.ledger.deregister(workers[0], "done")
    store.ledger.evict(gone(workers[1]))
    assert store.fleet.claim_slot(workers[2], offers) == offers[0]


# ------------------------------------------------------------------------------- time and deadlines


def test_after_its_hours_a_study_hands_out_nothing_and_ends(
    store: Store, lease: WorkerLease
) -> None:
    limited = replace(spec(cells=2, trials=9), budget=Budget(9, 1, hours=1.0))
    study = store.studies.launch(limited).study_id
    claim, other = start(store, lease, study), start(store, store.fleet.register(60), study)
    assert claim is not None
    assert other is not None
    sql(store.url, "UPDATE orchestrator.study SET deadline_at = clock_timestamp()")
    assert start(store, store.fleet.register(60), study) is None
    assert store.ledger.end_studies() == [], "what runs may end"
    end(store, claim)
    store.ledger.release(other, "drained")
    assert store.ledger.end_studies() == [study]
    assert store.reads.find("study").reason == "budget.hours is over"
    states = [t.state.name for t in optuna.load_study(study_name="study", storage=store.url).trials]
    assert states == ["COMPLETE", "FAIL"], "none stays RUNNING for ever"
    more = replace(limited, budget=Budget(9, 1))
    assert store.studies.launch(more).open_tickets == 8
    assert len(run_all(store, store.fleet.register(60), study)) == 8, (
        "running out of time closed no cell"
    )


# --------------------------------------------------------------------------------------- real races


@pytest.mark.parametrize(
    ("fail", "release"), [pytest.param(0.0, 0.0, marks=pytest.mark.nightly), (0.1, 0.15)]
)
def test_many_processes_race_for_one_grid_and_every_cell_is_done_exactly_once(
    database_url: str, fail: float, release: float
) -> None:
    store = Store(database_url)
    study = store.studies.launch(spec(cells=60)).study_id
    reader = optuna.load_study(study_name="study", storage=database_url)
    seen_while_running = len(reader.get_trials(deepcopy=False))
    store.rest()
    context = multiprocessing.get_context("spawn")
    with context.Pool(6) as pool:
        jobs = [
            pool.apply_async(
                work, (database_url, study), {"fail": fail, "release": release, "seed": k}
            )
            for k in range(6)
        ]
        while not all(job.ready() for job in jobs):
            seen_while_running = max(seen_while_running, len(reader.get_trials(deepcopy=False)))
        ended = sum(job.get() for job in jobs)
    trials = reader.get_trials()
    assert len(trials) == ended
    assert [t.number for t in trials] == list(range(ended))
    complete = Counter(t.params["a"] for t in trials if t.state.name == "COMPLETE")
    assert complete == dict.fromkeys(range(60), 1)
    assert all(t.state.is_finished() for t in trials)
    assert seen_while_running > 0, "a reader that watched all along sees the trials come"
    store.rest()


def test_numbers_stay_distinct_beside_trials_of_plain_optuna(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=20)).study_id
    foreign = optuna.load_study(study_name="study", storage=store.url)

    def add() -> None:
        for _ in range(10):
            foreign.tell(foreign.ask(), 0.5)

    thread = threading.Thread(target=add)
    thread.start()
    done = run_all(store, lease, study)
    thread.join()
    numbers = [t.number for t in optuna.load_study(study_name="study", storage=store.url).trials]
    assert numbers == list(range(30))
    assert len(done) == 20, "foreign trials are observed, never counted"
    assert {n.number for n in store.news.foreign(study, [])} == set(numbers) - {
        c.number for c in done
    }


def test_news_never_skips_a_trial_whose_transaction_commits_late(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    other = store.fleet.register(60)
    slow, quick = take(store, lease, study), take(store, other, study)
    assert slow is not None
    assert quick is not None
    holder = psycopg2.connect(store.url.replace("+psycopg2", ""))
    holder.cursor().execute("SELECT FROM studies WHERE study_id = %s FOR UPDATE", (study,))
    created: list[Attempt] = []
    thread = threading.Thread(target=lambda: created.append(begun(store, slow, lease)))
    thread.start()
    wait_until(_waits_for_lock(store.url), timeout=10)
    assert store.news.since(study, 0) == ([], 0)
    holder.rollback()
    thread.join()
    begun(store, quick, other)
    news, cursor = store.news.since(study, 0)
    assert [n.number for n in news] == [0, 1]
    end(store, created[0])
    assert [(n.number, n.state) for n in store.news.since(study, cursor)[0]] == [(0, "COMPLETE")]
    holder.close()


def _waits_for_lock(url: str) -> Callable[[], object]:
    return lambda: sql(
        url,
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%studies%'",
    )


def test_a_trial_as_plain_optuna_reads_it_is_whole(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    running = optuna.load_study(study_name="study", storage=store.url).trials[0]
    assert running.state.name == "RUNNING"
    assert running.params == {"a": 0, "x": 0.5}
    store.ledger.report(claim, Report({0: 0.1, 2: float("nan")}, {"note": "ü \u0000"}))
    store.ledger.report(claim, Report({0: 9.9, 3: float("-inf")}, {"note": "second"}))
    store.ledger.finish(
        claim, Completed((float("inf"),), {"loss": 0.25}), Report({4: 1.0}, {"last": [1, None]})
    )
    done = optuna.load_study(study_name="study", storage=store.url).trials[0]
    assert done.value == float("inf")
    assert {k: str(v) for k, v in done.intermediate_values.items()} == {
        0: "0.1",
        2: "nan",
        3: "-inf",
        4: "1.0",
    }
    assert done.user_attrs == {"note": "second", "loss": 0.25, "last": [1, None]}
    assert done.duration is not None
    assert 0 <= done.duration.total_seconds() < 60
    assert done.system_attrs == {"k": 1}


def test_deleting_the_study_elsewhere_ends_its_trials_as_lost_and_frees_the_name(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    optuna.delete_study(study_name="study", storage=store.url)
    with pytest.raises(LeaseLostError, match="deleted"):
        end(store, claim)
    assert store.reads.studies() == []
    assert store.studies.launch(spec(cells=3)).created


def test_a_share_given_back_after_its_cell_was_closed_goes_to_the_others(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=2, per_cell=2, budget=Budget(4, 2, max_failures_per_cell=0))
    ).study_id
    others = [store.fleet.register(60) for _ in range(2)]
    failing, running = start(store, lease, study), start(store, others[0], study)
    waiting = take(store, others[1], study)
    assert failing is not None
    assert running is not None
    assert waiting is not None
    assert waiting.cell == failing.cell
    end(store, failing, Failed("exception", "no"))
    store.ledger.release(waiting, "test")
    end(store, running)
    assert {claim.cell for claim in run_all(store, lease, study)} == {running.cell}
    assert store.reads.find("study").reason == "budget spent"
    assert store.doctor.examine().findings == ()


def test_a_study_ends_when_the_last_claim_is_given_back_into_closed_cells(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=1, per_cell=2, budget=Budget(2, 2, max_failures_per_cell=0))
    ).study_id
    other = store.fleet.register(60)
    failing, waiting = start(store, lease, study), store.ledger.claim_one(other, study, PLACE)
    assert failing is not None
    assert waiting is not None
    end(store, failing, Failed("exception", "no"))
    store.ledger.deregister(other, "test")
    store.ledger.end_studies()
    assert store.reads.find("study").reason == "every cell is closed"
    assert store.doctor.examine().findings == ()
