"""Optuna's own conformance suite on our samplers, used in plain Optuna."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from orchestrator.search import HybridGPSampler, HybridTPESampler


class TestHybridTPESampler(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: HybridTPESampler(n_startup_trials=0, seed=1)


@pytest.mark.nightly
class TestHybridGPSampler(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: HybridGPSampler(n_startup_trials=0, seed=1)


SAMPLERS = (HybridTPESampler, pytest.param(HybridGPSampler, marks=pytest.mark.nightly))


@pytest.mark.parametrize("make", SAMPLERS)
def test_an_enqueued_cell_is_what_a_plain_optuna_study_conditions_on(
    make: type[BaseSampler],
) -> None:
    study = optuna.create_study(sampler=make(seed=3))  # type: ignore[call-arg]
    asked: dict[int, list[float]] = {-1: [], 1: []}
    for number in range(60):
        study.enqueue_trial({"side": (-1, 1)[number % 2]})
        trial = study.ask()
        side = trial.suggest_categorical("side", [-1, 1])
        x = trial.suggest_float("x", -1, 1)
        study.tell(trial, (x - 0.6 * side) ** 2)
        if number >= 40:
            asked[side].append(x)
    assert statistics.median(asked[-1]) < -0.25
    assert statistics.median(asked[1]) > 0.25


@pytest.mark.parametrize("make", SAMPLERS)
def test_several_objectives_are_improved_together(make: type[BaseSampler]) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=make(seed=3))  # type: ignore[call-arg]
    study.optimize(
        lambda t: (t.suggest_float("x", 0, 10) ** 2, -((t.params["x"] - 1) ** 2)), n_trials=50
    )
    late = [t.params["x"] for t in study.trials[30:]]
    assert sum(x < 2.5 for x in late) > 12
