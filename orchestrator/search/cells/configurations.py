"""The configurations that were tried: trials of the same parameters, whatever their seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.search.cells.model import N_STARTUP
from orchestrator.search.gp.process import Posterior
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import Array, History


@dataclass(frozen=True)
class Configurations:
    """The distinct points of complete trials, with their posterior means, the lowest first.

    Shapes: points (k, columns) coordinates, mean (k,) of the true losses in the model's units;
    `rows` holds for each the places of its trials in the history, the lowest loss first.
    """

    points: Array
    mean: Array
    rows: list[npt.NDArray[np.intp]]

    @staticmethod
    def of(history: History, surrogate: Surrogate, posterior: Posterior) -> Configurations:
        """All that were tried; a trial that was pruned, failed or infeasible is no evidence that
        its parameters can be used.
        """
        complete = np.flatnonzero(np.isfinite(history.loss) & ~history.pruned & ~history.failed)
        x, n = surrogate.layout.filled(history.x[complete]), surrogate.layout.n_searched
        _, first, which = np.unique(np.round(x, 9), axis=0, return_index=True, return_inverse=True)
        points = x[first]
        mean = posterior.mean(points[:, :n], points[:, n:])[:, 0]
        by_loss = complete[np.argsort(history.loss[complete], kind="stable")]
        place = np.empty(len(history.loss), dtype=np.intp)
        place[complete] = which.ravel()
        grouped = by_loss[np.argsort(place[by_loss], kind="stable")]
        rows = np.split(grouped, np.cumsum(np.bincount(which.ravel()))[:-1])
        order = np.argsort(mean, kind="stable")
        return Configurations(points[order], mean[order], [rows[i] for i in order])


def is_enough(history: History) -> bool:
    """Whether there are ten complete feasible trials: with fewer, the model does not say which is
    the best.
    """
    complete = np.isfinite(history.loss) & ~history.pruned & ~history.failed
    return int(complete.sum()) >= N_STARTUP
