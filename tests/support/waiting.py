"""Waiting for what other processes do, without bare sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_CROWDED = 4
"""How much slower than a calm machine a busy one may be before a wait is given up."""


def wait_until(condition: Callable[[], T | None], timeout: float = 30) -> T:
    """Returns the first true value of `condition`, asked every 20 ms.

    Args:
        timeout: seconds within which it is true on a calm machine; a busy one gets four times as
            many.

    Raises:
        AssertionError: It was still false after that.
    """
    timeout *= _CROWDED
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"{name} gave {value!r} for {timeout:g} s")
        time.sleep(0.02)
