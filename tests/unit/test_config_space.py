"""Grid and search out of YAML, and the words of a command line that change them. No Hydra
composition.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.config.overrides import apply_to_params, read_words, take_url
from orchestrator.config.space import Space
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched

PARAMS = {
    "data": {"batch_size": 64},
    "optim": {"lr": 0.1, "wd": 0.0},
    "model": {"act": "relu", "layers": [{"width": 8}]},
}
GRID = {"data.batch_size": [32, 64]}
SEARCH = {"optim": {"lr": "tag(log, interval(1e-4, 1e-1))"}}


def applied(*texts: str) -> tuple[Space, list[str]]:
    space = Space.from_yaml(GRID, SEARCH)
    params = copy.deepcopy(PARAMS)
    forwarded = apply_to_params(
        read_words(texts, {"sampler", "experiment", "model/net"}), params, space
    )
    space.check(params)
    return space, forwarded


def refusal(*texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        applied(*texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_yaml_keys_are_dotted_or_nested() -> None:
    space = Space.from_yaml(
        {"a": {"b.c": [1, 2]}, "d.e": "1,2"}, {"f": {"g": {"h": "interval(0, 1)"}}, "i": ["x", "y"]}
    )
    assert space.grid == {"a.b.c": Axis("a.b.c", (1, 2)), "d.e": Axis("d.e", (1, 2))}
    assert space.search == {
        "f.g.h": Searched("f.g.h", "float", 0.0, 1.0),
        "i": Searched("i", "categorical", choices=("x", "y")),
    }


@pytest.mark.parametrize(
    ("grid", "search", "words"),
    [
        ({"a.b": [1], "a": {"b": [2]}}, {}, ["grid.a.b", "declared twice, dotted and nested"]),
        ({"a.b": [1, 2]}, {"a": {"b": "interval(0, 1)"}}, ["a.b", "grid", "search"]),
        ({"a": []}, {}, ["grid.a", "no value"]),
        ({"a": 3}, {}, ["grid.a=3", "plain value", "[3, …]"]),
        ({"a": "relu"}, {}, ["grid.a=relu", "plain value"]),
        ({}, {"a": 0.1}, ["search.a=0.1", "plain value", "interval"]),
        ({}, {"a": "intervl(0, 1)"}, ["search.a=intervl(0, 1)", "intervl"]),
        ({}, {"a": [1]}, ["only one value", "a=1"]),
        ([1], {}, ["grid=[1]"]),
        ({"a..b": [1]}, {}, ["a..b"]),
        ({"a b": [1]}, {}, ["'a b'"]),
        ({"a": [{1: 2}]}, {}, ["grid.a", "must be a string"]),
    ],
)
def test_yaml_without_meaning_is_refused(grid: Any, search: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.from_yaml(grid, search)
    for word in words:
        assert word in str(caught.value)


def test_null_takes_a_declaration_back() -> None:
    assert Space.from_yaml({"a": None, "b": [1]}, {"a": "interval(0, 1)"}).paths() == ["b", "a"]


def test_a_path_below_what_is_searched_or_plain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grid\.model\.x lies below model, which is searched"):
        Space.from_yaml({"model.x": [1, 2]}, {"model": [{"x": 1}, {"x": 2}]}).check({})
    with pytest.raises(ConfigError, match=r"params\.optim=3 is a plain value"):
        Space.from_yaml({"optim.lr": [1, 2]}, {}).check({"optim": 3})


def test_a_yaml_path_that_looks_like_a_slip_is_refused() -> None:
    params = {"optim": {"momentum": 0.9, "beta1": 0.9}}
    with pytest.raises(ConfigError, match=r"optim\.momentun .*did you mean 'optim\.momentum'"):
        Space.from_yaml({}, {"optim.momentun": "interval(0, 1)"}).check_spelling(params)
    # a sibling, no slip
    Space.from_yaml({}, {"optim.beta2": "interval(0, 1)"}).check_spelling(params)
    Space.from_yaml({"optim.momentum": [1]}, {"optim.momentun": "interval(0, 1)"}).check_spelling(
        params
    )
    Space.from_yaml({}, {"something.else": "interval(0, 1)"}).check_spelling(params)


def test_a_plain_value_fixes_and_removes_the_axis() -> None:
    space, forwarded = applied("data.batch_size=16", "optim.lr=0.5")
    assert space.paths() == []
    assert forwarded == ["params.data.batch_size=16", "params.optim.lr=0.5"]


def test_a_sweep_moves_a_parameter() -> None:
    space, forwarded = applied("data.batch_size=range(8, 65, 8)", "optim.lr=0.1,0.2")
    assert list(space.grid) == ["optim.lr"]
    assert space.search["data.batch_size"] == Searched("data.batch_size", "int", 8, 64, step=8)
    assert forwarded == []


@pytest.mark.parametrize(
    ("texts", "values", "forwarded"),
    [
        (["optim.wd=1,2", "optim.wd=3"], None, ["params.optim.wd=3"]),
        (["optim.wd=3", "optim.wd=1,2"], (1, 2), ["params.optim.wd=3"]),
        (["optim.wd=1,2", "optim.wd=3,4"], (3, 4), []),
        (["params.optim.wd=1,2"], (1, 2), []),
        (["grid.optim.wd=[1,2]"], (1, 2), []),
        (["grid.optim.wd=1,2"], (1, 2), []),
        (["grid={optim.wd: [1,2]}"], (1, 2), []),
        (["optim.wd=1,2", "~grid.optim.wd"], None, []),
        (["optim.wd=1,2", "grid.optim.wd=null"], None, []),
        (["optim.wd=1,2", "~optim.wd"], None, ["~params.optim.wd"]),
        (["optim.wd=1,2", "optim={wd: 3}"], None, ["params.optim={wd: 3}"]),
    ],
)
def test_the_last_word_wins(
    texts: list[str], values: tuple[int, ...] | None, forwarded: list[str]
) -> None:
    space, words = applied(*texts)
    assert (space.grid["optim.wd"].values if "optim.wd" in space.grid else None) == values
    assert words == forwarded


def test_whole_sections_can_be_taken_back() -> None:
    space, _ = applied("~grid", "~search")
    assert space.paths() == []


def test_a_search_word_is_read_as_yaml_is() -> None:
    space, _ = applied("search.data.batch_size=[8,16]", "search.optim.wd=interval(0, 1)")
    assert space.grid == {}
    assert space.search["data.batch_size"].choices == (8, 16)
    assert space.search["optim.wd"].kind == "float"


def test_a_new_parameter_needs_a_plus() -> None:
    assert "write +optim.momentum=0.9" in refusal("optim.momentum=0.9")
    assert "write +optim.momentum=interval(0, 1)" in refusal("optim.momentum=interval(0, 1)")
    assert applied("+optim.momentum=0.9")[1] == ["+params.optim.momentum=0.9"]
    assert applied("++optim.momentum=0.9", "optim.momentum=1")[1] == [
        "++params.optim.momentum=0.9",
        "params.optim.momentum=1",
    ]
    assert "optim.momentum" in applied("+optim.momentum=interval(0, 1)")[0].search


def test_a_parameter_that_only_the_grid_names_can_be_fixed() -> None:
    space = Space.from_yaml({"batch": [1, 2]}, {})
    assert apply_to_params(read_words(["batch=3"], ()), {}, space) == ["++params.batch=3"]
    assert space.grid == {}


def test_list_elements_are_paths_too() -> None:
    assert applied("model.layers.0.width=8,16")[0].grid["model.layers.0.width"].values == (8, 16)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["optm.lr=1"], ["optm.lr", "did you mean 'optim.lr'"]),
        (["lr=1"], ["did you mean 'optim.lr'"]),
        (["~optim.lrr"], ["did you mean 'optim.lr'"]),
        (["budgett.trials=1"], ["did you mean 'budget.trials'"]),
        (["grid.optm.lr=1,2"], ["did you mean 'optim.lr'"]),
        (
            ["~grid.data.batchsize"],
            ["grid has no data.batchsize", "did you mean 'data.batch_size'"],
        ),
        (["model=3"], ["model is a section", "model.act=…", "++model=3"]),
        (["model=choice({act: a},{act: b})", "model.act=relu"], ["model.act lies below model"]),
        (["model=choice({act: a},{act: b})", "model.act=a,b"], ["model.act lies below model"]),
        (["+data.batch_size.x=1,2"], ["lies below data.batch_size"]),
        (["params=3"], ["params is a section"]),
        (["optim.lr='tag(log, interval(0.1, 1))'"], ["'optim.lr=tag(log, interval(0.1, 1))'"]),
        (["+act='choice(tanh,relu)'"], ["inner quotes out: '+act=choice(tanh,relu)'"]),
        (["~optim.lr=1,2"], ["a sweep belongs to one parameter"]),
        (["worker.devices=0,1"], ["worker.devices=[a,b]"]),
        (["budget.trials=10,20"], ["one value"]),
        (["study.name=a,b"], ["one value"]),
        (["hydra.run.dir=a,b"], ["one value"]),
        (["experiment.x=1"], ["experiment=name"]),
        (["foo/bar=1"], ["no config group 'foo/bar'"]),
        (["lr"], ["key=value"]),
        (["=3"], []),
    ],
)
def test_words_without_meaning_are_refused(texts: list[str], words: list[str]) -> None:
    message = refusal(*texts)
    for word in words:
        assert word in message


def test_the_first_part_of_a_key_decides_its_role() -> None:
    texts = [
        "sampler=gp",
        "sampler@x=gp",
        "sampler.n=1",
        "optim.lr=1",
        "params.study.x=1",
        "grid.a=[1]",
        "hydra.run.dir=x",
        "+model/net=a",
    ]
    roles = [word.role for word in read_words(texts, {"sampler", "model/net"})]
    assert roles == ["group", "group", "setting", "param", "param", "grid", "hydra", "group"]


@pytest.mark.parametrize(
    "url", ["postgresql://u:p,a(b'c@h/d", "postgresql://u:p@h/d?x=${y}", "null", ""]
)
def test_a_storage_url_is_taken_as_typed(url: str) -> None:
    assert take_url(["a=1", f"+storage.url={url}", "b=2"]) == (["a=1", "b=2"], url)
    assert take_url([f"storage.url='{url}'"]) == ([], url)
