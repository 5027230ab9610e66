"""`best`: overrides that rerun the trial, and a config to train with that holds no secret."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from omegaconf import OmegaConf

from orchestrator.cli import best as best_command
from orchestrator.cli.call import Call
from orchestrator.config import compose
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.model import Axis, Budget, StudySpec
from orchestrator.store import AttemptRow, CodeRow, Progress, StudyRow, TrialRow

PARAMS: dict[str, Any] = {
    "lr": "${linear_scaling:0.1,256,${data.batch}}",
    "decays": [{"wd": "${sqrt_scaling:1,4,${data.batch}}"}, "${lr}"],
    "secret": "${oc.env:TOKEN}",
    "from_secret": "${linear_scaling:1,1,${oc.env:TOKEN}}",
    "behind": "${linear_scaling:1,1,${secret}}",
    "hidden": "${linear_scaling:1,1,${oc.${kind}:TOKEN}}",
    "kind": "env",
    "unknown": "${linear_scaling:1,1,${my.resolver:3}}",
    "data": {"batch": 64},
    "name": "sgd",
}


class Reads:
    """A study with the trials given, as `store.reads` tells it."""

    def __init__(self, spec: StudySpec, trials: list[TrialRow]) -> None:
        self._spec, self._trials = spec, trials

    def find(self, _name: str | None) -> Any:
        return SimpleNamespace(study_id=1, name=self._spec.name)

    def spec(self, _study_id: int) -> StudySpec:
        return self._spec

    def trials(self, _study_id: int, *, number: int) -> list[TrialRow]:
        return [trial for trial in self._trials if trial.number == number]

    def contenders(self, _study_id: int, _directions: Sequence[str]) -> list[TrialRow]:
        return self._trials

    def attempts(self, _study_id: int, _number: int) -> list[AttemptRow]:
        return [AttemptRow(1, "here", "/runs", "completed", None)]

    def code(self, _study_id: int) -> list[CodeRow]:
        return []

    def artifacts(self, _study_id: int, numbers: list[int]) -> dict[int, list[Any]]:
        return {number: [] for number in numbers}

    def progress(self, row: StudyRow, *, maximize: bool, most: int | None) -> Progress:
        study: Any = SimpleNamespace(study_id=1, state="FINISHED", reason="budget spent")
        counts = {"total": 1, "spent": 1, "running": 0, "waiting": 0, "failed": 0, "n_cells": 0}
        return cast(
            Progress, SimpleNamespace(study=study, cells=(), maximize=maximize, most=most, **counts)
        )


def best(params: dict[str, Any], *words: str, as_json: bool = False, count: int = 1) -> int:
    """Runs the command over a study whose best trials took `params`."""
    spec = StudySpec(
        name="s",
        directions=("maximize", "minimize") if count > 1 else ("maximize",),
        metrics=("acc", "cost") if count > 1 else ("acc",),
        objective={"_target_": "my.train"},
        params=PARAMS,
        grid=tuple(Axis(path, (value,)) for path, value in params.items()),
        search=(),
        budget=Budget(2),
    )
    values = [(float(k), float(k)) if count > 1 else (1.0,) for k in range(count)]
    trials = [
        TrialRow(k, "COMPLETE", 0, params, values[k], 1, None, None, None) for k in range(count)
    ]
    call = Call.parse("best", [*words, *(["--json"] if as_json else [])])

    @contextmanager
    def store(_self: Call) -> Iterator[Any]:
        chains = SimpleNamespace(of=lambda _: None)
        yield SimpleNamespace(reads=Reads(spec, trials), chains=chains)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "reading", store)
        return best_command.run(call)


AWKWARD = {
    "data.batch": 128,
    "name": 'it\'s "odd" \\',
    "worker.count": "-5",
    "new": ["日本", {"a": None}],
}


def check_rerun(words: list[str], values: dict[str, Any]) -> None:
    base = ["study.name=s", "objective._target_=my.train", "+data.batch=64", "+name=sgd"]
    params = compose("launch", [*base, *words]).config.params
    for path, value in values.items():
        found = OmegaConf.select(params, path)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_the_printed_overrides_rerun_the_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert best(AWKWARD) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["params"] == AWKWARD
    line = text.splitlines()[-1]
    assert line.startswith("# ")
    check_rerun(shlex.split(line[2:]), AWKWARD)


def test_the_overrides_in_json_are_quoted_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    values = {**AWKWARD, "name": "two\nlines; $(rm x)"}
    best(values, as_json=True)
    (entry,) = json.loads(capsys.readouterr().out)["best"]
    assert entry["overrides"][0] == "data.batch=128"
    assert entry["overrides"][2].startswith("'++params.worker.count=")
    check_rerun(shlex.split(" ".join(entry["overrides"])), values)


def test_a_line_break_does_not_end_the_comment(capsys: pytest.CaptureFixture[str]) -> None:
    best({"name": "two\nlines"})
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["params"] == {"name": "two\nlines"}
    assert "--json" in text


def test_what_no_override_can_say_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    best({"model": {"ü": 1}})
    assert "out=FILE" in capsys.readouterr().out
    best({"model": {"ü": 1}}, as_json=True)
    assert json.loads(capsys.readouterr().out)["best"][0]["overrides"] is None


def test_the_config_written_needs_no_resolver_of_ours_and_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "7777")
    best({"data.batch": 128, "new.depth": 3}, f"out={tmp_path}/best.yaml")
    text = (tmp_path / "best.yaml").read_text()
    assert "7777" not in text
    written = yaml.safe_load(text)
    assert written["lr"] == 0.05
    assert written["decays"] == [{"wd": pytest.approx(32**0.5)}, "${lr}"]
    assert (written["data"], written["new"]) == ({"batch": 128}, {"depth": 3})
    for name in ("secret", "from_secret", "behind", "hidden", "unknown"):
        assert written[name] == PARAMS[name]
    assert OmegaConf.create({"x": "${oc.env:TOKEN}"}).x == "7777"  # the resolver is as it was


def test_out_needs_one_file_and_one_trial(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^out=: needs a file name, such as out=best\.yaml$"):
        best({}, "out=")
    with pytest.raises(ConfigError, match=r"trials 0, 1\); choose one with trial=N"):
        best({}, f"out={tmp_path}/x.yaml", count=2)
    best({}, f"out={tmp_path}/x.yaml", "trial=1", count=2)
    with pytest.raises(OrchestratorError) as caught:
        best({}, f"out={tmp_path}/no/x.yaml")
    where = (
        f"No such file or directory ({tmp_path}/no); give a file that you can write, or out=- to "
        "print the params"
    )
    assert str(caught.value) == f"out={tmp_path}/no/x.yaml: {where}"
    with pytest.raises(
        ConfigError,
        match=r"^out=- prints the params to train with and nothing else; leave out --json$",
    ):
        best({}, "out=-", as_json=True)


def test_out_prints_the_very_config_that_it_would_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best({"data.batch": 128}, f"out={tmp_path}/best.yaml")
    capsys.readouterr()
    assert best({"data.batch": 128}, "out=-") == 0
    assert capsys.readouterr().out == (tmp_path / "best.yaml").read_text()


def test_text_that_reorders_is_escaped_in_yaml_that_reads_back() -> None:
    data = {"params": {"a": "\u202eevil", "b": "日本"}}
    text = best_command._yaml(data)
    assert text.isascii()
    assert yaml.safe_load(text) == data
    assert "日本" in best_command._yaml({"b": "日本"})
