"""How often the bands of `Search.slices` hold the true loss without noise, after a cell's first
trials and now: the mean over the points of all lines. Tables are left out: their losses are known
at their own configurations only.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bands --set frozen
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from orchestrator.search import Line, Slices
from tests.benchmarks.methods import Ours
from tests.benchmarks.problems import Problem
from tests.benchmarks.sets import SETS, problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=SETS, default="frozen")
    parser.add_argument("--trials", type=int, default=72)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sampler", default="tpe")
    args = parser.parse_args()
    held: dict[str, list[float]] = defaultdict(list)
    for name in SETS[args.set]:
        task = problem(name)
        if task.kind == "table":
            continue
        mine: dict[str, list[float]] = defaultdict(list)
        for seed in range(args.seeds):
            for moment, share in shares(task, sliced(task, args.trials, seed, args.sampler)):
                mine[moment].append(share)
                held[moment].append(share)
        print(f"{name:<12} {_written(mine)}", flush=True)
    print(f"{'all':<12} {_written(held)}")


def sliced(task: Problem, trials: int, seed: int, sampler: str) -> Slices:
    """The slices of a study of the problem, cells in turn."""
    tuner, rng = Ours(task, trials, seed, sampler), np.random.default_rng(seed)
    for number in range(trials):
        values = tuner.ask(number)
        tuner.tell(number, task.observed(values, float(rng.standard_normal())))
    return tuner.slices()


def shares(task: Problem, slices: Slices) -> list[tuple[str, float]]:
    """Of each snapshot the moment, and the share of its points whose true loss is in the band."""
    found = []
    for cell in slices.cells:
        for line in cell.lines:
            truth = np.array(
                [task.loss({**cell.cell, **cell.held, line.path: value}) for value in line.at]
            )
            for place in range(len(line.snapshots)):
                found.append(_share(line, place, truth))
    return found


def _share(line: Line, place: int, truth: npt.NDArray[np.float64]) -> tuple[str, float]:
    shot = line.snapshots[place]
    inside = (np.array(shot.low) <= truth) & (truth <= np.array(shot.high))
    last = place == len(line.snapshots) - 1
    return ("now" if last else f"{shot.valued} trials"), float(inside.mean())


def _written(held: dict[str, list[float]]) -> str:
    return "  ".join(
        f"{moment}: {np.mean(held[moment]):.2f}"
        for moment in sorted(held, key=lambda m: (m == "now", m))
    )


if __name__ == "__main__":
    main()
