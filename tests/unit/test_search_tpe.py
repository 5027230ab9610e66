"""The estimator that knows the cell: its densities, what it learns of cells, what it reads, and how
fast it is.
"""

from __future__ import annotations

import itertools
import pickle
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import HybridTPESampler, Search
from orchestrator.search.gp.process import Posterior
from orchestrator.search.tpe import sampler as tpe
from orchestrator.search.tpe.kinship import SHARING, Drift, closeness, learn_sharing
from orchestrator.search.tpe.parzen import Mixture
from orchestrator.search.trials.history import Column
from orchestrator.search.trials.rows import Rows
from orchestrator.settings import sampler_settings

X = Column.of("x", FloatDistribution(0.0, 1.0))
KIND = Column.of("kind", CategoricalDistribution(["a", "b", "c"]))
SIDE = Column.of("side", IntDistribution(0, 10))
ALIKE = SHARING[0]


def integral(mixture: Mixture) -> float:
    """Of the density over the columns X and KIND."""
    x = (np.arange(2000) + 0.5) / 2000
    return sum(
        float(np.exp(mixture.log_density(np.column_stack([x, np.full(2000, k)]))).mean())
        for k in range(3)
    )


def test_a_mixture_is_a_density() -> None:
    points = np.array([[0.02, 0.0], [0.5, 2.0], [np.nan, 1.0], [0.9, np.nan]])
    mixture = Mixture([X, KIND], points, np.array([1.0, 0.3, 2.0, 1.0]), np.array([0.07, 1.0]))
    assert integral(mixture) == pytest.approx(1.0, abs=1e-3)


def test_a_mixture_draws_as_dense_as_it_says() -> None:
    points, rng = np.array([[0.2, 0.0], [0.7, 2.0], [np.nan, 2.0]]), np.random.default_rng(0)
    mixture = Mixture([X, KIND], points, np.array([3.0, 2.0, 1.0]), np.array([0.05, 1.0]))
    drawn = mixture.sample(rng, 20_000)
    x = (np.arange(10) + 0.5) / 10
    for kind in range(3):
        share = np.histogram(drawn[drawn[:, 1] == kind, 0], bins=10, range=(0, 1))[0] / len(drawn)
        fine = (np.arange(1000) + 0.5) / 1000
        said = (
            np.exp(mixture.log_density(np.column_stack([fine, np.full(1000, kind)])))
            .reshape(10, 100)
            .mean(axis=1)
            / 10
        )
        assert share == pytest.approx(said, abs=0.01), (kind, x)


def test_draws_keep_to_the_bounds_even_where_no_kernel_is_near() -> None:
    narrow = X.within((0.95, 0.97))
    drawn = Mixture([narrow], np.array([[0.1]]), np.array([9.0]), np.array([0.01])).sample(
        np.random.default_rng(0), 200
    )
    assert drawn.min() >= 0.95
    assert drawn.max() <= 0.97
    assert len(np.unique(drawn)) > 100


def cells_in_turn(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places along SIDE of `n` trials, and as many uniform numbers."""
    rng = np.random.default_rng(0)
    return np.tile([0.05, 0.35, 0.65, 0.95], n)[:n, None], rng.random(n)


def test_cells_share_all_where_they_are_alike_and_little_where_they_are_not() -> None:
    cells, x = cells_in_turn(120)
    alike = (x - 0.4) ** 2
    apart = (x - np.where(cells[:, 0] % 0.6 < 0.2, 0.1, 0.9)) ** 2
    table = np.column_stack([x, cells])
    assert learn_sharing([X], [SIDE], table, alike) == ALIKE
    assert learn_sharing([X], [SIDE], table, apart) in SHARING[2:]


def test_other_cells_count_less_the_further_and_the_less_is_shared() -> None:
    cells, here = np.array([[0.5, 0.0], [0.6, 0.0], [0.9, 0.0], [0.5, 1.0]]), np.array([0.5, 0.0])
    wide = closeness(cells, here, [SIDE, KIND], SHARING[1])
    narrow = closeness(cells, here, [SIDE, KIND], SHARING[2])
    assert wide[0] == narrow[0] == 1.0
    assert wide[0] > wide[1] > wide[2]
    assert (narrow[1:] < wide[1:]).all()
    assert (closeness(cells, here, [SIDE, KIND], ALIKE) == 1.0).all()


def test_good_values_that_move_with_the_cell_are_moved_and_others_are_not() -> None:
    cells, noise = cells_in_turn(16)
    good = np.column_stack([0.2 + 0.5 * cells[:, 0], np.full(16, 0.3)]) + 0.03 * (
        noise[:, None] - 0.5
    )
    moved = Drift(good, cells, [SIDE]).towards(np.array([0.95]), cells)
    assert good[:, 0] + moved[:, 0] == pytest.approx(np.full(16, 0.675), abs=0.08)
    assert np.abs(moved[:, 1]).max() < 0.02
    assert not Drift(noise[:, None], cells, [SIDE]).towards(np.array([0.95]), cells).any()


def test_good_values_move_between_categories_too() -> None:
    cells = np.tile([0.0, 1.0, 2.0], 6)[:, None]
    good = (
        np.array([0.2, 0.8, 0.5])[cells[:, 0].astype(int)][:, None]
        + 0.01 * np.arange(18)[:, None] / 18
    )
    moved = good + Drift(good, cells, [KIND]).towards(np.array([1.0]), cells)
    assert moved == pytest.approx(np.full((18, 1), 0.8), abs=0.1)


def spec(search: tuple[Searched, ...], grid: tuple[Axis, ...] = (), seed: int = 0) -> StudySpec:
    return StudySpec(
        "s",
        ("minimize",),
        ("loss",),
        {},
        {},
        grid,
        search,
        Budget(500),
        sampler=sampler_settings("tpe"),
        seed=seed,
    )


def test_the_best_of_a_bad_cell_is_followed_in_that_cell() -> None:
    late = []
    for seed in range(3):
        search = Search(
            spec((Searched("x", "float", 0.0, 1.0),), (Axis("net", ("good", "bad")),), seed)
        )
        for number in range(60):
            cell = {"net": ("good", "bad")[number % 2]}
            asked = search.ask(cell, ticket=number, retry=0)
            bad = cell["net"] == "bad"
            loss = 100.0 * bad + (asked.values["x"] - (0.85 if bad else 0.15)) ** 2
            search.feed([TrialNews(number, "COMPLETE", asked.params, (loss,), cell=number % 2)])
            if bad and number >= 36:
                late.append(asked.values["x"])
    assert statistics.median(late) == pytest.approx(0.85, abs=0.1)


def test_a_cell_has_no_discrete_point_twice_before_it_has_had_all() -> None:
    search = Search(
        spec(
            (Searched("a", "int", 1, 4), Searched("b", "categorical", choices=("u", "v", "w"))),
            (Axis("c", (1, 2)),),
        )
    )
    seen: list[tuple[Any, Any]] = []
    for number in range(24):
        asked = search.ask({"c": 1 + number % 2}, ticket=number, retry=0)
        loss = (float(asked.values["a"]),)
        runs = TrialNews(number, "RUNNING", asked.params)
        search.feed(
            [runs if number % 3 == 0 else TrialNews(number, "COMPLETE", asked.params, loss)]
        )
        if number >= 10 and number % 2:
            assert (asked.values["a"], asked.values["b"]) not in seen
        if number % 2:
            seen.append((asked.values["a"], asked.values["b"]))


def test_of_infeasible_trials_those_that_miss_least_are_followed() -> None:
    study = optuna.create_study(sampler=HybridTPESampler(seed=0))
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    for _ in range(40):
        trial = study.ask(space)
        trial.set_constraint("far", 1.0 + abs(trial.params["x"] - 0.8))
        study.tell(trial, trial.params["x"])
    assert statistics.median(t.params["x"] for t in study.trials[25:]) == pytest.approx(
        0.8, abs=0.12
    )


def done(
    params: Mapping[str, Any], space: Mapping[str, BaseDistribution], value: float
) -> FrozenTrial:
    return create_trial(params=dict(params), distributions=dict(space), value=value)


def test_of_the_likely_points_the_process_picks_the_one_that_promises_most() -> None:
    space = {name: FloatDistribution(0.0, 1.0) for name in "xy"}
    missed = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        best = rng.uniform(0.2, 0.8, 2)
        study = optuna.create_study(sampler=HybridTPESampler(seed=seed))
        for point in rng.random((25, 2)):
            params = dict(zip("xy", point.tolist(), strict=True))
            study.add_trial(
                create_trial(
                    params=params, distributions=space, value=float(((point - best) ** 2).sum())
                )
            )
        asked = study.ask(space).params
        missed.append(np.hypot(asked["x"] - best[0], asked["y"] - best[1]))
    assert statistics.median(missed) < 0.06, (
        "0.14 by the densities alone, whose kernels are wider than that"
    )


def test_workers_at_once_do_not_crowd_where_one_would_go() -> None:
    space = {name: FloatDistribution(0.0, 1.0) for name in "xy"}
    study = optuna.create_study(sampler=HybridTPESampler(seed=0))
    for x, y in np.random.default_rng(0).random((16, 2)).tolist():
        value = float(np.sin(7 * x) + np.cos(5 * y) + 0.3 * x)
        study.add_trial(create_trial(params={"x": x, "y": y}, distributions=space, value=value))
    asked = [study.ask(space).params for _ in range(7)]
    apart = [
        np.hypot(a["x"] - b["x"], a["y"] - b["y"]) for a, b in itertools.combinations(asked, 2)
    ]
    assert min(apart) > 0.01


def test_trials_without_a_parameter_still_tell_of_the_others() -> None:
    sampler = HybridTPESampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    space = {
        "net": CategoricalDistribution(["a", "b"]),
        "x": FloatDistribution(0, 1),
        "only_a": FloatDistribution(0, 1),
    }
    rng = np.random.default_rng(0)
    for number in range(60):
        x, net, other = float(rng.random()), "ab"[number % 2], float(rng.random())
        params = {"net": net, "x": x, **({"only_a": other} if number < 12 and net == "a" else {})}
        study.add_trial(done(params, {name: space[name] for name in params}, (x - 0.7) ** 2))
    found = []
    for _ in range(9):
        study.enqueue_trial({"net": "a"})
        asked = study.ask()
        found.append(sampler.sample_relative(study, study.trials[asked.number], space)["x"])
    assert statistics.median(found) == pytest.approx(0.7, abs=0.1)


def readings_agree(study: optuna.Study, rows: Rows, names: Mapping[str, BaseDistribution]) -> bool:
    kept, anew = rows.read(study, -1, names), Rows().read(study, -1, names)
    if not np.array_equal(kept.internal(), anew.internal(), equal_nan=True):
        return False
    parts = ("position", "value", "step", "violation", "pruned", "failed", "running")
    return all(
        np.array_equal(getattr(kept, part), getattr(anew, part), equal_nan=True) for part in parts
    )


def test_what_was_read_before_is_what_would_be_read_anew() -> None:
    study, rows = optuna.create_study(), Rows()
    names: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0, 1),
        "k": CategoricalDistribution(["u", "v"]),
    }
    running = []
    for number in range(30):
        trial = study.ask(names)
        if number % 4 == 0:
            running.append(trial)
        elif number % 7 == 0:
            trial.report(0.5, 3)
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 9 == 0:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, float(number))
        assert readings_agree(study, rows, names)
    last = running[-1]
    reading = rows.read(study, last.number, names)
    assert reading.running[:, 0].tolist() == [trial.params["x"] for trial in running[:-1]]
    assert [reading.trials[i].number for i in reading.position] == [n for n in range(30) if n % 4]
    study.tell(running[2], 1.0)
    study.tell(running[0], 2.0)
    assert readings_agree(study, rows, names)
    assert readings_agree(study, rows, {"k": names["k"]})
    assert readings_agree(study, rows, {**names, "new": FloatDistribution(0, 1)})
    assert readings_agree(optuna.create_study(), rows, names)
    assert readings_agree(study, pickle.loads(pickle.dumps(rows)), names)


@pytest.mark.parametrize("known", [100, 10_000])
def test_a_suggestion_looks_at_so_many_trials_and_no_more(
    known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = tuple(Searched(f"x{i}", "float", 0.0, 1.0) for i in range(4))
    cells = Axis("batch", (32, 64, 128, 256)), Axis("width", (64, 128, 256))
    search, draws = Search(spec(searched, cells)), Search(spec(searched, cells))
    points = [
        draws.ask(cell, ticket=ticket, retry=0)
        for ticket, cell in enumerate(list(spec(searched, cells).cells()) * 9)
    ]
    loss = np.random.default_rng(0).random(known)
    search.feed(
        TrialNews(n, "COMPLETE", points[n % len(points)].params, (float(loss[n]),))
        for n in range(known)
    )
    kernels, factored = [], []
    monkeypatch.setattr(
        tpe,
        "Mixture",
        lambda columns, x, *rest: kernels.append(len(x)) or Mixture(columns, x, *rest),
    )
    posterior = Posterior.__init__
    monkeypatch.setattr(
        Posterior,
        "__init__",
        lambda self, x, *rest: factored.append(len(x)) or posterior(self, x, *rest),
    )
    search.ask({"batch": 64, "width": 128}, ticket=known, retry=0)
    assert kernels == ([20, 80] if known == 100 else [tpe.MAX_GOOD, tpe.MAX_REST])
    assert factored == [min(known, tpe.RANKED_BY)]


def test_what_was_read_is_not_pickled_with_the_sampler() -> None:
    sampler = HybridTPESampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=100)
    assert len(pickle.dumps(sampler)) < 20_000
