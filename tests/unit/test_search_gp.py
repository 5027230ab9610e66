"""The Gaussian process: its algebra, its bounded size, and the sampler on spaces that
are awkward.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import HybridGPSampler, Search
from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.process import SEARCHING, Layout, Posterior, _Evidence, _prior, fit
from orchestrator.search.gp.surrogate import ANEW, MAX_TRIALS, Fits, Surrogate
from orchestrator.search.trials.history import Array, Column
from orchestrator.settings import sampler_settings

LAYOUT = Layout((0, 3, 0, 4), 2)
SEARCHED = [
    Column.of("x", FloatDistribution(0.0, 1.0)),
    Column.of("kind", CategoricalDistribution((1, 2, 3))),
]
CONTEXT = [
    Column.of("a", FloatDistribution(0.0, 1.0)),
    Column.of("b", CategoricalDistribution((1, 2, 3, 4))),
]
SIDES = (-1, 0, 1)
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("side", SIDES),),
    (Searched("x", "float", -1.0, 1.0),),
    Budget(60),
    sampler=sampler_settings("gp"),
)


def some(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Points of four columns and standardised losses, whose optimum moves with the third column."""
    rng = np.random.default_rng(seed)
    x = np.column_stack(
        [
            rng.random(n),
            rng.integers(3, size=n),
            rng.integers(3, size=n) / 2,
            rng.integers(4, size=n),
        ]
    )
    y = (
        4.0 * (x[:, 0] - 0.3 - 0.2 * x[:, 2]) ** 2
        + 0.2 * x[:, 1]
        + 0.3 * x[:, 3]
        + 0.02 * rng.standard_normal(n)
    )
    return x, (y - y.mean()) / y.std()


def history(
    x: Array, loss: Array, pending: Array | None = None, violation: Array | None = None
) -> Any:
    """What a model reads of a history."""
    return SimpleNamespace(
        x=x,
        loss=loss,
        pruned=np.zeros(len(x), dtype=bool),
        pending=np.empty((0, x.shape[1])) if pending is None else pending,
        violation=np.zeros(len(x)) if violation is None else violation,
    )


def known(x: Array, loss: Array, pending: Array | None = None) -> Surrogate:
    return Surrogate.of(history(x, loss, pending), SEARCHED, CONTEXT, Fits())


def test_the_gradient_of_the_evidence_is_its_slope() -> None:
    x, y = some(40)
    evidence, theta = (
        _Evidence(x, y, LAYOUT, SEARCHING),
        _prior(LAYOUT, SEARCHING)[0] + 0.3 * np.random.default_rng(1).standard_normal(8),
    )
    _, gradient = evidence(theta)
    slope = [
        (evidence(theta + 1e-5 * e)[0] - evidence(theta - 1e-5 * e)[0]) / 2e-5 for e in np.eye(8)
    ]
    assert gradient == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_process_foretells_what_it_has_not_seen() -> None:
    x, y = some(200)
    posterior = Posterior(x[:150], y[:150], LAYOUT, fit(x[:150], y[:150], LAYOUT))
    marginal = posterior.at(x[150:, :2], x[150:, 2:])
    mean, std = marginal.mean, marginal.std
    error = (mean[:, 0] - y[150:]) / np.sqrt(std[:, 0] ** 2 + posterior.noise)
    assert float(np.abs(mean[:, 0] - y[150:]).mean()) < 0.1
    assert 0.5 < float(error.std()) < 2.0


def test_all_ways_of_asking_the_process_agree() -> None:
    x, y = some(60)
    posterior = Posterior(x, y, LAYOUT, fit(x, y, LAYOUT))
    points, cells = some(7, seed=1)[0][:, :2], some(5, seed=2)[0][:, 2:]
    everywhere = posterior.mean_everywhere(points, cells)
    for j, cell in enumerate(cells):
        alone = np.repeat(cell[None, :], len(points), axis=0)
        here, joint = posterior.at(points, cell[None, :]), posterior.at(points, alone)
        assert everywhere[:, j] == pytest.approx(here.mean[:, 0])
        assert posterior.mean(points, alone) == pytest.approx(here.mean)
        assert joint.mean == pytest.approx(here.mean)
        assert joint.std == pytest.approx(here.std)
        assert here.covariance([1, 4]) == pytest.approx(
            joint.covariance(slice(None))[np.ix_([1, 4], [1, 4])]
        )
        assert np.sqrt(np.diag(joint.covariance(slice(None)))) == pytest.approx(
            joint.std[:, 0], abs=1e-6
        )
    own = some(35, seed=1)[0][:, :2].reshape(5, 7, 2)
    each = [posterior.mean(own[j], cells[j : j + 1])[:, 0] for j in range(5)]
    assert posterior.mean_by_cell(own, cells) == pytest.approx(np.array(each))


def test_further_trials_change_the_process_as_if_known_from_the_start() -> None:
    x, y = some(60)
    h = fit(x, y, LAYOUT)
    at_once, later = (
        Posterior(x, y, LAYOUT, h),
        Posterior(x[:53], y[:53], LAYOUT, h).given_also(x[53:], y),
    )
    for posterior in (at_once, later):
        marginal = posterior.at(x[:9, :2] * 0.5, x[:9, 2:])
        assert marginal.mean == pytest.approx(at_once.at(x[:9, :2] * 0.5, x[:9, 2:]).mean)
        assert marginal.std == pytest.approx(at_once.at(x[:9, :2] * 0.5, x[:9, 2:]).std)


def test_of_many_trials_the_best_and_those_of_the_cell_are_kept() -> None:
    x, y = some(3 * MAX_TRIALS)
    everything = known(x, y)
    cell = x[0, 2:]
    near, balanced = everything.near(cell), everything.balanced()
    of_cell = int((x[:, 2:] == cell).all(axis=1).sum())
    for kept in (near, balanced):
        assert len(kept.y) == MAX_TRIALS
        assert sorted(kept.y)[: MAX_TRIALS // 4] == pytest.approx(
            sorted(everything.y)[: MAX_TRIALS // 4]
        )
    assert int((near.x[:, 2:] == cell).all(axis=1).sum()) == of_cell
    _, each = np.unique(balanced.x[:, 2:], axis=0, return_counts=True)
    assert each.min() >= MAX_TRIALS // 2 // 12
    assert known(x[:MAX_TRIALS], y[:MAX_TRIALS]).near(cell).x.shape == (MAX_TRIALS, 4)


def test_hyperparameters_are_fitted_to_every_trial_and_later_in_steps_of_a_tenth() -> None:
    x, y = some(120)
    fits = Fits()

    def fitted(first: int, last: int) -> int:
        seen = [
            Surrogate.of(history(x[:n], y[:n]), SEARCHED, CONTEXT, fits).hyperparameters
            for n in range(first, last)
        ]
        return len({id(h) for h in seen})

    assert fitted(ANEW - 10, ANEW + 1) == 11
    assert fitted(80, 120) in (4, 5)
    last = Surrogate.of(history(x[:119], y[:119]), SEARCHED, CONTEXT, fits).hyperparameters
    again = known(x[:119], y[:119]).hyperparameters
    assert np.array_equal(again.inverse_squared, last.inverse_squared)


def test_running_trials_move_no_mean_but_are_no_longer_uncertain() -> None:
    x, y = some(30)
    waiting = np.array([[0.95, 2.0, 1.0, 3.0]])
    believing, points = known(x, y, waiting).believing()
    before = known(x, y).posterior()
    for posterior in (believing, before):
        assert posterior.mean(waiting[:, :2], waiting[:, 2:]) == pytest.approx(
            before.mean(waiting[:, :2], waiting[:, 2:]), abs=0.02
        )
    assert len(points) == 31
    assert (
        believing.at(waiting[:, :2], waiting[:, 2:]).std
        < 0.5 * before.at(waiting[:, :2], waiting[:, 2:]).std
    )


def test_losses_come_back_in_their_own_units() -> None:
    loss = np.array([1.0, 2.0, 3.0, 4.0, 1e6, np.inf])
    none = np.zeros(6, dtype=bool)
    scale = Scale.of(loss, none)
    standard = scale.standard(loss, none)
    assert scale.original(standard[:4]) == pytest.approx(loss[:4])
    assert standard[4] == standard[5] == standard.max()
    lonely = np.array([2.0, np.inf, np.inf])
    assert np.ptp(Scale.of(lonely, none[:3]).standard(lonely, none[:3])) > 0.0
    pruned = np.array([True, False, False, False, False, False])
    assert (
        Scale.of(loss, pruned).standard(loss, pruned)[0]
        >= Scale.of(loss, pruned).standard(loss, pruned)[1]
    )


def test_where_nothing_is_feasible_yet_the_search_goes_where_less_is_violated() -> None:
    inside = {"x": 0.3, "y": 0.6, "z": 0.45}

    def outside(trial: optuna.Trial) -> float:
        distance = sum(
            (trial.suggest_float(name, 0.0, 1.0) - place) ** 2 for name, place in inside.items()
        )
        trial.set_constraint("ball", distance - 0.01)
        return -distance

    study = optuna.create_study(sampler=HybridGPSampler(seed=0))
    study.optimize(outside, n_trials=30)
    kept = [max(t.constraints.values()) <= 0 for t in study.trials]
    assert sum(kept[:10]) == 0
    assert sum(kept) >= 3


def test_what_exists_in_some_cells_only_is_modelled_with_the_rest() -> None:
    depends = replace(
        SPEC,
        search=(
            *SPEC.search,
            Searched("extra", "float", 0.0, 1.0, when={"side": (1,)}),
            Searched("kind", "categorical", choices=("a", "b"), when={"side": (0, 1)}),
        ),
    )
    search, late = Search(depends), []
    for number in range(48):
        side = SIDES[number % 3]
        asked = search.ask({"side": side}, ticket=number, retry=0)
        assert ("extra" in asked.values) == (side == 1)
        loss = (
            (asked.values["x"] - 0.5) ** 2 + (asked.values["extra"] - 0.8) ** 2 * 2
            if side == 1
            else asked.values["x"] ** 2
        )
        search.feed([TrialNews(number, "COMPLETE", asked.params, (loss,), cell=number % 3)])
        if side == 1 and number > 24:
            late.append(asked.values["extra"])
    assert abs(statistics.median(late) - 0.8) < 0.1


def test_a_point_of_a_discrete_space_is_not_tried_twice_while_others_are_left() -> None:
    discrete = replace(
        SPEC,
        search=(
            Searched("x", "int", 1, 4),
            Searched("kind", "categorical", choices=("a", "b", "c")),
        ),
    )
    search, seen = Search(discrete), []
    for number in range(25):
        asked = search.ask({"side": 0}, ticket=number, retry=0)
        search.feed(
            [TrialNews(number, "COMPLETE", asked.params, (float(asked.values["x"]),), cell=1)]
        )
        seen.append((asked.values["x"], asked.values["kind"]))
    startup = len(set(seen[:10]))
    assert len(set(seen[: 10 + 12 - startup])) == 12


@pytest.mark.parametrize("std", [0.0, 0.03, 0.3])
def test_noise_is_believed_in_as_far_as_trials_show_it(std: float) -> None:
    x, _ = some(120)
    y = 4.0 * (x[:, 0] - 0.3) ** 2 + std * np.random.default_rng(1).standard_normal(120)
    scale = y.std()
    found = Posterior(x, (y - y.mean()) / scale, LAYOUT, fit(x, (y - y.mean()) / scale, LAYOUT))
    believed = float(np.sqrt(found.noise) * scale)
    assert believed == pytest.approx(std, rel=0.4, abs=0.001)
