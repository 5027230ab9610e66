"""Searched numbers whose best values lie at an end of their range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from orchestrator.search.cells.optima import Optima
from orchestrator.search.science.results import Edge
from orchestrator.search.trials.history import Array, Column

ZONE = 0.05
"""So much of a range's width on the parameter's scale is its end; of a discrete parameter the last
value.
"""
_BEYOND = 0.2
"""How far beyond the end a range is widened, in its widths on the parameter's scale."""
_NICE = (1.0, 2.0, 3.0, 5.0, 10.0)
_NATURAL = (0.0, 1.0)


def edges(
    optima: Optima,
    drawn: Array,
    searched: Sequence[Column],
    fixed: Array,
    places: Sequence[int],
) -> list[Edge]:
    """The parameters and ends where the best value of at least one cell lies, those of most cells
    first.

    Args:
        drawn: joint draws of the losses at the points of `optima`, shape (draws, cells, points).
        fixed: for each cell the searched coordinates that it does not vary, NaN where it does.
        places: the names of the cells.
    """
    best = drawn.argmin(axis=2)  # (draws, cells)
    found = []
    for j, column in enumerate(searched):
        there = np.flatnonzero(np.isnan(fixed[:, j]))
        if column.n_choices or not len(there):
            continue
        at = np.take_along_axis(optima.points[:, :, j], best.T, axis=1)  # (cells, draws)
        sides: tuple[tuple[Literal["lower", "upper"], npt.NDArray[np.bool_]], ...] = (
            ("lower", at <= _zone(column)[0]),
            ("upper", at >= _zone(column)[1]),
        )
        for side, within in sides:
            mine = [int(i) for i in there if within[i].mean() >= 0.5]
            if mine:
                limit = column.low if side == "lower" else column.high
                found.append(
                    Edge(
                        column.name,
                        side,
                        limit,
                        _widened(column, side),
                        tuple(places[i] for i in mine),
                        len(there),
                        column.log,
                    )
                )
    return sorted(found, key=lambda edge: -len(edge.places) / edge.of)


def _zone(column: Column) -> tuple[float, float]:
    """The coordinates up to which, and from which on, a value is at an end."""
    low, high = ZONE, 1.0 - ZONE
    if column.step:
        ends = column.encode(np.array([column.low, column.high]))
        low, high = max(low, float(ends[0]) + 1e-9), min(high, float(ends[1]) - 1e-9)
    return low, high


def _widened(column: Column, side: Literal["lower", "upper"]) -> float | None:
    """A round number beyond an end of the range."""
    limit = column.low if side == "lower" else column.high
    away = -1.0 if side == "lower" else 1.0
    if column.log:
        factor = max((column.high / column.low) ** _BEYOND, 1.5)
        return _whole(column, _round(limit * factor**away, up=side == "upper"), away)
    if not column.step and limit in _NATURAL:
        return None
    step = _round(_BEYOND * (column.high - column.low), up=True)
    beyond = limit + away * max(step, column.step)
    if side == "lower" and column.low >= 0.0 > beyond:
        beyond = 0.0 if column.low > 0.0 else None  # type: ignore[assignment]
    return None if beyond is None else _whole(column, beyond, away)


def _whole(column: Column, beyond: float, away: float) -> float | None:
    """A value of an integer or stepped parameter, at least a step beyond its range."""
    if not column.step:
        return float(f"{beyond:.6g}")
    limit: Any = column.low if away < 0.0 else column.high
    steps = max(1, round(abs(beyond - limit) / column.step))
    value = limit + away * steps * column.step
    if column.log and value < 1.0:
        return None
    return float(f"{value:.6g}")


def _round(value: float, *, up: bool) -> float:
    """The next number of the form 1, 2, 3 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    if up:
        return next(n for n in _NICE if n * power >= value * (1.0 - 1e-9)) * power
    return next(n for n in reversed(_NICE) if n * power <= value * (1.0 + 1e-9)) * power
