"""What the model believes along searched parameters in the best cells, early in the study and now:
the surrogate, its uncertainty, and the improvement that it expects of the next trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.model import CellModel, Cells, places
from orchestrator.search.cells.summary import REPORTED, CellEstimate
from orchestrator.search.gp.improvement import log_improvement
from orchestrator.search.gp.process import BELIEVING, Layout, Posterior
from orchestrator.search.gp.surrogate import Fits, Surrogate
from orchestrator.search.science.sliced import (
    CellSlices,
    Ended,
    Line,
    Plane,
    Seen,
    Slices,
    Snapshot,
)
from orchestrator.search.space import Parameter
from orchestrator.search.trials.history import Array, Column, History
from orchestrator.search.trials.mirror import Mirror

MOST_CELLS = 6
COUNTS = (2, 5, 9)
"""Snapshots are taken when a cell has had so many trials with a value, and now."""
N_POINTS = 49
"""Of a line through a cell; of a study with few cells they are twice as many."""
N_PLANE = 29
MOST_NUMBERS, MOST_CHOICES = 2, 1
"""So many searched numbers and categories are shown."""
_Z90 = 1.6448536269514722  # the normal distribution's 0.95 quantile


def slices(
    model: CellModel,
    mirror: Mirror,
    parameters: Mapping[str, Parameter],
    cells: Sequence[Mapping[str, JSONValue]],
    estimates: Sequence[CellEstimate | None],
    *,
    maximize: bool,
    limits: Limits = (None, None),
    ranking: Sequence[str] = (),
) -> Slices:
    """Slices through up to six of the cells, those that are the likeliest to be the best. Pruned
    trials are seen, but the model does not learn from them, as in `Beliefs`.

    A snapshot of the first trials is the same whatever trials come later, as long as the same
    values are held; unless later ones are the first to request a parameter.

    Args:
        parameters: those of the model, by their paths.
        estimates: of each of the cells, as `summarise` gives them.
        limits: the least and the greatest value of the objective; predictions stay within them.
        ranking: paths of parameters, the most important first; any others follow by how much the
            prediction varies along them.

    Raises:
        ConfigError: a cell is not one of the grid.
    """
    history = model.finished(mirror)
    state = model.cells(_believed(history), cells)
    if not model.searched:
        return Slices(why_not="No parameter is searched, so there is none to draw a slice along.")
    order = _best_first(state, estimates, maximize)
    if not order:
        return Slices(why_not="No trial has a value yet, and a prior alone has no scale to draw.")
    through = [
        _Through.of(history, model.searched, cells[i], state, i, estimates[i])
        for i in order[:MOST_CELLS]
    ]
    slicer = _Slicer(model, history, parameters, through, maximize, limits, ranking)
    return Slices(
        tuple(slicer.cells()),
        tuple(model.searched[j].name for j in slicer.chosen),
        left_out=len(order) - len(through),
    )


def _best_first(
    cells: Cells, estimates: Sequence[CellEstimate | None], maximize: bool
) -> list[int]:
    """Places of the cells with a trial that has a value."""

    def rank(place: int) -> tuple[float, ...]:
        estimate = estimates[place]
        if estimate is None:
            return 1.0, float(cells.best[place])
        return 0.0, *estimate.rank(maximize=maximize)

    return sorted(np.flatnonzero(cells.useful).tolist(), key=rank)


@dataclass(frozen=True)
class _Through:
    """Where a cell is sliced: its coordinates, the places of its finished trials in the history,
    and the trial whose searched coordinates are held. `exists` says which columns the cell has.
    """

    cell: Mapping[str, JSONValue]
    point: Array
    rows: npt.NDArray[np.intp]
    row: int
    held: Array
    exists: npt.NDArray[np.bool_]

    @staticmethod
    def of(
        history: History,
        searched: Sequence[Column],
        cell: Mapping[str, JSONValue],
        cells: Cells,
        place: int,
        estimate: CellEstimate | None,
    ) -> _Through:
        n = len(searched)
        point, fixed = cells.points[place], cells.fixed[place]
        rows = np.flatnonzero(places(history.x[:, n:], point[None, :]) == 0)
        best = int(np.argmin(np.where(history.pruned[rows], np.inf, history.loss[rows])))
        if estimate is not None and estimate.trial is not None:
            trials = history.trials
            best = [trials[row].number for row in rows].index(estimate.trial)
        row = int(rows[best])
        held = Layout.of(searched, []).filled(history.x[row, :n])
        return _Through(cell, point, rows, row, held, np.isnan(fixed))

    def moments(self, history: History) -> list[int]:
        """How many of the study's trials had ended at each snapshot."""
        valued = self.rows[_valued(history)[self.rows]]
        early = [int(valued[count - 1]) + 1 for count in COUNTS if count < len(valued)]
        return [*early, len(history.loss)]

    def points(self, coordinates: Array, *columns: int) -> Array:
        """Points that differ from what is held in some of the columns."""
        result: Array = np.repeat(self.held[None, :], len(coordinates), axis=0)
        result[:, columns] = coordinates
        return result


@dataclass(frozen=True)
class _Belief:
    """What the model believes once the first `finished` trials have ended."""

    surrogate: Surrogate
    posterior: Posterior
    finished: int

    @staticmethod
    def of(surrogate: Surrogate, finished: int) -> _Belief:
        return _Belief(surrogate, surrogate.posterior(), finished)


class _Slicer:
    """Takes the snapshots in the order of time, so that each belief is found once."""

    def __init__(
        self,
        model: CellModel,
        history: History,
        parameters: Mapping[str, Parameter],
        through: Sequence[_Through],
        maximize: bool,
        limits: Limits,
        ranking: Sequence[str],
    ) -> None:
        self._model, self._history, self._parameters = model, history, parameters
        self._through, self._maximize, self._limits = through, maximize, limits
        self._columns = model.searched
        n_points = 2 * N_POINTS - 1 if len(through) <= 2 else N_POINTS
        self._coordinates = [_coordinates(column, n_points) for column in model.searched]
        surrogate = model.surrogate(_believed(history), believing=True)
        self._now = _Belief.of(surrogate, len(history.loss))
        self._x = surrogate.layout.filled(history.x)
        self._internal = history.read.internal(history.kept)[:, : len(model.searched)]
        self._numbers = [trial.number for trial in history.trials]
        self._ordered = self._in_order(list(ranking))
        numbers = [j for j in self._ordered if not model.searched[j].n_choices]
        choices = [j for j in self._ordered if model.searched[j].n_choices]
        self.chosen = numbers[:MOST_NUMBERS] + choices[:MOST_CHOICES]
        """The columns to show, numbers first."""

    def cells(self) -> list[CellSlices]:
        """The slices of each cell."""
        taken = self._snapshots()
        found = []
        for place, cell in enumerate(self._through):
            lines = [
                self._line(cell, j, taken[place, j]) for j in self.chosen if (place, j) in taken
            ]
            found.append(
                CellSlices(
                    cell.cell,
                    self._numbers[cell.row],
                    self._params(cell.row),
                    tuple(map(self._seen, cell.rows.tolist())),
                    tuple(lines),
                    self._plane(cell),
                )
            )
        return found

    def _in_order(self, ranking: list[str]) -> list[int]:
        """The columns that exist in these cells: the most important first, or else those along
        which the mean varies the most.
        """
        variation = np.zeros(len(self._columns))
        for cell in self._through:
            for j in np.flatnonzero(cell.exists):
                points = cell.points(self._coordinates[j][:, None], int(j))
                variation[j] += self._now.posterior.mean(points, cell.point[None, :]).std()
        ranks = {path: rank for rank, path in enumerate(ranking)}
        order = sorted(
            range(len(variation)),
            key=lambda j: (ranks.get(self._columns[j].name, len(ranks)), -variation[j]),
        )
        return [j for j in order if any(cell.exists[j] for cell in self._through)]

    def _snapshots(self) -> dict[tuple[int, int], list[Snapshot]]:
        """By place of the cell and column."""
        history, fits = self._history, Fits(noise=BELIEVING)
        moments = [cell.moments(history) for cell in self._through]
        taken: dict[tuple[int, int], list[Snapshot]] = {}
        for finished in sorted(set().union(*moments)):
            if finished == self._now.finished:
                belief = self._now
            else:
                first = _believed(history.first(finished))
                surrogate = self._model.surrogate(first, believing=True, fits=fits)
                belief = _Belief.of(surrogate, finished)
            for place, cell in enumerate(self._through):
                for j in self.chosen if finished in moments[place] else ():
                    if cell.exists[j]:
                        snapshot = self._snapshot(belief, cell, j)
                        taken.setdefault((place, j), []).append(snapshot)
        return taken

    def _snapshot(self, belief: _Belief, cell: _Through, column: int) -> Snapshot:
        point, n = cell.point[None, :], len(self._columns)
        seen = cell.rows[cell.rows < belief.finished]
        rows = seen[~self._history.pruned[seen]]
        marginal = belief.posterior.at(
            cell.points(self._coordinates[column][:, None], column), point
        )
        mean, std = marginal.mean[:, 0], marginal.std[:, 0]
        # as the sampler has it: over the best mean where the cell was tried
        incumbent = belief.posterior.mean(self._x[rows, :n], point).min()
        improvement = std * np.exp(log_improvement((incumbent - mean) / std))
        reach = _Z90 * REPORTED * std
        low, high = (mean + reach, mean - reach) if self._maximize else (mean - reach, mean + reach)
        return Snapshot(
            belief.finished,
            seen=len(seen),
            valued=int(_valued(self._history)[seen].sum()),
            mean=self._values(belief, mean),
            low=self._values(belief, low),
            high=self._values(belief, high),
            improvement=tuple((improvement * belief.surrogate.scale.std).tolist()),
        )

    def _values(self, belief: _Belief, standard: Array) -> tuple[float, ...]:
        """Losses in the model's units as values of the objective."""
        loss = belief.surrogate.scale.unlimited(standard)
        return tuple(clipped(v, self._limits) for v in (-loss if self._maximize else loss).tolist())

    def _line(self, cell: _Through, j: int, snapshots: Sequence[Snapshot]) -> Line:
        column, n = self._columns[j], len(self._columns)
        at = self._x[cell.rows, :n]
        moved = cell.points(at[:, j : j + 1], j)
        return Line(
            column.name,
            not column.n_choices,
            column.log,
            tuple(self._value(j, x) for x in column.decode(self._coordinates[j]).tolist()),
            tuple(self._now.posterior.similarity(at, moved).tolist()),
            tuple(snapshots),
        )

    def _plane(self, cell: _Through) -> Plane | None:
        """Along the first two numbers that the trial has whose parameters are held; None if it has
        fewer.
        """
        columns, held = self._columns, self._params(cell.row)
        numbers = [j for j in self._ordered if not columns[j].n_choices and columns[j].name in held]
        if len(numbers) < 2:
            return None
        i, j = numbers[:2]
        x, y = (_coordinates(columns[k], N_PLANE) for k in (i, j))
        both = np.column_stack([np.tile(x, len(y)), np.repeat(y, len(x))])
        mean = self._now.posterior.mean(cell.points(both, i, j), cell.point[None, :])[:, 0]
        values = self._values(self._now, mean)
        return Plane(
            columns[i].name,
            columns[j].name,
            tuple(columns[i].decode(x).tolist()),
            tuple(columns[j].decode(y).tolist()),
            columns[i].log,
            columns[j].log,
            tuple(values[at : at + len(x)] for at in range(0, len(values), len(x))),
        )

    def _params(self, row: int) -> dict[str, JSONValue]:
        internal = self._internal[row]
        return {
            column.name: self._value(j, float(internal[j]))
            for j, column in enumerate(self._columns)
            if not np.isnan(internal[j])
        }

    def _value(self, column: int, internal: float) -> JSONValue:
        return self._parameters[self._columns[column].name].true_value(internal)

    def _seen(self, row: int) -> Seen:
        history = self._history
        value = float(history.read.value[history.kept[row]])
        if history.pruned[row]:
            ended: Ended = "pruned"
        elif history.failed[row]:
            ended = "failed"
        else:
            ended = "infeasible" if history.violation[row] > 0 else "complete"
        return Seen(
            self._numbers[row],
            self._params(row),
            None if np.isnan(value) else value,
            ended,
        )


def _believed(history: History) -> History:
    """The trials that the model is given, as for estimates of cells."""
    return history.only(_valued(history))


def _valued(history: History) -> npt.NDArray[np.bool_]:
    """Which trials are complete and feasible."""
    result: npt.NDArray[np.bool_] = np.isfinite(history.loss) & ~history.pruned
    return result


def _coordinates(column: Column, most: int) -> Array:
    """All values that a new trial may get, ascending, or as many as asked for, evenly on the
    column's scale.
    """
    if column.n_choices:
        return column.drawn(np.arange(len(column.allowed) or column.n_choices))
    low, high = column.limits()
    values = np.unique(column.decode(np.linspace(low, high, most)))
    return column.encode(values)
