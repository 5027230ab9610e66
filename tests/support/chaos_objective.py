"""What the trials of the chaos tests do: a short training with a curve and a checkpoint, that says
who ran it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

WHO = "CHAOS_WHO"


def train(
    cfg: Any,
    trial: Any,
    seconds: float = 0.5,
    steps: int = 4,
    gate: str | None = None,
    gated_from: int = 0,
) -> dict[str, Any]:
    """Trains for `seconds` in `steps` steps, from the checkpoint on if there is one; the value is
    the parameters' alone.

    Trials from number `gated_from` on do not begin before there is a file `gate`.
    """
    while (
        gate is not None
        and trial.number >= gated_from
        and not Path(gate).exists()
        and not trial.should_stop()
    ):
        time.sleep(0.01)
    checkpoint = trial.checkpoint_dir / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, steps):
        end = time.monotonic() + seconds / steps
        while time.monotonic() < end:
            if trial.should_stop():
                return None  # type: ignore[return-value]
            time.sleep(0.01)
        trial.report(value_at(cfg.a, cfg.x, step), step)
        fresh = checkpoint.with_suffix(f".{os.getpid()}")
        fresh.write_text(str(step + 1))
        fresh.rename(checkpoint)
    return {
        "value": value_at(cfg.a, cfg.x, steps),
        "who": os.environ.get(WHO),
        "first_step": first,
        "ran_as": trial.attempt,
    }


def train_mixed(cfg: Any, trial: Any, long_s: float, gates: str, gated: int) -> Any:
    """As `train`, but one cell in five takes `long_s`, and every `gated` cells wait for a file in
    `gates` before they begin.
    """
    gate = Path(gates) / str(cfg.a // gated)
    while cfg.a >= gated and not gate.exists():
        if trial.should_stop():
            return None
        time.sleep(0.01)
    return train(cfg, trial, long_s if cfg.a % 5 == 0 else 0.15)


def value_at(a: float, x: float, step: int) -> float:
    """The curve: what every attempt of a trial reports at this step."""
    return float(a) + step - (float(x) - 0.5) ** 2
