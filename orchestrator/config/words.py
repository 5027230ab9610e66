"""Values written as words of a command line: the inverse of reading them.

Hydra's grammar is imported only where a word is not plain.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from orchestrator.config.schema import SECTIONS
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, JSONValue, Searched, StudySpec, at, has, value_label

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_RESERVED = ("null", "true", "false", "nan", "inf")
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_PLAIN_FLOAT = re.compile(r"-?\d+\.\d+(e[-+]\d+)?|-?\d+e[-+]\d+")


def hydra_word(value: JSONValue) -> str:
    """Returns `value` in Hydra's override grammar: parsed again it is the same value, of the same
    type.

    Interpolations are kept. The word may have to be quoted for a shell.

    Raises:
        ConfigError: the grammar has no way to write it (a mapping with a key such as ``1`` or
            ``ü``).
    """
    word = _written(value)
    if _is_plain(value, word):
        return word
    from orchestrator.config import grammar

    try:
        same = repr(grammar.parse_value(word, source=word)) == repr(value)  # == takes 1 for true
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"{value_label(value)}: Hydra's override grammar has no way to write this"
        )
    return word


def _is_plain(value: JSONValue, word: str) -> bool:
    """Whether a word is well known to mean its value."""
    if isinstance(value, float):
        return _PLAIN_FLOAT.fullmatch(word) is not None
    return value is None or isinstance(value, (bool, int)) or word == value


def rerun_words(
    declared: Mapping[str, JSONValue],
    requested: Mapping[str, JSONValue],
    params: Mapping[str, Any],
    groups: Collection[str],
    grid: Collection[Axis] = (),
) -> list[str]:
    """Returns the overrides with which a launch gives a study's parameters exactly these values.

    Lay them over the words of the study. None is quoted for a shell.

    Args:
        declared: of grid and search, by dotted path; each replaces whatever is there, as it does in
            a trial.
        requested: of what the objective requested while it ran, by the names that it used.
        params: the defaults that the overrides are laid over.
        groups: the names of all config groups.
        grid: the axes of the study, some of which may be of config groups: an option of them is
            chosen, not set.

    Raises:
        ConfigError: as `hydra_word`, or the grammar has no way to write a path, or `params` cannot
            hold a name.
    """
    of_groups = {axis.path: axis.group for axis in grid if axis.contents}
    words = []
    for path, value in declared.items():
        words += (
            [f"{of_groups[path]}={value}"]
            if path in of_groups
            else _set_words(path, value, params, groups)
        )
    for name, value in requested.items():
        from orchestrator.config.space import is_path

        _check_place(name, {**declared, **requested}, params)
        if is_path(name):
            words += _set_words(name, value, params, groups)
        else:
            words.append(f"++params={hydra_word({name: value})}")
    return words


def trial_words(
    spec: StudySpec,
    params: Mapping[str, JSONValue],
    groups: Collection[str],
    set_by_stages: Mapping[str, JSONValue] = MappingProxyType({}),
    options: Sequence[Axis] = (),
) -> list[str] | None:
    """The overrides that give a launch of the same study the values of a trial, quoted for a shell;
    None if a value cannot be written as an override.

    Args:
        set_by_stages: of a stage, the values of params that it and earlier ones have set.
        options: the axes of those that are options of config groups.
    """
    declared = {name: value for name, value in params.items() if spec.declares(name)}
    requested = {name: value for name, value in params.items() if name not in declared}
    try:
        values = {**set_by_stages, **declared}
        words = rerun_words(values, requested, spec.params, groups, [*spec.grid, *options])
    except ConfigError:
        return None
    return [shlex.quote(word) for word in words]


def _set_words(
    path: str, value: JSONValue, params: Mapping[str, Any], groups: Collection[str]
) -> list[str]:
    if not _fits_params(value):  # the values of an axis may have any keys
        return [_checked(f"++grid.{path}", f"[{hydra_word(value)}]", path)]
    first = path.partition(".")[0]
    key = f"params.{path}" if first in (*SECTIONS, "hydra", *groups) else path
    old = at(params, path) if has(params, path) else None
    # Hydra merges a mapping into the one that is there, and neither into a list.
    holders = isinstance(old, (Mapping, list)) and isinstance(value, (Mapping, list))
    replaced = holders and not (isinstance(old, list) and isinstance(value, list))
    add = "" if has(params, path) and not isinstance(old, Mapping) and not replaced else "++"
    return [*([f"~{key}"] if replaced else []), _checked(f"{add}{key}", hydra_word(value), path)]


def _fits_params(value: JSONValue) -> bool:
    """Whether ``params`` take all the keys in it."""
    if not isinstance(value, Mapping):
        return True
    return all(
        key and key.isprintable() and "." not in key and _fits_params(item)
        for key, item in value.items()
    )


def _checked(key: str, value: str, path: str) -> str:
    word = f"{key}={value}"
    if _PLAIN_KEY.fullmatch(key) and not set(key.split(".")) & set(_RESERVED):
        return word
    from orchestrator.config import grammar

    if grammar.parse_override(word).key_or_group != key.lstrip("+"):
        raise ConfigError(f"{path}: Hydra's override grammar has no way to write this parameter")
    return word


def _check_place(name: str, names: Collection[str], params: Mapping[str, Any]) -> None:
    """Raises ConfigError where `params` cannot hold a plain value of that name beside all the
    others.
    """
    from orchestrator.config.space import check_ancestors, is_path

    check_ancestors(name, params, source=name)
    inside = any(other.startswith(f"{name}.") for other in names)
    if inside or (has(params, name) and isinstance(at(params, name), Mapping)):
        raise ConfigError(f"{name}: params has a section of that name, so it cannot hold a value")
    if not is_path(name) and "." in name:
        raise ConfigError(f"{name}: the name contains a dot but is not a dotted path")


def program_words(params: Mapping[str, Any]) -> list[str]:
    """Returns the overrides that give a Hydra program these parameters, one word per leaf; keys may
    be dotted.

    Raises:
        ConfigError: as `hydra_word`, or the grammar has no way to write a path.
    """
    from orchestrator.config import grammar

    words = []
    for path, value in _leaves(params, ""):
        word = f"{path}={hydra_word(value)}"
        try:
            same = grammar.parse_override(word).key_or_group == path
        except ConfigError:
            same = False
        if not same:
            raise ConfigError(
                f"params.{path}: Hydra's override grammar has no way to write this parameter; use "
                f"it as a placeholder of objective.command, {{{path}}}, or set "
                "objective.overrides=false"
            )
        words.append(word)
    return words


def normal_form(declared: Axis | Searched) -> str:
    """Returns a declaration as the command line takes it: ``tag(log, interval(0.0001, 0.1))``,
    ``choice(a,b)``, ``[1,2]``.

    A condition, which only YAML can express, is left out.
    """
    from orchestrator.config import grammar

    form = grammar.normal_form(declared)
    if isinstance(form, dict):
        form = form["space"]
    if isinstance(form, str):
        return form
    try:
        text = ",".join(map(hydra_word, form))
    except ConfigError:  # only YAML can express it
        text = ",".join(map(value_label, form))
    return f"[{text}]" if isinstance(declared, Axis) else f"choice({text})"


def _leaves(node: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _written(value: JSONValue) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            return value
        from hydra.core.override_parser.types import Quote, QuotedString

        return str(QuotedString(value, Quote.double).with_quotes())
    if isinstance(value, Mapping):
        from hydra._internal.grammar.utils import escape_special_characters

        return (
            "{"
            + ",".join(
                f"{escape_special_characters(str(key))}:{_written(item)}"
                for key, item in value.items()
            )
            + "}"
        )
    return "[" + ",".join(map(_written, value)) + "]"
