"""Numbers and names as statements write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orchestrator.model import JSONValue, value_label

_MOST_DECIMALS = 6
_SMALL = 1e-4
"""What is smaller is written as a power of ten."""


def decimals(uncertainty: float) -> int:
    """How many decimals a number has that is uncertain by so much: those up to its first digit, and
    one more if that digit is a 1 or a 2. Negative where tens or hundreds are uncertain.
    """
    if not (math.isfinite(uncertainty) and uncertainty > 0.0):
        return _MOST_DECIMALS
    place = math.floor(math.log10(uncertainty))
    leading = uncertainty / 10.0**place
    return -place + (1 if leading < 3.0 else 0)


def rounded(value: float, places: int) -> str:
    """A number with so many decimals, without a minus before zero; of many at most six digits, and
    very small ones as powers of ten.
    """
    value = round(value, places) + 0.0
    if value == 0.0:
        return "0"
    if places > _MOST_DECIMALS:
        if abs(value) >= _SMALL:
            return f"{value:.{_MOST_DECIMALS}g}"
        digits = max(0, math.floor(math.log10(abs(value))) + places)
        return f"{value:.{min(digits, _MOST_DECIMALS - 1)}e}"
    return f"{value:.{max(places, 0)}f}"


def up(value: float, digits: int = 2) -> float:
    """A positive number rounded up to so many significant digits."""
    if value <= 0.0 or not math.isfinite(value):
        return max(value, 0.0)
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    result = math.ceil(value / unit - 1e-9) * unit
    return float(f"{result:.{digits}g}")


def short(value: float) -> str:
    """A number with two significant digits."""
    return f"{value:.2g}"


def between(low: float, high: float, places: int) -> str:
    """An interval of 90 %: ``90 %: 0.004 to 0.019``."""
    return f"90 %: {rounded(low, places)} to {rounded(high, places)}"


def probability(p: float) -> str:
    """A probability after ``P``: ``= 0.97``, ``> 0.999``."""
    return "> 0.999" if p > 0.999 else f"= {p:.2f}" if p < 0.995 else f"= {p:.3f}"


def setting(path: str, value: JSONValue) -> str:
    """``path=value`` in backticks."""
    return f"`{path}={_plain(value)}`"


def settings(values: Mapping[str, JSONValue]) -> str:
    """Settings in backticks each, with commas between them."""
    return ", ".join(setting(path, value) for path, value in values.items())


def cell(values: Mapping[str, JSONValue]) -> str:
    """A cell as one name in backticks; ``the study's one cell`` for that of no grid."""
    if not values:
        return "the study's one cell"
    return f"`{' '.join(f'{path}={_plain(value)}' for path, value in values.items())}`"


def value(of: JSONValue) -> str:
    """A value in backticks."""
    return f"`{_plain(of)}`"


def _plain(of: JSONValue) -> str:
    label = f"{of:.4g}" if isinstance(of, float) else value_label(of)
    return label.replace("`", "'")


def listed(words: Sequence[str], most: int = 5) -> str:
    """``a, b and c``; of many the first ones, and how many more there are."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    """A sentence's first letter large; a name in backticks stays as it is."""
    return text[:1].upper() + text[1:]
