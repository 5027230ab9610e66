"""What user code may hand over: numbers, attributes and the objective's return value, checked and turned into plain data."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import did_you_mean
from orchestrator.model import Completed, JSONValue

MAX_STEP = 2**31 - 1
"""Optuna stores steps in a 32-bit column."""

_MAX_KEY = 512  # Optuna's column for attribute names


class ResultError(ValueError):
    """What the objective returned cannot be the result of a trial; the message says what would be."""


def as_number(value: object) -> float:
    """`value` as a float: any real number, a 0-d numpy or torch value included; NaN and infinities pass.

    Raises:
        TypeError: It is no real number (bool, str, None, an array with dimensions, complex …).
        ValueError: It is an integer too large for a float.
    """
    shape = getattr(value, "shape", ())
    if isinstance(value, (bool, str, bytes, bytearray)) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError(f"{_shown(value)} is a {type(value).__name__}, not a number")
    if len(shape) != 0:
        raise TypeError(f"a {type(value).__name__} of shape {tuple(shape)} is not a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{type(value).__name__} is too large for a float") from None
    except (TypeError, ValueError):
        raise TypeError(f"{_shown(value)} is a {type(value).__name__}, not a number") from None


def as_step(step: object) -> int:
    """`step` as an int in 0 … 2**31 - 1.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    try:
        if isinstance(step, bool):
            raise TypeError
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"step must be an integer, got {_shown(step)} ({type(step).__name__})") from None
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step must be in 0 … {MAX_STEP}, got {_shown(step)}")
    return number


def as_key(key: object) -> str:
    """`key` if it can name a user attribute.

    Raises:
        TypeError: It is no string.
        ValueError: It is longer than 512 characters, or holds text that a database refuses.
    """
    if not isinstance(key, str):
        raise TypeError(f"the name of a user attribute must be a string, got {_shown(key)} ({type(key).__name__})")
    if len(key) > _MAX_KEY:
        raise ValueError(f"the name of a user attribute has at most {_MAX_KEY} characters, got {len(key)}")
    return _text(key)


def as_json(value: object) -> JSONValue:
    """`value` as plain JSON data: numpy and torch values become numbers and lists, tuples lists, mappings dicts.

    NaN and infinities become the strings ``nan``, ``inf`` and ``-inf``: JSON has no such numbers, and a browser that meets
    one refuses the whole study.

    Raises:
        TypeError: A part of it has no JSON form.
        ValueError: It holds NUL or a lone surrogate (no database takes these), or contains itself.
    """
    try:
        return _as_json(value)
    except RecursionError:
        raise ValueError("it is nested too deeply or contains itself") from None


def as_result(returned: object, metrics: Sequence[str]) -> tuple[Completed, list[str]]:
    """What an objective returned as a result, and one line for each entry that had to be left out of its attributes.

    A number for one metric; a sequence with one number for each; or a mapping that holds every metric by name, whose other
    entries become attributes.

    Raises:
        ResultError: A metric is missing, the length is wrong, or a value is no finite number.
    """
    if isinstance(returned, Mapping):
        missing = [metric for metric in metrics if metric not in returned]
        if missing:
            keys = [str(key) for key in returned]
            listed = ", ".join(repr(key) for key in keys[:20]) or "no key at all"
            hint = did_you_mean(missing[0], keys)
            raise ResultError(f"the objective returned a mapping without the metric {missing[0]!r}; it has {listed}{hint}")
        values = tuple(_metric(returned[metric], metric) for metric in metrics)
        attrs, left_out = _attributes({key: value for key, value in returned.items() if key not in metrics})
        return Completed(values, attrs), left_out
    if _is_sequence(returned):
        items = list(returned)  # type: ignore[call-overload]
        if len(items) != len(metrics):
            raise ResultError(f"the objective returned {len(items)} values for {_count(metrics)}")
        return Completed(tuple(_metric(item, metric) for item, metric in zip(items, metrics, strict=True))), []
    if len(metrics) > 1:
        raise ResultError(f"the objective returned {_shown(returned)} for {_count(metrics)}")
    return Completed((_metric(returned, metrics[0]),)), []


def _metric(value: object, metric: str) -> float:
    try:
        number = as_number(value)
    except (TypeError, ValueError) as error:
        raise ResultError(f"the objective returned no number for {metric!r}: {error}") from None
    if not math.isfinite(number):
        raise ResultError(f"the objective returned {number} for {metric!r}; a finite number is needed")
    return number


def _attributes(entries: Mapping[object, object]) -> tuple[dict[str, JSONValue], list[str]]:
    attrs: dict[str, JSONValue] = {}
    left_out = []
    for key, value in entries.items():
        try:
            attrs[as_key(key)] = as_json(value)
        except (TypeError, ValueError) as error:
            left_out.append(f"the entry {_shown(key)} of the returned mapping was not stored: {error}")
    return attrs, left_out


def _as_json(value: object) -> JSONValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {_json_key(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_as_json(item) for item in value]
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        plain = value.tolist()
        if not hasattr(plain, "dtype"):
            return _as_json(plain)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _json_key(key: object) -> str:
    if isinstance(key, str):
        return _text(key)
    if isinstance(key, int) and not isinstance(key, bool):  # class labels are often ints; json.dumps does the same
        return str(key)
    raise TypeError(f"a key of type {type(key).__name__} has no JSON form")


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("text with a NUL character cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with a lone surrogate cannot be stored") from None
    return text


def _is_sequence(value: Any) -> bool:
    if isinstance(value, (str, bytes, bytearray)):
        return False
    return isinstance(value, Sequence) or (len(getattr(value, "shape", ())) == 1 and hasattr(value, "__iter__"))


def _count(metrics: Sequence[str]) -> str:
    return f"{len(metrics)} metric{'s' if len(metrics) != 1 else ''} ({', '.join(metrics)})"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__ may do anything, an integer of 10**5000 raises ValueError
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
