"""A function written for Optuna, launched as it is: the grid decides on its names, the rest of the space is discovered."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.store import Store
from tests.support.commands import Commands

pytestmark = pytest.mark.acceptance

MODULE = """
import optuna


def objective(trial):
    batch = trial.suggest_categorical("batch", [16, 32, 64])
    loss = batch / 1000 + trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if trial.suggest_categorical("kind", ["svm", "mlp"]) == "svm":
        loss += trial.suggest_float("gamma", 0.0, 1.0)
    else:
        loss += 10.0 * trial.suggest_int("layers", 1, 3)
    for step in range(3):
        trial.report(loss, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    trial.set_user_attr("asked", trial.params)
    return loss
"""


def module(path: Path) -> Any:
    found = importlib.util.spec_from_file_location("mine", path)
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def test_an_unchanged_optuna_objective_is_launched_on_a_grid(commands: Commands, store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    here = replace(commands, cwd=tmp_path)
    words = ("objective._target_=mine.objective", "study.name=mine", "+batch=16,64", "budget.trials=20", "pruner=median")
    words += ("pruner.n_startup_trials=2", "worker.count=2", "worker.poll_s=0.1")
    done = json.loads(here.check("launch", *words, "--json"))
    assert done["trials"] == {"total": 20, "spent": 20, "running": 0, "waiting": 0, "failed": 0}
    assert [cell["values"] for cell in done["cells"]] == [{"batch": 16}, {"batch": 64}]

    study = optuna.load_study(study_name="mine", storage=store.url)
    objective = module(tmp_path / "mine.py").objective
    assert {t.params["batch"] for t in study.trials} == {16, 64}
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        assert trial.params.keys() == {"batch", "lr", "kind", "gamma" if trial.params["kind"] == "svm" else "layers"}
        assert objective(optuna.trial.FixedTrial(trial.params)) == trial.intermediate_values[0]
        assert trial.state.name == "PRUNED" or trial.user_attrs["asked"] == trial.params
    assert study.trials[0].distributions["lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)
    assert optuna.importance.get_param_importances(study).keys() == {"batch", "lr", "kind"}

    best = json.loads(here.check("best", "--json"))["best"][0]
    assert best["params"] == study.best_params
    fixed = [word for word in best["overrides"] if "kind" in word]
    assert fixed == [f"'++grid.kind=[{study.best_params['kind']}]'"]
    replayed = json.loads(here.check("replay", "trial=15", "--json"))
    assert replayed["same"]
    assert set(replayed["later"]) == study.trials[15].params.keys() - {"batch"}

    assert "enqueued batch=64 lr=0.05" in here.check("enqueue", "study.name=mine", "batch=64", "lr=0.05")
    refused = here.run("enqueue", "study.name=mine", "batch=64", "lr=0.5")
    assert refused.returncode == 2
    assert "lr=0.5: not what this study's objective asks for, float from 0.0001 to 0.1 (log)" in refused.stderr
    here.check("worker", "worker.idle_timeout_s=0.1", "worker.poll_s=0.1")
    assert optuna.load_study(study_name="mine", storage=store.url).trials[20].params["lr"] == 0.05
