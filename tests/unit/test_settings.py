"""A setting's default stands in several places that people read; they say the same."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from orchestrator.config import schema
from orchestrator.search.pruners import _PRUNERS
from orchestrator.search.samplers import _SAMPLERS
from tests.support.commands import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
CHOICES = [("sampler", name) for name in schema.SAMPLERS] + [
    ("pruner", name) for name in schema.PRUNERS
]


def defaults(of: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(of) if field.name != "name"}


def shipped(path: str) -> dict[str, Any]:
    read = yaml.safe_load((ROOT / "conf" / path).read_text())
    return {key: value for key, value in read.items() if key not in ("name", "defaults")}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_sampler_and_a_pruner_have_one_set_of_defaults(group: str, name: str) -> None:
    declared = defaults((schema.SAMPLERS if group == "sampler" else schema.PRUNERS)[name])
    used = _SAMPLERS[name][1] if group == "sampler" else _PRUNERS[name]
    assert shipped(f"{group}/{name}.yaml") == declared
    assert {key: option.default for key, option in used.items()} == declared


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_the_reference_says_the_defaults_of_samplers_and_pruners(group: str, name: str) -> None:
    (row,) = re.findall(
        rf"(?m)^\| `{name}`(?: \(default\))? \|(.*)$",
        REFERENCE.partition(f"`{group}=…`")[2].partition("\n\n`")[0],
    )
    for key, default in defaults(
        (schema.SAMPLERS if group == "sampler" else schema.PRUNERS)[name]
    ).items():
        assert f"`{group}.{key}={yaml.safe_dump(default).split(chr(10))[0]}`" in row


def test_the_runner_has_one_set_of_defaults() -> None:
    assert shipped("runner/default.yaml") == defaults(schema.RunnerConfig)


@pytest.mark.parametrize("setting", schema.settings())
def test_the_reference_has_every_setting(setting: str) -> None:
    # by sampler=gp and the like
    chosen = setting in ("sampler.name", "pruner.name", "storage.kind")
    assert chosen or f"`{setting}" in REFERENCE
