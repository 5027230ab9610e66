"""The settings of a study: what an older or a later version stored goes on as it did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.model import StudySpec
from orchestrator.settings import (
    PRUNERS,
    SAMPLERS,
    RunnerSettings,
    Unreadable,
    pruner_settings,
    sampler_settings,
)
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
    assert study.to_json()[group] == vars(chosen)


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
