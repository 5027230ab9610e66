"""What is believed along parameters: plain numbers, in the objective's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from orchestrator.model import JSONValue

Ended: TypeAlias = Literal["complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True)
class Seen:
    """A finished trial of a cell: its searched values, and what it observed, in the objective's
    units; None for one without a value. A pruned one has its last report.
    """

    number: int
    params: Mapping[str, JSONValue]
    value: float | None
    ended: Ended


@dataclass(frozen=True)
class Snapshot:
    """The belief when the study's first `finished` trials had ended, in order of their numbers.

    The first `seen` of the cell's trials are among them, of which `valued` are complete and
    feasible. One number per point of the line: `mean`, the true value expected there, that is
    without noise; `low` to `high`, nine tenths of the belief about it; `improvement`, by how much
    the next trial there is expected to be better than the best that is predicted where the cell was
    tried, 0 or more. All in the objective's units.
    """

    finished: int
    seen: int
    valued: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    improvement: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One parameter of a cell, the others held: at the values `at`, for numbers ascending.

    `near` says of each of the cell's trials, from 0 to 1, how much it tells of this line: the
    kernel's similarity to the same trial moved onto the line; 1 with no other parameter.
    """

    path: str
    numeric: bool
    log: bool
    at: tuple[JSONValue, ...]
    near: tuple[float, ...]
    snapshots: tuple[Snapshot, ...]


@dataclass(frozen=True)
class Plane:
    """The true value expected now at `x` and `y`, two numbers that the held trial has, its other
    parameters held; one row of `mean` for each of `y`.
    """

    x_path: str
    y_path: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_log: bool
    y_log: bool
    mean: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CellSlices:
    """Lines and a plane of one cell through the parameters of one of its trials, the one that is
    believed to be its best.

    `held` are the searched parameters of that trial; `trials` all finished ones of the cell.
    """

    cell: Mapping[str, JSONValue]
    trial: int
    held: Mapping[str, JSONValue]
    trials: tuple[Seen, ...]
    lines: tuple[Line, ...]
    plane: Plane | None


@dataclass(frozen=True)
class Slices:
    """The cells shown, the one that is believed to be the best first.

    `paths` are the parameters shown, numbers first, the most important of each kind first.
    `left_out` counts the other cells that have a complete trial. `why_not` says in a
    sentence why there are none; it is empty if there are.
    """

    cells: tuple[CellSlices, ...] = ()
    paths: tuple[str, ...] = ()
    left_out: int = 0
    why_not: str = ""
