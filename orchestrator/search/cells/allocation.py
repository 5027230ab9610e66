"""Which cell gets the next trial once every cell has had its share: where it is expected to pay, by
the Gaussian process.

Two rules take turns at random. *Knowledge gradient* (Frazier et al., 2009) takes the cell in which
a trial is expected to lower the best loss known most; it is quick, but trusts the model. *Top-two
Thompson sampling* (Russo, 2020) takes a cell in proportion to its chance of being the best or the
runner-up; it keeps asking whether the leader leads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.model import JSONValue, Limits, clipped
from orchestrator.search.cells.model import N_STARTUP, CellModel, Cells
from orchestrator.search.cells.optima import WIDENED, Optima
from orchestrator.search.gp.surrogate import Surrogate
from orchestrator.search.trials.history import Array
from orchestrator.search.trials.mirror import Mirror

N_DRAWS = 256
SHARE_OF_GRADIENT = 0.5
FLOOR = 1 / 3
"""The part of the budget that is spread evenly over the cells before the model decides."""
LIKELY = 12
"""Likely points that represent a cell."""
N_MEASURED = 8
"""Likely points of a cell that are considered for its next trial."""
NODES = np.linspace(-3.5, 3.5, 15)
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()
"""An expectation over a standard normal variable is the sum of these times values at `NODES`."""

OpenCells = Sequence[tuple[int, Mapping[str, JSONValue]]]


@dataclass(frozen=True)
class Question:
    """One open place: the cells it may go to (ordinal and values), what makes the answer
    reproducible, the least and the greatest value of the objective, and the trials that every
    cell gets before the model decides.
    """

    open_cells: OpenCells
    maximize: bool
    entropy: tuple[int, ...]
    limits: Limits = (None, None)
    floor: int = 0

    @property
    def least_loss(self) -> float:
        return least_loss(self.limits, maximize=self.maximize)


def least_loss(limits: Limits, *, maximize: bool) -> float:
    """The lowest loss of an objective with these limits; -inf if there is none."""
    best = limits[1] if maximize else limits[0]
    if best is None:
        return -math.inf
    return -best if maximize else best


def fewest_trials(
    trials: npt.NDArray[np.intp], question: Question, why: str
) -> tuple[int, dict[str, JSONValue]]:
    """The cell with the fewest trials, running and failed ones too; the first of several."""
    which = int(np.argmin(trials))
    return question.open_cells[which][0], {
        "rule": "fewest trials",
        "why": why,
        "trials": int(trials[which]),
    }


def choose(
    model: CellModel, mirror: Mirror, question: Question
) -> tuple[int, dict[str, JSONValue]]:
    """Ordinal of the cell for the next trial, and the reason as JSON; a function of the history and
    the question.
    """
    history = model.history(mirror)
    cells = model.cells(history, [values for _, values in question.open_cells])
    if len(mirror.get_study_directions(0)) > 1:
        return fewest_trials(
            cells.trials, question, "several objectives have no one best cell: equal shares"
        )
    if np.count_nonzero(np.isfinite(history.loss)) < N_STARTUP:
        return fewest_trials(
            cells.trials,
            question,
            f"fewer than {N_STARTUP} trials have ended with a value: equal shares",
        )
    # A cell whose good region lies elsewhere than the others' looks bad after few trials, and the
    # model would hardly ask it again.
    if int(cells.trials.min()) < question.floor:
        return fewest_trials(
            cells.trials,
            question,
            f"fewer than {question.floor} trials, a third of an equal share: equal shares",
        )
    rng = np.random.default_rng(question.entropy)
    surrogate = model.surrogate(history)
    optima = model.optima(surrogate, cells, rng, LIKELY)
    lows = optima.lows(rng, N_DRAWS, widened=WIDENED)
    gains = expected_gains(optima, surrogate.scale.least(question.least_loss))
    if rng.random() < SHARE_OF_GRADIENT and gains.max() > 0.0:
        rule, which = "knowledge gradient", int(gains.argmax())
    else:
        rule, which = top_two(lows, rng)
    return question.open_cells[which][0], _reason(
        rule, which, lows, gains, cells, surrogate, question
    )


def expected_gains(optima: Optima, least: float = -math.inf) -> Array:
    """By how much one more trial in each cell is expected to lower the least posterior mean of all:
    the knowledge gradient.

    Args:
        least: the lowest loss that there can be, in the model's units; below it nothing is gained.
    """
    mean, covariance = optima.mean.ravel(), optima.covariance
    n_cells, k = optima.mean.shape
    measured = (np.arange(n_cells)[:, None] * k + np.arange(min(k, N_MEASURED))).ravel()
    spread = np.sqrt(np.maximum(np.diag(covariance)[measured], 0.0) + max(optima.noise, 1e-12))
    slope = covariance[measured] / spread[:, None]
    expected = np.zeros(len(measured))
    for z, weight in zip(NODES, WEIGHTS, strict=True):
        expected += weight * np.maximum((mean + z * slope).min(axis=1), least)
    now = max(float(mean.min()), least)
    result: Array = np.maximum(now - expected, 0.0).reshape(n_cells, -1).max(axis=1)
    return result


def top_two(lows: Array, rng: np.random.Generator) -> tuple[str, int]:
    """The cell that is lowest in one joint draw, or by a coin the one that is lowest in the first
    draw that disagrees.
    """
    leaders = lows.argmin(axis=1)
    first = int(leaders[0])
    if rng.random() < 0.5:
        return "thompson leader", first
    others = leaders[leaders != first]
    if len(others):
        return "thompson challenger", int(others[0])
    middle = np.median(lows, axis=0)
    middle[first] = np.inf
    return "thompson challenger", int(middle.argmin())


def _reason(
    rule: str,
    which: int,
    lows: Array,
    gains: Array,
    cells: Cells,
    surrogate: Surrogate,
    question: Question,
) -> dict[str, JSONValue]:
    sign = -1.0 if question.maximize else 1.0
    shares = np.bincount(lows.argmin(axis=1), minlength=lows.shape[1]) / len(lows)
    medians = surrogate.scale.original(np.median(lows, axis=0))
    estimates = [clipped(float(sign * loss), question.limits) for loss in medians]
    leader = int(shares.argmax())
    gain = float(gains[which] * surrogate.scale.std)
    n, running = int(cells.trials[which]), int(cells.running[which])
    words = {
        "knowledge gradient": (
            f"a trial here is expected to improve the best result by {gain:.3g}, more than "
            "in any other cell"
        ),
        "thompson leader": (
            f"the best cell with probability {shares[which]:.2f}, drawn in proportion to it"
        ),
        "thompson challenger": (
            f"the likely rival of the leading cell (the best with probability {shares[which]:.2f})"
        ),
    }
    return {
        "rule": rule,
        "why": f"{words[rule]}; {n} trials so far, {running} of them running",
        "trials": n,
        "running": running,
        "probability_best": float(shares[which]),
        "expected_gain": gain,
        "estimate": estimates[which],
        "best": float(sign * cells.best[which]) if np.isfinite(cells.best[which]) else None,
        "leader": {
            "cell": question.open_cells[leader][0],
            "probability_best": float(shares[leader]),
            "estimate": estimates[leader],
        },
    }
