"""The read-only `trial.study` that a user's function sees: what Optuna's helpers need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from orchestrator.errors import did_you_mean
from orchestrator.model import JSONValue
from orchestrator.runner.protocol.contract import Job

ABOUT: Final = ("best", "user_attrs", "started", "distributions")
"""What an objective may read about its study and its trial from the database."""

_COMMANDS = (
    "they are available outside the objective: orchestrator best --json,"
    " or optuna.load_study with the URL from orchestrator db url"
)
_NOT_HERE: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("trials", "get_trials", "best_trials", "trials_dataframe"), _COMMANDS),
        **dict.fromkeys(
            ("optimize", "ask", "tell", "add_trial", "add_trials"),
            "the workers run the trials: orchestrator launch, worker",
        ),
        "enqueue_trial": "to add a trial by hand: orchestrator enqueue",
        "stop": "to end the study: orchestrator stop",
        "set_metric_names": "the names are set by study.metric",
        **dict.fromkeys(
            ("sampler", "pruner"), "the worker has them; choose them with sampler=… and pruner=…"
        ),
        **dict.fromkeys(
            ("set_user_attr", "set_system_attr", "system_attrs", "_storage", "_study_id"),
            "the objective has no access to the storage; use trial.set_user_attr and "
            "trial.log_artifact",
        ),
    }
)


class StudyDirection(IntEnum):
    """Like ``optuna.study.StudyDirection``, and equal to it.

    It is used if the objective has not imported Optuna.
    """

    NOT_SET = 0
    MINIMIZE = 1
    MAXIMIZE = 2


@dataclass(frozen=True)
class BestTrial:
    """The best complete and feasible trial at the time of the call."""

    number: int
    values: tuple[float, ...]
    params: Mapping[str, JSONValue]

    @property
    def value(self) -> float:
        """The value of its one metric, or of the first."""
        return self.values[0]


class Study:
    """The study of a running trial, read-only.

    What can change is read through the worker at each access.
    """

    def __init__(self, job: Job, ask: Callable[[str], Any]) -> None:
        self._job = job
        self._ask = ask

    @property
    def study_name(self) -> str:
        """The study's name."""
        return self._job.study

    @property
    def directions(self) -> list[StudyDirection]:
        """The direction of each objective, as Optuna's `StudyDirection` or an equal value."""
        optuna = sys.modules.get("optuna.study")
        kind = getattr(optuna, "StudyDirection", StudyDirection)
        return [kind[direction.upper()] for direction in self._job.directions]

    @property
    def direction(self) -> StudyDirection:
        """The direction of the one objective.

        Raises:
            RuntimeError: There are several.
        """
        self._refuse_several("direction")
        return self.directions[0]

    @property
    def metric_names(self) -> list[str]:
        """The names of the objectives, `study.metric`."""
        return list(self._job.metrics)

    @property
    def user_attrs(self) -> dict[str, JSONValue]:
        """The study's user attributes.

        Raises:
            ValueError: They are too large to be passed to a trial.
        """
        return dict(self._ask("user_attrs"))

    @property
    def best_trial(self) -> BestTrial:
        """The best of the trials that have ended so far.

        Raises:
            RuntimeError: There are several objectives.
            ValueError: No trial is complete yet.
        """
        self._refuse_several("best_trial")
        best = self._ask("best")
        if best is None:
            raise ValueError("No trials are completed yet.")  # Optuna's own message
        return BestTrial(best["number"], tuple(best["values"]), best["params"])

    @property
    def best_value(self) -> float:
        """The value of `best_trial`; raises what that raises."""
        return self.best_trial.value

    @property
    def best_params(self) -> Mapping[str, JSONValue]:
        """The parameters of `best_trial`; raises what that raises."""
        return self.best_trial.params

    def _refuse_several(self, name: str) -> None:
        if len(self._job.directions) > 1:
            raise RuntimeError(
                f"trial.study.{name}: the study has several objectives; trial.study.directions "
                "has one direction for each"
            )

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name: str) -> NoReturn:
            text = f"trial.study has no attribute {name!r}"
            if name in _NOT_HERE:
                text += f": {_NOT_HERE[name]}"
            elif not name.startswith("_"):
                text += did_you_mean(name, [n for n in dir(type(self)) if not n.startswith("_")])
            raise AttributeError(text)
