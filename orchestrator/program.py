"""``objective.command``: a program, its arguments, and which part of its output is the result.

All functions here are pure.

The command is split into words as a shell would split it, but no shell expands them. Within a word,
``{optim.lr}`` stands for a parameter, ``{trial.number}`` for a fact about the trial, and ``{{`` and
``}}`` for literal braces. The word ``{flag:train.save}`` is ``--save`` where that parameter is true
and is left out where it is false; ``{flag:train.save:--store:--no-store}`` names the words itself.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
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
"""The names that a placeholder may use besides parameters."""

PATTERN: Final = "command:"
"""The prefix of a pattern in ``worker.allow_targets`` that is about programs."""

OPTIONS: Final = ("result", "overrides", "hydra")
"""The keys of an objective besides ``command``."""

_KEYS: Final = ("command", *OPTIONS)
_FLAG: Final = "flag:"
_TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Result:
    """The result's source: the last value of each of `metrics`, or the last match of `regex`."""

    metrics: tuple[str, ...] = ()
    regex: str | None = None


@dataclass(frozen=True)
class Flag:
    """A word that says whether a parameter is true; `off` of None: no word where it is false."""

    name: str
    on: str
    off: str | None = None

    def word(self, value: JSONValue) -> str | None:
        """The word for the parameter's value, None where there is none.

        Raises:
            ConfigError: it is neither true nor false.
        """
        if not isinstance(value, bool):
            from orchestrator.model import value_label  # slow to import, and seldom needed

            raise ConfigError(
                f"{FIELD}: {{{_FLAG}{self.name}}} needs a parameter that is true or false, and "
                f"{self.name} is {value_label(value)}"
            )
        return self.on if value else self.off


@dataclass(frozen=True)
class Program:
    """A valid command: its `words`, with placeholders; the first word is the program itself."""

    words: tuple[str, ...]
    result: JSONValue = "last"
    overrides: bool | Literal["auto"] = "auto"
    hydra: bool | Literal["auto"] = "auto"

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The distinct names of all placeholders, in order; of a flag the name of its parameter."""
        found = (
            flag.name if (flag := _flag(word)) is not None else match[1]
            for word in self.words
            for match in _TOKEN.finditer(word)
        )
        return tuple(dict.fromkeys(name for name in found if name is not None))

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The words that are flags, in order."""
        return tuple(flag for word in self.words if (flag := _flag(word)) is not None)

    @property
    def appends_overrides(self) -> bool:
        """Whether all parameters are appended as ``key=value``: on request, or if none is named."""
        if self.overrides == "auto":
            return not any(name == "params_file" or name not in FACTS for name in self.placeholders)
        return self.overrides

    @property
    def may_be_hydra(self) -> bool:
        """Whether the program gets Hydra settings if it is a Hydra app: on request, or by default.

        By default it gets none if `overrides` is False, so that nothing is appended.
        """
        return self.hydra is True or (self.hydra == "auto" and self.overrides is not False)

    def hydra_settings(self, directory: str, number: int, job_id: str) -> dict[str, JSONValue]:
        """The settings a Hydra app gets for one attempt: its output directory and job.

        Settings that the command itself contains are left out.
        """
        if self._is_multirun:  # it runs many jobs, which Hydra numbers
            settings: dict[str, JSONValue] = {"hydra.sweep.dir": directory}
        else:
            settings = {"hydra.run.dir": directory, "hydra.job.num": number, "hydra.job.id": job_id}
        given = {word.lstrip("+").partition("=")[0] for word in self.words}
        return {key: value for key, value in settings.items() if key not in given}

    @property
    def _is_multirun(self) -> bool:
        """Whether ``-m`` is an option of the script, not of an interpreter or launcher."""
        words = self.words
        begin = next((index + 1 for index, word in enumerate(words) if word.endswith(".py")), None)
        if begin is None:  # a module: `python -u -m pkg.train`, `torchrun -m pkg.train`
            pairs = enumerate(itertools.pairwise(words))
            begin = next((at + 2 for at, pair in pairs if _names_module(*pair)), 1)
        return any(word in ("-m", "--multirun") for word in words[begin:])

    def arguments(self, value_of: Callable[[str], JSONValue]) -> list[str]:
        """The words with every placeholder replaced by its value.

        Raises:
            ConfigError: the parameter of a flag is neither true nor false.
        """
        values = {name: value_of(name) for name in self.placeholders}

        def replaced(match: re.Match[str]) -> str:
            return written(values[match[1]]) if match[1] is not None else match[0][:1]

        words = []
        for word in self.words:
            flag = _flag(word)
            text = _TOKEN.sub(replaced, word) if flag is None else flag.word(values[flag.name])
            if text is not None:
                words.append(text)
        return words

    def result_of(self, metrics: Sequence[str]) -> Result:
        """Where the result comes from, in a study with these metrics.

        Raises:
            ConfigError: ``objective.result`` is malformed, or is for another number of metrics.
        """
        rule = self.result
        if rule == "last":
            return Result()
        if isinstance(rule, Mapping) and list(rule) == ["metric"]:
            named = rule["metric"] if isinstance(rule["metric"], list) else [rule["metric"]]
            valid = all(isinstance(name, str) and name for name in named)
            if not valid or len(named) != len(metrics):
                what = "a key of the program's JSON lines"
                if len(metrics) > 1:
                    what = (
                        f"a list of {len(metrics)} keys of the program's JSON lines, one each for"
                    )
                    what += f" {', '.join(metrics)}"
                raise ConfigError(f"objective.result.metric={rule['metric']}: must be {what}")
            return Result(metrics=tuple(named))
        if isinstance(rule, Mapping) and list(rule) == ["regex"]:
            return Result(regex=_checked_regex(rule["regex"], metrics))
        raise ConfigError(
            f"objective.result={rule}: must be last, {{metric: KEY}} or {{regex: 'final: "
            f"([0-9.]+)'}}{did_you_mean(str(rule), ('last',))}"
        )


def _names_module(option: str, word: str) -> bool:
    return option == "-m" and all(part.isidentifier() for part in word.split("."))


def read(objective: Mapping[str, JSONValue]) -> Program:
    """The program of an objective that has the key ``command``.

    Raises:
        ConfigError: A rule is broken; the message, one line, names the first.
    """
    if objective.get("_target_") not in (None, "???"):
        raise ConfigError(
            f"objective has both _target_={objective['_target_']} and a command; remove one of "
            "them, for instance with ~objective._target_"
        )
    options = {key: value for key, value in objective.items() if key != "_target_"}
    for key in options:
        if key not in _KEYS:
            raise ConfigError(
                f"objective.{key}: unknown key; with {FIELD} the allowed keys are"
                f" {', '.join(_KEYS[1:])}{did_you_mean(str(key), _KEYS)}; parameters of the program"
                " go under params"
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
            f"{FIELD}: write {{optim.lr}}, not ${{optim.lr}}; interpolations belong under params"
        )

    for word in words:
        _check_braces(word)
        _flag(word)
    if _TOKEN.search(words[0]):  # the worker must know beforehand what it is asked to start
        raise ConfigError(
            f"{FIELD}: the program itself ({words[0]!r}) must be fixed; placeholders are allowed "
            "only in its arguments"
        )
    return Program(tuple(words), options.get("result", "last"), overrides, hydra)


def check_placeholders(program: Program, has: Callable[[str], bool], known: Iterable[str]) -> None:
    """Returns if every placeholder names either a parameter or a fact about the trial.

    Args:
        has: whether every trial has a parameter with this name.
        known: the names of parameters, to suggest the closest one.

    Raises:
        ConfigError: a placeholder names neither, or both.
    """
    for name in program.placeholders:
        if name in FACTS and has(name):
            raise ConfigError(
                f"{FIELD}: {{{name}}} is both a fact about the trial and a parameter; rename the "
                "parameter"
            )
        if ":" in name and not has(name):
            guess = did_you_mean(name.partition(":")[0], [_FLAG[:-1]])
            raise ConfigError(
                f"{FIELD}: {{{name}}} is not a form of placeholder{guess}; there are {{optim.lr}} "
                f"for a value and {{{_FLAG}train.save}}, a word of its own, for a flag"
            )
        if name not in FACTS and not has(name):
            guess = did_you_mean(name, [*known, *FACTS])
            raise ConfigError(
                f"{FIELD}: {{{name}}} is not a parameter that every trial has{guess}; write {{{{ "
                f"and }}}} for literal braces"
            )


def is_program(objective: Mapping[str, JSONValue]) -> bool:
    """Whether the objective is a command rather than a Python function."""
    return objective.get("command") is not None


def label(objective: Mapping[str, JSONValue]) -> str:
    """The objective for people: the function's path, or the command as one would type it."""
    if not is_program(objective):
        return str(objective.get("_target_"))
    # The braces of placeholders alone are no reason to quote a word.
    quoted = [
        (word, shlex.quote(re.sub("[{}]", "", word) or "x")) for word in read(objective).words
    ]
    return " ".join(
        shlex.quote(word) if needed.startswith("'") else word for word, needed in quoted
    )


def written(value: JSONValue) -> str:
    """A value as an argument: a string as it is, anything else as compact JSON."""
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
                raise ConfigError(f"{FIELD}: {word!r} is not a word; quote it")
        words = [str(word) for word in command]
    else:
        raise ConfigError(
            f"{FIELD}={command!r}: must be a command such as 'python train.py', or a list of its "
            "words"
        )
    if not words or not words[0]:
        raise ConfigError(f"{FIELD}={command!r}: must name a program, as in 'python train.py'")
    return words


def _check_braces(word: str) -> None:
    for match in _TOKEN.finditer(word):
        if match[0] in ("{", "}"):
            raise ConfigError(
                f"{FIELD}: {word!r} has an unmatched {match[0]!r}; write {match[0] * 2!r} for a "
                "literal brace"
            )
        if match[1] is not None and not match[1].strip():
            raise ConfigError(
                f"{FIELD}: {word!r} has a placeholder without a name; write '{{{{}}}}' for "
                "literal braces"
            )


def _flag(word: str) -> Flag | None:
    """The flag that a word is; None for any other word.

    Raises:
        ConfigError: it is written in a way that has no meaning.
    """
    found = next((m for m in _TOKEN.finditer(word) if (m[1] or "").startswith(_FLAG)), None)
    if found is None:
        return None
    name, *words = found[1].removeprefix(_FLAG).split(":")
    if found[0] != word or not name.strip() or len(words) > 2 or "" in words:
        raise ConfigError(
            f"{FIELD}: {word!r} is not a flag; a flag is a word of its own: {{{_FLAG}train.save}} "
            f"for --save or nothing, {{{_FLAG}train.save:--store}} to name the word, "
            f"{{{_FLAG}train.save:--store:--no-store}} to name both"
        )
    on = words[0] if words else f"--{name.rpartition('.')[2]}"
    return Flag(name, on, words[1] if len(words) == 2 else None)


def _checked_regex(regex: Any, metrics: Sequence[str]) -> str:
    if not isinstance(regex, str):
        raise ConfigError(
            f"objective.result.regex={regex!r}: must be a string, such as 'final: ([0-9.]+)'"
        )
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        raise ConfigError(f"objective.result.regex={regex!r}: {error}") from None
    if groups != len(metrics):
        rule = "one group for the number, as in 'final: ([0-9.]+)'"
        if len(metrics) > 1:
            rule = f"{len(metrics)} groups ({', '.join(metrics)})"
        raise ConfigError(
            f"objective.result.regex={regex!r}: has {groups} groups; must have {rule}"
        )
    return regex
