"""The sampler's room, sole importer of Optuna: what to try next in a cell, what to stop, and how Optuna's tables look."""

from orchestrator.search.gp import HybridGPSampler
from orchestrator.search.space import describe, distribution_json, distributions
from orchestrator.search.study import ASK_KEY, Search
from orchestrator.search.tables import create_optuna_tables, load_study, open_storage, optuna_schema_head
from orchestrator.search.tpe import HybridTPESampler

__all__ = [
    "ASK_KEY",
    "HybridGPSampler",
    "HybridTPESampler",
    "Search",
    "create_optuna_tables",
    "describe",
    "distribution_json",
    "distributions",
    "load_study",
    "open_storage",
    "optuna_schema_head",
]
