"""What another study's trials say about this one, and how much it is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from orchestrator.cli import warm_start as words
from orchestrator.config.warm_start import warm_start
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.prior import Observation, Prior, SourceStudy
from orchestrator.search import Search, best_of, prior_of
from orchestrator.search.gp.process import SEARCHING, Layout, fit
from orchestrator.search.gp.sources import SourceModel, SourceTrials, learn
from orchestrator.search.priors import MOST_OBSERVATIONS
from orchestrator.search.space import parameters
from orchestrator.search.trials.history import Column
from orchestrator.settings import sampler_settings

HERE = StudySpec(
    "here",
    ("minimize",),
    ("loss",),
    {},
    {"net": "small", "lr": 0.1, "wd": 0.0, "batch": 32},
    (Axis("batch", (32, 64)),),
    (Searched("lr", "float", 1e-4, 1.0, log=True), Searched("wd", "float", 0.0, 1.0)),
    Budget(20),
    sampler=sampler_settings("gp"),
)
THERE = replace(
    HERE,
    name="there",
    params={"net": "small", "lr": 0.1, "wd": 0.25, "batch": 64},
    grid=(Axis("net", ("small", "large")),),
    search=(Searched("lr", "float", 1e-6, 1.0, log=True),),
)


def trial(number: int, value: float | None, **values: Any) -> TrialNews:
    declared = parameters(THERE)
    params = tuple(declared[p].param(declared[p].internal(v)) for p, v in values.items())
    state: Any = "FAIL" if value is None else "COMPLETE"
    return TrialNews(number, state, params, None if value is None else (value,))


def there(*trials: TrialNews, **changes: Any) -> SourceStudy:
    made = SourceStudy("there", 7, ("minimize",), ("loss",), THERE, trials)
    return replace(made, **changes)


def test_trials_count_where_the_spaces_overlap() -> None:
    prior = prior_of(
        HERE,
        there(
            trial(0, 0.5, net="small", lr=0.01),
            trial(1, 0.1, net="large", lr=0.01),
            trial(2, 0.1, net="small", lr=1e-5),
            trial(3, None, net="small", lr=0.01),
            trial(4, float("nan"), net="small", lr=0.01),
        ),
    )
    # what is fixed there has its value from params there, a searched axis is searched here or not
    assert prior.observations == (Observation(0, {"batch": 64, "lr": 0.01, "wd": 0.25}, 0.5),)
    assert prior.left_out == {
        "with another net than params has here": 1,
        "with lr outside what this study allows": 1,
        "failed": 1,
        "without a finite value": 1,
    }
    assert words.line(prior).startswith(
        "warm start from there: 1 trial taken, 4 left out (1 with another net than params has here;"
    )
    assert Prior.from_json(prior.to_json()) == prior


def test_a_value_fixed_there_that_this_study_does_not_allow_says_nothing() -> None:
    spec = replace(THERE, params={"net": "small", "wd": -1.0, "batch": "${size}"})
    prior = prior_of(HERE, there(trial(0, 0.5, net="small", lr=0.01), spec=spec))
    assert prior.observations[0].values == {"lr": 0.01}


def test_an_option_counts_by_its_content_not_by_its_name() -> None:
    options = Axis("net", ("a", "b"), ({"width": 1}, {"width": 2}), "net")
    renamed = Axis("net", ("b", "c"), ({"width": 1}, {"width": 3}), "net")
    source = replace(THERE, grid=(options,))
    net = parameters(source)["net"]
    trials = (TrialNews(n, "COMPLETE", (net.param(float(n)),), (float(n),)) for n in (0, 1))
    prior = prior_of(replace(HERE, grid=(renamed,)), there(*trials, spec=source))
    assert [(o.number, o.values["net"]) for o in prior.observations] == [(0, "b")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": ("maximize",)}, "maximize there and minimize here"),
        ({"directions": ("minimize", "minimize")}, "2 objectives"),
        ({"trials": (trial(0, None, net="small", lr=0.1),)}, "none of its 1 finished.*1 failed"),
        ({"trials": ()}, "none of its 0 finished trials"),
    ],
)
def test_a_study_that_says_nothing_here_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"warm_start=there: .*{message}"):
        prior_of(HERE, replace(there(trial(0, 0.5, net="small", lr=0.01)), **changes))


def test_of_many_trials_the_best_and_a_spread_are_taken() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(3 * MOST_OBSERVATIONS)
    source = there(*(trial(n, v, net="small", lr=0.01) for n, v in enumerate(values.tolist())))
    prior = prior_of(HERE, source)
    taken = [o.number for o in prior.observations]
    assert len(taken) == MOST_OBSERVATIONS
    assert taken == sorted(taken)
    assert set(np.argsort(values)[: MOST_OBSERVATIONS // 2].tolist()) <= set(taken)
    assert sum(prior.left_out.values()) == 2 * MOST_OBSERVATIONS


@pytest.mark.parametrize("stored", [{"constraints:memory": 0.5}, {"constraints": [-1.0, 0.5]}])
def test_what_broke_a_constraint_is_left_out_whoever_wrote_it(stored: dict[str, Any]) -> None:
    broken = replace(trial(1, 0.1, net="small", lr=0.1), system_attrs=stored)
    kept = replace(trial(2, 0.2, net="small", lr=0.1), system_attrs={"constraints:memory": 0.0})
    prior = prior_of(HERE, there(broken, kept))
    assert [o.number for o in prior.observations] == [2]
    assert prior.left_out == {"infeasible": 1}


def test_the_best_of_others_are_distinct_on_the_grid_and_in_turn() -> None:
    def prior(name: str, *observations: tuple[float, Mapping[str, Any]]) -> Prior:
        made = (Observation(n, values, loss) for n, (loss, values) in enumerate(observations))
        return Prior(name, 0, tuple(made))

    one = prior(
        "one",
        (0.1, {"batch": 32, "lr": 0.1}),
        (0.11, {"batch": 32.0, "lr": 0.1}),
        (0.9, {"batch": 64, "lr": 0.5}),
    )
    other = prior("other", (5.0, {"batch": 48, "lr": 0.1}), (6.0, {"lr": 0.2}))
    found, left_out = best_of(HERE, [one, other], 5)
    assert [(e.source, e.cell, e.fixed) for e in found] == [
        ("one", 0, {"lr": 0.1}),
        ("one", 1, {"lr": 0.5}),
    ]
    assert left_out == {"not on this study's grid": 1, "without a value of batch": 1}
    # one share a cell, and one trial that belongs to none
    small = replace(HERE, budget=Budget(3, 1))
    many = prior("many", *((0.1 * k, {"batch": 32, "lr": 0.1 + 0.1 * k}) for k in range(4)))
    found, left_out = best_of(small, [many], 4)
    assert [e.cell for e in found] == [0, 0]
    assert left_out == {"beyond what the budget has for their cells": 2}


# -------------------------------------------------------------------------- how much it is believed

COLUMNS = [Column.of(name, FloatDistribution(0.0, 1.0)) for name in ("x", "z")]
LAYOUT = Layout.of(COLUMNS, [])


def bowl(x: Any) -> Any:
    return (x[:, 0] - 0.3) ** 2 + 0.3 * (x[:, 1] - 0.6) ** 2


def model(loss: Callable[[Any], Any], n: int = 60) -> SourceModel:
    x = np.random.default_rng(1).random((n, 2))
    trials = SourceTrials("s", {"x": x[:, 0], "z": x[:, 1]}, loss(x), np.zeros(n, dtype=bool))
    made = SourceModel.of(trials, COLUMNS, [])
    assert made is not None
    return made


def own(n: int) -> tuple[Any, Any]:
    x = np.random.default_rng(2).random((n, 2))
    y = bowl(x)
    return x, (y - y.mean()) / y.std()


def test_a_source_counts_as_far_as_it_foretells_and_in_any_unit() -> None:
    x, y = own(8)
    _, trend = learn(x, y, LAYOUT, [model(lambda x: 1000.0 * bowl(x) - 3.0)], SEARCHING)
    assert trend is not None
    assert trend.by_source["s"] == pytest.approx(1.0, abs=0.25)
    assert np.corrcoef(trend.mean(x, x[:, 2:]), y)[0, 1] > 0.97


@pytest.mark.parametrize("n", [8, 30])
def test_a_misleading_source_does_not_count_and_changes_nothing(n: int) -> None:
    x, y = own(n)
    h, trend = learn(x, y, LAYOUT, [model(lambda x: -bowl(x))], SEARCHING)
    assert trend is None
    assert h.inverse_squared.tolist() == fit(x, y, LAYOUT).inverse_squared.tolist()


def test_a_good_source_counts_beside_a_misleading_one() -> None:
    x, y = own(8)
    good, bad = model(bowl), replace(model(lambda x: -bowl(x)), name="bad")
    _, trend = learn(x, y, LAYOUT, [bad, good], SEARCHING)
    assert trend is not None
    assert trend.by_source.keys() == {"s"}
    assert trend.by_source["s"] > 0.7


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_the_first_trial_goes_where_the_source_has_its_best(sampler: str) -> None:
    spec = replace(HERE, sampler=sampler_settings(sampler))
    grid = [(32, 10.0**e) for e in np.linspace(-4, 0, 25)]
    prior = Prior(
        "there",
        0,
        tuple(
            # it lacks wd, and one trial lies outside
            Observation(n, {"batch": batch, "lr": lr}, (np.log10(lr) + 1.5) ** 2)
            for n, (batch, lr) in enumerate([*grid, (32, 5.0)])
        ),
    )

    def first(cell: int, *, warm: bool) -> float:
        search = Search(spec)
        search.warm_start([prior] if warm else [])
        lr: float = search.ask({"batch": cell}, ticket=0, retry=0).values["lr"]
        assert search.discounts() == ([None] if warm else [])
        return lr

    assert np.log10(first(32, warm=True)) == pytest.approx(-1.5, abs=0.2)
    assert np.log10(first(64, warm=True)) == pytest.approx(-1.5, abs=0.4)
    assert first(32, warm=True) == first(32, warm=True)
    cold = Search(spec).ask({"batch": 32}, ticket=0, retry=0).values["lr"]
    assert first(32, warm=False) == cold


# ------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    ("declared", "best", "changes", "message"),
    [
        ("here", 0, {}, "cannot be warm started from itself"),
        (["a", "a"], 0, {}, "a is named twice"),
        ([1], 0, {}, "must be a list of names"),
        ({"a": 1}, 0, {}, "must be a list of names"),
        ([f"s{n}" for n in range(9)], 0, {}, "at most 8"),
        ([], 3, {}, "of which study"),
        (["a"], 21, {}, "must be at most budget.trials=20"),
        (["a"], -1, {}, "must be a whole number from 0"),
        (["a"], True, {}, "must be a whole number from 0"),
        (["a"], 0, {"sampler": sampler_settings("qmc")}, "sampler=qmc .* learns from no trial"),
        (["a"], 0, {"directions": ("minimize",) * 2, "metrics": ("a", "b")}, "several objectives"),
    ],
)
def test_a_broken_rule_is_named(declared: Any, best: Any, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        warm_start(declared, best, replace(HERE, **changes))


def test_a_sampler_that_does_not_learn_may_run_the_best_or_leave_it_to_the_allocation() -> None:
    random = replace(HERE, sampler=sampler_settings("random"))
    assert warm_start("a", 2, random) == (("a",), 2)
    assert warm_start(["a"], 0, replace(random, allocation="adaptive")) == (("a",), 0)
    assert warm_start(None, None, random) == ((), 0)


def test_without_sources_a_study_is_stored_as_before_there_were_any() -> None:
    assert not {"warm_start", "enqueue_best"} & HERE.to_json().keys()
    warm = replace(HERE, warm_start=("a", "b"), enqueue_best=2)
    assert StudySpec.from_json(warm.to_json()) == warm
    assert warm.spec_hash() == HERE.spec_hash()
