"""Axes of a config group's options: of the study's own groups, and of those that the
program has.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from tests.support.commands import CONFIG, ROOT, Commands

pytestmark = pytest.mark.acceptance
ARCHS = (f"--config-dir={CONFIG}", "experiment=archs", "worker.count=1", "worker.prefetch=0")
APP = ROOT / "tests" / "support" / "hydra_app" / "train.py"


def trials_of(commands: Commands, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=str(commands.url)).trials


def test_the_options_of_a_group_are_cells_and_what_they_refer_to_is_the_trials_own(
    commands: Commands,
) -> None:
    said = commands.check("launch", *ARCHS)
    assert "arch=twin" not in said
    assert [
        line.split()[0] for line in said.splitlines() if line.startswith(("mlp ", "cnn ", "twin "))
    ] == [name for name in ("mlp", "cnn", "twin") for _ in range(2)]
    trials = trials_of(commands, "archs")
    assert len(trials) == 6
    for trial in trials:
        option, head, cfg = (
            trial.params["arch"],
            json.loads(trial.params["head"]),
            trial.user_attrs["cfg"],
        )
        assert trial.distributions["arch"] == CategoricalDistribution(("mlp", "cnn", "twin"))
        assert trial.user_attrs["seen"]["arch"] == option
        lr = trial.params["lr"]
        assert (cfg["arch"]["lr"], cfg["arch"]["decay"], cfg["arch"]["scaled"]) == (lr, lr, 0.1)
        assert cfg["arch"]["kind"] == ("cnn" if option == "cnn" else "mlp")
        assert cfg["arch"]["optimizer"] == {"momentum": trial.params["arch.optimizer.momentum"]}
        assert trial.params["arch.optimizer.momentum"] in (
            0.0,
            0.1,
            0.2,
            0.3,
            0.4,
            0.5,
            0.6,
            0.7,
            0.8,
        )
        assert cfg["arch"].get("depth") == trial.params.get("arch.depth")
        assert ("arch.depth" in trial.params) == (option == "cnn")
        assert cfg["head"] == {
            "lr": lr if head["lr"] == "${lr}" else 0.5,
            "units": trial.params["head.units"],
        }
    assert {t.params["arch"] for t in trials} == {"mlp", "cnn", "twin"}, (
        "twin says what mlp says, and is a cell of its own"
    )

    name = "study.name=archs"
    by_hand = (
        "enqueue",
        "--json",
        name,
        "arch=cnn",
        "arch.depth=3",
        "head={lr:0.5,units:16}",
        "lr=0.5",
    )
    assert json.loads(commands.check(*by_hand))["enqueued"]["arch"] == "cnn"
    assert (
        "not on the grid; the grid has mlp, cnn, twin"
        in commands.run("enqueue", name, "arch=cmm").stderr
    )
    # a group here
    commands.check("enqueue", f"--config-dir={CONFIG}", name, "arch=twin", "head={lr:0.5,units:16}")
    commands.check("worker", "worker.max_trials=2", "worker.idle_timeout_s=5")
    given, twin = trials_of(commands, "archs")[6:]
    assert (
        given.params["arch"],
        given.params["arch.depth"],
        given.user_attrs["cfg"]["arch"]["depth"],
    ) == ("cnn", 3, 3)
    assert twin.params["arch"] == "twin"

    assert "cnn" in commands.check("status", name)
    assert [
        cell["values"]["arch"]
        for cell in json.loads(commands.check("status", "--json"))["study"]["cells"][::2]
    ] == [
        "mlp",
        "cnn",
        "twin",
    ]
    assert "the same suggestion" in commands.check("replay", name, "trial=1")
    assert "reproduced bit for bit" in commands.check("rerun", name, "trial=6")
    best = json.loads(commands.check("best", "--json", name, "trial=6"))["best"][0]
    assert "arch=cnn" in best["overrides"]
    words = shlex.split(" ".join(best["overrides"]))
    commands.check("launch", *ARCHS, *words, "study.name=again", "budget.trials=1")
    assert trials_of(commands, "again")[0].user_attrs["cfg"] == given.user_attrs["cfg"]


def test_a_hydra_app_is_told_the_option_first_and_then_what_is_searched_inside_it(
    commands: Commands,
) -> None:
    command = f'objective.command=[python,"{APP}"]'
    words = ("study.direction=maximize", command, "worker.count=1", "worker.prefetch=0")
    searched = "+model.optimizer.lr=tag(log, interval(1e-4, 10))"
    pruner = ("pruner=median", "pruner.n_startup_trials=1", "sampler=random", "study.seed=256")
    commands.check(
        "launch",
        *words,
        "study.name=app",
        "+data=blobs",
        "+model=linear,conv",
        searched,
        "budget.per_cell=2",
        *pruner,
    )
    trials = trials_of(commands, "app")
    for trial in trials:
        option, lr = trial.params["model"], trial.params["model.optimizer.lr"]
        told = {key: trial.user_attrs.get(key) for key in ("data", "optimizer", "lr", "channels")}
        assert trial.distributions["model"] == CategoricalDistribution(("linear", "conv"))
        assert told == {
            "data": "blobs",
            "optimizer": "adam" if option == "conv" else "sgd",
            "lr": lr,
            "channels": 8 if option == "conv" else None,
        }
        assert trial.state.name == ("PRUNED" if lr > 1 else "COMPLETE")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["PRUNED"] * 2
    found = commands.directory.glob("runs/app-*/trial-*/attempt-1-*/hydra/.hydra/overrides.yaml")
    assert sorted(len(path.read_text().splitlines()) for path in found) == [3] * 4, (
        "an output directory for each attempt"
    )
    best: Any = json.loads(commands.check("best", "--json", "study.name=app"))["best"][0]
    assert best["params"]["model"] == "conv"
    overrides = shlex.split(" ".join(best["overrides"]))
    commands.check(
        "launch", *words, "study.name=again", "+data=blobs", *overrides, "budget.trials=1"
    )
    again = trials_of(commands, "again")[0]
    assert {key: again.user_attrs[key] for key in ("optimizer", "lr", "channels")} == {
        "optimizer": "adam",
        "lr": best["params"]["model.optimizer.lr"],
        "channels": 8,
    }
    assert again.value == best["values"]["value"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+seed=1,12345678901234567890", "grid.seed: 12345678901234567890 would be rounded"),
        ("+x=interval(-1e308,1e308)", "search.x: from -1e+308 to 1e+308 is wider"),
        ("+x=int(interval(0,9007199254740994))", "search.x: 9007199254740994 would be rounded"),
    ],
)
def test_what_a_dry_run_refuses_a_launch_refuses_before_it_writes_anything(
    commands: Commands, word: str, said: str
) -> None:
    line = (
        "launch",
        "study.name=far",
        "objective._target_=tests.support.training.quick",
        word,
        "budget.trials=2",
    )
    refused = [commands.run(*line, *flags, timeout=60) for flags in ((), ("--dry-run",))]
    assert [done.returncode for done in refused] == [2, 2]
    assert said in refused[0].stderr
    assert refused[0].stderr == refused[1].stderr
    assert not (commands.directory / "output").exists()
    assert "no study yet" in commands.check("status")
