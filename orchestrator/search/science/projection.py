"""About how many more trials would decide a question: what the model expects to know after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.search.cells.optima import Optima, root
from orchestrator.search.science.effects import DECIDED
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.threads import Library

linalg = Library("scipy.linalg")

STEPS = (1, 2, 3, 4, 6, 9, 13, 18, 25, 35, 50)
"""So many more trials of each cell are looked at."""
N_DRAWS = 1000


@dataclass(frozen=True)
class Outlook:
    """After how many more trials of each cell a question is expected to be decided: 0 if it is now,
    None if it is not after the last of `STEPS`; and whether the answer is that there is no
    difference.
    """

    more: int | None = None
    alike: bool = False


def outlooks(
    optima: Optima,
    drawn: Array,
    again: Array,
    questions: Array,
    losses_of: Callable[[Array], Array],
    margin: float,
    rng: np.random.Generator,
    widened: float,
) -> list[Outlook]:
    """For each question the least number of `STEPS` after which it is expected to be decided, by
    the rule that decides it now (`effects.decided`): its sign is known with a probability of 0.95,
    or it is no larger than the margin with that probability, by either look.

    The trials of a cell are assumed to lie where its optimum may be, as often as it is there by the
    draws, and to change no mean. The second look is assumed to narrow as the first one does.

    Args:
        drawn: joint draws of the losses at the points of `optima`, shape (draws, cells, points).
        again: those of the cells' optima by the second look, in the objective's units, shape
            (draws, cells).
        questions: each is a weighted sum of the cells' optima, shape (questions, cells).
        losses_of: turns draws of optima in the model's units, shape (draws, cells), into the
            objective's.
    """
    found = [Outlook()] * len(questions)
    now = losses_of(drawn.min(axis=2))
    limits = [margin / _wider(now @ question, again @ question) for question in questions]
    open_ = _open(now, questions, limits, range(len(questions)), found, 0)
    if not open_:
        return found
    n_cells, n_points = optima.mean.shape
    best = drawn.argmin(axis=2)
    frequency = np.stack([(best == k).mean(axis=0) for k in range(n_points)], axis=1)
    normal = rng.standard_normal((N_DRAWS, optima.mean.size))
    for n in STEPS:
        covariance = _after(optima, _counts(frequency, n).ravel())
        values = optima.mean.ravel() + widened * (normal @ root(covariance).T)
        lows = values.reshape(N_DRAWS, n_cells, n_points).min(axis=2)
        open_ = _open(losses_of(lows), questions, limits, open_, found, n)
        if not open_:
            break
    return found


def _largest(gain: Array) -> float:
    return float(np.quantile(np.abs(gain), DECIDED))


def _wider(gain: Array, second: Array) -> float:
    """How much larger a difference may be by the second look than by the first one; at least 1."""
    first = _largest(gain)
    return max(1.0, _largest(second) / first) if first > 0.0 else 1.0


def _open(
    losses: Array,
    questions: Array,
    limits: Sequence[float],
    asked: Sequence[int],
    found: list[Outlook],
    n: int,
) -> list[int]:
    """The questions that stay open; writes into `found` which are decided after `n` trials."""
    left = []
    for q in asked:
        gain = losses @ questions[q]
        better = float((gain > 0.0).mean() + 0.5 * (gain == 0.0).mean())
        if max(better, 1.0 - better) >= DECIDED:
            found[q] = Outlook(n)
        elif _largest(gain) <= limits[q]:
            found[q] = Outlook(n, alike=True)
        else:
            left.append(q)
    return left


def _counts(frequency: Array, n: int) -> npt.NDArray[np.intp]:
    """`n` trials of each cell shared out over its points by how often each is the best."""
    exact = n * frequency
    counts = np.floor(exact).astype(np.intp)
    order = np.argsort(counts - exact, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    result: npt.NDArray[np.intp] = counts + (rank < (n - counts.sum(axis=1))[:, None])
    return result


def _after(optima: Optima, counts: npt.NDArray[np.intp]) -> Array:
    """The covariance once each point was observed so many times more."""
    seen = np.flatnonzero(counts)
    cross = optima.covariance[:, seen]
    known = cross[seen].copy()
    scale = float(np.trace(optima.covariance)) / len(optima.covariance)
    known[np.diag_indices(len(seen))] += optima.noise / counts[seen] + 1e-7 * scale
    factor = linalg.cho_factor(known, lower=True, check_finite=False)
    result: Array = optima.covariance - cross @ linalg.cho_solve(factor, cross.T)
    return result
