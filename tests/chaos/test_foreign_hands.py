"""Plain Optuna and SQL at work on a live study: it is renamed, deleted, given trials; no worker
minds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import optuna
import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import Fleet
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

OBJECTIVE = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.3}


@pytest.fixture
def storage(database_url: str) -> Iterator[optuna.storages.RDBStorage]:
    opened = optuna.storages.RDBStorage(database_url)
    yield opened
    opened.engine.dispose()


def _launch(store: Store, name: str, cells: int, **objective: float) -> int:
    return store.studies.launch(
        spec(name, cells=cells, objective={**OBJECTIVE, **objective}, runner=RUNNER)
    ).study_id


def _completed(store: Store, study_id: int) -> int:
    return sum(t.state == "COMPLETE" for t in store.reads.trials(study_id))


def _delete(name: str, storage: optuna.storages.RDBStorage) -> None:
    """Again and again: Optuna's deletion comes to nothing, without a word, when a trial is created
    meanwhile.
    """

    def gone() -> bool:
        with contextlib.suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)
        return name not in optuna.get_all_study_names(storage)

    wait_until(gone, 60)


@pytest.mark.chaos("long")
def test_a_study_deleted_by_plain_optuna_ends_and_the_others_go_on(
    commands: Commands, store: Store, storage: optuna.storages.RDBStorage
) -> None:
    doomed, other = _launch(store, "doomed", 200, seconds=1.0), _launch(store, "other", 6)
    with Fleet(commands) as fleet:
        for _ in range(3):
            fleet.start(apart=True)
        wait_until(lambda: _completed(store, doomed) >= 3)
        _delete("doomed", storage)
        wait_until(lambda: store.reads.find("other").state == "FINISHED")
        assert _completed(store, other) == 6
        fleet.dismiss()
        assert not any(m.process.exitcode for m in fleet.members)
    invariants.check(commands, "other", cells=6)


@pytest.mark.chaos("long")
def test_a_study_renamed_by_sql_goes_on_under_its_new_name(
    commands: Commands, store: Store
) -> None:
    study_id = _launch(store, "before", 20)
    with Fleet(commands) as fleet:
        for _ in range(2):
            fleet.start("worker.studies=[before]", apart=True)
        wait_until(lambda: _completed(store, study_id) >= 3)
        invariants.query(
            store.url, "UPDATE studies SET study_name = 'after' WHERE study_id = %s", study_id
        )
        wait_until(lambda: store.reads.find("after").state == "FINISHED")
        fleet.dismiss()
    invariants.check(commands, "after", cells=20)


@pytest.mark.chaos("long")
def test_a_study_copied_and_deleted_as_a_dashboard_renames_it_leaves_no_worker_dead(
    commands: Commands, store: Store, storage: optuna.storages.RDBStorage
) -> None:
    study_id = _launch(store, "original", 200, seconds=1.0)
    with Fleet(commands) as fleet:
        for _ in range(2):
            fleet.start(apart=True)
        wait_until(lambda: _completed(store, study_id) >= 3)
        optuna.copy_study(
            from_study_name="original",
            from_storage=storage,
            to_storage=storage,
            to_study_name="copy",
        )
        _delete("original", storage)
        other = _launch(store, "next", 4)
        wait_until(lambda: _completed(store, other) == 4)
        fleet.dismiss()
    invariants.check(commands, "next", cells=4)


def test_trials_by_plain_optuna_in_the_middle_of_a_run_are_never_counted(
    commands: Commands, store: Store, storage: optuna.storages.RDBStorage
) -> None:
    study_id = _launch(store, "study", 24)
    with Fleet(commands) as fleet:
        for _ in range(3):
            fleet.start(apart=True)
        wait_until(lambda: _completed(store, study_id) >= 3)
        study = optuna.load_study(study_name="study", storage=storage)
        study.enqueue_trial({"a": 3, "x": 0.25})
        study.enqueue_trial({"b": "of another space"})
        study.optimize(_foreign_objective, n_trials=6, catch=ValueError)
        study.enqueue_trial({"a": 5, "x": 0.75})  # stays WAITING: nobody here takes it
        wait_until(lambda: store.reads.find("study").state == "FINISHED")
        fleet.dismiss()
    theirs = {
        number
        for (number,) in invariants.query(
            store.url,
            "SELECT number FROM trials WHERE trial_id NOT IN (SELECT optuna_trial_id FROM "
            "orchestrator.trial)",
        )
    }
    assert len(theirs) == 7
    invariants.check(commands, "study", cells=24, foreign=theirs)


def _foreign_objective(trial: optuna.Trial) -> float:
    if trial.number % 3 == 0:
        raise ValueError("a foreign failure")
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("unknown_to_us", 0, 9)
