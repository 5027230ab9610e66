"""Searched numbers whose best values lie at an end of their range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from orchestrator.search.cells.optima import Optima
from orchestrator.search.gp.process import Posterior
from orchestrator.search.science.results import Edge
from orchestrator.search.trials.history import Array, Column
from orchestrator.search.trials.threads import Library

special = Library("scipy.special")
ZONE = 0.05
"""So much of a range's width on the parameter's scale is its end; of a discrete parameter the last
value.
"""
_INNER = 3.0 * ZONE
"""So far inside, on the parameter's scale, is what the end has to be better than."""
_OFTEN = 0.5
_SURE = 0.9
_BEYOND = 0.2
"""How far beyond the end a range is widened, in its widths on the parameter's scale."""
_NICE = (1.0, 2.0, 3.0, 5.0, 10.0)
Better: TypeAlias = Callable[[Array, Array, Array], Array]
Side: TypeAlias = Literal["lower", "upper"]


def edges(
    optima: Optima,
    drawn: Array,
    searched: Sequence[Column],
    cells: Array,
    fixed: Array,
    places: Sequence[int],
    better: Better,
) -> list[Edge]:
    """The parameters and ends where the best value of at least one cell lies, those of most cells
    first. It lies there if the lowest of the points of `optima` does so in half of the draws, and
    if the loss there is lower than a step further in with a probability of 0.9, all else equal.

    Args:
        drawn: joint draws of the losses at the points of `optima`, shape (draws, cells, points).
        cells: coordinates of the cells, one row per cell.
        fixed: for each cell the searched coordinates that it does not vary, NaN where it does.
        places: the names of the cells.
        better: of points, of other points and of the cells of both, row by row, the probabilities
            that the loss at the first is the lower one; as `lower` gives.
    """
    best = drawn.argmin(axis=2)  # (draws, cells)
    found = []
    for j, column in enumerate(searched):
        there = np.flatnonzero(np.isnan(fixed[:, j]))
        if column.n_choices or not len(there) or column.high <= column.low:
            continue
        coordinates = optima.points[:, :, j]
        at = np.take_along_axis(coordinates, best.T, axis=1)  # (cells, draws)
        low, high = _zone(column)
        sides: tuple[tuple[Side, npt.NDArray[np.bool_], npt.NDArray[np.bool_]], ...] = (
            ("lower", at <= low, coordinates <= low),
            ("upper", at >= high, coordinates >= high),
        )
        for side, within, ends in sides:
            mine = there[within[there].mean(axis=1) >= _OFTEN]
            if not len(mine):
                continue
            points = np.stack([optima.points[i, _most(best[:, i], ends[i])] for i in mine])
            inner = points.copy()
            inner[:, j] = _inner(column, side)
            mine = mine[better(points, inner, cells[mine]) >= _SURE]
            if len(mine):
                found.append(
                    Edge(
                        column.name,
                        side,
                        column.low if side == "lower" else column.high,
                        _widened(column, side),
                        tuple(places[i] for i in mine),
                        len(there),
                        column.log,
                    )
                )
    return sorted(found, key=lambda edge: -len(edge.places) / edge.of)


def lower(posterior: Posterior, widened: float) -> Better:
    """By the model's joint belief, with deviations `widened` times its own."""

    def better(points: Array, others: Array, cells: Array) -> Array:
        n = len(points)
        marginal = posterior.at(np.vstack([points, others]), np.vstack([cells, cells]))
        covariance = marginal.covariance(slice(None))
        variance = np.diag(covariance)
        differ = variance[:n] + variance[n:] - 2.0 * np.diag(covariance, n)
        gain = marginal.mean[n:, 0] - marginal.mean[:n, 0]
        result: Array = special.ndtr(gain / (widened * np.sqrt(np.maximum(differ, 1e-12))))
        return result

    return better


def _most(best: npt.NDArray[np.intp], allowed: npt.NDArray[np.bool_]) -> int:
    """Of the allowed points of a cell the one that is the best most often."""
    return int(np.where(allowed, np.bincount(best, minlength=len(allowed)), -1).argmax())


def _inner(column: Column, side: Side) -> float:
    """The coordinate further in that an end is compared with."""
    inner = _INNER if side == "lower" else 1.0 - _INNER
    if not column.step:
        return inner
    limit, step = (column.low, column.step) if side == "lower" else (column.high, -column.step)
    next_ = float(column.encode(np.array([limit + step]))[0])
    inner = float(column.encode(column.decode(np.array([inner])))[0])
    return max(inner, next_) if side == "lower" else min(inner, next_)


def _zone(column: Column) -> tuple[float, float]:
    """The coordinates up to which, and from which on, a value is at an end."""
    low, high = ZONE, 1.0 - ZONE
    if column.step:
        ends = column.encode(np.array([column.low, column.high]))
        low, high = max(low, float(ends[0]) + 1e-9), min(high, float(ends[1]) - 1e-9)
    return low, high


def _widened(column: Column, side: Side) -> float | None:
    """A round number beyond an end of the range; where 0 or 1 may be its natural end, half of the
    way to it, and None from there on.
    """
    limit = column.low if side == "lower" else column.high
    away = -1.0 if side == "lower" else 1.0
    if column.log:
        factor = max((column.high / column.low) ** _BEYOND, 1.5)
        beyond = _round(limit * factor**away, up=side == "upper")
    else:
        step = _round(_BEYOND * (column.high - column.low), up=True)
        beyond = limit + away * max(step, column.step)
    natural = _natural(column, side)
    if natural is not None and away * (beyond - natural) >= 0.0:
        beyond = (limit + natural) / 2.0
    if column.step:
        steps = max(1, round(abs(beyond - limit) / column.step))
        beyond = limit + away * steps * column.step
    if beyond == limit or (natural is not None and away * (beyond - natural) >= 0.0):
        return None
    return float(f"{beyond:.6g}")


def _natural(column: Column, side: Side) -> float | None:
    """What numbers of this range may have to stay above or below."""
    if side == "lower":
        return 0.0 if column.low >= 0.0 else None
    if column.low >= 0.0 and column.high <= 1.0:
        return 1.0
    return 0.0 if column.high <= 0.0 else None


def _round(value: float, *, up: bool) -> float:
    """The next number of the form 1, 2, 3 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    if up:
        return next(n for n in _NICE if n * power >= value * (1.0 - 1e-9)) * power
    return next(n for n in reversed(_NICE) if n * power <= value * (1.0 + 1e-9)) * power
