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
    study_words = ("objective._target_=mine.objective", "study.name=mine", "+batch=16,64", "budget.trials=14")
    words = ("pruner=median", "pruner.n_startup_trials=1", "worker.count=2", "worker.poll_s=0.1")
    done = json.loads(here.check("launch", *study_words, *words, "--json"))
    assert done["trials"] == {"total": 14, "spent": 14, "running": 0, "waiting": 0, "failed": 0}
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
    assert optuna.importance.get_param_importances(study).keys() >= {"batch", "lr", "kind"}
    assert done["best"][0]["params"] == study.best_params
