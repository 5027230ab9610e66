"""Objectives of the trial alone, as Optuna calls them; without imports that are slow, for each keeper imports them anew."""

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
