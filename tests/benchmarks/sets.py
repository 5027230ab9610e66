"""The two sets of problems that methods are compared on: `building`, on which the search was built,
so that its figures flatter, and `frozen`, on which nothing was tuned or chosen.

A frozen problem never changes: whoever wants another one, or must mend one, makes a new set, with a
new name and a hash of its own, rather than edit it. `FROZEN_SHA256` is compared with `digest` by a
test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from tests.benchmarks import problems
from tests.benchmarks.frozen import FAMILIES, OPTIMA, family
from tests.benchmarks.problems import Problem, measured
from tests.benchmarks.space import from_unit
from tests.benchmarks.tables import FROZEN_TABLES

SETS: Mapping[str, tuple[str, ...]] = {
    "building": problems.PROBLEMS,
    "frozen": (*FAMILIES, *(table.name for table in FROZEN_TABLES)),
}
"""Names of the problems of each set; no name is in both."""

FROZEN_SHA256 = "9e53d5f831aeb4470e1ebc477b3b587133961c4723b5fa81d4ef938655255920"
PROBES = 48
"""Configurations of each problem whose losses are hashed."""
NORMALS = (-2.3, -0.7, 0.2, 1.6)
"""Draws from the standard normal distribution with which each of them is observed."""


@cache
def problem(name: str, variant: int = 0) -> Problem:
    """The problem of that name, of either set; tables have no variants, and only variant 0 of a
    random family is frozen.
    """
    if name in problems.PROBLEMS:
        return problems.problem(name, variant)
    if name in FAMILIES:
        return family(name, variant)
    return measured(next(table for table in FROZEN_TABLES if table.name == name))


def subsets(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The parts of some problems whose figures are worth telling apart, by name: neither empty nor
    all of them.
    """
    tasks = [problem(name) for name in names]
    parts = {
        "tables": [task.name for task in tasks if task.kind == "table"],
        "tame": [task.name for task in tasks if task.tame],
        "random families": [task.name for task in tasks if task.kind == "random family"],
    }
    return {title: part for title, part in parts.items() if 0 < len(part) < len(tasks)}


def digest() -> str:
    """SHA-256 of the frozen set: its files, and each problem's space, optima, and losses and
    observations at fixed configurations, to six significant digits, so that the last bits of
    floating-point numbers do not matter.
    """
    sha = hashlib.sha256()
    for path in (OPTIMA, *(table.path for table in FROZEN_TABLES)):
        sha.update(path.read_bytes())
    for name in SETS["frozen"]:
        for part in _facts(problem(name)):
            sha.update(json.dumps(part).encode() + b"\n")
    return sha.hexdigest()


def _facts(task: Problem) -> Iterator[Any]:
    yield task.name, task.kind, task.tame, task.resolution
    yield from ((axis.path, axis.values) for axis in task.grid)
    for item in task.search:
        yield item.path, item.kind, item.low, item.high, item.step, item.log, item.choices
    yield [f"{least:.5e}" for least in task.optima]
    unit = np.random.RandomState(0).uniform(size=(PROBES, len(task.search)))
    for number, searched in enumerate(from_unit(task.search, unit)):
        values = task.cells[number % len(task.cells)] | searched
        seen = (task.loss(values), *(task.observed(values, normal) for normal in NORMALS))
        yield [f"{value:.5e}" for value in seen]
