"""Probes of the tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def measures(cfg: Any, trial: Any, seconds: float = 0.0) -> dict[str, Any]:
    """Says where to search for x, and leaves a file."""
    print(f"measuring a={cfg.a} with x={cfg.x} as number {trial.number}, attempt {trial.attempt}")
    picture = trial.checkpoint_dir / "curve.txt"
    picture.write_text("a curve", encoding="utf-8")
    trial.log_artifact(picture)
    time.sleep(seconds)
    return {"bounds": {"x": [0.2, 0.4]}, "facts": {"steps": 3, "seed": trial.seed}}


def behaves_badly(cfg: Any, trial: Any) -> Any:
    """Fails in another way in each cell."""
    if cfg.a == 0:
        picture = trial.checkpoint_dir / "curve.txt"
        picture.write_text("a flat curve", encoding="utf-8")
        trial.log_artifact(picture)
        raise ValueError("nothing to measure here")
    if cfg.a == 1:
        return {"bounds": {"y": [0, 1]}}
    if cfg.a == 2:
        return None
    trial.report(0.5, step=0)
    return {}


def build(cfg: Any, trial: Any) -> Any:
    """What a probe of a toolkit is to call; here only to be imported."""
    raise AssertionError("never called")


def waits(cfg: Any, trial: Any, gate: str) -> dict[str, Any]:
    """Waits for a file, unless it is asked to stop."""
    while not Path(gate).exists():
        if trial.should_stop():
            return None  # type: ignore[return-value]
        time.sleep(0.01)
    return {"bounds": {"x": [0.2, 0.4]}}
