"""What ``objective.command`` says: a program, its arguments, and what of its output is the result.
Pure.

The command is split into words as a shell would, but no shell is there to expand them. In a word
``{optim.lr}`` stands for a parameter, ``{trial.number}`` for a fact about the trial, ``{{`` and
``}}`` for the braces themselves.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import JSONValue

FIELD: Final = "objective.command"
FACTS: Final = (
    "trial.number",
    "trial.attempt",
    "trial.resumed",
    "trial.seed",
    "trial.device",
    "trial.checkpoint_dir",
    "trial.run_dir",
    "study.name",
    "params_file",
    "metrics_file",
)
"""What a placeholder may name besides the parameters."""

PATTERN: Final = "command:"
"""How a pattern of ``worker.allow_targets`` begins that is about programs."""

_KEYS: Final = ("command", "result", "overrides", "hydra")
_TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Result:
    """What the trial comes to: the last value of each metric in `metrics`, or what `regex` found
    last in the output.
    """

    metrics: tuple[str, ...] = ()
    regex: str | None = None


@dataclass(frozen=True)
class Program:
    """A command whose form is good: `words` with placeholders in them, the first one being the
    program itself.
    """

    words: tuple[str, ...]
    result: JSONValue = "last"
    overrides: bool | Literal["auto"] = "auto"
    hydra: bool | Literal["auto"] = "auto"

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                match[1]
                for word in self.words
                for match in _TOKEN.finditer(word)
                if match[1] is not None
            )
        )

    @property
    def appends_overrides(self) -> bool:
        """Whether every parameter follows as ``key=value``: on demand, or where the command
        mentions none itself.
        """
        if self.overrides == "auto":
            return not any(name == "params_file" or name not in FACTS for name in self.placeholders)
        return self.overrides

    @property
    def may_be_hydra(self) -> bool:
        """Whether it is told more if it is an app of Hydra's: on demand, or unless nothing is to be
        appended.
        """
        return self.hydra is True or (self.hydra == "auto" and self.overrides is not False)

    def hydra_settings(self, directory: str, number: int, job_id: str) -> dict[str, JSONValue]:
        """What an app of Hydra's is told of one attempt: its output directory and job; nothing that
        the command says itself.
        """
        if self._is_multirun:  # of many jobs, which Hydra numbers
            settings: dict[str, JSONValue] = {"hydra.sweep.dir": directory}
        else:
            settings = {"hydra.run.dir": directory, "hydra.job.num": number, "hydra.job.id": job_id}
        said = {word.lstrip("+").partition("=")[0] for word in self.words}
        return {key: value for key, value in settings.items() if key not in said}

    @property
    def _is_multirun(self) -> bool:
        """Whether ``-m`` follows the script or module, and not the interpreter or launcher that it
        is given to.
        """
        words = self.words
        begin = next((index + 1 for index, word in enumerate(words) if word.endswith(".py")), None)
        if begin is None:  # of a module: `python -u -m pkg.train`, `torchrun -m pkg.train`
            module = (
                at + 2 for at, pair in enumerate(itertools.pairwise(words)) if _names_module(*pair)
            )
            begin = next(module, 1)
        return any(word in ("-m", "--multirun") for word in words[begin:])

    def arguments(self, value_of: Callable[[str], JSONValue]) -> list[str]:
        """The words with the values of their placeholders in place."""
        values = {name: written(value_of(name)) for name in self.placeholders}
        return [
            _TOKEN.sub(
                lambda match: values[match[1]] if match[1] is not None else match[0][:1], word
            )
            for word in self.words
        ]

    def result_of(self, metrics: Sequence[str]) -> Result:
        """The rule for the result in a study with these metrics.

        Raises:
            ConfigError: it is none, or not for so many metrics.
        """
        rule = self.result
        if rule == "last":
            return Result()
        if isinstance(rule, Mapping) and list(rule) == ["metric"]:
            named = rule["metric"] if isinstance(rule["metric"], list) else [rule["metric"]]
            if not all(isinstance(name, str) and name for name in named) or len(named) != len(
                metrics
            ):
                several = (
                    f", a list of {len(metrics)} for {', '.join(metrics)}"
                    if len(metrics) > 1
                    else ""
                )
                raise ConfigError(
                    f"objective.result.metric={rule['metric']}: must be a key of the program's "
                    f"JSON lines{several}"
                )
            return Result(metrics=tuple(named))
        if isinstance(rule, Mapping) and list(rule) == ["regex"]:
            return Result(regex=_checked_regex(rule["regex"], metrics))
        raise ConfigError(
            f"objective.result={rule}: must be last, {{metric: KEY}} or {{regex: 'final: "
            f"([0-9.]+)'}}"
            f"{did_you_mean(str(rule), ('last',))}"
        )


def _names_module(option: str, word: str) -> bool:
    return option == "-m" and all(part.isidentifier() for part in word.split("."))


def read(objective: Mapping[str, JSONValue]) -> Program:
    """The program of an objective that has the key ``command``.

    Raises:
        ConfigError: The first rule that is broken, in one line.
    """
    if objective.get("_target_") not in (None, "???"):
        raise ConfigError(
            f"objective has _target_={objective['_target_']} and a command; take one of them "
            "out: ~objective._target_"
        )
    options = {key: value for key, value in objective.items() if key != "_target_"}
    for key in options:
        if key not in _KEYS:
            raise ConfigError(
                f"objective.{key}: {FIELD} takes {' and '.join(_KEYS[1:])} beside "
                f"it{did_you_mean(str(key), _KEYS)};"
                " what the program is to get goes under params"
            )
    words = _words(options["command"])
    overrides = options.get("overrides", "auto")
    if not isinstance(overrides, bool) and overrides != "auto":
        raise ConfigError(f"objective.overrides={overrides}: must be auto, true or false")
    hydra = options.get("hydra", "auto")
    if not isinstance(hydra, bool) and hydra != "auto":
        raise ConfigError(f"objective.hydra={hydra}: must be auto, true or false")
    if "${" in json.dumps(options, default=str):
        raise ConfigError(
            f"{FIELD}: write {{optim.lr}}, not ${{optim.lr}}; an interpolation belongs under params"
        )
    for word in words:
        _check_braces(word)
    if _TOKEN.search(words[0]):
        raise ConfigError(
            f"{FIELD}: the program itself ({words[0]!r}) must be fixed; only its arguments take "
            "placeholders"
        )
    return Program(tuple(words), options.get("result", "last"), overrides, hydra)


def check_placeholders(program: Program, has: Callable[[str], bool], known: Iterable[str]) -> None:
    """Returns when every placeholder names a parameter or a fact about the trial, and none both.

    Raises:
        ConfigError: One does not; with the closest of `known` parameters and the facts.
    """
    for name in program.placeholders:
        if name in FACTS and has(name):
            raise ConfigError(
                f"{FIELD}: {{{name}}} is a fact about the trial and a parameter too; rename the "
                "parameter"
            )
        if name not in FACTS and not has(name):
            guess = did_you_mean(name, [*known, *FACTS])
            raise ConfigError(
                f"{FIELD}: {{{name}}} is no parameter that every trial has{guess};"
                " write {{ and }} for the characters themselves"
            )


def is_program(objective: Mapping[str, JSONValue]) -> bool:
    """Whether the objective is a command, and not a Python function."""
    return objective.get("command") is not None


def label(objective: Mapping[str, JSONValue]) -> str:
    """The objective in a few words for people: the function's path, or the command as one would
    type it.
    """
    if not is_program(objective):
        return str(objective.get("_target_"))
    quoted = [
        (word, shlex.quote(re.sub("[{}]", "", word) or "x")) for word in read(objective).words
    ]
    return " ".join(
        shlex.quote(word) if needed.startswith("'") else word for word, needed in quoted
    )


def written(value: JSONValue) -> str:
    """A value as an argument: words as they are, anything else as compact JSON."""
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    )


def _words(command: Any) -> list[str]:
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"{FIELD}={command!r}: {str(error).lower()}") from None
    elif isinstance(command, list):
        for word in command:
            if isinstance(word, bool) or not isinstance(word, (str, int, float)):
                raise ConfigError(f"{FIELD}: {word!r} is no word; quote it")
        words = [str(word) for word in command]
    else:
        raise ConfigError(
            f"{FIELD}={command!r}: must be a command such as 'python train.py', or a list of its "
            "words"
        )
    if not words or not words[0]:
        raise ConfigError(
            f"{FIELD}={command!r}: there is no program in it, as in 'python train.py'"
        )
    return words


def _check_braces(word: str) -> None:
    for match in _TOKEN.finditer(word):
        if match[0] in ("{", "}"):
            raise ConfigError(
                f"{FIELD}: {word!r} has a {match[0]!r} alone; write {match[0] * 2!r} for the "
                "character itself"
            )
        if match[1] is not None and not match[1].strip():
            raise ConfigError(
                f"{FIELD}: {word!r} has a placeholder without a name; write '{{{{}}}}' for the "
                "characters"
            )


def _checked_regex(regex: Any, metrics: Sequence[str]) -> str:
    if not isinstance(regex, str):
        raise ConfigError(
            f"objective.result.regex={regex!r}: must be text, such as 'final: ([0-9.]+)'"
        )
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ConfigError(f"objective.result.regex={regex!r}: {error}") from None
    if groups != len(metrics):
        group = (
            f"{len(metrics)} groups ({', '.join(metrics)})"
            if len(metrics) > 1
            else "one group, the number: 'final: ([0-9.]+)'"
        )
        raise ConfigError(
            f"objective.result.regex={regex!r}: has {groups} groups; must have {group}"
        )
    return regex
