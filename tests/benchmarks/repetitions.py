"""What it is worth that samplers may suggest a point of a discrete space again if there is noise.

Regret of what is reported, with repetitions and without, on random spaces of 36 points in each of
four cells: a parabola that moves from cell to cell, and a part that is particular to each point.
Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/repetitions.py``; ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import optuna

from orchestrator.model import Axis, Searched
from orchestrator.search.gp import improvement
from tests.benchmarks.methods import METHODS, play
from tests.benchmarks.problems import Problem, Values

CELLS = Axis("c", (1, 2, 4, 8))
SEARCH = (
    Searched("a", "int", 1, 4),
    Searched("b", "int", 1, 3),
    Searched("k", "categorical", choices=("u", "v", "w")),
)
NOISES = (0.02, 0.1, 0.2)
SPACES = 9
AT = (60, 100)


@dataclass(frozen=True)
class Job:
    """One method on one space with one seed."""

    method: str
    space: int
    seed: int
    repeats: bool


@cache
def lattice(number: int) -> Problem:
    """The random space of that number; its noise is one of `NOISES` in turn."""
    rng = np.random.default_rng(1000 + number)
    heights = 0.2 * rng.normal(size=4)
    of_a, of_b, of_k = rng.uniform(0, 3), rng.uniform(0, 2), rng.uniform(0, 0.4, 3)
    moves = rng.uniform(-0.4, 0.4)
    particular = 0.05 * rng.normal(size=(4, 4, 3, 3))

    def loss(v: Values) -> float:
        cell, a, b = CELLS.values.index(v["c"]), v["a"] - 1, v["b"] - 1
        k = SEARCH[2].choices.index(v["k"])
        basin = 0.08 * (a - of_a - moves * cell) ** 2 + 0.1 * (b - of_b) ** 2
        return float(heights[cell] + basin + of_k[k] + particular[cell, a, b, k])

    def optimum(cell: Values) -> float:
        points = itertools.product(range(1, 5), range(1, 4), SEARCH[2].choices)
        return min(loss({**cell, "a": a, "b": b, "k": k}) for a, b, k in points)

    return Problem("lattice", (CELLS,), SEARCH, loss, optimum, NOISES[number % len(NOISES)])


def measure(job: Job) -> tuple[list[float], int]:
    """Regret after each number of trials of `AT`, and how many distinct points were tried."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    before, improvement.NOISY = improvement.NOISY, improvement.NOISY if job.repeats else math.inf
    try:
        task = lattice(job.space)
        tuner = METHODS[job.method].make(task, AT[-1], job.seed)
        rows, _, reported = play(task, tuner, AT[-1], job.seed, at=AT)
    finally:
        improvement.NOISY = before
    regrets = []
    for at in AT:
        best = reported[at].best
        assert best is not None
        regrets.append(task.loss(best[0]) - min(task.optima))
    return regrets, len({tuple(sorted(values.items())) for values, _ in rows})


def table(done: dict[Job, tuple[list[float], int]]) -> Iterator[str]:
    """A line for each number of trials, method and noise."""
    yield "trials  method               noise  regret  without  ratio  distinct  without"
    for place, at in enumerate(AT):
        for method in dict.fromkeys(job.method for job in done):
            for k, noise in enumerate(NOISES):
                runs = [
                    [found for job, found in done.items() if _is(job, method, k, repeats)]
                    for repeats in (True, False)
                ]
                regret = [float(np.mean([found[0][place] for found in some])) for some in runs]
                distinct = [float(np.mean([found[1] for found in some])) for some in runs]
                yield (
                    f"{at:6}  {method:19}  {noise:5}  {regret[0]:.4f}  {regret[1]:7.4f}  "
                    f"{regret[0] / max(regret[1], 1e-6):5.2f}  {distinct[0]:8.0f}  "
                    f"{distinct[1]:7.0f}"
                )


def _is(job: Job, method: str, noise: int, repeats: bool) -> bool:
    return (job.method, job.space % len(NOISES), job.repeats) == (method, noise, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    methods = ("hybrid-tpe", "hybrid-tpe-adaptive", "hybrid-gp", "hybrid-gp-adaptive")
    jobs = [
        Job(method, space, seed, repeats)
        for method in methods
        for space in range(SPACES)
        for seed in range(options.seeds)
        for repeats in (True, False)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        done = dict(zip(jobs, pool.map(measure, jobs), strict=True))
    for line in table(done):
        print(line)


if __name__ == "__main__":
    main()
