"""Parameters that an objective requests as it runs: Optuna's `suggest_*`, via the worker."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from orchestrator.errors import did_you_mean
from orchestrator.model import JSONValue
from orchestrator.runner.protocol.channel import Line, MessageTooLongError
from orchestrator.runner.protocol.values import as_json, as_number, preview

Choice = TypeVar("Choice", bound=bool | int | float | str | None)

KINDS: Final = ("float", "int", "categorical")
_MAX_NAME: Final = 512  # Optuna's column for parameter names
_STORED = (
    "the objective has no access to the study's storage; use trial.set_user_attr and "
    "trial.log_artifact"
)
_NOT_HERE: Final = dict.fromkeys(
    ("storage", "system_attrs", "set_system_attr", "study_id", "_trial_id", "_study_id"), _STORED
)
_REFUSALS: Final[Mapping[str, type[Exception]]] = {"TypeError": TypeError, "ValueError": ValueError}
_WARNINGS: Final[Mapping[str, type[Warning]]] = {"RuntimeWarning": RuntimeWarning}


class WorkerGoneError(SystemExit):
    """The worker that would answer is gone, and this process is about to be ended.

    That is not the trial's fault.

    Not an `Exception`, so that an objective that catches those does not mistake it for its own
    failure.
    """


class Suggests:
    """The part of a trial that suggests parameters; a subclass implements `_ask`."""

    def __init__(self) -> None:
        # Question and internal number, by name.
        self._suggestions: dict[str, tuple[Line, Any]] = {}
        self._suggesting = threading.RLock()

    def _ask(self, question: Line) -> Line | None:
        """The worker's answer to a question about a parameter; None if the worker is gone."""
        raise NotImplementedError

    def _fixed(self, name: str) -> tuple[JSONValue, ...]:
        """The value that the study's `params` give the name, in a tuple of one.

        Empty if they give none.
        """
        return ()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from `low` to `high`, inclusive, like `optuna.Trial.suggest_float`.

        The same in every attempt.

        If the study's grid, search or `params` have the name, it is the value that the trial has
        there.

        Args:
            name: At most 512 characters.
            low: A finite number; above 0 with `log`.
            high: A finite number, at least `low`.
            step: Suggest only `low`, `low` + `step` …; not allowed with `log`.
            log: Whether to search the range on a logarithmic scale.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The arguments are not a valid range, contradict an earlier call with this
                name, or exclude the value that the trial has from its grid, its search, its
                `params` or by hand.
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
        """An integer from `low` to `high`, inclusive, like `optuna.Trial.suggest_int`.

        The same in every attempt.

        If the study's grid, search or `params` have the name, it is the value that the trial has
        there.

        Args:
            name: At most 512 characters.
            low: An integer; at least 1 with `log`.
            high: An integer, at least `low`.
            step: Suggest only `low`, `low` + `step` …; must be 1 with `log`.
            log: Whether to search the range on a logarithmic scale.

        Raises:
            TypeError: See `suggest_float`.
            ValueError: See `suggest_float`.
        """
        arguments = {
            "low": _plain(low),
            "high": _plain(high),
            "step": _plain(step),
            "log": bool(log),
        }
        return int(self._suggest(name, "int", arguments))

    def suggest_categorical(self, name: str, choices: Iterable[Choice]) -> Choice:
        """One of `choices` (the object itself), like `optuna.Trial.suggest_categorical`.

        The same in every attempt.

        If the study's grid, search or `params` have the name, it is the value that the trial has
        there.

        Args:
            name: At most 512 characters.
            choices: None, bools, finite numbers and strings; at least one. The same in every trial
                of the study.

        Raises:
            TypeError: A choice has another type.
            ValueError: See `suggest_float`; or `choices` is empty.
        """
        offered = list(choices)
        plain: list[JSONValue] = [_choice(choice) for choice in offered]
        return offered[int(self._suggest(name, "categorical", {"choices": plain}))]

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """`suggest_float`, under a name that Optuna deprecated in 3.0."""
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """`suggest_float` with `log`, under a name that Optuna deprecated in 3.0."""
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """`suggest_float` with `step`, under a name that Optuna deprecated in 3.0."""
        return self.suggest_float(name, low, high, step=q)

    def _suggested(self) -> dict[str, Any]:
        """The values suggested in this attempt, by name."""
        suggestions = list(self._suggestions.items())
        return {name: _value(question, internal) for name, (question, internal) in suggestions}

    def _suggest(self, name: str, kind: str, arguments: dict[str, JSONValue]) -> float:
        """Optuna's internal number for the value: the number itself, or the index of the choice."""
        question: Line = {"suggest": [_name(name), kind, arguments]}
        with self._suggesting:
            earlier = self._suggestions.get(name)
            if earlier is not None and earlier[0] == question:
                return float(earlier[1])

            fixed = self._fixed(name)
            try:
                answer = self._ask({**question, "fixed": fixed} if fixed else question)
            except MessageTooLongError as error:
                raise ValueError(f"parameter {preview(name)}: {error}") from None
            if answer is None:
                raise WorkerGoneError("the worker that answers suggest_* is gone")
            for category, text in answer.get("warnings", ()):
                warnings.warn(text, _WARNINGS.get(category, UserWarning), stacklevel=3)
            if "refused" in answer:
                category, text = answer["refused"]
                raise _REFUSALS.get(category, ValueError)(text)

            internal = float(answer["internal"])
            self._suggestions.setdefault(name, (question, internal))
            return internal

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _NOT_HERE:
                text += f": {_NOT_HERE[name]}"
            elif not name.startswith("_"):
                text += did_you_mean(name, [n for n in dir(type(self)) if not n.startswith("_")])
            raise AttributeError(text)


def _value(question: Line, internal: float) -> JSONValue:
    _, kind, arguments = question["suggest"]
    if kind == "categorical":
        return arguments["choices"][int(internal)]
    return int(internal) if kind == "int" else internal


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(
            f"the name of a parameter must be a string, got {preview(name)} ({type(name).__name__})"
        )
    if len(name) > _MAX_NAME:
        raise ValueError(
            f"the name of a parameter must have at most {_MAX_NAME} characters, got {len(name)}"
        )
    text: str = _explained(name, lambda: as_json(name))
    return text


def _plain(number: object) -> float | int:
    """A number for JSON: integers stay integers, whichever library they come from."""
    as_number(number)
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return as_number(number)


def _choice(choice: object) -> JSONValue:
    if choice is not None and not isinstance(choice, (bool, int, float, str)):
        raise TypeError(
            f"a choice must be None, a bool, a number or a string, got {preview(choice)}"
            f" ({type(choice).__name__}); use names as choices, and look up the objects by name"
        )
    if isinstance(choice, float) and choice - choice != 0:
        raise ValueError(f"a choice must be finite, got {choice}")
    return _explained(choice, lambda: as_json(choice))


def _explained(value: object, convert: Callable[[], Any]) -> Any:
    try:
        return convert()
    except ValueError as error:
        raise ValueError(f"{preview(value)}: {error}") from None
