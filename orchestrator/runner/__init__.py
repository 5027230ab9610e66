"""Runs one attempt of one trial in one child process; knows no database and no Optuna.

The worker holds a `Runner`. Behind it stands one *keeper* process, and behind that one *child* per attempt, which runs the
user's function with the `Trial` it is given. The three talk in JSON lines over sockets and share a run directory.
"""

from orchestrator.runner.contract import Job
from orchestrator.runner.facts import code_now
from orchestrator.runner.parent import (
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
from orchestrator.runner.rundir import attempt_dir, log_path, read_result
from orchestrator.runner.sources import HYDRA_DIRECTORY, is_hydra_app
from orchestrator.runner.study import ABOUT
from orchestrator.runner.target import check_allowed
from orchestrator.runner.trial import Trial, TrialPruned

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
