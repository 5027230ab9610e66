"""Finished trials as rows of numbers, each read once, so that the next suggestion reads only what
is new.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

Array = npt.NDArray[np.float64]

_RUNNING, _IGNORED = -1, -2
_ALL = slice(None)
_STRETCH = 512
_FARTHEST = 1e150
"""Larger values, such as the largest float for a run that diverged, are taken for this one: models
add up squares.
"""
NO_VERDICT_KEY = "orchestrator:no_verdict"
"""Marks a failed trial whose failure says nothing about its parameters: it is ignored."""
_FACTS = 4  # value, last step, violation of constraints, state
_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Reading:
    """Finished trials in order of their numbers, and running ones.

    Shapes: position (n,) of the finished in `trials`; value (n,) of the first objective (a pruned
    trial's last report), NaN where there is none; step (n,) of the last report or -1; violation
    (n,) sum of the constraints not kept; running (q, names) internal values. `failed` are those
    without a finite value too: they teach as much as a failure does.
    """

    trials: list[FrozenTrial]
    position: npt.NDArray[np.intp]
    value: Array
    step: Array
    violation: Array
    pruned: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    running: Array
    table: Array
    row: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]

    def internal(self, which: Any = _ALL, names: slice = _ALL) -> Array:
        """Internal values of some of the finished trials and names, NaN where a trial lacks one."""
        result: Array = self.table[self.row[which][:, None], self.column[names]]
        return result


class Rows:
    """A growing table of the trials seen. Bounded by the largest study read; may be read from
    several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._readers: dict[str, tuple[BaseDistribution, Callable[[Any], float]]] = {}
        self._rows: dict[int, tuple[FrozenTrial, int]] = {}
        self._table = np.empty((0, _FACTS))
        self._last: list[FrozenTrial] = []
        self._row_of_last = np.empty(0, dtype=np.intp)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy in another process reads anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def read(self, study: Study, current: int, names: Mapping[str, BaseDistribution]) -> Reading:
        """The study's finished trials and its running ones but number `current`, with their values
        of `names`.
        """
        with self._lock:
            self._learn(names)
            trials = study._get_trials(deepcopy=False)
            rows = self._rows_of(trials)
            position = np.flatnonzero(rows >= 0)
            table, row = self._table, rows[position]
            running = [
                self._values(trials[i])
                for i in np.flatnonzero(rows == _RUNNING)
                if trials[i].number != current
            ]
            place = {name: place for place, name in enumerate(self._readers)}
        wanted = np.array([place[name] for name in names], dtype=np.intp)
        facts = table[row, :_FACTS]
        state, value = facts[:, 3], facts[:, 0]
        return Reading(
            trials,
            position,
            value,
            facts[:, 1],
            facts[:, 2],
            state == _STATES.index(TrialState.PRUNED),
            (state == _STATES.index(TrialState.FAIL)) | np.isnan(value),
            np.array(running, dtype=float).reshape(len(running), len(place))[:, wanted],
            table,
            row,
            _FACTS + wanted,
        )

    def _rows_of(self, trials: list[FrozenTrial]) -> npt.NDArray[np.intp]:
        """Each trial's row of the table, or what it is instead; only what differs from last time is
        looked at.
        """
        same = _same(trials, self._last)
        fresh = np.array([self._row(trial) for trial in trials[same:]], dtype=np.intp)
        self._last, self._row_of_last = (
            list(trials),
            np.concatenate([self._row_of_last[:same], fresh]),
        )
        return self._row_of_last

    def _row(self, trial: FrozenTrial) -> int:
        if trial.state == TrialState.WAITING or NO_VERDICT_KEY in trial.system_attrs:
            return _IGNORED
        if not trial.state.is_finished():
            return _RUNNING
        entry = self._rows.get(trial.number)
        return entry[1] if entry is not None and entry[0] is trial else self._take(trial)

    def _learn(self, names: Mapping[str, BaseDistribution]) -> None:
        """Makes room for names not requested before; everything is read again then, which happens a
        few times in a study.
        """
        if all(name in self._readers and self._readers[name][0] == d for name, d in names.items()):
            return
        readers = self._readers | {name: (d, _reader(d)) for name, d in names.items()}
        self._forget()
        self._readers = readers
        self._table = np.empty((0, _FACTS + len(readers)))

    def _take(self, trial: FrozenTrial) -> int:
        entry = self._rows.get(trial.number)
        row = entry[1] if entry is not None else len(self._rows)
        if row >= len(self._table):
            wider = np.empty((max(64, 2 * row), self._table.shape[1]))
            wider[: len(self._table)] = self._table
            self._table = wider
        violation = sum(max(float(v), 0.0) for v in trial.constraints.values())
        facts = (_value(trial), _last_step(trial), violation, float(_STATES.index(trial.state)))
        self._table[row] = (*facts, *self._values(trial))
        self._rows[trial.number] = (trial, row)
        return row

    def _values(self, trial: FrozenTrial) -> list[float]:
        params = trial.params
        return [
            read(params[name]) if name in params else math.nan
            for name, (_, read) in self._readers.items()
        ]


def _same(trials: list[FrozenTrial], last: list[FrozenTrial]) -> int:
    """How many trials from the first on are the very same objects; whole stretches at a time, for
    there are thousands.
    """
    n, at = min(len(trials), len(last)), 0
    while at < n and all(map(operator.is_, trials[at : at + _STRETCH], last[at : at + _STRETCH])):
        at += _STRETCH
    return next(
        (i for i in range(at, min(at + _STRETCH, n)) if trials[i] is not last[i]),
        min(at + _STRETCH, n),
    )


def _reader(distribution: BaseDistribution) -> Callable[[Any], float]:
    """Internal value of an external one, or NaN if the distribution has none such."""
    if isinstance(distribution, CategoricalDistribution):
        index = {choice: float(position) for position, choice in enumerate(distribution.choices)}
        return lambda value: index.get(value, math.nan)
    log = bool(getattr(distribution, "log", False))

    def read(value: Any) -> float:
        ok = isinstance(value, int | float) and (value > 0 or not log)
        return float(value) if ok else math.nan

    return read


def _last_step(trial: FrozenTrial) -> float:
    return max(trial.intermediate_values) if trial.intermediate_values else -1.0


def _value(trial: FrozenTrial) -> float:
    value: float | None = None
    if trial.state == TrialState.COMPLETE and trial.values:
        value = trial.values[0]
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return (
        max(-_FARTHEST, min(value, _FARTHEST))
        if value is not None and math.isfinite(value)
        else math.nan
    )


def checkpoint(n: int) -> int:
    """The largest number up to `n` of the series 1, 2, … 10, 11, 12, 13, 14, 15, 16, 17, 19 … that
    grows by a tenth.
    """
    last = 1
    while (following := last + max(1, last // 10)) <= n:
        last = following
    return last
