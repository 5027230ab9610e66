"""How many trials the rules of `stop_when` save, and what that costs.

Whole runs are played once and kept; then each rule is asked after every trial of each run when it
would have ended the study. Regret is that of the configuration that is believed to be the best, at
the end by the rule and at the end of the budget. Two figures say what ending early adds:

- *regret*: the sum over runs of the regret at the early end over the sum of the final regret, each
  in units of the spread (from the lower to the upper quartile) of its problem's losses. It asks
  what is lost on average.
- *ratio*: the geometric mean over problems of the ratio of medians over seeds, as in `regret.py`.
  It counts a regret that falls from 0.0002 to 0.0001 as much as one that falls from 0.2 to 0.1.

``trials=N`` are studies with a smaller budget, to compare with. Each problem is run with and
without noise. The rules and the suggestion of the documentation were chosen on the building set;
the frozen one has only been looked at (`sets.py`). Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/stopping.py --seeds 4 --jobs 2 --runs /tmp/runs.jsonl
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import optuna

from orchestrator.model import TrialNews
from orchestrator.search import Search
from orchestrator.search.space import parameters
from orchestrator.search.trials.threads import one_thread
from orchestrator.settings import StopSettings
from tests.benchmarks.methods import METHODS
from tests.benchmarks.sets import SETS, problem

Key: TypeAlias = tuple[str, str, bool, int]
"""Method, problem, whether it is noisy, seed."""
Rows: TypeAlias = list[tuple[Mapping[str, Any], float, float]]
"""Values, true loss and observed loss of each trial."""
LEAST = 1e-5
"""Regrets below count as this, as in `regret.py`."""
RULES: Mapping[str, StopSettings] = {
    **{f"gain={share}%": StopSettings(gain=f"{share}%") for share in (0.3, 0.5, 1, 2, 3)},
    **{f"patience={n}": StopSettings(patience=n) for n in (20, 30, 40)},
    **{f"p={p}": StopSettings(p=p) for p in (0.9, 0.95, 0.99)},
}
SMALLER = (60, 84, 96)


def play(key: Key, trials: int) -> Rows:
    """One whole run."""
    quiet()
    method, name, noisy, seed = key
    task = problem(name)
    rows: Rows = []
    tuner = METHODS[method].make(task, trials, seed)
    normal = np.random.default_rng([seed, 0]).standard_normal(trials)
    for number in range(trials):
        values = tuner.ask(number)
        true = task.loss(values)
        seen = task.observed(values, float(normal[number])) if noisy else true
        tuner.tell(number, seen)
        rows.append((dict(values), true, seen))
    return rows


def judge(key: Key, rows: Rows, rules: Sequence[str]) -> dict[str, Any]:
    """After how many trials each of the rules ends the run, and the regret then."""
    quiet()
    _, name, _, seed = key
    task, trials = problem(name), len(rows)
    spec = replace(task.spec(trials, seed, "tpe"), stop_when=StopSettings(gain="1%"))
    search, space = Search(spec), parameters(spec)
    cells = list(enumerate(task.cells))
    ordinals = {json.dumps(values): ordinal for ordinal, values in cells}
    judges = {rule: replace(search._enough, settings=RULES[rule]) for rule in rules}
    ends = {f"trials={n}": n for n in SMALLER if n < trials}
    regrets: dict[int, float] = {}
    for number, (values, _, seen) in enumerate(rows):
        params = tuple(p.param(p.internal(values[path])) for path, p in space.items())
        cell = ordinals[json.dumps({axis.path: values[axis.path] for axis in spec.grid})]
        search.feed([TrialNews(number, "COMPLETE", params, (seen,), cell=cell)])
        n = number + 1
        if len(cells) <= n < trials:
            model, likely = search._model(), list(range(len(cells)))
            with one_thread():
                history = model.finished(search._mirror)
                for rule, one in judges.items():
                    if rule not in ends and one.reasons(model, history, cells, likely):
                        ends[rule] = n
        if n in ends.values() or n == trials:
            leaders = search.leaders()
            best = min(range(n), key=lambda k: rows[k][2])
            if leaders is not None:
                best = leaders.best.trials[0]
            regrets[n] = max(rows[best][1] - min(task.optima), task.resolution, LEAST)
    low, high = np.quantile([true for _, true, _ in rows], (0.25, 0.75))
    every = [*rules, *(f"trials={n}" for n in SMALLER if n < trials)]
    return {
        "ends": {rule: ends.get(rule, trials) for rule in every},
        "regrets": {rule: regrets[ends.get(rule, trials)] for rule in every},
        "final": regrets[trials],
        "spread": float(high - low),
        "trials": trials,
    }


def figures(rule: str, runs: Mapping[Key, dict[str, Any]]) -> list[str]:
    """Trials saved, studies ended early, and what that adds to the regret, for some runs."""
    early = np.array([run["regrets"][rule] for run in runs.values()])
    final = np.array([run["final"] for run in runs.values()])
    saved = np.array([1.0 - run["ends"][rule] / run["trials"] for run in runs.values()])
    names = np.array([f"{name} {noisy}" for _, name, noisy, _ in runs])
    spread = np.array([run["spread"] for run in runs.values()])
    ratios = []
    for name in np.unique(names):
        mine = names == name
        spread[mine] = np.median(spread[mine])
        ratios.append(np.log(np.median(early[mine]) / np.median(final[mine])))
    share = (early / spread).sum() / (final / spread).sum()
    ratio = np.exp(np.mean(ratios))
    return [f"{saved.mean():.2f}", f"{(saved > 0).mean():.2f}", f"{share:.3f}", f"{ratio:.2f}"]


def tables(runs: Mapping[Key, dict[str, Any]]) -> str:
    """A table a set of problems: everything, and without and with noise alone."""
    lines = []
    for title, names in SETS.items():
        mine = {key: run for key, run in runs.items() if key[1] in names}
        if not mine:
            continue
        seeds = len({seed for *_, seed in mine})
        lines.append(
            f"\n{title}: {len(mine)} runs, {seeds} seeds; saved, ended early, regret, ratio"
        )
        parts = {
            "all": mine,
            "no noise": {key: run for key, run in mine.items() if not key[2]},
            "noise": {key: run for key, run in mine.items() if key[2]},
        }
        rows = [["rule", *(title for title in parts for _ in range(4))]]
        for rule in next(iter(mine.values()))["ends"]:
            rows.append([rule, *(f for part in parts.values() for f in figures(rule, part))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)


def quiet() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--method", choices=[m for m in METHODS if m.startswith("hybrid")], default="hybrid-tpe"
    )
    parser.add_argument("--problems", nargs="*", help="default: all of both sets")
    parser.add_argument("--rules", nargs="*", choices=list(RULES), default=list(RULES))
    parser.add_argument("--runs", type=Path, required=True, help="keeps the runs, a line each")
    parser.add_argument("--json", type=Path, help="writes when each rule ends each run there")
    options = parser.parse_args(argv)
    names = options.problems or [name for names in SETS.values() for name in names]
    wanted: list[Key] = [
        (options.method, name, noisy, seed)
        for seed in range(options.seeds)
        for name in names
        for noisy in (False, True)
    ]
    kept: dict[Key, Rows] = {}
    for line in options.runs.read_text().splitlines() if options.runs.exists() else ():
        (method, name, noisy, seed), rows = json.loads(line)
        if len(rows) == options.trials:
            kept[method, name, bool(noisy), seed] = rows
    for name in names:
        _ = problem(name).optima  # found once, before processes are forked
    missing = [key for key in wanted if key not in kept]
    with ProcessPoolExecutor(options.jobs) as pool:
        played = pool.map(play, missing, [options.trials] * len(missing))
        for key, rows in zip(missing, played, strict=True):
            kept[key] = rows
            with options.runs.open("a") as file:
                file.write(json.dumps([key, rows]) + "\n")
        each = [kept[key] for key in wanted]
        found = pool.map(judge, wanted, each, [options.rules] * len(wanted))
        judged = dict(zip(wanted, found, strict=True))
    print(tables(judged))
    if options.json:
        options.json.write_text(json.dumps([[*key, run] for key, run in judged.items()], indent=1))


if __name__ == "__main__":
    main()
