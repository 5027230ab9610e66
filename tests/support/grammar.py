"""The override grammar, a line each: as it is typed in bash, as YAML says the same, and the space
that must come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.model import Searched

PARAMS = {
    "data": {"batch_size": 64},
    "optim": {"lr": 0.01, "momentum": 0.9},
    "model": {"hidden": 128, "act": "relu", "depth": 2, "bias": True},
}


@dataclass(frozen=True)
class Line:
    """`bash` as typed after `launch experiment=…`; `yaml` the body of grid and search that means
    the same.
    """

    bash: str
    yaml: dict[str, dict[str, Any]]
    grid: dict[str, list[Any]]
    search: list[Searched]


LINES = {
    "simple list": Line(
        "data.batch_size=32,64,128",
        {"grid": {"data.batch_size": [32, 64, 128]}},
        {"data.batch_size": [32, 64, 128]},
        [],
    ),
    "params spelled out": Line(
        "params.data.batch_size=32,64",
        {"grid": {"data": {"batch_size": [32, 64]}}},
        {"data.batch_size": [32, 64]},
        [],
    ),
    "tagged choice is an axis": Line(
        "'model.act=tag(grid, choice(relu, gelu))'",
        {"grid": {"model.act": "choice(relu, gelu)"}},
        {"model.act": ["relu", "gelu"]},
        [],
    ),
    "tagged range is an axis": Line(
        "'model.depth=tag(grid, range(1, 4))'",
        {"grid": {"model.depth": "range(1, 4)"}},
        {"model.depth": [1, 2, 3]},
        [],
    ),
    "booleans": Line(
        "model.bias=true,false",
        {"grid": {"model.bias": [True, False]}},
        {"model.bias": [True, False]},
        [],
    ),
    "mixed types and null": Line(
        "'model.act=relu,null,3'",
        {"grid": {"model.act": ["relu", None, 3]}},
        {"model.act": ["relu", None, 3]},
        [],
    ),
    "interval is searched": Line(
        "'optim.momentum=interval(0.5, 0.99)'",
        {"search": {"optim.momentum": "interval(0.5, 0.99)"}},
        {},
        [Searched("optim.momentum", "float", 0.5, 0.99)],
    ),
    "log interval": Line(
        "'optim.lr=tag(log, interval(1e-4, 1e-1))'",
        {"search": {"optim.lr": "tag(log, interval(1e-4, 1e-1))"}},
        {},
        [Searched("optim.lr", "float", 1e-4, 1e-1, log=True)],
    ),
    "whole numbers, both ends": Line(
        "'model.depth=int(interval(1, 3))'",
        {"search": {"model": {"depth": "int(interval(1, 3))"}}},
        {},
        [Searched("model.depth", "int", 1, 3)],
    ),
    "whole numbers by their logarithm": Line(
        "'model.hidden=int(tag(log, interval(16, 512)))'",
        {"search": {"model.hidden": "int(tag(log, interval(16, 512)))"}},
        {},
        [Searched("model.hidden", "int", 16, 512, log=True)],
    ),
    "half-open range": Line(
        "'model.hidden=range(16, 64, 16)'",
        {"search": {"model.hidden": "range(16, 64, 16)"}},
        {},
        [Searched("model.hidden", "int", 16, 48, 16)],
    ),
    "choice is searched": Line(
        "'model.act=choice(relu, gelu)'",
        {"search": {"model.act": ["relu", "gelu"]}},
        {},
        [Searched("model.act", "categorical", choices=("relu", "gelu"))],
    ),
    "the last word wins": Line(
        "optim.lr=0.1,0.2 'optim.lr=interval(0.01, 0.2)' model.depth=1,2 model.depth=3",
        {"search": {"optim.lr": "interval(0.01, 0.2)"}},
        {},
        [Searched("optim.lr", "float", 0.01, 0.2)],
    ),
    "a new parameter": Line(
        "'+optim.decay=tag(log, interval(1e-6, 1e-2))'",
        {"search": {"optim.decay": "tag(log, interval(1e-6, 1e-2))"}},
        {},
        [Searched("optim.decay", "float", 1e-6, 1e-2, log=True)],
    ),
}


def write_grammar_experiment(folder: Path, **sections: object) -> None:
    """Writes ``experiment/grammar.yaml`` into a config directory, with `sections` in it."""
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    study = {
        "study": {"name": "grammar"},
        "objective": {"_target_": "a.b"},
        "params": PARAMS,
        "budget": {"trials": 20},
    }
    text = "# @package _global_\n" + yaml.safe_dump({**study, **sections})
    (folder / "experiment" / "grammar.yaml").write_text(text)
