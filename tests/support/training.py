"""Objectives of the acceptance tests: small stand-ins for a training run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def quick(cfg: Any, trial: Any) -> float:
    """Takes 20 ms; the value names the cell."""
    time.sleep(0.02)
    return float(cfg.a) - (float(cfg.x) - 0.5) ** 2


def noisy(cfg: Any, trial: Any) -> float:
    """Like `quick`, with noise that hides which of the good values of `x` is the best."""
    return float(cfg.a) - (float(cfg.x) - 0.5) ** 2 + 0.2 * random.Random(trial.seed).gauss(0, 1)


def slow(cfg: Any, trial: Any, seconds: float = 30.0) -> float:
    """Runs for `seconds`, stops early when asked to, and leaves a checkpoint when it does."""
    mark = trial.checkpoint_dir / "seen"
    if trial.resumed and mark.exists():
        return 2.0
    mark.write_text("here")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not trial.should_stop():
        time.sleep(0.02)
    return 1.0


def interruptible(cfg: Any, trial: Any) -> float | None:
    """Trains until it is told to stop; the attempt after that ends at once."""
    mark = trial.checkpoint_dir / "seen"
    if mark.exists():
        return 2.0
    mark.write_text("here")
    while not trial.should_stop():
        time.sleep(0.02)
    return None


def curve(cfg: Any, trial: Any) -> dict[str, float]:
    """Reports a curve of ten steps, the better the smaller `x`; pruned ones stop."""
    from orchestrator import TrialPruned

    for step in range(10):
        trial.report(step * (1.0 - cfg.x), step)
        if trial.should_prune():
            raise TrialPruned
    return {"value": 10 * (1.0 - cfg.x), "steps": 10}


def breaks(cfg: Any, trial: Any) -> float:
    if cfg.a == 0:
        print("about to break")
        raise ValueError("a may not be 0")
    if cfg.a == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


async def later(cfg: Any, trial: Any) -> float:
    return 1.0


def yields(cfg: Any, trial: Any) -> Iterator[float]:
    yield 1.0


def two(cfg: Any, trial: Any) -> dict[str, float]:
    return {"error": (cfg.x - 0.2) ** 2, "cost": (cfg.x - 0.8) ** 2, "note": cfg.a}


def coupled(cfg: Any, trial: Any, root: str = "") -> dict[str, Any]:
    """Tells what it was given."""
    return {
        "value": float(cfg.optim.lr),
        "batch": cfg.data.batch_size,
        "root": root,
        "cwd": str(Path.cwd()),
    }


def breaks_until_mended(cfg: Any, trial: Any, file: str = "") -> float:
    if not Path(file).exists():
        raise ValueError("not mended yet")
    return float(cfg.x)


def flaky(cfg: Any, trial: Any, failures: int = 1) -> float:
    """Goes one step further in each attempt, and loses its connection in the first ones."""
    state = trial.checkpoint_dir / "step"
    step = int(state.read_text()) + 1 if state.exists() else 0
    trial.report(float(step), step)
    trial.set_user_attr("resumed_from", trial.resumed_from)
    state.write_text(str(step))
    if trial.attempt <= failures:
        raise ConnectionResetError("the dataset's server hung up")
    return float(step + 1)


class OutOfMemoryError(RuntimeError):
    """As torch raises it."""


def hungry(cfg: Any, trial: Any, limit: int) -> float:
    """Needs as much memory as the cell says, and there is `limit`."""
    if cfg.a >= limit:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return float(cfg.a)


def tells_its_config(cfg: Any, trial: Any) -> dict[str, Any]:
    return {
        "value": cfg.lr,
        "cfg": OmegaConf.to_container(cfg, resolve=True),
        "seen": dict(trial.params),
    }


def epochs(cfg: Any, trial: Any, count: int, seconds: float) -> float | None:
    """Reports a tenth of the step after each of `count` steps, which take `seconds` each."""
    for step in range(count):
        time.sleep(seconds)
        trial.report(step / 10, step)
        if trial.should_stop():
            return None
    return count / 10
