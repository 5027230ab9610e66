"""Runs one attempt of one trial in one child process; knows no database and no Optuna.

The worker holds a `Runner`. Behind it stands one *keeper* process, and behind that one *child* per
attempt, which runs the user's function with the `Trial` it is given. The three talk in JSON lines
over sockets and share a run directory.
"""

from orchestrator.runner.child.study import ABOUT
from orchestrator.runner.child.trial import Trial, TrialPruned
from orchestrator.runner.protocol.contract import Job
from orchestrator.runner.protocol.rundir import attempt_dir, log_path, read_result
from orchestrator.runner.protocol.target import check_allowed
from orchestrator.runner.runner import (
    ArtifactLogged,
    AttrSet,
    ConstraintSet,
    Message,
    PruneAsked,
    Reported,
    Runner,
    Running,
    StudyAsked,
    SuggestAsked,
    Told,
)
from orchestrator.runner.system.facts import code_now
from orchestrator.runner.system.sources import HYDRA_DIRECTORY, is_hydra_app

__all__ = [
    "ABOUT",
    "HYDRA_DIRECTORY",
    "ArtifactLogged",
    "AttrSet",
    "ConstraintSet",
    "Job",
    "Message",
    "PruneAsked",
    "Reported",
    "Runner",
    "Running",
    "StudyAsked",
    "SuggestAsked",
    "Told",
    "Trial",
    "TrialPruned",
    "attempt_dir",
    "check_allowed",
    "code_now",
    "is_hydra_app",
    "log_path",
    "read_result",
]
