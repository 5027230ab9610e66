"""What a user does to a study under way, by the commands, with real workers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import optuna
import pytest

from orchestrator.model import Budget
from orchestrator.settings import StopSettings
from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
QUICK = {"_target_": "tests.support.training.quick"}
SLOW = {"_target_": "tests.support.training.interruptible"}
BREAKS = {"_target_": "tests.support.training.breaks_until_mended"}
SOON = (
    "worker.heartbeat_s=0.5",
    "worker.lease_ttl_s=10",
    "worker.poll_s=0.1",
    "worker.drain_s=0.5",
)
NAME = "study.name=study"


def states(store: Store, study: int) -> list[str]:
    return [t.state for t in store.reads.trials(study)]


def status(commands: Commands) -> Any:
    return json.loads(commands.check("status", "--json", NAME))


def test_a_pause_at_once_is_obeyed_within_a_heartbeat_and_the_trial_goes_on_after_it(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(
        spec(cells=1, objective=SLOW, runner=replace(RUNNER, grace_s=0.2))
    ).study_id
    with commands.started("worker", *SOON):
        wait_until(
            lambda: list(
                commands.directory.glob("runs/study-*/trial-0/attempt-1-*/checkpoints/seen")
            ),
            60,
        )
        said = commands.check("pause", "--now", NAME)
        assert "study study: paused (paused by " in said
        wait_until(
            lambda: [a.outcome for a in store.reads.attempts(study, 0)] == ["interrupted"], 10
        )
        assert status(commands)["running"][0]["worker"] is None
        said = commands.check("status", NAME)
        assert "paused (paused by" in said
        assert "\ntrial 0 waits for a worker after 1 attempt\n" in said
        assert json.loads(commands.check("resume", "--json", NAME))["state"] == "ACTIVE"
        wait_until(lambda: states(store, study) == ["COMPLETE"], 60)
    assert [a.outcome for a in store.reads.attempts(study, 0)] == ["interrupted", "completed"]


def test_a_stopped_study_ends_and_its_worker_lives_on(commands: Commands, store: Store) -> None:
    study = store.studies.launch(
        spec(cells=2, objective=SLOW, runner=replace(RUNNER, grace_s=0.2))
    ).study_id
    with commands.started("worker", "worker.prefetch=0", *SOON) as worker:
        wait_until(lambda: states(store, study) == ["RUNNING"], 60)
        commands.check("stop", "--now", NAME)
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 10)
        assert (store.reads.find("study").reason or "").startswith("stopped by ")
        assert states(store, study) == ["FAIL"]
        other = store.studies.launch(spec("other", cells=1, objective=QUICK)).study_id
        wait_until(lambda: states(store, other) == ["COMPLETE"], 60)
        assert worker.poll() is None


def test_trials_by_hand_and_again(commands: Commands, store: Store) -> None:
    study = store.studies.launch(spec(cells=3, objective=QUICK)).study_id
    done = json.loads(commands.check("enqueue", "--json", NAME, "a=2", "x=0.125"))
    assert (done["enqueued"], done["workers"]) == ({"a": 2, "x": 0.125}, 0)
    assert "no worker is running" in commands.check("enqueue", NAME, "x=0.25")
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.params["a"] for t in trials] == [2, 0, 0, 1, 2]
    assert [t.params["x"] for t in trials[:2]] == [0.125, 0.25]
    assert [t.user_attrs.get("orchestrator:by_hand") for t in trials] == [
        True,
        True,
        None,
        None,
        None,
    ]
    assert states(store, study) == ["COMPLETE"] * 5

    done = json.loads(commands.check("rerun", "--json", NAME, "trial=1", "seeds=2"))
    repeated = {"trial": 1, "seeds": 2, "params": {"a": 0, "x": 0.25}}
    assert (done["state"], done["repeated"], done["workers"]) == ("ACTIVE", repeated, 0)
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.params for t in trials[5:]] == [trials[1].params] * 2


def test_workers_end_a_study_that_has_had_enough_trials(commands: Commands, store: Store) -> None:
    enough = spec(cells=2, trials=60, objective=QUICK, stop_when=StopSettings(patience=6))
    study = store.studies.launch(enough).study_id
    with commands.started("worker", *SOON), commands.started("worker", *SOON):
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
    shown = status(commands)["study"]
    spent = len(states(store, study))
    assert 8 <= spent < 60
    assert shown["trials"]["total"] == spent
    reason = store.reads.find("study").reason or ""
    assert reason.startswith("enough: no value better than that of trial ")
    assert reason.endswith(f"; stop_when.patience=6); {60 - spent} of 60 trials saved")
    assert f"# the study ended early: {reason}" in commands.check("best", NAME)
    assert "nothing wrong" in commands.check("doctor")


def test_failed_trials_run_again_once_what_broke_them_is_mended(
    commands: Commands, store: Store
) -> None:
    mended = commands.directory / "mended"
    budget = Budget(trials=2, per_cell=1, max_failures_per_cell=0)
    objective = {**BREAKS, "file": str(mended)}
    study = store.studies.launch(spec(cells=2, objective=objective, budget=budget)).study_id
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    assert store.reads.find("study").reason == "every cell is closed"
    mended.touch()
    assert "run again as new trials: 0, 1" in commands.check("retry", NAME, "trial=failed")
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.state.name for t in trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert [t.params for t in trials[2:]] == [t.params for t in trials[:2]]
    assert [t.user_attrs["orchestrator:retried_from"] for t in trials[2:]] == [0, 1]
    assert "no failed trial is left to run again" in commands.check("retry", NAME, "trial=failed")
    assert states(store, study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_what_passes_is_tried_again_as_the_same_trial(commands: Commands, store: Store) -> None:
    runner = replace(RUNNER, retries=3, retry_on=["ConnectionError"])
    flaky = {"_target_": "tests.support.training.flaky", "failures": 2}
    study = store.studies.launch(spec(cells=1, objective=flaky, runner=runner)).study_id
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    assert [a.outcome for a in store.reads.attempts(study, 0)] == [
        "retried",
        "retried",
        "completed",
    ]
    (trial,) = optuna.load_study(study_name="study", storage=store.url).trials
    assert trial.intermediate_values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert (
        trial.value,
        trial.user_attrs["orchestrator:attempts"],
        trial.user_attrs["resumed_from"],
    ) == (3.0, 3, 2)
    assert "ConnectionResetError" in trial.user_attrs["orchestrator:attempt_1"]


def test_what_is_not_named_as_passing_fails_the_trial(commands: Commands, store: Store) -> None:
    runner = replace(RUNNER, retries=3, retry_on=["exit:75"])
    flaky = {"_target_": "tests.support.training.flaky", "failures": 1}
    study = store.studies.launch(spec(cells=1, objective=flaky, runner=runner)).study_id
    commands.check("worker", "worker.max_trials=1", *SOON)
    assert states(store, study) == ["FAIL"]
    assert len(store.reads.attempts(study, 0)) == 1


def test_mistakes_are_one_line_that_names_the_rule(commands: Commands, store: Store) -> None:
    store.studies.launch(spec(cells=3))
    for words, said in (
        (("pause",), "study.name must be given: orchestrator pause study.name=…"),
        (
            ("stop", "study.name=studi"),
            "the database has no study of this name (did you mean 'study'?)",
        ),
        (("enqueue", NAME), "enqueue needs the trial's parameters"),
        (("enqueue", NAME, "b=1"), "b=1: not in this study's grid or search"),
        (("enqueue", NAME, "a=7"), "a=7: not on the grid; the grid has 0, 1, 2"),
        (("enqueue", NAME, "x=1.5"), "x=1.5: not a value of this study's float from 0 to 1"),
        (("enqueue", NAME, "x=interval(0, 1)"), "enqueue takes one value"),
        (("enqueue", NAME, "budget.trials=9"), "enqueue takes study.name"),
        (("retry", NAME), "retry needs trial=N, or trial=failed"),
        (("retry", NAME, "trial=x"), "trial=x: must be a whole number or failed"),
        (("retry", NAME, "trial=4"), "trial=4: no worker has run a trial with this number"),
        (("rerun", "trial=0", "seeds=2"), "study.name must be given: orchestrator rerun"),
        (("rerun", NAME, "seeds=0"), "seeds=0: must be a whole number from 1 to 1,000"),
        (("rerun", NAME, "seeds=two"), "seeds=two: must be a whole number"),
        (("rerun", NAME, "trial=4", "seeds=2"), "trial=4: no worker has run a trial"),
        (
            ("rerun", NAME, "seeds=2", "worker.devices=[cpu]"),
            "worker.devices=[cpu]: with seeds=… the trials run where the workers are",
        ),
        (("resume", NAME, "--now"), "--now"),
    ):
        done = commands.run(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
        assert done.stdout == ""
