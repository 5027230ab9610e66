"""Trials that failed, diverged or ran out of memory are points to keep away from, not
missing ones.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any, Literal

import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.search.trials.mirror import NO_VERDICT
from orchestrator.settings import sampler_settings
from tests.support.samplers import LEARNERS

SIDES = (32, 64)
LIMIT = 16 * 1024
"""The product of batch size and width that fits; the loss falls with the width up to there and
beyond.
"""


def out_of_memory(sampler: str, *, told: bool) -> int:
    """How many of the trials 15 to 29 exhaust memory, where the sampler is `told` of those that
    did, or never hears of them.
    """
    spec = StudySpec(
        "s",
        ("minimize",),
        ("loss",),
        {},
        {},
        (Axis("batch", SIDES),),
        (Searched("width", "int", 16, 1024, log=True),),
        Budget(30),
        sampler=sampler_settings(sampler),
        seed=1,
    )
    search = Search(spec)
    count = 0
    for number in range(30):
        batch = SIDES[number % 2]
        asked = search.ask({"batch": batch}, ticket=number, retry=0)
        width = asked.values["width"]
        if width * batch <= LIMIT:
            search.feed(
                [TrialNews(number, "COMPLETE", asked.params, (-math.log(width),), cell=number % 2)]
            )
            continue
        count += number >= 15
        if told:
            search.feed([TrialNews(number, "FAIL", asked.params, cell=number % 2)])
    return count


@pytest.mark.parametrize("sampler", LEARNERS)
def test_a_sampler_keeps_away_from_what_ran_out_of_memory(sampler: str) -> None:
    assert out_of_memory(sampler, told=False) >= 12, (
        "better and better, up to where it does not fit"
    )
    assert out_of_memory(sampler, told=True) <= 6


SQUARE = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (),
    tuple(Searched(name, "float", 0.0, 1.0) for name in "xy"),
    Budget(20),
    seed=3,
)


def diverged(sampler: str, how: Literal["FAIL", "inf"], edge: float = 0.15) -> int:
    """How many trials diverge on the way to twenty results: all with x above the edge do, and the
    loss falls up to there.
    """
    search = Search(replace(SQUARE, sampler=sampler_settings(sampler)))
    count = number = ticket = retry = 0
    while ticket < 20:
        asked = search.ask({}, ticket=ticket, retry=retry)
        if asked.values["x"] <= edge:
            news = TrialNews(
                number,
                "COMPLETE",
                asked.params,
                ((asked.values["y"] - 0.5) ** 2 - asked.values["x"],),
                cell=0,
            )
        elif how == "inf":
            news = TrialNews(number, "COMPLETE", asked.params, (math.inf,), cell=0)
        else:
            news = TrialNews(number, "FAIL", asked.params, cell=0, failure="value")
        search.feed([news])
        ended = news.state == "COMPLETE"
        count, number = count + (asked.values["x"] > edge), number + 1
        ticket, retry = (ticket + 1, 0) if ended else (ticket, retry + 1)
    return count


@pytest.mark.parametrize("sampler", LEARNERS)
def test_a_study_most_of_which_fails_does_not_wait_for_results_to_learn_of_it(sampler: str) -> None:
    assert diverged(sampler, "FAIL") <= 25, "38 where failed trials were no part of the start-up"
    assert diverged(sampler, "inf") <= 13


def fed(sampler: str, *last: TrialNews) -> Search:
    search = Search(replace(SQUARE, sampler=sampler_settings(sampler)))
    for number in range(12):
        asked = search.ask({}, ticket=number, retry=0)
        search.feed([TrialNews(number, "COMPLETE", asked.params, (asked.values["x"],), cell=0)])
    search.feed(last)
    return search


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_failure_of_the_machine_teaches_nothing_and_a_diverged_run_what_a_failed_one_does(
    sampler: str,
) -> None:
    params = fed(sampler).ask({}, ticket=12, retry=0).params

    def then(**last: Any) -> Any:
        given = {"number": 12, "params": params, "cell": 0, **last}
        return fed(sampler, TrialNews(**given)).ask({}, ticket=13, retry=0).values

    ignored = [then(state="FAIL", failure=kind) for kind in NO_VERDICT]
    assert ignored == [fed(sampler).ask({}, ticket=13, retry=0).values] * len(NO_VERDICT)
    failed = [
        then(state="FAIL", failure=kind)
        for kind in ("value", "exception", "exit", "timeout", "oom", None)
    ]
    assert failed == [failed[0]] * 6 != ignored[:1] * 6
    assert then(state="COMPLETE", values=(math.inf,)) == failed[0]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.filterwarnings("error")  # numpy says where sums overflow
def test_the_largest_float_for_a_diverged_run_upsets_no_model(sampler: str) -> None:
    search = Search(replace(SQUARE, sampler=sampler_settings(sampler)))
    for number in range(14):
        asked = search.ask({}, ticket=number, retry=0)
        value = asked.values["x"] if number % 3 == 0 else sys.float_info.max
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=0)])
    assert all(0 <= value <= 1 for value in search.ask({}, ticket=14, retry=0).values.values())
    estimate = search.summary([{}])[0]
    assert estimate is None or math.isfinite(estimate.estimate)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_one_of_several_objectives_may_be_infinitely_bad(sampler: str) -> None:
    goals: Any = {"directions": ("minimize", "maximize"), "metrics": ("loss", "accuracy")}
    search = Search(replace(SQUARE, **goals, sampler=sampler_settings(sampler)))
    for number in range(60):
        asked = search.ask({}, ticket=number, retry=0)
        x, y = asked.values["x"], asked.values["y"]
        values = (math.inf if x > 0.7 else x, -math.inf if y > 0.7 else y)
        search.feed([TrialNews(number, "COMPLETE", asked.params, values, cell=0)])
    assert 0 <= search.ask({}, ticket=60, retry=0).values["x"] <= 1
