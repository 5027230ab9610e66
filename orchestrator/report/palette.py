"""Colours and words that all pictures share."""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
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
    return html.escape(_cut(_text(value), longest), quote=False)


def shown_apart(values: Sequence[JSONValue], longest: int) -> list[str]:
    """The values as labels that differ: names that begin alike are cut at their beginning."""
    texts = [_text(value) for value in values]
    short = [_cut(text, longest) for text in texts]
    for label, count in Counter(short).items():
        alike = [k for k, one in enumerate(short) if one == label] if count > 1 else []
        if len({texts[k] for k in alike}) < 2:
            continue
        columns = zip(*(texts[k] for k in alike), strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda chars: len(set(chars)) == 1, columns))
        begin = max(0, same - longest // 3)
        for k in alike:
            short[k] = _cut(f"…{texts[k][begin:]}" if begin else texts[k], longest)
    again = Counter(short)
    return [
        html.escape(label if again[label] == 1 else f"{label} ({k})", quote=False)
        for k, label in enumerate(short, start=1)
    ]


def namer(values: Sequence[JSONValue], longest: int) -> Callable[[JSONValue], str]:
    """What labels one of the values, as `shown_apart` does, and any other as `shown`."""
    known = dict(zip(map(value_label, values), shown_apart(values, longest), strict=True))
    return lambda value: known.get(value_label(value)) or shown(value, longest)


def _text(value: JSONValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value_label(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def number(value: float) -> str:
    """A result for people, to four digits."""
    return f"{value:.4g}"
