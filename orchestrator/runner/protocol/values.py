"""Checks and converts what user code passes in: numbers, attributes, the return value."""

from __future__ import annotations

import json
import math
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.errors import did_you_mean
from orchestrator.model import Completed, Direction, Failed, JSONValue

MAX_STEP = 2**31 - 1
"""Optuna stores steps in a 32-bit column."""

MAX_JSON = 1_000_000
"""Bytes of JSON that one user attribute may take."""

_MAX_KEY = 512  # Optuna's column for attribute names
_MAX_CONSTRAINT = 500  # Optuna stores it in the same column, after the prefix "constraints:"
_OWN_KEYS = "orchestrator:"  # the prefix of this program's own attributes of a trial
# Optuna and its dashboard recurse: one value too deep for them makes the study unreadable
_MAX_DEPTH = 100
_BYTES = (bytes, bytearray, memoryview)
_MAX_INT = 10**4300  # Python refuses to parse more digits, so the trial would be unreadable


class ResultError(ValueError):
    """The objective's return value cannot be the result of a trial.

    The message says what could be.
    """


class AttemptFailed(Exception):  # noqa: N818 - an outcome that unwinds, not an error of ours
    """Ends an attempt with the failure it carries, which needs no traceback."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def as_measurement(returned: object) -> dict[str, JSONValue]:
    """What a probe returned, as plain JSON data.

    Raises:
        ResultError: it is not a mapping that can be converted.
    """
    if not isinstance(returned, Mapping):
        raise ResultError(
            f"a probe returns a mapping, such as {{'bounds': {{'optim.lr': [1e-3, 1e-1]}}}}, not "
            f"{preview(returned)} ({type(returned).__name__})"
        )
    try:
        measured: dict[str, JSONValue] = as_json(returned)
    except (TypeError, ValueError) as error:
        raise ResultError(f"what the probe returned cannot be stored: {error}") from error
    return measured


def as_number(value: object) -> float:
    """`value` as the nearest float: any real number, 0-d numpy or torch value, NaN or infinity.

    Raises:
        TypeError: It is not a real number (but a bool, str, None, an array with dimensions, complex
            …).
        ValueError: It is an integer too large for a float.
    """
    if shape := _shape(value):
        raise TypeError(f"a {type(value).__name__} of shape {shape} is not a number")
    try:
        if _may_be_real(value):
            return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{type(value).__name__} is too large for a float") from None
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{preview(value)} is a {type(value).__name__}, not a number")


def as_step(step: object) -> int:
    """`step` as an int in 0 … 2**31 - 1.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is out of range.
    """
    try:
        if not _may_be_real(step):
            raise TypeError
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"step must be an integer, got {preview(step)} ({type(step).__name__})"
        ) from None
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step must be in 0 … {MAX_STEP}, got {preview(step)}")
    return number


def as_key(key: object) -> str:
    """`key`, if it can name a user attribute.

    Raises:
        TypeError: It is not a string.
        ValueError: It is longer than 512 characters, contains text that a database refuses, or
            starts with ``orchestrator:``.
    """
    if not isinstance(key, str):
        raise TypeError(
            f"the name of a user attribute must be a string, got {preview(key)} "
            f"({type(key).__name__})"
        )
    if len(key) > _MAX_KEY:
        raise ValueError(
            f"the name of a user attribute must have at most {_MAX_KEY} characters, got {len(key)}"
        )
    if key.startswith(_OWN_KEYS):
        raise ValueError(f"names that start with {_OWN_KEYS} are reserved for the program itself")
    return _text(key)


def as_constraint(key: object, value: object) -> tuple[str, float]:
    """`key` and `value`, if they can be a constraint; infinities become the largest floats.

    Args:
        value: anything that `float` accepts except NaN.

    Raises:
        TypeError: The key is not a string, or the value is not a number.
        ValueError: The key is longer than 500 characters or contains text that a database refuses;
            or the value is NaN, or an integer too large for a float.
    """
    if not isinstance(key, str):
        raise TypeError(
            f"the name of a constraint must be a string, got {preview(key)} ({type(key).__name__})"
        )
    if len(key) > _MAX_CONSTRAINT:
        raise ValueError(
            f"the name of a constraint must have at most {_MAX_CONSTRAINT} characters, got "
            f"{len(key)}"
        )
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(
            f"constraint {preview(key)}: {type(value).__name__} is too large for a float"
        ) from None
    except (TypeError, ValueError):
        raise TypeError(
            f"constraint {preview(key)}: {preview(value)} is a {type(value).__name__}, not a number"
        ) from None
    if math.isnan(number):
        raise ValueError(f"constraint {preview(key)}: NaN means neither satisfied nor violated")
    return _text(key), max(-sys.float_info.max, min(sys.float_info.max, number))


def as_json(value: object) -> JSONValue:
    """`value` as plain JSON data: numbers, strings, lists and dicts.

    Numpy and torch values become numbers and lists, tuples lists, mappings dicts.

    NaN and infinities become the strings ``nan``, ``inf`` and ``-inf``: JSON has no such numbers,
    and a browser that finds one rejects the whole study. Integer keys become strings of digits. Too
    large a value is refused before it is copied.

    Raises:
        TypeError: A part of it cannot be converted to JSON.
        ValueError: It contains NUL or a lone surrogate (which databases refuse), itself, an integer
            of more than 4300 digits, or two keys that convert to the same string; or it is nested
            more than 100 levels deep, or takes more than `MAX_JSON`.
    """
    plain = _Walk().plain(value)
    if len(json.dumps(plain)) > MAX_JSON:
        raise ValueError(_TOO_LARGE)
    return plain


def as_result(
    returned: object, metrics: Sequence[str], directions: Sequence[Direction]
) -> tuple[Completed, list[str]]:
    """An objective's return value as a result, and a line for each entry that was left out.

    The value may be a number for one metric; a sequence with one number for each; or a mapping with
    every metric by name, whose other entries become attributes. Infinity in the bad direction is
    allowed: it is the worst possible value.

    Args:
        directions: one for each of `metrics`.

    Raises:
        ResultError: A metric is missing, the length is wrong, or a value is not a number, is NaN,
            or is infinite in the good direction.
    """
    goals = dict(zip(metrics, directions, strict=True))
    if isinstance(returned, Mapping):
        missing = [metric for metric in metrics if metric not in returned]
        if missing:
            keys = [str(key) for key in returned]
            listed = ", ".join(repr(key) for key in keys[:20]) or "no keys at all"
            hint = did_you_mean(missing[0], keys)
            raise ResultError(
                f"the objective returned a mapping without the metric {missing[0]!r}; it has "
                f"{listed}{hint}"
            )
        values = tuple(
            _metric(returned[metric], metric, direction) for metric, direction in goals.items()
        )
        attrs, left_out = _attributes(
            {key: value for key, value in returned.items() if key not in metrics}
        )
        return Completed(values, attrs), left_out

    if _is_sequence(returned):
        count = len(returned)  # type: ignore[arg-type]
        if count != len(metrics):
            raise ResultError(f"the objective returned {count} values for {_count(metrics)}")
        items: Iterable[object] = returned  # type: ignore[assignment]
        return Completed(tuple(map(_metric, items, metrics, directions))), []

    if len(metrics) > 1:
        raise ResultError(f"the objective returned {preview(returned)} for {_count(metrics)}")
    return Completed((_metric(returned, metrics[0], directions[0]),)), []


def _metric(value: object, metric: str, direction: Direction) -> float:
    try:
        number = as_number(value)
    except (TypeError, ValueError) as error:
        raise ResultError(
            f"the objective did not return a number for {metric!r}: {error}"
        ) from None
    worst = math.inf if direction == "minimize" else -math.inf
    if math.isfinite(number) or number == worst:
        return number
    why = f"no value is that good for a metric to be {direction}d"
    if math.isnan(number):
        why = "NaN is not a result"
    raise ResultError(
        f"the objective returned {number} for {metric!r}: {why}; for a diverged run, return {worst}"
    )


def _attributes(entries: Mapping[object, object]) -> tuple[dict[str, JSONValue], list[str]]:
    attrs: dict[str, JSONValue] = {}
    left_out = []
    for key, value in entries.items():
        try:
            attrs[as_key(key)] = as_json(value)
        except Exception as error:  # noqa: BLE001 - a user's object may raise anything; the metrics are fine
            why = error if isinstance(error, (TypeError, ValueError)) else preview(error)
            left_out.append(
                f"the entry {preview(key)} of the returned mapping was not stored: {why}"
            )
    return attrs, left_out


_TOO_LARGE = f"it takes more than {MAX_JSON:,} bytes as JSON"


class _Walk:
    """Converts a value to plain data, and gives up as soon as it finds more than may be stored."""

    def __init__(self) -> None:
        self._left = MAX_JSON

    def plain(self, value: object, depth: int = 0) -> JSONValue:
        self._spend(1)
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply or contains itself")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self._spend(len(value))
            return _text(value)
        if isinstance(value, int):
            return _digits(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, Sequence) and not isinstance(value, _BYTES):
            self._spend(len(value))  # the commas
            return [self.plain(item, depth + 1) for item in value]
        if hasattr(value, "dtype") and hasattr(value, "tolist"):
            self._afford(2 * math.prod(_shape(value)))
            plain = value.tolist()
            if not hasattr(plain, "dtype"):
                return self.plain(plain, depth)
        raise TypeError(f"{type(value).__name__} cannot be converted to JSON")

    def _mapping(self, value: Mapping[object, object], depth: int) -> dict[str, JSONValue]:
        plain: dict[str, JSONValue] = {}
        for key, item in value.items():
            name = _json_key(key)
            self._spend(len(name))
            if name in plain:
                raise ValueError(f"two of its keys convert to {preview(name)}")
            plain[name] = self.plain(item, depth + 1)
        return plain

    def _spend(self, size: int) -> None:
        self._afford(size)
        self._left -= size

    def _afford(self, size: int) -> None:
        if size > self._left:
            raise ValueError(_TOO_LARGE)


def _json_key(key: object) -> str:
    if isinstance(key, str):
        return _text(key)
    # Class labels are often ints; json.dumps does the same.
    if isinstance(key, int) and not isinstance(key, bool):
        return str(_digits(key))
    raise TypeError(f"a key of type {type(key).__name__} cannot be converted to JSON")


def _digits(value: int) -> int:
    # For a subclass, the number itself, whatever its __int__ returns.
    number = operator.index(value)
    if abs(number) >= _MAX_INT:
        raise ValueError("an integer of more than 4300 digits cannot be stored")
    return number


def _text(text: str) -> str:
    text = str.__str__(text)  # for a subclass, such as an Enum, the text itself
    if "\0" in text:
        raise ValueError("text with a NUL character cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with a lone surrogate cannot be stored") from None
    return text


def _may_be_real(value: object) -> bool:
    """False for bools, text, complex arrays and others that `float` accepts but are not numbers."""
    if isinstance(value, (bool, str, *_BYTES)):
        return False
    dtype = getattr(value, "dtype", None)
    kinds = "bcOSUMm"  # numpy's codes for bool, complex, object, bytes, str, datetime, timedelta
    name = str(dtype)  # torch's dtypes have only a name
    return not (getattr(dtype, "kind", " ") in kinds or "bool" in name or "complex" in name)


def _shape(value: Any) -> tuple[int, ...]:
    try:
        return tuple(getattr(value, "shape", ()))
    except TypeError:  # an attribute of that name that is not a shape
        return ()


def _is_sequence(value: Any) -> bool:
    if isinstance(value, (str, *_BYTES)):
        return False
    return isinstance(value, Sequence) or (len(_shape(value)) == 1 and hasattr(value, "__iter__"))


def _count(metrics: Sequence[str]) -> str:
    return f"{len(metrics)} metric{'s' if len(metrics) != 1 else ''} ({', '.join(metrics)})"


def preview(value: object) -> str:
    """`value` in at most 80 characters, whatever it is."""
    try:
        text = " ".join(repr(value).split())  # the repr of a tensor has several lines
    except Exception:  # noqa: BLE001 - a user's __repr__ may do anything; of 10**5000 it raises ValueError
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"
