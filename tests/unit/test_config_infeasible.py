"""The section ``infeasible``: what it takes, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import compose, study_spec
from orchestrator.errors import ConfigError

OWN = (
    "study.name=own",
    "objective._target_=my.train",
    "+data.batch_size=64,128,256",
    "+model.kind=cnn,vit",
    "+optim.lr=interval(0, 1)",
    "+data.workers=4",
    "budget.trials=99",
)


def infeasible(*words: str, directory: Path | None = None) -> dict[str, Any]:
    composed = compose(
        "launch", [*OWN, *words], config_dir=None if directory is None else str(directory)
    )
    return vars(study_spec(composed).infeasible)


def test_nothing_is_declared_by_default() -> None:
    assert infeasible() == {"max_per_cell": None, "monotone": {}}


@pytest.mark.parametrize(
    "word",
    [
        "infeasible.monotone.data.batch_size=memory",
        "infeasible.monotone={data: {batch_size: memory}}",
        "infeasible.monotone={data.batch_size: memory}",
    ],
)
def test_an_axis_is_named_in_any_spelling(word: str) -> None:
    assert infeasible(word, "infeasible.max_per_cell=2") == {
        "max_per_cell": 2,
        "monotone": {"data.batch_size": "memory"},
    }


def test_an_axis_that_the_command_line_fixes_is_left_out(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment" / "mine.yaml"
    experiment.parent.mkdir()
    experiment.write_text(
        "# @package _global_\nparams: {width: 1}\ngrid: {width: [1, 2]}\ninfeasible: {monotone: "
        "{width: memory}}\n",
        "utf-8",
    )
    assert infeasible("experiment=mine", directory=tmp_path)["monotone"] == {"width": "memory"}
    assert infeasible("experiment=mine", "width=2", directory=tmp_path)["monotone"] == {}
    assert infeasible("experiment=mine", "width=2,4", directory=tmp_path)["monotone"] == {
        "width": "memory"
    }
    assert (
        infeasible("experiment=mine", "infeasible.monotone.width=null", directory=tmp_path)[
            "monotone"
        ]
        == {}
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "infeasible.monotone.data.batch_sise=memory",
            "infeasible.monotone.data.batch_sise=memory: data.batch_sise is not an axis of the grid"
            " (did you mean 'data.batch_size'?); the grid has data.batch_size, model.kind",
        ),
        (
            "infeasible.monotone.optim.lr=memory",
            (
                "infeasible.monotone.optim.lr=memory: optim.lr is searched, and only a grid axis "
                "makes cells that can be closed"
            ),
        ),
        ("infeasible.monotone.data.workers=memory", "data.workers is not an axis of the grid"),
        (
            "infeasible.monotone.model.kind=memory",
            (
                "infeasible.monotone.model.kind=memory: the values of model.kind must be "
                "numbers, because other values have no"
            ),
        ),
        (
            "infeasible.monotone.data.batch_size=memroy",
            (
                "infeasible.monotone.data.batch_size=memroy: must be the word memory (did you "
                "mean 'memory'?)"
            ),
        ),
        (
            "infeasible.monotone.data.batch_size=true",
            "infeasible.monotone.data.batch_size=true: must be the word memory",
        ),
        (
            "infeasible.monotone=data.batch_size",
            "infeasible.monotone='data.batch_size': must name grid axes, such as",
        ),
        (
            "infeasible.monoton={}",
            "unknown setting infeasible.monoton (did you mean 'infeasible.monotone'?)",
        ),
        ("infeasible.max_per_cell=-1", "infeasible.max_per_cell=-1: must be from 0 to 1,000,000"),
        (
            "infeasible.max_per_cell=some",
            "infeasible.max_per_cell='some': must be a whole number or null",
        ),
        ("infeasible=off", "infeasible"),
    ],
)
def test_mistakes_name_field_value_and_rule(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        infeasible(word)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_axis_of_truth_values_has_no_order() -> None:
    with pytest.raises(ConfigError, match=r"the values of flag must be numbers.*it has true"):
        infeasible("+flag=true,false", "infeasible.monotone.flag=memory")
