"""Contrasts and interactions of axes, from joint draws of the cells' optima.

A two-way table of cells and what it says: Box, Hunter and Hunter, "Statistics for Experimenters",
with draws of a posterior in place of errors of means.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue
from orchestrator.search.cells.summary import shared
from orchestrator.search.science.results import AxisEffect, Contrast, Interaction, ValueEffect
from orchestrator.search.trials.history import Array

Codes = npt.NDArray[np.intp]
DECIDED = 0.95
"""A contrast with this probability is decided."""
MOST_PAIRED = 12
"""Of an axis with more values than this, only the best and each other are compared."""
MOST_CROSSED = 8
"""Of an axis with more values, interactions are looked for among the so many best ones."""
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Grid:
    """The axes of cells: paths, values, and for each cell the places of its values, shape (cells,
    axes).
    """

    paths: tuple[str, ...]
    values: tuple[tuple[JSONValue, ...], ...]
    codes: Codes

    def tables(self, axis: int) -> tuple[Codes, Codes]:
        """Cells by context and value of an axis, shape (contexts, values), -1 where there is none;
        and which values (places on the axis) these columns are: those that any cell has.
        """
        mine = self.codes[:, axis]
        present = np.unique(mine)
        rest = np.delete(self.codes, axis, axis=1)
        contexts, which = np.unique(rest, axis=0, return_inverse=True)
        table = np.full((len(contexts), len(present)), -1, dtype=np.intp)
        table[which.ravel(), np.searchsorted(present, mine)] = np.arange(len(mine))
        return table, present


def grid_of(
    axes: Sequence[tuple[str, Sequence[JSONValue]]],
    cells: Sequence[Mapping[str, JSONValue]],
    same: Callable[[JSONValue, JSONValue], bool],
) -> Grid:
    """The axes with at least two values among the cells, and the cells' places on them."""
    columns = [
        [next(i for i, value in enumerate(values) if same(value, cell[path])) for cell in cells]
        for path, values in axes
    ]
    kept = [j for j, column in enumerate(columns) if len(set(column)) > 1]
    codes = np.array([columns[j] for j in kept], dtype=np.intp).T.reshape(len(cells), len(kept))
    return Grid(tuple(axes[j][0] for j in kept), tuple(tuple(axes[j][1]) for j in kept), codes)


def effects(grid: Grid, losses: Array, again: Array, sign: float) -> list[AxisEffect]:
    """Of every axis.

    Args:
        losses: joint draws of the cells' optima, lower is better, shape (draws, cells).
        again: the same of functions drawn over the whole space: a difference is no larger than so
            much if it is not by either.
        sign: turns a loss into the objective's units.
    """
    return [_effect(grid, axis, losses, again, sign) for axis in range(len(grid.paths))]


def _effect(grid: Grid, axis: int, losses: Array, again: Array, sign: float) -> AxisEffect:
    table, present = grid.tables(axis)
    named = [grid.values[axis][place] for place in present]
    whole = (table >= 0).all(axis=1)
    contexts = int(whole.sum())
    largest: float | None = None
    values: tuple[ValueEffect, ...] = ()
    if contexts:
        means = losses[:, table[whole]].mean(axis=1)  # (draws, values)
        largest = _largest(
            *(np.ptp(drawn[:, table[whole]].mean(axis=1), axis=1) for drawn in (losses, again))
        )
        shares = shared(means)
        values = tuple(
            _value(value, sign * means[:, i], float(shares[i])) for i, value in enumerate(named)
        )
    contrasts = []
    for a, b in _pairs(losses, table):
        both = (table[:, a] >= 0) & (table[:, b] >= 0)
        gain, second = (
            (drawn[:, table[both, b]] - drawn[:, table[both, a]]).mean(axis=1)
            for drawn in (losses, again)
        )
        largest_of_two = _largest(np.abs(gain), np.abs(second))
        contrasts.append(_contrast(named[a], named[b], gain, largest_of_two, int(both.sum())))
    contrasts.sort(key=lambda c: -c.probability)
    return AxisEffect(grid.paths[axis], values, tuple(contrasts), largest, contexts, len(table))


def _pairs(losses: Array, table: Codes) -> list[tuple[int, int]]:
    """Columns of the table to compare: those that have a context in common."""
    n = table.shape[1]
    pairs = list(itertools.combinations(range(n), 2))
    if n > MOST_PAIRED:
        whole = table[(table >= 0).all(axis=1)]
        means = (
            losses[:, whole].mean(axis=(0, 1))
            if len(whole)
            else np.array([losses[:, c[c >= 0]].mean() for c in table.T])
        )
        best = int(means.argmin())
        pairs = [(best, other) for other in range(n) if other != best]
    return [(a, b) for a, b in pairs if ((table[:, a] >= 0) & (table[:, b] >= 0)).any()]


def _value(value: JSONValue, drawn: Array, share: float) -> ValueEffect:
    low, middle, high = np.quantile(drawn, (_LOW, 0.5, _HIGH)).tolist()
    return ValueEffect(value, middle, low, high, share)


def _largest(*drawn: Array) -> float:
    return max(float(np.quantile(each, _HIGH)) for each in drawn)


def _contrast(a: JSONValue, b: JSONValue, gain: Array, largest: float, contexts: int) -> Contrast:
    middle = float(np.median(gain))
    if middle < 0.0:
        a, b, gain, middle = b, a, -gain, -middle
    low, high = np.quantile(gain, (_LOW, _HIGH)).tolist()
    better = float((gain > 0.0).mean() + 0.5 * (gain == 0.0).mean())
    return Contrast(a, b, middle, low, high, better, largest, contexts, None)


def decided(contrast: Contrast, margin: float) -> bool:
    """Whether it is known which value is better, or that it makes no difference."""
    return contrast.probability >= DECIDED or contrast.largest <= margin


def interactions(grid: Grid, losses: Array, again: Array) -> list[Interaction]:
    """Of every two axes whose values all occur together, the surest ones first; arguments as of
    `effects`.
    """
    found = []
    for a, b in itertools.combinations(range(len(grid.paths)), 2):
        crossed = _crossed(grid, a, b, np.vstack([losses, again]))
        if crossed is not None:
            found.append(_interaction(grid, a, b, len(losses), *crossed))
    return [interaction for _, interaction in sorted(found, key=lambda f: -f[0])]


def _crossed(grid: Grid, a: int, b: int, losses: Array) -> tuple[Array, Codes, Codes] | None:
    """Draws of the mean optimum by value of both axes, shape (draws, values of a, values of b),
    over the contexts in which all combinations exist; and the places of these values.
    """
    rest = np.delete(grid.codes, (a, b), axis=1)
    contexts, which = np.unique(rest, axis=0, return_inverse=True)
    mine, others = np.unique(grid.codes[:, a]), np.unique(grid.codes[:, b])
    table = np.full((len(contexts), len(mine), len(others)), -1, dtype=np.intp)
    at_a, at_b = (
        np.searchsorted(present, grid.codes[:, axis]) for present, axis in ((mine, a), (others, b))
    )
    table[which.ravel(), at_a, at_b] = np.arange(len(losses.T))
    whole = table[(table >= 0).all(axis=(1, 2))]
    if not len(whole):
        return None
    means = losses[:, whole].mean(axis=1)
    some = [
        np.sort(np.argsort(means.mean(axis=(0, other)), kind="stable")[:MOST_CROSSED])
        for other in (2, 1)
    ]
    return means[:, some[0]][:, :, some[1]], mine[some[0]], others[some[1]]


def _interaction(
    grid: Grid, a: int, b: int, n: int, both: Array, mine: Codes, others: Codes
) -> tuple[float, Interaction]:
    """From `n` draws of optima, and of functions after them; and how sure it is."""
    means = both[:n]
    pairs_a, pairs_b = (
        np.array(list(itertools.combinations(range(n), 2))) for n in means.shape[1:]
    )
    gain = means[:, pairs_a[:, 1]] - means[:, pairs_a[:, 0]]  # of the first over the second
    differ = _differences(gain, pairs_b)
    centre, spread = differ.mean(axis=0), np.maximum(differ.std(axis=0), 1e-300)
    # all pairs together: the largest deviation of any from its mean, in units of its own
    limit = float(np.quantile((np.abs(differ - centre) / spread).max(axis=(1, 2)), 0.9))
    surest = np.abs(centre) / spread
    i, j = np.unravel_index(int(surest.argmax()), surest.shape)
    (first, second), (here, there) = pairs_a[i], pairs_b[j]
    if abs(gain[:, i, there].mean()) > abs(gain[:, i, here].mean()):
        here, there = there, here
    if gain[:, i, here].mean() < 0.0:
        first, second = second, first
    of_here, of_there = (means[:, second, k] - means[:, first, k] for k in (here, there))
    low, middle, high = np.quantile(of_here - of_there, (_LOW, 0.5, _HIGH)).tolist()
    of_a, of_b = grid.values[a], grid.values[b]
    of_functions = both[n:, pairs_a[:, 1]] - both[n:, pairs_a[:, 0]]
    largest = _largest(
        *(np.abs(d).max(axis=(1, 2)) for d in (differ, _differences(of_functions, pairs_b)))
    )
    found = Interaction(
        grid.paths[a],
        of_a[mine[first]],
        of_a[mine[second]],
        grid.paths[b],
        of_b[others[here]],
        of_b[others[there]],
        float(np.median(of_here)),
        float(np.median(of_there)),
        middle,
        low,
        high,
        bool(surest.max() > limit),
        largest,
    )
    return float(surest.max() / limit), found


def _differences(gain: Array, pairs: Codes) -> Array:
    """Of contrasts, shape (draws, pairs, values), between values: shape (draws, pairs, pairs)."""
    result: Array = gain[:, :, pairs[:, 0]] - gain[:, :, pairs[:, 1]]
    return result
