"""Which configuration is believed to be the best, how noisy the objective is, what is repeated."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.model import Axis, Budget, Param, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.search.cells.configurations import Noise
from orchestrator.settings import sampler_settings

SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("net", ("small", "large")),),
    (Searched("x", "float", -1.0, 1.0), Searched("act", "categorical", choices=("relu", "tanh"))),
    Budget(60, 2, confirm=6),
    sampler=sampler_settings("random"),
)
CELLS = list(enumerate(SPEC.cells()))
Loss = Callable[[Mapping[str, Any]], float]


def loss(v: Mapping[str, Any]) -> float:
    offset = 0.2 * (v["act"] == "tanh") + 0.3 * (v["net"] == "small")
    return float((v["x"] - 0.3) ** 2 + offset)


def tell(
    search: Search,
    number: int,
    cell: int,
    value: float | None,
    state: Any = "COMPLETE",
    **given: Any,
) -> Mapping[str, Any]:
    """Feeds a trial of the cell that took `given` or what the sampler suggests; its values."""
    asked = search.ask(CELLS[cell][1], ticket=number, retry=0, given=given)
    values = None if value is None else (value,)
    search.feed([TrialNews(number, state, asked.params, values, cell=cell)])
    return asked.values


def drive(noise: float, trials: int = 60, spec: StudySpec = SPEC, of: Loss = loss) -> Search:
    search, rng = Search(spec), np.random.default_rng(0)
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    for number in range(trials):
        cell = number % len(CELLS)
        asked = search.ask(CELLS[cell][1], ticket=number, retry=0)
        value = sign * (of(asked.values) + noise * rng.standard_normal())
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=cell)])
    return search


def noise_of(search: Search) -> Noise:
    found = search.leaders()
    assert found is not None
    assert found.noise is not None
    return found.noise


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_noise_is_found_in_the_objectives_units(noise: float) -> None:
    for spec in (SPEC, replace(SPEC, directions=("maximize",))):
        found = noise_of(drive(noise, 80, spec))
        assert found.low <= found.std <= found.high
        assert found.std == pytest.approx(noise, rel=0.35)
        assert found.low < noise < found.high
        scaled = noise_of(drive(1000 * noise, 80, spec, lambda v: 1000 * loss(v)))
        assert scaled.std == pytest.approx(1000 * found.std, rel=1e-3)


def test_without_noise_the_best_value_is_the_best_and_nothing_is_tied_or_repeated() -> None:
    search = drive(0.0)
    found = search.leaders()
    assert found is not None
    values = [search._mirror.get_trial(number).values[0] for number in range(60)]
    assert found.best.trials == (int(np.argmin(values)),)
    assert found.noise is None
    assert found.tied == ()
    assert found.best.low == found.best.mean == found.best.high == pytest.approx(min(values))
    assert search.confirm(CELLS, ticket=60, retry=0) is None


def test_a_lucky_value_far_from_the_good_region_is_not_believed() -> None:
    search = drive(0.05)
    lucky = 60
    tell(search, lucky, 0, -0.15, x=-0.7, act="tanh")
    found = search.leaders()
    assert found is not None
    assert lucky not in found.best.trials
    values = [search._mirror.get_trial(number).values[0] for number in range(61)]
    assert int(np.argmin(values)) == lucky
    assert loss(search._mirror.get_trial(found.best.trials[0]).params | {"net": "large"}) < 0.1


def test_trials_of_the_same_parameters_are_one_configuration_the_best_value_first() -> None:
    search = drive(0.05)
    for number, value in ((60, 0.01), (61, -0.02), (62, 0.04)):
        tell(search, number, 1, value, x=0.3, act="relu")
    found = search.leaders()
    assert found is not None
    mine = next(leader for leader in found.configurations if 60 in leader.trials)
    assert mine.trials == (61, 60, 62)
    assert mine.low < 0.01 < mine.high
    numbers = [number for leader in found.configurations for number in leader.trials]
    assert len(set(numbers)) == len(numbers) == 63


def test_probabilities_sum_to_one_and_the_mean_orders_the_leaders() -> None:
    for spec, sign in ((SPEC, 1.0), (replace(SPEC, directions=("maximize",)), -1.0)):
        found = drive(0.05, spec=spec).leaders()
        assert found is not None
        leaders = found.configurations
        assert sum(leader.probability_best for leader in leaders) == pytest.approx(1.0)
        means = [sign * leader.mean for leader in leaders]
        assert means == sorted(means)
        assert all(leader.low <= leader.mean <= leader.high for leader in leaders)
        assert found.best.probability_better == 0.5
        assert all(not leader.tied for leader in leaders if leader.mean == max(means) * sign)
        assert set(found.tied) == {leader for leader in leaders[1:] if leader.tied}


def test_what_did_not_complete_is_no_configuration() -> None:
    search = drive(0.05)
    tell(search, 60, 1, None, "FAIL", x=0.31, act="relu")
    tell(search, 61, 1, None, "RUNNING", x=0.29, act="relu")
    found = search.leaders()
    assert found is not None
    assert not {60, 61} & {n for leader in found.configurations for n in leader.trials}


def test_little_or_several_objectives_say_nothing() -> None:
    assert drive(0.05, 9).leaders() is None
    assert drive(0.05, 9).confirm(CELLS, ticket=9, retry=0) is None
    several = replace(SPEC, directions=("minimize", "minimize"), metrics=("loss", "cost"))
    assert Search(several).leaders() is None
    assert Search(several).confirm(CELLS, ticket=0, retry=0) is None


def test_where_noise_hides_the_best_a_leader_is_repeated_and_the_reason_said() -> None:
    search = drive(0.1)
    found = search.leaders()
    assert found is not None
    leading = {n for leader in found.configurations[:20] for n in leader.trials}
    for ticket in range(60, 70):
        repeated = search.confirm(CELLS, ticket=ticket, retry=0)
        assert repeated is not None
        cell, number, why = repeated
        assert number in leading
        assert cell == number % len(CELLS)
        assert json.loads(json.dumps(why)) == why
        assert why["rule"] == "confirm"
        assert why["confirms"] == number
        assert f"trial {number}'s parameters" in why["why"]
        assert search.confirm(CELLS, ticket=ticket, retry=0) == repeated, "a function of the news"


def test_a_closed_cell_is_not_repeated() -> None:
    search = drive(0.1)
    assert search.confirm(CELLS[:1], ticket=60, retry=0) is None, "what leads cannot run"
    near = drive(0.5)
    for ticket in range(60, 66):
        repeated = near.confirm(CELLS[:1], ticket=ticket, retry=0)
        assert repeated is None or repeated[0] == 0


def test_once_the_best_is_clear_nothing_is_repeated() -> None:
    search = drive(0.02, of=lambda v: loss(v) + (2.0 if abs(v["x"] - 0.3) > 0.01 else 0.0))
    for number in range(60, 72):
        tell(search, number, 1, -1.0 + 0.02 * (-1) ** number, x=0.9, act="relu")
    assert search.confirm(CELLS, ticket=72, retry=0) is None


def test_cells_are_the_configurations_where_nothing_is_searched() -> None:
    bare = replace(SPEC, search=())
    search, rng = Search(bare), np.random.default_rng(0)
    for number in range(20):
        asked = search.ask(CELLS[number % 2][1], ticket=number, retry=0)
        value = float(rng.standard_normal())
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=number % 2)])
    found = search.leaders()
    assert found is not None
    assert len(found.configurations) == 2, "each cell is one"
    assert sum(len(leader.trials) for leader in found.configurations) == 20
    repeated = search.confirm(CELLS, ticket=20, retry=0)
    assert repeated is not None
    assert repeated[1] in found.best.trials + found.configurations[1].trials


def test_values_that_are_always_the_same_for_the_same_parameters_have_no_noise() -> None:
    search = drive(0.1)
    for number in range(60, 63):
        tell(search, number, 1, 0.25, x=0.5, act="relu")
        assert noise_of(search).std > 0.03, "two that agree may do so by chance"
    tell(search, 63, 1, 0.25, x=0.5, act="relu")
    found = search.leaders()
    assert found is not None
    assert found.noise is None, "the surface is rough"
    tell(search, 64, 1, 0.35, x=0.5, act="relu")
    assert noise_of(search).std > 0.03


def test_without_noise_equals_are_the_best_alike_and_the_first_of_them_leads() -> None:
    search = drive(0.0, of=lambda v: float(abs(v["x"]) > 0.5))
    for number in range(60, 64):
        tell(search, number, 1, 1.0, x=0.9, act="relu")
    found = search.leaders()
    assert found is not None
    assert found.noise is None
    values = [search._mirror.get_trial(number).values[0] for number in range(60)]
    best = [number for number, value in enumerate(values) if value == 0.0]
    assert [leader.trials[0] for leader in found.configurations[: len(best)]] == best
    for leader in found.configurations[: len(best)]:
        assert leader.probability_best == pytest.approx(1 / len(best))
        assert leader.probability_better == 0.5


def test_trials_that_fail_or_are_pruned_are_not_taken_for_noise() -> None:
    noise = noise_of(drive(0.05)).std
    for state, value in (("FAIL", None), ("COMPLETE", math.inf), ("PRUNED", None)):
        search, rng = drive(0.05), np.random.default_rng(1)
        for number in range(60, 75):
            tell(search, number, number % 2, value, state, x=float(rng.uniform(-1, 1)))
        assert noise_of(search).std == pytest.approx(noise, rel=0.2)


def test_the_leader_and_its_likeliest_rivals_get_half_of_the_repetitions_each() -> None:
    search, rng = drive(0.1), np.random.default_rng(2)
    leads, confirmed = 0, list[int]()
    for ticket in range(60, 80):
        repeated = search.confirm(CELLS, ticket=ticket, retry=0, confirmed=confirmed)
        if repeated is None:
            break
        cell, of, why = repeated
        leads += "they lead" in why["why"]
        confirmed.append(of)
        params = search._mirror.get_trial(of).params
        given = {"x": params["x"], "act": params["act"]}
        value = loss({**given, **CELLS[cell][1]}) + 0.1 * rng.standard_normal()
        tell(search, ticket, cell, value, **given)
    found = search.leaders()
    assert found is not None
    assert len(found.best.trials) > 1, "the winner was repeated"
    assert 5 <= leads <= 15


def test_what_others_are_about_to_repeat_counts() -> None:
    search = drive(0.1)
    alone = search.confirm(CELLS, ticket=60, retry=0)
    assert alone is not None
    beside = search.confirm(CELLS, ticket=60, retry=0, running=[alone[1]], confirmed=[alone[1]])
    assert beside is not None
    assert beside[1] != alone[1], "a rival is next"


@pytest.mark.parametrize("trials", [1200, pytest.param(3000, marks=pytest.mark.nightly)])
def test_with_thousands_of_trials_the_expected_value_is_not_that_of_the_lucky_ones(
    trials: int,
) -> None:
    search = drive(0.3, trials)
    found = search.leaders()
    assert found is not None
    assert noise_of(search).std == pytest.approx(0.3, rel=0.1)
    truth = []
    for leader in found.configurations[:50]:
        trial = search._mirror.get_trial(leader.trials[0])
        truth.append(loss({**trial.params, **CELLS[leader.trials[0] % 2][1]}))
    held = [
        leader.low <= true <= leader.high
        for leader, true in zip(found.configurations, truth, strict=False)
    ]
    assert np.mean(held) > 0.7
    assert found.best.mean == pytest.approx(0.0, abs=0.1)
    (best,) = [e for e in search.summary([CELLS[1][1]]) if e is not None]
    assert best.estimate == pytest.approx(0.0, abs=0.12)


def test_estimates_stay_within_the_bounds_of_the_metric() -> None:
    bounded = replace(SPEC, bounds=((0.0, None),))
    found = drive(0.1, spec=bounded).leaders()
    assert found is not None
    assert all(leader.low >= 0.0 and leader.mean >= 0.0 for leader in found.configurations)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_in_a_discrete_space_the_good_points_are_tried_again_where_there_is_noise(
    name: str,
) -> None:
    kinds = Searched("kind", "categorical", choices=("a", "b", "c"))
    space = (Searched("x", "int", 1, 6), kinds)
    discrete = replace(SPEC, grid=(), search=space, sampler=sampler_settings(name))
    for noise in (0.0, 0.1):
        search, rng = Search(discrete), np.random.default_rng(0)
        seen: Counter[tuple[Any, ...]] = Counter()
        for number in range(50):
            asked = search.ask({}, ticket=number, retry=0)
            x, kind = asked.values["x"], asked.values["kind"]
            value = 0.05 * (x - 4) ** 2 + 0.3 * (kind != "b") + noise * rng.standard_normal()
            search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=0)])
            seen[x, kind] += 1
            if number == 17 and not noise:
                assert len(seen) > 14, "the quasi-random start may repeat, the sampler does not"
        best = sum(seen[x, "b"] for x in (3, 4, 5))
        assert len(seen) == 18 if not noise else best > 25


def test_repetitions_by_hand_are_one_configuration_discovered_parameters_included() -> None:
    search, rng = Search(replace(SPEC, budget=Budget(60, 2))), np.random.default_rng(0)
    depth = (
        '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 9}}'
    )
    params = []
    for number in range(12):
        asked = search.ask(CELLS[number % 2][1], ticket=number, retry=0)
        params.append((*asked.params, Param("depth", float(1 + number % 9), depth)))
    repeated = [*range(12), 4, 4]
    for number, of in enumerate(repeated):
        value = 0.1 * of + 0.01 * rng.standard_normal()
        search.feed([TrialNews(number, "COMPLETE", params[of], (value,), cell=of % 2)])
    found = search.leaders()
    assert found is not None
    sizes = {frozenset(leader.trials) for leader in found.configurations if len(leader.trials) > 1}
    assert sizes == {frozenset({4, 12, 13})}
    search.feed([TrialNews(14, "RUNNING", params[4], cell=0)])
    assert not search.should_prune(14, reports={1: 1e9})
