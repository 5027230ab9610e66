"""Unchanged Optuna objectives: how well our samplers do on a space that is discovered, against
Optuna's own TPE on it.

For each problem and method the median over seeds of the best value found, relative to
`optuna.samplers.TPESampler()` as it comes (below 1 is better); the last line is the geometric mean.
Same arguments, same figures. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/define_by_run.py --trials 60 --seeds 20 --jobs 4
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import optuna

from orchestrator.model import Budget, StudySpec
from orchestrator.settings import sampler_settings
from tests.support.asking import AskedStudy

YARDSTICK = "optuna-tpe"
LEAST = 1e-4
"""Regrets below count as this, so that their ratios stay finite."""


def bowl(trial: Any) -> float:
    """Five numbers on several scales, one of them hardly matters."""
    lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    x = [trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(3)]
    units = trial.suggest_int("units", 16, 512, log=True)
    sizes = (
        0.5 * (math.log10(lr) + 2.5) ** 2,
        4 * (x[0] - 0.3) ** 2,
        2 * (x[1] - x[0]) ** 2,
        0.05 * (x[2] - 0.7) ** 2,
    )
    return sum(sizes) + 0.2 * (math.log2(units) - 7) ** 2


def branches(trial: Any) -> float:
    """Three kinds of model with parameters of their own: the usual conditional space."""
    kind = trial.suggest_categorical("kind", ["svm", "forest", "mlp"])
    if kind == "svm":
        c, gamma = (
            trial.suggest_float("c", 1e-3, 1e3, log=True),
            trial.suggest_float("gamma", 1e-4, 1e1, log=True),
        )
        return (
            0.1
            + 0.05 * (math.log10(c) - 1) ** 2
            + 0.05 * (math.log10(gamma) + 2 + 0.5 * math.log10(c)) ** 2
        )
    if kind == "forest":
        depth, trees = (
            trial.suggest_int("depth", 2, 32, log=True),
            trial.suggest_int("trees", 10, 500, step=10),
        )
        return float(0.2 + 0.02 * abs(depth - 9) + 0.1 * (1 - trees / 500))
    lr, layers = trial.suggest_float("lr", 1e-5, 1e-1, log=True), trial.suggest_int("layers", 1, 3)
    widths = [trial.suggest_int(f"width{i}", 8, 256, log=True) for i in range(layers)]
    wide = sum((math.log2(width) - 6 + i) ** 2 for i, width in enumerate(widths)) / layers
    return float(0.05 * (math.log10(lr) + 3) ** 2 + 0.02 * wide + 0.04 * (layers - 2) ** 2)


def moving_limits(trial: Any) -> float:
    """The limits of one parameter follow another one, so it has many distributions."""
    width = trial.suggest_int("width", 2, 64)
    heads = trial.suggest_int("heads", 1, width)
    x = trial.suggest_float("x", -2.0, 2.0)
    return float(((width - 40) / 20) ** 2 + ((heads - 12) / 12) ** 2 + (x - 0.5) ** 2)


def steps(trial: Any) -> float:
    """Few values each, as in a search over architectures."""
    kernel = trial.suggest_int("kernel", 1, 9, step=2)
    act = trial.suggest_categorical("act", ["relu", "gelu", "tanh", "silu"])
    drop = trial.suggest_float("drop", 0.0, 0.8, step=0.1)
    depth = trial.suggest_int("depth", 1, 12)
    slopes = {"relu": 0.1, "gelu": 0.0, "tanh": 0.5, "silu": 0.05}
    return float(
        slopes[act] + 0.1 * abs(kernel - 5) + 2 * (drop - 0.2) ** 2 + 0.02 * (depth - 7) ** 2
    )


PROBLEMS: Mapping[str, Callable[[Any], float]] = {
    f.__name__: f for f in (bowl, branches, moving_limits, steps)
}
METHODS = (YARDSTICK, "tpe", "gp", "random", "nsga2", "qmc")


def spec(sampler: str, seed: int, trials: int) -> StudySpec:
    """A study that declares nothing."""
    settings = sampler_settings(sampler, **({"population_size": 10} if sampler == "nsga2" else {}))
    return StudySpec(
        "asked",
        ("minimize",),
        ("loss",),
        {},
        {},
        (),
        (),
        Budget(trials),
        sampler=settings,
        seed=seed,
    )


def best_of(method: str, name: str, seed: int, trials: int) -> float:
    """The least loss of so many trials, one after the other."""
    objective = PROBLEMS[name]
    if method == YARDSTICK:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=trials)
        return float(study.best_value)
    asked, found = AskedStudy(spec(method, seed, trials)), math.inf
    for _ in range(trials):
        trial = asked.start()
        value = objective(trial)
        asked.end(trial, value)
        found = min(found, value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--methods", type=lambda text: (YARDSTICK, *text.split(",")), default=METHODS
    )
    parser.add_argument("--problems", type=lambda text: text.split(","), default=list(PROBLEMS))
    given = parser.parse_args()
    jobs = [
        (method, name, seed, given.trials)
        for method in given.methods
        for name in given.problems
        for seed in range(given.seeds)
    ]
    with ProcessPoolExecutor(given.jobs) as pool:
        found = dict(
            zip(jobs, pool.map(best_of, *zip(*jobs, strict=True), chunksize=4), strict=True)
        )
    ratios: dict[str, list[float]] = {method: [] for method in given.methods}
    for name in given.problems:
        medians = {
            method: max(
                LEAST,
                float(
                    np.median(
                        [found[method, name, seed, given.trials] for seed in range(given.seeds)]
                    )
                ),
            )
            for method in given.methods
        }
        for method in given.methods:
            ratios[method].append(medians[method] / medians[YARDSTICK])
        print(
            f"{name:<14}" + "  ".join(f"{method} {value:.4g}" for method, value in medians.items())
        )
    print(
        "relative      "
        + "  ".join(f"{method} {math.exp(np.mean(np.log(r))):.2f}" for method, r in ratios.items())
    )


if __name__ == "__main__":
    main()
