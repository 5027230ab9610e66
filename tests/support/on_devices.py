"""Objectives that look at what they were given of the host's devices."""

from __future__ import annotations

import os
from typing import Any


def threads(cfg: Any, trial: Any) -> dict[str, Any]:
    """The threads that the numerical libraries take, torch imported as late as can be."""
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        "score": torch.get_num_threads(),
        "limits": sorted({os.environ[name] for name in names}),
    }


def fails_at_first(cfg: Any, trial: Any) -> float:
    """As a trial does whose GPU fell off the bus."""
    if trial.attempt == 1 and trial.number == 0:
        raise RuntimeError("CUDA error: unspecified launch failure")
    return float(os.environ["CUDA_VISIBLE_DEVICES"].endswith("-good"))
