"""Parts of a declaration: by path, in words, and as the study knows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.model import JSONValue, Searched, StudySpec, same_value, value_label

ABSENT = {"absent": True}
_MOST_TEXT = 80


def as_text(value: Any) -> str:
    """What is the same for two values that are: as JSON, for 1 is not True here."""
    return json.dumps(value, sort_keys=True)


def labelled(section: Mapping[str, Any], key: str) -> str:
    """What the section has under the key, for people."""
    if key not in section:
        return "none"
    value = section[key]
    text = value if isinstance(value, str) and " " in value else value_label(value)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}…"


def by_path(spec: StudySpec, section: str) -> dict[str, Any]:
    """What ``grid`` or ``search`` of the study declares: values of each axis, ranges in words."""
    data = spec.to_json()[section]
    if section == "grid":
        return {axis["path"]: _axis_words(axis) for axis in data}
    return {item["path"]: _searched_words(item) for item in data}


def _searched_words(item: Mapping[str, Any]) -> str:
    """``float from 0.0001 to 0.1 (log)``, ``one of ["relu","gelu"], if model=mlp``."""
    when = [
        f"{path}={'|'.join(map(value_label, values))}"
        for path, values in item.get("when", {}).items()
    ]
    condition = f", if {' and '.join(when)}" if when else ""
    if item["kind"] == "categorical":
        single = len(item["choices"]) == 1
        values = value_label(item["choices"][0] if single else item["choices"])
        return f"{'always' if single else 'one of'} {values}{condition}"
    if item["low"] == item["high"]:
        return f"always {item['low']!r}{condition}"
    step = f", step {item['step']:g}" if item["step"] not in (None, 1) else ""
    log = " (log)" if item["log"] else ""
    return f"{item['kind']} from {item['low']!r} to {item['high']!r}{log}{step}{condition}"


def _axis_words(axis: Mapping[str, Any]) -> Any:
    if "contents" not in axis:
        return axis["values"]
    contents = dict(zip(axis.get("stored", axis["values"]), axis["contents"], strict=True))
    return {value: contents[value] for value in axis["values"]}


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What nested mappings hold, by dotted paths."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flattened(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def paths(spec: StudySpec) -> list[str]:
    """Everything in grid and search."""
    return [*(axis.path for axis in spec.grid), *(item.path for item in spec.search)]


def named(items: Iterable[Any], path: str) -> Any:
    """The axis or the searched parameter of that path, None if there is none."""
    return next((item for item in items if item.path == path), None)


def as_known(value: JSONValue, known: Iterable[JSONValue]) -> JSONValue:
    """The value as the study has it."""
    return next((one for one in known if same_value(one, value)), value)


def without(values: Iterable[JSONValue], known: Iterable[JSONValue]) -> tuple[JSONValue, ...]:
    """The values that are none of `known`."""
    texts = {*map(as_text, known)}
    return tuple(value for value in values if as_text(value) not in texts)


def common(values: Iterable[JSONValue], known: Iterable[JSONValue]) -> tuple[JSONValue, ...]:
    """The values that are among `known`."""
    texts = {*map(as_text, known)}
    return tuple(value for value in values if as_text(value) in texts)


def step_of(item: Searched) -> float | int | None:
    """How far its values are apart, None if they are continuous."""
    return item.step or (1 if item.kind == "int" else None)


def is_number(value: Any) -> bool:
    """Whether the value is a number; a boolean is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
