"""How many trials of a cell the median pruner should wait for, by how many trials the cell gets.

One cell gets so many trials, one after another, each with parameters drawn at random; `Search`
judges every report. A learning curve falls as ``a + b exp(-c step)`` plus noise, in three kinds:
the rate `c` is independent of the level `a` that the curve ends at; good trials are the fast ones;
good trials are the slow ones, so that curves cross and an early verdict is often wrong.

For each share and each ``n_startup_trials``: the regret at the same number of steps (the mean
regret of the cell's best trial, over that of as many trials without a pruner as the same steps pay
for); in brackets the regret at the same number of trials, over that without a pruner, and the
fraction of steps that were run. Same arguments, same figures. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/pruning.py --seeds 300
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.settings import pruner_settings

STEPS = 20
NOISE = 0.03
KINDS = ("independent", "fast", "crossing")
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("cell", (0, 1)),),
    (Searched("x", "float", 0.0, 1.0),),
    Budget(2),
)

Array = npt.NDArray[np.float64]


def curves(kind: str, trials: int, seed: int) -> tuple[Array, Array]:
    """What trials report, (trials, STEPS), and their true last values, (trials,).

    The level is a squared distance in the unit square, whose least value is 0.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    level = ((rng.random((trials, 2)) - 0.3) ** 2).sum(1)
    height, near = 1 + rng.random(trials), np.clip(2 * level, 0, 1)
    rate = {
        "independent": rng.uniform(0.1, 0.5, trials),
        "fast": 0.45 - 0.35 * near + 0.05 * rng.random(trials),
        "crossing": 0.08 + 0.35 * near + 0.05 * rng.random(trials),
    }[kind]
    steps = np.arange(1, STEPS + 1)
    true = level[:, None] + height[:, None] * np.exp(-rate[:, None] * steps)
    return true + NOISE * rng.standard_normal(true.shape), true[:, -1]


def play(kind: str, trials: int, startup: int, seed: int) -> tuple[float, int]:
    """The true value of the cell's best complete trial, and how many steps were run."""
    pruner = pruner_settings("median", n_startup_trials=startup)
    search = Search(replace(SPEC, budget=Budget(2 * trials), pruner=pruner))
    reports, last = curves(kind, trials, seed)
    best, run = np.inf, 0
    for number in range(trials):
        search.feed([TrialNews(number, "RUNNING", cell=0)])
        seen: dict[int, float] = {}
        pruned = False
        for step in range(1, STEPS + 1):
            seen[step] = float(reports[number, step - 1])
            run += 1
            if pruned := search.should_prune(number, reports=seen):
                break
        if pruned:
            ended = TrialNews(number, "PRUNED", intermediate=seen, cell=0)
        else:
            best = min(best, float(last[number]))
            ended = TrialNews(
                number, "COMPLETE", values=(float(last[number]),), intermediate=seen, cell=0
            )
        search.feed([ended])
    return best, run


def without(kind: str, most: int, seeds: int) -> Array:
    """The mean regret without a pruner after 1, 2, … `most` trials, (most,)."""
    found = [np.minimum.accumulate(curves(kind, most, 10_000 + s)[1]) for s in range(seeds)]
    return np.asarray(np.mean(found, axis=0) - optimum(kind))


def optimum(kind: str) -> float:
    """About the least true last value that parameters can reach."""
    return float(curves(kind, 300_000, 0)[1].min())


def row(kind: str, share: int, startups: Sequence[int], seeds: int, plain: Array) -> str:
    least, cells = optimum(kind), []
    for startup in startups:
        if startup >= share:
            cells.append("-")
            continue
        played = [play(kind, share, startup, seed) for seed in range(seeds)]
        regret = float(np.mean([best for best, _ in played])) - least
        run = float(np.mean([steps for _, steps in played])) / STEPS
        paid = float(np.interp(run, np.arange(1, len(plain) + 1), plain))
        cells.append(f"{regret / paid:.2f} ({regret / plain[share - 1]:.2f}, {run / share:.2f})")
    return f"{kind:<12} {share:>5}  " + "  ".join(f"{cell:<17}" for cell in cells)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--shares", type=int, nargs="+", default=[2, 3, 4, 6, 10, 20])
    parser.add_argument("--startups", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--seeds", type=int, default=300)
    args = parser.parse_args(argv)
    print(f"{'curves':<12} share  " + "  ".join(f"{startup:<17}" for startup in args.startups))
    for kind, share in itertools.product(KINDS, args.shares):
        plain = without(kind, share, 10 * args.seeds)
        print(row(kind, share, args.startups, args.seeds, plain), flush=True)


if __name__ == "__main__":
    main()
