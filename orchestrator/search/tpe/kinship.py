"""What the cells of a grid have in common, learnt from their trials: how near they are, how optima
move between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.search.trials.history import Array, Column

SHARING = ((math.inf, 1.0), (0.35, 0.3), (0.15, 0.1), (0.07, 0.02))
"""Degrees of sharing, widest first: width over an ordered axis (of length 1), weight of another
category.
"""
GAIN_TO_NARROW = 0.93
"""Cells share less only if that predicts trials better: the error must shrink to this fraction."""
GAIN_TO_MOVE = 0.85
"""Optima move between cells only if that predicts good trials better: the error must shrink to this
fraction.
"""
RIDGES = (8.0, 1.0, 0.2)
MAX_COMPARED = 150
"""Trials used to learn how much cells share; the cost grows with their square."""
LEAST_WEIGHT = 0.02


def closeness(
    cells: Array, cell: Array, context: Sequence[Column], sharing: tuple[float, float]
) -> Array:
    """How much trials in `cells` count in `cell` (arrays of coordinates, the last axis over
    columns), in (0, 1].
    """
    width, other = sharing
    difference = cells - cell
    weight = np.ones(difference.shape[:-1])
    for j, column in enumerate(context):
        if column.n_choices:
            weight *= np.where(difference[..., j] == 0, 1.0, other)
        else:
            weight *= np.exp(-0.5 * (difference[..., j] / width) ** 2)
    result: Array = np.maximum(weight, LEAST_WEIGHT)
    return result


def learn_sharing(
    searched: Sequence[Column], context: Sequence[Column], x: Array, badness: Array
) -> tuple[float, float]:
    """The degree of sharing under which trials predict each other's ranks best: leave-one-out
    regression.

    Args:
        searched: the first columns of `x`.
        context: its other columns, those of the cell.
        x: trials, shape (n, columns), NaN where a searched one is unknown.
        badness: shape (n,), whatever orders the trials.
    """
    if not context:
        return SHARING[0]
    n = len(searched)
    place = np.argsort(np.argsort(badness, kind="stable")) / max(1, len(x) - 1)
    squared = np.zeros((len(x), len(x)))
    for j, column in enumerate(searched):
        difference = np.nan_to_num(x[:, None, j] - x[None, :, j])
        if column.n_choices:
            squared += np.where(difference == 0, 0.0, -2.0 * math.log(0.4))
        else:
            width = 1.06 * float(np.nan_to_num(x[:, j]).std()) * len(x) ** (-1.0 / (n + 4.0)) + 1e-3
            squared += (difference / width) ** 2
    near = np.exp(-0.5 * squared)
    near[np.diag_indices(len(x))] = 0.0
    cells, which = np.unique(x[:, n:], axis=0, return_inverse=True)
    which, chosen, least = which.ravel(), SHARING[0], math.inf
    for sharing in SHARING:
        weight = (
            near
            * closeness(cells[:, None, :], cells[None, :, :], context, sharing)[which][:, which]
        )
        # A little of the mean, so that a trial without neighbours is foretold as middling.
        foretold = (weight @ place + 0.05 * place.mean()) / (weight.sum(axis=1) + 0.05)
        error = float(((foretold - place) ** 2).sum())
        if error < GAIN_TO_NARROW * least:
            chosen, least = sharing, error
    return chosen


class Drift:
    """How good values of the ordered searched columns move with the cell: a ridge regression on the
    cell's coordinates.

    For each column the ridge, or no movement at all, is whatever predicts each good trial best from
    the others.

    Args:
        x: the good trials' ordered coordinates, shape (n, ordered columns), NaN where unknown.
        cells: their cells' coordinates, shape (n, columns of the cell).
        context: the columns of the cell.
    """

    def __init__(self, x: Array, cells: Array, context: Sequence[Column]) -> None:
        self._cells, self._context = cells, context
        n = len(x)
        self._effect: Array = np.zeros((len(x), x.shape[1]))
        if not context or n < 3:
            return
        mean = (
            np.nanmean(np.vstack([x, np.full_like(x[:1], 0.5)]), axis=0)
            if np.isnan(x).any()
            else x.mean(axis=0)
        )
        residual = np.where(np.isnan(x), 0.0, x - mean)
        kernel = _agreement(cells, cells, context)
        kernel = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
        values, vectors = np.linalg.eigh(kernel)
        values, turned = np.maximum(values, 0.0), vectors.T @ residual
        least = GAIN_TO_MOVE * ((residual * n / (n - 1)) ** 2).sum(axis=0)
        for ridge in RIDGES:
            leverage = (vectors**2) @ (values / (values + ridge)) + 1.0 / n
            missed = residual - vectors @ ((values / (values + ridge))[:, None] * turned)
            error = ((missed / np.maximum(1.0 - leverage, 1e-3)[:, None]) ** 2).sum(axis=0)
            better = error < least
            effect = vectors @ (turned / (values + ridge)[:, None])
            self._effect = np.where(better, effect - effect.mean(axis=0), self._effect)
            least = np.where(better, error, least)

    def towards(self, cell: Array, cells: Array) -> Array:
        """What to add to good coordinates in `cells` to have good ones in `cell`; shape
        (len(cells), ordered columns).
        """
        if not self._effect.any():
            return np.zeros((len(cells), self._effect.shape[1]))
        here, there = (_agreement(c, self._cells, self._context) for c in (cell[None, :], cells))
        result: Array = (here - there) @ self._effect
        return result


def _agreement(a: Array, b: Array, context: Sequence[Column]) -> Array:
    """Inner products of cells: of ordered coordinates, and one for each category in common."""
    ordered = [j for j, column in enumerate(context) if not column.n_choices]
    result: Array = a[:, ordered] @ b[:, ordered].T
    for j, column in enumerate(context):
        if column.n_choices:
            result += a[:, None, j] == b[None, :, j]
    return result
