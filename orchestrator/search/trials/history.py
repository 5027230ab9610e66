"""What a sampler sees: parameters as columns of numbers, trials as rows, and the columns that the
new trial has fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from orchestrator.search.trials.rows import Array as Array
from orchestrator.search.trials.rows import Reading, Rows

_ALL = slice(None)
FIXED_KEY = "fixed_params"
"""Where Optuna's `enqueue_trial` leaves the parameters a trial is given, and where we leave the
cell.
"""
BOUNDS_KEY = "orchestrator:bounds"
"""Narrower limits for this trial alone: ``{name: [low, high]}`` in the parameter's own units, both
included.
"""

PART_KEY = "orchestrator:part"
"""Set if only a part of the trial's parameters is suggested: the same values again are not a
repetition.
"""


@dataclass(frozen=True)
class Column:
    """One parameter as models see it: an ordered one on [0, 1] along its (log) scale, a categorical
    one as its index.

    `low` and `high` (own units) limit what `decode` returns, and so does `allowed`, the indices of
    some of the choices; the scale is always that of the whole distribution.
    """

    name: str
    distribution: BaseDistribution
    n_choices: int  # 0: ordered
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    log: bool = False
    allowed: tuple[int, ...] = ()

    @staticmethod
    def of(name: str, distribution: BaseDistribution) -> Column:
        if isinstance(distribution, CategoricalDistribution):
            return Column(name, distribution, len(distribution.choices))
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        d = distribution
        return Column(name, d, 0, float(d.low), float(d.high), float(d.step or 0.0), d.log)

    def within(self, bounds: Sequence[float] | None) -> Column:
        """The same column that yields only values inside `bounds` (moved to the nearest values of
        the distribution), or only the choices of these indices.
        """
        if bounds is None:
            return self
        if self.n_choices:
            return replace(self, allowed=tuple(sorted(int(index) for index in bounds)))
        low, high = max(self.low, float(bounds[0])), min(self.high, float(bounds[1]))
        if self.step:
            low = self.low + math.ceil((low - self.low) / self.step - 1e-9) * self.step
            high = self.low + math.floor((high - self.low) / self.step + 1e-9) * self.step
        return (
            replace(self, low=low, high=high) if low <= high else replace(self, low=high, high=high)
        )

    def _ends(self) -> tuple[float, float]:
        d = self.distribution
        assert isinstance(d, FloatDistribution | IntDistribution)
        # A discrete value stands for the interval around it, so that its neighbours are as near as
        # it is wide.
        low, high = d.low - self.step / 2, d.high + self.step / 2
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def encode(self, internal: Array) -> Array:
        """Internal values to model coordinates; the ends of the distribution to 0 and 1."""
        if self.n_choices:
            return internal
        bottom, top = self._ends()
        if top <= bottom:
            return np.full_like(internal, 0.5)
        result: Array = ((np.log(internal) if self.log else internal) - bottom) / (top - bottom)
        return result

    def decode(self, coordinate: Array) -> Array:
        """Model coordinates to the nearest internal values that the distribution and the limits
        allow.
        """
        if self.n_choices:
            index = np.clip(np.rint(coordinate), 0, self.n_choices - 1)
            if not self.allowed:
                return index
            choices = np.array(self.allowed, dtype=float)
            nearest: Array = choices[np.abs(index[:, None] - choices).argmin(axis=1)]
            return nearest
        bottom, top = self._ends()
        value = bottom + coordinate * (top - bottom)
        if self.log:
            value = np.exp(value)
        if self.step:
            start = float(self.distribution.low)  # type: ignore[attr-defined]
            value = start + np.rint((value - start) / self.step) * self.step
        return np.clip(value, self.low, self.high)

    def limits(self) -> tuple[float, float]:
        """The coordinates between which a draw is uniform over what `decode` may return."""
        if self.n_choices:
            return -0.5, self.n_choices - 0.5
        ends = self.encode(np.array([self.low - self.step / 2, self.high + self.step / 2]))
        return float(max(ends[0], 0.0)), float(min(ends[1], 1.0))

    def spread(self, uniform: Array) -> Array:
        """Uniform numbers in [0, 1) to coordinates of values drawn uniformly (on the scale of the
        distribution).
        """
        if self.n_choices and self.allowed:
            return self.drawn(np.floor(uniform * len(self.allowed)).astype(int))
        low, high = self.limits()
        return self.encode(self.decode(low + uniform * (high - low)))

    def drawn(self, place: npt.NDArray[np.intp]) -> Array:
        """The choices at these places among those that are allowed, as coordinates."""
        choices = np.array(self.allowed or range(self.n_choices), dtype=float)
        result: Array = choices[place]
        return result

    def external(self, coordinate: float) -> Any:
        """The plain Python value (float, int or choice) at a coordinate."""
        return self.distribution.to_external_repr(float(self.decode(np.array([coordinate]))[0]))


def columns(space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> list[Column]:
    """Columns of the parameters to suggest: those of `space` the trial has not fixed, in its
    bounds.
    """
    fixed = trial.system_attrs.get(FIXED_KEY, {})
    bounds = trial.system_attrs.get(BOUNDS_KEY, {})
    return [
        Column.of(name, d).within(bounds.get(name))
        for name, d in space.items()
        if name not in fixed and not d.single()
    ]


def single_values(space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of `space` that can take one value only, with it."""
    fixed = trial.system_attrs.get(FIXED_KEY, {})
    return {
        n: Column.of(n, d).external(0.0) for n, d in space.items() if n not in fixed and d.single()
    }


@dataclass(frozen=True)
class Context:
    """The cell of the new trial: columns of the fixed parameters that vary in the study, and their
    coordinates.
    """

    columns: list[Column]
    point: Array

    @staticmethod
    def of(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Context:
        """Reads the fixed parameters of `trial`; those outside `space` or with one possible value
        teach nothing.
        """
        found, point = [], []
        for name, value in sorted(trial.system_attrs.get(FIXED_KEY, {}).items()):
            distribution = space.get(name)
            if distribution is None or distribution.single():
                continue
            column = Column.of(name, distribution)
            try:
                internal = float(distribution.to_internal_repr(value))
            except ValueError:
                continue  # Optuna itself warns of a fixed value outside of the distribution
            found.append(column)
            point.append(float(column.encode(np.array([internal]))[0]))
        return Context(found, np.array(point))


@dataclass(frozen=True)
class History:
    """Trials as models see them. Losses are to be minimised; inf marks what failed, diverged or was
    infeasible.

    Shapes: loss (n,), step (n,) last reported step of a pruned trial, violation (n,) sum of the
    constraints a trial did not keep, pending (q, columns) coordinates, kept (n,) places of the
    trials in `read`.
    """

    loss: Array
    pruned: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    step: Array
    violation: Array
    pending: Array
    columns: Sequence[Column]
    read: Reading
    kept: npt.NDArray[np.intp]

    @staticmethod
    def of(
        study: Study,
        trial: FrozenTrial,
        cols: Sequence[Column],
        rows: Rows | None = None,
        *,
        required: slice = _ALL,
    ) -> History:
        """Reads the study's finished and running trials, without the new one, ordered by number.

        Args:
            study: whose trials.
            trial: the new one.
            cols: what to read of each.
            rows: keeps what was read, from call to call.
            required: the columns a trial must have a value in to be here; it has NaN in others that
                it lacks.
        """
        read = (rows or Rows()).read(
            study, trial.number, {column.name: column.distribution for column in cols}
        )
        kept = np.flatnonzero(~np.isnan(read.internal(names=required)).any(axis=1))
        running = read.running[~np.isnan(read.running[:, required]).any(axis=1)]
        value, violation = read.value[kept], read.violation[kept]
        sign = -1.0 if study._directions[0] == StudyDirection.MAXIMIZE else 1.0
        loss = np.where(np.isnan(value) | (violation > 0), np.inf, sign * value)
        pending, pruned, failed = _encode(running, cols), read.pruned[kept], read.failed[kept]
        return History(loss, pruned, failed, read.step[kept], violation, pending, cols, read, kept)

    @cached_property
    def x(self) -> Array:
        """Coordinates of all trials in all columns, shape (n, columns)."""
        return self.coordinates()

    def coordinates(self, which: Any = _ALL, columns: slice = _ALL) -> Array:
        """Coordinates of some of the trials in some of the columns: where there are thousands, not
        all need encoding.
        """
        return _encode(self.read.internal(self.kept[which], columns), self.columns[columns])

    def first(self, n: int) -> History:
        """As it would be without the finished trials after the first `n`."""
        facts: dict[str, Any] = {
            name: getattr(self, name)[:n]
            for name in ("loss", "pruned", "failed", "step", "violation", "kept")
        }
        return replace(self, **facts)

    def only(self, which: npt.NDArray[np.bool_]) -> History:
        """As it would be without the other finished trials."""
        facts: dict[str, Any] = {
            name: getattr(self, name)[which]
            for name in ("loss", "pruned", "failed", "step", "violation", "kept")
        }
        return replace(self, **facts)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Optuna's own trials of the rows."""
        return [self.read.trials[i] for i in self.read.position[self.kept]]

    @property
    def n_useful(self) -> int:
        """How many trials ended with a finite value, of their own or of their last report."""
        return int(np.count_nonzero(~self.failed))

    def is_enough(self, n_startup_trials: int) -> bool:
        """Whether a model can be used: enough trials have ended, failed ones included, at least one
        of them with a value.

        Failed ones count because, where most of the space fails, only the model can avoid it.
        """
        return self.n_useful >= 1 and len(self.loss) >= n_startup_trials


def _encode(internal: Array, cols: Sequence[Column]) -> Array:
    encoded = [column.encode(internal[:, j]) for j, column in enumerate(cols)]
    return np.column_stack(encoded) if encoded else internal
