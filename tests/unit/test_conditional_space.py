"""Parameters that exist in some cells only: declared, stored, described, asked for there, and
learnt from everywhere.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.config import compose, normal_form, parse_flags, study_spec
from orchestrator.config.space import Space
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec, Suggestion, TrialNews
from orchestrator.search import Search, by_hand, describe
from orchestrator.settings import sampler_settings
from tests.support.samplers import LEARNERS

SAMPLERS = ("tpe", "gp", "random", "qmc", "nsga2")
GRID = {"model.kind": ["sgd", "adam", "rmsprop"], "data.batch": [32, 64]}
PARAMS = {
    "model": {"kind": "sgd"},
    "data": {"batch": 32},
    "optim": {"lr": 0.1, "momentum": 0.9, "eps": 1e-8},
}
SEARCH = {
    "optim.lr": "tag(log, interval(1e-4, 1e-1))",
    "optim": {"momentum": {"space": "interval(0, 0.99)", "when": {"model.kind": "sgd"}}},
    "optim.eps": {
        "space": [1e-8, 1e-4],
        "when": {"model": {"kind": ["rmsprop", "adam"]}, "data.batch": 64},
    },
    # params has no default for it
    "optim.nesterov": {"space": [True, False], "when": {"model.kind": "sgd"}},
}
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    PARAMS,
    (Axis("model.kind", ("sgd", "adam", None)), Axis("data.batch", (32, "all"))),
    (
        Searched("optim.lr", "float", 0.0, 1.0),
        Searched("optim.momentum", "float", 0.0, 1.0, when={"model.kind": ("sgd",)}),
        Searched(
            "optim.warmup", "int", 1, 8, when={"model.kind": ("adam", None), "data.batch": ("all",)}
        ),
        Searched("optim.fixed", "float", 2.0, 2.0, when={"model.kind": (None,)}),
    ),
    Budget(100),
)


def space(
    search: Mapping[str, Any], grid: Mapping[str, Any] = GRID, params: Mapping[str, Any] = PARAMS
) -> Space:
    made = Space.from_yaml(grid, search)
    made.check(params)
    return made


def complete(number: int, asked: Suggestion, *values: float) -> TrialNews:
    return TrialNews(
        number, "COMPLETE", asked.params, values, system_attrs=asked.system_attrs, cell=0
    )


# -------------------------------------------------------------------------------------- as declared


def test_a_condition_names_axes_by_dotted_or_nested_keys_and_one_value_or_several() -> None:
    declared = space(SEARCH).search
    assert declared["optim.lr"].when == {}
    assert declared["optim.momentum"] == Searched(
        "optim.momentum", "float", 0.0, 0.99, when={"model.kind": ("sgd",)}
    )
    assert declared["optim.eps"].when == {"model.kind": ("adam", "rmsprop"), "data.batch": (64,)}


def test_a_condition_survives_the_normal_form_and_the_stored_spec() -> None:
    made = space(SEARCH)
    again = space(yaml.safe_load(yaml.safe_dump(made.to_yaml()["search"])))
    assert again.search == made.search
    spec = replace(SPEC, search=tuple(made.search.values()))
    stored = json.loads(json.dumps(spec.to_json()))
    assert {s.path: s for s in StudySpec.from_json(stored).search} == made.search
    assert normal_form(made.search["optim.momentum"]) == "interval(0.0, 0.99)"


def test_a_condition_is_part_of_the_identity_and_none_is_as_it_was_before_there_were_any() -> None:
    plain = replace(SPEC, search=(replace(SPEC.search[1], when={}),))
    assert plain.spec_hash() != replace(SPEC, search=SPEC.search[1:2]).spec_hash()
    (stored,) = plain.to_json()["search"]
    assert "when" not in stored
    assert StudySpec.from_json(plain.to_json()).search[0].when == {}


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ([32, 64], ([32, 64],)),
        ([[32], [32, 64]], ([32], [32, 64])),
        (None, (None,)),
        (True, (True,)),
        ([None, 1], (None, 1)),
    ],
)
def test_values_of_every_kind_are_named_and_a_list_on_the_axis_is_one_value(
    value: Any, holds: tuple[Any, ...]
) -> None:
    grid = {"layers": [[32], [32, 64], None, True, "1", 2]} | (
        {"layers": [None, 1, 2]} if value == [None, 1] else {}
    )
    declared = space({"x": {"space": "interval(0, 1)", "when": {"layers": value}}}, grid).search[
        "x"
    ]
    assert repr(declared.when["layers"]) == repr(holds)


def test_a_parameter_that_is_called_space_is_declared_by_its_dotted_path() -> None:
    made = space(
        {"model.space": [1, 2], "data": {"space": {"size": "interval(0, 1)"}, "when": [3, 4]}}, {}
    )
    assert list(made.search) == ["model.space", "data.space.size", "data.when"]


def test_null_takes_a_conditional_declaration_back() -> None:
    assert space({"a": {"space": None, "when": {"model.kind": "sgd"}}, "b": [1, 2]}).paths() == [
        *GRID,
        "b",
    ]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"when": {"model.kind": "sgd"}}, ["search.x", "condition but no space"]),
        ({"space": [1, 2], "when": {}}, ["search.x.when", "names the axes"]),
        ({"space": [1, 2], "when": None}, ["search.x.when", "names the axes"]),
        ({"space": [1, 2], "when": "sgd"}, ["search.x.when=sgd", "names the axes"]),
        ({"space": [1, 2], "wen": {"model.kind": "sgd"}}, ["search.x.wen", "did you mean 'when'"]),
        (
            {"space": [1, 2], "when": {"model.knd": "sgd"}},
            ["search.x.when: model.knd", "did you mean 'model.kind'"],
        ),
        ({"space": [1, 2], "when": {"model": "sgd"}}, ["model is not an axis"]),
        (
            {"space": [1, 2], "when": {"nothing": 1}},
            ["nothing is not an axis", "the axes are model.kind, data.batch"],
        ),
        (
            {"space": [1, 2], "when": {"optim.lr": 0.1}},
            ["optim.lr is searched", "may name grid axes only"],
        ),
        ({"space": [1, 2], "when": {"x": 1}}, ["x is searched"]),
        (
            {"space": [1, 2], "when": {"model.kind": "sdg"}},
            ["when.model.kind=sdg", "grid.model.kind has sgd, adam, rmsprop"],
        ),
        (
            {"space": [1, 2], "when": {"data.batch": "32"}},
            ['"32" is not on the axis; grid.data.batch has 32, 64'],
        ),
        ({"space": [1, 2], "when": {"data.batch": [64, 65]}}, ["65 is not on the axis"]),
        ({"space": [1, 2], "when": {"data.batch": []}}, ["name at least one"]),
        ({"space": 0.5, "when": {"model.kind": "sgd"}}, ["search.x=0.5", "plain value"]),
        ({"space": "intervl(0, 1)", "when": {"model.kind": "sgd"}}, ["intervl"]),
    ],
)
def test_a_condition_without_meaning_is_refused_in_one_line(
    declared: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        space({"x": declared, "optim.lr": "interval(0, 1)"})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_list_that_is_a_value_and_a_list_of_values_is_refused() -> None:
    grid = {"layers": [[], [[]], [8]]}
    with pytest.raises(
        ConfigError, match=r"when\.layers=\[\[\]\]: is a value of grid\.layers, and"
    ):
        space({"x": {"space": [1, 2], "when": {"layers": [[]]}}}, grid)
    for when, values in (([[[]]], ([[]],)), ([], ([],)), ([8], ([8],)), ([[8]], ([8],))):
        made = space({"x": {"space": [1, 2], "when": {"layers": when}}}, grid)
        assert made.search["x"].when == {"layers": values}


# ----------------------------------------------------------------------------- changed by a command


@pytest.fixture
def launched(tmp_path: Path) -> Any:
    """Composes a launch of this study with more words."""
    experiment = {
        "study": {"name": "own"},
        "objective": {"_target_": "my.train"},
        "params": PARAMS,
        "grid": GRID,
        "search": SEARCH,
        "budget": {"trials": 30},
    }
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n" + yaml.safe_dump(experiment, sort_keys=False)
    (tmp_path / "experiment" / "own.yaml").write_text(text)

    def launch(*words: str) -> dict[str, Searched]:
        flags = parse_flags([f"--config-dir={tmp_path}", "experiment=own", *words])
        spec = study_spec(
            compose(
                "launch",
                flags.overrides,
                config_dir=flags.config_dir,
                config_name=flags.config_name,
            )
        )
        return {searched.path: searched for searched in spec.search}

    return launch


def test_a_launch_stores_conditions(launched: Any) -> None:
    assert launched() == space(SEARCH).search


def test_a_sweep_on_the_command_line_replaces_space_and_condition(launched: Any) -> None:
    assert launched("optim.momentum=interval(0.5, 0.9)")["optim.momentum"] == Searched(
        "optim.momentum", "float", 0.5, 0.9
    )
    assert "optim.momentum" not in launched("optim.momentum=0.5")
    assert "optim.momentum" not in launched("~search.optim.momentum")


def test_a_fixed_axis_settles_the_condition(launched: Any) -> None:
    sgd = launched("model.kind=sgd")
    assert sgd["optim.momentum"].when == {}
    assert "optim.eps" not in sgd
    adam = launched("model.kind=adam")
    assert "optim.momentum" not in adam
    assert adam["optim.eps"].when == {"data.batch": (64,)}


def test_an_axis_on_the_command_line_must_have_the_values_of_the_conditions(launched: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"when\.model\.kind=sgd: sgd is not on the axis; grid\.model\.kind has adam, rmsprop",
    ):
        launched("model.kind=adam,rmsprop")


def test_what_reads_a_parameter_must_find_it_in_every_cell(launched: Any) -> None:
    assert launched("+copy=${optim.momentum}")
    assert launched("+copy=${optim.nesterov}", "model.kind=sgd")
    with pytest.raises(ConfigError, match=r"params\.copy.*optim\.nesterov"):
        launched("+copy=${optim.nesterov}")


# ----------------------------------------------------------------------------------------- as asked


def present(cell: Mapping[str, Any]) -> list[str]:
    paths = ["model.kind", "data.batch", "optim.lr"]
    paths += ["optim.momentum"] if cell["model.kind"] == "sgd" else []
    paths += ["optim.warmup"] if cell["model.kind"] != "sgd" and cell["data.batch"] == "all" else []
    return paths + (["optim.fixed"] if cell["model.kind"] is None else [])


@pytest.mark.parametrize("directions", [("minimize",), ("minimize", "maximize")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trial_has_the_parameters_of_its_cell_and_no_others(name: str, directions: Any) -> None:
    metrics = ("a", "b")[: len(directions)]
    search = Search(
        replace(SPEC, sampler=sampler_settings(name), directions=directions, metrics=metrics)
    )
    cells = list(SPEC.cells())
    for number in range(40):
        cell = cells[number % 6]
        asked = search.ask(cell, ticket=number, retry=0)
        assert list(asked.values) == present(cell)
        assert [p.name for p in asked.params] == present(cell)
        assert {path: asked.values[path] for path in cell} == cell
        search.feed(
            [
                complete(
                    number,
                    asked,
                    *(asked.values["optim.lr"] * sign for sign in (1, -1)[: len(directions)]),
                )
            ]
        )


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
def test_a_conditional_study_is_reproduced_from_its_news(name: str) -> None:
    spec, news = replace(SPEC, sampler=sampler_settings(name)), []
    first, cells = Search(spec), list(SPEC.cells())
    for number in range(30):
        asked = first.ask(cells[number % 6], ticket=number, retry=0)
        news.append(complete(number, asked, (asked.values["optim.lr"] - 0.3) ** 2))
        first.feed(news[-1:])
    second = Search(spec)
    second.feed(reversed(news))
    for ticket, cell in enumerate(cells):
        assert first.ask(cell, ticket=ticket, retry=1) == second.ask(cell, ticket=ticket, retry=1)


@pytest.mark.parametrize("name", LEARNERS)
def test_cells_without_the_parameter_teach_about_the_others(name: str) -> None:
    near, by_chance = [], []
    for seed in range(5):
        spec = replace(SPEC, sampler=sampler_settings(name), seed=seed)
        search, without = (
            Search(spec),
            [cell for cell in SPEC.cells() if cell["model.kind"] != "sgd"],
        )
        for number in range(32):
            asked = search.ask(without[number % 4], ticket=number, retry=0)
            search.feed([complete(number, asked, (asked.values["optim.lr"] - 0.8) ** 2)])
        cell = {"model.kind": "sgd", "data.batch": 32}
        near.append(abs(search.ask(cell, ticket=40, retry=0).values["optim.lr"] - 0.8))
        by_chance.append(abs(Search(spec).ask(cell, ticket=40, retry=0).values["optim.lr"] - 0.8))
    assert statistics.median(near) < 0.15
    assert statistics.median(near) < 0.5 * statistics.median(by_chance)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_conditional_parameter_is_optimised_where_it_exists(name: str) -> None:
    late = []
    for seed in range(3):
        search, cells = (
            Search(replace(SPEC, sampler=sampler_settings(name), seed=seed)),
            list(SPEC.cells()),
        )
        for number in range(90):
            asked = search.ask(cells[number % 6], ticket=number, retry=0)
            values = asked.values
            loss = (values["optim.lr"] - 0.3) ** 2 + (values.get("optim.momentum", 0.5) - 0.9) ** 2
            search.feed([complete(number, asked, loss)])
            late += (
                [values["optim.momentum"]] if number >= 54 and "optim.momentum" in values else []
            )
    assert statistics.median(abs(momentum - 0.9) for momentum in late) < 0.12


@pytest.mark.parametrize("name", LEARNERS)
def test_where_a_constraint_is_violated_the_sampler_does_not_go(name: str) -> None:
    search, cells, late = (
        Search(replace(SPEC, sampler=sampler_settings(name))),
        list(SPEC.cells()),
        [],
    )
    for number in range(90):
        asked = search.ask(cells[number % 6], ticket=number, retry=0)
        lr = asked.values["optim.lr"]
        attrs = {**asked.system_attrs, "constraints:memory": lr - 0.4}
        search.feed([replace(complete(number, asked, -lr), system_attrs=attrs)])
        late.append(lr)
    assert 0.2 < statistics.median(late[60:]) < 0.5  # the loss alone leads to 1


def test_a_value_or_bounds_of_what_does_not_exist_in_the_cell_are_refused_with_the_reason() -> None:
    search, adam = Search(SPEC), {"model.kind": "adam", "data.batch": 32}
    reason = r"optim\.momentum: exists only if model\.kind=sgd, and not where model\.kind=adam"
    with pytest.raises(ConfigError, match=reason):
        search.ask(adam, ticket=0, retry=0, given={"optim.momentum": 0.5})
    with pytest.raises(ConfigError, match=reason):
        search.ask(adam, ticket=0, retry=0, bounds={"optim.momentum": (0.1, 0.2)})
    with pytest.raises(ConfigError, match=reason):
        by_hand(SPEC, {**adam, "optim.momentum": 0.5})
    with pytest.raises(
        ConfigError,
        match=r"only if model\.kind=adam\|null and data\.batch=all, and not where .*data\.batch=32",
    ):
        by_hand(SPEC, {"optim.warmup": 3})
    cell, given = by_hand(SPEC, {"optim.momentum": 0.5})
    assert (cell, given) == ({"model.kind": "sgd", "data.batch": 32}, {"optim.momentum": 0.5})
    assert search.ask(cell, ticket=0, retry=0, given=given).values["optim.momentum"] == 0.5


def test_a_description_says_where_a_parameter_exists() -> None:
    assert describe(SPEC)[2:] == [
        ("optim.lr", "search: float from 0 to 1"),
        ("optim.momentum", "search: float from 0 to 1, if model.kind=sgd"),
        ("optim.warmup", "search: int from 1 to 8, if model.kind=adam|null and data.batch=all"),
        ("optim.fixed", "search: float from 2 to 2, if model.kind=null"),
    ]


def test_a_stored_condition_that_the_grid_does_not_know_is_refused() -> None:
    lost = Searched("x", "float", 0.0, 1.0, when={"nothing": (1,)})
    with pytest.raises(ConfigError, match=r"search\.x\.when: nothing is not an axis"):
        Search(replace(SPEC, search=(lost,)))
    with pytest.raises(ConfigError, match=r"model\.kind=sdg"):
        Search(replace(SPEC, search=(replace(lost, when={"model.kind": ("sdg",)}),)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_thirty_parameters_and_five_hundred_cells_are_asked_about(name: str) -> None:
    grid = (Axis("a", tuple(range(25))), Axis("b", tuple("abcdefghijklmnopqrst")))
    where: list[dict[str, tuple[Any, ...]]] = [
        {},
        {"b": ("a", "c", "e")},
        {"a": tuple(range(12)), "b": ("a", "b")},
    ]
    searched = tuple(Searched(f"p{i}", "float", 0.0, 1.0, when=where[i % 3]) for i in range(30))
    spec = replace(SPEC, grid=grid, search=searched, sampler=sampler_settings(name))
    search, cells, rng = Search(spec), list(spec.cells()), np.random.default_rng(0)
    random = Search(replace(spec, sampler=sampler_settings("random")))
    news = [
        complete(n, random.ask(cells[n], ticket=n, retry=0), float(rng.random()))
        for n in range(0, 500, 5)
    ]
    search.feed(news)
    sizes = {len(search.ask(cells[n], ticket=500 + n, retry=0).values) for n in (0, 1, 499)}
    assert sizes == {2 + 30, 2 + 20, 2 + 10}
