"""Colours and words that all pictures share."""

from __future__ import annotations

import html
from typing import Final

from orchestrator.model import JSONValue, value_label

# Of middling lightness, so that they are seen on white and on black alike.
BLUE: Final = "#2f81c7"
ORANGE: Final = "#d9730d"
GREEN: Final = "#2a9d6a"
RED: Final = "#d1495b"
GREY: Final = "#8a8f98"
PURPLE: Final = "#8e6bbf"
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, RED, "#a58a1f", "#22909c", "#b85c9e")
SCALE: Final = "Viridis"
"""Of heat maps, from the worst to the best."""

_LONGEST: Final = 28


def shown(value: JSONValue, longest: int = _LONGEST) -> str:
    """A value of a parameter as a label: short, and nothing in it is markup to plotly."""
    text = f"{value:.4g}" if isinstance(value, float) else value_label(value)
    return html.escape(text if len(text) <= longest else f"{text[: longest - 1]}…", quote=False)


def number(value: float) -> str:
    """A result for people, to four digits."""
    return f"{value:.4g}"
