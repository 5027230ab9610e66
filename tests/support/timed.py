"""An objective that says when its code ran, by the clock that all processes of a machine share."""

from __future__ import annotations

import time
from typing import Any

import torch


def objective(cfg: Any, trial: Any, seconds: float = 0.1, reports: int = 0) -> dict[str, Any]:
    """Waits for `seconds`, reporting on the way; the value is a sphere around 0.3."""
    began = time.monotonic_ns()
    until = time.monotonic() + seconds
    for step in range(reports):
        trial.report(float(step), step)
    value = float(torch.tensor([cfg.x, cfg.y, cfg.z]).sub(0.3).square().sum())
    time.sleep(max(0.0, until - time.monotonic()))
    return {"value": value, "began": str(began), "ended": str(time.monotonic_ns())}
