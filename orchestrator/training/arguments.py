"""Checks of arguments: the number, or one error that names argument, value and rule."""

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
        ValueError: it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite")
    return float(value)
