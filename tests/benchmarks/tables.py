"""Problems measured on real training runs.

Each file in ``data`` holds the runs themselves (a quasi-random design over cells and searched
parameters, validation loss after training) and what answers for values in between: an ensemble of
small networks fitted to the logarithm of the loss less a floor, nine tenths of the least loss seen,
so that no answer is far better than any run (`explained` is the share of the variance it explains
in runs it was not fitted to). The ensemble is the problem's true loss. The best loss of each cell,
found by dense search of the ensemble, is in the file too.

The tables that the search was built on (`TABLES`, trained by `make_tables.py`) are small networks
on scikit-learn's digits and breast-cancer data. Noise multiplies their loss, as strong as the
spread between two trainings of one good configuration.

`FROZEN_TABLES` (trained by `make_frozen.py`) are other models on other data, each configuration
trained with several seeds; noise is drawn from what the seeds made of it. They belong to the frozen
set: whoever changes one makes a new set instead (`sets.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.model import Axis, Searched, StudySpec

Array = npt.NDArray[np.float64]
DATA = Path(__file__).parent / "data"
MEMBERS = 4
NEIGHBORS = 8
"""Configurations whose trainings the noise of a `SeededTable` is drawn from."""

_LR = Searched("lr", "float", 1e-5, 1.0, log=True)
_WD = Searched("wd", "float", 1e-6, 1.0, log=True)
_DROPOUT = Searched("dropout", "float", 0.0, 0.8)
_ACT = Searched("act", "categorical", choices=("relu", "gelu", "tanh"))


@dataclass(frozen=True)
class Table:
    """A grid and a search whose losses come from a file of ``data``."""

    name: str
    grid: tuple[Axis, ...]
    search: tuple[Searched, ...]
    tame: bool = False
    """No configuration diverges: none is much worse than a model that has learnt nothing."""
    resolution: float = 0.0
    """Regrets below count as this (`problems.Problem`)."""

    @property
    def path(self) -> Path:
        """Where the runs and the fitted ensemble are."""
        return DATA / f"{self.name}.npz"

    @cached_property
    def stored(self) -> Mapping[str, Any]:
        """The arrays of the file; see `make_tables.py` for their names."""
        with np.load(self.path) as file:
            return {key: file[key].astype(float) for key in file.files}

    def loss(self, values: Mapping[str, Any]) -> float:
        """The true loss of one configuration."""
        return float(losses(self.stored, self.features([values]))[0])

    def observed(self, values: Mapping[str, Any], normal: float) -> float:
        """What a training would report, given a draw from the standard normal distribution."""
        return self.loss(values) * math.exp(self.noise * normal)

    def optimum(self, cell: Mapping[str, Any]) -> float:
        """The least true loss in a cell."""
        return float(self.stored["optimum"][self.cells().index(dict(cell))])

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of the loss between trainings of one good
        configuration.
        """
        return float(self.stored["noise"])

    def cells(self) -> list[dict[str, Any]]:
        """The combinations of the grid's values, in the order of a study's cells."""
        return list(StudySpec("", ("minimize",), (), {}, {}, self.grid, (), None).cells())  # type: ignore[arg-type]

    def features(self, configurations: Sequence[Mapping[str, Any]]) -> Array:
        """Inputs of the ensemble, a row a configuration: numbers on [-1, 1] along their scale,
        categories one-hot.
        """
        parts = []
        for axis in self.grid:
            column = [c[axis.path] for c in configurations]
            numeric = not isinstance(axis.values[0], str)
            parts.append(
                _scaled(column, axis.values[0], axis.values[-1], True)
                if numeric
                else _one_hot(column, axis.values)
            )
        for item in self.search:
            column = [c[item.path] for c in configurations]
            parts.append(
                _one_hot(column, item.choices)
                if item.choices
                else _scaled(column, item.low, item.high, item.log)
            )
        return np.hstack(parts)


@dataclass(frozen=True)
class SeededTable(Table):
    """A table whose noise comes from recorded seeds: the logarithm of an observed loss differs from
    that of the true one as it does between the trainings of one of the `NEIGHBORS` nearest
    configurations, so it is as strong and as skewed as it was there.
    """

    @cached_property
    def residuals(self) -> Array:
        """Logarithms of the losses less their mean over seeds, shape (configurations, seeds); as
        far apart as trainings are, although the mean is of few.
        """
        logs = np.log(self.stored["losses"])
        seeds = logs.shape[1]
        result: Array = (logs - logs.mean(axis=1, keepdims=True)) * math.sqrt(seeds / (seeds - 1))
        return result

    @cached_property
    def _places(self) -> tuple[Array, float, float]:
        """Where configurations are near each other: their features and how good they are."""
        logs = np.log(losses(self.stored, self.stored["features"]))
        centre, scale = float(logs.mean()), float(logs.std())
        return (
            np.hstack([self.stored["features"], ((logs - centre) / scale)[:, None]]),
            centre,
            scale,
        )

    def observed(self, values: Mapping[str, Any], normal: float) -> float:
        true = self.loss(values)
        places, centre, scale = self._places
        here = np.append(self.features([values])[0], (math.log(true) - centre) / scale)
        # rounded, so that the order of equals does not hang on the last bit
        distances = ((places - here) ** 2).sum(axis=1).round(9)
        near = np.argsort(distances, kind="stable")[:NEIGHBORS]
        return true * math.exp(_quantile(self.residuals[near].ravel(), normal))


@dataclass(frozen=True)
class RecordedTable(Table):
    """A table of all configurations there are, none in between: a true loss is the mean over the
    recorded seeds, an observed one is that of one of them. Numbers are whole.
    """

    def losses(self, values: Mapping[str, Any]) -> Array:
        """The recorded losses of one configuration, one a seed."""
        place = self.cells().index({axis.path: values[axis.path] for axis in self.grid})
        searched = {item.path: values[item.path] for item in self.search}
        result: Array = self.stored["losses"][place, self.configurations.index(searched)]
        return result

    @cached_property
    def configurations(self) -> list[dict[str, Any]]:
        """All combinations of the searched parameters, in the order of the file."""
        levels = [
            item.choices or tuple(range(int(item.low or 0), int(item.high or 0) + 1))
            for item in self.search
        ]
        paths = [item.path for item in self.search]
        return [dict(zip(paths, row, strict=True)) for row in itertools.product(*levels)]

    def loss(self, values: Mapping[str, Any]) -> float:
        return float(self.losses(values).mean())

    def optimum(self, cell: Mapping[str, Any]) -> float:
        place = self.cells().index(dict(cell))
        return float(self.stored["losses"][place].mean(axis=1).min())

    def observed(self, values: Mapping[str, Any], normal: float) -> float:
        return _quantile(self.losses(values), normal)


def _quantile(values: Array, normal: float) -> float:
    """The value that a draw from the standard normal distribution picks, all equally likely."""
    share = 0.5 * math.erfc(-normal / math.sqrt(2.0))
    return float(np.sort(values)[min(int(share * len(values)), len(values) - 1)])


def losses(stored: Mapping[str, Any], features: Array) -> Array:
    """The answer of a stored ensemble, a loss a row of features: a floor, and the exponential of
    the networks' mean.
    """
    hidden = features
    for layer in ("1", "2"):
        hidden = hidden @ stored[f"weight{layer}"] + stored[f"bias{layer}"]  # (member, row, unit)
        hidden = hidden / (1.0 + np.exp(-hidden))
    out = (hidden @ stored["weight3"] + stored["bias3"])[..., 0].mean(axis=0)
    result: Array = stored["floor"] + np.exp(stored["centre"] + stored["scale"] * out)
    return result


def _scaled(column: Sequence[float], low: Any, high: Any, log: bool) -> Array:
    values, ends = np.array(column, dtype=float), np.array([low, high], dtype=float)
    if log:
        values, ends = np.log(values), np.log(ends)
    result: Array = (2.0 * (values - ends[0]) / (ends[1] - ends[0]) - 1.0)[:, None]
    return result


def _one_hot(column: Sequence[Any], choices: Sequence[Any]) -> Array:
    return np.array([[float(value == choice) for choice in choices] for value in column])


TABLES = (
    Table(
        "digits",
        (Axis("batch", (16, 32, 64, 128)), Axis("width", (16, 64, 128))),
        (_LR, _WD, _DROPOUT, _ACT),
    ),
    Table(
        "cancer",
        (Axis("solver", ("sgd", "adam")), Axis("width", (4, 16, 64, 256))),
        (
            _LR,
            Searched("alpha", "float", 1e-6, 10.0, log=True),
            Searched("batch", "int", 8, 128, log=True),
            Searched("momentum", "float", 0.0, 0.99),
            Searched("act", "categorical", choices=("relu", "logistic", "tanh")),
        ),
    ),
)

FROZEN_TABLES: tuple[Table, ...] = (
    RecordedTable(
        "wine",
        (
            Axis("metric", ("euclidean", "manhattan", "chebyshev", "cosine")),
            Axis("scaling", ("standard", "minmax")),
        ),
        (
            Searched("neighbors", "int", 1, 10),
            Searched("components", "int", 2, 6),
            Searched("weights", "categorical", choices=("uniform", "distance")),
        ),
        tame=True,
        resolution=0.0002,
    ),
    SeededTable(
        "diabetes",
        (Axis("trees", (25, 50, 100, 200)), Axis("depth", (1, 2, 4))),
        (
            Searched("lr", "float", 0.003, 0.4, log=True),
            Searched("subsample", "float", 0.2, 1.0),
            Searched("features", "float", 0.1, 1.0),
            Searched("leaf", "int", 1, 40, log=True),
        ),
        tame=True,
    ),
    SeededTable(
        "covertype-like",
        (Axis("model", ("forest", "extra")), Axis("criterion", ("gini", "entropy"))),
        (
            Searched("features", "float", 0.05, 1.0),
            Searched("samples", "float", 0.05, 1.0),
            Searched("leaf", "int", 1, 50, log=True),
            Searched("depth", "int", 2, 20),
            Searched("trees", "int", 5, 60, log=True),
            Searched("balanced", "categorical", choices=("no", "yes")),
        ),
        tame=True,
    ),
    SeededTable(
        "friedman1",
        (Axis("kernel", ("linear", "poly", "rbf", "sigmoid")),),
        (
            Searched("c", "float", 1e-3, 1e4, log=True),
            Searched("gamma", "float", 1e-4, 10.0, log=True),
            Searched("epsilon", "float", 1e-3, 2.0, log=True),
            Searched("degree", "int", 2, 5),
            Searched("offset", "float", 0.0, 2.0),
        ),
    ),
    SeededTable(
        "friedman2",
        (Axis("layers", (1, 2, 3)), Axis("norm", ("none", "batch", "layer"))),
        (
            _LR,
            _WD,
            Searched("dropout", "float", 0.0, 0.7),
            Searched("batch", "int", 16, 128, log=True),
            Searched("schedule", "categorical", choices=("constant", "cosine", "linear")),
            Searched("act", "categorical", choices=("relu", "tanh", "silu")),
        ),
    ),
    SeededTable(
        "moons",
        (
            Axis("penalty", ("l1", "l2", "elasticnet")),
            Axis("schedule", ("constant", "invscaling", "adaptive")),
        ),
        (
            Searched("alpha", "float", 1e-6, 0.1, log=True),
            Searched("eta", "float", 1e-3, 10.0, log=True),
            Searched("gamma", "float", 0.05, 50.0, log=True),
            Searched("epochs", "int", 1, 40, log=True),
        ),
    ),
    SeededTable(
        "digits-conv",
        (Axis("channels", (4, 8, 16)), Axis("optimizer", ("sgd", "adam", "rmsprop"))),
        (
            Searched("lr", "float", 1e-4, 0.3, log=True),
            Searched("wd", "float", 1e-6, 0.3, log=True),
            Searched("batch", "int", 16, 128, log=True),
            Searched("smoothing", "float", 0.0, 0.4),
            Searched("pool", "categorical", choices=("max", "mean")),
        ),
        tame=True,
    ),
)
