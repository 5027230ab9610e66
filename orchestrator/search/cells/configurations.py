"""The configurations that were tried: trials of the same parameters, whatever their seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.model import MOST_BELIEVED
from orchestrator.search.cells.model import N_STARTUP, CellModel
from orchestrator.search.cells.optima import WIDENED, root
from orchestrator.search.gp.process import Posterior
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import Array, History

MOST = 128
"""Configurations that are compared jointly: those of the best means."""
_BLOCK = 1_000
FEWEST_REPETITIONS = 3
"""So many repetitions must have given the same value to show that there is no noise: values of a
coarse metric agree by chance.
"""
INTERVAL = (0.05, 0.5, 0.95)
LEAST_NOISE = 0.003
"""Less noise than this cannot be told from none; a standard deviation, that of all losses is 1."""


@dataclass(frozen=True)
class Noise:
    """By how much the values of one configuration differ from seed to seed, as the model believes:
    a standard deviation in the objective's units. `low` to `high` hold nine tenths of the belief.
    """

    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Configurations:
    """The distinct points of complete trials, the lowest posterior mean first, and the noise, None
    where there is none. Without noise a value is the truth, and stands for the mean.

    A trial that failed, was pruned or is infeasible is left out: it says nothing of the value that
    its parameters reach, and would be taken for noise.

    Shapes: points (k, columns) coordinates, mean (k,) of the true losses in the model's units;
    `rows` holds for each the places of its trials in `history`, the lowest loss first.
    """

    history: History
    surrogate: Surrogate
    posterior: Posterior
    points: Array
    mean: Array
    rows: list[npt.NDArray[np.intp]]
    noise: Noise | None

    @staticmethod
    def of(
        model: CellModel, history: History, running: Sequence[int] = ()
    ) -> Configurations | None:
        """None with fewer than ten complete feasible trials, for then the model does not say which
        is the best, and with more than `MOST_BELIEVED`.

        Args:
            running: numbers of complete trials whose parameters run again, besides the running
                trials of the history. All are assumed to end as predicted.
        """
        history = history.only(np.isfinite(history.loss) & ~history.pruned & ~history.failed)
        if not N_STARTUP <= len(history.loss) <= MOST_BELIEVED:
            return None
        surrogate = model.surrogate(history, believing=True)
        again = [row for row, trial in enumerate(history.trials) if trial.number in running]
        pending = np.vstack([surrogate.pending, surrogate.layout.filled(history.x[again])])
        surrogate = replace(surrogate, pending=pending)
        posterior, _ = surrogate.believing()
        x, n = surrogate.layout.filled(history.x), surrogate.layout.n_searched
        _, first, which = np.unique(np.round(x, 9), axis=0, return_index=True, return_inverse=True)
        points, which = x[first], which.ravel()
        by_loss = np.argsort(history.loss, kind="stable")
        grouped = by_loss[np.argsort(which[by_loss], kind="stable")]
        rows = np.split(grouped, np.cumsum(np.bincount(which))[:-1])
        noise = None if _identical(history, rows) else _noise(surrogate)
        least = history.loss[[some[0] for some in rows]]
        mean = (
            _means(posterior, points, n)
            if noise is not None
            else surrogate.scale.standard(least, np.zeros(len(least), dtype=bool))
        )
        numbers = np.array([trial.number for trial in history.trials])
        order = np.lexsort((numbers[[some[0] for some in rows]], mean))
        in_order = [rows[i] for i in order]
        return Configurations(
            history, surrogate, posterior, points[order], mean[order], in_order, noise
        )

    def numbers(self) -> list[tuple[int, ...]]:
        """The numbers of the trials of each, the best value first."""
        trials = self.history.trials
        return [tuple(trials[row].number for row in rows) for rows in self.rows]

    def draws(self, rng: np.random.Generator, n: int) -> Array:
        """Joint draws of the true losses of the first `MOST`, shape (n, at most `MOST`)."""
        points, searched = self.points[:MOST], self.surrogate.layout.n_searched
        mean = self.mean[:MOST]
        if self.noise is None:
            return np.repeat(mean[None, :], n, axis=0)
        marginal = self.posterior.at(points[:, :searched], points[:, searched:])
        normal = rng.standard_normal((n, len(points)))
        result: Array = mean + WIDENED * (normal @ root(marginal.covariance(slice(None))).T)
        return result


def _means(posterior: Posterior, points: Array, n_searched: int) -> Array:
    """Posterior means, a block of points at a time: all at once take a lot of memory."""
    each = [points[at : at + _BLOCK] for at in range(0, len(points), _BLOCK)]
    return np.concatenate(
        [posterior.mean(some[:, :n_searched], some[:, n_searched:])[:, 0] for some in each]
    )


def _identical(history: History, rows: Sequence[npt.NDArray[np.intp]]) -> bool:
    """Whether parameters were repeated often enough, and each time gave the same value."""
    repeated = [history.loss[some] for some in rows if len(some) > 1]
    often = sum(len(losses) - 1 for losses in repeated) >= FEWEST_REPETITIONS
    return often and all(float(np.ptp(losses)) == 0.0 for losses in repeated)


def _noise(surrogate: Surrogate) -> Noise | None:
    some = surrogate.thinned()
    variances = some.posterior().noise_quantiles(some.y, INTERVAL)
    middle = math.log(variances[1])
    std = np.exp(0.5 * (middle + WIDENED * (np.log(variances) - middle)))
    if std[1] < LEAST_NOISE:
        return None
    low, median, high = (std * surrogate.scale.std).tolist()
    return Noise(std=median, low=low, high=high)
