"""Odd values that a user's code may hand over, and what becomes of each: stored as what it is, or
refused with a reason.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import importlib
import math
import socket
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.runner.child.trial import Trial
from orchestrator.runner.protocol.channel import Channel
from tests.support.running import make_job, objective

MB = 1 << 20


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 2


class Mode(str, enum.Enum):  # noqa: UP042 - a StrEnum has another __str__
    FAST = "fast"


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"


@dataclasses.dataclass
class Point:
    x: int = 1


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("boom")

    def tolist(self) -> list[float]:
        raise RuntimeError("boom")

    dtype = "float32"


Pair = collections.namedtuple("Pair", "a b")


def torch() -> Any:
    return importlib.import_module("torch")


def nested(levels: int, kind: type = list) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind is list else {"k": value}
    return value


def circle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


# ------------------------------------------------------------------------------------------ numbers

# What an objective may return or report: the number stored, or a part of the refusal.
NUMBERS: dict[str, tuple[Callable[[], Any], float | str]] = {
    "minus zero": (lambda: -0.0, 0.0),
    "least": (lambda: 5e-324, 5e-324),
    "greatest": (lambda: 1.7976931348623157e308, 1.7976931348623157e308),
    "int beyond 2**53": (lambda: 2**53 + 1, 2.0**53),
    "int beyond 2**63": (lambda: 2**63, 2.0**63),
    "int beyond a float": (lambda: 10**400, "int is too large for a float"),
    "int beyond text": (lambda: 10**5000, "int is too large for a float"),
    "bool": (lambda: True, "True is a bool, not a number"),
    "None": (lambda: None, "None is a NoneType, not a number"),
    "numeric text": (lambda: "1.5", "'1.5' is a str, not a number"),
    "long text": (lambda: "x" * MB, "… is a str, not a number"),
    "bytes": (lambda: b"1", "b'1' is a bytes, not a number"),
    "memoryview": (lambda: memoryview(b"x"), "not a number"),
    "complex": (lambda: 1j, "1j is a complex, not a number"),
    "Decimal": (lambda: Decimal("1.5"), 1.5),
    "signalling Decimal": (lambda: Decimal("sNaN"), "Decimal('sNaN') is a Decimal, not a number"),
    "Fraction": (lambda: Fraction(1, 4), 0.25),
    "huge Fraction": (lambda: Fraction(10**400), "Fraction is too large for a float"),
    "IntEnum": (lambda: Level.HIGH, 2.0),
    "Enum": (lambda: Color.RED, "<Color.RED: 1> is a Color, not a number"),
    "set": (lambda: {1}, "{1} is a set, not a number"),
    "lambda": (lambda: lambda: 1, "is a function, not a number"),
    "datetime": (lambda: datetime.datetime(2020, 1, 1), "is a datetime, not a number"),
    "numpy float32": (lambda: np.float32(0.1), float(np.float32(0.1))),
    "numpy int64": (lambda: np.int64(3), 3.0),
    "numpy longdouble": (lambda: np.longdouble(1.5), 1.5),
    "numpy bool": (lambda: np.bool_(True), "np.True_ is a bool, not a number"),
    "numpy complex": (lambda: np.complex64(1 + 1j), "is a complex64, not a number"),
    "numpy text": (lambda: np.array("1.5"), "is a ndarray, not a number"),
    "numpy timedelta": (lambda: np.timedelta64(3, "s"), "is a timedelta64, not a number"),
    "numpy 0-d": (lambda: np.array(1.5), 1.5),
    "numpy 2-d": (lambda: np.ones((1, 2)), "a ndarray of shape (1, 2) is not a number"),
    "torch 0-d": (lambda: torch().tensor(1.5), 1.5),
    "torch with gradient": (lambda: torch().tensor(1.5, requires_grad=True), 1.5),
    "torch bfloat16": (lambda: torch().tensor(1.5, dtype=torch().bfloat16), 1.5),
    "torch bool": (lambda: torch().tensor(True), "tensor(True) is a Tensor, not a number"),
    "torch complex": (lambda: torch().tensor(1j), "is a Tensor, not a number"),
}
# An objective must return a finite one; a report may be any float.
UNBOUNDED: dict[str, float] = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "numpy nan": np.float32("nan"),
}

# Results that are no plain number: the values stored, or a part of the refusal.
RESULTS: dict[str, tuple[Callable[[], Any], tuple[float, ...] | str]] = {
    "tuple of one": (lambda: (0.5,), (0.5,)),
    "numpy 1-d": (lambda: np.array([0.5]), (0.5,)),
    "torch 1-d": (lambda: torch().tensor([0.5]), (0.5,)),
    "empty list": (list, "0 values for 1 metric (value)"),
    "two values": (lambda: Pair(1, 2), "2 values for 1 metric (value)"),
    "endless range": (lambda: range(10**15), "values for 1 metric (value)"),
    "empty mapping": (dict, "without the metric 'value'; it has no keys at all"),
    "mapping without it": (
        lambda: {"valeu": 1, "loss": 2},
        "without the metric 'value'; it has 'valeu', 'loss'",
    ),
    "mapping with NaN": (
        lambda: {"value": math.nan},
        "the objective returned nan for 'value': NaN is not a result",
    ),
    "mapping with None": (
        lambda: {"value": None},
        "the objective did not return a number for 'value'",
    ),
    "mapping by numpy text": (lambda: {np.str_("value"): 0.5}, (0.5,)),
}

# --------------------------------------------------------------------------------------- attributes

# Values of user attributes: what is stored, or a part of the refusal.
Refused = collections.namedtuple("Refused", "why")
ATTRS: dict[str, tuple[Callable[[], Any], Any]] = {
    "None": (lambda: None, None),
    "bool": (lambda: True, True),
    "nan": (lambda: math.nan, "nan"),
    "-inf": (lambda: -math.inf, "-inf"),
    "minus zero": (lambda: -0.0, -0.0),
    "int beyond 2**53": (lambda: 2**53 + 1, 2**53 + 1),
    "int beyond 2**64": (lambda: -(2**64) - 1, -(2**64) - 1),
    "int of 4300 digits": (lambda: 10**4299, 10**4299),
    "int of 4301 digits": (lambda: -(10**4300), Refused("an integer of more than 4300 digits")),
    "empty text": (lambda: "", ""),
    "emoji": (lambda: "🎉👩‍💻", "🎉👩‍💻"),
    "right to left": (lambda: "\u202eabc\u2028\x1b[31m", "\u202eabc\u2028\x1b[31m"),
    "NUL": (lambda: ["a\0b"], Refused("NUL character")),
    "lone surrogate": (lambda: "\ud800", Refused("lone surrogate")),
    "NUL in a key": (lambda: {"a\0": 1}, Refused("NUL character")),
    "1 MB once escaped": (lambda: "é" * 200_000, Refused("more than 1,000,000 bytes")),
    "64 MB": (lambda: "x" * 64 * MB, Refused("more than 1,000,000 bytes")),
    "endless range": (lambda: range(10**15), Refused("more than 1,000,000 bytes")),
    "weights of a model": (
        lambda: {"w": np.zeros((20_000, 20_000), np.int8)},
        Refused("more than 1,000,000 bytes"),
    ),
    "tuple": (lambda: (1, (2.5,)), [1, [2.5]]),
    "namedtuple": (lambda: Pair(1, 2), [1, 2]),
    "deque": (lambda: collections.deque([1]), [1]),
    "int keys": (lambda: {1: "a", -2: "b"}, {"1": "a", "-2": "b"}),
    "keys that read the same": (
        lambda: {1: "a", "1": "b"},
        Refused("two of its keys convert to '1'"),
    ),
    "bool key": (lambda: {True: 1}, Refused("a key of type bool cannot be converted to JSON")),
    "tuple key": (lambda: {(1, 2): 1}, Refused("a key of type tuple cannot be converted to JSON")),
    "set": (lambda: {1}, Refused("set cannot be converted to JSON")),
    "bytes": (lambda: b"x", Refused("bytes cannot be converted to JSON")),
    "generator": (lambda: (i for i in "ab"), Refused("generator cannot be converted to JSON")),
    "datetime": (
        lambda: datetime.datetime(2020, 1, 1),
        Refused("datetime cannot be converted to JSON"),
    ),
    "Path": (lambda: Path("/x"), Refused("PosixPath cannot be converted to JSON")),
    "Enum": (lambda: Color.RED, Refused("Color cannot be converted to JSON")),
    "IntEnum": (lambda: Level.HIGH, 2),
    "text Enum": (lambda: Mode.FAST, "fast"),
    "text of a class": (lambda: {Loud("quiet"): Loud("quiet")}, {"quiet": "quiet"}),
    "dataclass": (lambda: Point(), Refused("Point cannot be converted to JSON")),
    "Decimal": (lambda: Decimal("1.5"), Refused("Decimal cannot be converted to JSON")),
    "Fraction": (lambda: Fraction(1, 3), Refused("Fraction cannot be converted to JSON")),
    "complex": (lambda: 1j, Refused("complex cannot be converted to JSON")),
    "lambda": (lambda: lambda: 1, Refused("function cannot be converted to JSON")),
    "numpy 2-d": (lambda: np.array([[1, 2]], np.int64), [[1, 2]]),
    "numpy scalars": (lambda: [np.float32(0.5), np.int64(3), np.bool_(True)], [0.5, 3, True]),
    "numpy nan": (lambda: np.array([np.nan, 1.0]), ["nan", 1.0]),
    "numpy uint64": (lambda: np.uint64(2**64 - 1), 2**64 - 1),
    "numpy date": (
        lambda: np.datetime64("2020-01-01"),
        Refused("date cannot be converted to JSON"),
    ),
    "numpy objects": (lambda: np.array([{1}], object), Refused("set cannot be converted to JSON")),
    "torch": (lambda: {"g": torch().tensor([1.5, 2.5], requires_grad=True)}, {"g": [1.5, 2.5]}),
    "torch bfloat16": (lambda: torch().tensor(1.5, dtype=torch().bfloat16), 1.5),
    "torch complex": (lambda: torch().tensor(1j), Refused("complex cannot be converted to JSON")),
    "100 levels": (lambda: nested(100), nested(100)),
    "101 levels": (lambda: nested(101), Refused("nested too deeply")),
    "900 levels": (lambda: nested(900, dict), Refused("nested too deeply")),
    "20,000 levels": (lambda: nested(20_000), Refused("nested too deeply")),
    "a list in itself": (circle, Refused("contains itself")),
    "almost 1 MB": (lambda: "x" * 999_998, "x" * 999_998),
}
KEYS: dict[str, tuple[Any, Any]] = {
    "empty": ("", ""),
    "512 characters": ("k" * 512, "k" * 512),
    "512 emoji": ("🎉" * 512, "🎉" * 512),
    "513 characters": ("k" * 513, Refused("at most 512 characters, got 513")),
    "quotes and newline": ("a'\"\n;--%s", "a'\"\n;--%s"),
    "text Enum": (Mode.FAST, "fast"),
    "NUL": ("a\0", Refused("NUL character")),
    "lone surrogate": ("\udcff", Refused("lone surrogate")),
    "int": (1, Refused("must be a string, got 1 (int)")),
    "None": (None, Refused("must be a string, got None (NoneType)")),
    "our own": (
        "orchestrator:failure",
        Refused("start with orchestrator: are reserved for the program itself"),
    ),
}
STEPS: dict[str, tuple[Any, int | str]] = {
    "zero": (0, 0),
    "greatest": (2**31 - 1, 2**31 - 1),
    "too great": (2**31, "step must be in 0 … 2147483647, got 2147483648"),
    "beyond text": (10**5000, "step must be in 0 … 2147483647"),
    "negative": (-1, "step must be in 0 … 2147483647, got -1"),
    "bool": (True, "step must be an integer, got True (bool)"),
    "whole float": (1.0, "step must be an integer, got 1.0 (float)"),
    "float": (1.5, "step must be an integer, got 1.5 (float)"),
    "text": ("1", "step must be an integer, got '1' (str)"),
    "numpy int": (np.int32(7), 7),
    "numpy bool": (np.bool_(True), "step must be an integer"),
}


class Said:
    """A trial as a user's function has it, and what arrives of it at the worker."""

    def __init__(self, runs: Path) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MB)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * MB)
        self._worker, self._child = Channel(ours), Channel(theirs)
        job = make_job(runs, objective("give"))
        job.run_dir.mkdir(parents=True, exist_ok=True)
        self.trial = Trial(job, self._child)

    def take(self) -> tuple[dict[int, float], dict[str, Any]]:
        """The reports and attributes since the last call."""
        messages = self._worker.receive()
        reports = {m["report"][0]: m["report"][1] for m in messages if "report" in m}
        return reports, {m["attr"][0]: m["attr"][1] for m in messages if "attr" in m}

    def close(self) -> None:
        self._worker.close()
        self._child.close()


def refusal(action: Callable[[], Any], *kinds: type[Exception]) -> str:
    """What a user is told, in one line; an error of another kind (TypeError or ValueError if none
    is given) fails the test.
    """
    with pytest.raises(kinds or (TypeError, ValueError)) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


def identical(stored: object, wanted: object) -> bool:
    return repr(stored) == repr(wanted)  # tells 1 from True and 1.0, and -0.0 from 0.0
