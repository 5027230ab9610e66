"""A study as one Gaussian process, at a cost that is bounded whatever the number of trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.process import (
    SEARCHING,
    Hyperparameters,
    Layout,
    NoisePrior,
    Posterior,
    fit,
)
from orchestrator.search.gp.sources import Sources, Trend, learn
from orchestrator.search.trials.history import Array, Column, History
from orchestrator.search.trials.rows import checkpoint
from orchestrator.search.trials.smallest import smallest

MAX_TRIALS = 400
"""Inference is exact up to this many trials; of more, this many are kept."""
MAX_REPORTED = 1_000
"""The same for what is reported, which is seldom asked for."""
MAX_FITTED = 200
ANEW = 60
"""Up to this many trials every one that ends changes the hyperparameters."""
MAX_REMEMBERED = 32
"""Sets of columns remembered: cells differ in theirs if parameters exist only in some of them."""


class Fits:
    """Remembers the last fit to each set of columns: hyperparameters change with every trial up to
    60, and then when the number of trials has grown by a tenth.

    Args:
        most: the most trials they are fitted to; the cost grows with more than their square.
        noise: what noise is expected.

    Attributes:
        sources: other studies that this one was warm started from; None: there are none.
    """

    def __init__(self, most: int = MAX_FITTED, noise: NoisePrior = SEARCHING) -> None:
        self._most, self._noise = most, noise
        self._last: dict[tuple[str, ...], tuple[object, Hyperparameters, Trend | None]] = {}
        self.sources: Sources | None = None

    def learnt(
        self, history: History, losses: Array, columns: Sequence[Column], layout: Layout
    ) -> tuple[Hyperparameters, Trend | None]:
        """Hyperparameters, and what the sources are worth, by the first n trials; n is all of them
        up to 60, then grows in steps of a tenth.

        So both are a function of the history, yet seldom computed where that takes long.
        """
        n = max(checkpoint(len(losses)), min(len(losses), ANEW))
        chosen = np.unique(np.linspace(0, n - 1, min(n, self._most)).astype(int))
        x, loss, pruned = layout.filled(history.x[chosen]), losses[chosen], history.pruned[chosen]
        names = tuple(column.name for column in columns)
        key = (layout, x.tobytes(), loss.tobytes(), pruned.tobytes())
        last = self._last.get(names)
        if last is None or last[0] != key:
            if len(self._last) >= MAX_REMEMBERED:
                self._last.clear()
            y = Scale.of(loss, pruned).standard(loss, pruned)
            if self.sources is None:
                last = (key, fit(x, y, layout, self._noise), None)
            else:
                k = layout.n_searched
                models = self.sources.models(columns[:k], columns[k:])
                last = (key, *learn(x, y, layout, models, self._noise))
            self._last[names] = last
        return last[1], last[2]


@dataclass(frozen=True)
class Surrogate:
    """The process given a study's trials: `x` and standardised losses `y` of those kept, all of
    them up to 400.
    """

    layout: Layout
    hyperparameters: Hyperparameters
    scale: Scale
    x: Array
    y: Array
    pending: Array
    trend: Trend | None = None

    @staticmethod
    def of(
        history: History,
        searched: Sequence[Column],
        context: Sequence[Column],
        fits: Fits,
    ) -> Surrogate:
        """Learns from the history, whose columns are those searched and then the cell's."""
        layout = Layout.of(searched, context)
        losses = history.loss
        if not np.isfinite(losses).any():  # nothing feasible yet: first look for something that is
            losses = np.where(history.violation > 0, history.violation, np.inf)
        scale = Scale.of(losses, history.pruned)
        h, trend = fits.learnt(history, losses, [*searched, *context], layout)
        y = scale.standard(losses, history.pruned)
        return Surrogate(
            layout, h, scale, layout.filled(history.x), y, layout.filled(history.pending), trend
        )

    def near(self, cell: Array, most: int = MAX_TRIALS) -> Surrogate:
        """For questions about one cell: a quarter of the kept are the best, half the nearest to the
        cell, the rest a spread.
        """
        if len(self.y) <= most:
            return self
        n = self.layout.n_searched
        category = np.array(self.layout.choices[n:], dtype=bool)
        other = self.x[:, n:]
        distance = np.where(category, other != cell, (other - cell) ** 2).sum(axis=1)
        return self._kept(smallest(most, distance, self.y), most)

    def balanced(self) -> Surrogate:
        """For questions about all cells: a quarter of the kept are the best, half the best of each
        cell, the rest a spread.
        """
        if len(self.y) <= MAX_TRIALS:
            return self
        return self._kept(self._best_of_cells(self.y), MAX_TRIALS)

    def unbiased(self) -> Surrogate:
        """The same for what is reported. Of thousands of values the best are lucky; so those are
        kept whose parameters are the best by what a spread of the trials predicts.
        """
        n, searched = len(self.y), self.layout.n_searched
        if n <= MAX_REPORTED:
            return self
        rough = self.thinned().posterior()
        expected = rough.mean(self.x[:, :searched], self.x[:, searched:])[:, 0]
        return self._kept(self._best_of_cells(expected), MAX_REPORTED, expected)

    def thinned(self) -> Surrogate:
        """For what needs no particular trials: a spread of them, up to 400."""
        if len(self.y) <= MAX_TRIALS:
            return self
        some = np.sort(_spread(len(self.y), MAX_TRIALS)[:MAX_TRIALS])
        return replace(self, x=self.x[some], y=self.y[some])

    def _best_of_cells(self, losses: Array) -> npt.NDArray[np.intp]:
        """The places of the trials that are the best of their cell, then the second best, …"""
        _, which = np.unique(self.x[:, self.layout.n_searched :], axis=0, return_inverse=True)
        order = np.lexsort((losses, which.ravel()))
        first = np.searchsorted(which.ravel()[order], np.arange(which.max() + 1))
        rank = np.empty(len(order), dtype=int)
        rank[order] = np.arange(len(order)) - first[which.ravel()[order]]
        return smallest(MAX_REPORTED, rank, losses)

    def _kept(
        self, preferred: npt.NDArray[np.intp], most: int, losses: Array | None = None
    ) -> Surrogate:
        n = len(self.y)
        taken = np.zeros(n, dtype=bool)
        taken[smallest(most // 4, self.y if losses is None else losses)] = True
        for order, until in ((preferred, 3 * most // 4), (_spread(n, most), most)):
            free = order[~taken[order]]
            taken[free[: until - int(taken.sum())]] = True
        return replace(self, x=self.x[taken], y=self.y[taken])

    def posterior(self) -> Posterior:
        """Given the finished trials alone."""
        return Posterior(self.x, self.y, self.layout, self.hyperparameters, self.trend)

    def imagined(self, normal: npt.NDArray[np.float64]) -> tuple[Posterior, Array, Array]:
        """Given also ends of the running trials, drawn jointly by standard normals of shape
        (running, draws).

        Returns:
            The posterior, the points it is given and the losses there, one column per draw (a
            single one if nothing runs).
        """
        posterior = self.posterior()
        if not len(self.pending):
            return posterior, self.x, self.y[:, None]
        n = self.layout.n_searched
        ends = posterior.draws(self.pending[:, :n], self.pending[:, n:], normal)
        y = np.vstack([np.repeat(self.y[:, None], normal.shape[1], axis=1), ends])
        return posterior.given_also(self.pending, y), np.vstack([self.x, self.pending]), y

    def believing(self) -> tuple[Posterior, Array]:
        """Given also that each running trial ends as predicted: no mean moves, but the variance
        falls.
        """
        posterior = self.posterior()
        if not len(self.pending):
            return posterior, self.x
        n = self.layout.n_searched
        ends = posterior.mean(self.pending[:, :n], self.pending[:, n:])
        return posterior.given_also(self.pending, np.concatenate([self.y, ends[:, 0]])), np.vstack(
            [self.x, self.pending]
        )


def _spread(n: int, many: int) -> npt.NDArray[np.intp]:
    """At least `many` of 0 … n−1 if there are, evenly spread from the first few on: by van der
    Corput's sequence.
    """
    bits = max(1, (n - 1).bit_length())
    # more than half of any first ones, or nearly, are less than n
    place = np.arange(min(2**bits, 4 * many))
    reverse = np.zeros_like(place)
    for bit in range(bits):
        reverse |= ((place >> bit) & 1) << (bits - 1 - bit)
    result: npt.NDArray[np.intp] = reverse[reverse < n]
    return result
