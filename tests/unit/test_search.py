"""The door `Search`: what it suggests for a cell, that it is a function of the news, and whom it
prunes.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import json_to_distribution
from threadpoolctl import threadpool_info, threadpool_limits

from orchestrator.errors import ConfigError
from orchestrator.model import ASK_KEY, Axis, Budget, Searched, StudySpec, Suggestion, TrialNews
from orchestrator.search import Search, create_optuna_tables, open_storage, optuna_schema_head
from orchestrator.search.gp import surrogate
from orchestrator.search.gp.process import fit
from orchestrator.search.trials.mirror import Mirror, blank_trial
from orchestrator.settings import GPSettings, MedianSettings, sampler_settings
from tests.support.samplers import LEARNERS

SAMPLERS = ("tpe", "gp", "random", "qmc", "nsga2")
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("batch", (32, 64, 128)), Axis("net", ("small", [8, 8]))),
    (
        Searched("lr", "float", 1e-5, 1e-1, log=True),
        Searched("dropout", "float", 0.0, 0.5),
        Searched("momentum", "float", 0.0, 1.0, step=0.1),
        Searched("depth", "int", 1, 8),
        Searched("heads", "int", 2, 16, step=2),
        Searched("width", "int", 8, 512, log=True),
        Searched("act", "categorical", choices=("relu", None, [1, 2])),
        Searched("constant", "float", 2.0, 2.0),
    ),
    Budget(100),
)
ONE = StudySpec(
    "one",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("side", (-1, 0, 1)),),
    (Searched("x", "float", -1.0, 1.0),),
    Budget(60),
)


def with_sampler(spec: StudySpec, name: str, **options: Any) -> StudySpec:
    return replace(spec, sampler=sampler_settings(name, **options))


def complete(number: int, asked: Suggestion, value: float, cell: int | None = None) -> TrialNews:
    return TrialNews(
        number, "COMPLETE", asked.params, (value,), system_attrs=asked.system_attrs, cell=cell
    )


def running(number: int, asked: Suggestion, cell: int | None = None) -> TrialNews:
    return TrialNews(number, "RUNNING", asked.params, system_attrs=asked.system_attrs, cell=cell)


def drive(
    spec: StudySpec,
    loss: Callable[[Mapping[str, Any]], float],
    trials: int,
    cells: Iterable[int] | None = None,
) -> list[tuple[int, Mapping[str, Any], float]]:
    """Runs a study sequentially, cells in turn; (cell, values, loss) for each trial."""
    search, grid, rows = Search(spec), list(spec.cells()), []
    order = list(cells) if cells is not None else [n % len(grid) for n in range(trials)]
    for number, cell in enumerate(order):
        asked = search.ask(grid[cell], ticket=number, retry=0)
        value = loss(asked.values)
        search.feed([complete(number, asked, value, cell)])
        rows.append((cell, asked.values, value))
    return rows


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kind_of_parameter_is_suggested_within_its_distribution(name: str) -> None:
    for cell, values, _ in drive(
        with_sampler(SPEC, name), lambda v: math.log(v["lr"]) + v["dropout"], 70
    ):
        assert values["batch"] == SPEC.grid[0].values[cell // 2]
        assert values["net"] == SPEC.grid[1].values[cell % 2]
        assert 1e-5 <= values["lr"] <= 1e-1
        assert values["momentum"] == pytest.approx(round(values["momentum"], 1))
        assert type(values["depth"]) is int
        assert values["depth"] in range(1, 9)
        assert values["heads"] in range(2, 17, 2)
        assert values["act"] in ("relu", None, [1, 2])
        assert values["constant"] == 2.0


def test_params_hold_what_optunas_tables_take() -> None:
    asked = Search(SPEC).ask({"batch": 64, "net": [8, 8]}, ticket=0, retry=0)
    assert [p.name for p in asked.params] == [
        *(a.path for a in SPEC.grid),
        *(s.path for s in SPEC.search),
    ]
    for param in asked.params:
        assert json_to_distribution(param.distribution)._contains(param.internal)
    assert asked.values["net"] == [8, 8]
    assert set(asked.system_attrs) == {ASK_KEY}


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_ask_is_a_function_of_news_seed_ticket_and_retry(name: str) -> None:
    spec, cell = with_sampler(SPEC, name), {"batch": 64, "net": "small"}
    searches, news = [Search(spec), Search(spec)], []
    for number in range(25):
        asked = searches[0].ask(cell, ticket=number, retry=0)
        news.append(complete(number, asked, asked.values["dropout"]))
        searches[0].feed(news[-1:])
    searches[1].feed([*reversed(news), *news])
    one, same = (s.ask(cell, ticket=30, retry=0) for s in searches)
    assert one == same
    others = [searches[1].ask(cell, ticket=31, retry=0), searches[1].ask(cell, ticket=30, retry=1)]
    reseeded = Search(replace(spec, seed=1))
    reseeded.feed(news)
    others.append(reseeded.ask(cell, ticket=30, retry=0))
    assert all(other.values != one.values for other in others)


@pytest.mark.parametrize("known", [0, 25])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rehearsal_changes_no_suggestion(name: str, known: int) -> None:
    spec, cell = with_sampler(SPEC, name), {"batch": 64, "net": "small"}
    searches, other = [Search(spec), Search(spec)], Search(spec)
    asked = [other.ask(cell, ticket=ticket, retry=0) for ticket in range(known + 1)]
    searches[0].rehearse()
    for search in searches:
        search.feed([complete(number, asked[number], number % 7, 0) for number in range(known)])
    searches[0].rehearse()
    one, same = (s.ask(cell, ticket=known, retry=0) for s in searches)
    assert one == same


def test_the_mirror_holds_its_trials_by_number_whatever_comes_when() -> None:
    mirror = Mirror("m", ("minimize",))
    for number in (5, 2, 9, 0, 2, 7):
        mirror.put(blank_trial(number, {}))
    replaced = blank_trial(5, {"later": True})
    mirror.put(replaced)
    mirror.remove(9)
    mirror.remove(9)
    mirror.remove(2)
    trials = mirror.get_all_trials(0, deepcopy=False)
    assert [trial.number for trial in trials] == [0, 5, 7]
    assert trials[1] is replaced
    assert mirror.next_number() == 8
    trials.clear()
    assert [
        t.number
        for t in mirror.restricted([blank_trial(3, {}), blank_trial(1, {})]).get_all_trials(0)
    ] == [1, 3]
    assert len(mirror.get_all_trials(0)) == 3


@pytest.mark.parametrize("name", LEARNERS)
def test_cells_of_opposite_optima_get_separate_suggestions(name: str) -> None:
    late: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for seed in range(3):
        rows = drive(
            with_sampler(replace(ONE, seed=seed), name),
            lambda v: (v["x"] - 0.7 * v["side"]) ** 2,
            60,
        )
        for cell, values, _ in rows[36:]:
            late[cell].append(values["x"])
    assert statistics.median(late[0]) < -0.3
    assert abs(statistics.median(late[1])) < 0.2
    assert statistics.median(late[2]) > 0.3


@pytest.mark.nightly
@pytest.mark.parametrize("name", LEARNERS)
def test_what_one_cell_has_learnt_moves_the_others_at_a_shared_optimum(name: str) -> None:
    near, by_chance = [], []
    for seed in range(15):
        spec = with_sampler(replace(ONE, seed=seed), name)
        rows = drive(
            spec, lambda v: (v["x"] - 0.7) ** 2 + 0.3 * v["side"], 25, cells=[0, 1] * 12 + [2]
        )
        near.append(abs(rows[-1][1]["x"] - 0.7))
        by_chance.append(
            abs(drive(with_sampler(spec, "random"), lambda v: 0.0, 25)[-1][1]["x"] - 0.7)
        )
    assert statistics.median(near) < 0.25
    assert statistics.median(near) < 0.5 * statistics.median(by_chance)


def training_loss(v: Mapping[str, Any]) -> float:
    """An optimal learning rate that moves with the batch size, a shared dropout, an
    offset a cell.
    """
    lr = math.log10(v["lr"]) + 3.5 - 0.5 * math.log2(v["batch"] / 32)
    offset = 0.1 * math.log2(v["batch"] / 32) + (0.2 if v["net"] == "small" else 0.0)
    return (
        0.4 * lr**2 + 3.0 * float(v["dropout"] - 0.15) ** 2 + 0.1 * (v["act"] is not None) + offset
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_one_model_of_all_cells_beats_a_study_for_each_cell(name: str) -> None:
    keep = ("lr", "dropout", "act")
    spec = replace(SPEC, search=tuple(s for s in SPEC.search if s.path in keep))
    ours, apart, trials, cells = [], [], 48, list(spec.cells())
    for seed in range(10):
        rows = drive(with_sampler(replace(spec, seed=seed), name), training_loss, trials)
        ours.append(sum(min(loss for c, _, loss in rows if c == cell) for cell in range(6)))
        total = 0.0
        for number, cell in enumerate(cells):
            sampler = optuna.samplers.TPESampler(seed=100 * seed + number)
            study = optuna.create_study(sampler=sampler)
            space = {
                s.path: json_to_distribution(d)
                for s, d in zip(spec.search, _written(spec), strict=True)
            }
            for _ in range(trials // len(cells)):
                trial = study.ask(space)
                act = {"relu": "relu", None: None, "[1,2]": [1, 2]}[trial.params["act"]]
                study.tell(trial, training_loss({**cell, **trial.params, "act": act}))
            total += study.best_value
        apart.append(total)
    assert statistics.median(ours) < statistics.median(apart)


def _written(spec: StudySpec) -> list[str]:
    return [p.distribution for p in Search(spec).ask(next(spec.cells()), ticket=0, retry=0).params][
        len(spec.grid) :
    ]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("known", [0, 15])
def test_workers_that_ask_at_once_get_different_points(name: str, known: int) -> None:
    search, cells = Search(with_sampler(ONE, name)), list(ONE.cells())
    for number in range(known):
        asked = search.ask(cells[number % 3], ticket=number, retry=0)
        search.feed([complete(number, asked, math.sin(9 * asked.values["x"]))])
    seen = []
    for number in range(known, known + 8):
        asked = search.ask(cells[0], ticket=number, retry=0)
        search.feed([running(number, asked, 0)])
        seen.append(asked.values["x"])
    assert len(set(seen)) == 8
    assert asked.system_attrs[ASK_KEY]["pending"] == 7
    if name == "gp":
        assert min(np.diff(np.sort(seen))) > 1e-4
        assert max(seen) - min(seen) > 0.5


def test_quasi_random_points_fill_every_cell_evenly() -> None:
    spec = replace(with_sampler(ONE, "qmc"), grid=(Axis("side", tuple(range(8))),))
    rows = drive(spec, lambda v: 0.0, 128)
    for cell in range(8):
        eighths = {int((v["x"] + 1) * 4) for c, v, _ in rows if c == cell}
        assert len(eighths) >= 7


@pytest.mark.parametrize("name", SAMPLERS)
def test_bounds_narrow_the_suggestion_and_not_the_distribution(name: str) -> None:
    search, wide = (
        Search(with_sampler(SPEC, name)),
        dict(zip(("lr", "depth"), ((1e-5, 1e-1), (1, 8)), strict=True)),
    )
    cell = {"batch": 32, "net": "small"}
    for number in range(30):
        asked = search.ask(
            cell,
            ticket=number,
            retry=0,
            bounds={"lr": (1e-3, 2e-3), "depth": (2.5, 4.2), "heads": (5, 9)},
        )
        limits: Any = asked.system_attrs[ASK_KEY]
        if number == 0:
            assert limits["limits"] == {
                "lr": [1e-3, 2e-3],
                "depth": [3.0, 4.0],
                "heads": [6.0, 8.0],
            }
        for path, (low, high) in limits["limits"].items():
            assert low <= asked.values[path] <= high
        for param in asked.params:
            if param.name in wide:
                d: Any = json_to_distribution(param.distribution)
                assert (d.low, d.high) == wide[param.name]
        search.feed([complete(number, asked, -math.log(asked.values["lr"]))])


def test_bounds_that_mean_nothing_are_refused() -> None:
    search, cell = Search(SPEC), {"batch": 32, "net": "small"}
    for bounds in ({"lr": (1.0, 2.0)}, {"act": (0, 1)}, {"batch": (32, 64)}, {"nothing": (0, 1)}):
        with pytest.raises(ConfigError, match=next(iter(bounds))):
            search.ask(cell, ticket=0, retry=0, bounds=bounds)


def test_a_cell_outside_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch=300"):
        Search(SPEC).ask({"batch": 300, "net": "small"}, ticket=0, retry=0)
    with pytest.raises(ConfigError, match="net=tiny"):
        Search(SPEC).ask({"batch": 32, "net": "tiny"}, ticket=0, retry=0)
    with pytest.raises(ConfigError, match="needs a value for each"):
        Search(SPEC).ask({"batch": 32}, ticket=0, retry=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_foreign_failed_pruned_and_broken_trials_never_stop_an_ask(name: str) -> None:
    search, cell, news = Search(with_sampler(ONE, name)), {"side": 0}, []
    for number in range(0, 40, 2):
        asked = search.ask(cell, ticket=number, retry=0)
        news.append(complete(number, asked, asked.values["x"] ** 2, 1))
        search.feed(news[-1:])
    other = Search(SPEC).ask({"batch": 32, "net": "small"}, ticket=0, retry=0)
    strange = replace(
        asked.params[-1], distribution='{"name": "FutureDistribution", "attributes": {}}'
    )
    search.feed(
        [
            complete(101, other, 1.0),
            TrialNews(103, "FAIL", news[0].params, cell=1),
            TrialNews(105, "FAIL"),
            TrialNews(107, "PRUNED", news[1].params, intermediate={1: 0.5, 2: 0.4}),
            TrialNews(109, "PRUNED", news[2].params),
            TrialNews(111, "WAITING", system_attrs={"fixed_params": {"side": 1}}),
            TrialNews(113, "COMPLETE", (strange,), (0.0,)),
            TrialNews(115, "COMPLETE", news[3].params, (float("inf"),)),
            TrialNews(117, "RUNNING", news[3].params[:1]),
        ]
    )
    assert -1 <= search.ask(cell, ticket=60, retry=2).values["x"] <= 1


@pytest.mark.parametrize("name", LEARNERS)
def test_where_trials_fail_the_sampler_does_not_go(name: str) -> None:
    search, cells, late = Search(with_sampler(ONE, name)), list(ONE.cells()), []
    for number in range(90):
        asked = search.ask(cells[number % 3], ticket=number, retry=0)
        x = asked.values["x"]
        news = (
            TrialNews(number, "FAIL", asked.params)
            if x > 0.2
            else complete(number, asked, math.sin(40 * x))
        )
        search.feed([news])
        late.append(x > 0.2)
    assert sum(late[:10]) >= 3
    assert sum(late[50:]) <= 10  # of 40, where chance gives 16


def test_what_has_ended_does_not_run_again() -> None:
    search = Search(ONE)
    asked = search.ask({"side": 0}, ticket=0, retry=0)
    search.feed([running(0, asked)])
    search.feed([complete(0, asked, 1.0)])
    search.feed([running(0, asked)])
    attrs = search.ask({"side": 0}, ticket=1, retry=0).system_attrs[ASK_KEY]
    assert (attrs["news"], attrs["pending"]) == (1, 0)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_ten_thousand_trials_are_taken_in_and_asked_about(name: str) -> None:
    search, rng = Search(with_sampler(SPEC, name)), np.random.default_rng(0)
    points = [
        Search(with_sampler(SPEC, "random")).ask(c, ticket=t, retry=0)
        for t, c in enumerate(list(SPEC.cells()) * 5)
    ]
    news = [complete(n, points[n % len(points)], float(rng.random()), n % 6) for n in range(10_000)]
    search.feed(news)
    asked = search.ask({"batch": 32, "net": "small"}, ticket=10_000, retry=0)
    assert asked.system_attrs[ASK_KEY]["news"] == 10_000
    anew = Search(with_sampler(SPEC, name))
    anew.feed(news[5_000:])
    anew.feed(news[:5_000])
    assert anew.ask({"batch": 32, "net": "small"}, ticket=10_000, retry=0) == asked, (
        "however they came"
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_several_objectives_and_a_grid(name: str) -> None:
    spec = replace(with_sampler(ONE, name), directions=("minimize", "maximize"), metrics=("a", "b"))
    search, cells, asked = Search(spec), list(spec.cells()), None
    for number in range(70):
        asked = search.ask(cells[number % 3], ticket=number, retry=0)
        x = asked.values["x"]
        news = TrialNews(
            number, "COMPLETE", asked.params, (x**2, -abs(x - 0.3)), system_attrs=asked.system_attrs
        )
        search.feed([news])
    assert asked is not None
    assert not search.should_prune(69, reports={1: 5.0})


def test_a_study_without_grid_or_without_search_is_asked_alike() -> None:
    assert len(drive(replace(with_sampler(ONE, "gp"), grid=()), lambda v: v["x"], 14)) == 14
    rows = drive(replace(with_sampler(ONE, "tpe"), search=()), lambda v: v["side"], 14)
    assert rows[-1][1] == {"side": 0}


def test_maximising_is_minimising_the_negative() -> None:
    down = drive(with_sampler(ONE, "gp"), lambda v: (v["x"] - 0.4) ** 2, 20)
    up = drive(
        replace(with_sampler(ONE, "gp"), directions=("maximize",)),
        lambda v: -((v["x"] - 0.4) ** 2),
        20,
    )
    assert [v["x"] for _, v, _ in up] == pytest.approx([v["x"] for _, v, _ in down])


@pytest.mark.parametrize(
    ("group", "settings", "says"),
    [
        (
            "sampler",
            {"name": "cmaes"},
            "sampler=cmaes: there is no such sampler; there are tpe, gp, random, qmc, nsga2",
        ),
        (
            "sampler",
            {"name": "tpe", "n_startup_trial": 3},
            "did you mean 'sampler.n_startup_trials'",
        ),
        (
            "sampler",
            {"name": "tpe", "n_startup_trials": 2.5},
            "sampler.n_startup_trials=2.5: must be a whole number",
        ),
        (
            "sampler",
            {"name": "gp", "n_startup_trials": -1},
            "sampler.n_startup_trials=-1: must be at least 1",
        ),
        (
            "sampler",
            {"name": "qmc", "qmc_type": "soboll"},
            "must be one of sobol, halton (did you mean 'sobol'?)",
        ),
        (
            "sampler",
            {"name": "random", "seed": 3},
            "unknown setting sampler.seed",
        ),
        ("sampler", {"name": "nsga2", "mutation_prob": 2.0}, "must be from 0 to 1"),
        ("sampler", {"name": "nsga2", "mutation_prob": "much"}, "must be a number or null"),
        ("pruner", {"name": "medain"}, "did you mean 'median'"),
        ("pruner", {"name": "median", "within_cell": "yes"}, "true or false"),
        (
            "pruner",
            {"name": "hyperband", "max_resource": "all"},
            "'auto' or a whole number of steps",
        ),
        ("pruner", {"name": "wilcoxon", "p_threshold": True}, "must be a number"),
    ],
)
def test_a_study_whose_settings_this_version_cannot_use_is_refused_in_one_line(
    group: str, settings: dict[str, Any], says: str
) -> None:
    of_later_version = StudySpec.from_json(ONE.to_json() | {group: settings})
    assert of_later_version.to_json()[group] == settings, "and others find it as it was stored"
    with pytest.raises(ConfigError) as caught:
        Search(of_later_version)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_made_in_code_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="n_startup_trials=0: must be at least 1"):
        Search(replace(ONE, sampler=GPSettings(n_startup_trials=0)))
    with pytest.raises(ConfigError, match="interval_steps=0: must be at least 1"):
        Search(replace(ONE, pruner=MedianSettings(interval_steps=0)))


def test_no_study_is_announced_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Search(ONE).ask({"side": 0}, ticket=0, retry=0)
    assert not caplog.records


def test_optunas_tables_are_created_once_and_read_plainly(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    create_optuna_tables(url)
    create_optuna_tables(url)
    assert optuna.storages.RDBStorage(url).get_current_version() == optuna_schema_head()
    optuna.create_study(storage=url, study_name="known")
    assert [s.study_name for s in open_storage(url).get_all_studies()] == ["known"]


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_linear_algebra_keeps_to_one_thread_and_leaves_the_others_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    search = Search(with_sampler(SPEC, name))
    seen: list[set[int]] = []

    def watched(*arguments: Any) -> Any:
        seen.append(threads())
        return fit(*arguments)

    monkeypatch.setattr(surrogate, "fit", watched)
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        for number, cell in enumerate([*SPEC.cells()] * 2):
            asked = search.ask(cell, ticket=number, retry=0)
            search.feed([complete(number, asked, float(number), number)])
        search.choose_cell(list(enumerate(SPEC.cells())), ticket=0, retry=0)
        search.summary(list(SPEC.cells()))
        assert threads() == before == {2}
    assert seen
    assert seen == [{1}] * len(seen)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists threads")
def test_loading_the_samplers_starts_no_threads_and_what_the_process_starts_is_not_concerned() -> (
    None
):
    loads = (
        "import os\nfrom orchestrator.search import HybridGPSampler, Search\n"
        "print(len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ, "
        "'OMP_NUM_THREADS' in os.environ)"
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", loads], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False", "False"]
