"""A study's Gaussian process applied to whole cells instead of single trials, whichever sampler
suggests the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue
from orchestrator.search.cells.optima import PER_CELL, Optima
from orchestrator.search.gp.process import BELIEVING, Layout
from orchestrator.search.gp.surrogate import Fits, Surrogate
from orchestrator.search.space import Parameter
from orchestrator.search.trials.history import Array, Column, History
from orchestrator.search.trials.mirror import Mirror, blank_trial
from orchestrator.search.trials.rows import Rows

N_STARTUP = 10


@dataclass(frozen=True)
class Cells:
    """Cells of a grid with their trials: ended with a value, in all (running and failed ones too),
    and the least loss.

    `points` are the cells' coordinates; `fixed` those of parameters that do not exist in a cell,
    NaN for those that do.
    """

    points: Array
    fixed: Array
    useful: npt.NDArray[np.intp]
    trials: npt.NDArray[np.intp]
    running: npt.NDArray[np.intp]
    best: Array

    def only(self, which: npt.NDArray[np.intp]) -> Cells:
        """Some of the cells."""
        return Cells(*(getattr(self, part.name)[which] for part in fields(self)))


class CellModel:
    """Reads a study's trials as the GP sampler does, so that both share one fit."""

    def __init__(self, parameters: Mapping[str, Parameter], fits: Fits) -> None:
        self._parameters = parameters
        self._rows = Rows()
        self._fits = fits
        self._believing = Fits(noise=BELIEVING)
        # In the samplers' order: searched as declared, the cell's by name.
        varied = [p for p in parameters.values() if not p.distribution.single()]
        self.searched = [
            Column.of(p.path, p.distribution).within(p.limits) for p in varied if not p.grid
        ]
        self._context = [
            Column.of(p.path, p.distribution)
            for p in sorted(varied, key=lambda p: p.path)
            if p.grid
        ]

    def history(self, mirror: Mirror) -> History:
        """The study's trials by the columns searched and then the cell's."""
        nobody = blank_trial(mirror.next_number(), {})
        every_cell = slice(len(self.searched), None)
        return History.of(
            mirror.study(),
            nobody,
            [*self.searched, *self._context],
            self._rows,
            required=every_cell,
        )

    def finished(self, mirror: Mirror) -> History:
        """The same without the running trials."""
        history = self.history(mirror)
        return replace(history, pending=history.pending[:0])

    def cells(self, history: History, values: Sequence[Mapping[str, JSONValue]]) -> Cells:
        """What has been tried in the cells of these values.

        Raises:
            ConfigError: a value is not on the grid.
        """
        internal = [
            [self._parameters[c.name].internal(cell[c.name]) for c in self._context]
            for cell in values
        ]
        table = np.array(internal, dtype=float).reshape(len(values), len(self._context))
        each = [column.encode(table[:, j]) for j, column in enumerate(self._context)]
        points = np.column_stack(each) if each else table
        n = len(self.searched)
        of_finished, of_running = (
            places(history.x[:, n:], points),
            places(history.pending[:, n:], points),
        )
        valued = of_finished[np.isfinite(history.loss)]
        best = np.full(len(points) + 1, np.inf)
        np.minimum.at(best, of_finished, history.loss)
        useful, finished, running = (
            np.bincount(each, minlength=len(points) + 1)[:-1]
            for each in (valued, of_finished, of_running)
        )
        exists = [
            [self._parameters[c.name].exists_in(cell) for c in self.searched] for cell in values
        ]
        neutral = Layout.of(self.searched, []).neutral
        fixed = np.where(np.array(exists, dtype=bool).reshape(len(values), n), np.nan, neutral)
        return Cells(points, fixed, useful, finished + running, running, best[:-1])

    def surrogate(
        self, history: History, *, believing: bool = False, fits: Fits | None = None
    ) -> Surrogate:
        """The process of the study, cut to a size that answers questions about all cells.

        Args:
            believing: for what is reported, not for where to search; see `process.NoisePrior`.
            fits: where the fit is remembered, if not with those of the whole study.
        """
        fits = fits or (self._believing if believing else self._fits)
        whole = Surrogate.of(history, self.searched, self._context, fits)
        return whole.unbiased() if believing else whole.balanced()

    def optima(
        self, surrogate: Surrogate, cells: Cells, rng: np.random.Generator, per_cell: int = PER_CELL
    ) -> Optima:
        """The belief about the cells' optima; running trials are assumed to end as predicted."""
        posterior, _ = surrogate.believing()
        seen = surrogate.x[np.argsort(surrogate.y, kind="stable"), : len(self.searched)]
        return Optima.of(posterior, seen, self.searched, cells.points, cells.fixed, rng, per_cell)


def places(rows: Array, points: Array) -> npt.NDArray[np.intp]:
    """For each row the index of the point it equals; `len(points)` where it equals none."""
    rows, points = np.round(rows, 9), np.round(points, 9)
    among, number = np.ones(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int64)
    of_point = np.zeros(len(points), dtype=np.int64)
    for j in range(points.shape[1]):
        values, place = np.unique(points[:, j], return_inverse=True)
        nearest = np.minimum(np.searchsorted(values, rows[:, j]), len(values) - 1)
        among &= values[nearest] == rows[:, j]
        number, of_point = number * len(values) + nearest, of_point * len(values) + place
    order = np.argsort(of_point)
    found = np.minimum(np.searchsorted(of_point[order], number), len(points) - 1)
    return np.where(among & (of_point[order][found] == number), order[found], len(points))
