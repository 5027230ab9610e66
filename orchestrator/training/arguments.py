"""Checks of arguments: the value, or one error that names argument, value and rule."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any, least: int) -> int:
    """Returns `value`, a whole number of at least `least`, NumPy's too, as an int.

    Raises:
        TypeError: it is no whole number; True and 1.0 are none.
        ValueError: it is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: must be a whole number")
    if value < least:
        raise ValueError(f"{name}={value}: must be at least {least}")
    return int(value)


def number(name: str, value: Any) -> float:
    """Returns `value`, a finite number, NumPy's too, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    try:
        as_float = float(value)
    except OverflowError:
        raise ValueError(f"{name}: must be small enough for a float") from None
    if not math.isfinite(as_float):
        raise ValueError(f"{name}={value!r}: must be finite")
    return as_float


def flag(name: str, value: Any) -> bool:
    """Returns `value`, True or False.

    Raises:
        TypeError: it is neither; the text "false" would count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: must be True or False")
    return value
