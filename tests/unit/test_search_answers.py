"""What an unchanged Optuna objective gets for `trial.suggest_*`, beside what Optuna gives for the
same calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import json_to_distribution
from optuna.trial import FixedTrial

from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.search import parameters, values_by_hand
from orchestrator.settings import sampler_settings
from tests.benchmarks.define_by_run import PROBLEMS, best_of
from tests.support.asking import AskedStudy

BARE = StudySpec(
    "asked",
    ("minimize",),
    ("loss",),
    {},
    {},
    (),
    (),
    Budget(10),
    sampler=sampler_settings("random"),
    seed=3,
)
OPT = Axis("opt", ("sgd", "adam"))
BATCH = Axis("batch", (32, 64))
LR = Searched("lr", "float", 1e-4, 1e-1, log=True)


def everything(trial: Any) -> dict[str, Any]:
    """Each way to ask, and some arguments that Optuna converts."""
    return {
        "float": trial.suggest_float("float", -1, np.float32(2.5)),
        "log": trial.suggest_float("log", 1e-6, 1.0, log=True),
        "step": trial.suggest_float("step", 0.0, 1.0, step=0.25),
        "int": trial.suggest_int("int", np.int64(1), 9),
        "int_log": trial.suggest_int("int_log", 1, 1024, log=True),
        "int_step": trial.suggest_int("int_step", 0, 12, step=3),
        "choice": trial.suggest_categorical("choice", ("a", None, True, 3, 0.5)),
        "one": trial.suggest_float("one", 0.5, 0.5),
    }


def types(values: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "qmc"])
def test_every_sampler_answers_what_optuna_could_have_answered(sampler: str) -> None:
    options = (
        {"n_startup_trials": 3}
        if sampler in ("tpe", "gp")
        else {"population_size": 3}
        if sampler == "nsga2"
        else {}
    )
    study = AskedStudy(replace(BARE, sampler=sampler_settings(sampler, **options)))
    seen = set()
    for _ in range(8):
        trial = study.start()
        values = everything(trial)
        assert everything(FixedTrial(values)) == values, "in range, by Optuna's own judgement"
        assert types(values) == types(everything(FixedTrial(values)))
        assert trial.params == values
        study.end(trial, values["float"])
        seen.add(values["float"])
    assert len(seen) >= 3, "and not one value all the time"


def test_what_is_stored_is_what_optuna_would_store() -> None:
    trial = AskedStudy(BARE).start()
    values = everything(trial)
    real = optuna.create_study()
    real.enqueue_trial(values)
    theirs = real.ask()
    everything(theirs)
    stored = {param.name: json_to_distribution(param.distribution) for param in trial.added}
    assert stored == theirs.distributions
    assert {
        p.name: stored[p.name].to_external_repr(p.internal) for p in trial.added
    } == theirs.params


WRONG: list[Callable[[Any], Any]] = [
    lambda t: t.suggest_float("x", 2.0, 1.0),
    lambda t: t.suggest_float("x", 0.0, 1.0, log=True),
    lambda t: t.suggest_float("x", 0.1, 1.0, log=True, step=0.1),
    lambda t: t.suggest_float("x", 0.0, 1.0, step=0),
    lambda t: t.suggest_int("x", 2, 1),
    lambda t: t.suggest_int("x", 0, 5, log=True),
    lambda t: t.suggest_int("x", 1, 5, log=True, step=2),
    lambda t: t.suggest_int("x", 1, 5, step=0),
    lambda t: t.suggest_categorical("x", []),
    lambda t: (t.suggest_float("x", 0, 1), t.suggest_int("x", 0, 1)),
    lambda t: (t.suggest_float("x", 0.1, 1), t.suggest_float("x", 0.1, 1, log=True)),
    lambda t: (t.suggest_categorical("x", ["a", "b"]), t.suggest_categorical("x", ["a", "c"])),
]


@pytest.mark.parametrize("call", WRONG)
def test_what_optuna_refuses_is_refused_in_the_same_words(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError) as theirs:  # noqa: PT011 - its text is what we compare with
        call(optuna.create_study().ask())
    with pytest.raises(ValueError, match="parameter 'x': ") as ours:
        call(AskedStudy(BARE).start())
    assert str(theirs.value) in str(ours.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.suggest_float("x", 0, float("inf")), "`high` must be finite"),
        (lambda t: t.suggest_float("x", float("nan"), 1), "`low` must be finite"),
        (lambda t: t.suggest_float("x", -1.7e308, 1.7e308), "wider than a float can say"),
        (lambda t: t.suggest_int("x", 0, 2**60), "2\\*\\*53"),
        (lambda t: t.suggest_float("x", 0, 1e300, step=1e-5), "the step is too small"),
        (lambda t: t.suggest_categorical("x", ["a", float("nan")]), "a choice must be finite"),
        (lambda t: t.suggest_categorical("x", ["a\0"]), "NUL"),
        (lambda t: t.suggest_float("x" * 513, 0, 1), "at most 512 characters, got 513"),
    ],
)
def test_what_no_storage_keeps_is_refused(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(AskedStudy(BARE).start())


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.suggest_float("x", "0", 1),
        lambda t: t.suggest_int("x", None, 1),
        lambda t: t.suggest_float(3, 0, 1),
        lambda t: t.suggest_categorical("x", [(1, 2)]),
    ],
)
def test_arguments_of_another_type_are_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        call(AskedStudy(BARE).start())


def test_asked_again_a_name_keeps_its_value_and_other_limits_are_warned_of_as_in_optuna() -> None:
    trial = AskedStudy(BARE).start()
    first = trial.suggest_float("x", 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trial.suggest_float("x", 0, 1) == first
    with pytest.warns(RuntimeWarning, match="'x'"):
        assert trial.suggest_float("x", 5, 6) == first
    with pytest.warns(UserWarning, match="not divisible by `step`"):
        assert trial.suggest_int("n", 0, 7, step=3) in (0, 3, 6)


def test_another_attempt_gets_the_answers_of_the_first_and_new_ones_beside_them() -> None:
    study = AskedStudy(replace(BARE, sampler=sampler_settings("tpe", n_startup_trials=2)))
    for value in (1.0, 2.0, 3.0):
        trial = study.start()
        everything(trial)
        study.end(trial, value)
    killed = study.start()
    had = (
        killed.suggest_float("log", 1e-6, 1.0, log=True),
        killed.suggest_categorical("choice", ("a", None, True, 3, 0.5)),
    )
    values = everything(study.again(study.stored(killed)))
    assert (values["log"], values["choice"]) == had


def test_the_same_study_suggests_the_same_and_no_two_trials_do() -> None:
    spec = replace(BARE, sampler=sampler_settings("tpe"))
    one, other = AskedStudy(spec), AskedStudy(spec)
    mine = [everything(one.start()) for _ in range(3)]
    assert mine == [everything(other.start()) for _ in range(3)]
    assert len({values["log"] for values in mine}) == 3


def test_a_name_of_the_grid_has_the_value_of_the_cell_however_it_is_asked_for() -> None:
    study = AskedStudy(replace(BARE, grid=(OPT, BATCH)))
    for opt, batch in (("sgd", 32), ("sgd", 64), ("adam", 32), ("adam", 64)):
        trial = study.start()
        assert trial.suggest_categorical("opt", ["adam", "lion", "sgd"]) == opt
        assert trial.suggest_int("batch", 16, 128, log=True) == batch
        assert study.again(trial.created).suggest_categorical("batch", [128, 64, 32]) == batch
        assert trial.added == []


def test_a_value_of_the_grid_that_is_not_asked_for_is_named_with_what_is() -> None:
    trial = AskedStudy(replace(BARE, grid=(OPT, BATCH))).start()
    with pytest.raises(
        ValueError,
        match=r"grid\.opt: sgd is outside .* objective requests, one of adam, lion",
    ):
        trial.suggest_categorical("opt", ["adam", "lion"])
    with pytest.raises(
        ValueError,
        match=r"grid\.batch: 32 is outside .* objective requests, int from 64 to 128",
    ):
        trial.suggest_int("batch", 64, 128)


def test_a_searched_name_has_its_own_value_if_all_of_them_are_asked_for() -> None:
    study = AskedStudy(replace(BARE, search=(LR,)))
    trial = study.start()
    assert trial.suggest_float("lr", 1e-5, 1.0, log=True) == trial.created.params[0].internal
    with pytest.raises(
        ValueError,
        match=r"search\.lr: 0\.0001 is outside what the objective requests, float from 0\.001 to 1",
    ):
        trial.suggest_float("lr", 1e-3, 1.0, log=True)


def test_a_searched_name_of_other_cells_is_refused() -> None:
    momentum = Searched("momentum", "float", 0.0, 0.9, when={"opt": ("adam",)})
    study = AskedStudy(replace(BARE, grid=(OPT,), search=(momentum,)))
    with pytest.raises(
        ValueError, match=r"search\.momentum: exists only if opt=adam, and not where opt=sgd"
    ):
        study.start().suggest_float("momentum", 0, 1)
    assert 0 <= study.start().suggest_float("momentum", 0, 1) <= 0.9


def test_values_by_hand_are_what_the_objective_gets() -> None:
    study = AskedStudy(BARE)
    trial = study.start(by_hand={"log": 1e-3, "choice": "a", "int_step": 5})
    assert trial.suggest_float("log", 1e-6, 1.0, log=True) == 1e-3
    assert trial.suggest_categorical("choice", ["b", "a"]) == "a"
    with pytest.raises(
        ValueError,
        match="int_step=5 was enqueued; the objective requests int from 0 to 12, step 3",
    ):
        trial.suggest_int("int_step", 0, 12, step=3)


def test_a_word_that_reads_like_a_number_is_told_from_it() -> None:
    trial = AskedStudy(BARE).start(by_hand={"kind": 1, "rate": "0.5"})
    with pytest.raises(
        ValueError,
        match=(
            r'kind=1 was enqueued; the objective requests one of None, True, "1", '
            r'"null", 1\.5'
        ),
    ):
        trial.suggest_categorical("kind", [None, True, "1", "null", 1.5])
    with pytest.raises(
        ValueError, match=r'rate="0\.5" was enqueued; the objective requests float from 0 to 1'
    ):
        trial.suggest_float("rate", 0, 1)


def test_values_by_hand_are_checked_by_what_was_asked_for_before() -> None:
    trial = AskedStudy(BARE).start()
    everything(trial)
    asked = {param.name: param.distribution for param in trial.added}
    declared = parameters(replace(BARE, search=(LR,)))
    assert values_by_hand(declared, {"log": 0.5, "lr": 7, "new": 1}, asked) == {"log": 0.5}
    with pytest.raises(
        ConfigError, match="choice=z: outside what this study's objective requests, one of a, None"
    ):
        values_by_hand(declared, {"choice": "z"}, asked)


def test_a_space_that_is_discovered_is_learnt() -> None:
    random = [best_of("random", name, 0, 30) for name in PROBLEMS]
    learnt = [best_of("tpe", name, 0, 30) for name in PROBLEMS]
    assert sum(mine < theirs for mine, theirs in zip(learnt, random, strict=True)) >= 3


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_limits_may_move_from_trial_to_trial_and_are_kept(sampler: str) -> None:
    options = {"population_size": 4} if sampler == "nsga2" else {"n_startup_trials": 4}
    study = AskedStudy(replace(BARE, sampler=sampler_settings(sampler, **options)))
    for _ in range(12):
        trial = study.start()
        width = trial.suggest_int("width", 2, 64)
        heads, log = (
            trial.suggest_int("heads", 1, width),
            trial.suggest_float("log", 1e-3, width, log=True),
        )
        assert 1 <= heads <= width
        assert 1e-3 <= log <= width
        stepped = trial.suggest_float("stepped", 0, width, step=0.5)
        assert stepped % 0.5 == 0
        assert stepped <= width
        study.end(trial, abs(heads - 12) + abs(width - 40) + log)


def test_a_process_learns_from_trials_with_other_limits() -> None:
    assert best_of("gp", "moving_limits", 0, 25) < 0.1 * best_of("random", "moving_limits", 0, 25)


def test_the_model_of_the_cells_knows_the_parameters_that_were_discovered() -> None:
    study = AskedStudy(replace(BARE, grid=(OPT,), sampler=sampler_settings("tpe")))
    for _ in range(14):
        trial = study.start()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1) if x > 0.5 else 0.0
        study.end(
            trial,
            x + y + (1.0 if trial.suggest_categorical("opt", ["sgd", "adam"]) == "sgd" else 0.0),
        )
    estimates = study.search.summary([{"opt": "sgd"}, {"opt": "adam"}])
    assert estimates[1] is not None
    assert estimates[1].probability_best > 0.9
    cell, why = study.search.choose_cell(
        [(0, {"opt": "sgd"}), (1, {"opt": "adam"})], ticket=20, retry=0
    )
    assert cell in (0, 1)
    assert why["rule"] != "fewest trials"


def test_a_step_is_answered_with_the_number_that_one_would_write() -> None:
    study = AskedStudy(BARE)
    for _ in range(12):
        trial = study.start()
        assert trial.suggest_float("x", 0.0, 1.0, step=0.1) in [k / 10 for k in range(11)]
        study.end(trial, 1.0)
