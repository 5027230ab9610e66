"""Every setting stands once: what is written from it is fresh, and what is stored of it is read as
it was meant.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from docs.write_settings import files
from orchestrator.config import compose, parse_flags, show
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec
from orchestrator.settings import (
    HOST,
    PRUNERS,
    SAMPLERS,
    SECTIONS_OF_STUDY,
    RunnerSettings,
    StorageConfig,
    Unreadable,
    WorkerConfig,
    knobs,
    pruner_settings,
    sampler_settings,
)
from orchestrator.settings.describe import written
from tests.support.commands import ROOT
from tests.support.studies import spec

CHOICES = [("sampler", name) for name in SAMPLERS] + [("pruner", name) for name in PRUNERS]


def as_stored(**changes: Any) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(json.dumps(spec().to_json() | changes))
    return stored


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_sampler_and_pruner_is_read_as_it_was_written(group: str, name: str) -> None:
    chosen = sampler_settings(name) if group == "sampler" else pruner_settings(name)
    study = StudySpec.from_json(as_stored(**{group: vars(chosen)}))
    assert getattr(study, group) == chosen
    in_effect = study.pruner_in_effect if group == "pruner" else chosen
    assert study.to_json()[group] == vars(in_effect)


def test_what_an_older_version_did_not_store_has_its_default() -> None:
    old = as_stored(
        sampler={"name": "tpe"},
        pruner={"name": "median", "n_startup_trials": 7},
        runner={"max_attempts": 3},
    )
    del old["infeasible"], old["budget"]["max_failures_at_start"]
    study = StudySpec.from_json(old)
    assert study.sampler == sampler_settings("tpe")
    assert study.pruner == pruner_settings("median", n_startup_trials=7)
    assert study.runner == RunnerSettings(max_attempts=3)
    assert study.budget.max_failures_at_start == "auto"
    assert study.infeasible.monotone == {}
    assert study.spec_hash() == spec().spec_hash()


def test_what_a_later_version_stored_besides_is_passed_over_where_nothing_depends_on_it() -> None:
    study = StudySpec.from_json(
        as_stored(runner={"grace_s": 2, "nice": 5}, infeasible={"max_per_cell": 1, "axis": "a"})
    )
    assert study.runner == RunnerSettings(grace_s=2)
    assert study.infeasible.max_per_cell == 1


def test_a_sampler_of_a_later_version_keeps_its_settings() -> None:
    later = {"name": "tpe", "depth": {"of": [1, 2]}}
    study = StudySpec.from_json(as_stored(sampler=later))
    assert isinstance(study.sampler, Unreadable)
    assert (study.sampler.name, study.to_json()["sampler"]) == ("tpe", later)
    assert StudySpec.from_json(study.to_json()) == study


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_written_from_the_settings_is_fresh(path: Any) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run: make settings"


@pytest.mark.parametrize("kind", ["embedded", "postgres"])
def test_the_two_kinds_of_storage_have_the_settings_of_storage(kind: str) -> None:
    shipped = yaml.safe_load((ROOT / "conf" / "storage" / f"{kind}.yaml").read_text())
    assert list(shipped) == list(knobs(StorageConfig))
    assert shipped["kind"] == kind
    if kind == "embedded":
        assert shipped == {
            key: yaml.safe_load(written(knob)) for key, knob in knobs(StorageConfig).items()
        }


def test_every_default_keeps_its_rule_and_every_setting_says_what_it_means() -> None:
    for schema in (
        *SAMPLERS.values(),
        *PRUNERS.values(),
        *SECTIONS_OF_STUDY.values(),
        *HOST.values(),
    ):
        for name, knob in knobs(schema).items():
            assert knob.meaning, f"{schema.__name__}.{name}"
            assert knob.rule is None or knob.default is None or knob.rule.holds(knob.default), (
                f"{schema.__name__}.{name}"
            )


def test_help_says_what_every_setting_means() -> None:
    flags = parse_flags(["--help", "pruner=median"])
    text = show(flags, compose("launch", flags.overrides))
    for schema in (SAMPLERS["tpe"], PRUNERS["median"], RunnerSettings, WorkerConfig):
        for field in dataclasses.fields(schema):
            first = knobs(schema)[field.name].meaning.replace("`", "").split()[:3]
            assert f"# {' '.join(first)}" in text, field.name


def test_null_is_refused_where_it_stands_for_nothing() -> None:
    for pruner, field in (("median", "n_startup_trials"), ("hyperband", "max_resource")):
        with pytest.raises(ConfigError, match=rf"pruner\.{field}=None: must be 'auto' or a whole"):
            pruner_settings(pruner, **{field: None})


def test_bounds_are_stored_where_there_are_any_and_are_no_part_of_a_studys_identity() -> None:
    plain = spec()
    bounded = replace(plain, bounds=((0.0, None),))
    assert "bounds" not in plain.to_json(), "older workers could not read it"
    assert StudySpec.from_json(json.loads(json.dumps(bounded.to_json()))).bounds == ((0.0, None),)
    assert StudySpec.from_json(as_stored()).bounds == ()
    assert bounded.spec_hash() == plain.spec_hash()


def test_a_result_outside_the_bounds_is_named_with_its_trial() -> None:
    study = replace(spec(), metrics=("acc", "ms"), bounds=((0.0, 1.0), (0.0, None)))
    assert study.out_of_bounds(7, (1.0, 1e9)) is None
    message = study.out_of_bounds(7, (1.0000001, -2.0))
    assert message is not None
    assert "trial 7" in message
    assert "acc=1.0000001 (0 to 1), ms=-2.0 (at least 0)" in message
    assert spec().out_of_bounds(7, (5.0,)) is None
