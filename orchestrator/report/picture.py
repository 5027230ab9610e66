"""One picture of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.model import JSONValue


@dataclass(frozen=True)
class Picture:
    """A picture, as plotly's JavaScript draws it.

    Attributes:
        key: Its name within the report, in lower case with hyphens; pictures of the same study
            never share one.
        title: A line above it.
        caption: One or two sentences: what it shows, and what was left out; empty where the picture
            before it says the same.
        figure: ``data``, a list of plotly's traces, and ``layout``: plain lists, mappings, strings,
            finite numbers and None, nothing else. The page sets width, height unless the layout
            has one, font, the colours of background, text and grid lines, and a trace's colours
            unless it has its own; the same figure is drawn on light and on dark.
    """

    key: str
    title: str
    caption: str
    figure: Mapping[str, JSONValue]
    wide: bool = False
