"""The shipped group of schedules: an axis where a config has it, and in nobody's way elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from orchestrator.config import compose, study_spec
from orchestrator.config.loader import SHIPPED_IN_PARAMS
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec
from orchestrator.runner.child.merge import build_config
from tests.support.commands import ROOT
from tests.support.running import make_job, objective

HEAD = "# @package _global_\nobjective: {_target_: a.b}\nbudget: {trials: 8}\n"
FILES = {
    "experiment/with": HEAD + "study: {name: with}\ndefaults: [/schedule: onecycle]\n"
    "params: {lr: 0.1}\n",
    "experiment/own": HEAD + "study: {name: own}\ndefaults: [/schedule: onecycle]\n"
    "params: {lr: 0.1, schedule: {low: 0.2, warmup: 3}}\n",
    "experiment/word": HEAD + "study: {name: word}\nparams: {lr: 0.1, schedule: linear}\n",
    "experiment/axis": HEAD + "study: {name: axis}\nparams: {schedule: a}\n"
    "grid: {schedule: [a, cosine]}\n",
    "experiment/without": HEAD + "study: {name: without}\nparams: {lr: 0.1}\n",
}


def written(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("conf"), FILES)


def spec(mine: Path, *words: str) -> StudySpec:
    return study_spec(compose("launch", words, config_dir=str(mine)))


def test_every_shipped_group_that_fills_params_is_known() -> None:
    found = {
        path.parent.name
        for path in (ROOT / "conf").glob("*/*.yaml")
        if path.read_text(encoding="utf-8").startswith("# @package params.")
    }
    assert found == set(SHIPPED_IN_PARAMS)


def test_a_schedule_is_chosen_by_its_name(mine: Path) -> None:
    assert spec(mine, "experiment=with").params["schedule"] == {
        "name": "onecycle",
        "low": 0.04,
        "rise": 0.3,
        "final": 1e-4,
    }
    assert spec(mine, "experiment=with", "schedule=wsd").params["schedule"]["name"] == "wsd"
    added = spec(mine, "experiment=without", "+schedule=cosine")
    assert added.params["schedule"] == {"name": "cosine", "low": 1e-3}
    own = spec(mine, "experiment=own", "schedule=cosine").params["schedule"]
    assert own == {"name": "cosine", "low": 0.2, "warmup": 3}


@pytest.mark.parametrize(
    "words",
    [
        ("experiment=with", "schedule=cosine,onecycle"),
        ("experiment=with", "grid.schedule=[cosine,onecycle]"),
        ("experiment=without", "+schedule=cosine,onecycle"),
    ],
)
def test_schedules_are_an_axis_by_their_names(mine: Path, words: tuple[str, ...]) -> None:
    study = spec(mine, *words, "schedule.low=interval(0.01, 0.1)")
    (axis,) = study.grid
    assert (axis.path, axis.values) == ("schedule", ("cosine", "onecycle"))
    assert [content["name"] for content in axis.contents] == ["cosine", "onecycle"]
    assert [searched.path for searched in study.search] == ["schedule.low"]


def test_the_example_has_schedules_as_an_axis() -> None:
    study = study_spec(compose("launch", ["experiment=digits", "schedule=cosine,onecycle"]))
    axis = next(axis for axis in study.grid if axis.path == "schedule")
    assert axis.values == ("cosine", "onecycle")
    plain = study_spec(compose("launch", ["experiment=digits"]))
    assert plain.params["schedule"]["name"] == "onecycle"
    assert [axis.path for axis in plain.grid] == ["data.batch_size", "model.hidden_units"]


def test_elsewhere_the_name_is_a_parameter_like_any_other(mine: Path) -> None:
    assert spec(mine, "experiment=word", "schedule=cosine").params["schedule"] == "cosine"
    assert spec(mine, "experiment=without", "+params.schedule=3").params["schedule"] == 3
    for words in (
        ("experiment=word", "schedule=cosine,linear"),
        ("experiment=word", "grid.schedule=[cosine,linear]"),
    ):
        (axis,) = spec(mine, *words).grid
        assert (axis.values, axis.contents) == (("cosine", "linear"), ())
    (axis,) = spec(mine, "experiment=axis").grid
    assert axis.values == ("a", "cosine")
    (searched,) = spec(mine, "experiment=word", "schedule=choice(cosine, b)").search
    assert searched.choices == ("cosine", "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("experiment=with", "schedule=cosin"), r"did you mean 'cosine'\?.*written params.schedul"),
        (("experiment=without", "+schedule=0.5"), "a parameter of that name is written params.sch"),
        (("experiment=without", "schedule=cosine"), "to add it to params write \\+schedule=cosine"),
        (("experiment=nowhere", "schedule=cosine"), "experiment=nowhere: there is no such option"),
    ],
)
def test_what_is_refused(mine: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(mine, *words)


def test_a_group_of_ones_own_with_this_name_stays_what_it_was(tmp_path: Path) -> None:
    mine = written(
        tmp_path,
        FILES
        | {
            "schedule/fast": "# @package params.train.pace\nkind: fast\n",
            "schedule/slow": "# @package params.train.pace\nkind: slow\n",
        },
    )
    (axis,) = spec(mine, "experiment=without", "+schedule=fast,slow").grid
    assert (axis.path, axis.values) == ("train.pace", ("fast", "slow"))
    (axis,) = spec(mine, "experiment=without", "+grid.train.pace=[fast,slow]").grid
    assert [content["kind"] for content in axis.contents] == ["fast", "slow"]


def test_ones_own_schedule_joins_the_shipped_ones(tmp_path: Path) -> None:
    own = {"schedule/mine": "# @package params.schedule\nname: cosine\nlow: 0.5\n"}
    mine = written(tmp_path, FILES | own)
    (axis,) = spec(mine, "experiment=with", "schedule=mine,onecycle").grid
    assert axis.contents[0] == {"name": "cosine", "low": 0.5}


def test_the_power_of_the_batch_may_be_searched_and_is_resolved_in_the_trial(
    mine: Path, tmp_path: Path
) -> None:
    written(
        mine,
        {
            "experiment/scaled": HEAD + "study: {name: scaled}\n"
            "params:\n  power: 1.0\n  batch: 32\n"
            "  lr: ${power_scaling:0.1,32,${batch},${power}}\n"
            "  schedule: {warmup_steps: '${warmup_steps:10000,${batch}}'}\n"
            "grid: {batch: [32, 128]}\nsearch: {power: 'interval(0, 1)'}\n"
        },
    )
    study = spec(mine, "experiment=scaled")
    values = {"batch": 128, "power": 0.5}
    cfg, _ = build_config(
        make_job(tmp_path, objective("fine"), params=dict(study.params), values=values)
    )
    assert OmegaConf.to_container(cfg) == {
        "power": 0.5,
        "batch": 128,
        "lr": pytest.approx(0.2),
        "schedule": {"warmup_steps": 79},
    }
