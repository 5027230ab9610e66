"""The sampler's room, the only one that imports Optuna: what to try next, what to stop, and
Optuna's tables.

Names are loaded on first use: commands that only read need neither Optuna nor SciPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import names_of
from orchestrator.search.trials.threads import without_threads

if TYPE_CHECKING:
    from orchestrator.search.answers import Answers, values_by_hand
    from orchestrator.search.cells.leaders import Leader, Leaders
    from orchestrator.search.cells.summary import CellEstimate
    from orchestrator.search.gp.sampler import HybridGPSampler
    from orchestrator.search.plain import true_values, undeclared
    from orchestrator.search.priors import best_of, prior_of
    from orchestrator.search.revising import as_it_was, extension
    from orchestrator.search.science.results import (
        AxisEffect,
        CellKnowledge,
        Contrast,
        Edge,
        Importance,
        Interaction,
        Science,
        Share,
        ValueEffect,
    )
    from orchestrator.search.science.sliced import CellSlices, Line, Plane, Seen, Slices, Snapshot
    from orchestrator.search.search import Search
    from orchestrator.search.space import by_hand, describe, distributions, parameters
    from orchestrator.search.tables import create_optuna_tables, open_storage, optuna_schema_head
    from orchestrator.search.tpe.sampler import HybridTPESampler
    from orchestrator.search.trials.history import FIXED_KEY
    from orchestrator.search.trials.mirror import is_feasible

__all__ = [
    "FIXED_KEY",
    "Answers",
    "AxisEffect",
    "CellEstimate",
    "CellKnowledge",
    "CellSlices",
    "Contrast",
    "Edge",
    "HybridGPSampler",
    "HybridTPESampler",
    "Importance",
    "Interaction",
    "Leader",
    "Leaders",
    "Line",
    "Plane",
    "Science",
    "Search",
    "Seen",
    "Share",
    "Slices",
    "Snapshot",
    "ValueEffect",
    "as_it_was",
    "best_of",
    "by_hand",
    "create_optuna_tables",
    "describe",
    "distributions",
    "extension",
    "is_feasible",
    "open_storage",
    "optuna_schema_head",
    "parameters",
    "prior_of",
    "true_values",
    "undeclared",
    "values_by_hand",
]
_HOME = {
    "answers": ("Answers", "values_by_hand"),
    "cells.leaders": ("Leader", "Leaders"),
    "cells.summary": ("CellEstimate",),
    "gp.sampler": ("HybridGPSampler",),
    "priors": ("best_of", "prior_of"),
    "science.sliced": ("CellSlices", "Line", "Plane", "Seen", "Slices", "Snapshot"),
    "plain": ("true_values", "undeclared"),
    "revising": ("as_it_was", "extension"),
    "science.results": (
        "AxisEffect",
        "CellKnowledge",
        "Contrast",
        "Edge",
        "Importance",
        "Interaction",
        "Science",
        "Share",
        "ValueEffect",
    ),
    "search": ("Search",),
    "space": ("by_hand", "describe", "distributions", "parameters"),
    "tables": ("create_optuna_tables", "open_storage", "optuna_schema_head"),
    "tpe.sampler": ("HybridTPESampler",),
    "trials.history": ("FIXED_KEY",),
    "trials.mirror": ("is_feasible",),
}

__getattr__ = names_of(__name__, _HOME, without_threads)
