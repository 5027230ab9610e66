"""A function written for Optuna, launched as it is: the grid decides on its names, the rest of the
space is discovered.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
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


def test_an_unchanged_optuna_objective_is_launched_on_a_grid(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    here = replace(commands, cwd=tmp_path)
    study_words = (
        "objective._target_=mine.objective",
        "study.name=mine",
        "+batch=16,64",
        "budget.trials=14",
    )
    words = ("pruner=median", "pruner.n_startup_trials=1", "worker.count=2", "worker.poll_s=0.1")
    done = json.loads(here.check("launch", *study_words, *words, "--json"))
    assert done["trials"] == {"total": 14, "spent": 14, "running": 0, "waiting": 0, "failed": 0}
    assert [cell["values"] for cell in done["cells"]] == [{"batch": 16}, {"batch": 64}]

    study = optuna.load_study(study_name="mine", storage=store.url)
    objective = module(tmp_path / "mine.py").objective
    assert {t.params["batch"] for t in study.trials} == {16, 64}
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        assert trial.params.keys() == {
            "batch",
            "lr",
            "kind",
            "gamma" if trial.params["kind"] == "svm" else "layers",
        }
        assert objective(optuna.trial.FixedTrial(trial.params)) == trial.intermediate_values[0]
        assert trial.state.name == "PRUNED" or trial.user_attrs["asked"] == trial.params
    assert study.trials[0].distributions["lr"] == optuna.distributions.FloatDistribution(
        1e-4, 1e-1, log=True
    )
    assert optuna.importance.get_param_importances(study).keys() >= {"batch", "lr", "kind"}
    assert done["best"][0]["params"] == study.best_params


def run_again(commands: Commands, study: str, *words: str) -> list[optuna.trial.FrozenTrial]:
    """The best trial of `study`, and the one that its printed overrides launch as another study of
    the same words.
    """
    _, _, after = commands.check("best", f"study.name={study}").partition("# as overrides\n# ")
    line = after.splitlines()[0]
    commands.check("launch", *words, "study.name=other", *shlex.split(line), "budget.trials=1")
    best = optuna.load_study(study_name=study, storage=str(commands.url)).best_trial
    return [best, *optuna.load_study(study_name="other", storage=str(commands.url)).trials]


def test_the_overrides_of_best_launch_the_best_trial_of_an_optuna_objective(
    commands: Commands,
) -> None:
    words = (
        "objective._target_=tests.support.optuna_style.tuned",
        "+batch_size=128",
        "worker.count=1",
        "worker.poll_s=0.1",
    )
    commands.check("launch", *words, "study.name=fixed", "budget.trials=6")
    trials = optuna.load_study(study_name="fixed", storage=str(commands.url)).trials
    assert [t.params["batch_size"] for t in trials] == [128] * 6
    best, *again = run_again(commands, "fixed", *words)
    assert [(t.params, t.value) for t in again] == [(best.params, best.value)]
    assert "reproduced bit for bit" in commands.check("rerun", "study.name=fixed")


def test_the_overrides_of_best_launch_the_best_trial_of_a_program(
    commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(
        "import json, os\nfrom pathlib import Path\n"
        "params = json.loads(Path(os.environ['ORCHESTRATOR_PARAMS_FILE']).read_text())['params']\n"
        "print(json.dumps({'value': params['lr'], 'params': params}))\n"
    )
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nobjective: {command: [python, program.py, '{params_file}']}\n"
        "params: {lr: 0.1, wd: '${.lr}', momentum: null}\n"
        """grid: {kind: ['1', 1, null, [true, {"a b": 1.0e-05}]], name: ["it's", '"a" $b']}\n"""
        "search: {lr: 'tag(log, interval(1e-9, 1e-3))', momentum: {space: 'interval(0, 1)', when: "
        "{kind: ['1', 1]}}}\n"
        "budget: {per_cell: 1}\n"
    )
    here, words = (
        replace(commands, cwd=tmp_path),
        ("--config-dir=conf", "experiment=mine", "worker.count=2", "worker.poll_s=0.1"),
    )
    here.check("launch", *words, "study.name=first")
    best, *again = run_again(here, "first", *words)
    assert [t.user_attrs["params"] for t in again] == [best.user_attrs["params"]]
