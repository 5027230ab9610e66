"""Milliseconds of processor time a suggestion by the number of trials known, ours beside Optuna's
own in the same run.

Every figure comes from a process of its own, which knows the history (random points of one problem,
some of them running), asks once, and then in turn is told of one more trial and asks again. Shown
are the first ask, the median and the greatest of the others (telling included), and the memory that
history and sampler took. Optuna's GPSampler is asked up to ``--plain-gp-up-to`` trials only, for it
takes minutes beyond. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/suggestion_time.py
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import optuna

from orchestrator.model import TrialNews
from orchestrator.search import Search
from tests.benchmarks.methods import Plain
from tests.benchmarks.problems import Problem, problem

METHODS = (
    "hybrid-gp",
    "hybrid-gp-adaptive",
    "hybrid-tpe",
    "hybrid-tpe-adaptive",
    "plain-tpe",
    "plain-gp",
)
TASK = "moving"


def ours(
    task: Problem, sampler: str, known: int, running: int, asks: int, adaptive: bool
) -> list[float]:
    """Processor seconds of each ask through `Search`."""
    source, search = (
        Search(task.spec(known, 1, "random")),
        Search(task.spec(2 * known, 0, sampler, allocation="adaptive")),
    )
    open_cells, news = list(enumerate(task.cells)), []
    for number in range(known + running):
        place = number % len(task.cells)
        asked = source.ask(task.cells[place], ticket=number, retry=0)
        loss = (task.observed(asked.values, 0.0),)
        ended = number < known
        news.append(
            TrialNews(
                number,
                "COMPLETE" if ended else "RUNNING",
                asked.params,
                loss if ended else None,
                cell=place,
            )
        )
    search.feed(news)
    took = []
    for number in range(known + running, known + running + asks):
        place, before = number % len(task.cells), time.process_time()
        if adaptive:
            place, _ = search.choose_cell(open_cells, ticket=number, retry=0)
        asked = search.ask(task.cells[place], ticket=number, retry=0)
        loss = (task.observed(asked.values, 0.0),)
        search.feed(
            [
                TrialNews(
                    number,
                    "COMPLETE",
                    asked.params,
                    loss,
                    system_attrs=asked.system_attrs,
                    cell=place,
                )
            ]
        )
        took.append(time.process_time() - before)
    return took


def plain(
    task: Problem, sampler: optuna.samplers.BaseSampler, known: int, running: int, asks: int
) -> list[float]:
    """Processor seconds of each ask of an Optuna study over everything, ordered axes
    as integers.
    """
    source = Plain(task, optuna.samplers.RandomSampler(seed=1), ordered=True)
    for number in range(known + running):
        values = source.ask(number)
        if number < known:
            source.tell(number, task.observed(values, 0.0))
    tuner = Plain(task, sampler, ordered=True)
    tuner.study.add_trials(source.study.get_trials(deepcopy=False))
    took = []
    for number in range(asks):
        before = time.process_time()
        tuner.tell(number, task.observed(tuner.ask(number), 0.0))
        took.append(time.process_time() - before)
    return took


def measure(method: str, known: int, running: int, asks: int) -> dict[str, Any]:
    """One line."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kind, name, *rest = method.split("-")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "hybrid":
        took = ours(problem(TASK), name, known, running, asks, bool(rest))
    else:
        sampler = (
            optuna.samplers.GPSampler(seed=0)
            if name == "gp"
            else optuna.samplers.TPESampler(seed=0)
        )
        took = plain(problem(TASK), sampler, known, running, asks)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    first, others = took[0], took[1:] or took
    times = {"first_ms": first, "median_ms": float(np.median(others)), "greatest_ms": max(others)}
    figures = {key: round(1e3 * seconds, 1) for key, seconds in times.items()}
    return {"method": method, "known": known, **figures, "MiB": round(grown, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--known", type=int, nargs="+", default=[100, 500, 1000, 5000, 10000])
    parser.add_argument(
        "--running", type=int, default=7, help="trials of other workers that have not ended"
    )
    parser.add_argument("--asks", type=int, default=9)
    parser.add_argument("--plain-gp-up-to", type=int, default=500)
    options = parser.parse_args(argv)
    for known in options.known:
        for method in options.methods:
            if method == "plain-gp" and known > options.plain_gp_up_to:
                continue
            with ProcessPoolExecutor(1) as pool:
                print(
                    json.dumps(
                        pool.submit(measure, method, known, options.running, options.asks).result()
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
