"""The config: Hydra composes it, this room checks it and hands on plain typed values."""

from orchestrator.config.compose import URL_VARIABLE, Composed, compose, default_storage_path
from orchestrator.config.flags import Flags, parse_flags, show
from orchestrator.config.schema import DashboardConfig, HostConfig, PathsConfig, StorageConfig, WorkerConfig
from orchestrator.config.study import study_spec
from orchestrator.config.words import hydra_word, normal_form, program_words, rerun_words

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
    "hydra_word",
    "normal_form",
    "parse_flags",
    "program_words",
    "rerun_words",
    "show",
    "study_spec",
]
