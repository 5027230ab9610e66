"""The best result of each cell, kept as news comes in."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from orchestrator.model import TrialNews


class BestOfCells:
    """Knows the least loss of every cell of a study of one objective; of one of
    several, nothing.
    """

    def __init__(self, directions: Sequence[str]) -> None:
        self._sign = None if len(directions) > 1 else -1.0 if directions[0] == "maximize" else 1.0
        self._least: dict[int, float] = {}

    def note(self, news: TrialNews) -> None:
        """Learns of a trial; idempotent."""
        if (
            self._sign is not None
            and news.cell is not None
            and news.state == "COMPLETE"
            and news.values
        ):
            loss = self._sign * news.values[0]
            self._least[news.cell] = min(loss, self._least.get(news.cell, math.inf))

    def first(self, most: int) -> list[int]:
        """Ordinals of the `most` best cells, the best first; of equal ones the first."""
        return heapq.nsmallest(most, self._least, key=lambda cell: (self._least[cell], cell))
