"""What a study gains from a source it is warm started from, and what a misleading source costs.

Each problem is tuned once without and once with each of the sources, by the same sampler and with
the same seed and noise; `AS_SOURCE` says what a source is. Its trials come from a study of its own,
tuned by `tpe` with another seed. For each sampler, source and number of trials: the regret of what
is reported as the best relative to the same run without a source, as the geometric mean over
problems and seeds with a 90 % interval, and the same for the mean over cells; regrets below a tenth
of the noise count as that. The method was chosen on the problems of `CHOSEN_ON`, those of
`HELD_OUT` were only reported. Same arguments, same figures. With ``--lines`` runs are kept, so a
long call can be ended and taken up again. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/warm_start.py --seeds 4 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from orchestrator.model import Searched
from orchestrator.prior import Observation, Prior
from tests.benchmarks.methods import Ours, Row, play
from tests.benchmarks.problems import Problem, Values
from tests.benchmarks.regret import ALONE, Result, regrets
from tests.benchmarks.sets import SETS, problem

CHOSEN_ON = SETS["building"]
HELD_OUT = ("gp-smooth", "ridges", "training", "interactions", "wine", "friedman1")
SAMPLERS = ("gp", "tpe")
AT = (6, 12, 24, 48)
SOURCE_TRIALS = 80
NONE = "none"


@dataclass(frozen=True)
class Job:
    """One sampler on one problem with one seed and one source, or `NONE`."""

    problem: str
    sampler: str
    source: str
    seed: int


class Warm(Ours):
    """A study warm started from the trials of others."""

    def __init__(
        self, task: Problem, trials: int, seed: int, sampler: str, priors: Sequence[Prior]
    ) -> None:
        super().__init__(task, trials, seed, sampler)
        self._search.warm_start(priors)


def moved(item: Searched, value: Any, by: float) -> Any:
    """A value of a searched number, moved by a part of its range, within it."""
    if item.choices:
        return value
    assert item.low is not None
    assert item.high is not None
    low, high = (math.log(v) if item.log else v for v in (item.low, item.high))
    at = (math.log(value) if item.log else value) + by * (high - low)
    at = min(max(at, low), high)
    at = math.exp(at) if item.log else at
    return min(max(round(at) if item.kind == "int" else at, item.low), item.high)


def _elsewhere(task: Problem, parts: float) -> Problem:
    """The same task, searched in ranges that are shifted."""
    search = []
    for item in task.search:
        if item.kind == "float" and item.log:
            assert item.low is not None
            assert item.high is not None
            step = (item.high / item.low) ** parts
            item = replace(item, low=item.low * step, high=item.high * step)
        search.append(item)
    return replace(task, search=tuple(search))


def _related(task: Problem) -> Problem:
    """The optimum lies elsewhere, by a tenth of each range, and losses have another scale."""

    def values(v: Values) -> Values:
        return {**v, **{i.path: moved(i, v[i.path], 0.1) for i in task.search}}

    return _changed(task, lambda v, report: 3.0 * report(values(v)) + 5.0)


def _negated(task: Problem) -> Problem:
    return _changed(task, lambda v, report: -report(v))


def _partial(task: Problem) -> Problem:
    """A smaller grid (the first half of the first axis), and every second searched parameter fixed
    in the middle of its range, or at its first choice.
    """
    axis, *others = task.grid
    fixed = {i.path: _middle(i) for i in task.search[1::2]}
    changed = _changed(task, lambda v, report: report({**v, **fixed}))
    half = replace(axis, values=axis.values[: (len(axis.values) + 1) // 2])
    return replace(changed, grid=(half, *others), search=task.search[::2])


def _middle(item: Searched) -> Any:
    return item.choices[0] if item.choices else moved(item, item.low, 0.5)


def _changed(
    task: Problem, change: Callable[[Values, Callable[[Values], float]], float]
) -> Problem:
    """The task with other losses, observed with the same noise."""

    def report(values: Values, normal: float) -> float:
        return change(values, lambda v: task.observed(v, normal))

    return replace(task, loss=lambda v: change(v, task.loss), report=report)


AS_SOURCE: Mapping[str, Callable[[Problem], Problem]] = {
    "same": lambda task: _elsewhere(task, -0.2),
    "related": _related,
    "partial": _partial,
    "negated": _negated,
    "shuffled": lambda task: task,
}
"""The source's problem. `same`: the task with other noise, numbers with a log scale searched in a
range shifted by a fifth of its width; `shuffled`: its values are permuted among its trials.
"""


@cache
def prior(name: str, source: str, seed: int) -> Prior:
    """What a study of the source found, as far as this problem's space holds it."""
    task = problem(name)
    there = AS_SOURCE[source](task)
    trials = SOURCE_TRIALS
    tuner = Ours(there, trials, 10_000 + seed, "tpe")
    rows, _, _ = play(there, tuner, trials, 10_000 + seed)
    losses = [value for _, value in rows]
    if source == "shuffled":
        losses = list(np.random.default_rng(seed).permutation(losses))
    return Prior(
        source,
        0,
        tuple(
            Observation(n, dict(values), float(loss), False)
            for n, ((values, _), loss) in enumerate(zip(rows, losses, strict=True))
        ),
    )


def measure(job: Job) -> list[Result]:
    """Plays one job."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task = problem(job.problem)
    priors = [] if job.source == NONE else [prior(job.problem, job.source, job.seed)]
    tuner = Warm(task, AT[-1], job.seed, job.sampler, priors)
    rows: list[Row]
    rows, spent, reported = play(task, tuner, AT[-1], job.seed, at=AT)
    method = f"{job.sampler}:{job.source}"
    results = []
    for at in AT:
        regret, of_best, by_cell = (
            max(found, task.resolution) for found in regrets(task, rows[:at], reported[at])
        )
        facts = (method, job.problem, job.seed, at, *ALONE, 0)
        results.append(Result(*facts, regret, of_best, by_cell, 1e3 * spent / AT[-1]))
    return results


def table(results: Sequence[Result], problems: Sequence[str], sources: Sequence[str]) -> str:
    """Ratios to the same sampler without a source, a line for each sampler and source."""
    of = {(r.method, r.problem, r.seed, r.at): r for r in results if r.problem in problems}
    lines = []
    for field in ("regret", "by_cell"):
        lines.append(f"{field:8}  source    " + "".join(f"{at:>20}" for at in AT) + "  runs")
        for sampler in SAMPLERS:
            for source in sources:
                cells, n = [], 0
                for at in AT:
                    logs = [
                        math.log(_at_least(name, getattr(r, field)))
                        - math.log(_at_least(name, getattr(base, field)))
                        for (method, name, seed, when), r in of.items()
                        if (method, when) == (f"{sampler}:{source}", at)
                        and (base := of.get((f"{sampler}:{NONE}", name, seed, at)))
                    ]
                    n = len(logs)
                    if n < 2:
                        break
                    mean, error = np.mean(logs), 1.645 * np.std(logs, ddof=1) / math.sqrt(n)
                    low, middle, high = np.exp([mean - error, mean, mean + error])
                    cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
                if cells:
                    row = "".join(f"{cell:>20}" for cell in cells)
                    lines.append(f"{sampler:8}  {source:8}  {row}  {n}")
    return "\n".join(lines)


def _at_least(name: str, regret: float) -> float:
    """A tenth of the noise is as good as none: a run that was lucky to find less would outweigh all
    others.
    """
    task = problem(name)
    unit = abs(min(task.optima)) if task.kind == "table" else 1.0
    return max(regret, 0.1 * task.noise * unit)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--part", choices=("chosen-on", "held-out", "both"), default="both")
    parser.add_argument("--sources", nargs="+", choices=list(AS_SOURCE), default=list(AS_SOURCE))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--lines", type=Path, help="keep runs there; what is there is not run")
    parser.add_argument(
        "--only-kept", action="store_true", help="tabulate what the lines hold; play nothing"
    )
    options = parser.parse_args(argv)
    parts = {"chosen-on": CHOSEN_ON, "held-out": HELD_OUT}
    if options.part != "both":
        parts = {options.part: parts[options.part]}
    jobs = [
        Job(name, sampler, source, seed)
        for seed in range(options.seeds)
        for names in parts.values()
        for name in names
        for source in (NONE, *options.sources)
        for sampler in options.samplers
    ]
    done: dict[Job, list[Result]] = {}
    if options.lines and options.lines.exists():
        for line in options.lines.read_text().splitlines():
            job, found = json.loads(line)
            done[Job(**job)] = [Result(**result) for result in found]
    if options.only_kept:
        jobs = [job for job in jobs if job in done]
    missing = [job for job in jobs if job not in done]
    with ProcessPoolExecutor(options.jobs) as pool:
        # two by two, for both samplers learn from the same sources
        for job, found in zip(missing, pool.map(measure, missing, chunksize=2), strict=True):
            done[job] = found
            if options.lines:
                with options.lines.open("a") as file:
                    file.write(json.dumps([asdict(job), [asdict(r) for r in found]]) + "\n")
    results = [result for job in jobs for result in done[job]]
    ms = {
        method: np.mean([r.ms for r in results if r.method == method])
        for method in dict.fromkeys(r.method for r in results)
    }
    for title, names in parts.items():
        print(f"\n{title}: {', '.join(names)}\n{table(results, names, options.sources)}")
    print("\nms a suggestion: " + ", ".join(f"{m} {v:.0f}" for m, v in ms.items()))


if __name__ == "__main__":
    main()
