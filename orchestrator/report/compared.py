"""Which cells a report compares: all of a grid, or those about the best ones of a large one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.model import MOST_CELLS, Axis, JSONValue, StudySpec

if TYPE_CHECKING:
    from orchestrator.search import Science, Search
    from orchestrator.store import CellRow, Progress

_MOST_BASES = 8


@dataclass(frozen=True)
class Compared:
    """The cells that are compared, each once; `about` of the best cells, they and those that differ
    from one of them in one axis; 0: all cells of the grid.

    `left_out` has, by the path of an axis, how many of its values are not compared, if any are not.
    """

    cells: list[dict[str, JSONValue]]
    about: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(spec: StudySpec, progress: Progress) -> Compared:
        """All cells of a grid, or some of the best ones of a large one and their neighbours, at
        most `MOST_CELLS`.
        """
        if spec.n_cells <= MOST_CELLS:
            return Compared(list(spec.cells()))
        sign = -1.0 if spec.directions[0] == "maximize" else 1.0
        tried = [
            cell
            for cell in progress.cells
            if cell.best is not None and cell.ordinal < spec.n_cells  # on the grid as it is now
        ]
        tried.sort(key=lambda cell: (sign * (cell.best or 0.0), cell.ordinal))
        rooms = _shared_out([len(axis.values) for axis in spec.grid], MOST_CELLS - 1)
        axes = [_some(axis, tried, room) for axis, room in zip(spec.grid, rooms, strict=True)]
        width = 1 + sum(len(axis.values) for axis in axes)
        bases = tried[: max(1, min(_MOST_BASES, MOST_CELLS // width))]
        cells = {
            json.dumps(cell, sort_keys=True): cell
            for base in bases
            for cell in _neighbours(base, axes)
        }
        left_out = {
            axis.path: len(axis.values) - len(some.values)
            for axis, some in zip(spec.grid, axes, strict=True)
            if len(some.values) < len(axis.values)
        }
        return Compared(list(cells.values()), len(bases), left_out)

    def science(self, search: Search) -> Science | None:
        """What the trials say about these cells; of a large grid also of those without a trial."""
        return search.science(self.cells, untried=self.about > 0)


def _shared_out(wanted: Sequence[int], room: int) -> list[int]:
    """The room shared out equally, none getting more than it wants: the short ones all of it."""
    shares = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for place, i in enumerate(order):
        shares[i] = min(wanted[i], room // (len(order) - place))
        room -= shares[i]
    return shares


def _some(axis: Axis, best_first: Sequence[CellRow], room: int) -> Axis:
    """So many of an axis' values, in its order: those of the best cells, then the first ones."""
    if room >= len(axis.values):
        return axis
    known = (json.dumps(cell.values[axis.path]) for cell in best_first)
    kept = set(list(dict.fromkeys([*known, *map(json.dumps, axis.values)]))[:room])
    return Axis(axis.path, tuple(value for value in axis.values if json.dumps(value) in kept))


def _neighbours(base: CellRow, axes: Sequence[Axis]) -> Iterator[dict[str, JSONValue]]:
    yield dict(base.values)
    for axis in axes:
        for value in axis.values:
            yield {**base.values, axis.path: value}
