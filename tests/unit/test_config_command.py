"""`objective.command` in the config: what becomes of it, and what is said to the user before any
work starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import compose, study_spec
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec
from orchestrator.program import label

STUDY: dict[str, Any] = {
    "study": {"name": "own", "metric": "loss"},
    "params": {
        "presets": {"adam": {"lr": 0.1}},
        "optim": "${presets.adam}",
        "lay er": 1,
        "depth": 2,
    },
    "search": {"depth": "int(interval(1, 3))"},
    "budget": {"trials": 3},
}


def spec(directory: Path, objective: Any, *words: str, **changes: Any) -> StudySpec:
    path = directory / "experiment" / "own.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "# @package _global_\n" + yaml.safe_dump({**STUDY, **changes, "objective": objective})
    )
    return study_spec(compose("launch", ["experiment=own", *words], config_dir=str(directory)))


def refusal(directory: Path, objective: Any, *words: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(directory, objective, *words, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_command_is_stored_as_words_whichever_way_it_was_written(tmp_path: Path) -> None:
    text = {"command": "python 'my train.py' --lr={optim.lr} {trial.seed} {{x}} {lay er}"}
    words = ["python", "my train.py", "--lr={optim.lr}", "{trial.seed}", "{{x}}", "{lay", "er}"]
    message = refusal(tmp_path, text)
    assert "'{lay' has an unmatched '{'; write '{{'" in message
    listed = {"command": [*words[:5], "{lay er}", 3], "result": "last", "overrides": "auto"}
    stored = spec(tmp_path, listed)
    assert stored.objective == {"command": [*words[:5], "{lay er}", "3"]}
    quoted = spec(
        tmp_path,
        {"command": "python 'my train.py' --lr={optim.lr} {trial.seed} {{x}} '{lay er}' 3"},
    )
    assert quoted.spec_hash() == stored.spec_hash()
    assert (
        label(stored.objective)
        == "python 'my train.py' --lr={optim.lr} {trial.seed} {{x}} '{lay er}' 3"
    )
    other = spec(tmp_path, {**listed, "result": {"regex": "loss: (.*)"}})
    assert other.spec_hash() != stored.spec_hash()
    assert other.objective["result"] == {"regex": "loss: (.*)"}


def test_the_command_line_gives_a_command_in_place_of_a_function(tmp_path: Path) -> None:
    words = ("objective.command='./train.sh {depth}'", "~objective._target_")
    assert spec(tmp_path, {"_target_": "my.train"}, *words).objective == {
        "command": ["./train.sh", "{depth}"]
    }
    assert spec(tmp_path, {"_target_": "my.train", "command": None}).objective == {
        "_target_": "my.train"
    }


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"command": "train {depht}"}, ["objective.command: {depht}", "did you mean 'depth'"]),
        ({"command": "train {trial.numer}"}, ["{trial.numer}", "did you mean 'trial.number'"]),
        ({"command": "train {lr}"}, ["{lr}", "did you mean"]),
        ({"command": "train ${depth}"}, ["write {optim.lr}, not ${optim.lr}"]),
        ({"command": "awk '{print $1}'"}, ["{print $1}", "write {{ and }}"]),
        ({"command": "train }"}, ["unmatched '}'; write '}}'"]),
        ({"command": "train {}"}, ["a placeholder without a name"]),
        ({"command": "train 'a"}, ['objective.command="train \'a": no closing quotation']),
        ({"command": "  "}, ["must name a program"]),
        ({"command": []}, ["must name a program"]),
        ({"command": 3}, ["objective.command=3: must be a command"]),
        ({"command": ["train", {"depth": None}]}, ["{'depth': None} is not a word; quote it"]),
        ({"command": "{depth} x"}, ["the program itself ('{depth}') must be fixed"]),
        ({"command": "a\0b"}, ["NUL"]),
        (
            {"command": "t", "_target_": "my.train"},
            ["_target_=my.train and a command", "~objective._target_"],
        ),
        ({"command": "t", "override": True}, ["objective.override:", "did you mean 'overrides'"]),
        (
            {"command": "t", "overrides": "yes please"},
            ["objective.overrides=yes please: must be auto, true or false"],
        ),
        (
            {"command": "t {depth}", "result": "lst"},
            ["objective.result=lst", "did you mean 'last'"],
        ),
        (
            {"command": "t {depth}", "result": {"regexp": "x"}},
            ["objective.result={'regexp': 'x'}", "{regex:"],
        ),
        ({"command": "t {depth}", "result": {"regex": "x"}}, ["has 0 groups; must have one group"]),
        (
            {"command": "t {depth}", "result": {"regex": "("}},
            ["objective.result.regex='('", "unterminated"],
        ),
        (
            {"command": "t {depth}", "result": {"regex": 1}},
            ["objective.result.regex=1: must be a string"],
        ),
        (
            {"command": "t {depth}", "result": {"metric": ["a", "b"]}},
            ["objective.result.metric=['a', 'b']", "must be a key"],
        ),
        ({"command": "t"}, ["params.lay er", "objective.overrides=false"]),
        (
            {"command": "t {flag:depth}"},
            ["{flag:depth} needs a parameter that is true or false, and depth is 1"],
        ),
        ({"command": "t {flag:presets}"}, ["{flag:presets} needs a parameter that is true"]),
        ({"command": "t {flag:dept}"}, ["{dept} is not a parameter", "did you mean 'depth'"]),
        ({"command": "t {flag:trial.seed}"}, ["trial.seed is neither true nor false"]),
        ({"command": "t {flags:depth}"}, ["{flags:depth} is not a form", "did you mean 'flag'"]),
        ({"command": "t {bool:depth}"}, ["{bool:depth} is not a form", "{flag:train.save}"]),
        ({"command": "t --x={flag:depth}"}, ["'--x={flag:depth}' is not a flag", "of its own"]),
        ({"command": "t {flag:}"}, ["'{flag:}' is not a flag"]),
        ({"command": "t {flag:depth::--no}"}, ["'{flag:depth::--no}' is not a flag"]),
        ({"command": "t {flag:depth:-a:-b:-c}"}, ["is not a flag"]),
        ({"command": "{flag:depth} t"}, ["the program itself ('{flag:depth}') must be fixed"]),
    ],
)
def test_a_command_that_no_trial_could_run_is_refused_in_one_line(
    tmp_path: Path, objective: Any, expected: list[str]
) -> None:
    message = refusal(tmp_path, objective)
    for words in expected:
        assert words in message


def test_what_depends_on_the_rest_of_the_study_is_refused_too(tmp_path: Path) -> None:
    assert "{trial.number} is both a fact about the trial and a parameter" in refusal(
        tmp_path, {"command": "t {trial.number}"}, params={"trial": {"number": 1}, "depth": 1}
    )
    some_cells = {"momentum": {"space": "interval(0, 1)", "when": {"kind": "sgd"}}}
    conditional = {
        "params": {"kind": "sgd"},
        "grid": {"kind": ["sgd", "adam"]},
        "search": some_cells,
    }
    assert "{momentum} is not a parameter that every trial has" in refusal(
        tmp_path, {"command": "t {momentum}"}, **conditional
    )
    spec(tmp_path, {"command": "t {kind}"}, **conditional)
    two = {"study": {"name": "x", "metric": ["a", "b"], "direction": ["minimize", "minimize"]}}
    assert "2 groups (a, b)" in refusal(
        tmp_path, {"command": "t {depth}", "result": {"regex": "(x)"}}, **two
    )
    message = refusal(tmp_path, {"command": "t {depth}", "result": {"metric": "a"}}, **two)
    assert "a list of 2 keys of the program's JSON lines, one each for a, b" in message
    shapes = {"params": {"shape": None}, "grid": {"shape": [None, {"1 x": 2}]}, "search": {}}
    assert "no way to write" in refusal(tmp_path, {"command": "t"}, **shapes)
    spec(tmp_path, {"command": "t {shape}"}, **shapes)


def test_the_shipped_example_is_good() -> None:
    shipped = study_spec(compose("launch", ["experiment=command"]))
    assert shipped.objective["command"][:3] == [
        "python",
        "-m",
        "orchestrator.examples.train_script",
    ]
    assert "{optim.lr}" in shipped.objective["command"]


def test_a_flag_may_be_a_default_an_axis_or_searched(tmp_path: Path) -> None:
    command = {"command": "./t {flag:save} {flag:trial.resumed}"}
    params = {**STUDY["params"], "save": False}
    for words in ((), ("save=true,false",), ("save=choice(true,false)",)):
        assert spec(tmp_path, command, *words, params=params).objective == {
            "command": ["./t", "{flag:save}", "{flag:trial.resumed}"]
        }
    message = refusal(tmp_path, command, "save=true,null", params=params)
    assert message.endswith("and save is null")
    late = {**params, "on": True, "save": "${on}"}
    assert spec(tmp_path, command, params=late).params["save"] == "${on}"


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_options_of_a_program_need_no_plus_on_the_command_line(tmp_path: Path, prefix: str) -> None:
    words = (f"{prefix}objective.overrides=false", f"{prefix}objective.result.metric=acc")
    wanted = {"command": ["./t"], "overrides": False, "result": {"metric": "acc"}}
    assert spec(tmp_path, {"command": "./t"}, *words).objective == wanted
    typed = ("objective.command=./t", "~objective._target_")
    assert spec(tmp_path, {"_target_": "my.train"}, *typed, *words).objective == wanted


def test_a_function_has_no_options_of_a_program(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"_target_": "my.train"}, "objective.overrides=true")
    assert "objective has no argument overrides; to add one write +objective" in message


def test_a_command_with_an_equals_sign_is_told_of_its_quotes(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"command": "./t"}, "objective.command=python t.py +x=1")
    right = "'objective.command=\"python train.py +x=1\"'"
    assert f"needs quotes inside the shell's: {right}" in message
    quoted = 'objective.command="python t.py +x=1 {depth}"'
    assert spec(tmp_path, {"command": "./t"}, quoted).objective["command"][2] == "+x=1"
