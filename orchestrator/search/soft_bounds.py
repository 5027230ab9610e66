"""Soft bounds: where one trial is searched, by what a probe found in its cell and by how the cell's
trials have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution

from orchestrator.search.trials.history import Column

FREE_EVERY = 4
"""One in so many of a cell's tickets is searched in the declared range; of so many complete trials
of a cell the best one tells where the bounds are too narrow.
"""
REACH = 1.0
"""How far, in widths of the bounds, a trial may always be from the best one of its cell."""


def limits_in_effect(
    bounds: Mapping[str, Sequence[float]],
    space: Mapping[str, BaseDistribution],
    best: Mapping[str, Any],
    turn: int,
) -> dict[str, list[float]]:
    """The limits of one trial; never beyond the declared ranges, and none where it is free.

    Args:
        bounds: lowest and highest value of each parameter that has bounds, in its own units.
        space: distributions of those parameters.
        best: values of the best complete trial of the cell; empty while there are too few to tell.
        turn: which of the cell's tickets it is.
    """
    if turn % FREE_EVERY == FREE_EVERY - 1:
        return {}
    return {
        path: _around(Column.of(path, space[path]), limits, best.get(path))
        for path, limits in bounds.items()
    }


def _around(column: Column, bounds: Sequence[float], best: Any) -> list[float]:
    """The bounds, stretched until they hold all that is within reach of the best value."""
    inner = column.within(bounds)
    if not isinstance(best, int | float) or not column.distribution._contains(float(best)):
        return [inner.low, inner.high]
    bottom, top = inner.limits()
    reach = REACH * (top - bottom)
    at = float(column.encode(np.array([float(best)]))[0])
    low, high = column.decode(np.array([at - reach, at + reach])).tolist()
    return [min(inner.low, low), max(inner.high, high)]
