"""The config: Hydra composes it, this room checks it and hands on plain typed values."""

from orchestrator.config.compose import Composed, compose
from orchestrator.config.flags import Flags, parse_flags, show
from orchestrator.config.schema import DashboardConfig, HostConfig, PathsConfig, StorageConfig, WorkerConfig
from orchestrator.config.study import study_spec

__all__ = [
    "Composed",
    "DashboardConfig",
    "Flags",
    "HostConfig",
    "PathsConfig",
    "StorageConfig",
    "WorkerConfig",
    "compose",
    "parse_flags",
    "show",
    "study_spec",
]
