"""Axes whose values hold something: options of config groups, mappings, what they refer to, and
what lies inside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import compose, study_spec
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, StudySpec

HEAD = "# @package _global_\n"
OWN = (
    "defaults: [{/arch: mlp}]\nstudy: {name: own}\nobjective: {_target_: a.b}\nbudget: {trials: "
    "40}\n"
)
PARAMS = "params: {lr: 0.1, batch: 32, optim: {name: sgd, lr: 0.1}}\n"
MLP = {"kind": "mlp", "lr": "${lr}", "width": 4, "optimizer": {"lr": 0.1}}
CNN = {"kind": "cnn", "lr": "${..lr}", "depth": 2, "optimizer": {"lr": 0.2, "momentum": 0.9}}
FILES = {
    "arch/mlp": "# @package params.arch\nkind: mlp\nlr: ${lr}\nwidth: 4\noptimizer: {lr: 0.1}\n",
    "arch/cnn": (
        "# @package params.arch\nkind: cnn\nlr: ${..lr}\ndepth: 2\noptimizer: {lr: 0.2, "
        "momentum: 0.9}\n"
    ),
    "arch/far": (
        "# @package params.arch\nkind: far\nlr: ${linear_scaling:${params.lr},32,${batch}}\n"
    ),
    "arch/lost": "# @package params.arch\nkind: lost\nlr: ${learning_rate}\n",
    "arch/two": "# @package _global_\nparams: {arch: {kind: two}, seed: 3}\n",
    "data/tiny": "# @package params.inputs.data\nrows: 3\n",
    "opt/sgd": "# @package params.opt\nname: sgd\n",
    "opt/adam": "# @package params.opt\nname: adam\n",
    "experiment/own": HEAD + OWN + PARAMS,
    "experiment/yaml": HEAD + OWN + PARAMS + "grid: {arch: [mlp, cnn]}\n"
    "search: {lr: 'interval(0.1, 1)', arch.depth: {space: 'range(1, 4)', when: {arch: cnn}}}\n",
    "experiment/opts": HEAD + OWN + PARAMS + "grid: {opt: [sgd, adam]}\n",
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        path = directory / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


def spec(mine: Path, *words: str) -> StudySpec:
    return study_spec(compose("launch", words, config_dir=str(mine)))


def refusal(mine: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(mine, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_are_an_axis_of_their_names_and_keep_what_they_refer_to(mine: Path) -> None:
    axis = Axis("arch", ("mlp", "cnn"), (MLP, CNN), "arch")
    assert spec(mine, "experiment=own", "arch=mlp,cnn").grid == (axis,)
    written = spec(mine, "experiment=yaml")
    assert written.grid == (axis,)
    assert {s.path: s.when for s in written.search} == {"lr": {}, "arch.depth": {"arch": ("cnn",)}}
    assert spec(mine, "experiment=own", "grid.arch=[cnn,mlp]").grid[0].values == ("cnn", "mlp")
    assert spec(mine, "experiment=opts").grid == (
        Axis("opt", ("sgd", "adam"), ({"name": "sgd"}, {"name": "adam"}), "+opt"),
    )
    assert spec(mine, "experiment=own", "+opt=sgd,adam").grid[0].group == "+opt"


def test_an_option_that_is_chosen_takes_the_axis_out_and_settles_conditions(mine: Path) -> None:
    cnn = spec(mine, "experiment=yaml", "arch=cnn")
    assert (cnn.grid, cnn.params["arch"], [s.path for s in cnn.search]) == (
        (),
        CNN,
        ["lr", "arch.depth"],
    )
    assert [s.path for s in spec(mine, "experiment=yaml", "arch=mlp").search] == ["lr"]
    assert spec(mine, "experiment=own", "arch=mlp,cnn", "arch=cnn").grid == ()
    assert len(spec(mine, "experiment=own", "arch=cnn", "arch=mlp,cnn").grid) == 1
    assert spec(mine, "experiment=opts", "+opt=sgd").grid == ()


def test_the_last_word_about_a_group_wins(mine: Path) -> None:
    added = spec(
        mine, "experiment=own", "+opt=sgd,adam", "opt=adam", "params.opt.name=choice(a, b)"
    )
    assert (added.grid, added.params["opt"]) == ((), {"name": "adam"})
    assert [a.group for a in spec(mine, "experiment=own", "+opt=sgd", "+opt=adam,sgd").grid] == [
        "+opt"
    ]
    without = spec(mine, "experiment=own", "arch=mlp,cnn", "~arch")
    assert (without.grid, "arch" in without.params) == ((), False)
    assert [a.values for a in spec(mine, "experiment=own", "~arch", "arch=mlp,cnn").grid] == [
        ("mlp", "cnn")
    ]
    assert spec(mine, "experiment=own", "~arch", "+arch=cnn").params["arch"] == CNN
    assert "opt" not in spec(mine, "experiment=own", "+opt=sgd,adam", "~opt").params


def test_an_axis_that_is_taken_back_leaves_what_is_searched_inside(mine: Path) -> None:
    for word in ("grid.arch=null", "~grid.arch"):
        left = spec(mine, "experiment=yaml", "search.arch.optimizer.lr=[0.1,0.2]", word)
        assert (left.grid, [s.path for s in left.search]) == ((), ["lr", "arch.optimizer.lr"])


def test_a_value_is_added_to_all_options_whichever_have_it(mine: Path) -> None:
    for words in (["arch=mlp,cnn"], ["arch=mlp,cnn", "arch=cnn"]):
        added = spec(mine, "experiment=own", *words, "+arch.depth=7")
        held = added.grid[0].contents if added.grid else (added.params["arch"],)
        assert [content["depth"] for content in held] == [7] * len(held)


def test_what_lies_inside_an_option_is_searched_swept_or_set(mine: Path) -> None:
    words = ("experiment=own", "arch=mlp,cnn")
    assert (
        spec(mine, *words, "arch.optimizer.lr=tag(log, interval(1e-4, 0.1))").search[0].path
        == "arch.optimizer.lr"
    )
    typed_first = spec(mine, "experiment=own", "arch.optimizer.lr=0.1,0.2", "arch=mlp,cnn")
    assert [axis.path for axis in typed_first.grid] == ["arch", "arch.optimizer.lr"]
    assert spec(mine, *words, "+arch.norm=choice(batch, layer)").search[0].path == "arch.norm"
    for order in (words, words[::-1]):
        for content in spec(mine, "arch.optimizer.lr=0.5", *order).grid[0].contents:
            assert content["optimizer"]["lr"] == 0.5
    mappings = (
        "+grid.head=[{units: 8, lr: 1},{units: 16, lr: 2}]",
        "+head.units=int(interval(4, 32))",
    )
    assert spec(mine, "experiment=own", *mappings).search[0].path == "head.units"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["arch=mlp,cnn", "arch.depth=range(1, 4)"],
            ["search.arch.depth: arch=mlp has no depth", "when: {arch: cnn}"],
        ),
        (
            ["arch=mlp,cnn", "arch.optimizer.lrr=interval(0, 1)"],
            ["arch=mlp has no optimizer.lrr", "did you mean 'optimizer.lr'"],
        ),
        (
            ["arch=mlp,cnn", "arch.depth=1,2"],
            ["grid.arch.depth: arch=mlp has no depth", "when: arch: cnn"],
        ),
        (
            ["arch=mlp,cnn", "arch.depth=3"],
            ["arch.depth: arch=mlp has no depth; to give it to every option write +arch.depth=…"],
        ),
        (["arch=mlp,cnn", "~arch.width"], ["arch.width: arch=cnn has no width"]),
        (
            ["+grid.data=[tiny,x]"],
            [
                "grid.data: the config group data fills params.inputs.data; declare",
                "grid.inputs.data",
            ],
        ),
        (["params.arch=mlp"], ["arch is a section of params; choose an option", "(arch=…)"]),
        (
            ["grid.arch=[mlp,cnm]"],
            ["grid.arch=cnm", "did you mean 'cnn'", "has cnn, far, lost, mlp, two"],
        ),
        (["grid.arch=[mlp,null]"], ["grid.arch=null", "has no such option"]),
        (["search.arch=[mlp,cnn]"], ["arch is a config group", "arch=mlp,cnn"]),
        (
            ["grid.optim=[sgd,adam]"],
            ["grid.optim=sgd", "section of params", "optim.name", "# @package params.optim"],
        ),
        (["optim=1,2"], ["grid.optim=1", "section of params"]),
        (["search.optim=[sgd,adam]"], ["search.optim=sgd", "section of params"]),
        (["arch=mlp,two"], ["arch=two: also differs from arch=mlp in params.seed"]),
        (
            ["arch=far"],
            [
                "params.arch.lr=${linear_scaling:${params.lr}",
                "write ${linear_scaling:${lr},32,${batch}}",
            ],
        ),
        (
            ["arch=mlp,far"],
            [
                "arch=far: lr=${linear",
                "interpolations see params as their root: write ${linear_scaling:${lr}",
            ],
        ),
        (["arch=mlp,lost"], ["arch=lost: params.arch.lr:", "'learning_rate' not found"]),
        (["batch=1,${params.lr}"], ["grid.batch=${params.lr}", "write ${lr}"]),
        (["+grid.x=[{lr:${oc.select:params.lr,1}}]"], ["write ${oc.select:lr,1}"]),
        (["+x=choice(1,${params.lr})"], ["search.x=${params.lr}", "write ${lr}"]),
        (["+objective.lr=${params.lr}"], ["objective.lr=${params.lr}", "write ${lr}"]),
        (["batch=1,${now:%Y}"], ["grid.batch=${now:%Y}", "resolved on the worker"]),
        (["sampler=gp,tpe"], ["a sweep over a config group is not possible", "sampler=gp"]),
    ],
)
def test_what_an_axis_cannot_mean_is_said_in_one_line(
    mine: Path, words: list[str], expected: list[str]
) -> None:
    message = refusal(mine, "experiment=own", *words)
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (
            "arch.width: {space: 'range(1, 4)', when: {arch: cnn}}",
            ["arch=cnn has no width", "let when name only those that have it: mlp"],
        ),
        (
            "lr: {space: 'interval(0, 1)', when: {arch: cnm}}",
            ["cnm is not on the axis", "mlp, cnn"],
        ),
        ("arch.depth: 'range(1, 4)'", ["search: {arch.depth: {space: …, when: {arch: cnn}}}"]),
    ],
)
def test_a_condition_on_an_option_that_has_no_such_path_is_refused(
    mine: Path, declared: str, expected: list[str]
) -> None:
    text = f"{OWN}{PARAMS}grid: {{arch: [mlp, cnn]}}\nsearch: {{{declared}}}\n"
    (mine / "experiment/condition.yaml").write_text(HEAD + text)
    message = refusal(mine, "experiment=condition")
    for part in expected:
        assert part in message


def test_values_in_yaml_are_not_resolved_and_declarations_are(mine: Path) -> None:
    text = (
        "grid: {head: [{lr: '${lr}'}, {lr: '${linear_scaling:${lr},32,${batch}}'}], batch: "
        "'${params.sizes}',\n"
        "  two: ['${batch}', 1]}\n"
        "search: {kind: 'choice(${lr}, b)', lr: 'interval(${params.low}, 1)'}\n"
    )
    (mine / "experiment/text.yaml").write_text(
        HEAD + OWN + "params: {lr: 0.1, batch: 1, low: 0.5, sizes: [1, 2]}\n" + text
    )
    found = spec(mine, "experiment=text")
    assert {axis.path: axis.values for axis in found.grid} == {
        "head": ({"lr": "${lr}"}, {"lr": "${linear_scaling:${lr},32,${batch}}"}),
        "batch": (1, 2),
        "two": ("${batch}", 1),
    }
    assert {s.path: (s.choices, s.low) for s in found.search} == {
        "kind": (("${lr}", "b"), None),
        "lr": ((), 0.5),
    }


# ---------------------------------------------------------------------- groups that the program has


PROGRAM = ("study.name=p", "objective.command=python app.py", "budget.trials=4")


@pytest.mark.parametrize(
    ("words", "values", "searched", "params"),
    [
        (["+model=a,b", "+model.optim.lr=interval(0, 1)"], ("a", "b"), ["model.optim.lr"], {}),
        (["+model.optim.lr=0.1", "model=a,b"], ("a", "b"), [], {"model": {"optim": {"lr": 0.1}}}),
        (["++model=b", "++model.optim.lr=0.1"], ("b",), [], {"model": {"optim": {"lr": 0.1}}}),
        (["+model=b", "model.optim.lr=interval(0, 1)"], ("b",), ["model.optim.lr"], {}),
        (["+model=a,null", "+model.lr=1"], ("a", None), [], {"model": {"lr": 1}}),
    ],
)
def test_words_with_something_below_them_are_options_of_the_programs_groups(
    mine: Path, words: list[str], values: Any, searched: list[str], params: Any
) -> None:
    found = spec(mine, *PROGRAM, *words)
    assert found.grid == (Axis("model", values, group="model"),)
    assert ([s.path for s in found.search], found.params) == (searched, params)
    assert found.options == ("model",)


def test_a_program_that_gets_no_overrides_has_no_groups(mine: Path) -> None:
    words = ("+model=a,b", "+model.lr=interval(0, 1)")
    assert "model.lr lies below model, whose values are not mappings" in refusal(
        mine, *PROGRAM, "+objective.overrides=false", *words
    )
    assert spec(mine, *PROGRAM, "+model=a,b").grid == (Axis("model", ("a", "b")),)


def test_a_word_of_yaml_with_something_below_it_is_an_option_too(mine: Path) -> None:
    text = "study: {name: p}\nobjective: {command: t}\nbudget: {trials: 2}\nparams: {model: b}\n"
    text += "search: {model.lr: 'interval(0, 1)'}\n"
    (mine / "experiment/word.yaml").write_text(HEAD + text)
    found = spec(mine, "experiment=word", "++model.wd=1")
    assert (found.grid, found.params) == (
        (Axis("model", ("b",), group="model"),),
        {"model": {"wd": 1}},
    )
    assert spec(mine, "experiment=word", "model=a,b").grid == (
        Axis("model", ("a", "b"), group="model"),
    )
