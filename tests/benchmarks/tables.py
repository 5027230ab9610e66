"""Problems measured on real training runs: small networks on scikit-learn's digits and
breast-cancer data.

Each file in ``data`` holds the runs themselves (`make_tables.py` trained them: a quasi-random
design over cells and searched parameters, validation loss after a few epochs) and what answers for
values in between: an ensemble of small networks fitted to the logarithm of the loss less a floor,
nine tenths of the least loss seen, so that no answer is far better than any run (`explained` is the
share of the variance it explains in runs it was not fitted to). The ensemble is the problem's true
loss; noise multiplies it, as strong as the spread between two trainings of one good configuration.
The best loss of each cell, found by dense search of the ensemble, is in the file too.
"""

from __future__ import annotations

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
