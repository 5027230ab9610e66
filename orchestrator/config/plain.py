"""The settings of this host, read without Hydra, whose import takes longer than a short command.

Only of a command line that is plain: settings of this host with simple values. Whatever is unusual,
or wrong, is left to Hydra, so that there is one place that explains mistakes.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestrator.config.places import (
    URL_VARIABLE,
    complete,
    data_directory,
    shipped_directory,
)
from orchestrator.errors import ConfigError
from orchestrator.passwords import mask
from orchestrator.settings import HOST, HostConfig

NAMING: Final = (
    "status",
    "trials",
    "delete",
    "best",
    "logs",
    "pause",
    "resume",
    "stop",
    "retry",
    "enqueue",
    "doctor",
    "probe",
    "replay",
    "landscape",
    "rerun",
    "report",
)
"""The commands that take ``study.name`` besides the settings of this host."""
_COMPOSED: Final = ("launch", "enqueue")  # these take parameters too

_KEY = re.compile(r"(storage|worker|paths|dashboard|notify)\.([a-z_]+)")
_ITEM = r"""(?:"[^"\\$]*"|[A-Za-z/_][\w/.-]*|-?(?:0|[1-9]\d*)(?:\.\d+)?)"""
_VALUE = re.compile(rf"{_ITEM}|\[{_ITEM}(?:,{_ITEM})*\]", re.ASCII)
_RESERVED: Final = ("nan", "inf", "null", "true", "false")
_OF_ENVIRONMENT = re.compile(r"\$\{oc\.env:([A-Z_]+),null\}")
_DATA: Final = "${orchestrator.data_dir:}"
_BELOW_DATA = re.compile(r"\$\{paths\.data\}(/\w+)")
_DEFAULTS: Final = {"worker": "default", "experiment": None}


class Plain(NamedTuple):
    """What most commands need of their config; the same as of `composing.compose`.

    Attributes:
        host: the settings of this host.
        study: ``study.name``.
        groups: the names of all config groups there are.
    """

    host: HostConfig
    study: str | None
    groups: frozenset[str]


class _UnusualError(Exception):
    """Only Hydra reads this."""


def read_plainly(command: str, overrides: Sequence[str]) -> Plain | None:
    """Returns what `composing.compose` would; None if only that can tell."""
    if command in _COMPOSED:
        return None
    try:
        return _read(command, overrides)
    except (_UnusualError, ConfigError, OSError, ValueError):
        return None


def _read(command: str, overrides: Sequence[str]) -> Plain:
    words: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or key in words:
            raise _UnusualError
        words[key] = value
    study = words.pop("study.name", None)
    name = None if study is None else _value(study)
    if study is not None and (command not in NAMING or not isinstance(name, str)):
        raise _UnusualError

    config = _yaml("config.yaml")
    choices = _choices(config)
    url = _typed_url(words.pop("storage.url", None))
    chosen = words.pop("storage", None)
    storage = chosen or choices["storage"]
    if chosen is None and (url is not None or os.environ.get(URL_VARIABLE)):
        storage = "postgres"
    if storage not in ("embedded", "postgres"):
        raise _UnusualError
    sections = {
        "storage": _yaml(f"storage/{storage}.yaml"),
        "worker": _yaml("worker/default.yaml"),
        "paths": config["paths"],
        "dashboard": config["dashboard"],
        "notify": config["notify"],
    }
    for section, schema in HOST.items():
        if set(sections[section]) != {f.name for f in dataclasses.fields(schema)}:
            raise _UnusualError

    typed: dict[str, dict[str, Any]] = {section: {} for section in HOST}
    for key, value in words.items():
        found = _KEY.fullmatch(key)
        if (
            found is None
            or found[2] not in sections[found[1]]
            or key in ("storage.kind", "notify.url")
        ):
            raise _UnusualError
        typed[found[1]][found[2]] = _value(value)
    if url is not None:
        typed["storage"]["url"] = url
        if url != mask(url) and _OF_ENVIRONMENT.fullmatch(
            str(sections["storage"]["password_file"])
        ):
            # the environment's, of the environment's URL
            typed["storage"].setdefault("password_file", None)

    data = typed["paths"].get("data", sections["paths"]["data"])
    data = data_directory() if data == _DATA else data
    filled = {
        section: schema(**dict(_filled(section, schema, sections, typed, str(data))))
        for section, schema in HOST.items()
    }
    host = complete(HostConfig(**filled), typed_embedded=chosen == "embedded")
    return Plain(host, name, groups())


def _choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of the shipped ``config.yaml``, as far as they are of this host."""
    choices: dict[str, Any] = {}
    for entry in config["defaults"]:
        choices |= entry if isinstance(entry, dict) else {entry: None}
    if any(choices.get(group, "") != option for group, option in _DEFAULTS.items()):
        raise _UnusualError
    if {"hydra", "storage", "worker"} & set(config) or "storage" not in choices:
        raise _UnusualError
    return choices


def _yaml(name: str) -> Any:
    import yaml

    with (shipped_directory() / name).open("rb") as file:
        found = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(found, dict):
        raise _UnusualError
    return found


def _typed_url(text: str | None) -> str | None:
    """``storage.url`` as `overrides.take_url` takes it."""
    if text is None:
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if text in ("", "null", "???") or "${" in text:
        raise _UnusualError
    return text


def _value(text: str) -> Any:
    """The value of an override in Hydra's grammar."""
    if not _VALUE.fullmatch(text) or not text.isprintable():
        raise _UnusualError
    if text.startswith("["):
        return [_item(item) for item in re.findall(_ITEM, text[1:-1], re.ASCII)]
    return _item(text)


def _item(text: str) -> Any:
    if text.startswith('"'):
        return text[1:-1]
    if text in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[text]
    if text.lower() in _RESERVED:
        raise _UnusualError
    if text[0].isalpha() or text[0] in "/_":
        return text
    return float(text) if "." in text else int(text)


def _filled(
    section: str,
    schema: type[Any],
    sections: Mapping[str, Mapping[str, Any]],
    typed: Mapping[str, Mapping[str, Any]],
    data: str,
) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(schema)
    for f in dataclasses.fields(schema):
        if f.name in typed[section]:
            value = typed[section][f.name]
        else:
            value = _resolved(sections[section][f.name], data)
        value = _of_type(value, hints[f.name])
        rule = f.metadata["knob"].rule
        wrong = rule is not None and value is not None and not rule.holds(value)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise _UnusualError
        yield f.name, value


def _resolved(value: Any, data: str) -> Any:
    """A value of the shipped files."""
    if not isinstance(value, str) or "${" not in value:
        return value
    if value == _DATA:
        return data
    if below := _BELOW_DATA.fullmatch(value):
        return f"{data}{below[1]}"
    if variable := _OF_ENVIRONMENT.fullmatch(value):
        return os.environ.get(variable[1])
    raise _UnusualError


def _of_type(value: Any, hint: Any) -> Any:
    """The value as a field of that type holds it."""
    options = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union)
        else (hint,)
    )
    if value is None and type(None) in options:
        return None
    (kind,) = (option for option in options if option is not type(None))
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise _UnusualError
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser().absolute()
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if typing.get_origin(kind) is list and isinstance(value, list):
        (item,) = typing.get_args(kind)
        allowed = typing.get_args(item) or (item,)
        if all(type(one) in allowed for one in value):
            return value
    raise _UnusualError


def groups() -> frozenset[str]:
    """The config groups of the shipped config."""
    root = shipped_directory()
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_dir())
    return frozenset(
        str(path) for path in found if path.parts[0] != "hydra" and "__" not in path.name
    )
