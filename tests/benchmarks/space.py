"""Searched parameters as coordinates, a column each: numbers on [0, 1] along their scale,
categories as the place of the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.model import Searched

Array = npt.NDArray[np.float64]


def from_unit(search: Sequence[Searched], unit: Array) -> list[dict[str, Any]]:
    """Values of the searched parameters, a row of `unit` (in the cube [0, 1)) each."""
    columns: dict[str, list[Any]] = {}
    for item, u in zip(search, unit.T, strict=True):
        if item.choices:
            columns[item.path] = [item.choices[int(i)] for i in u * len(item.choices)]
            continue
        low, high = _ends(item)
        numbers = low + u * (high - low)
        numbers = np.exp(numbers) if item.log else numbers
        columns[item.path] = [round(v) if item.kind == "int" else float(v) for v in numbers]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def coordinates(search: Sequence[Searched], values: Mapping[str, Any]) -> Array:
    """The row of one configuration, shape (searched parameters,)."""
    return np.array([_coordinate(item, values[item.path]) for item in search])


def levels(item: Searched) -> Array | None:
    """All coordinates of a parameter, ascending; None where it is continuous."""
    if item.choices:
        return np.arange(float(len(item.choices)))
    if item.kind == "float":
        return None
    assert item.low is not None
    assert item.high is not None
    return np.array([_coordinate(item, n) for n in range(int(item.low), int(item.high) + 1)])


def _coordinate(item: Searched, value: Any) -> float:
    if item.choices:
        return float(item.choices.index(value))
    low, high = _ends(item)
    return ((math.log(value) if item.log else value) - low) / (high - low)


def _ends(item: Searched) -> tuple[float, float]:
    assert item.low is not None
    assert item.high is not None
    return (math.log(item.low), math.log(item.high)) if item.log else (item.low, item.high)
