"""Tables of real trainings whose learning rate is searched in as wide a range as beginners write,
1e-6 to 10, each cell with what a learning-rate range test found there.

A file of ``data`` holds the validation losses of every training: cells, 22 learning rates, four
values of a second parameter, three seeds. The true loss in between is that of a monotone cubic in
the logarithm of their mean (in the learning rate) and a line (in the other). Noise is as strong as
the seeds differ there. `BUILDING` is what soft bounds were chosen on; `HELD_OUT` are other networks
and optimisers on other data (on the digits again, but convolutions), searched once, when everything
was chosen. `make_probes.py` trains them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from orchestrator.model import Axis, Searched, StudySpec
from tests.benchmarks.problems import Problem
from tests.benchmarks.tables import DATA, Array

FILE = DATA / "probes.npz"
BOUNDS = DATA / "probes-bounds.npz"
LR = Searched("lr", "float", 1e-6, 10.0, log=True)
LRS = np.logspace(-6.0, 1.0, 22)
SEEDS = 3
FINE = 701
"""Learning rates of the refined table, a hundredth of a decade apart."""
OTHERS = 61
"""Values of the second parameter in the refined table."""


@dataclass(frozen=True)
class Probed:
    """A table: a grid, the learning rate, and a second searched parameter."""

    name: str
    grid: tuple[Axis, ...]
    other: Searched
    others: tuple[float, ...]
    """Values of the second parameter that were trained, from its low to its high."""
    default: float
    """Its value in the probe, which is what people write who do not search it."""
    steps: int
    """Of one training."""

    @property
    def search(self) -> tuple[Searched, ...]:
        """The searched parameters."""
        return (LR, self.other)

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """In the order of a study's cells, and of the file."""
        return list(StudySpec("", ("minimize",), (), {}, {}, self.grid, (), None).cells())  # type: ignore[arg-type]

    @cached_property
    def losses(self) -> Array:
        """Of all trainings; shape (cells, learning rates, others, seeds)."""
        return self._part(FILE, "losses")

    @cached_property
    def bounds(self) -> list[tuple[float, float] | None]:
        """What the probe of each cell found; None where its curve said nothing."""
        return [
            None if math.isnan(low) else (float(low), float(high))
            for low, high in self._part(BOUNDS, "bounds")
        ]

    @cached_property
    def probe_steps(self) -> list[int]:
        """What the probe of each cell cost."""
        return [int(steps) for steps in self._part(BOUNDS, "probe_steps")]

    def _part(self, path: Path, name: str) -> Array:
        table, _, place = self.name.partition("#")
        with np.load(path) as file:
            part = np.asarray(file[f"{table}.{name}"], dtype=float)
        return part[int(place) : int(place) + 1] if place else part

    def alone(self) -> list[Probed]:
        """Each cell as a table of its own."""
        return [
            replace(
                self,
                name=f"{self.name}#{place}",
                grid=tuple(Axis(axis.path, (cell[axis.path],)) for axis in self.grid),
            )
            for place, cell in enumerate(self.cells)
        ]

    @cached_property
    def refined(self) -> tuple[Array, Array]:
        """Logarithms of true losses, and standard deviations of the noise of those; shape (cells,
        FINE, OTHERS).
        """
        logs = np.log(self.losses)
        means, spreads = logs.mean(axis=3), logs.std(axis=3, ddof=1)
        return self._between(means, PchipInterpolator), self._between(spreads, _Linear)

    def _between(self, nodes: Array, of_lr: Any) -> Array:
        at = np.linspace(-6.0, 1.0, FINE)
        fine = of_lr(np.log10(LRS), nodes, axis=1)(at)
        places = _scaled(self.other, np.array(self.others))
        result: Array = _Linear(places, fine, axis=2)(np.linspace(0.0, 1.0, OTHERS))
        return result

    def _place(self, values: Mapping[str, Any]) -> tuple[int, float, float]:
        cell = self.cells.index({axis.path: values[axis.path] for axis in self.grid})
        lr = (math.log10(values["lr"]) + 6.0) / 7.0 * (FINE - 1)
        other = float(_scaled(self.other, np.array(values[self.other.path]))) * (OTHERS - 1)
        return cell, lr, other

    def loss(self, values: Mapping[str, Any]) -> float:
        """The true loss of one configuration."""
        return math.exp(_bilinear(self.refined[0], *self._place(values)))

    def observed(self, values: Mapping[str, Any], normal: float) -> float:
        """What a training would report, given a draw from the standard normal distribution."""
        place = self._place(values)
        log, spread = (_bilinear(part, *place) for part in self.refined)
        return math.exp(log + spread * normal)

    def best(self, cell: int) -> tuple[float, float, float]:
        """Learning rate, other value and loss of the optimum of a cell."""
        table = self.refined[0][cell]
        lr, other = np.unravel_index(int(table.argmin()), table.shape)
        at = float(np.linspace(0.0, 1.0, OTHERS)[other])
        low, high = float(self.other.low or 0.0), float(self.other.high or 0.0)
        value = low * (high / low) ** at if self.other.log else low + at * (high - low)
        return float(np.logspace(-6.0, 1.0, FINE)[lr]), value, float(np.exp(table[lr, other]))

    def best_within(self, cell: int, low: float, high: float) -> float:
        """The least true loss of a cell between two learning rates."""
        lrs = np.logspace(-6.0, 1.0, FINE)
        return float(np.exp(self.refined[0][cell][(lrs >= low) & (lrs <= high)].min()))

    def problem(self) -> Problem:
        """As the benchmarks play it."""
        optimum = {i: self.best(i)[2] for i in range(len(self.cells))}
        return Problem(
            self.name,
            self.grid,
            self.search,
            self.loss,
            lambda cell: optimum[self.cells.index(dict(cell))],
            0.0,
            report=self.observed,
            kind="table",
        )


class _Linear:
    """Lines between nodes along an axis."""

    def __init__(self, x: Array, y: Array, axis: int) -> None:
        self._x, self._y, self._axis = x, np.moveaxis(y, axis, -1), axis

    def __call__(self, at: Array) -> Array:
        right = np.clip(np.searchsorted(self._x, at), 1, len(self._x) - 1)
        share = (at - self._x[right - 1]) / (self._x[right] - self._x[right - 1])
        found = self._y[..., right - 1] * (1.0 - share) + self._y[..., right] * share
        return np.moveaxis(found, -1, self._axis)


def _scaled(item: Searched, values: Array) -> Array:
    """From 0 to 1 along the parameter's scale."""
    low, high = float(item.low or 0.0), float(item.high or 0.0)
    result: Array = (
        np.log(values / low) / math.log(high / low) if item.log else (values - low) / (high - low)
    )
    return result


def _bilinear(table: Array, cell: int, row: float, column: float) -> float:
    i, j = min(int(row), FINE - 2), min(int(column), OTHERS - 2)
    u, v = row - i, column - j
    part = table[cell, i : i + 2, j : j + 2]
    return float(np.array([1.0 - u, u]) @ part @ np.array([1.0 - v, v]))


MOMENTUM = Searched("momentum", "float", 0.0, 0.98)
WD = Searched("wd", "float", 1e-5, 1.0, log=True)
DROPOUT = Searched("dropout", "float", 0.0, 0.6)
MOMENTA, DECAYS, DROPOUTS = (0.0, 0.5, 0.9, 0.98), (1e-5, 1e-3, 1e-1, 1.0), (0.0, 0.2, 0.4, 0.6)

BUILDING: tuple[Probed, ...] = (
    Probed(
        "digits-sgd",
        (Axis("batch", (16, 64, 512)), Axis("norm", ("none", "batch"))),
        MOMENTUM,
        MOMENTA,
        0.9,
        500,
    ),
    Probed(
        "cancer-adamw",
        (Axis("batch", (16, 64, 256)), Axis("width", (8, 32))),
        WD,
        DECAYS,
        1e-2,
        400,
    ),
    Probed(
        "clusters",
        (Axis("batch", (16, 128, 512)), Axis("optimizer", ("sgd", "adamw"))),
        DROPOUT,
        DROPOUTS,
        0.2,
        500,
    ),
    Probed(
        "spirals",
        (Axis("batch", (16, 64, 256)), Axis("depth", (1, 3))),
        MOMENTUM,
        MOMENTA,
        0.9,
        600,
    ),
)

HELD_OUT: tuple[Probed, ...] = (
    Probed(
        "wine-adamw",
        (Axis("batch", (16, 32, 64)), Axis("activation", ("relu", "tanh"))),
        WD,
        DECAYS,
        1e-2,
        400,
    ),
    Probed(
        "digits-cnn",
        (Axis("batch", (16, 64, 256)), Axis("schedule", ("constant", "cosine"))),
        WD,
        DECAYS,
        1e-3,
        300,
    ),
    Probed(
        "friedman-layernorm",
        (Axis("batch", (16, 64, 256)), Axis("optimizer", ("adamw", "sgd"))),
        DROPOUT,
        DROPOUTS,
        0.2,
        300,
    ),
    Probed(
        "diabetes-rmsprop",
        (Axis("batch", (16, 64, 256)), Axis("width", (8, 64))),
        MOMENTUM,
        MOMENTA,
        0.0,
        400,
    ),
    Probed(
        "imbalanced-gelu",
        (Axis("batch", (16, 128, 512)), Axis("width", (16, 48))),
        MOMENTUM,
        MOMENTA,
        0.9,
        500,
    ),
)
