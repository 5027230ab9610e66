"""How well each way of joining a grid with a search spends its trials: prints JSON lines, one a method, then nothing else.

Six synthetic problems with structure met in practice (an optimum that moves with the batch size, a diverging region, a
backbone that wants its own learning rate, unrelated cells, a flat grid, Hartmann-6), noisy. For each method: the geometric
mean over problems of the median simple regret (noise-free value of the trial that looked best, minus the optimum) relative
to Optuna's TPESampler over the whole space, the same for the mean over cells of each cell's regret, and milliseconds a
suggestion. Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/regret.py --trials 120 --seeds 12``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from scipy import optimize

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search, distributions

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A loss over a grid and searched parameters; `optimum(cell)` is the least true loss in a cell."""

    name: str
    grid: tuple[Axis, ...]
    search: tuple[Searched, ...]
    loss: Callable[[Values], float]
    optimum: Callable[[Values], float]
    noise: float

    def spec(self, trials: int, seed: int, sampler: str) -> StudySpec:
        """The problem as a study of ours."""
        budget = Budget(trials)
        settings = {"name": sampler}
        return StudySpec(
            self.name, ("minimize",), ("loss",), {}, {}, self.grid, self.search, budget, sampler=settings, seed=seed
        )


BATCH = Axis("batch", (32, 64, 128, 256))
WIDTH = Axis("width", (64, 128, 256))
NETS = ("small", "large", "wide", "deep")
TRAINING = (
    Searched("lr", "float", 1e-5, 1.0, log=True),
    Searched("wd", "float", 1e-6, 1e-1, log=True),
    Searched("dropout", "float", 0.0, 0.6),
    Searched("act", "categorical", choices=("relu", "gelu", "tanh")),
)


def _bowl(v: Values, lr: float, wd: float, dropout: float) -> float:
    bad = {"relu": 0.1, "gelu": 0.0, "tanh": 0.25}[v["act"]]
    ripple = 0.35 * (math.log10(v["lr"]) - lr) ** 2
    return ripple + 0.06 * (math.log10(v["wd"]) - wd) ** 2 + 2.0 * (v["dropout"] - dropout) ** 2 + bad


def _offset(v: Values) -> float:
    return 0.05 * abs(math.log2(v["batch"] / 64)) + 0.06 * abs(math.log2(v["width"] / 256))


def _moving(v: Values) -> float:
    octaves = math.log2(v["batch"] / 32)
    return _offset(v) + _bowl(v, -3.2 + 0.45 * octaves, -4.0, 0.1 + 0.1 * math.log2(v["width"] / 64))


def _diverging(v: Values) -> float:
    steep = math.log10(v["lr"]) > -2.6 + 0.45 * math.log2(v["batch"] / 32)
    return 10.0 if steep else _moving(v)


def _backbone(v: Values) -> float:
    place = NETS.index(v["net"])
    return (0.3, 0.0, 0.15, 0.1)[place] + 0.05 * (v["depth"] != 4) + _bowl(v, (-2.0, -4.0, -3.0, -3.5)[place], -3.0, 0.2)


def _unrelated(v: Values) -> float:
    rng = np.random.default_rng([NETS.index(v["net"]), v["depth"]])
    lr, wd, dropout, offset = rng.uniform([-4, -5, 0.05, 0], [-1, -2, 0.5, 0.5])
    return float(offset) + _bowl(v, float(lr), float(wd), float(dropout))


_H_A = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]])
_H_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann(v: Values) -> float:
    x = np.array([v[f"x{i}"] for i in range(6)])
    return float(-np.exp(-(_H_A * (x - _H_P) ** 2).sum(axis=1)) @ np.array([1.0, 1.2, 3.0, 3.2]))


def _hartmann_optimum(cell: Values) -> float:
    rng = np.random.default_rng(0)

    def at(x: Any) -> float:
        return _hartmann({**cell, **{f"x{i}": x[i - 2] for i in range(2, 6)}})

    found = [optimize.minimize(at, rng.random(4), bounds=[(0, 1)] * 4).fun for _ in range(8)]
    return float(min(found))


def _unrelated_optimum(cell: Values) -> float:
    rng = np.random.default_rng([NETS.index(cell["net"]), cell["depth"]])
    return float(rng.uniform([-4, -5, 0.05, 0], [-1, -2, 0.5, 0.5])[3])


def problems() -> list[Problem]:
    """The suite."""
    nets = (Axis("net", NETS), Axis("depth", (2, 4)))
    cube = (Axis("x0", (0.05, 0.2, 0.45, 0.8)), Axis("x1", (0.15, 0.4, 0.7)))
    rest = tuple(Searched(f"x{i}", "float", 0.0, 1.0) for i in range(2, 6))
    return [
        Problem("moving", (BATCH, WIDTH), TRAINING, _moving, _offset, 0.01),
        Problem("diverging", (BATCH, WIDTH), TRAINING, _diverging, _offset, 0.01),
        Problem("backbone", nets, TRAINING, _backbone, lambda c: _backbone({**c, **_BEST_BACKBONE[c["net"]]}), 0.01),
        Problem("unrelated", nets, TRAINING, _unrelated, _unrelated_optimum, 0.01),
        Problem("flat", (BATCH, WIDTH), TRAINING, lambda v: _bowl(v, -2.7, -3.5, 0.25), lambda c: 0.0, 0.01),
        Problem("hartmann", cube, rest, _hartmann, _hartmann_optimum, 0.02),
    ]


_BEST_BACKBONE = {
    net: {"lr": 10**lr, "wd": 1e-3, "dropout": 0.2, "act": "gelu"}
    for net, lr in zip(NETS, (-2.0, -4.0, -3.0, -3.5), strict=True)
}

Rows = list[tuple[Values, float]]


def ours(problem: Problem, trials: int, seed: int, sampler: str) -> tuple[Rows, float]:
    """Uniform shares through our own door."""
    search, rows, spent = Search(problem.spec(trials, seed, sampler)), [], 0.0
    noise = np.random.default_rng(seed)
    cells = list(problem.spec(trials, seed, sampler).cells())
    for number in range(trials):
        which = number % len(cells)
        before = time.perf_counter()
        asked = search.ask(cells[which], ticket=number, retry=0)
        spent += time.perf_counter() - before
        value = problem.loss(asked.values) + problem.noise * noise.standard_normal()
        search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), system_attrs=asked.system_attrs, cell=which)])
        rows.append((asked.values, value))
    return rows, spent


def plain(problem: Problem, trials: int, seed: int, sampler: str, *, per_cell: bool = False) -> tuple[Rows, float]:
    """Plain Optuna with the grid axes as categories: over everything, or one study a cell with equal shares."""
    make = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler, "random": optuna.samplers.RandomSampler}[
        sampler
    ]
    noise = np.random.default_rng(seed)
    space = dict(distributions(problem.spec(trials, seed, "tpe")))
    space |= {axis.path: optuna.distributions.CategoricalDistribution(axis.values) for axis in problem.grid}
    cells = list(problem.spec(trials, seed, "tpe").cells()) if per_cell else [{}]
    studies = [optuna.create_study(sampler=make(seed=1000 * seed + i)) for i in range(len(cells))]
    rows, spent = [], 0.0
    for number in range(trials):
        cell, study = cells[number % len(cells)], studies[number % len(cells)]
        before = time.perf_counter()
        trial = study.ask({name: d for name, d in space.items() if name not in cell})
        spent += time.perf_counter() - before
        values = {**cell, **trial.params}
        value = problem.loss(values) + problem.noise * noise.standard_normal()
        study.tell(trial, value)
        rows.append((values, value))
    return rows, spent


METHODS: dict[str, Callable[[Problem, int, int], tuple[Rows, float]]] = {
    "plain-tpe": lambda p, n, s: plain(p, n, s, "tpe"),
    "hybrid-tpe": lambda p, n, s: ours(p, n, s, "tpe"),
    "hybrid-gp": lambda p, n, s: ours(p, n, s, "gp"),
    "random": lambda p, n, s: plain(p, n, s, "random"),
    "qmc": lambda p, n, s: ours(p, n, s, "qmc"),
    "tpe-per-cell": lambda p, n, s: plain(p, n, s, "tpe", per_cell=True),
    "plain-gp": lambda p, n, s: plain(p, n, s, "gp"),
}


def regrets(problem: Problem, rows: Sequence[tuple[Values, float]]) -> tuple[float, float]:
    """Simple regret over the grid, and the mean over cells of the regret in each (its worst value where nothing was tried)."""
    cells = list(problem.spec(1, 0, "tpe").cells())
    optimum = [problem.optimum(cell) for cell in cells]
    best = min(rows, key=lambda row: row[1])
    simple = problem.loss(best[0]) - min(optimum)
    worst = max(problem.loss(row[0]) for row in rows)
    each = []
    for cell, least in zip(cells, optimum, strict=True):
        mine = [row for row in rows if all(row[0][k] == v for k, v in cell.items())]
        each.append((problem.loss(min(mine, key=lambda row: row[1])[0]) if mine else worst) - least)
    return max(simple, 1e-5), max(float(np.mean(each)), 1e-5)


def one(job: tuple[str, int, int, int]) -> dict[str, Any]:
    """One method on one problem with one seed."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    method, index, trials, seed = job
    problem = problems()[index]
    rows, spent = METHODS[method](problem, trials, seed)
    simple, cellwise = regrets(problem, rows)
    return {"method": method, "problem": problem.name, "simple": simple, "cellwise": cellwise, "ms": 1e3 * spent / trials}


def summaries(results: Sequence[dict[str, Any]], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One line a method, relative to the first."""
    names = [problem.name for problem in problems()]

    def median(method: str, problem: str, key: str) -> float:
        return float(np.median([r[key] for r in results if r["method"] == method and r["problem"] == problem]))

    for method in methods:
        line: dict[str, Any] = {"method": method}
        for key in ("simple", "cellwise"):
            ratios = {p: median(method, p, key) / median(methods[0], p, key) for p in names}
            line[f"{key}_ratio"] = round(float(np.exp(np.mean(np.log(list(ratios.values()))))), 3)
            if key == "simple":
                line["problems"] = {p: round(r, 2) for p, r in ratios.items()}
        line["ms"] = round(float(np.mean([r["ms"] for r in results if r["method"] == method])), 2)
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=[m for m in METHODS if m != "plain-gp"])
    options = parser.parse_args()
    methods = list(dict.fromkeys(["plain-tpe", *options.methods]))
    jobs = [(m, i, options.trials, s) for m in methods for i in range(len(problems())) for s in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, jobs, chunksize=2))
    for line in summaries(results, methods):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
