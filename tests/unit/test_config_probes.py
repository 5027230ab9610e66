"""The section ``probes``: what it takes, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import compose, study_spec
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec

OWN = (
    "study.name=own",
    "objective._target_=my.train",
    "+data.batch_size=64,128",
    "+optim.lr=tag(log, interval(1e-6, 10))",
    "+optim.name=choice(sgd, adam)",
)
LR = "orchestrator.training.probes.lr_range"
EXPERIMENT = """# @package _global_
params: {data: {batch_size: 64}, optim: {lr: 0.1}}
grid: {data.batch_size: [64, 128]}
search: {optim.lr: "tag(log, interval(1e-6, 10))"}
probes:
  lr: {_target_: orchestrator.training.probes.lr_range, build: my.build, parameter: optim.lr}
  own: {_target_: my.probe, deep: {a: 1}}
"""


def spec(*words: str, directory: Path | None = None) -> StudySpec:
    named = ("study.name=own", "objective._target_=my.train", "budget.trials=9")
    base = OWN if directory is None else named
    composed = compose(
        "launch", [*base, *words], config_dir=None if directory is None else str(directory)
    )
    return study_spec(composed)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(EXPERIMENT, encoding="utf-8")
    return tmp_path


def test_there_is_none_by_default_and_a_study_without_is_stored_as_before() -> None:
    assert spec().probes == {}
    assert "probes" not in spec().to_json()


def test_the_command_line_can_declare_one_and_change_one_of_a_file(experiment: Path) -> None:
    typed = spec(f"probes.lr._target_={LR}", "probes.lr.parameter=optim.lr", "probes.lr.steps=50")
    assert typed.probes == {"lr": {"_target_": LR, "parameter": "optim.lr", "steps": 50}}
    of_file = spec("experiment=mine", "probes.lr.steps=50", directory=experiment)
    assert of_file.probes["lr"]["steps"] == 50
    assert of_file.probes["own"] == {"_target_": "my.probe", "deep": {"a": 1}}
    assert StudySpec.from_json(of_file.to_json()) == of_file


@pytest.mark.parametrize("word", ["probes.lr=null", "optim.lr=0.01", "~probes.lr"])
def test_one_that_is_cancelled_or_has_nothing_to_narrow_is_left_out(
    experiment: Path, word: str
) -> None:
    assert list(spec("experiment=mine", word, directory=experiment).probes) == ["own"]


def test_an_axis_that_the_command_line_fixes_takes_its_probe_along(experiment: Path) -> None:
    words = (
        "probes.fits._target_=orchestrator.training.probes.batch_fits",
        "probes.fits.axis=data.batch_size",
    )
    assert "fits" in spec("experiment=mine", *words, directory=experiment).probes
    fixed = spec("experiment=mine", *words, "data.batch_size=64", directory=experiment)
    assert "fits" not in fixed.probes


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("probes.lr=5",), r"probes\.lr=5: must be a mapping with _target_"),
        (("probes.lr.steps=5",), r"probes\.lr\._target_ must be given"),
        (("probes.lr._target_=lr_range",), r"probes\.lr\._target_=lr_range: must be a dotted name"),
        (
            ("probes.lr._target_=my.probe", "probes.lr._partial_=true"),
            r"probes\.lr\._partial_: every key but _target_ and version is passed",
        ),
        (
            ("probes={_2nd: {_target_: my.probe}}",),
            r"probes: the name '_2nd' must begin with a letter",
        ),
        (
            (f"probes.lr._target_={LR}", "probes.lr.parameter=optim.l"),
            r"probes\.lr\.parameter=optim\.l: must be a searched parameter \(did you mean "
            r"'optim\.lr'\?\); searched: optim\.lr, optim\.name",
        ),
        (
            (f"probes.lr._target_={LR}", "probes.lr.parameter=optim.name"),
            r"probes\.lr\.parameter=optim\.name: must be a number, and this one is one of several",
        ),
        (
            ("probes.b._target_=orchestrator.training.probes.batch_fits", "probes.b.axis=batch"),
            r"probes\.b\.axis=batch: must be an axis of the grid.*; the grid has data\.batch_size",
        ),
        (
            ("probes.lr._target_=my.probe", "probes.lr.x=${now:%Y}"),
            r"probes\.lr\.x=.*this is resolved on the worker, where Hydra does not run",
        ),
    ],
)
def test_a_mistake_is_named_with_the_rule(words: tuple[str, ...], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        spec(*words)


def test_a_probe_is_not_part_of_what_a_study_is() -> None:
    with_one: Any = spec("probes.p._target_=my.probe")
    assert with_one.spec_hash() == spec().spec_hash()
