"""Every line of the override grammar, from bash and as YAML, comes out as the same space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator import config
from orchestrator.model import StudySpec
from tests.support.commands import Commands
from tests.support.grammar import LINES, write_grammar_experiment

pytestmark = pytest.mark.acceptance


def composed(folder: Path, *overrides: str) -> StudySpec:
    return config.study_spec(
        config.compose("launch", ["experiment=grammar", *overrides], config_dir=str(folder))
    )


@pytest.mark.parametrize("name", LINES)
def test_as_yaml(name: str, tmp_path: Path) -> None:
    write_grammar_experiment(tmp_path, **LINES[name].yaml)
    spec = composed(tmp_path)
    assert {axis.path: list(axis.values) for axis in spec.grid} == LINES[name].grid
    assert list(spec.search) == LINES[name].search


def test_from_bash(tmp_path: Path) -> None:
    """One shell reads every line; it says the words that it made of them, each with a NUL behind
    it.
    """
    write_grammar_experiment(tmp_path)
    script = "\n".join(f"printf '%s\\0' {line.bash}; echo" for line in LINES.values())
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=Commands(None, tmp_path).cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    words = [line.split("\0")[:-1] for line in done.stdout.splitlines()]
    for (name, line), overrides in zip(LINES.items(), words, strict=True):
        spec = composed(tmp_path, *overrides)
        assert {axis.path: list(axis.values) for axis in spec.grid} == line.grid, name
        assert list(spec.search) == line.search, name


def test_the_command_itself_takes_them_from_bash(tmp_path: Path) -> None:
    write_grammar_experiment(tmp_path)
    line = "data.batch_size=32,64 'optim.lr=tag(log, interval(1e-4, 1e-1))' model.act=gelu"
    command = (
        f"{sys.executable} -m orchestrator launch --config-dir {tmp_path} experiment=grammar "
        f"{line} --cfg job"
    )
    commands = Commands(None, tmp_path)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=commands.cwd,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = yaml.safe_load(done.stdout)
    assert said["grid"] == {"data.batch_size": [32, 64]}
    assert said["search"] == {"optim.lr": "tag(log, interval(0.0001, 0.1))"}
    assert said["params"]["model"]["act"] == "gelu"
