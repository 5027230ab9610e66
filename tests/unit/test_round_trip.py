"""The overrides that `best` prints, laid over the words of the study, run exactly the parameters of
the trial.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.cli import best
from orchestrator.config import compose, study_spec, trial_words
from orchestrator.model import StudySpec, at, same_value
from orchestrator.runner import Job
from orchestrator.runner.child.merge import Settled, build_config
from tests.support.asking import AskedStudy
from tests.unit.test_config_words import TEXTS, VALUES

_SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        1,
        "1",
        64,
        "64",
        1.5,
        1e-05,
        -2.5e-300,
        0.1,
        "true",
        "null",
        *[t for t in TEXTS if "$" not in t],
    ]
).filter(lambda value: value != "???")
_PATHS = ("optim.lr", "optim.name", "model", "new.one", "study.x", "worker", "layers", "data.batch")
_NAMES = (
    "lr",
    "width0",
    "encoder/lr",
    "learning rate",
    "optimizer",
    "optimizer_lr",
    "deep.er",
    "x-y",
    "sampler",
    "größe",
)


def _storable(value: Any) -> bool:
    text = json.dumps(value)
    whole = [value] if isinstance(value, int) else []
    return "$" not in text and "???" not in text and all(abs(number) < 2**53 for number in whole)


def _different(values: Sequence[Any]) -> list[Any]:
    """Those that an axis may hold together: 1 equals true there."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


_ANY = VALUES.filter(_storable)
_AXES = st.dictionaries(
    st.sampled_from(_PATHS), st.lists(_ANY, min_size=1, max_size=3).map(_different), max_size=3
).filter(
    lambda grid: all(isinstance(value, Mapping) for value in grid.get("model", ()))
)  # a section of params
_SEARCHED = st.sampled_from(
    [
        "interval(0.0, 1.0)",
        "tag(log, interval(1e-9, 1e-3))",
        "int(interval(1, 8))",
        "range(0, 0.5, 0.1)",
        [None, "1", 1],
        ["a b", ""],
    ]
)
_ASKED = st.dictionaries(
    st.sampled_from(_NAMES),
    st.lists(_SCALARS, min_size=1, max_size=3).map(_different)
    | st.sampled_from(["float", "log", "int"]),
    max_size=4,
)


@st.composite
def studies(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A study as YAML has it, what its objective asks for as it runs, and the cell of the trial."""
    grid = draw(_AXES)
    free = [path for path in ("optim.lr", "optim.decay", "kind", "gamma") if path not in grid]
    search: dict[str, Any] = {
        path: draw(_SEARCHED) for path in draw(st.sets(st.sampled_from(free)))
    }
    for path in search:
        conditional: bool = draw(st.booleans()) if grid else False
        if conditional:
            axis = draw(st.sampled_from(sorted(grid)))
            # As a list, unless that is a value itself: then it would be ambiguous.
            if not any(same_value([grid[axis][0]], value) for value in grid[axis]):
                search[path] = {"space": search[path], "when": {axis: [grid[axis][0]]}}
    return {"grid": grid, "search": search}, draw(_ASKED), draw(st.integers(0, 100))


PARAMS = {
    "optim": {"lr": 0.1, "name": "sgd", "decay": "${.lr}"},
    "model": {"kind": "mlp", "width": 8},
    "data": {"batch": 32},
    "worker": "plain",
    "layers": [1, 2],
    "base": {"batch": 32},
    "scaled": "${linear_scaling:0.5,32,${base.batch}}",
}


def asks(trial: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the objective gets for the names that it asks for."""
    for name, how in wanted.items():
        if how == "float":
            trial.suggest_float(name, -1.0, 100.0)
        elif how == "log":
            trial.suggest_float(name, 1e-7, 100.0, log=True)
        elif how == "int":
            trial.suggest_int(name, 1, 100)
        else:
            trial.suggest_categorical(name, how)
    asked: dict[str, Any] = trial.params
    return asked


def run(
    spec: StudySpec, cell: int, wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """A trial of that cell as it runs: what it was created with, what it asked for,
    and its `cfg`.
    """
    study = AskedStudy(spec)
    values = dict(study.search.ask(list(spec.cells())[cell], ticket=cell, retry=0).values)
    place: dict[str, Any] = {
        "run_dir": Path("unused"),
        "checkpoint_dir": Path("unused"),
        "resumed": False,
    }
    place["contents"] = spec.contents(values)
    job = Job(
        "s",
        0,
        1,
        0,
        "cpu",
        spec.params,
        values,
        {"_target_": "my.train"},
        ("value",),
        ("minimize",),
        **place,
    )
    cfg, _ = build_config(job)
    trial = study.start(cell=cell, settled=Settled(job, cfg))
    asked = asks(trial, {name: how for name, how in wanted.items() if not spec.declares(name)})
    return values, asked, OmegaConf.to_container(cfg)


def without(cfg: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of `cfg` that are not what an objective asks for under these names."""
    return {
        key: value
        for key, value in cfg.items()
        if key not in {name.partition(".")[0] for name in names}
    }


@settings(
    deadline=None,
    max_examples=8,
    phases=(Phase.explicit, Phase.generate),  # composing is too slow to shrink what fails
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(studies())
@example(
    (
        {"grid": {"model": [{"kind": "cnn"}, {}], "new.one": [[1, "1"], "1", 1]}, "search": {}},
        {"lr": "float", "scaled": "log"},
        2,
    )
)
@example(({"grid": {"new.one": [[{"a": 1}, {}]], "layers": [{"deep": 1}]}, "search": {}}, {}, 0))
@example(
    (
        {"grid": {"model": [{"a.b": 1, "c d": [None]}]}, "search": {}},
        {"encoder/lr": [None, "1", 1]},
        0,
    )
)
@example(
    (
        {
            "grid": {"new.one": ["a", "b"]},
            "search": {"gamma": {"space": [1e-05, 2], "when": {"new.one": "b"}}},
        },
        {},
        0,
    )
)
def test_the_printed_overrides_run_exactly_the_parameters_of_the_trial(
    tmp_path: Path, study: tuple[dict[str, Any], dict[str, Any], int]
) -> None:
    sections, wanted, cell = study
    (tmp_path / "experiment").mkdir(exist_ok=True)
    config = {
        "study": {"name": "first"},
        "objective": {"_target_": "my.train"},
        "params": PARAMS,
        "budget": {"trials": 99, "per_cell": 2},
    }
    text = yaml.safe_dump({**config, **sections}, allow_unicode=True)
    (tmp_path / "experiment" / "one.yaml").write_text(f"# @package _global_\n{text}")
    words = ["experiment=one"]
    composed = compose("launch", words, config_dir=str(tmp_path))
    spec = study_spec(composed)
    values, asked, cfg = run(spec, cell % spec.n_cells, wanted)

    trial: Any = SimpleNamespace(params={**values, **asked})
    printed = trial_words(spec, trial.params, composed.groups)
    if printed is None:  # a key that the grammar cannot write
        assert "größe" in asked or not all(
            json.dumps(value, ensure_ascii=False).isascii() for value in values.values()
        )
        return
    again = [*words, "study.name=other", *shlex.split(" ".join(printed)), "budget.trials=1"]
    other = study_spec(compose("launch", again, config_dir=str(tmp_path)))
    assert other.n_cells == 1
    assert not other.search
    _, asked_again, cfg_again = run(other, 0, wanted)
    assert json.dumps(asked_again) == json.dumps(asked)
    assert json.dumps(without(cfg_again, asked), sort_keys=True) == json.dumps(
        without(cfg, asked), sort_keys=True
    )

    written = OmegaConf.to_container(best.trained_with(spec, trial), resolve=True)
    for name, value in trial.params.items():
        assert same_value(at(written, name), value), "out=best.yaml says the same"


GROUPS = {
    "arch/mlp": "# @package params.arch\nkind: mlp\nlr: ${lr}\noptimizer: {lr: 0.1}\nhidden: 8\n",
    "arch/cnn": (
        "# @package params.arch\nkind: cnn\nlr: ${linear_scaling:${lr},32,64}\noptimizer: "
        "{lr: 0.2}\ndepth: 2\n"
    ),
    "optim/sgd": "# @package params.optim\nlr: 0.1\n",
    "optim/adam": "# @package params.optim\nlr: 0.01\nbetas: [0.9, 0.99]\n",
    "net/small": "width: 4\n",
    "net/big": "width: 40\n",
    "experiment/one": "# @package _global_\ndefaults: [{/arch: mlp}]\nstudy: {name: first}\n"
    "objective: {_target_: my.train}\n"
    "params: {lr: 0.1, epochs: 3}\nbudget: {trials: 9}\n",
    "experiment/two": "# @package _global_\ndefaults: [one]\n"
    "grid: {arch: [mlp, cnn], optim: [sgd, adam]}\n"
    "search: {arch.depth: {space: 'range(1, 4)', when: {arch: cnn}}, lr: 'interval(0.1, 1)'}\n",
}


@pytest.mark.parametrize(
    "words",
    [
        [
            "experiment=one",
            "arch=mlp,cnn",
            "arch.optimizer.lr=tag(log, interval(1e-4, 0.1))",
            "lr=interval(0.1, 1)",
        ],
        ["experiment=one", "arch=mlp,cnn", "+arch.hidden=16", "+arch.norm=choice(batch, layer)"],
        ["experiment=one", "+net@params.net=small,big", "+net@params.other=big,small"],
        ["experiment=two"],
        *(
            pytest.param(words, marks=pytest.mark.nightly)
            for words in (
                ["experiment=one", "+optim=sgd,adam", "optim.lr=interval(0, 1)"],
                ["experiment=one", "+optim=adam", "arch=mlp,cnn", "optim=sgd,adam"],
                ["experiment=two", "arch=cnn,mlp", "+arch.width=1,2"],
            )
        ),
    ],
)
def test_the_printed_overrides_of_a_study_of_config_groups_run_the_trial(
    tmp_path: Path, words: list[str]
) -> None:
    for name, text in GROUPS.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    composed = compose("launch", words, config_dir=str(tmp_path))
    spec = study_spec(composed)
    for cell in range(spec.n_cells):
        values, _, cfg = run(spec, cell, {})
        printed = trial_words(spec, values, composed.groups)
        assert printed is not None
        again = [*words, "study.name=other", *shlex.split(" ".join(printed)), "budget.trials=1"]
        other = study_spec(compose("launch", again, config_dir=str(tmp_path)))
        assert (other.n_cells, other.search) == (1, ())
        assert run(other, 0, {})[2] == cfg
