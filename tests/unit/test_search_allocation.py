"""Which cell gets the next trial and why, and what is believed of every cell in the end."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.search.cells.allocation import expected_gains
from orchestrator.search.cells.optima import Optima
from orchestrator.search.gp import surrogate
from orchestrator.search.gp.process import fit
from orchestrator.settings import sampler_settings
from tests.support.samplers import LEARNERS

OTHERS = [pytest.param(name, marks=pytest.mark.nightly) for name in ("random", "qmc")]
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("net", ("small", "large", "wide")), Axis("depth", (2, 4))),
    (Searched("x", "float", -1.0, 1.0), Searched("act", "categorical", choices=("relu", "tanh"))),
    Budget(36, 2),
    allocation="adaptive",
    sampler=sampler_settings("gp"),
)
CELLS = list(enumerate(SPEC.cells()))
Loss = Callable[[Mapping[str, Any]], float]
NOWHERE = np.zeros((2, 2, 0))
"""Coordinates of points, where they do not matter."""


def loss(v: Mapping[str, Any]) -> float:
    """Cell 3 (large, 4) reaches 0, its neighbour 0.1, the others 0.5 and more."""
    offset = {"small": 0.5, "large": 0.0, "wide": 0.8}[v["net"]] + (0.1 if v["depth"] == 2 else 0.0)
    return offset + float(v["x"] - 0.3) ** 2 + (0.2 if v["act"] == "tanh" else 0.0)


def drive(
    spec: StudySpec,
    of: Loss,
    trials: int,
    fails: Callable[[Mapping[str, Any]], bool] = lambda v: False,
) -> Any:
    """A sequential adaptive study: the search, the cells chosen after the shares, and
    the reasons.
    """
    search, chosen, reasons = Search(spec), [], []
    noise = np.random.default_rng(spec.seed)
    cells = list(enumerate(spec.cells()))
    for number in range(trials):
        which = number % len(cells)
        if number >= 2 * len(cells):
            which, reason = search.choose_cell(cells, ticket=number, retry=0)
            chosen.append(which)
            reasons.append(reason)
        asked = search.ask(cells[which][1], ticket=number, retry=0)
        value = (of(asked.values) + 0.01 * noise.standard_normal(),)
        done = TrialNews(number, "COMPLETE", asked.params, value, cell=which)
        search.feed(
            [TrialNews(number, "FAIL", asked.params, cell=which) if fails(asked.values) else done]
        )
    return search, chosen, reasons


@pytest.mark.parametrize("name", [*LEARNERS, *OTHERS])
def test_the_best_cells_get_the_trials_whatever_samples_them(name: str) -> None:
    _, chosen, _ = drive(replace(SPEC, sampler=sampler_settings(name)), loss, 48)
    counts = Counter(chosen)
    assert counts[2] + counts[3] > 0.7 * len(chosen)
    assert counts[3] > len(chosen) / 3


def test_the_choice_is_a_function_of_news_seed_ticket_and_retry() -> None:
    search, _, _ = drive(SPEC, loss, 30)
    same, _, _ = drive(SPEC, loss, 30)
    for ticket in range(5):
        assert search.choose_cell(CELLS, ticket=ticket, retry=1) == same.choose_cell(
            CELLS, ticket=ticket, retry=1
        )
    answers = {json.dumps(search.choose_cell(CELLS, ticket=40, retry=retry)) for retry in range(6)}
    answers |= {
        json.dumps(search.choose_cell(CELLS, ticket=ticket, retry=0)) for ticket in range(40, 46)
    }
    assert len(answers) > 6


def test_the_reason_holds_the_figures_in_the_objectives_units() -> None:
    turned = replace(SPEC, directions=("maximize",))
    for spec, sign in ((SPEC, 1.0), (turned, -1.0)):
        _, chosen, reasons = drive(spec, lambda v, sign=sign: sign * (10.0 + loss(v)), 40)  # type: ignore[misc]
        assert {r["rule"] for r in reasons} <= {
            "knowledge gradient",
            "thompson leader",
            "thompson challenger",
        }
        assert len({r["rule"] for r in reasons}) > 1
        last = reasons[-1]
        assert json.loads(json.dumps(last)) == last
        assert last["leader"]["cell"] == 3
        assert last["leader"]["estimate"] == pytest.approx(sign * 10.0, abs=0.05)
        assert 0.5 < last["leader"]["probability_best"] <= 1.0
        assert last["expected_gain"] >= 0.0
        assert last["trials"] == chosen[:-1].count(chosen[-1]) + 2
        assert str(last["trials"]) in last["why"]


def test_the_choice_and_the_suggestion_share_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(x: Any, *rest: Any) -> Any:
        sizes.append(len(x))
        return fit(x, *rest)

    monkeypatch.setattr(surrogate, "fit", counted)
    drive(SPEC, loss, 30)
    assert len(sizes) == len(set(sizes))
    assert len(sizes) > 5


def test_only_open_cells_are_chosen() -> None:
    search, _, _ = drive(SPEC, loss, 24)
    some = [CELLS[0], CELLS[4]]
    assert {search.choose_cell(some, ticket=t, retry=0)[0] for t in range(12)} <= {0, 4}
    assert search.choose_cell(CELLS[5:], ticket=0, retry=0)[0] == 5


def test_until_ten_trials_have_a_value_the_shares_are_equal() -> None:
    search, _, _ = drive(SPEC, loss, 9)
    asked = search.ask(CELLS[3][1], ticket=9, retry=0)
    search.feed([TrialNews(9, "RUNNING", asked.params, cell=3)])
    which, reason = search.choose_cell(CELLS, ticket=10, retry=0)
    assert which == 4
    assert reason["rule"] == "fewest trials"
    assert Search(SPEC).choose_cell(CELLS, ticket=0, retry=0)[0] == 0


def test_a_third_of_the_budget_is_spread_evenly_before_the_model_decides() -> None:
    _, chosen, reasons = drive(replace(SPEC, budget=Budget(90, 2)), loss, 48)
    even = [reason["rule"] == "fewest trials" for reason in reasons]
    assert even == [True] * 18 + [False] * 18
    assert Counter(chosen[:18]) == dict.fromkeys(range(6), 3)
    assert reasons[0]["why"] == "fewer than 5 trials, a third of an equal share: equal shares"


def test_several_objectives_get_equal_shares_and_the_reason_says_so() -> None:
    spec = replace(SPEC, directions=("minimize", "maximize"), metrics=("a", "b"))
    search = Search(spec)
    for number in range(20):
        asked = search.ask(CELLS[number % 5][1], ticket=number, retry=0)
        search.feed([TrialNews(number, "COMPLETE", asked.params, (1.0, 2.0), cell=number % 5)])
    which, reason = search.choose_cell(CELLS, ticket=20, retry=0)
    assert (which, reason["rule"]) == (5, "fewest trials")
    assert "several objectives" in str(reason["why"])
    assert search.summary([values for _, values in CELLS]) == [None] * 6


def test_a_cell_that_only_fails_is_left() -> None:
    _, chosen, _ = drive(SPEC, loss, 48, fails=lambda v: bool(v["net"] == "large"))
    assert Counter(chosen)[2] + Counter(chosen)[3] < 0.35 * len(chosen)


def test_what_runs_already_promises_less() -> None:
    search, _, _ = drive(SPEC, loss, 12)

    def gain() -> float:
        answers = [
            search.choose_cell([CELLS[3]], ticket=ticket, retry=0)[1] for ticket in range(40, 48)
        ]
        assert all(answer["running"] == running for answer in answers)
        return float(np.mean([answer["expected_gain"] for answer in answers]))

    running = 0
    before = gain()
    for number in range(12, 22):
        asked = search.ask(CELLS[3][1], ticket=number, retry=0)
        search.feed([TrialNews(number, "RUNNING", asked.params, cell=3)])
    running = 10
    assert gain() < 0.5 * before


def test_a_grid_without_search_and_a_search_without_grid_are_answered() -> None:
    grid_only = replace(SPEC, search=())
    search, chosen, _ = drive(grid_only, lambda v: float(v["depth"]) + (v["net"] != "wide"), 24)
    assert Counter(chosen).most_common(1)[0][0] == 4
    estimates = search.summary([values for _, values in CELLS])
    assert estimates[4].estimate == pytest.approx(2.0, abs=0.05)
    search, chosen, _ = drive(replace(SPEC, grid=()), lambda v: float(v["x"]), 14)
    assert set(chosen) == {0}
    assert search.summary([{}])[0].probability_best == 1.0


def test_a_cell_outside_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="net=tiny"):
        Search(SPEC).choose_cell([(0, {"net": "tiny", "depth": 2})], ticket=0, retry=0)
    with pytest.raises(ConfigError, match="needs a value for each"):
        Search(SPEC).summary([{"net": "wide"}])


def test_the_expected_gain_of_one_uncertain_cell_is_the_expected_improvement() -> None:
    mean, std = np.array([[0.0], [0.3]]), 0.4
    gains = expected_gains(Optima(mean, np.diag([0.0, std**2]), 0.0, NOWHERE))
    z = -0.3 / std
    assert gains[0] == 0.0
    assert gains[1] == pytest.approx(std * (stats.norm.pdf(z) + z * stats.norm.cdf(z)), rel=0.05)
    noisy = expected_gains(Optima(mean, np.diag([0.0, std**2]), 1.0, NOWHERE))
    assert noisy[1] < 0.5 * gains[1]


def test_lows_are_joint_draws_of_each_cells_best_point() -> None:
    covariance = np.full((4, 4), 1.0) + 1e-6 * np.eye(4)
    lows = Optima(np.array([[0.0, 1.0], [0.5, 9.0]]), covariance, 0.0, NOWHERE).lows(
        np.random.default_rng(0), 4000
    )
    assert lows.mean(axis=0) == pytest.approx([0.0, 0.5], abs=0.05)
    assert lows.std(axis=0) == pytest.approx([1.0, 1.0], abs=0.05)
    assert (lows[:, 0] < lows[:, 1]).all()


@pytest.mark.parametrize(
    "direction", ["minimize", pytest.param("maximize", marks=pytest.mark.nightly)]
)
def test_the_summary_tells_every_cells_optimum(direction: Any) -> None:
    sign = -1.0 if direction == "maximize" else 1.0
    inside, sure = [], []
    for seed in range(4):
        spec = replace(SPEC, directions=(direction,), seed=seed)
        search, _, _ = drive(spec, lambda v: sign * (10.0 + loss(v)), 60)
        estimates = search.summary([values for _, values in CELLS])
        assert sum(e.probability_best for e in estimates) == pytest.approx(1.0)
        assert estimates == search.summary([values for _, values in CELLS])
        sure.append(estimates[3].probability_best)
        for (_, cell), e in zip(CELLS, estimates, strict=True):
            truth = sign * (10.0 + loss({**cell, "x": 0.3, "act": "relu"}))
            assert e.low <= e.estimate <= e.high
            inside.append(e.low - 0.005 <= truth <= e.high + 0.005)
    assert np.mean(inside) >= 0.75
    assert min(sure) > 0.9


def test_of_what_no_trial_has_told_the_summary_says_nothing() -> None:
    search, cells = Search(SPEC), [values for _, values in CELLS]
    assert search.summary(cells) == [None] * 6
    for number in range(12):
        which = number % 4
        asked = search.ask(cells[which], ticket=number, retry=0)
        failed = TrialNews(number, "FAIL", asked.params, cell=which)
        search.feed(
            [
                failed
                if which == 1
                else TrialNews(number, "COMPLETE", asked.params, (loss(asked.values),), cell=which)
            ]
        )
    waiting = search.ask(cells[5], ticket=12, retry=0)
    before = search.summary(cells)
    search.feed([TrialNews(12, "RUNNING", waiting.params, cell=5)])
    assert search.summary(cells) == before
    assert [e is None for e in before] == [False, True, False, False, True, True]
    assert not math.isnan(sum(e.probability_best for e in before if e is not None))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_no_estimate_lies_beyond_what_the_metric_can_be(direction: Any) -> None:
    # Results close to the limit with noise: without limits the model believes in more.
    sign = -1.0 if direction == "maximize" else 1.0
    limits = (0.0, None) if sign > 0 else (None, 0.0)
    free = replace(SPEC, directions=(direction,))
    cells = [values for _, values in CELLS]
    search, _, _ = drive(free, lambda v: sign * loss(v), 40)
    bounded, _, reasons = drive(replace(free, bounds=(limits,)), lambda v: sign * loss(v), 40)

    beyond = [sign * e.low < 0.0 or sign * e.high < 0.0 for e in search.summary(cells)]
    assert any(beyond), "nothing to clip: the test proves nothing"
    for e in bounded.summary(cells):
        assert all(sign * value >= 0.0 for value in (e.low, e.estimate, e.high))
        assert e.low <= e.estimate <= e.high
    modelled = [reason for reason in reasons if "estimate" in reason]
    assert modelled
    assert all(sign * reason["estimate"] >= 0.0 for reason in modelled)
    assert all(sign * reason["leader"]["estimate"] >= 0.0 for reason in modelled)


def test_no_gain_is_expected_below_the_least_loss() -> None:
    mean, covariance = np.array([[0.0], [0.3]]), np.diag([0.0, 0.16])
    free = expected_gains(Optima(mean, covariance, 0.0, NOWHERE))
    half = expected_gains(Optima(mean, covariance, 0.0, NOWHERE), -0.1)
    assert 0.0 < half[1] < free[1]
    assert expected_gains(Optima(mean, covariance, 0.0, NOWHERE), 0.0).tolist() == [0.0, 0.0]
    assert expected_gains(Optima(mean - 1.0, covariance, 0.0, NOWHERE), 0.0).tolist() == [0.0, 0.0]
