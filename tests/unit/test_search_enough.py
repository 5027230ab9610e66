"""When a study, or a cell, has had enough trials: what the model expects, and how long nothing
better came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.search.cells.enough import expected_gain
from orchestrator.search.gp.process import Hyperparameters, Layout, Posterior
from orchestrator.settings import StopSettings, sampler_settings

SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("net", ("small", "large")),),
    (Searched("x", "float", -1.0, 1.0), Searched("y", "float", 0.0, 1.0)),
    Budget(120, 2),
    sampler=sampler_settings("tpe"),
)
CELLS = list(enumerate(SPEC.cells()))


def loss(v: Mapping[str, Any]) -> float:
    return float((v["x"] - 0.3) ** 2 + 0.1 * (v["y"] - 0.6) ** 2 + 0.3 * (v["net"] == "small"))


def drive(
    stop_when: StopSettings, trials: int, noise: float = 0.0, **changes: Any
) -> tuple[Search, int | None]:
    """A study told of trials, and after how many of them it first had enough."""
    search = Search(replace(SPEC, stop_when=stop_when, **changes))
    rng, sign = np.random.default_rng(0), 1.0 if "directions" not in changes else -1.0
    for number in range(trials):
        asked = search.ask(CELLS[number % 2][1], ticket=number, retry=0)
        value = sign * (loss(asked.values) + noise * rng.standard_normal())
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=number % 2)])
        if None in search.enough(CELLS):
            return search, number + 1
    return search, None


def values(search: Search, losses: list[float | None], stop: int = 10**6) -> dict[int | None, str]:
    """What is said after trials of these values (None: it failed), in turns of two cells."""
    for number, value in enumerate(losses[:stop]):
        asked = search.ask(CELLS[number % 2][1], ticket=number, retry=0)
        ended = ("FAIL", None) if value is None else ("COMPLETE", (value,))
        search.feed([TrialNews(number, ended[0], asked.params, ended[1], cell=number % 2)])  # type: ignore[arg-type]
    return search.enough(CELLS)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_one_rule_ends_noisy_and_noiseless_studies_alike(noise: float) -> None:
    search, at = drive(StopSettings(gain="1%"), 100, noise)
    assert at is not None
    assert at >= 15
    (reason,) = search.enough(CELLS).values()
    assert reason.startswith("one more trial is expected to gain ")
    assert "less than stop_when.gain=1% (" in reason


def test_it_works_with_any_sampler_and_direction() -> None:
    random = sampler_settings("random")
    ended = drive(StopSettings(gain=0.05), 40, sampler=random)[1]
    assert ended is not None
    up = ("maximize",)
    assert drive(StopSettings(gain=0.05), 40, sampler=random, directions=up)[1] == ended


def test_the_less_a_trial_has_to_gain_the_longer_it_goes_on() -> None:
    much, little = (drive(StopSettings(gain=gain), 40)[1] for gain in (0.1, 1e-9))
    assert much is not None
    assert little is None


def test_what_is_said_is_a_function_of_what_is_known() -> None:
    told, at = drive(StopSettings(gain="1%"), 80)
    assert at is not None
    fresh = Search(replace(SPEC, stop_when=StopSettings(gain="1%")))
    for number in range(at):
        asked = fresh.ask(CELLS[number % 2][1], ticket=number, retry=0)
        value = loss(asked.values)
        fresh.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=number % 2)])
    assert fresh.enough(CELLS) == told.enough(CELLS), "asked once, at the end"


def test_nothing_is_said_before_the_model_knows_anything() -> None:
    search = Search(replace(SPEC, stop_when=StopSettings(gain=1e9, p=0.01)))
    assert search.enough(CELLS) == {}
    assert values(search, [1.0] * 14) == {}
    failed = Search(replace(SPEC, stop_when=StopSettings(gain=1e9, p=0.01, patience=1)))
    assert values(failed, [None] * 20) == {}


def test_a_study_ends_once_it_is_clear_which_cell_is_the_best() -> None:
    search, at = drive(StopSettings(p=0.9), 60)
    assert at is not None
    (reason,) = search.enough(CELLS).values()
    assert reason.startswith("cell net=large is the best with probability ")
    assert reason.endswith("at least stop_when.p=0.9")


def test_patience_counts_the_trials_since_the_best_one() -> None:
    losses: list[float | None] = [5.0, 4.0, 4.0, None, 6.0, 4.5]
    search = Search(replace(SPEC, stop_when=StopSettings(patience=3)))
    assert values(search, losses, 5) == {}, "an equal value is no better; a failed trial is none"
    search = Search(replace(SPEC, stop_when=StopSettings(patience=3)))
    assert values(search, losses) == {
        None: "no value better than that of trial 1 had come from the 3 trials after it "
        "when this was decided (after 5 trials; stop_when.patience=3)"
    }
    by_cell = Search(replace(SPEC, stop_when=StopSettings(patience=2, scope="cell")))
    assert values(by_cell, [5.0, 4.0, 4.0, 3.0, 6.0, 2.5, 7.0]) == {
        0: "no value better than that of trial 2 had come from the 2 trials of this cell after it "
        "when this was decided (after 4 trials; stop_when.patience=2)"
    }


def test_patience_begins_anew_when_the_study_was_changed() -> None:
    losses: list[float | None] = [5.0, 4.0, 4.0, 6.0, 4.5, 5.0, 4.5]
    settings = replace(SPEC, stop_when=StopSettings(patience=3))
    assert values(Search(settings, counts_from=5), losses) == {}
    assert values(Search(settings, counts_from=4), losses) == {
        None: "no value better than that of trial 1 had come from the 3 trials after the study was "
        "changed when this was decided (after 7 trials; stop_when.patience=3)"
    }


def test_a_cell_is_judged_by_its_own_best() -> None:
    search = Search(replace(SPEC, stop_when=StopSettings(gain=3e-3, scope="cell")))
    found: dict[int | None, str] = {}
    for number in range(60):
        asked = search.ask(CELLS[number % 2][1], ticket=number, retry=0)
        value = (loss(asked.values),)
        search.feed([TrialNews(number, "COMPLETE", asked.params, value, cell=number % 2)])
        found |= search.enough(CELLS)
    assert found.keys() == {0, 1}, "the worse cell too, although it gains the study nothing"
    assert all(reason.startswith("one more trial in this cell ") for reason in found.values())


def test_a_gain_ends_at_the_best_value_that_there_can_be() -> None:
    layout = Layout((0,), 1)
    tried, new = np.array([[0.2], [0.8]]), np.array([[0.5]])
    h = Hyperparameters(1.0, 0.0, 0.0, 1e-6, np.array([4.0]))
    posterior = Posterior(tried, np.array([0.0, 1.0]), layout, h)
    free = expected_gain(posterior, tried, new, 1, -np.inf)
    assert free > expected_gain(posterior, tried, new, 1, -0.1) > 0.0
    assert expected_gain(posterior, tried, new, 1, 0.1) == 0.0
    assert expected_gain(posterior, tried, tried, 1, -np.inf) == pytest.approx(0.0, abs=1e-3)
    noisy = replace(h, noise=1.0)
    unsure = Posterior(tried, np.array([0.0, 1.0]), layout, noisy)
    assert expected_gain(unsure, tried, tried, 1, -np.inf) > 0.0, "a repetition tells something"
