"""How well each way of joining a grid with a search spends its trials, every method in the same
run.

For each method and number of trials: the regret (true value of the trial that is reported as the
best, minus the optimum; Optuna reports the best value), as the geometric mean over problems of
medians over seeds, relative to Optuna's TPESampler over the whole space; the same of the trial that
truly was the best, which says what was found where noise hides it (in the tables of real runs it
does); the mean over cells of each cell's regret, relative to one TPE study a cell; what several
workers at once lose against one; milliseconds of processor time a suggestion, asking and telling.
In brackets: the 90 % interval under resampled seeds. The two yardsticks are always run. Same
arguments, same figures (but for times). With ``--lines`` runs are kept, so a long call can be ended
and taken up again; with ``--known`` take lines of its own. The same figures follow for the tables,
the tame problems (none diverges) and the random families among the problems. The building set is
what the search was built on; nothing may be tuned on the frozen one (`sets.py`). Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/regret.py --trials 120 --seeds 20 --jobs 4
    OMP_NUM_THREADS=1 python tests/benchmarks/regret.py --parallel 8 --methods
    hybrid-gp,plain-gp-ordered --problems moving,flat
    OMP_NUM_THREADS=1 python tests/benchmarks/regret.py --set frozen --slow --slow-seeds 5
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import optuna
from rich.console import Console
from rich.progress import track

from orchestrator.search.gp import surrogate
from orchestrator.search.gp.surrogate import Surrogate
from tests.benchmarks.methods import APART, METHODS, YARDSTICK, Belief, Reported, Row, play
from tests.benchmarks.problems import Problem
from tests.benchmarks.sets import SETS, problem, subsets

NOTHING = Reported()
LEAST = 1e-5
"""Regrets below count as this, so that their ratios stay finite."""
RESAMPLED = 400
SURE = 0.95

Array = npt.NDArray[np.float64]
Way: TypeAlias = tuple[int, int]
"""How many workers, and how many trials each prepares while one runs."""
ALONE: Way = (1, 0)


@dataclass(frozen=True)
class Job:
    """One method on one problem with one seed; measured after each number of trials of `at`."""

    method: str
    problem: str
    variant: int
    seed: int
    at: tuple[int, ...]
    workers: int
    ahead: int


@dataclass(frozen=True)
class Result:
    """Regret over the grid after so many trials: of the trial reported as the best, of the truly
    best; and the mean over cells.
    """

    method: str
    problem: str
    seed: int
    at: int
    workers: int
    ahead: int
    variant: int
    regret: float
    of_best: float
    by_cell: float
    ms: float
    believed: int = 0
    held: int = 0
    sure: int = 0
    right: int = 0


def regrets(
    task: Problem, rows: Sequence[Row], reported: Reported = NOTHING
) -> tuple[float, float, float]:
    """Regret of the trial that is reported as the best, of the truly best, and the mean over cells
    of the regret of what is reported as the best there.

    Where nothing was tried the worst true value of all trials stands.
    """
    judged = [(task.loss(values), value, values) for values, value in rows]
    worst, least = max(true for true, _, _ in judged), min(task.optima)
    best, each = reported.best, reported.each
    of_cells = []
    for place, (cell, optimum) in enumerate(zip(task.cells, task.optima, strict=True)):
        mine = [row for row in judged if all(row[2][path] == value for path, value in cell.items())]
        said = each[place] if each else None
        true = task.loss(said[0]) if said else min(mine, key=_looks)[0] if mine else worst
        of_cells.append(true - optimum)
    found = (
        (task.loss(best[0]) if best else min(judged, key=_looks)[0]) - least,
        min(true for true, _, _ in judged) - least,
        float(np.mean(of_cells)),
    )
    return max(found[0], LEAST), max(found[1], LEAST), max(found[2], LEAST)


def _looks(row: tuple[float, float, Any]) -> float:
    return row[1]


def measure(job: Job) -> list[Result]:
    """Plays one job."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task, method, results = problem(job.problem, job.variant), METHODS[job.method], []
    trials = job.at[-1]
    rows, spent, reported = play(
        task, method.make(task, trials, job.seed), trials, job.seed, job.workers, job.ahead, job.at
    )
    for at in job.at:
        facts = (job.method, job.problem, job.seed, at, job.workers, job.ahead, job.variant)
        regret, of_best, by_cell = (
            max(found, task.resolution) for found in regrets(task, rows[:at], reported[at])
        )
        ms, beliefs = 1e3 * spent / trials, reported[at].beliefs
        found = Result(*facts, regret, of_best, by_cell, ms, **calibration(task, beliefs))
        results.append(found)
    return results


def calibration(task: Problem, beliefs: Sequence[Belief | None]) -> dict[str, Any]:
    """How many cells there are estimates of, how many of their intervals hold the optimum, and
    whether a cell that is called the best with a probability of 0.95 is the best.
    """
    pairs = [(b, optimum) for b, optimum in zip(beliefs, task.optima, strict=False) if b]
    sure = [optimum for (_, _, probability), optimum in pairs if probability >= SURE]
    return {
        "believed": len(pairs),
        "held": sum(low <= optimum <= high for (low, high, _), optimum in pairs),
        "sure": len(sure),
        "right": sum(optimum <= min(task.optima) + task.resolution for optimum in sure),
    }


class Figures:
    """Ratios of medians over seeds, with intervals; the same (resampled) seeds on both sides of a
    ratio: those both have.
    """

    def __init__(self, results: Sequence[Result], problems: Sequence[str]) -> None:
        self._problems = problems
        self._of: dict[tuple[str, str, int, Way], dict[int, Result]] = {}
        for r in results:
            self._of.setdefault((r.method, r.problem, r.at, (r.workers, r.ahead)), {})[r.seed] = r

    def seeds(self, method: str, at: int, way: Way) -> set[int]:
        """Seeds with which a method was run on every problem."""
        return set.intersection(
            *(set(self._of.get((method, name, at, way), {})) for name in self._problems)
        )

    def ratio(
        self, field: str, at: int, of: tuple[str, Way], to: tuple[str, Way]
    ) -> dict[str, Any] | None:
        """Geometric mean of the ratio between two methods, each run in a way, interval, and each
        problem; None without runs.
        """
        seeds = sorted(self.seeds(of[0], at, of[1]) & self.seeds(to[0], at, to[1]))
        if not seeds:
            return None
        drawn = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLED, len(seeds)))
        drawn = np.vstack([np.arange(len(seeds)), drawn])

        def log_medians(method: str, way: Way) -> Array:
            """Shape (problems, 1 + RESAMPLED): of the seeds as they are, then resampled."""
            each = [self._of[method, name, at, way] for name in self._problems]
            values = np.array([[getattr(mine[seed], field) for seed in seeds] for mine in each])
            result: Array = np.log(np.median(values[:, drawn], axis=2))
            return result

        difference = log_medians(*of) - log_medians(*to)
        means = np.exp(difference.mean(axis=0))
        low, high = np.quantile(means[1:], (0.05, 0.95))
        problems = dict(
            zip(self._problems, np.exp(difference[:, 0]).round(3).tolist(), strict=True)
        )
        return {
            "ratio": float(means[0]),
            "low": float(low),
            "high": float(high),
            "seeds": len(seeds),
            "problems": problems,
        }

    def ms(self, method: str, at: int, way: Way) -> float:
        """Mean over problems and seeds of milliseconds of processor time a suggestion."""
        return float(
            np.mean(
                [r.ms for name in self._problems for r in self._of[method, name, at, way].values()]
            )
        )


def summaries(
    figures: Figures, methods: Sequence[str], at: Sequence[int], ways: Sequence[Way]
) -> Iterator[dict[str, Any]]:
    """One a method and number of trials."""
    for trials in at:
        for method in methods:
            if not figures.seeds(method, trials, ALONE):
                continue
            line: dict[str, Any] = {
                "trials": trials,
                "method": method,
                "regret": figures.ratio("regret", trials, (method, ALONE), (YARDSTICK, ALONE)),
                "of_best": figures.ratio("of_best", trials, (method, ALONE), (YARDSTICK, ALONE)),
                "by_cell": figures.ratio("by_cell", trials, (method, ALONE), (APART, ALONE)),
                "ms": figures.ms(method, trials, ALONE),
            }
            for way in ways:
                if way != ALONE:
                    line[_loss(way)] = figures.ratio(
                        "regret", trials, (method, way), (method, ALONE)
                    )
                    line[f"{_loss(way)}, by cell"] = figures.ratio(
                        "by_cell", trials, (method, way), (method, ALONE)
                    )
            yield line


def _loss(way: Way) -> str:
    return f"{way[0]} workers{' that prepare' if way[1] else ''} / 1"


def table(lines: Sequence[dict[str, Any]], problems: Sequence[str]) -> str:
    """The summaries for people."""

    def cell(figure: dict[str, Any] | None) -> str:
        return (
            f"{figure['ratio']:.3g} [{figure['low']:.2g}, {figure['high']:.2g}]" if figure else "-"
        )

    losses = [key for key in lines[0] if "workers" in key]
    headings = [
        "trials",
        "method",
        "seeds",
        f"regret / {YARDSTICK}",
        "of truly best",
        f"by cell / {APART}",
        "ms",
    ]
    rows = [[*headings, *losses, *problems]]
    for line in lines:
        row = [str(line["trials"]), line["method"], str(line["regret"]["seeds"])]
        row += [*(cell(line[key]) for key in ("regret", "of_best", "by_cell")), f"{line['ms']:.1f}"]
        row += [
            cell(line[key]) + (f" ({line[key]['seeds']})" if line[key] else "") for key in losses
        ]
        rows.append(row + [f"{line['regret']['problems'][name]:.2f}" for name in problems])
    return _aligned(rows)


def calibrations(results: Sequence[Result]) -> str:
    """For each method that says what it believes, and each number of trials: the share of cells
    whose 90 % interval holds their optimum, how often a cell was called the best with a probability
    of 0.95 or more, and how often it was. Empty if none does.
    """
    rows = [["trials", "method", "intervals hold", "called the best", "right"]]
    for at, method in dict.fromkeys((r.at, r.method) for r in results if r.believed):
        mine = [r for r in results if (r.at, r.method) == (at, method)]
        believed, held, sure, right = (
            sum(getattr(r, name) for r in mine) for name in ("believed", "held", "sure", "right")
        )
        share = f"{right / sure:.3f}" if sure else "-"
        rows.append([str(at), method, f"{held / believed:.3f}", f"{sure} of {len(mine)}", share])
    return _aligned(rows) if len(rows) > 1 else ""


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def names(choices: Sequence[str]) -> Any:
    """Reads names separated by commas."""

    def read(text: str) -> list[str]:
        given = [name for name in text.split(",") if name]
        if unknown := set(given) - set(choices):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: must be of {', '.join(choices)}"
            )
        return given

    return read


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=120, help="trials of a run")
    parser.add_argument(
        "--at",
        type=int,
        nargs="+",
        help="numbers of trials to measure at; default: half of all, and all",
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    quick = [name for name, method in METHODS.items() if not method.slow]
    parser.add_argument(
        "--methods",
        type=names(list(METHODS)),
        nargs="+",
        default=[quick],
        help=f"of {', '.join(METHODS)}",
    )
    parser.add_argument("--slow", action="store_true", help="also Optuna's GPSampler")
    of_both = [name for each in SETS.values() for name in each]
    on = parser.add_mutually_exclusive_group()
    on.add_argument(
        "--set", choices=list(SETS), default="building", help="all problems of a set (%(default)s)"
    )
    on.add_argument("--problems", type=names(of_both), nargs="+", help=f"of {', '.join(of_both)}")
    parser.add_argument(
        "--variant",
        type=int,
        default=0,
        help="draws other constants of the synthetic problems and random families",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="WORKERS",
        help="also with so many workers at once",
    )
    parser.add_argument(
        "--prefetch",
        action="store_true",
        help="also with as many that prepare a trial while one runs",
    )
    parser.add_argument(
        "--slow-seeds",
        type=int,
        help="seeds of Optuna's GPSampler, where fewer; ratios are of common seeds",
    )
    parser.add_argument(
        "--parallel-seeds", type=int, help="seeds of several workers at once, where fewer"
    )
    parser.add_argument(
        "--known",
        type=int,
        metavar="TRIALS",
        help="the Gaussian process looks at so many trials, not 400",
    )
    parser.add_argument(
        "--lines",
        type=Path,
        metavar="FILE",
        help="keep each run there as it ends; what is there is not run",
    )
    parser.add_argument(
        "--only-kept",
        action="store_true",
        help="tabulate what the lines hold, whatever seeds; play nothing",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write summaries and every single result there"
    )
    options = parser.parse_args(argv)
    options.at = tuple(sorted(set(options.at or (options.trials // 2, options.trials))))
    if options.only_kept and not options.lines:
        parser.error("--only-kept: needs --lines, the file to read")
    if options.at[0] < 1 or options.seeds < 1 or options.jobs < 1 or options.parallel < 1:
        parser.error("trials, seeds, jobs and workers must be at least 1")
    chosen = [YARDSTICK, APART, *(name for part in options.methods for name in part)]
    chosen += [name for name, method in METHODS.items() if method.slow and options.slow]
    options.methods = list(dict.fromkeys(chosen))
    options.problems = list(
        dict.fromkeys(name for part in options.problems or [SETS[options.set]] for name in part)
    )
    return options


def kept(lines: Path | None, options: argparse.Namespace) -> dict[Job, list[Result]]:
    """The runs that an earlier call with the same numbers of trials left."""
    found: dict[Job, list[Result]] = {}
    for line in lines.read_text().splitlines() if lines and lines.exists() else ():
        job, results = json.loads(line)
        job = Job(**job | {"at": tuple(job["at"])})
        if job.at == options.at and job.variant == options.variant:
            found[job] = [Result(**result) for result in results]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    ways = [ALONE]
    ways += (
        [(options.parallel, ahead) for ahead in ((0, 1) if options.prefetch else (0,))]
        if options.parallel > 1
        else []
    )
    wanted = [
        Job(method, name, options.variant, seed, options.at, *way)
        for way in ways
        for seed in range(
            options.seeds if way == ALONE else options.parallel_seeds or options.seeds
        )
        for method in options.methods
        for name in options.problems
        if seed < ((METHODS[method].slow and options.slow_seeds) or options.seeds)
    ]
    for name in options.problems:
        _ = problem(name, options.variant).optima  # found once, before processes are forked
    if options.known:  # in the processes that are forked from here too
        near = Surrogate.near
        surrogate.MAX_TRIALS = options.known

        def near_of_known(self: Surrogate, cell: Any, most: int = options.known) -> Any:
            return near(self, cell, min(most, options.known))

        Surrogate.near = near_of_known  # type: ignore[method-assign]
    done = kept(options.lines, options)
    if options.only_kept:
        wanted = [job for job in wanted if job in done]
    missing = [job for job in wanted if job not in done]
    with ProcessPoolExecutor(options.jobs) as pool:
        played = track(
            pool.map(measure, missing),
            total=len(missing),
            console=Console(stderr=True, quiet=not sys.stderr.isatty()),
        )
        for job, results in zip(missing, played, strict=True):
            done[job] = results
            if options.lines:
                with options.lines.open("a") as file:
                    file.write(
                        json.dumps([asdict(job), [asdict(result) for result in results]]) + "\n"
                    )
    all_results = [result for job in wanted for result in done[job]]

    def summed(problems: Sequence[str]) -> list[dict[str, Any]]:
        return list(summaries(Figures(all_results, problems), options.methods, options.at, ways))

    lines = summed(options.problems)
    print(table(lines, options.problems))
    parts = {title: summed(part) for title, part in subsets(tuple(options.problems)).items()}
    for title, part in parts.items():
        print(f"\n{title}\n{table(part, ())}")
    if calibrated := calibrations([r for r in all_results if (r.workers, r.ahead) == ALONE]):
        print(f"\nwhat is believed of the cells\n{calibrated}")
    if options.json:
        written = {
            "arguments": vars(options),
            "summaries": lines,
            "subsets": parts,
            "results": [asdict(result) for result in all_results],
        }
        options.json.write_text(json.dumps(written, default=str, indent=1))


if __name__ == "__main__":
    main()
