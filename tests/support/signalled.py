"""Objectives for tests that send signals to a worker and all that it started."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

from orchestrator import Trial


def saves_when_asked(cfg: Any, trial: Trial) -> float | None:
    """Trains until it is asked to stop, and saves then; what goes on from there
    completes at once.
    """
    if (trial.checkpoint_dir / "saved").exists():
        return 2.0
    _say_pids(trial, [os.getpid()])
    while not trial.should_stop():
        time.sleep(0.005)
    (trial.checkpoint_dir / "saved").touch()
    return None


def ends_when_it_may(cfg: Any, trial: Trial) -> float:
    """Goes on, whatever happens, until there is a file `go`; then it completes."""
    _say_pids(trial, [os.getpid()])
    while not (trial.checkpoint_dir / "go").exists():
        time.sleep(0.005)
    return 3.0


def never_ends(cfg: Any, trial: Trial) -> float:
    """Takes no notice of anything; the next attempt completes."""
    if trial.resumed:
        return 2.0
    _say_pids(trial, [os.getpid()])
    while True:
        time.sleep(0.005)


def breaks_with_its_helper(cfg: Any, trial: Trial) -> float:
    """Raises as soon as a process that it started is gone, as a DataLoader does; the next attempt
    completes.
    """
    if trial.resumed:
        return 2.0
    helper = subprocess.Popen(["sleep", "300"])
    _say_pids(trial, [os.getpid(), helper.pid])
    helper.wait()
    raise RuntimeError("the helper is gone")


def breaks_when_asked(cfg: Any, trial: Trial) -> float:
    """Takes note of a request to stop, and raises once there is a file `go`."""
    _say_pids(trial, [os.getpid()])
    while not (trial.should_stop() and (trial.checkpoint_dir / "go").exists()):
        time.sleep(0.005)
    raise RuntimeError("no checkpoint")


def _say_pids(trial: Trial, pids: list[int]) -> None:
    file = trial.checkpoint_dir / "pids.json"
    file.with_suffix(".part").write_text(json.dumps(pids))
    file.with_suffix(".part").rename(file)
