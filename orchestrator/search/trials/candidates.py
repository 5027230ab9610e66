"""Points of the searched space to compare: spread over it, or near others; always values that the
columns allow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.search.trials.history import Array, Column


def snapped(searched: Sequence[Column], points: Array) -> Array:
    """The nearest coordinates of values that the columns allow."""
    each = [column.encode(column.decode(points[:, j])) for j, column in enumerate(searched)]
    return np.column_stack(each) if each else points


def spread(searched: Sequence[Column], n: int, rng: np.random.Generator) -> Array:
    """`n` points drawn uniformly on the columns' scales."""
    uniform = rng.random((n, len(searched)))
    each = [column.spread(uniform[:, j]) for j, column in enumerate(searched)]
    return np.column_stack(each) if each else uniform


def around(
    searched: Sequence[Column], centres: Array, radius: float, each: int, rng: np.random.Generator
) -> Array:
    """`each` points about every centre: half of the columns move by normal steps, categories change
    by a coin.
    """
    points = np.repeat(centres, each, axis=0)
    if not searched:
        return points
    moving = rng.random(points.shape) < max(0.5, 1.0 / len(searched))
    moving[np.arange(len(points)), rng.integers(len(searched), size=len(points))] = True
    for j, column in enumerate(searched):
        if column.n_choices:
            other = column.drawn(
                rng.integers(len(column.allowed) or column.n_choices, size=len(points))
            )
            change = moving[:, j] & (rng.random(len(points)) < 0.3)
            points[:, j] = np.where(change, other, points[:, j])
        else:
            points[:, j] += np.where(moving[:, j], radius * rng.standard_normal(len(points)), 0.0)
    return snapped(searched, points)


def repeated(searched: Sequence[Column], points: Array, tried: Array) -> npt.NDArray[np.bool_]:
    """Which points have been tried; none where a column is continuous, for there a point means its
    neighbourhood.
    """
    if not all(column.n_choices or column.step for column in searched):
        return np.zeros(len(points), dtype=bool)
    taken = set(map(tuple, np.round(tried, 9).tolist()))
    return np.array(
        [point in taken for point in map(tuple, np.round(points, 9).tolist())], dtype=bool
    )
