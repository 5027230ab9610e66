"""Objectives of the trial alone, as Optuna calls them; without imports that are slow, for each
keeper imports them anew.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def dies_once(trial: Any) -> float:
    x = trial.suggest_float("x", 0.0, 1.0)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    if trial.attempt == 1:
        trial.set_user_attr("first", [x, kind])
        os.kill(os.getpid(), signal.SIGKILL)
    trial.set_user_attr("second", [x, kind])
    trial.set_user_attr("optimizer", trial.suggest_categorical("opt", ["adam", "sgd"]))
    return float(x + trial.suggest_float("more", 0, 1))


def tells_its_lr(trial: Any) -> float:
    return float(trial.suggest_float("lr", 1e-4, 1.0, log=True))


def changes_its_mind(trial: Any) -> float:
    choices = ["a", "b"] if trial.number == 0 else ["a", "c"]
    return float(len(trial.suggest_categorical("opt", choices)))


def breaks_once(trial: Any) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    if trial.number == 0:
        raise RuntimeError("broken")
    return float(lr)


def tuned(trial: Any) -> float:
    """The function of docs/objectives.md, without the training."""
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    widths = [
        trial.suggest_int(f"width{i}", 8, 256, log=True)
        for i in range(trial.suggest_int("depth", 1, 4))
    ]
    return float(lr * sum(widths) * trial.suggest_categorical("batch_size", [32, 64, 128]))


class LightGBMsCallback:
    """Asks of a trial what ``LightGBMPruningCallback`` of optuna-integration 5.0.0 asks, and as it
    does.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def __call__(self, score: float, iteration: int, is_higher_better: bool) -> None:
        import optuna

        if is_higher_better:
            if self._trial.study.direction != optuna.study.StudyDirection.MAXIMIZE:
                raise ValueError(
                    "The intermediate values are inconsistent with the objective values."
                )
        elif self._trial.study.direction != optuna.study.StudyDirection.MINIMIZE:
            raise ValueError("The intermediate values are inconsistent with the objective values.")
        self._trial.report(score, step=iteration)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"Trial was pruned at iteration {iteration}.")


def looks_at_its_study(trial: Any) -> float:
    x = float(trial.suggest_float("x", 0.0, 1.0))
    callback = LightGBMsCallback(trial)
    for iteration in range(3):
        callback(x, iteration, is_higher_better=True)
    seen = {
        "name": trial.study.study_name,
        "direction": trial.study.direction.name,
        "metrics": trial.study.metric_names,
    }
    seen |= {
        "attrs": trial.study.user_attrs,
        "relative": trial.relative_params,
        "started": str(trial.datetime_start),
    }
    seen["distributions"] = {
        name: str(distribution) for name, distribution in trial.distributions.items()
    }
    try:
        best = trial.study.best_trial
        seen["best"] = [best.number, trial.study.best_value, trial.study.best_params]
    except ValueError as error:
        seen["best"] = str(error)
    trial.set_user_attr("seen", seen)
    return x
