"""What it pays to probe a cell's learning rate before its first trial, on tables of real trainings
whose learning rate is declared from 1e-6 to 10 (`probed_tables.py`).

Each run is a study with equal shares, its cells in turn. It is played without probes (``none``),
with the bounds that the probe `orchestrator.training.probes.lr_range` found in each cell, as
`Search.ask` takes them (``soft``), and with the same bounds never left (``hard``). Device time
counts the steps of trainings, and those of the probes before the first trial of each cell. What is
compared is what was found: the true loss of the truly best trial, of the whole study, and of each
cell.

For each sampler and number of trials a cell: the device time at which probed studies had the regret
(the median over seeds) that those without had at their end, as a share of the time of these; the
final true loss, at equal device time, relative to that without probes, and how often it is more
than 5 % worse; and the ratio of regrets then. With ``--alone`` each cell is a study of its own,
which learns nothing from others. Means over tables are geometric. In brackets: the
90 % interval under resampled seeds. A time of more than 1.25 counts as
1.5. Then the cells whose optimum lies outside the bounds. Same arguments, same
figures. With ``--lines`` runs are kept, and those that are there are not played. Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/probes.py --seeds 20 --set held-out --arms none soft

Soft bounds were chosen on the building set; ``--shift`` moves all bounds by so many decades, as a
probe would that is off by that much.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna

from orchestrator.model import TrialNews
from orchestrator.search import Search
from tests.benchmarks.probed_tables import BUILDING, HELD_OUT, Probed
from tests.benchmarks.problems import Problem
from tests.benchmarks.tables import Array

SETS = {"building": BUILDING, "held-out": HELD_OUT}
TABLES = {
    table.name: table
    for tables in SETS.values()
    for whole in tables
    for table in (whole, *whole.alone())
}
SAMPLERS = ("gp", "tpe", "random")
ARMS = ("none", "soft", "hard")
LONGER = 1.25
"""How long studies with probes may take, relative to those without."""
NOT_REACHED = 1.5
WORSE = 1.05
LEAST = 1e-5
RESAMPLED = 400


@dataclass(frozen=True)
class Run:
    """One study: the true losses of its trials, of the cells in turn."""

    table: str
    sampler: str
    arm: str
    shift: float
    seed: int
    true: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What it is a function of."""
        return self.table, self.sampler, self.arm, self.shift, self.seed


@cache
def problem(name: str) -> Problem:
    """The table of that name as a problem."""
    return TABLES[name].problem()


def limits_of(table: Probed, cell: int, run: Run) -> dict[str, tuple[float, float]]:
    """The bounds of a cell's learning rate; empty where there are none."""
    found = table.bounds[cell]
    if run.arm == "none" or found is None:
        return {}
    low, high = (end * 10.0**run.shift for end in found)
    return {"lr": (low, high)} if low <= 10.0 and high >= 1e-6 else {}


def never_left() -> AbstractContextManager[Any]:
    """Makes bounds hard."""

    def keep(bounds: Any, space: Any, best: Any, turn: int) -> Any:
        return bounds

    return mock.patch("orchestrator.search.search.limits_in_effect", keep)


def played(run: Run, per_cell: int) -> Run:
    """The run with its losses."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table, task, true = TABLES[run.table], problem(run.table), []
    n_cells = len(table.cells)
    trials = int(per_cell * (1.0 if run.arm == "none" else LONGER)) * n_cells
    search = Search(task.spec(trials, run.seed, run.sampler))
    normal = np.random.default_rng([run.seed, 0]).standard_normal(trials)
    with never_left() if run.arm == "hard" else nullcontext():
        for number in range(trials):
            cell = number % n_cells
            asked = search.ask(
                table.cells[cell], ticket=number, retry=0, bounds=limits_of(table, cell, run)
            )
            true.append(round(task.loss(asked.values), 7))
            value = task.observed(asked.values, float(normal[number]))
            news = TrialNews(
                number,
                "COMPLETE",
                asked.params,
                (value,),
                system_attrs=asked.system_attrs,
                cell=cell,
            )
            search.feed([news])
    return Run(*run.key, tuple(true))


class Played:
    """The runs of one table, sampler and arm, of several seeds.

    Attributes:
        found: the least true loss of each cell after each trial, shape (seeds, trials, cells);
            infinite before its first.
        time: device time after each trial, in trainings.
    """

    def __init__(self, table: Probed, runs: Sequence[Run]) -> None:
        n = len(table.cells)
        true = np.array([run.true for run in runs])
        each = np.full((*true.shape, n), math.inf)
        for cell in range(n):
            each[:, cell::n, cell] = true[:, cell::n]
        self.found: Array = np.minimum.accumulate(each, axis=1)
        steps = np.full(true.shape[1], float(table.steps))
        if runs[0].arm != "none":
            steps[:n] += table.probe_steps
        self.time: Array = np.cumsum(steps) / table.steps
        self._least = np.array([table.best(cell)[2] for cell in range(n)])

    def loss(self, kind: str) -> Array:
        """Shape (seeds, trials): of the whole study, or the mean over cells."""
        result: Array = self.found.min(axis=2) if kind == "whole study" else self.found.mean(axis=2)
        return result

    def regret(self, kind: str) -> Array:
        """The same less that of the optimum."""
        least = self._least.min() if kind == "whole study" else self._least.mean()
        result: Array = np.maximum(self.loss(kind) - least, LEAST)
        return result

    def after(self, time: float) -> int:
        """The last trial that had ended by then."""
        return int(np.searchsorted(self.time, time + 1e-9, side="right")) - 1


KINDS = ("whole study", "each cell")


@dataclass(frozen=True)
class Compared:
    """One table: share of the time, also without that of the probes (`free`), and ratios of final
    loss and regret, one for the seeds as they are and for each resampling; `cells` are the ratios
    of each cell's final loss.
    """

    time: Array
    free: Array
    loss: Array
    regret: Array
    cells: Array


def compared(probed: Played, without: Played, per_cell: int, kind: str) -> Compared:
    """What probes changed on a table."""
    n = per_cell * without.found.shape[2]
    seeds = len(without.found)
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLED, seeds))
    drawn = np.vstack([np.arange(seeds), drawn])
    total = without.time[n - 1]
    last = probed.after(total)
    target = np.median(without.regret(kind)[:, n - 1][drawn], axis=1)
    reached = np.array(
        [
            (np.median(probed.regret(kind)[which], axis=0) <= goal)
            & (probed.time <= LONGER * total)
            for which, goal in zip(drawn, target, strict=True)
        ]
    )
    first = reached.argmax(axis=1)
    time = np.where(reached.any(axis=1), probed.time[first] / total, NOT_REACHED)
    free = np.where(reached.any(axis=1), (first + 1) / n, NOT_REACHED)

    def ratio(of: Array, to: Array) -> Array:
        result: Array = np.median(of[:, last][drawn], axis=1) / np.median(
            to[:, n - 1][drawn], axis=1
        )
        return result

    return Compared(
        time,
        free,
        ratio(probed.loss(kind), without.loss(kind)),
        ratio(probed.regret(kind), without.regret(kind)),
        np.median(probed.found[:, last], axis=0) / np.median(without.found[:, n - 1], axis=0),
    )


def summaries(
    runs: dict[Any, list[Run]], tables: Sequence[Probed], options: argparse.Namespace
) -> Iterator[list[str]]:
    """A row a sampler, arm, number of trials and kind."""
    yield [
        "sampler",
        "bounds",
        "trials a cell",
        "found in",
        "time",
        "by table",
        "were probes free",
        "final loss, worst table",
        "cells > 5 % worse",
        "final regret",
    ]
    for sampler in options.samplers:
        for arm in options.arms:
            for per_cell in options.at if arm != "none" else ():
                for kind in KINDS[1:] if options.alone else KINDS:
                    each = [
                        compared(
                            Played(table, runs[table.name, sampler, arm]),
                            Played(table, runs[table.name, sampler, "none"]),
                            per_cell,
                            kind,
                        )
                        for table in tables
                    ]
                    cells = np.concatenate([one.cells for one in each])
                    yield [
                        sampler,
                        arm,
                        str(per_cell),
                        kind,
                        _mean([one.time for one in each]),
                        " ".join(f"{one.time[0]:.2f}" for one in each),
                        _mean([one.free for one in each]),
                        f"{max(one.loss[0] for one in each):.3f}",
                        f"{int((cells > WORSE).sum())} of {len(cells)}"
                        if kind == "each cell"
                        else "",
                        _mean([one.regret for one in each]),
                    ]


def _mean(each: Sequence[Array]) -> str:
    means = np.exp(np.log(np.array(each)).mean(axis=0))
    low, high = np.quantile(means[1:], (0.05, 0.95))
    return f"{means[0]:.2f} [{low:.2f}, {high:.2f}]"


def outside(
    runs: dict[Any, list[Run]], tables: Sequence[Probed], options: argparse.Namespace
) -> Iterator[list[str]]:
    """A row a cell whose optimum lies outside its bounds: what they hide, and the final loss of
    each sampler and arm, relative to the optimum's.
    """
    ways = [(sampler, arm) for sampler in options.samplers for arm in options.arms]
    names = [f"{sampler}, {arm}" for sampler, arm in ways]
    yield ["table", "cell", "optimum", "bounds", "best within", *names]
    for table in tables:
        for place, cell in enumerate(table.cells):
            found = table.bounds[place]
            lr, _, least = table.best(place)
            if found is None or found[0] <= lr <= found[1]:
                continue
            row = [table.name, " ".join(map(str, cell.values())), f"{lr:.2g}"]
            row += [f"{found[0]:.2g} to {found[1]:.2g}"]
            row += [f"{table.best_within(place, *found) / least:.2f}"]
            for sampler, arm in ways:
                mine = Played(table, runs[table.name, sampler, arm])
                end = mine.after(max(options.at) * len(table.cells))
                row.append(f"{np.median(mine.found[:, end, place]) / least:.2f}")
            yield row


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, one under another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=list(SETS), default="building")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--at", type=int, nargs="+", help="trials a cell; default: 4 and 8, alone 8 and 16"
    )
    parser.add_argument("--alone", action="store_true", help="each cell is a study of its own")
    parser.add_argument("--shift", type=float, default=0.0, help="decades")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="keep each run there")
    options = parser.parse_args(argv)
    options.at = options.at or ([8, 16] if options.alone else [4, 8])
    return options


def gathered(options: argparse.Namespace, tables: Sequence[Probed]) -> dict[Any, list[Run]]:
    """All runs that the options ask for, played or read."""
    wanted = [
        Run(table.name, sampler, arm, 0.0 if arm == "none" else options.shift, seed)
        for sampler in options.samplers
        for table in tables
        for arm in options.arms
        for seed in range(options.seeds)
    ]
    kept: dict[Any, Run] = {}
    if options.lines and options.lines.exists():
        for line in options.lines.read_text().splitlines():
            read = Run(**{**(data := json.loads(line)), "true": tuple(data["true"])})
            kept[read.key] = read
    missing = [run for run in wanted if run.key not in kept]
    per_cell = max(options.at)
    with ProcessPoolExecutor(options.jobs) if options.jobs > 1 else nullcontext() as pool:
        lengths = [per_cell] * len(missing)
        for run in (pool.map if pool else map)(played, missing, lengths):
            kept[run.key] = run
            if options.lines:
                with options.lines.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
    groups: dict[Any, list[Run]] = {}
    for run in wanted:
        groups.setdefault((run.table, run.sampler, run.arm), []).append(kept[run.key])
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    options.arms = ["none", *(arm for arm in options.arms if arm != "none")]
    tables = [TABLES[name] for name in options.tables or [t.name for t in SETS[options.set]]]
    if options.alone:
        tables = [cell for table in tables for cell in table.alone()]
    runs = gathered(options, tables)
    print(aligned(list(summaries(runs, tables, options))))
    cells = sum(len(table.cells) for table in tables)
    rows = list(outside(runs, tables, options))
    silent = sum(bounds is None for table in tables for bounds in table.bounds)
    print(f"\n{len(rows) - 1} of {cells} cells have their optimum outside; {silent} no bounds")
    print(aligned(rows))


if __name__ == "__main__":
    main()
