"""SIGKILL of a worker at every step of a trial and around every COMMIT: the next worker makes the
study whole.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import optuna
import pytest

from orchestrator.model import Budget
from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import Fleet
from tests.support.studies import RUNNER, spec

TRAIN = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.1}
STEPS = (
    "checkpoints.begin",
    "after-claim",
    "after-ask",
    "after-create",
    "after-start",
    "mid-run",
    "after-result",
    "after-finish",
)
SHORT = ("after-create", "mid-run", "after-result")
COMMITS = 30  # more than a worker makes for two trials


def survive(commands: Commands, store: Store, crash_at: str, name: str = "study") -> bool:
    """A worker that dies at that step, then one that does not; False if the first never came to the
    step.
    """
    study = store.studies.launch(
        spec(name, cells=3, objective=TRAIN, runner=replace(RUNNER, max_attempts=10))
    ).study_id
    with Fleet(commands, "worker.idle_timeout_s=0.3", f"worker.studies=[{name}]") as fleet:
        doomed = fleet.start(crash_at=crash_at)
        doomed.expected_dead = True
        code = doomed.ended()
        assert code in (-signal.SIGKILL, 0), doomed.text()
        fleet.start().ended()
        fleet.none_crashed()
    invariants.check(commands, name, cells=3)
    again = sum(t.attempts - 1 for t in store.reads.trials(study))
    assert again <= 1, "at most the one trial that it held is run again"
    return code != 0


@pytest.mark.parametrize(
    "step", [pytest.param(s, marks=() if s in SHORT else pytest.mark.chaos("long")) for s in STEPS]
)
def test_a_worker_killed_at_a_step_leaves_nothing_undone(
    commands: Commands, store: Store, step: str
) -> None:
    assert survive(commands, store, step), "it came to the step"


@pytest.mark.chaos("long")
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_worker_killed_around_a_commit_leaves_nothing_undone(
    commands: Commands, store: Store, figures: Callable[..., None], side: str
) -> None:
    points = range(1, COMMITS + 1)
    reached = [n for n in points if survive(commands, store, f"{side}-commit:{n}", f"study{n}")]
    figures(points=len(points), reached=len(reached))
    assert len(reached) >= 15, "it came to most of them"


@pytest.mark.parametrize(
    ("step", "again"), [("after-claim", 0), ("after-create", 1), ("after-result", 0)]
)
def test_a_worker_killed_while_it_confirms_leaves_nothing_undone(
    commands: Commands, store: Store, step: str, again: int
) -> None:
    noisy = {"_target_": "tests.support.training.noisy"}
    # Twelve trials, so that the model has something to say, and four that may confirm.
    study = store.studies.launch(
        spec(cells=3, objective=noisy, budget=Budget(16, 1, confirm=4))
    ).study_id
    with Fleet(commands, "worker.idle_timeout_s=0.3", "worker.prefetch=0") as fleet:
        fleet.start("worker.max_trials=12").ended()
        doomed = fleet.start(crash_at=step)
        doomed.expected_dead = True
        assert doomed.ended() == -signal.SIGKILL
        fleet.start().ended()
        fleet.none_crashed()
    trials = optuna.load_study(study_name="study", storage=str(commands.url)).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 16
    confirming = [t for t in trials if "orchestrator:confirms" in t.user_attrs]
    assert 0 < len(confirming) <= 4
    for trial in confirming:
        of = trials[trial.user_attrs["orchestrator:confirms"]]
        assert (trial.params, trial.values != of.values) == (of.params, True)
    assert sum(t.attempts - 1 for t in store.reads.trials(study)) == again
    assert store.doctor.examine().findings == ()


@pytest.mark.parametrize("step", ["after-claim", "mid-probe", "after-probe"])
def test_a_worker_killed_while_it_measures_leaves_nothing_undone(
    commands: Commands, store: Store, step: str
) -> None:
    measure = {"p": {"_target_": "tests.support.measuring.measures"}}
    study = store.studies.launch(spec(cells=3, objective=TRAIN, probes=measure)).study_id
    with Fleet(commands, "worker.idle_timeout_s=0.3", "worker.prefetch=0") as fleet:
        doomed = fleet.start(crash_at=step)
        doomed.expected_dead = True
        assert doomed.ended() == -signal.SIGKILL
        (lost,) = store.measured.of(study)
        assert lost.state == "RUNNING"
        fleet.start().ended()
        fleet.none_crashed()
    invariants.check(commands, "study", cells=3)
    rows = store.measured.of(study)
    assert [(row.cell, row.state, row.attempt) for row in rows] == [
        (0, "DONE", 2),
        (1, "DONE", 1),
        (2, "DONE", 1),
    ]
    within = [trial.params["x"] for trial in store.reads.trials(study)]
    assert all(0.2 <= x <= 0.4 for x in within)


def test_a_result_that_its_worker_did_not_deliver_is_delivered_and_not_computed_again(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(spec(cells=1, objective=TRAIN)).study_id
    with Fleet(commands, "worker.idle_timeout_s=0.3") as fleet:
        doomed = fleet.start(crash_at="after-result")
        doomed.expected_dead = True
        assert doomed.ended() == -signal.SIGKILL
        fleet.start().ended()
        fleet.none_crashed()
    (trial,) = invariants.plain_trials(str(commands.url), "study")
    assert trial.user_attrs["ran_as"] == 1
    assert set(trial.intermediate_values) == {0, 1, 2, 3}, (
        "the reports that were not written yet come with it"
    )
    assert [a.outcome for a in store.reads.attempts(study, 0)] == ["completed"]


def test_it_is_delivered_even_if_the_study_was_stopped_meanwhile(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(spec(cells=2, objective=TRAIN)).study_id
    with Fleet(commands, "worker.idle_timeout_s=0.3", "worker.prefetch=0") as fleet:
        doomed = fleet.start(crash_at="after-result")
        doomed.expected_dead = True
        assert doomed.ended() == -signal.SIGKILL
        store.interventions.stop(study, "a test")
        fleet.start().ended()
        fleet.none_crashed()
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE"]
    assert store.reads.find("study").state == "FINISHED"
