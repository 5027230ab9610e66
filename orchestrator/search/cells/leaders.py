"""Which of the configurations tried is believed to be the best, and which of them is worth another
trial: noise makes the luckiest of many values look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.allocation import gains_of_one_more
from orchestrator.search.cells.configurations import Configurations, is_enough
from orchestrator.search.cells.model import CellModel
from orchestrator.search.cells.optima import WIDENED, root
from orchestrator.search.cells.summary import INTERVAL
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import Array, History
from orchestrator.search.trials.mirror import Mirror

MOST = 128
"""Configurations that are compared jointly: those of the best means."""
N_DRAWS = 2000
TIED = 0.1
"""A configuration is tied with the best one if it is the better of the two with at least this
probability.
"""
DECIDED = 0.95
"""No trial is repeated once one configuration is the best with this probability."""


@dataclass(frozen=True)
class Leader:
    """A configuration that was tried: parameters with which one or more trials are complete.

    `trials` are their numbers, the best value first. `mean` is the objective's expected value over
    training seeds, as the model believes; `low` to `high` hold nine tenths of the belief.
    `probability_better` is that of being truly better than the first of the leaders (0.5 for
    itself), `probability_best` that of being the best of all.
    """

    trials: tuple[int, ...]
    mean: float
    low: float
    high: float
    probability_better: float
    probability_best: float

    @property
    def tied(self) -> bool:
        """Whether the trials cannot tell it from the first of the leaders."""
        return self.probability_better >= TIED


@dataclass(frozen=True)
class _Tried:
    """The configurations of the best means, up to `MOST`, with their joint covariance (k, k)."""

    surrogate: Surrogate
    mean: Array
    covariance: Array
    rows: list[npt.NDArray[np.intp]]

    @staticmethod
    def of(model: CellModel, history: History, *, pending: bool) -> _Tried | None:
        """None with fewer than ten complete feasible trials: the model has nothing to say.

        Args:
            pending: running trials are assumed to end as predicted, otherwise they are left out.
        """
        if not is_enough(history):
            return None
        surrogate = model.surrogate(history, believing=True)
        posterior = surrogate.believing()[0] if pending else surrogate.posterior()
        all_tried = Configurations.of(history, surrogate, posterior)
        points, n = all_tried.points[:MOST], surrogate.layout.n_searched
        covariance = posterior.at(points[:, :n], points[:, n:]).covariance(slice(None))
        return _Tried(surrogate, all_tried.mean[:MOST], covariance, all_tried.rows[:MOST])

    @property
    def noise_variance(self) -> float:
        """In the model's units."""
        return self.surrogate.hyperparameters.noise

    def noise(self) -> Noise:
        """The belief about the noise, in the objective's units."""
        variances = self.surrogate.posterior().noise_quantiles(self.surrogate.y, INTERVAL)
        middle = math.log(variances[1])
        logs = 0.5 * (middle + WIDENED * (np.log(variances) - middle))
        low, std, high = (np.exp(logs) * self.surrogate.scale.std).tolist()
        return Noise(std=std, low=low, high=high)

    def draws(self, rng: np.random.Generator, n: int) -> Array:
        """Joint draws of the true losses, shape (n, k)."""
        normal = rng.standard_normal((n, len(self.mean)))
        result: Array = self.mean + WIDENED * (normal @ root(self.covariance).T)
        return result


@dataclass(frozen=True)
class Noise:
    """By how much the values of one configuration differ from seed to seed, as the model believes:
    a standard deviation in the objective's units. `low` to `high` hold nine tenths of the belief.
    """

    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Leaders:
    """The configurations tried, the best mean first, and the noise of the objective."""

    configurations: tuple[Leader, ...]
    noise: Noise

    @property
    def best(self) -> Leader:
        """The one that is believed to be the best."""
        return self.configurations[0]

    @property
    def tied(self) -> tuple[Leader, ...]:
        """The others that may as well be the best."""
        return tuple(leader for leader in self.configurations[1:] if leader.tied)


def leaders(
    model: CellModel, mirror: Mirror, *, maximize: bool, seed: int, limits: Limits = (None, None)
) -> Leaders | None:
    """What the model believes of the configurations tried; None with fewer than ten complete
    feasible trials. Of more than `MOST` configurations it looks at those of the best means.

    Args:
        limits: the least and the greatest value of the objective; estimates stay within them.
    """
    history = model.history(mirror)
    tried = _Tried.of(model, history, pending=False)
    if tried is None:
        return None
    drawn = tried.draws(np.random.default_rng(seed), N_DRAWS)
    shares = _shares(drawn)
    better = (drawn < drawn[:, :1]).mean(axis=0)
    better[0] = 0.5
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    bounds = tried.surrogate.scale.original(np.stack([low, tried.mean, high]))
    if maximize:
        bounds = -bounds[::-1]
    numbers = [trial.number for trial in history.trials]
    configurations = [
        Leader(
            tuple(numbers[row] for row in rows),
            mean=clipped(float(bounds[1, place]), limits),
            low=clipped(float(bounds[0, place]), limits),
            high=clipped(float(bounds[2, place]), limits),
            probability_better=float(better[place]),
            probability_best=float(shares[place]),
        )
        for place, rows in enumerate(tried.rows)
    ]
    return Leaders(tuple(configurations), tried.noise())


def confirm(
    model: CellModel, mirror: Mirror, rng: np.random.Generator, may_run: Callable[[int], bool]
) -> tuple[int, dict[str, JSONValue]] | None:
    """The number of the trial to repeat, and the reason as JSON; None if one configuration is
    clearly the best, or there are fewer than ten complete feasible trials.

    It is the one whose repetition is expected to improve most what is reported in the end: the
    knowledge gradient over the configurations tried (Frazier et al., 2009).

    Args:
        rng: draws what decides whether one is clearly the best.
        may_run: whether a trial can be repeated, by its number.
    """
    history = model.history(mirror)
    tried = _Tried.of(model, history, pending=True)
    if tried is None:
        return None
    shares = _shares(tried.draws(rng, N_DRAWS))
    numbers = [trial.number for trial in history.trials]
    mine = {
        place: number
        for place, rows in enumerate(tried.rows)
        for number in [next((n for n in (numbers[row] for row in rows) if may_run(n)), None)]
        if number is not None
    }
    if shares.max() >= DECIDED or not mine:
        return None
    gains = gains_of_one_more(tried.mean, WIDENED**2 * tried.covariance, tried.noise_variance)
    place = max(mine, key=lambda k: float(gains[k]))
    number, noise = mine[place], tried.noise()
    gain = float(gains[place]) * tried.surrogate.scale.std
    return number, {
        "rule": "confirm",
        "why": (
            f"trial {number}'s parameters with another seed: they are the best of those tried with "
            f"probability {shares[place]:.2f}, and the noise is {noise.std:.3g}; so the best that "
            f"is reported is expected to improve by {gain:.3g}"
        ),
        "confirms": number,
        "probability_best": float(shares[place]),
        "expected_gain": gain,
        "trials": len(tried.rows[place]),
        "noise": noise.std,
    }


def _shares(drawn: Array) -> Array:
    result: Array = np.bincount(drawn.argmin(axis=1), minlength=drawn.shape[1]) / len(drawn)
    return result
