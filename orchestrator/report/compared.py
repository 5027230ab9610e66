"""Which cells a report compares: all of a grid, or those about the best ones of a large one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, StudySpec

if TYPE_CHECKING:
    from orchestrator.search import Science, Search
    from orchestrator.store import CellRow, Progress

MOST_CELLS = 300
"""A grid with more cells than this is not compared whole."""
_MOST_BASES = 8


@dataclass(frozen=True)
class Compared:
    """The cells that are compared; `about` of the best cells, they and all that differ from one of
    them in one axis; 0: all cells of the grid.
    """

    cells: list[dict[str, JSONValue]]
    about: int = 0

    @staticmethod
    def of(spec: StudySpec, progress: Progress) -> Compared:
        """All cells of a grid, or some of the best ones of a large one and their neighbours."""
        if spec.n_cells <= MOST_CELLS:
            return Compared(list(spec.cells()))
        sign = -1.0 if spec.directions[0] == "maximize" else 1.0
        tried = [cell for cell in progress.cells if cell.best is not None]
        tried.sort(key=lambda cell: (sign * (cell.best or 0.0), cell.ordinal))
        width = sum(len(axis.values) for axis in spec.grid)
        bases = tried[: max(1, min(_MOST_BASES, MOST_CELLS // width))]
        cells: list[dict[str, JSONValue]] = []
        for base in bases:
            cells += [cell for cell in _neighbours(spec, base) if cell not in cells]
        return Compared(cells[:MOST_CELLS], len(bases))

    def science(self, search: Search) -> Science | None:
        """What the trials say about these cells; of a large grid also of those without a trial."""
        return search.science(self.cells, untried=self.about > 0)


def _neighbours(spec: StudySpec, base: CellRow) -> Iterator[dict[str, JSONValue]]:
    yield dict(base.values)
    for axis in spec.grid:
        for value in axis.values:
            yield {**base.values, axis.path: value}
