"""The ways of spending a study's trials that the benchmarks compare, each asked and told like the
others.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from orchestrator.model import Suggestion, TrialNews
from orchestrator.search import Search, Slices, distributions
from orchestrator.worker.pace import Pace
from tests.benchmarks.problems import Problem, Values

PER_CELL = 2
"""Trials that adaptive allocation guarantees to every cell."""
CONFIRMING = 0.1
"""The share of the trials that confirm, in the methods that do."""

MEDIAN_S, SPREAD = 2.0, 0.3
"""Median duration of the trials of several workers, and the standard deviation of its logarithm."""
PREPARING_S = 0.06
"""How long it takes to prepare a trial: enough that trials of the median duration are
prepared for.
"""

Row = tuple[Values, float]
Belief = tuple[float, float, float]
"""About a cell's optimum: the ends of a 90 % interval, and the probability that no other cell's is
better.
"""


@dataclass(frozen=True)
class Said:
    """What a tuner says: the numbers of the trials that it reports as the best, and as the best of
    each cell, and what it believes of each cell. None, or nothing: the one with the best value.
    """

    best: int | None = None
    each: Sequence[int | None] = ()
    beliefs: Sequence[Belief | None] = ()


@dataclass(frozen=True)
class Reported:
    """The same with the trials themselves."""

    best: Row | None = None
    each: Sequence[Row | None] = ()
    beliefs: Sequence[Belief | None] = ()


class Tuner(Protocol):
    """Suggests values for trial after trial."""

    def ask(self, number: int) -> Values:
        """Values of a new trial, counted from 0; it runs until it is told of."""

    def tell(self, number: int, value: float) -> None:
        """The trial ended with that loss."""

    def reported(self) -> Said:
        """By what it was told so far."""


class Ours:
    """`orchestrator.search.Search`: every cell's first share, then every cell's second; adaptive
    chooses cells afterwards.
    """

    def __init__(
        self,
        problem: Problem,
        trials: int,
        seed: int,
        sampler: str,
        *,
        adaptive: bool = False,
        confirm: bool = False,
    ) -> None:
        allocation = "adaptive" if adaptive else "uniform"
        self._search = Search(
            problem.spec(trials, seed, sampler, allocation=allocation, per_cell=PER_CELL)
        )
        self._cells = problem.cells
        self._shares = PER_CELL * len(self._cells) if adaptive else trials
        self._confirming = trials - int(CONFIRMING * trials) if confirm else trials
        self._asked: dict[int, tuple[int, Suggestion]] = {}
        self._values: list[Values] = []

    def ask(self, number: int) -> Values:
        cell, given = self._chosen(number)
        asked = self._search.ask(self._cells[cell], ticket=number, retry=0, given=given)
        self._values.append(asked.values)
        self._asked[number] = (cell, asked)
        self._search.feed(
            [TrialNews(number, "RUNNING", asked.params, system_attrs=asked.system_attrs, cell=cell)]
        )
        return asked.values

    def _chosen(self, number: int) -> tuple[int, Values]:
        """The cell of a new trial, and the values that it repeats."""
        cells = list(enumerate(self._cells))
        if number >= self._confirming:
            repeated = self._search.confirm(cells, ticket=number, retry=0)
            if repeated is not None:
                cell, of, _ = repeated
                values = self._values[of].items()
                return cell, {path: v for path, v in values if path not in self._cells[cell]}
        if number >= self._shares:
            return self._search.choose_cell(cells, ticket=number, retry=0)[0], {}
        return number % len(cells), {}

    def reported(self) -> Said:
        leaders, each = self._search.leaders(), self._search.summary(self._cells)
        return Said(
            None if leaders is None else leaders.best.trials[0],
            [None if e is None else e.trial for e in each],
            [None if e is None else (e.low, e.high, e.probability_best) for e in each],
        )

    def slices(self) -> Slices:
        """What is believed along the searched parameters of the best cells."""
        return self._search.slices(self._cells, self._search.summary(self._cells))

    def tell(self, number: int, value: float) -> None:
        cell, asked = self._asked.pop(number)
        news = TrialNews(
            number, "COMPLETE", asked.params, (value,), system_attrs=asked.system_attrs, cell=cell
        )
        self._search.feed([news])


class Plain:
    """One Optuna study over everything; grid axes are categories, or (`ordered`) the numeric ones
    are integers: their ranks.
    """

    def __init__(
        self, problem: Problem, sampler: optuna.samplers.BaseSampler, *, ordered: bool = False
    ) -> None:
        self.study = optuna.create_study(sampler=sampler)
        self._axes = {axis.path: axis.values for axis in problem.grid}
        self._space: dict[str, BaseDistribution] = dict(distributions(problem.spec(1, 0, "tpe")))
        for path, values in self._axes.items():
            rank = ordered and not isinstance(values[0], str)
            self._space[path] = (
                IntDistribution(0, len(values) - 1)
                if rank
                else CategoricalDistribution(range(len(values)))
            )
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self, number: int) -> Values:
        trial = self._trials[number] = self.study.ask(self._space)
        return trial.params | {
            path: values[trial.params[path]] for path, values in self._axes.items()
        }

    def tell(self, number: int, value: float) -> None:
        self.study.tell(self._trials.pop(number), value)

    def reported(self) -> Said:
        return Said()


class Apart:
    """One Optuna study a cell, each in its turn."""

    def __init__(
        self, problem: Problem, make: Callable[[int], optuna.samplers.BaseSampler]
    ) -> None:
        self._cells = problem.cells
        grid = {axis.path for axis in problem.grid}
        self._space = {
            path: d
            for path, d in distributions(problem.spec(1, 0, "tpe")).items()
            if path not in grid
        }
        self._studies = [
            optuna.create_study(sampler=make(place)) for place in range(len(self._cells))
        ]
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self, number: int) -> Values:
        place = number % len(self._cells)
        trial = self._trials[number] = self._studies[place].ask(self._space)
        return self._cells[place] | trial.params

    def tell(self, number: int, value: float) -> None:
        self._studies[number % len(self._cells)].tell(self._trials.pop(number), value)

    def reported(self) -> Said:
        return Said()


@dataclass(frozen=True)
class Method:
    """How to make a tuner for a problem, a number of trials and a seed; none spends trials
    otherwise where more are to come.
    """

    make: Callable[[Problem, int, int], Tuner]
    slow: bool = False


def _ours(sampler: str, *, adaptive: bool = False, confirm: bool = False) -> Method:
    return Method(
        lambda p, trials, seed: Ours(p, trials, seed, sampler, adaptive=adaptive, confirm=confirm)
    )


_TPE, _GP = optuna.samplers.TPESampler, optuna.samplers.GPSampler
YARDSTICK, APART = "plain-tpe", "tpe-per-cell"
METHODS: dict[str, Method] = {
    YARDSTICK: Method(lambda p, trials, seed: Plain(p, _TPE(seed=seed))),
    APART: Method(lambda p, trials, seed: Apart(p, lambda place: _TPE(seed=1000 * seed + place))),
    "plain-tpe-ordered": Method(lambda p, trials, seed: Plain(p, _TPE(seed=seed), ordered=True)),
    "random": Method(lambda p, trials, seed: Plain(p, optuna.samplers.RandomSampler(seed=seed))),
    "plain-gp": Method(lambda p, trials, seed: Plain(p, _GP(seed=seed)), slow=True),
    "plain-gp-ordered": Method(
        lambda p, trials, seed: Plain(p, _GP(seed=seed), ordered=True), slow=True
    ),
    **{f"hybrid-{name}": _ours(name) for name in ("gp", "tpe", "random", "qmc")},
    **{
        f"hybrid-{name}-adaptive": _ours(name, adaptive=True)
        for name in ("gp", "tpe", "random", "qmc")
    },
    **{
        f"hybrid-{name}-adaptive-confirm": _ours(name, adaptive=True, confirm=True)
        for name in ("gp", "tpe")
    },
}


def play(
    problem: Problem,
    tuner: Tuner,
    trials: int,
    seed: int,
    workers: int = 1,
    ahead: int = 0,
    at: Sequence[int] = (),
) -> tuple[list[Row], float, dict[int, Reported]]:
    """Spends the trials; the rows in the order in which trials ended, the seconds of processor time
    that the tuner took, and what it reported once so many trials as in `at` had ended.

    With more than one worker every ask finds the other workers' trials running. How long a trial
    takes is drawn from a log-normal distribution. With `ahead` a worker asks for its next trial
    while one runs, when the trials before tell it to (`orchestrator.pace`, preparing takes
    `PREPARING_S`): the other workers know of it, and it does not know of what ends until it begins.
    """
    normal = np.random.default_rng([seed, 0]).standard_normal(trials)
    lasts = np.random.default_rng([seed, 1]).lognormal(math.log(MEDIAN_S), SPREAD, trials)
    rows: list[Row] = []
    of_number: dict[int, Row] = {}
    reported: dict[int, Reported] = {}
    spent, numbers = 0.0, iter(range(trials))
    paces = [Pace() for _ in range(workers)]
    running: list[tuple[int, Values] | None] = [None] * workers
    prepared: list[tuple[int, Values] | None] = [None] * workers
    # when, of which worker, which trial, whether it ends
    events: list[tuple[float, int, int, bool]] = []

    def ask() -> tuple[int, Values] | None:
        nonlocal spent
        number = next(numbers, None)
        if number is None:
            return None
        before = time.process_time()
        values = tuner.ask(number)
        spent += time.process_time() - before
        return number, values

    def begin(worker: int, now: float) -> None:
        running[worker], prepared[worker] = prepared[worker] or ask(), None
        begun = running[worker]
        if begun is None:
            return
        number, pace = begun[0], paces[worker]
        heapq.heappush(events, (now + lasts[number], worker, number, True))
        pace.prepared(PREPARING_S)
        prepare_at = pace.prepare_at() if ahead else None
        if prepare_at is not None and prepare_at < lasts[number]:
            heapq.heappush(events, (now + prepare_at, worker, number, False))

    for worker in range(workers):
        begin(worker, 0.0)
    while events:
        now, worker, number, ends = heapq.heappop(events)
        if not ends:
            prepared[worker] = ask()
            continue
        ended = running[worker]
        assert ended is not None
        value = problem.observed(ended[1], float(normal[number]))
        rows.append((ended[1], value))
        of_number[number] = rows[-1]
        before = time.process_time()
        tuner.tell(number, value)
        spent += time.process_time() - before
        if len(rows) in at:
            said = tuner.reported()
            reported[len(rows)] = Reported(
                None if said.best is None else of_number[said.best],
                [None if n is None else of_number[n] for n in said.each],
                said.beliefs,
            )
        paces[worker].ran(float(lasts[number]))
        begin(worker, now)
    return rows, spent, reported
