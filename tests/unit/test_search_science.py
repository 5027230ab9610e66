"""What the model says of a grid: contrasts, interactions, importances, edges, and what is open."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews, same_value
from orchestrator.search import Science, Search
from orchestrator.search.cells.optima import Optima
from orchestrator.search.gp.paths import Paths
from orchestrator.search.gp.process import BELIEVING, Layout, Posterior, fit
from orchestrator.search.science.edges import edges
from orchestrator.search.science.effects import Grid, decided, effects, grid_of, interactions
from orchestrator.search.science.predictability import _compared, _one_by_one
from orchestrator.search.science.projection import Outlook, outlooks
from orchestrator.search.science.results import Edge
from orchestrator.search.trials.history import Column
from orchestrator.settings import sampler_settings

AXES = (Axis("net", ("small", "large")), Axis("batch", (32, 64, 128)))
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    AXES,
    (
        Searched("lr", "float", 1e-4, 1.0, log=True),
        Searched("unused", "float", 0.0, 1.0),
    ),
    Budget(60, 1),
    sampler=sampler_settings("random"),
)


def loss(v: Mapping[str, Any]) -> float:
    """`net` matters by 0.4, `batch` not at all, `lr` much, `unused` not."""
    return float(0.3 * (np.log10(v["lr"]) + 2.0) ** 2 + 0.4 * (v["net"] == "small"))


def played(
    of: Callable[[Mapping[str, Any]], float], spec: StudySpec = SPEC, trials: int = 60
) -> Search:
    search, rng, cells = Search(spec), np.random.default_rng(0), list(spec.cells())
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    for number in range(trials):
        cell = number % len(cells)
        asked = search.ask(cells[cell], ticket=number, retry=0)
        value = sign * (of(asked.values) + 0.01 * float(rng.standard_normal()))
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=cell)])
    return search


def _normal(rng: np.random.Generator, _: Mapping[str, Any]) -> float:
    return float(rng.standard_normal())


def said(search: Search, spec: StudySpec = SPEC) -> Science:
    found = search.science(list(spec.cells()))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def of_a_study() -> Science:
    return said(played(loss))


# ------------------------------------------------------------------------------- a study as a whole


def test_a_difference_is_found_and_none_is_found_to_be_none(of_a_study: Science) -> None:
    net, batch = of_a_study.axes
    (contrast,) = net.contrasts
    assert (contrast.better, contrast.worse) == ("large", "small")
    assert contrast.low < 0.4 < contrast.high
    assert contrast.probability > 0.95
    assert contrast.contexts == 3
    assert net.largest is not None
    assert batch.largest is not None
    assert batch.largest < 0.1 < net.largest
    assert len(batch.contrasts) == 3


def test_a_parameter_that_has_no_part_has_no_importance(of_a_study: Science) -> None:
    lr, unused = of_a_study.importances
    assert (lr.path, unused.path) == ("lr", "unused")
    assert lr.overall.share > 0.9
    assert unused.overall.share < 0.03
    assert set(lr.cells) == set(range(6))
    for share in (lr.overall, unused.overall, *lr.cells.values()):
        assert 0.0 <= share.low <= share.share <= share.high <= 1.0


def test_estimates_of_cells_are_those_of_the_summary() -> None:
    search = played(loss)
    estimates = search.summary(list(SPEC.cells()))
    for cell in said(search).cells:
        estimate = estimates[cell.place]
        assert estimate is not None
        assert cell.low == pytest.approx(estimate.low)
        assert cell.estimate == pytest.approx(estimate.estimate)
        assert cell.probability_best == pytest.approx(estimate.probability_best)


def test_the_same_trials_say_the_same_bit_for_bit_and_in_json(of_a_study: Science) -> None:
    again = said(played(loss))
    assert json.dumps(asdict(again)) == json.dumps(asdict(of_a_study))


def test_what_is_maximised_is_the_mirror_image(of_a_study: Science) -> None:
    spec = replace(SPEC, directions=("maximize",))
    mirrored = said(played(loss, spec), spec)
    for one, other in zip(of_a_study.axes, mirrored.axes, strict=True):
        for a, b in zip(one.contrasts, other.contrasts, strict=True):
            assert (a.better, a.worse) == (b.better, b.worse)
            assert a.difference == pytest.approx(b.difference)
        for v, w in zip(one.values, other.values, strict=True):
            assert v.estimate == pytest.approx(-w.estimate)
            assert v.low == pytest.approx(-w.high)
    assert [c.probability_best for c in of_a_study.cells] == pytest.approx(
        [c.probability_best for c in mirrored.cells]
    )


def test_noise_alone_is_not_predictable(of_a_study: Science) -> None:
    assert of_a_study.predictability > 0.8
    rng = np.random.default_rng(1)
    assert said(played(lambda _: float(rng.standard_normal()))).predictability < 0.1


def test_nothing_is_said_of_few_trials_or_several_objectives() -> None:
    assert played(loss, trials=9).science(list(SPEC.cells())) is None
    spec = replace(SPEC, directions=("minimize", "minimize"), metrics=("a", "b"))
    assert Search(spec).science(list(spec.cells())) is None
    with pytest.raises(ConfigError, match="medium"):
        Search(SPEC).science([{"net": "medium", "batch": 32}])


def test_cells_without_trials_are_left_out_unless_they_are_asked_for() -> None:
    cells = list(SPEC.cells())
    some = replace(SPEC, grid=(AXES[0], Axis("batch", (32, 64, 128))))
    search, rng = Search(some), np.random.default_rng(0)
    for number in range(20):
        cell = (0, 1, 3, 4)[number % 4]
        asked = search.ask(cells[cell], ticket=number, retry=0)
        value = (loss(asked.values) + 0.01 * float(rng.standard_normal()),)
        search.feed([TrialNews(number, "COMPLETE", asked.params, value, cell=cell)])
    found = search.science(cells)
    assert found is not None
    assert [c.place for c in found.cells] == [0, 1, 3, 4]
    assert [len(axis.values) for axis in found.axes] == [2, 2]
    whole = search.science(cells, untried=True)
    assert whole is not None
    assert [c.place for c in whole.cells] == [0, 1, 2, 3, 4, 5]
    assert whole.cells[2].useful == 0


def test_a_pruned_trial_is_no_evidence_of_what_a_cell_can_reach() -> None:
    with_pruned, without = played(loss), played(loss)
    cells = list(SPEC.cells())
    asked = with_pruned.ask(cells[0], ticket=60, retry=0)
    with_pruned.feed([TrialNews(60, "PRUNED", asked.params, None, {1: 50.0}, cell=0)])
    assert [c.low for c in said(with_pruned).cells] == [c.low for c in said(without).cells]


def test_a_condition_is_respected_and_categories_alone_suffice() -> None:
    spec = replace(
        SPEC,
        grid=(AXES[0],),
        search=(
            Searched("act", "categorical", choices=("relu", "tanh")),
            Searched("m", "float", 0.0, 1.0, when={"net": ("large",)}),
        ),
    )

    def of(v: Mapping[str, Any]) -> float:
        return float(0.5 * (v["act"] == "tanh") + 0.2 * v.get("m", 0.0))

    found = said(played(of, spec, 40), spec)
    by_path = {i.path: i for i in found.importances}
    assert set(by_path["m"].cells) == {1}
    assert set(by_path["act"].cells) == {0, 1}
    assert by_path["act"].overall.share > by_path["m"].overall.share
    choices = replace(spec, search=spec.search[:1])
    assert said(played(of, choices, 40), choices).edges == ()


# ---------------------------------------------------------------------------------------- effects


def table(heights: Any, spread: float = 0.01) -> tuple[Grid, np.ndarray[Any, Any]]:
    """Draws of the optima of a two-way grid, as sure as `spread`; None leaves a cell out."""
    cells = [
        {"a": i, "b": j}
        for i, row in enumerate(heights)
        for j, height in enumerate(row)
        if height is not None
    ]
    axes = [("a", range(len(heights))), ("b", range(len(heights[0])))]
    grid = grid_of([(p, list(v)) for p, v in axes], cells, same_value)
    centre = np.array([h for row in heights for h in row if h is not None])
    rng = np.random.default_rng(0)
    return grid, centre + spread * rng.standard_normal((1000, len(centre)))


def test_a_contrast_is_averaged_over_the_contexts_that_have_both_values() -> None:
    grid, losses = table([[0.0, 0.0, 9.0], [0.2, 0.4, None]])
    a, b = effects(grid, losses, losses, 1.0)
    (contrast,) = a.contrasts
    assert (contrast.better, contrast.worse, contrast.contexts) == (0, 1, 2)
    assert contrast.difference == pytest.approx(0.3, abs=0.01)
    assert (a.contexts, a.all_contexts) == (2, 3)
    assert b.contexts == 1
    assert sorted(c.contexts for c in b.contrasts) == [1, 1, 2]


def test_values_that_never_meet_are_not_compared() -> None:
    grid, losses = table([[0.0, None], [None, 1.0]])
    for effect in effects(grid, losses, losses, 1.0):
        assert effect.contrasts == ()
        assert effect.largest is None
    assert interactions(grid, losses, losses) == []


def test_of_many_values_the_best_is_compared_with_each_other() -> None:
    grid, losses = table([[0.1 * abs(i - 4)] for i in range(15)])
    (effect,) = effects(grid, losses, losses, 1.0)
    assert len(effect.contrasts) == 14
    assert {c.better for c in effect.contrasts} == {4}


def test_an_interaction_is_found_where_one_is_and_names_the_values() -> None:
    grid, losses = table([[0.0, 0.0, 0.0], [0.2, 0.2, -0.1]])
    (found,) = interactions(grid, losses, losses)
    assert found.differs
    assert (found.path, found.better, found.worse, found.other_path) == ("a", 0, 1, "b")
    assert found.otherwise == 2
    assert found.here == pytest.approx(0.2, abs=0.01)
    assert found.there == pytest.approx(-0.1, abs=0.01)
    assert found.low < 0.3 < found.high


def test_additive_axes_do_not_interact_more_often_than_one_time_in_ten() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        true = np.add.outer(rng.uniform(size=3), rng.uniform(size=3))
        grid, losses = table((true + 0.01 * rng.standard_normal((3, 3))).tolist())
        wrong += interactions(grid, losses, losses)[0].differs
    assert wrong <= 18  # 10 expected, standard deviation 3


# -------------------------------------------------------------------------------------- projection


def optima(gap: float, spread: float, noise: float) -> Optima:
    """Two cells with one point each, as far apart as `gap`."""
    return Optima(np.array([[0.0], [gap]]), spread**2 * np.eye(2), noise**2, np.zeros((2, 1, 1)))


def outlook(belief: Optima, margin: float = 0.0, wider: float = 1.0) -> Outlook:
    rng = np.random.default_rng(0)
    drawn = belief.drawn(rng, 2000)
    (found,) = outlooks(
        belief,
        drawn,
        wider * drawn.min(axis=2),
        np.array([[-1.0, 1.0]]),
        lambda lows: lows,
        margin,
        rng,
        1.0,
    )
    return found


def test_the_projection_follows_from_the_noise() -> None:
    assert outlook(optima(1.0, 0.1, 1.0)) == Outlook(0)
    # the deviation of the difference has to fall from √2 to 1 / 1.645: 1/var is 1 + n
    assert outlook(optima(1.0, 1.0, 1.0)).more in (4, 6)
    assert outlook(optima(1.0, 1.0, 2.0)).more in (18, 25)
    assert outlook(optima(0.0, 1.0, 3.0)) == Outlook()


def test_the_projection_has_the_rule_of_what_is_decided() -> None:
    # 1.96 deviations of the difference within the margin of 1: 1 + n is 2 · 1.96² = 7.7
    assert outlook(optima(0.0, 1.0, 1.0), margin=1.0) == Outlook(9, alike=True)
    # what the first look takes for none is open if the second one does not
    small = optima(0.0, 0.3, 1.0)
    assert outlook(small, margin=0.9) == Outlook(0, alike=True)
    later = outlook(small, margin=0.9, wider=2.0)
    assert later.alike
    assert later.more in (18, 25, 35)


# ------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("distribution", "at", "side", "widened"),
    [
        (FloatDistribution(1e-4, 1e-1, log=True), 1.0, "upper", 0.5),
        (FloatDistribution(1e-4, 1e-1, log=True), 0.0, "lower", 2e-5),
        (FloatDistribution(0.5, 2.5), 1.0, "upper", 3.0),
        (FloatDistribution(0.0, 1.0), 1.0, "upper", None),
        (FloatDistribution(0.0, 0.6), 0.0, "lower", None),
        (FloatDistribution(0.1, 0.6), 0.0, "lower", 0.05),
        (FloatDistribution(0.0, 0.9), 1.0, "upper", 0.95),
        (FloatDistribution(0.5, 0.99), 1.0, "upper", 0.995),
        (FloatDistribution(1e-3, 0.5, log=True), 1.0, "upper", 0.75),
        (FloatDistribution(0.0, 1.0, step=0.1), 1.0, "upper", None),
        (IntDistribution(1, 3), 0.0, "lower", None),
        (IntDistribution(3, 20), 0.0, "lower", 1.0),
        (IntDistribution(0, 3), 0.0, "lower", None),
        (FloatDistribution(-2.0, 2.0), 0.0, "lower", -3.0),
        (IntDistribution(1, 4), 1.0, "upper", 5.0),
        (IntDistribution(2, 10, step=2), 1.0, "upper", 12.0),
        (IntDistribution(1, 64, log=True), 0.0, "lower", None),
    ],
)
def test_a_range_is_widened_at_the_end_where_the_best_values_lie(
    distribution: BaseDistribution, at: float, side: str, widened: float | None
) -> None:
    column = Column.of("x", distribution)
    end = float(column.encode(column.decode(np.array([at])))[0])
    points = np.array([[[end], [0.5]], [[end], [0.5]]])
    drawn = np.zeros((100, 2, 2))
    drawn[:, 0, 0] = -1.0  # the best is at the end in the first cell
    drawn[:, 1, 1] = -1.0  # and in the middle of the other
    belief = Optima(np.zeros((2, 2)), np.eye(4), 0.0, points)

    def found(probability: float) -> list[Edge]:
        return edges(
            belief,
            drawn,
            [column],
            np.zeros((2, 0)),
            np.full((2, 1), np.nan),
            [3, 7],
            lambda points, inner, cells: np.full(len(points), probability),
        )

    (edge,) = found(0.9)
    assert (edge.side, edge.places, edge.of) == (side, (3,), 2)
    assert edge.widened == pytest.approx(widened)
    assert found(0.89) == []


def test_noise_has_no_best_value_at_the_edge_of_few() -> None:
    spec = replace(SPEC, search=(Searched("depth", "int", 1, 3), Searched("act", "int", 0, 1)))
    rng = np.random.default_rng(5)
    assert said(played(lambda _: float(rng.standard_normal()), spec), spec).edges == ()
    deep = said(played(lambda v: -0.1 * float(v["depth"]), spec), spec)
    assert [(edge.path, edge.side, edge.widened) for edge in deep.edges] == [("depth", "upper", 4)]


# ----------------------------------------------------------------------------------------- the rest


def test_functions_drawn_have_the_posteriors_mean_and_deviation() -> None:
    rng = np.random.default_rng(0)
    x = np.hstack([rng.uniform(size=(30, 2)), rng.integers(2, size=(30, 1)).astype(float)])
    y = np.sin(4.0 * x[:, 0]) + 0.3 * x[:, 2]
    y = (y - y.mean()) / y.std()
    layout = Layout((0, 0, 2), 2)
    posterior = Posterior(x, y, layout, fit(x, y, layout, BELIEVING))
    points, cells = rng.uniform(size=(40, 2)), np.array([[0.0], [1.0]])
    found = Paths(posterior, y, rng, 2000).by_cell(points, cells)
    for cell, values in zip(cells, found, strict=True):
        marginal = posterior.at(points, cell[None, :])
        assert values[:, 0] == pytest.approx(marginal.mean[:, 0])
        std = marginal.std[:, 0]
        away = values[:, 1:].mean(axis=1) - marginal.mean[:, 0]
        assert np.abs(away).max() < 0.2 * std.max()
        assert values[:, 1:].std(axis=1) == pytest.approx(std, rel=0.3, abs=0.02)


def test_predictability_of_many_is_what_leaving_each_trial_out_gives() -> None:
    search = played(loss)
    tried = search._tried()
    assert tried is not None
    surrogate, errors = tried.surrogate, []
    n = surrogate.layout.n_searched
    for left in range(len(surrogate.y)):
        rest = np.arange(len(surrogate.y)) != left
        posterior = Posterior(
            surrogate.x[rest], surrogate.y[rest], surrogate.layout, surrogate.hyperparameters
        )
        one = surrogate.x[left : left + 1]
        errors.append(surrogate.y[left] - posterior.mean(one[:, :n], one[:, n:])[0, 0])
    plain = [y - np.delete(surrogate.y, i).mean() for i, y in enumerate(surrogate.y)]
    expected = 1.0 - np.sum(np.square(errors)) / np.sum(np.square(plain))
    assert _compared(*_one_by_one(surrogate)).r2 == pytest.approx(expected, abs=1e-6)


def test_few_trials_of_noise_alone_are_not_predictable() -> None:
    spec = replace(
        SPEC, grid=(), search=tuple(Searched(f"p{i}", "float", 0.0, 1.0) for i in range(5))
    )
    for seed in range(3):
        noise = played(partial(_normal, np.random.default_rng(seed)), spec, 25)
        found = said(noise, spec)
        assert found.predictability < 0.1
        assert found.predictability_low < 0.0


def test_a_contrast_is_decided_if_it_is_sure_or_small(of_a_study: Science) -> None:
    contrast = of_a_study.axes[0].contrasts[0]
    assert decided(contrast, 0.0)
    assert contrast.largest >= contrast.high
    assert not decided(replace(contrast, probability=0.9), 0.1)
    assert decided(replace(contrast, probability=0.9), 1.0)


def test_places_on_axes_are_found_for_values_of_any_kind() -> None:
    values = [True, 1.5, "x", None]
    cells = [{"a": v, "b": w} for v, w in itertools.product(values, [[1], [2]])]
    grid = grid_of([("a", values), ("b", [[1], [2]])], cells, same_value)
    assert grid.codes.tolist() == [[i, j] for i in range(4) for j in range(2)]


# ------------------------------------------------------------------------------ the leading cell


def test_cells_that_reach_the_limit_of_a_metric_share_being_the_best() -> None:
    spec = replace(
        SPEC,
        directions=("maximize",),
        grid=(Axis("batch", (16, 32, 64)),),
        bounds=((0.0, 1.0),),
    )
    search = played(lambda v: min(0.05 * (np.log10(v["lr"]) + 2.0) ** 2 - 1.02, -1.0), spec)
    found = said(search, spec)
    first, second, third = (cell.probability_best for cell in found.cells)
    assert first == pytest.approx(second, abs=0.1) == pytest.approx(third, abs=0.1)
    assert first + second + third == pytest.approx(1.0)
    for cell, estimate in zip(found.cells, search.summary(list(spec.cells())), strict=True):
        assert estimate is not None
        assert cell.belief == replace(estimate, trial=None, value=None)
    assert [v.probability_best for v in found.axes[0].values] == pytest.approx(
        [first, second, third]
    )


def test_the_leading_cell_is_that_of_the_best_estimate() -> None:
    spec = replace(
        SPEC,
        seed=1,
        grid=(Axis("net", ("a", "b", "c", "d")),),
        search=(Searched("x", "float", -1.0, 1.0), Searched("y", "float", -1.0, 1.0)),
    )
    search, rng, cells = Search(spec), np.random.default_rng(1), list(spec.cells())
    for number, cell in enumerate(rng.permutation([0] * 30 + [1] * 3 + [2] * 3 + [3] * 3)):
        asked = search.ask(cells[cell], ticket=number, retry=0)
        value = (asked.values["x"] - 0.3 * cell) ** 2 + (asked.values["y"] + 0.2 * cell) ** 2
        value += 0.02 * rng.standard_normal()
        search.feed([TrialNews(number, "COMPLETE", asked.params, (float(value),), cell=int(cell))])
    found = said(search, spec)
    leader = min(found.cells, key=lambda c: c.estimate)
    assert found.leader == leader.place
    assert max(found.cells, key=lambda c: c.probability_best) != leader
    assert max(c.probability_better for c in found.cells) == leader.probability_better == 0.5


def test_failures_at_random_do_not_widen_what_is_believed() -> None:
    cells, rng, fails = list(SPEC.cells()), np.random.default_rng(0), np.random.default_rng(3)
    whole, failing = Search(SPEC), Search(SPEC)
    for number in range(60):
        cell = number % len(cells)
        asked = whole.ask(cells[cell], ticket=number, retry=0)
        value = (loss(asked.values) + 0.01 * float(rng.standard_normal()),)
        whole.feed([TrialNews(2 * number, "COMPLETE", asked.params, value, cell=cell)])
        failing.feed([TrialNews(2 * number, "COMPLETE", asked.params, value, cell=cell)])
        if fails.random() < 0.2:
            failing.feed([TrialNews(2 * number + 1, "FAIL", asked.params, None, cell=cell)])
    assert failing.summary(cells) == whole.summary(cells)
    assert said(failing) == said(whole)
