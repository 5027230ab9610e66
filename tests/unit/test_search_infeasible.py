"""Trials that ran out of memory are points to keep away from, not missing ones."""

from __future__ import annotations

import math

import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search

SIDES = (32, 64)
LIMIT = 16 * 1024
"""The product of batch size and width that fits; the loss falls with the width up to there and beyond."""


def out_of_memory(sampler: str, *, told: bool) -> int:
    """How many of the trials 15 to 29 exhaust memory, where the sampler is `told` of those that did, or never hears of them."""
    spec = StudySpec(
        "s",
        ("minimize",),
        ("loss",),
        {},
        {},
        (Axis("batch", SIDES),),
        (Searched("width", "int", 16, 1024, log=True),),
        Budget(30),
        sampler={"name": sampler},
        seed=1,
    )
    search = Search(spec)
    count = 0
    for number in range(30):
        batch = SIDES[number % 2]
        asked = search.ask({"batch": batch}, ticket=number, retry=0)
        width = asked.values["width"]
        if width * batch <= LIMIT:
            search.feed([TrialNews(number, "COMPLETE", asked.params, (-math.log(width),), cell=number % 2)])
            continue
        count += number >= 15
        if told:
            search.feed([TrialNews(number, "FAIL", asked.params, cell=number % 2)])
    return count


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_keeps_away_from_what_ran_out_of_memory(sampler: str) -> None:
    assert out_of_memory(sampler, told=False) >= 12, "better and better, up to where it does not fit"
    assert out_of_memory(sampler, told=True) <= 6
