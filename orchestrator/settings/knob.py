"""One setting: its default, what a value must be, and what it means."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Rule:
    """What a value must be besides of its type: in words that follow "must be", and as a test.

    `choices` are the only values there are, where there are so few; `whole` says that numbers must
    be whole although the type does not say it.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Knob:
    """A setting as people read about it.

    Attributes:
        default: the value it has when nobody sets it.
        meaning: one line of Markdown, with code in backticks and no links.
        rule: what a value must be; None where its type says it all.
        null: what null stands for, where null is allowed, or an interpolation that ships.
        more: what only the reference says, in Markdown.
        shipped: what the shipped YAML has in place of the default: an interpolation.
        secret: the value may hold a password, so no message quotes it.
    """

    default: Any
    meaning: str
    rule: Rule | None = None
    null: str = ""
    more: str = ""
    shipped: str | None = None
    secret: bool = False


def knob(
    default: Any,
    meaning: str,
    rule: Rule | None = None,
    *,
    null: str = "",
    more: str = "",
    shipped: str | None = None,
    secret: bool = False,
) -> Any:
    """Returns a dataclass field that carries its `Knob`."""
    metadata = {"knob": Knob(default, meaning, rule, null, more, shipped, secret)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), repr=not secret, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


def knobs(schema: type[Any]) -> dict[str, Knob]:
    """Returns the settings of a section by their names, in the order in which they are written."""
    return {f.name: f.metadata["knob"] for f in dataclasses.fields(schema)}


# ---------------------------------------------------------------------------------------- the rules


def at_least(low: int) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low)


def within(low: int, high: int) -> Rule:
    return Rule(f"from {low:,} to {high:,}", lambda value: low <= value <= high)


def above(low: float, high: float = math.inf) -> Rule:
    limit = "" if high == math.inf else f" and at most {high:,}"
    return Rule(f"greater than {low:g}{limit}", lambda value: low < value <= high)


def one_of(*words: str) -> Rule:
    listed = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return Rule(listed, lambda value: value in words, words)


def matching(pattern: str, words: str) -> Rule:
    return Rule(words, lambda value: re.fullmatch(pattern, value) is not None)


def word_or_whole(word: str, low: int, high: int | None = None, *, of: str) -> Rule:
    """A whole number of something, or one special word."""
    limits = f"at least {low}" if high is None else f"{low} to {high:,}"
    return Rule(
        f"'{word}' or a whole number of {of}, {limits}",
        lambda value: (
            value == word or (_is_whole(value) and low <= value and (high is None or value <= high))
        ),
        whole=True,
    )


SHARE = Rule("from 0 to 1", lambda value: 0 <= value <= 1)
NOT_EMPTY = Rule("a list of at least one entry, or null", lambda value: len(value) > 0)
PORT = Rule("from 1 to 65535", lambda value: 1 <= value <= 65535)
SEED = Rule("from 0 to 4,294,967,295", lambda value: 0 <= value < 2**32)


# ----------------------------------------------------------------------------------------- checking


def check(section: str, settings: Any) -> None:
    """Checks every setting of a filled section: its type and its rule.

    Raises:
        ConfigError: names the field, the value (unless it may hold a password) and the rule.
    """
    hints = typing.get_type_hints(type(settings))
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if not _fits(value, hints[f.name]):
            raise ConfigError(f"{_assigned(section, f, value)}: must be {type_words(f)}")
        check_rule(section, f, value)


def check_rule(section: str, f: dataclasses.Field[Any], value: Any, typed: Any = None) -> None:
    """Checks a value of the right type; a message quotes it as `typed`, if that is given.

    Raises:
        ConfigError: as `check`.
    """
    this: Knob = f.metadata["knob"]
    words = None
    if isinstance(value, float) and not math.isfinite(value):
        words = "a finite number"
    elif value is None:
        # null is a value where it is said what it stands for
        words = this.rule.words if this.rule is not None and not this.null else None
    elif this.rule is not None and not this.rule.holds(value):
        words = this.rule.words + did_you_mean(str(value), this.rule.choices)
    if words is not None:
        raise ConfigError(
            f"{_assigned(section, f, value if typed is None else typed)}: must be {words}"
        )


def _assigned(section: str, f: dataclasses.Field[Any], value: Any) -> str:
    return f"{section}.{f.name}" + ("" if f.metadata["knob"].secret else f"={value!r}")


def unknown(section: str, key: str, schema: type[Any]) -> ConfigError:
    """Returns the error for a setting that a section does not have."""
    names = [f.name for f in dataclasses.fields(schema)]
    guess = did_you_mean(f"{section}.{key}", [f"{section}.{name}" for name in names])
    return ConfigError(f"unknown setting {section}.{key}{guess}; {section} has {', '.join(names)}")


_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a word",
    "bool": "true or false",
    "Path": "a path",
    "None": "null",
    "Any": "a value",
    "dict[str, Any]": "a mapping",
    "list[int | str]": "a list like [0,1] or [cpu]",
    "list[str]": "a list like [a,b]",
}


def type_words(f: dataclasses.Field[Any]) -> str:
    """Returns a field's type in words: ``int | None`` reads "a whole number or null"."""
    annotation = str(f.type)
    for name in ("list[int | str]", "list[str]"):
        annotation = annotation.replace(name, name.replace(" | ", "/"))
    return " or ".join(_TYPE_WORDS[part.replace("/", " | ")] for part in annotation.split(" | "))


def takes_whole(f: dataclasses.Field[Any]) -> bool:
    """Whether a number in this field must be whole."""
    this: Knob = f.metadata["knob"]
    return str(f.type).split(" | ")[0] == "int" or (this.rule is not None and this.rule.whole)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a number too, but true is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if hint is Any:
        return True
    if hint is int:
        return _is_whole(value)
    if hint is float:
        return _is_whole(value) or isinstance(value, float)
    return isinstance(value, hint if origin is None else origin)
