"""Bounds that a probe found for a cell: most of its trials keep to them, and none of what lies
outside is hidden.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from orchestrator.errors import ConfigError
from orchestrator.model import ASK_KEY, Axis, Budget, Searched, StudySpec, Suggestion, TrialNews
from orchestrator.search import Search
from orchestrator.search.soft_bounds import FREE_EVERY, REACH, limits_in_effect
from orchestrator.settings import sampler_settings
from tests.support.samplers import LEARNERS

SAMPLERS = ("tpe", "gp", "random", "qmc", "nsga2")
LR = FloatDistribution(1e-6, 10.0, log=True)
FOUND = {"lr": (1e-3, 1e-2)}
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("batch", (16, 64)), Axis("net", ("small", "large"))),
    (
        Searched("lr", "float", 1e-6, 10.0, log=True),
        Searched("momentum", "float", 0.0, 0.9, when={"net": ("large",)}),
    ),
    Budget(80),
)
CELLS = list(SPEC.cells())


def study(name: str, **changes: Any) -> StudySpec:
    return replace(SPEC, sampler=sampler_settings(name), **changes)


def ended(number: int, asked: Suggestion, *values: float) -> TrialNews:
    return TrialNews(
        number,
        "COMPLETE",
        asked.params,
        values,
        system_attrs=asked.system_attrs,
        cell=number % len(CELLS),
    )


def limits(asked: Suggestion) -> Any:
    return asked.system_attrs[ASK_KEY]["limits"]


def played(
    spec: StudySpec, trials: int, loss: Callable[[Mapping[str, Any]], float], bounds: Any = FOUND
) -> list[Suggestion]:
    """Asks in turn for every cell, and tells the search what came of it."""
    search, asked = Search(spec), []
    for number in range(trials):
        cell = CELLS[number % len(CELLS)]
        asked.append(search.ask(cell, ticket=number, retry=0, bounds=bounds))
        search.feed([ended(number, asked[-1], loss(asked[-1].values))])
    return asked


def decades_from(lr: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda values: abs(math.log10(values["lr"] / lr))


@pytest.mark.parametrize("name", SAMPLERS)
def test_three_quarters_of_a_cells_trials_keep_to_its_bounds(name: str) -> None:
    asked = played(study(name), 16, decades_from(10**-2.5))
    free = Counter(number % len(CELLS) for number, one in enumerate(asked) if limits(one) == {})
    assert free == dict.fromkeys(range(len(CELLS)), 1)
    for one in asked:
        if limits(one):
            low, high = limits(one)["lr"]
            assert 1e-4 <= low <= one.values["lr"] <= high <= 1e-1


@pytest.mark.parametrize("name", ["random", *LEARNERS])
@pytest.mark.parametrize("lr", [3e-6, 1.0])
def test_a_bad_probe_does_not_hide_the_optimum(name: str, lr: float) -> None:
    trials = 80 if name == "random" else 40
    asked = played(study(name), trials, decades_from(lr))
    assert min(decades_from(lr)(one.values) for one in asked) < (0.4 if name == "random" else 0.1)
    reached = [limits(one)["lr"] for one in asked[-8:] if limits(one)]
    assert any(low <= lr <= high for low, high in reached)


def test_limits_stretch_to_what_is_near_the_best_trial() -> None:
    def at(best: float) -> list[float]:
        return limits_in_effect(FOUND, {"lr": LR}, {"lr": best}, 0)["lr"]

    assert REACH == 1.0, "bounds a decade wide stretch by a decade"
    assert limits_in_effect(FOUND, {"lr": LR}, {}, 0)["lr"] == [1e-3, 1e-2]
    assert at(10**-2.5) == pytest.approx([10**-3.5, 10**-1.5])
    assert at(1e-2) == pytest.approx([1e-3, 1e-1])
    assert at(1e-3) == pytest.approx([1e-4, 1e-2])
    assert at(1e-4) == pytest.approx([1e-5, 1e-2])
    assert at(5.0) == [1e-3, 10.0], "never beyond the declared range"
    assert at(1e-9) == at(1e3) == [1e-3, 1e-2], "of a trial with another range nothing is learnt"


@pytest.mark.parametrize("turn", range(2 * FREE_EVERY))
def test_every_fourth_ticket_is_free(turn: int) -> None:
    found = limits_in_effect(FOUND, {"lr": LR}, {}, turn)
    assert found == ({} if turn in (3, 7) else {"lr": [1e-3, 1e-2]})


def test_whole_numbers_and_steps_stretch_to_values_there_are() -> None:
    space = {"depth": IntDistribution(1, 8), "share": FloatDistribution(0.0, 1.0, step=0.25)}
    bounds = {"depth": (2.5, 4.2), "share": (0.3, 0.6)}
    assert limits_in_effect(bounds, space, {}, 0) == {"depth": [3.0, 4.0], "share": [0.5, 0.5]}
    stretched = limits_in_effect(bounds, space, {"depth": 4, "share": 1.0}, 0)
    assert stretched == {"depth": [2.0, 6.0], "share": [0.5, 1.0]}


def test_bounds_beyond_the_declared_range_are_cut_off() -> None:
    assert limits_in_effect({"lr": (1e-9, 1e-5)}, {"lr": LR}, {}, 0) == {"lr": [1e-6, 1e-5]}
    with pytest.raises(ConfigError, match=r"bounds of lr: \[20.0, 30.0\] leaves nothing"):
        Search(SPEC).ask(CELLS[0], ticket=0, retry=0, bounds={"lr": (20.0, 30.0)})


def test_the_best_of_a_cell_is_its_own_that_of_the_direction_and_of_four() -> None:
    search = Search(study("random", directions=("maximize",)))

    def lows() -> list[float]:
        asked = [search.ask(CELLS[place], ticket=0, retry=0, bounds=FOUND) for place in range(3)]
        return [limits(one)["lr"][0] for one in asked]

    lrs, values = (1e-2, 0.5, 1e-5, 1e-4, 5e-3, 5.0, 3e-3, 3.0), (1, 8, 4, 9, 3, 7, 2, 6)
    for number, (lr, value) in enumerate(zip(lrs, values, strict=True)):
        if number == 6:
            assert lows() == [1e-3, 1e-3, 1e-3], "three trials each are too few"
        asked = search.ask(CELLS[number % 2], ticket=number, retry=0, given={"lr": lr})
        for state in ("RUNNING", "COMPLETE", "COMPLETE"):
            news = replace(ended(number, asked, value), cell=number % 2)
            search.feed(
                [replace(news, state=state, values=news.values if state != "RUNNING" else None)]
            )
    assert lows() == pytest.approx([1e-6, 1e-5, 1e-3]), "bests of 4 at 1e-5 and 9 at 1e-4"


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_ask_with_bounds_is_a_function_of_news_ticket_and_retry(name: str) -> None:
    spec = study(name)
    asked = played(spec, 13, decades_from(1e-4))
    again = Search(spec)
    again.feed(
        ended(n, one, decades_from(1e-4)(one.values)) for n, one in reversed([*enumerate(asked)])
    )
    last = Search(spec)
    for number, one in enumerate(asked):
        # What is recorded with the trial is all that is needed to ask again.
        recorded: Any = one.system_attrs[ASK_KEY]
        cell = CELLS[number % len(CELLS)]
        assert last.ask(cell, ticket=number, retry=0, bounds=recorded["bounds"]) == one
        last.feed([ended(number, one, decades_from(1e-4)(one.values))])
    both = [s.ask(CELLS[1], ticket=13, retry=1, bounds=FOUND) for s in (again, last)]
    assert both[0] == both[1]


def test_bounds_of_a_parameter_that_a_cell_lacks_are_refused_and_those_that_it_has_are_kept() -> (
    None
):
    search = Search(SPEC)
    with pytest.raises(ConfigError, match="momentum: exists only if net=large"):
        search.ask(CELLS[0], ticket=0, retry=0, bounds={"momentum": (0.5, 0.6)})
    asked = search.ask(CELLS[1], ticket=0, retry=0, bounds={"momentum": (0.5, 0.6), **FOUND})
    assert 0.5 <= asked.values["momentum"] <= 0.6
    assert 1e-3 <= asked.values["lr"] <= 1e-2


def test_a_value_by_hand_may_lie_outside() -> None:
    asked = Search(SPEC).ask(CELLS[0], ticket=0, retry=0, bounds=FOUND, given={"lr": 5.0})
    assert asked.values["lr"] == 5.0


def test_with_several_objectives_bounds_do_not_stretch() -> None:
    spec = study("tpe", directions=("minimize", "maximize"), metrics=("loss", "speed"))
    search = Search(spec)
    for number in range(12):
        asked = search.ask(CELLS[number % 4], ticket=number, retry=0, given={"lr": 1e-5})
        search.feed([ended(number, asked, 1.0, 2.0)])
    assert limits(search.ask(CELLS[0], ticket=0, retry=0, bounds=FOUND)) == {"lr": [1e-3, 1e-2]}
    assert limits(search.ask(CELLS[0], ticket=12, retry=0, bounds=FOUND)) == {}


def test_what_is_learnt_without_bounds_is_as_it_was() -> None:
    asked = Search(SPEC).ask(CELLS[0], ticket=3, retry=0)
    assert not {"bounds", "limits"} & set(asked.system_attrs[ASK_KEY])
