"""Whether what a report says of the grid is true.

Studies of the project's own sampler, equal shares, with noise where the problem has it, are judged
after several numbers of trials a cell against the true optimum of every cell: do intervals of 90 %
of the contrasts of two values of an axis (and of the cells) hold the truth, is a value that is
called better (probability 0.95 or more) better, is the difference of values that are said to make
none as small as is said, is an interaction that is called one, and do questions get decided with
as many trials as was projected. Of studies with too few trials for their parameters nothing is
called so. Where the truth is that there is no difference, no value is better.

The half of the building set that the width of intervals was looked at with and the other half are
told apart; the frozen set was run once. Histories are kept in ``--histories``, so that the analysis
can be run again. Then the importance of an unused parameter, from trials that TPE chose, beside
Optuna's two evaluators on the same trials; and which parameters a report names where noise is all
or most of the variance. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/science.py --seeds 20
    OMP_NUM_THREADS=1 python tests/benchmarks/science.py --set frozen --seeds 6 --samplers gp
    OMP_NUM_THREADS=1 python tests/benchmarks/science.py --importances --seeds 10
    OMP_NUM_THREADS=1 python tests/benchmarks/science.py --cost
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
)

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.report.parameters import about_parameters
from orchestrator.search import Science, Search, distributions, parameters
from orchestrator.search.gp.losses import Scale
from orchestrator.search.science import importance
from orchestrator.search.science.effects import decided
from orchestrator.settings import sampler_settings
from tests.benchmarks.methods import Ours
from tests.benchmarks.problems import Problem, Values
from tests.benchmarks.sets import SETS, problem

LOOKED_AT = ("moving", "backbone", "flat", "hartmann", "digits")
"""The problems that the width of intervals was looked at with."""
BUDGETS = (4, 8, 16)
SURE = 0.95
NONE = 1e-9
Row = tuple[Values, float]


@dataclass(frozen=True)
class Job:
    """One study."""

    problem: str
    sampler: str
    seed: int
    budgets: tuple[int, ...]
    histories: str


@dataclass(frozen=True)
class Judged:
    """What was said of one study after so many trials a cell, and how much of it is true; and of
    each contrast whether it is decided, and after how many more trials it would be.
    """

    problem: str
    sampler: str
    seed: int
    per_cell: int
    counts: Mapping[str, int]
    contrasts: Mapping[str, tuple[bool, int | None]] = field(default_factory=dict)


def history(job: Job) -> list[Row]:
    """The trials of the study: values and what was observed, in order; kept in a file."""
    most = max(job.budgets)
    path = Path(job.histories) / f"{job.problem}-0-{job.seed}-{job.sampler}-{most}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_played(job, most)))
    return [(values, observed) for values, observed in json.loads(path.read_text())]


def _played(job: Job, per_cell: int) -> list[Row]:
    task = problem(job.problem)
    trials = per_cell * len(task.cells)
    tuner = Ours(task, trials, job.seed, job.sampler)
    normal = np.random.default_rng([job.seed, 0]).standard_normal(trials)
    rows: list[Row] = []
    for number in range(trials):
        values = tuner.ask(number)
        observed = task.observed(values, float(normal[number]))
        tuner.tell(number, observed)
        rows.append((dict(values), observed))
    return rows


def fed(spec: StudySpec, rows: Sequence[Row], cells: Sequence[Values] = ({},)) -> Search:
    """A study that knows these trials, which visit the cells in turn."""
    search, declared = Search(spec), parameters(spec)
    for number, (values, observed) in enumerate(rows):
        params = [p.param(p.internal(values[path])) for path, p in declared.items()]
        cell = number % len(cells)
        search.feed([TrialNews(number, "COMPLETE", tuple(params), (observed,), cell=cell)])
    return search


def measure(job: Job) -> list[Judged]:
    """What is said after each budget, judged."""
    warnings.simplefilter("ignore")
    task, rows, found = problem(job.problem), history(job), []
    for per_cell in job.budgets:
        trials = per_cell * len(task.cells)
        spec = task.spec(trials, job.seed, job.sampler)
        said = fed(spec, rows[:trials], task.cells).science(task.cells)
        assert said is not None
        contrasts = {
            f"{axis.path} {sorted(map(str, (c.better, c.worse)))}": (
                decided(c, said.margin),
                c.more,
            )
            for axis in said.axes
            for c in axis.contrasts
        }
        counts = dict(judge(task, said))
        found.append(Judged(job.problem, job.sampler, job.seed, per_cell, counts, contrasts))
    return found


def judge(task: Problem, said: Science) -> Counter[str]:
    """How often each thing was said, and how often it is true."""
    counts: Counter[str] = Counter()

    def mean(**values: Any) -> float:
        some = [
            optimum
            for cell, optimum in zip(task.cells, task.optima, strict=True)
            if all(cell[path] == value for path, value in values.items())
        ]
        return float(np.mean(some))

    for axis in said.axes:
        true = [mean(**{axis.path: v.value}) for v in axis.values]
        for c in axis.contrasts:
            gain = mean(**{axis.path: c.worse}) - mean(**{axis.path: c.better})
            counts["contrasts"] += 1
            counts["contrasts held"] += c.low <= gain <= c.high
            if c.probability >= SURE and said.complete >= said.needed:
                counts["beats"] += 1
                counts["beats right"] += gain > NONE
        small = axis.largest is not None and axis.largest <= said.margin
        if small and said.complete >= said.needed:
            counts["same"] += 1
            counts["same right"] += max(true) - min(true) <= (axis.largest or 0.0) + NONE
    for i in said.interactions:
        here, there = (
            mean(**{i.path: i.worse, i.other_path: other})
            - mean(**{i.path: i.better, i.other_path: other})
            for other in (i.other, i.otherwise)
        )
        counts["interactions held"] += i.low <= here - there <= i.high
        counts["interactions"] += 1
        if i.differs and said.complete >= said.needed:
            counts["differs"] += 1
            counts["differs right"] += here - there > NONE
    for cell in said.cells:
        counts["cells"] += 1
        counts["cells held"] += cell.low <= task.optima[cell.place] <= cell.high
    return counts


def table(found: Sequence[Judged]) -> Iterator[str]:
    """A line for each part of the problems, sampler and number of trials a cell."""
    yield (
        "| problems | sampler | trials a cell | studies | contrasts held | cells held | "
        "beats, right | no difference, right | interaction, right |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for part, names in _parts(found).items():
        for sampler, per_cell in dict.fromkeys((j.sampler, j.per_cell) for j in found):
            some = [
                j
                for j in found
                if (j.sampler, j.per_cell) == (sampler, per_cell) and j.problem in names
            ]
            total: Counter[str] = Counter()
            for judged in some:
                total.update(judged.counts)
            of = ("contrasts", "cells")
            held = [f"{total[f'{name} held'] / max(total[name], 1):.3f}" for name in of]
            right = [
                f"{total[name]}, {total[f'{name} right'] / total[name]:.3f}" if total[name] else "0"
                for name in ("beats", "same", "differs")
            ]
            yield f"| {' | '.join([part, sampler, str(per_cell), str(len(some)), *held, *right])} |"


def _parts(found: Sequence[Judged]) -> dict[str, list[str]]:
    names = list(dict.fromkeys(j.problem for j in found))
    parts = {
        "looked at": [name for name in names if name in LOOKED_AT],
        "the others": [name for name in names if name not in LOOKED_AT],
        "all": names,
    }
    if not parts["looked at"] or not parts["the others"]:
        parts = {"all": names}
    return parts | {name: [name] for name in names}


def projections(found: Sequence[Judged]) -> Iterator[str]:
    """Of contrasts that were open, how many were decided after twice as many trials: of those
    projected to need no more than that, and of the others.
    """
    yield "| trials a cell | projected | contrasts | decided with twice as many |"
    yield "|---|---|---|---|"
    by_key = {(j.problem, j.sampler, j.seed, j.per_cell): j for j in found}
    for per_cell in sorted({j.per_cell for j in found}):
        ends: dict[str, list[bool]] = {"within": [], "more": [], "much more": []}
        for j in found:
            later = by_key.get((j.problem, j.sampler, j.seed, 2 * per_cell))
            if j.per_cell != per_cell or later is None:
                continue
            for name, (done, more) in j.contrasts.items():
                if not done and name in later.contrasts:
                    far = more is None or more > 4 * per_cell
                    key = "much more" if far else "within" if (more or 0) <= per_cell else "more"
                    ends[key].append(later.contrasts[name][0])
        for key, decisions in ends.items():
            if decisions:
                yield f"| {per_cell} | {key} | {len(decisions)} | {np.mean(decisions):.2f} |"


# ------------------------------------------------------------------------------------- importances

SPACE = (
    Searched("lr", "float", 1e-5, 1.0, log=True),
    Searched("wd", "float", 1e-6, 1e-1, log=True),
    Searched("dropout", "float", 0.0, 0.6),
    Searched("unused", "float", 0.0, 1.0),
)


def surface(v: Values) -> float:
    """A loss that one of four parameters has no part in."""
    lr, wd = math.log10(v["lr"]) + 2.5, math.log10(v["wd"]) + 4.0
    return float(0.35 * lr**2 + 0.08 * wd**2 + 2.0 * (v["dropout"] - 0.2) ** 2)


def shares(rows: Sequence[Row], seed: int) -> dict[str, dict[str, float]]:
    """The share of each parameter by each way, and the ends of our interval."""
    spec = StudySpec(
        "importances",
        ("minimize",),
        ("loss",),
        {},
        {},
        (),
        SPACE,
        Budget(len(rows), 1),
        sampler=sampler_settings("tpe"),
        seed=seed,
    )
    said = fed(spec, rows).science([{}])
    assert said is not None
    found = {
        "ours": {i.path: i.overall.share for i in said.importances},
        "low": {i.path: i.overall.low for i in said.importances},
        "high": {i.path: i.overall.high for i in said.importances},
    }
    study, space = optuna.create_study(), distributions(spec)
    for values, observed in rows:
        study.add_trial(
            optuna.create_trial(params=dict(values), distributions=dict(space), value=observed)
        )
    evaluators: dict[str, BaseImportanceEvaluator] = {
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
        "fANOVA": FanovaImportanceEvaluator(seed=seed),
    }
    for name, evaluator in evaluators.items():
        found[name] = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    return found


def chosen_by(sampler: str, trials: int, seed: int) -> list[Row]:
    """Trials of plain Optuna's TPE, or of random search."""
    made: dict[str, optuna.samplers.BaseSampler] = {
        "random": optuna.samplers.RandomSampler(seed=seed),
        "TPE": optuna.samplers.TPESampler(seed=seed),
    }
    study = optuna.create_study(sampler=made[sampler])
    space = StudySpec("", ("minimize",), (), {}, {}, (), SPACE, Budget(1, 1))
    normal = np.random.default_rng([seed, 0]).standard_normal(trials)
    rows: list[Row] = []
    for number in range(trials):
        trial = study.ask(distributions(space))
        observed = surface(trial.params) + 0.02 * float(normal[number])
        study.tell(trial, observed)
        rows.append((dict(trial.params), observed))
    return rows


def importance_table(seeds: int) -> Iterator[str]:
    """The mean share of the parameters over seeds, by way and sampler; the true total shares."""
    rng = np.random.default_rng(0)
    draws = {s.path: rng.uniform(0.0, 1.0, (2, 20_000)) for s in SPACE}

    def at(unit: Mapping[str, Any]) -> Any:
        lr, wd = -5.0 + 5.0 * unit["lr"] + 2.5, -6.0 + 5.0 * unit["wd"] + 4.0
        return 0.35 * lr**2 + 0.08 * wd**2 + 2.0 * (0.6 * unit["dropout"] - 0.2) ** 2

    base = {path: both[0] for path, both in draws.items()}
    names, never = [s.path for s in SPACE], np.zeros(20_000, dtype=bool)
    scale = Scale.of(at(base), never)
    whole = scale.standard(at(base), never)
    true = [
        0.5 * np.mean((scale.standard(at(base | {path: draws[path][1]}), never) - whole) ** 2)
        for path in names
    ]
    yield f"| sampler | trials | way | {' | '.join(names)} |"
    yield f"|---|---|---|{'---|' * len(names)}"
    yield f"| | | the truth | {' | '.join(f'{share:.2f}' for share in true)} |"
    for sampler in ("random", "TPE"):
        for trials in (40, 100):
            each = [shares(chosen_by(sampler, trials, seed), seed) for seed in range(seeds)]
            for way in ("ours", "PED-ANOVA", "fANOVA"):
                mean = [np.mean([one[way][name] for one in each]) for name in names]
                most = max(one[way]["unused"] for one in each)
                cells = " | ".join(f"{share:.2f}" for share in mean)
                yield f"| {sampler} | {trials} | {way} | {cells} (at most {most:.2f}) |"
            held = [
                np.mean([one["low"][n] - 0.01 <= t <= one["high"][n] + 0.01 for one in each])
                for n, t in zip(names, true, strict=True)
            ]
            yield f"| {sampler} | {trials} | held | {' | '.join(f'{h:.2f}' for h in held)} |"


FIVE = tuple(Searched(f"p{k}", "float", 0.0, 1.0) for k in range(5))
NOISY = ((25, 0.0, 1.0), (60, 0.0, 1.0), (60, 1.0, 0.35), (60, 1.0, 0.1))
"""Trials, the slope of `p0`, and the deviation of the noise."""


def named_table(seeds: int) -> Iterator[str]:
    """Of five parameters the first one matters, or none: what a report names as found to matter,
    and as found to hardly matter, by the project's own search.
    """
    yield "| trials | slope, noise | studies | unpredictable | `p0` | others | `p0` idle |"
    yield "|---|---|---|---|---|---|---|"
    for trials, slope, noise in NOISY:
        counts: Counter[str] = Counter()
        for seed in range(seeds):
            spec = StudySpec(
                "noisy",
                ("minimize",),
                ("loss",),
                {},
                {},
                (),
                FIVE,
                Budget(trials, 0),
                sampler=sampler_settings("tpe"),
                seed=seed,
            )
            search, rng = Search(spec), np.random.default_rng([seed, 0])
            for number in range(trials):
                asked = search.ask({}, ticket=number, retry=0)
                value = slope * asked.values["p0"] + noise * float(rng.standard_normal())
                search.feed([TrialNews(number, "COMPLETE", asked.params, (value,), cell=0)])
            said = search.science([{}])
            assert said is not None
            for statement in about_parameters(spec, said):
                counts["unpredictable"] += statement.kind == "unpredictable"
                if statement.kind == "importance" and statement.verdict == "finding":
                    idle = "hardly" in statement.text
                    for path in statement.numbers:
                        counts[f"{'unused' if path != 'p0' or not slope else 'p0'} {idle}"] += 1
        yield (
            f"| {trials} | {slope:g}, {noise:g} | {seeds} | {counts['unpredictable']} | "
            f"{counts['p0 False']} | {counts['unused False']} | {counts['p0 True']} |"
        )


# -------------------------------------------------------------------------------------------- cost


def cost() -> Iterator[str]:
    """Seconds and memory of the analysis of 30 cells."""
    grid = (Axis("batch", (16, 32, 64, 128, 256)), Axis("net", ("a", "b", "c", "d", "e", "f")))
    for trials in (1_000, 10_000):
        spec = StudySpec("cost", ("minimize",), ("loss",), {}, {}, grid, SPACE, Budget(trials, 1))
        cells, rng = list(spec.cells()), np.random.default_rng(0)
        rows = []
        for number in range(trials):
            unit = rng.uniform(size=4)
            values = {
                "lr": 10.0 ** (-5.0 + 5.0 * unit[0]),
                "wd": 10.0 ** (-6.0 + 5.0 * unit[1]),
                "dropout": 0.6 * unit[2],
                "unused": unit[3],
            } | cells[number % len(cells)]
            shift = 0.05 * math.log2(values["batch"]) + 0.1 * "abcdef".index(values["net"])
            rows.append((values, surface(values) + shift + 0.02 * float(rng.standard_normal())))
        search = fed(spec, rows, cells)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.process_time()
        assert search.science(cells) is not None
        spent = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield (
            f"{trials} trials, 30 cells: {spent:.1f} s, {peak - before:.0f} MiB on top of "
            f"{before:.0f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=list(SETS), default="building")
    parser.add_argument("--problems", type=lambda text: text.split(","))
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=["tpe"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--histories", default="build/science", metavar="FOLDER")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="write each judgement there")
    parser.add_argument("--importances", action="store_true", help="those alone")
    parser.add_argument("--cost", action="store_true", help="that alone")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.importances or options.cost:
        seeds = options.seeds
        if options.importances:
            lines: Iterator[str] = itertools.chain(
                importance_table(seeds), [""], named_table(seeds)
            )
        else:
            lines = cost()
        for line in lines:
            print(line)
        return
    jobs = [
        Job(name, sampler, seed, BUDGETS, options.histories)
        for sampler in options.samplers
        for seed in range(options.seeds)
        for name in options.problems or SETS[options.set]
    ]
    for job in jobs:
        _ = problem(job.problem).optima  # found once, before processes are forked
    importance.N_POINTS = importance.N_PATHS = 2  # they are not judged here, and take half the time
    with ProcessPoolExecutor(options.jobs) as pool:
        found = [judged for some in pool.map(measure, jobs) for judged in some]
    if options.lines:
        options.lines.write_text("".join(json.dumps(asdict(judged)) + "\n" for judged in found))
    for line in (*table(found), "", *projections(found)):
        print(line)


if __name__ == "__main__":
    main()
