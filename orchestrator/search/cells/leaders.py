"""Which of the configurations tried is believed to be the best, and which of them is worth another
trial: noise makes the luckiest of many values look better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.configurations import Configurations, Noise
from orchestrator.search.cells.model import CellModel
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.mirror import Mirror

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
class Leaders:
    """The configurations tried, the best mean first, and the noise of the objective; None: there is
    none.
    """

    configurations: tuple[Leader, ...]
    noise: Noise | None

    @property
    def best(self) -> Leader:
        """The one that is believed to be the best."""
        return self.configurations[0]

    @property
    def tied(self) -> tuple[Leader, ...]:
        """The others that may as well be the best."""
        return tuple(leader for leader in self.configurations[1:] if leader.tied)


def leaders(
    tried: Configurations, *, maximize: bool, seed: int, limits: Limits = (None, None)
) -> Leaders:
    """What the model believes of the configurations tried; of many, of those of the best means.

    Args:
        limits: the least and the greatest value of the objective; estimates stay within them.
    """
    drawn = tried.draws(np.random.default_rng(seed), N_DRAWS)
    shares, better = _shares(drawn), _better(drawn)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    mean = tried.mean[: len(low)]
    bounds = tried.surrogate.scale.original(np.stack([low, mean, high]))
    if maximize:
        bounds = -bounds[::-1]
    found = [
        Leader(
            numbers,
            mean=clipped(float(bounds[1, place]), limits),
            low=clipped(float(bounds[0, place]), limits),
            high=clipped(float(bounds[2, place]), limits),
            probability_better=float(better[place]),
            probability_best=float(shares[place]),
        )
        for place, numbers in enumerate(tried.numbers()[: len(low)])
    ]
    return Leaders(tuple(found), tried.noise)


def confirm(
    model: CellModel,
    mirror: Mirror,
    rng: np.random.Generator,
    may_run: Callable[[int], bool],
    running: Sequence[int] = (),
    confirmed: Sequence[int] = (),
) -> tuple[int, dict[str, JSONValue]] | None:
    """The number of the trial to repeat, and the reason as JSON; None if one configuration is
    clearly the best, if those that can run cannot be the best, without noise, with fewer than ten
    complete feasible trials, or with too many.

    Half of the repetitions go to the leading configuration, so that its value is known, and half
    each to the one that is then the likeliest to be better.

    Args:
        rng: draws what the model believes.
        may_run: whether a trial can be repeated, by its number.
        running: numbers of trials that are about to be repeated, and not in the mirror yet.
        confirmed: numbers of the trials that were repeated, or are about to be, as often as they
            were.
    """
    tried = Configurations.of(model, model.history(mirror), running)
    if tried is None or tried.noise is None:
        return None
    drawn = tried.draws(rng, N_DRAWS)
    shares, better = _shares(drawn), _better(drawn)
    numbers = tried.numbers()[: len(shares)]
    able = [place for place, some in enumerate(numbers) if any(map(may_run, some))]
    if shares.max() >= DECIDED or not able or better[able[0]] < TIED:
        return None
    place, *rivals = able
    mine = sum(number in numbers[place] for number in confirmed)
    what = f"they lead, the best of those tried with probability {shares[place]:.2f}"
    if place:
        what = f"of those that can run here, the likeliest to be the best ({shares[place]:.2f})"
    if rivals and 2 * mine > len(confirmed):
        leader, better = numbers[place][0], _better(drawn, place)
        place = max(rivals, key=lambda k: float(better[k]))
        what = f"the likeliest to be better than those of trial {leader} ({better[place]:.2f})"
    number = next(filter(may_run, numbers[place]))
    return number, {
        "rule": "confirm",
        "why": (
            f"trial {number}'s parameters with another seed: {what}; the noise is "
            f"{tried.noise.std:.3g}"
        ),
        "confirms": number,
        "probability_best": float(shares[place]),
        "trials": len(tried.rows[place]),
        "noise": tried.noise.std,
    }


def _shares(drawn: Array) -> Array:
    """How often each is the lowest; equals share."""
    lowest = drawn == drawn.min(axis=1, keepdims=True)
    result: Array = (lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0)
    return result


def _better(drawn: Array, than: int = 0) -> Array:
    """How often each is lower than one of them; an equal counts half."""
    one = drawn[:, than : than + 1]
    result: Array = (drawn < one).mean(axis=0) + 0.5 * (drawn == one).mean(axis=0)
    return result
