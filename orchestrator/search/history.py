"""What a sampler is shown: parameters as columns of numbers, trials as rows, and which columns the asked trial has fixed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

Array = npt.NDArray[np.float64]

FIXED_KEY = "fixed_params"
"""Where Optuna's `enqueue_trial` leaves the parameters a trial is given, and where we leave the cell."""
BOUNDS_KEY = "orchestrator:bounds"
"""Narrower limits for this trial alone: ``{name: [low, high]}`` in the parameter's own units, both included."""


@dataclass(frozen=True)
class Column:
    """One parameter as models see it: an ordered one on [0, 1] along its (log) scale, a categorical one as its index.

    `low` and `high` (own units) limit what `decode` returns; the scale is always that of the whole distribution.
    """

    name: str
    distribution: BaseDistribution
    n_choices: int  # 0: ordered
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    log: bool = False

    @staticmethod
    def of(name: str, distribution: BaseDistribution) -> Column:
        if isinstance(distribution, CategoricalDistribution):
            return Column(name, distribution, len(distribution.choices))
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        d = distribution
        return Column(name, d, 0, float(d.low), float(d.high), float(d.step or 0.0), d.log)

    def within(self, bounds: Sequence[float] | None) -> Column:
        """The same column that yields only values inside `bounds` (moved to the nearest values of the distribution)."""
        if bounds is None or self.n_choices:
            return self
        low, high = max(self.low, float(bounds[0])), min(self.high, float(bounds[1]))
        if self.step:
            low = self.low + math.ceil((low - self.low) / self.step - 1e-9) * self.step
            high = self.low + math.floor((high - self.low) / self.step + 1e-9) * self.step
        return replace(self, low=low, high=high) if low <= high else replace(self, low=high, high=high)

    def _ends(self) -> tuple[float, float]:
        d = self.distribution
        assert isinstance(d, FloatDistribution | IntDistribution)
        # A discrete value stands for the interval around it, so that its neighbours are as near as it is wide.
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
        """Model coordinates to the nearest internal values that the distribution and the limits allow."""
        if self.n_choices:
            return np.clip(np.rint(coordinate), 0, self.n_choices - 1)
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
        """Uniform numbers in [0, 1) to coordinates of values drawn uniformly (on the scale of the distribution)."""
        low, high = self.limits()
        return self.encode(self.decode(low + uniform * (high - low)))

    def external(self, coordinate: float) -> Any:
        """The plain Python value (float, int or choice) at a coordinate."""
        return self.distribution.to_external_repr(float(self.decode(np.array([coordinate]))[0]))


def columns(space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> list[Column]:
    """Columns of the parameters to suggest: those of `space` the trial has not fixed, in its bounds."""
    fixed = trial.system_attrs.get(FIXED_KEY, {})
    bounds = trial.system_attrs.get(BOUNDS_KEY, {})
    return [Column.of(name, d).within(bounds.get(name)) for name, d in space.items() if name not in fixed and not d.single()]


def single_values(space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of `space` that can take one value only, with it."""
    fixed = trial.system_attrs.get(FIXED_KEY, {})
    return {n: Column.of(n, d).external(0.0) for n, d in space.items() if n not in fixed and d.single()}


@dataclass(frozen=True)
class Context:
    """The cell of the asked trial: columns of the fixed parameters that vary in the study, and their coordinates."""

    columns: list[Column]
    point: Array

    @staticmethod
    def of(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Context:
        """Reads the fixed parameters of `trial`; those outside `space` or with one possible value teach nothing."""
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
    """Trials that have a value in every column. Losses are to be minimised; inf marks what failed or was infeasible.

    Shapes: x (n, columns), loss (n,), step (n,) last reported step of a pruned trial, pending (q, columns).
    """

    trials: list[FrozenTrial]
    x: Array
    loss: Array
    pruned: npt.NDArray[np.bool_]
    step: Array
    pending: Array

    @staticmethod
    def of(study: Study, trial: FrozenTrial, cols: Sequence[Column]) -> History:
        """Reads the study's finished and running trials, without the asked one, ordered by number."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
        finished, rows, pending = [], [], []
        readers = [(column.name, _reader(column.distribution)) for column in cols]
        for known in study._get_trials(deepcopy=False, states=states):
            if known.number == trial.number:
                continue
            row = _row(known.params, readers)
            if row is None:
                continue
            if known.state == TrialState.RUNNING:
                pending.append(row)
            else:
                finished.append(known)
                rows.append(row)
        sign = -1.0 if study._directions[0] == StudyDirection.MAXIMIZE else 1.0
        loss = np.array([_loss(known, sign) for known in finished])
        pruned = np.array([known.state == TrialState.PRUNED for known in finished], dtype=bool)
        step = np.array([_last_step(known) for known in finished], dtype=float)
        return History(finished, _encode(rows, cols), loss, pruned, step, _encode(pending, cols))

    @property
    def n_useful(self) -> int:
        """How many trials ended COMPLETE or PRUNED."""
        return sum(known.state != TrialState.FAIL for known in self.trials)


def _reader(distribution: BaseDistribution) -> Any:
    """Internal value of an external one, or None if the distribution has none such."""
    if isinstance(distribution, CategoricalDistribution):
        index = {choice: float(position) for position, choice in enumerate(distribution.choices)}
        return lambda value: index.get(value)
    log = bool(getattr(distribution, "log", False))

    def read(value: Any) -> float | None:
        ok = isinstance(value, int | float) and (value > 0 or not log)
        return float(value) if ok else None

    return read


def _row(params: Mapping[str, Any], readers: Iterable[tuple[str, Any]]) -> list[float] | None:
    row = []
    for name, read in readers:
        value = read(params[name]) if name in params else None
        if value is None:
            return None
        row.append(value)
    return row


def _encode(rows: list[list[float]], cols: Sequence[Column]) -> Array:
    internal = np.array(rows, dtype=float).reshape(len(rows), len(cols))
    encoded = [column.encode(internal[:, j]) for j, column in enumerate(cols)]
    return np.column_stack(encoded) if encoded else internal


def _last_step(trial: FrozenTrial) -> float:
    return max(trial.intermediate_values) if trial.intermediate_values else -1.0


def _loss(trial: FrozenTrial, sign: float) -> float:
    value: float | None = None
    if any(violation > 0 for violation in trial.constraints.values()):
        return math.inf
    if trial.state == TrialState.COMPLETE and trial.values:
        value = trial.values[0]
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    if value is None or not math.isfinite(value):
        return math.inf
    return sign * value
