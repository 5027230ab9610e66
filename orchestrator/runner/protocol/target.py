"""Resolves ``objective._target_`` to the function that it names, and checks how to call it."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator import program
from orchestrator.errors import ConfigError, denied, did_you_mean

if TYPE_CHECKING:
    from orchestrator.model import Interrupted, JSONValue

_FIELD = "objective._target_"
_OUR_PROBES = "orchestrator.training.probes."
_RUN_PROGRAM = "orchestrator.runner.program.command.run"
_CFG = ("cfg", "config", "conf")


def target_of(objective: Mapping[str, JSONValue]) -> tuple[str, dict[str, JSONValue]]:
    """Splits an objective into its dotted path and keyword arguments.

    For a command, they are those of the function that runs it.

    Raises:
        ConfigError: There is no usable ``_target_`` or command, or a key of Hydra's instantiate
            that is not supported.
    """
    if program.is_program(objective):
        command = program.read(objective)
        kwargs: dict[str, JSONValue] = {
            "result": command.result,
            "overrides": command.overrides,
            "hydra": command.hydra,
        }
        return _RUN_PROGRAM, {"command": list(command.words), **kwargs}
    target = objective.get("_target_")
    if (
        not isinstance(target, str)
        or not all(part.isidentifier() for part in target.split("."))
        or "." not in target
    ):
        raise ConfigError(
            f"{_FIELD}: {target!r} is not a dotted path to a function, as in 'package.module.train'"
        )
    kwargs = {key: value for key, value in objective.items() if key != "_target_"}
    reserved = sorted(key for key in kwargs if key.startswith("_") and key.endswith("_"))
    if reserved:
        raise ConfigError(
            f"objective.{reserved[0]}: not supported; the function is called directly, without "
            "Hydra's instantiate"
        )
    return target, kwargs


def check_allowed(objective: Mapping[str, JSONValue], patterns: Sequence[str] | None) -> None:
    """Returns if this host may run the objective: `patterns` is None, or one of them matches it.

    A function is matched by its ``_target_``. A command is matched by ``command:`` and its first
    word as written, and only by patterns that start with ``command:``. Patterns are case-sensitive
    shell patterns; ``*`` also matches dots and slashes, but no pattern matches a path that contains
    ``..``. Nothing is imported.

    Raises:
        ConfigError: None matches, or there is no usable ``_target_`` or command.
    """
    target, _ = target_of(objective)
    field, name = _FIELD, target
    started = next(iter(words_of(objective)), None)
    if started is not None:
        field, name = program.FIELD, f"{program.PATTERN}{started}"
    if patterns is not None and not any(_allows(pattern, name, started) for pattern in patterns):
        allowed = ", ".join(patterns) or "nothing"
        raise ConfigError(
            f"{field}: {name!r} may not run on this host; worker.allow_targets allows {allowed}"
        )


def check_probe_allowed(
    name: str, probe: Mapping[str, JSONValue], patterns: Sequence[str] | None
) -> None:
    """Returns if this host may run the probe: its function, unless it is one of ours, and the
    user's function that it is to call. As `check_allowed`.

    Raises:
        ConfigError: no pattern matches.
    """
    for key in ("_target_", "build"):
        function = probe.get(key)
        if not isinstance(function, str) or function.startswith(_OUR_PROBES) or patterns is None:
            continue
        if not any(_allows(pattern, function, None) for pattern in patterns):
            allowed = ", ".join(patterns) or "nothing"
            raise ConfigError(
                f"probes.{name}.{key}: {function!r} may not run on this host; "
                f"worker.allow_targets allows {allowed}"
            )


def _allows(pattern: str, name: str, started: str | None) -> bool:
    if started is not None and (
        not pattern.startswith(program.PATTERN) or ".." in started.split("/")
    ):
        return False
    return fnmatchcase(name, pattern)


def words_of(objective: Mapping[str, JSONValue]) -> tuple[str, ...]:
    """The words of an objective that is a command, as written; none for a function.

    Raises:
        ConfigError: The command is malformed.
    """
    return program.read(objective).words if program.is_program(objective) else ()


def locate(target: str) -> Callable[..., Any]:
    """Returns the callable that `target` names, importing what must be imported.

    Raises:
        ConfigError: An attribute on the way is missing or is another package's module, or the
            result cannot be called.
        BaseException: Whatever the imported module itself raises.
    """
    parts = target.split(".")
    found: Any = importlib.import_module(parts[0])
    for count, part in enumerate(parts[1:], 2):
        if not hasattr(found, part) and isinstance(found, ModuleType):
            _import_submodule(".".join(parts[:count]))
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            guess = did_you_mean(part, [n for n in names if callable(getattr(found, n, None))])
            above = ".".join(parts[: count - 1])
            unreadable = _unreadable(getattr(found, "__path__", ()))
            raise ConfigError(
                f"{_FIELD}: {target!r}: {above!r} has no attribute {part!r}{guess}{unreadable}"
            )

        owner, found = found, getattr(found, part)
        if inspect.isclass(owner) and isinstance(
            inspect.getattr_static(owner, part, None), FunctionType
        ):
            raise ConfigError(
                f"{_FIELD}: {target!r} is a method of the class {owner.__name__!r}: instantiate "
                "it in its module and name the method of that instance"
            )
        if isinstance(found, ModuleType) and found.__name__.partition(".")[0] != parts[0]:
            # Otherwise `worker.allow_targets=[my_project.*]` would allow `my_project.os.system`.
            alias = ".".join(parts[:count])
            raise ConfigError(
                f"{_FIELD}: {target!r}: {alias!r} is the module {found.__name__!r}; use that "
                "name instead"
            )
    if not callable(found):
        raise ConfigError(
            f"{_FIELD}: {target!r} is not callable; its type is {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without ``@hydra.main``, which would read the command line itself."""
    return function.__wrapped__ if _is_hydra_main(function) else function  # type: ignore[attr-defined]


def _is_hydra_main(function: Callable[..., Any]) -> bool:
    made_by = function.__globals__.get("__name__") if isinstance(function, FunctionType) else None
    return made_by == "hydra.main" and callable(getattr(function, "__wrapped__", None))


def arguments_of(function: Callable[..., Any], kwargs: Iterable[str]) -> tuple[str, ...]:
    """The positional arguments for `function`: ``cfg``, ``trial``, or both in this order.

    It gets only the trial, as in Optuna, if its first parameter is named ``trial``, or if it takes
    a single argument. It gets only cfg if that single argument is named ``cfg``, ``config`` or
    ``conf``, or if the function is decorated with ``@hydra.main``. A second parameter with a
    default counts only if its name contains ``trial``: ``train(cfg, verbose=False)`` takes one
    argument.
    """
    if _is_hydra_main(function):
        return ("cfg",)
    # Other callables may not be hashable.
    judge = _judge_function if isinstance(function, FunctionType) else _judge
    return judge(function, tuple(sorted(kwargs)))


def _judge(function: Callable[..., Any], names: tuple[str, ...]) -> tuple[str, ...]:
    both = ("cfg", "trial")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in callables have none
        return both
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return both
    if first.name == "trial":
        return ("trial",)
    one, two = (_refusal(signature, count, names) is None for count in (1, 2))
    if not one or (two and not _has_default_for_others(signature)):
        return both
    return ("cfg",) if first.name in _CFG else ("trial",)


def _has_default_for_others(signature: inspect.Signature) -> bool:
    """Whether the second parameter has a default and, going by its name, is not for the trial."""
    second = next(itertools.islice(signature.parameters.values(), 1, None), None)
    return second is not None and second.default is not second.empty and "trial" not in second.name


_judge_function = cache(_judge)  # called in the keeper, so that its forks inherit the answer


def check_call(target: str, function: Callable[..., Any], kwargs: Iterable[str]) -> None:
    """Returns if `function` can be called as `arguments_of` says, and a call can return a result.

    Raises:
        ConfigError: it cannot.
    """
    if (problem := _no_function(undecorated(function))) is not None:
        raise ConfigError(f"{_FIELD}: {target!r} {problem}")
    names = sorted(kwargs)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    leading = arguments_of(function, names)
    refusal = _refusal(signature, len(leading), names)
    if refusal is not None:
        call = ", ".join([*leading, *(f"{name}=…" for name in names)])
        swapped = ""
        if leading == ("trial",) and "cfg" in signature.parameters:
            swapped = "; a function that takes both must take cfg first"
        raise ConfigError(f"{_FIELD}: {target!r} cannot be called as ({call}): {refusal}{swapped}")


def _no_function(found: Callable[..., Any]) -> str | None:
    """What is wrong with a callable whose call would train nothing, and what to do.

    None for any other.
    """
    if inspect.isclass(found):
        return (
            f"is a class: instantiate it in its module, as in objective = {found.__name__}(…), "
            "and name that instance (if it has __call__) or a method of it; or name a function"
        )
    called = (
        found if inspect.isroutine(found) or isinstance(found, partial) else type(found).__call__
    )
    if inspect.iscoroutinefunction(called):
        return (
            "is an async function, so a call runs nothing: name a function that calls "
            "asyncio.run(…) and returns the result"
        )
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        return (
            "is a generator, so a call runs nothing: return the final result instead of yielding "
            "it, and report intermediate values with trial.report"
        )
    return None


def _refusal(signature: inspect.Signature, leading: int, names: Iterable[str]) -> str | None:
    """Why a function cannot be called with `leading` positional arguments and these names.

    None if it can.
    """
    try:
        signature.bind(*[None] * leading, **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return None


def describe_import_error(target: str, error: BaseException) -> str:
    """Why `target` could not be imported, in one line: the exception's message."""
    note = ""
    if isinstance(error, ModuleNotFoundError):
        note = _unreadable(sys.path)
        # Its own module, not one that it imports.
        if not note and error.name and f"{target}.".startswith(f"{error.name}."):
            note = f"; searched the working directory {Path.cwd()}, then the installed packages"
    return f"{_FIELD}: {target!r} cannot be imported: {describe_exception(error)}{note}"


def imports_no_more(problem: str) -> Interrupted:
    """The end of an attempt whose objective was importable before, but is not now.

    That is not the trial's fault.
    """
    from orchestrator.model import Interrupted  # not needed to check an objective

    action = "runs here" if problem.startswith(program.FIELD) else "imports"
    why = problem.removeprefix(f"{_FIELD}: ")
    return Interrupted(f"the objective no longer {action}: {why}", lost=True)


def describe_exception(error: BaseException, limit: int = 500) -> str:
    """An exception in one line of at most `limit` characters: ``ValueError: text``."""
    try:
        text = " ".join(str(error).split())
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        text = f"(its text cannot be shown: {type(broken).__name__})"
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"


# Modules that take a trial and refuse ours with an error that does not say what to do here.
_INSTEAD = {
    "optuna.artifacts": "Use trial.log_artifact(path) to store a file with the trial.",
    "optuna_integration.pytorch_distributed": (
        "Use the trial directly, only in the process that called the objective, and send its "
        "values to the other processes (torch.distributed.broadcast_object_list)."
    ),
}


def hint_for(error: BaseException) -> str | None:
    """What to use instead of an Optuna helper that raised `error` for want of an `optuna.Trial`."""
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        for name, instead in _INSTEAD.items():
            if isinstance(error, (ValueError, AttributeError)) and f"{module}.".startswith(
                f"{name}."
            ):
                return instead
        trace = trace.tb_next
    return None


def causes_of(error: BaseException) -> tuple[str, ...]:
    """The names of the class of `error` and its bases, with and without module, upwards.

    ``OSError`` gives OSError, builtins.OSError, Exception, builtins.Exception.
    """
    classes = [cls for cls in type(error).__mro__ if cls not in (BaseException, object)]
    names = [
        name for cls in classes for name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}")
    ]
    return tuple(dict.fromkeys(names))


def _unreadable(directories: Iterable[str]) -> str:
    """A remark if one of these directories cannot be read, for when something was not found."""
    return next(
        (f"; {why}" for directory in directories if (why := denied(directory or os.curdir))), ""
    )


def _import_submodule(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it exists, but something that it imports does not
            raise
