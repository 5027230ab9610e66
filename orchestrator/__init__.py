"""Hybrid hyperparameter tuning: an exact grid and a search in one Optuna study.

The grid covers the parameters that matter, the search the rest. Objectives import ``from
orchestrator import Trial, TrialPruned``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.runner import Trial, TrialPruned

__version__ = "0.1.0"
__all__ = ["Trial", "TrialPruned", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the runner on first use: every process of this program imports this package."""
    if name in ("Trial", "TrialPruned"):
        return getattr(importlib.import_module("orchestrator.runner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
