"""The best result of each cell, kept as news comes in."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from orchestrator.model import TrialNews


class BestOfCells:
    """Knows the trial of the least loss of every cell of a study of one objective; of one of
    several, nothing.
    """

    def __init__(self, directions: Sequence[str]) -> None:
        self._sign = None if len(directions) > 1 else -1.0 if directions[0] == "maximize" else 1.0
        self._least: dict[int, tuple[float, int]] = {}
        self._numbers: dict[int, set[int]] = {}

    def note(self, news: TrialNews, cell: int | None) -> None:
        """Learns of a trial, and of its cell's place among those of the grid; idempotent."""
        if self._sign is not None and cell is not None and news.state == "COMPLETE" and news.values:
            found = (self._sign * news.values[0], news.number)
            self._numbers.setdefault(cell, set()).add(news.number)
            self._least[cell] = min(found, self._least.get(cell, found))

    def number(self, cell: int, among: int) -> int | None:
        """The number of the best complete trial of a cell, of equal ones the first; None with fewer
        than `among`.
        """
        return self._least[cell][1] if len(self._numbers.get(cell, ())) >= among else None

    def first(self, most: int) -> list[int]:
        """Ordinals of the `most` best cells, the best first; of equal ones the first."""
        return heapq.nsmallest(most, self._least, key=lambda cell: (self._least[cell][0], cell))
