"""The sampler's room, the only one that imports Optuna: what to try next, what to stop, and
Optuna's tables.

Names are loaded on first use: commands that only read need neither Optuna nor SciPy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.search.answers import Answers, values_by_hand
    from orchestrator.search.cells.summary import CellEstimate
    from orchestrator.search.gp.sampler import HybridGPSampler
    from orchestrator.search.search import Search
    from orchestrator.search.space import by_hand, describe, distributions, parameters
    from orchestrator.search.tables import create_optuna_tables, open_storage, optuna_schema_head
    from orchestrator.search.tpe.sampler import HybridTPESampler
    from orchestrator.search.trials.history import FIXED_KEY

__all__ = [
    "FIXED_KEY",
    "Answers",
    "CellEstimate",
    "HybridGPSampler",
    "HybridTPESampler",
    "Search",
    "by_hand",
    "create_optuna_tables",
    "describe",
    "distributions",
    "open_storage",
    "optuna_schema_head",
    "parameters",
    "values_by_hand",
]
_HOME = {
    "answers": ("Answers", "values_by_hand"),
    "cells.summary": ("CellEstimate",),
    "gp.sampler": ("HybridGPSampler",),
    "search": ("Search",),
    "space": ("by_hand", "describe", "distributions", "parameters"),
    "tables": ("create_optuna_tables", "open_storage", "optuna_schema_head"),
    "tpe.sampler": ("HybridTPESampler",),
    "trials.history": ("FIXED_KEY",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            with _without_threads():
                return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def _without_threads() -> Iterator[None]:
    """Libraries for linear algebra loaded here start no threads, unless the user's environment says
    otherwise.

    Starting them takes half a second of processor time, and they are not used (see `threads`).
    Processes that this one starts later are not affected.
    """
    added = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} - os.environ.keys()
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
