"""Hydra's own flags."""

from __future__ import annotations

import logging

import pytest
import yaml

from orchestrator.config import Flags, compose, parse_flags, show
from orchestrator.errors import ConfigError


def shown(*argv: str, command: str = "launch") -> str:
    flags = parse_flags(argv)
    assert flags.shows
    composed = compose(
        command, flags.overrides, config_dir=flags.config_dir, config_name=flags.config_name
    )
    return show(flags, composed)


def test_flags_and_overrides_may_be_mixed() -> None:
    flags = parse_flags(
        [
            "a=1",
            "--config-dir",
            "d",
            "~b",
            "-cn",
            "mine",
            "+c=-1",
            "--cfg",
            "job",
            "--resolve",
            "x=y z",
        ]
    )
    assert flags == Flags(
        ("a=1", "~b", "+c=-1", "x=y z"), cfg="job", resolve=True, config_dir="d", config_name="mine"
    )
    assert parse_flags([]) == Flags()
    assert parse_flags(["--run", "a=1"]).overrides == ("a=1",)
    assert parse_flags(["--version"]).version
    assert parse_flags(["a=1", "--info"]).info == "all"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-m"], ["leave the flag out", "data.batch_size=32,64"]),
        (["a=1,2", "--multirun"], ["leave the flag out"]),
        (["--config-path", "x"], ["--config-dir"]),
        (["--experimental-rerun", "x"], ["continues its study"]),
        (["--shell-completion"], ["not supported"]),
        (["--config-dri", "x"], ["--config-dri", "did you mean '--config-dir'"]),
        (["--cfg", "jobs"], ["jobs"]),
        (["--cfg"], ["--cfg"]),
        (["--cfg", "job", "--help"], ["only one of --cfg, --help"]),
        (["--resolve"], ["--resolve"]),
        (["--package", "x"], ["--package"]),
        (["--pack", "x", "--cfg", "job"], ["--pack"]),
    ],
)
def test_flags_without_meaning_are_refused(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flags(argv)
    for word in words:
        assert word in str(caught.value)


def test_cfg_job_shows_grid_and_search_after_the_command_line() -> None:
    config = yaml.safe_load(shown("experiment=digits", "optim.lr=1,2", "--cfg", "job"))
    assert config["grid"] == {
        "data.batch_size": [32, 64, 128],
        "model.hidden_units": [64, 256],
        "optim.lr": [1, 2],
    }
    assert "optim.lr" not in config["search"]
    assert list(config)[:3] == ["study", "objective", "params"]
    assert "hydra" not in config


def test_cfg_can_be_narrowed_and_resolved() -> None:
    assert shown("experiment=digits", "--cfg", "job", "--package", "budget.trials") == "48\n"
    assert shown("experiment=digits", "--cfg=job", "--package=budget").startswith(
        "# @package budget\ntrials: 48\n"
    )
    resolved = yaml.safe_load(
        shown("experiment=digits", "+train.lr=${optim.lr}", "--cfg=job", "--resolve")
    )
    assert resolved["params"]["train"]["lr"] == 0.01  # params is its own root
    assert resolved["paths"]["runs"].endswith("/runs")
    assert "outputs/" in shown("--cfg=hydra", "--resolve", "--package=hydra.run.dir")
    assert set(yaml.safe_load(shown("--cfg=all"))) > {"hydra", "study"}
    with pytest.raises(ConfigError, match=r"--package budgett: .*did you mean 'budget'"):
        shown("--cfg=job", "--package=budgett")


def test_help_lists_groups_and_examples() -> None:
    text = shown("--help")
    assert text.startswith("== Config groups")
    assert "sampler: gp, nsga2, qmc, random, tpe" in text
    assert "orchestrator launch experiment=digits" in text
    assert "tag(log, interval(1e-4, 1e-1))" in text
    assert "--multirun" in shown("--hydra-help")


def test_info_leaves_logging_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    text = shown("experiment=digits", "optim.lr=0.5", "--info=searchpath")
    assert "Config search path" in text
    assert "sampler: tpe" in shown("--info=defaults-tree", command="worker")
    assert logging.getLogger().handlers == before
    assert capsys.readouterr().out == ""


def test_info_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    ours = logging.StreamHandler()
    logging.getLogger().addHandler(ours)
    try:
        text = shown("experiment=digits", "--info=defaults")
    finally:
        logging.getLogger().removeHandler(ours)
    assert text.count("Defaults List") == 1
    assert capsys.readouterr() == ("", "")
