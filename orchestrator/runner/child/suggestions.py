"""What an objective asks for as it runs: Optuna's `suggest_*`, put to the worker as plain data."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from orchestrator.errors import did_you_mean
from orchestrator.model import JSONValue
from orchestrator.runner.protocol.channel import Message, MessageTooLongError
from orchestrator.runner.protocol.values import as_json, as_number, shown

Choice = TypeVar("Choice", bound=bool | int | float | str | None)

KINDS: Final = ("float", "int", "categorical")
_MAX_NAME: Final = 512  # Optuna's column for parameter names
_STORED = (
    "the objective runs without the study's storage; trial.set_user_attr and trial.log_artifact "
    "store with the trial"
)
_NOT_HERE: Final = dict.fromkeys(
    ("storage", "system_attrs", "set_system_attr", "study_id", "_trial_id", "_study_id"), _STORED
)
_REFUSALS: Final[Mapping[str, type[Exception]]] = {"TypeError": TypeError, "ValueError": ValueError}
_WARNINGS: Final[Mapping[str, type[Warning]]] = {"RuntimeWarning": RuntimeWarning}


class WorkerGoneError(SystemExit):
    """The worker that would answer is gone, and this process is about to be ended: no verdict on
    the trial.

    No `Exception`, so that an objective that catches those does not take it for a failure of its
    own.
    """


class Suggests:
    """The half of a trial that suggests; the other half knows how to `_ask`."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[Message, Any]] = {}
        self._asking = threading.RLock()

    def _ask(self, question: Message) -> Message | None:
        """The worker's answer to a question about a parameter; None when it is gone."""
        raise NotImplementedError

    def _fixed(self, name: str) -> tuple[JSONValue, ...]:
        """The value that the study's `params` have for the name, if they have one."""
        return ()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from `low` to `high`, both included, as `optuna.Trial.suggest_float`; the same
        in every attempt.

        For a name of the study's grid or search it is the value that the trial has there, for one
        of `params` the value there.

        Args:
            name: At most 512 characters.
            low: A finite number; above 0 with `log`.
            high: A finite number, at least `low`.
            step: Only `low`, `low` + `step` … are suggested; not with `log`.
            log: Whether the range is searched on a logarithmic scale.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The arguments make no range, contradict what this name was asked as before,
                or leave out the value that the trial has by its grid, its search, its `params` or
                by hand.
        """
        arguments = {
            "low": _plain(low),
            "high": _plain(high),
            "step": None if step is None else _plain(step),
            "log": bool(log),
        }
        return float(self._suggest(name, "float", arguments))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number from `low` to `high`, both included, as `optuna.Trial.suggest_int`; the
        same in every attempt.

        For a name of the study's grid or search it is the value that the trial has there, for one
        of `params` the value there.

        Args:
            name: At most 512 characters.
            low: A whole number; at least 1 with `log`.
            high: A whole number, at least `low`.
            step: Only `low`, `low` + `step` … are suggested; 1 with `log`.
            log: Whether the range is searched on a logarithmic scale.

        Raises:
            TypeError: As `suggest_float`.
            ValueError: As `suggest_float`.
        """
        arguments = {
            "low": _plain(low),
            "high": _plain(high),
            "step": _plain(step),
            "log": bool(log),
        }
        return int(self._suggest(name, "int", arguments))

    def suggest_categorical(self, name: str, choices: Iterable[Choice]) -> Choice:
        """One of `choices`, the very object, as `optuna.Trial.suggest_categorical`; the same in
        every attempt.

        For a name of the study's grid or search it is the value that the trial has there, for one
        of `params` the value there.

        Args:
            name: At most 512 characters.
            choices: None, truth values, finite numbers and words; at least one. The same in every
                trial of the study.

        Raises:
            TypeError: A choice is of another type.
            ValueError: As `suggest_float`, or there is no choice.
        """
        offered = list(choices)
        place = self._suggest(
            name, "categorical", {"choices": [_choice(choice) for choice in offered]}
        )
        return offered[int(place)]

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """`suggest_float`, by a name that Optuna gave up in 3.0."""
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """`suggest_float` with `log`, by a name that Optuna gave up in 3.0."""
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """`suggest_float` with `step`, by a name that Optuna gave up in 3.0."""
        return self.suggest_float(name, low, high, step=q)

    def _suggested(self) -> dict[str, Any]:
        """What was suggested in this attempt, by name."""
        return {
            name: _value(question, internal)
            for name, (question, internal) in list(self._asked.items())
        }

    def _suggest(self, name: str, kind: str, arguments: dict[str, JSONValue]) -> float:
        """Optuna's internal number of the value: the number itself, or the place among
        the choices.
        """
        question: Message = {"suggest": [_name(name), kind, arguments]}
        with self._asking:
            known = self._asked.get(name)
            if known is not None and known[0] == question:
                return float(known[1])
            fixed = self._fixed(name)
            try:
                answer = self._ask({**question, "fixed": fixed} if fixed else question)
            except MessageTooLongError as error:
                raise ValueError(f"parameter {shown(name)}: {error}") from None
            if answer is None:
                raise WorkerGoneError("the worker that answers suggest_* is gone")
            for category, text in answer.get("warnings", ()):
                warnings.warn(text, _WARNINGS.get(category, UserWarning), stacklevel=3)
            if "refused" in answer:
                category, text = answer["refused"]
                raise _REFUSALS.get(category, ValueError)(text)
            internal = float(answer["internal"])
            self._asked.setdefault(name, (question, internal))
            return internal

    if not TYPE_CHECKING:  # else any name would pass for an attribute

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _NOT_HERE:
                text += f": {_NOT_HERE[name]}"
            elif not name.startswith("_"):
                text += did_you_mean(
                    name, [known for known in dir(type(self)) if not known.startswith("_")]
                )
            raise AttributeError(text)


def _value(question: Message, internal: float) -> JSONValue:
    _, kind, arguments = question["suggest"]
    if kind == "categorical":
        return arguments["choices"][int(internal)]
    return int(internal) if kind == "int" else internal


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(
            f"the name of a parameter must be a string, got {shown(name)} ({type(name).__name__})"
        )
    if len(name) > _MAX_NAME:
        raise ValueError(
            f"the name of a parameter has at most {_MAX_NAME} characters, got {len(name)}"
        )
    text: str = _explained(name, lambda: as_json(name))
    return text


def _plain(number: object) -> float | int:
    """A number as JSON has it: whole ones stay whole, whatever library they come from."""
    as_number(number)
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return as_number(number)


def _choice(choice: object) -> JSONValue:
    if choice is not None and not isinstance(choice, (bool, int, float, str)):
        raise TypeError(
            f"a choice must be None, a truth value, a number or a word, got {shown(choice)} "
            f"({type(choice).__name__});"
            " let the choices be names, and look up what they stand for"
        )
    if isinstance(choice, float) and choice - choice != 0:
        raise ValueError(f"a choice must be finite, got {choice}")
    return _explained(choice, lambda: as_json(choice))


def _explained(value: object, convert: Callable[[], Any]) -> Any:
    try:
        return convert()
    except ValueError as error:
        raise ValueError(f"{shown(value)}: {error}") from None
