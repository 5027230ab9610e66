"""Hybrid hyperparameter tuning: an exact grid and a search in one Optuna study.

The grid covers the parameters that matter, the search the rest. Objectives import ``from
orchestrator import Trial, TrialPruned``. What a study found, ``orchestrator.study("digits")`` says.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Study, study
    from orchestrator.runner import Trial, TrialPruned

__version__ = "0.1.0"
__all__ = ["Study", "Trial", "TrialPruned", "__version__", "study"]
_HOME = {
    "Study": "orchestrator.api",
    "Trial": "orchestrator.runner",
    "TrialPruned": "orchestrator.runner",
    "study": "orchestrator.api",
}


def __getattr__(name: str) -> Any:
    """Imports a name's module on first use: every process of this program imports this package."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
