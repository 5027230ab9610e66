"""The config: Hydra composes it, this room checks it and hands on plain typed values."""

from orchestrator.config.compose import Composed, compose
from orchestrator.config.flags import Flags, parse_flags, show
from orchestrator.config.host import URL_VARIABLE, default_storage_path
from orchestrator.config.pruning import has_pruner, never_prunes, nothing_reported
from orchestrator.config.study import study_spec
from orchestrator.config.words import hydra_word, normal_form, program_words, rerun_words
from orchestrator.settings import (
    DashboardConfig,
    HostConfig,
    PathsConfig,
    StorageConfig,
    WorkerConfig,
)

__all__ = [
    "URL_VARIABLE",
    "Composed",
    "DashboardConfig",
    "Flags",
    "HostConfig",
    "PathsConfig",
    "StorageConfig",
    "WorkerConfig",
    "compose",
    "default_storage_path",
    "has_pruner",
    "hydra_word",
    "never_prunes",
    "normal_form",
    "nothing_reported",
    "parse_flags",
    "program_words",
    "rerun_words",
    "show",
    "study_spec",
]
