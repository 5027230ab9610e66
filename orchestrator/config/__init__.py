"""The config: Hydra composes it, this room checks it and hands on plain typed values.

Names are loaded on first use: most commands need no Hydra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import names_of
from orchestrator.settings import (
    DashboardConfig,
    HostConfig,
    PathsConfig,
    StorageConfig,
    WorkerConfig,
)

if TYPE_CHECKING:
    from orchestrator.config.chaining import chain
    from orchestrator.config.composing import Composed, compose
    from orchestrator.config.flags import Flags, parse_flags
    from orchestrator.config.places import URL_VARIABLE, default_storage_path
    from orchestrator.config.plain import Plain, read_plainly
    from orchestrator.config.pruning import (
        has_pruner,
        never_prunes,
        nothing_to_judge,
        startup_label,
    )
    from orchestrator.config.showing import show
    from orchestrator.config.stopping import stop_label, stops_nothing
    from orchestrator.config.study import extends, study_spec
    from orchestrator.config.words import (
        hydra_word,
        normal_form,
        program_words,
        rerun_words,
        trial_words,
    )

__all__ = [
    "URL_VARIABLE",
    "Composed",
    "DashboardConfig",
    "Flags",
    "HostConfig",
    "PathsConfig",
    "Plain",
    "StorageConfig",
    "WorkerConfig",
    "chain",
    "compose",
    "default_storage_path",
    "extends",
    "has_pruner",
    "hydra_word",
    "never_prunes",
    "normal_form",
    "nothing_to_judge",
    "parse_flags",
    "program_words",
    "read_plainly",
    "rerun_words",
    "show",
    "startup_label",
    "stop_label",
    "stops_nothing",
    "study_spec",
    "trial_words",
]
_HOME = {
    "chaining": ("chain",),
    "composing": (
        "Composed",
        "compose",
    ),
    "flags": (
        "Flags",
        "parse_flags",
    ),
    "places": (
        "URL_VARIABLE",
        "default_storage_path",
    ),
    "plain": (
        "Plain",
        "read_plainly",
    ),
    "pruning": (
        "has_pruner",
        "never_prunes",
        "nothing_to_judge",
        "startup_label",
    ),
    "showing": ("show",),
    "stopping": (
        "stop_label",
        "stops_nothing",
    ),
    "study": ("extends", "study_spec"),
    "words": (
        "hydra_word",
        "normal_form",
        "program_words",
        "rerun_words",
        "trial_words",
    ),
}

__getattr__ = names_of(__name__, _HOME)
