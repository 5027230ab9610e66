"""Runs one attempt of one trial in one child process; knows neither the database nor Optuna.

The worker holds a `Runner`. The runner starts one *keeper* process, and the keeper one *child* per
attempt, which calls the user's function with a `Trial`. The three processes exchange JSON lines
over sockets and share a run directory.

Names are loaded on first use: what a `Trial` needs, the worker does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import names_of

if TYPE_CHECKING:
    from orchestrator.runner.child.study import ABOUT
    from orchestrator.runner.child.trial import Trial, TrialPruned
    from orchestrator.runner.importing import Import
    from orchestrator.runner.messages import (
        ArtifactLogged,
        AttrSet,
        ConstraintSet,
        EndRequest,
        Message,
        PruneQuestion,
        Reported,
        StudyQuestion,
        SuggestQuestion,
    )
    from orchestrator.runner.protocol.contract import Job
    from orchestrator.runner.protocol.rundir import attempt_dir, log_path, probe_dir, read_result
    from orchestrator.runner.protocol.target import check_allowed, check_probe_allowed
    from orchestrator.runner.runner import Runner
    from orchestrator.runner.running import Running
    from orchestrator.runner.system.facts import code_now
    from orchestrator.runner.system.sources import HYDRA_DIRECTORY, is_hydra_app, source_digest

__all__ = [
    "ABOUT",
    "HYDRA_DIRECTORY",
    "ArtifactLogged",
    "AttrSet",
    "ConstraintSet",
    "EndRequest",
    "Import",
    "Job",
    "Message",
    "PruneQuestion",
    "Reported",
    "Runner",
    "Running",
    "StudyQuestion",
    "SuggestQuestion",
    "Trial",
    "TrialPruned",
    "attempt_dir",
    "check_allowed",
    "check_probe_allowed",
    "code_now",
    "is_hydra_app",
    "log_path",
    "probe_dir",
    "read_result",
    "source_digest",
]
_HOME = {
    "child.study": ("ABOUT",),
    "child.trial": (
        "Trial",
        "TrialPruned",
    ),
    "importing": ("Import",),
    "messages": (
        "ArtifactLogged",
        "AttrSet",
        "ConstraintSet",
        "EndRequest",
        "Message",
        "PruneQuestion",
        "Reported",
        "StudyQuestion",
        "SuggestQuestion",
    ),
    "protocol.contract": ("Job",),
    "protocol.rundir": (
        "attempt_dir",
        "log_path",
        "probe_dir",
        "read_result",
    ),
    "protocol.target": (
        "check_allowed",
        "check_probe_allowed",
    ),
    "runner": ("Runner",),
    "running": ("Running",),
    "system.facts": ("code_now",),
    "system.sources": (
        "HYDRA_DIRECTORY",
        "is_hydra_app",
        "source_digest",
    ),
}

__getattr__ = names_of(__name__, _HOME)
