"""What the search was built on: seven synthetic problems with structure met in practice, and two
tables of real runs. What it was not built on is in `sets.py`.

Every constant of the synthetic ones (where the optimum is, how it moves, which cell is best) is
drawn from their `variant`: 0 is the one whose figures are published, others show whether a method
was fitted to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import optimize

from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.settings import sampler_settings
from tests.benchmarks.tables import TABLES, Table

Values: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[Values], float]


@dataclass(frozen=True)
class Problem:
    """A true loss over a grid and searched parameters; `optimum(cell)` is the least true loss in a
    cell.
    """

    name: str
    grid: tuple[Axis, ...]
    search: tuple[Searched, ...]
    loss: Loss
    optimum: Loss
    noise: float
    """Standard deviation of what is added to a loss, or of what its logarithm differs by, about,
    where `report` says what is observed.
    """
    report: Callable[[Values, float], float] | None = None
    """What a trial would report, given a draw from the standard normal distribution; None: the loss
    and `noise` times that draw.
    """
    kind: Literal["synthetic", "table", "random family"] = "synthetic"
    tame: bool = False
    """No configuration diverges."""
    resolution: float = 0.0
    """Regrets below count as this: where configurations are few, the best is found exactly, and the
    ratio of a regret to none would drown all others.
    """

    def observed(self, values: Values, normal: float) -> float:
        """What a trial would report, given a draw from the standard normal distribution."""
        if self.report:
            return self.report(values, normal)
        return self.loss(values) + self.noise * normal

    def spec(
        self,
        trials: int,
        seed: int,
        sampler: str,
        *,
        allocation: str = "uniform",
        per_cell: int = 1,
    ) -> StudySpec:
        """The problem as a study of ours."""
        return StudySpec(
            self.name,
            ("minimize",),
            ("loss",),
            {},
            {},
            self.grid,
            self.search,
            Budget(trials, per_cell),
            allocation=allocation,
            sampler=sampler_settings(sampler),
            seed=seed,
        )

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """The grid's cells by ordinal."""
        return list(self.spec(1, 0, "tpe").cells())

    @cached_property
    def optima(self) -> list[float]:
        """The least true loss of each cell."""
        return [self.optimum(cell) for cell in self.cells]


BATCH = Axis("batch", (32, 64, 128, 256))
WIDTH = Axis("width", (64, 128, 256))
NET = Axis("net", ("small", "large", "wide", "deep"))
DEPTH = Axis("depth", (2, 4))
LR = Searched("lr", "float", 1e-5, 1.0, log=True)
WD = Searched("wd", "float", 1e-6, 1e-1, log=True)
DROPOUT = Searched("dropout", "float", 0.0, 0.6)
ACT = Searched("act", "categorical", choices=("relu", "gelu", "tanh"))
WARMUP = Searched("warmup", "int", 0, 10)


@dataclass(frozen=True)
class Basin:
    """How loss rises around the best searched parameters, where it is 0; lr and wd are coupled by
    `tilt`.
    """

    lr: float
    wd: float
    dropout: float
    tilt: float
    warmup: int
    act: Mapping[str, float]

    @staticmethod
    def drawn(rng: np.random.Generator) -> Basin:
        """One with room to move its learning rate up by a decade and a half, and its dropout by
        0.2.
        """
        acts = dict(zip(rng.permutation(ACT.choices).tolist(), (0.0, 0.1, 0.25), strict=True))
        low, high = (-4.0, -5.0, 0.05, -0.4), (-2.2, -2.0, 0.35, 0.4)
        lr, wd, dropout, tilt = map(float, rng.uniform(low, high))
        return Basin(lr, wd, dropout, tilt, int(rng.integers(1, 9)), acts)

    def __call__(
        self, v: Values, *, decades: float = 0.0, dropout: float = 0.0, steep: float = 1.0
    ) -> float:
        """Loss where the best log10(lr) has moved by `decades`, the best dropout by `dropout`."""
        wd = math.log10(v["wd"]) - self.wd
        lr = math.log10(v["lr"]) - self.lr - decades + self.tilt * wd
        loss = (
            0.35 * steep * lr**2 + 0.06 * wd**2 + 2.0 * (v["dropout"] - self.dropout - dropout) ** 2
        )
        if "act" in v:
            loss += self.act[v["act"]]
        if "warmup" in v:
            loss += 0.004 * (v["warmup"] - self.warmup) ** 2
        return float(loss)


def _moving(rng: np.random.Generator) -> Problem:
    """The best learning rate grows with the batch size, the best dropout with the width."""
    basin, slope, best = (
        Basin.drawn(rng),
        float(rng.uniform(0.3, 0.5)),
        (int(rng.integers(4)), int(rng.integers(3))),
    )

    def offset(v: Values) -> float:
        return 0.05 * abs(math.log2(v["batch"] / 32) - best[0]) + 0.06 * abs(
            math.log2(v["width"] / 64) - best[1]
        )

    def loss(v: Values) -> float:
        decades, dropout = slope * math.log2(v["batch"] / 32), 0.1 * math.log2(v["width"] / 64)
        return offset(v) + basin(v, decades=decades, dropout=dropout)

    return Problem("moving", (BATCH, WIDTH), (LR, WD, DROPOUT, ACT), loss, offset, 0.01, tame=True)


def _diverging(rng: np.random.Generator) -> Problem:
    """The same without activations; above a learning rate not far over the best one training
    diverges.
    """
    basin, slope, margin = (
        Basin.drawn(rng),
        float(rng.uniform(0.3, 0.5)),
        float(rng.uniform(0.4, 0.8)),
    )

    def offset(v: Values) -> float:
        return 0.05 * abs(math.log2(v["batch"] / 64)) + 0.06 * abs(math.log2(v["width"] / 256))

    def loss(v: Values) -> float:
        decades = slope * math.log2(v["batch"] / 32)
        if math.log10(v["lr"]) > basin.lr + decades + margin:
            return 10.0
        return offset(v) + basin(v, decades=decades, dropout=0.1 * math.log2(v["width"] / 64))

    return Problem("diverging", (BATCH, WIDTH), (LR, WD, DROPOUT), loss, offset, 0.01)


def _backbone(rng: np.random.Generator) -> Problem:
    """Each backbone wants a learning rate of its own."""
    basin = Basin.drawn(rng)
    decades = dict(zip(NET.values, rng.uniform(-0.8, 1.8, 4), strict=True))
    height = dict(zip(NET.values, rng.permutation([0.0, 0.1, 0.15, 0.3]), strict=True))

    def offset(v: Values) -> float:
        return float(height[v["net"]] + 0.05 * (v["depth"] != 4))

    def loss(v: Values) -> float:
        return offset(v) + basin(v, decades=decades[v["net"]])

    return Problem("backbone", (NET, DEPTH), (LR, WD, DROPOUT, ACT), loss, offset, 0.01, tame=True)


def _unrelated(rng: np.random.Generator) -> Problem:
    """Cells have nothing in common: what is learnt in one misleads in another."""
    combinations = [(net, depth) for net in NET.values for depth in DEPTH.values]
    basins = {cell: Basin.drawn(rng) for cell in combinations}
    decades, heights = (
        rng.uniform(-0.8, 1.8, len(combinations)),
        rng.uniform(0.0, 0.5, len(combinations)),
    )
    drawn = {
        cell: (float(d), float(h))
        for cell, d, h in zip(combinations, decades, heights, strict=True)
    }

    def offset(v: Values) -> float:
        return drawn[v["net"], v["depth"]][1]

    def loss(v: Values) -> float:
        cell = (v["net"], v["depth"])
        return offset(v) + basins[cell](v, decades=drawn[cell][0])

    return Problem("unrelated", (NET, DEPTH), (LR, WD, DROPOUT, ACT), loss, offset, 0.01, tame=True)


def _flat(rng: np.random.Generator) -> Problem:
    """The grid makes no difference: sixteen cells are one."""
    basin, widths = Basin.drawn(rng), Axis("width", (64, 128, 256, 512))
    return Problem(
        "flat",
        (BATCH, widths),
        (LR, WD, DROPOUT, ACT, WARMUP),
        basin,
        lambda cell: 0.0,
        0.01,
        tame=True,
    )


def _deceptive(rng: np.random.Generator) -> Problem:
    """The best cell has a narrow basin away from the others' and looks worst at first."""
    basin, narrow = Basin.drawn(rng), (str(rng.choice(NET.values)), int(rng.choice(DEPTH.values)))
    heights = {
        (net, depth): float(rng.uniform(0.1, 0.35)) for net in NET.values for depth in DEPTH.values
    } | {narrow: 0.0}

    def offset(v: Values) -> float:
        return heights[v["net"], v["depth"]]

    def loss(v: Values) -> float:
        deceiving = (v["net"], v["depth"]) == narrow
        return offset(v) + (basin(v, decades=1.2, steep=4.0) if deceiving else basin(v))

    return Problem("deceptive", (NET, DEPTH), (LR, WD, DROPOUT, ACT), loss, offset, 0.01, tame=True)


_H_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_H_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann(rng: np.random.Generator) -> Problem:
    """Hartmann-6, multimodal; two of its coordinates are the grid."""
    a, b, *rest = (f"x{i}" for i in rng.permutation(6))
    levels = [
        tuple(float(level) for level in np.sort(rng.uniform(0.05, 0.95, n)).round(2))
        for n in (4, 3)
    ]

    def loss(v: Values) -> float:
        x = np.array([v[f"x{i}"] for i in range(6)])
        return float(
            -np.exp(-(_H_A * (x - _H_P) ** 2).sum(axis=1)) @ np.array([1.0, 1.2, 3.0, 3.2])
        )

    def optimum(cell: Values) -> float:
        def at(x: Any) -> float:
            return loss({**cell, **dict(zip(rest, x, strict=True))})

        starts = np.random.default_rng(0).random((20, 4))
        return min(float(optimize.minimize(at, start, bounds=[(0, 1)] * 4).fun) for start in starts)

    search = tuple(Searched(path, "float", 0.0, 1.0) for path in rest)
    return Problem(
        "hartmann", (Axis(a, levels[0]), Axis(b, levels[1])), search, loss, optimum, 0.02, tame=True
    )


_SYNTHETIC = (_moving, _diverging, _backbone, _unrelated, _flat, _deceptive, _hartmann)
PROBLEMS = tuple(make.__name__[1:] for make in _SYNTHETIC) + tuple(table.name for table in TABLES)
"""Names of all problems."""


@cache
def problem(name: str, variant: int = 0) -> Problem:
    """The problem of that name; tables have no variants."""
    for place, make in enumerate(_SYNTHETIC):
        if make.__name__[1:] == name:
            return make(np.random.default_rng([variant, place]))
    return measured(next(table for table in TABLES if table.name == name))


def measured(table: Table) -> Problem:
    """A table as a problem."""
    return Problem(
        table.name,
        table.grid,
        table.search,
        table.loss,
        table.optimum,
        table.noise,
        report=table.observed,
        kind="table",
        tame=table.tame,
        resolution=table.resolution,
    )
