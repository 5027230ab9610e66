"""Rules for the options of samplers and pruners, checked before any of Optuna's constructors sees
them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import JSONValue


@dataclass(frozen=True)
class Option:
    """A rule for one option: its default, what it must be, in words, and the test of it."""

    default: JSONValue
    rule: str
    holds: Callable[[Any], bool]


def whole(default: int | None, least: int) -> Option:
    """A whole number, at least so much."""
    return Option(
        default, f"a whole number of at least {least}", lambda v: _is_int(v) and v >= least
    )


def share(default: float) -> Option:
    """A number from 0 to 1."""
    return Option(default, "a number from 0 to 1", _is_share)


def flag(default: bool) -> Option:
    """true or false."""
    return Option(default, "true or false", lambda v: isinstance(v, bool))


def one_of(*words: str) -> Option:
    """One of some words, the first by default."""
    return Option(words[0], " or ".join(words), lambda v: v in words)


def either(option: Option, word: str | None) -> Option:
    """Another option's rule or one special value, which becomes the default."""
    return Option(
        word,
        f"{option.rule}, or {'null' if word is None else word}",
        lambda v: v == word or option.holds(v),
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def read_options(
    group: str, settings: Mapping[str, JSONValue], known: Mapping[str, Mapping[str, Option]]
) -> tuple[str, dict[str, JSONValue]]:
    """The name in `settings` and all options of that name, defaults filled in.

    Raises:
        ConfigError: no such name, no such option, or a value an option cannot take.
    """
    name = settings.get("name")
    if name not in known:
        raise ConfigError(
            f"{group}={name}: must be one of {', '.join(known)}{did_you_mean(str(name), known)}"
        )
    rules = known[str(name)]
    result = {option: rule.default for option, rule in rules.items()}
    for option, value in settings.items():
        if option == "name":
            continue
        if option not in rules:
            takes = f"takes {', '.join(rules)}" if rules else "takes no options"
            raise ConfigError(
                f"{group}.{option}: {group} {name} {takes}{did_you_mean(option, rules)}"
            )
        if not rules[option].holds(value):
            raise ConfigError(f"{group}.{option}={value}: must be {rules[option].rule}")
        result[option] = value
    return str(name), result
