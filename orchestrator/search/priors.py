"""What a study can learn from the trials of another one: trials of the source as observations in
this study's space. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import json_to_distribution

from orchestrator.errors import ConfigError
from orchestrator.model import (
    JSONValue,
    Param,
    StudySpec,
    TrialNews,
    at,
    has,
    same_value,
    value_label,
)
from orchestrator.prior import Enqueued, Observation, Prior, SourceStudy
from orchestrator.search.gp.losses import Scale
from orchestrator.search.gp.process import BELIEVING, Layout, Posterior, fit
from orchestrator.search.gp.sources import SourceTrials
from orchestrator.search.space import Parameter, parameters
from orchestrator.search.trials.history import Column
from orchestrator.search.trials.mirror import is_feasible
from orchestrator.search.trials.threads import one_thread

MOST_OBSERVATIONS = 400
"""Of more trials of a source, half of these are the best and half a spread of the others."""
_ABSENT = object()


class _NotTakenError(Exception):
    """A trial of a source is left out; its message is why, in a few words."""


def prior_of(spec: StudySpec, source: SourceStudy) -> Prior:
    """What the study of `spec` takes from `source`; a function of the arguments alone.

    A trial counts with its values of the parameters that this study has in its grid or search, by
    path. A parameter that is fixed in the source counts with its value in ``params`` there, if this
    study allows it; otherwise the source says nothing about it. A trial is left out if it has no
    result, or if a value lies outside what this study allows; also if a word or option that this
    study fixes in its ``params`` was another one there.

    Raises:
        ConfigError: the source has several objectives, another direction, or no trial that says
            anything about this study.
    """
    name = value_label(source.name)
    where = f"warm_start={name}"
    if len(source.directions) != 1:
        raise ConfigError(
            f"{where}: the study has {len(source.directions)} objectives; a source must have one"
        )
    if source.directions != spec.directions:
        raise ConfigError(
            f"{where}: study.direction is {source.directions[0]} there and {spec.directions[0]} "
            "here; must be the same"
        )
    reader = _Reader(spec, source)
    taken, left_out = [], Counter[str]()
    for trial in source.trials:
        try:
            taken.append(reader.observation(trial))
        except _NotTakenError as why:
            left_out[str(why)] += 1
    if not taken:
        reasons = "; ".join(f"{count} {why}" for why, count in left_out.most_common())
        raise ConfigError(
            f"{where}: none of its {len(source.trials)} finished trials says anything about this "
            f"study{f' ({reasons})' if reasons else ''}; leave it out"
        )
    kept = _bounded(taken, maximize=spec.directions[0] == "maximize")
    if len(kept) < len(taken):
        left_out[f"beyond {MOST_OBSERVATIONS}: the best and a spread are taken"] = len(taken) - len(
            kept
        )
    remark = ""
    if source.metrics and source.metrics != spec.metrics:
        remark = (
            f"its metric is {value_label(source.metrics[0])}, not "
            f"{value_label(spec.metrics[0])}: it helps only if what is good for one is good for "
            "the other"
        )
    return Prior(source.name, source.study_id, tuple(kept), dict(left_out), remark)


class _Reader:
    """Translates the trials of one source."""

    def __init__(self, spec: StudySpec, source: SourceStudy) -> None:
        self._spec = spec
        self._here = parameters(spec)
        self._axes = {axis.path: axis for axis in spec.grid}
        self._source = source.spec
        self._there = {} if source.spec is None else parameters(source.spec)
        self._axes_there = {axis.path: axis for axis in source.spec.grid} if source.spec else {}

    def observation(self, trial: TrialNews) -> Observation:
        """Raises _NotTakenError if the trial says nothing about this study."""
        value, pruned = _result(trial)
        there = {param.name: self._value(param) for param in trial.params}
        self._check_fixed(there)
        values = {}
        for path, parameter in self._here.items():
            if path in there:
                values[path] = self._translated(path, parameter, there[path])
            elif (default := self._default(path)) is not _ABSENT:
                with suppress(_NotTakenError):  # then the source says nothing about it
                    values[path] = self._translated(path, parameter, default)
        cell = {path: values[path] for path in self._axes if path in values}
        for path, parameter in self._here.items():
            unknown = parameter.when.keys() - cell.keys()
            if path in values and not unknown and not parameter.exists_in(cell):
                del values[path]
        if not values:
            raise _NotTakenError("without any parameter of this study")
        return Observation(trial.number, values, value, pruned)

    def _value(self, param: Param) -> JSONValue:
        """What the objective of the source received, an option's content in place of its name."""
        parameter = self._there.get(param.name)
        try:
            if parameter is None:
                stored = json_to_distribution(param.distribution)
                return stored.to_external_repr(param.internal)
            value = parameter.true_value(param.internal)
        except (ValueError, KeyError, TypeError, IndexError):
            raise _NotTakenError(f"with a {param.name} that cannot be read") from None
        axis = self._axes_there.get(param.name)
        return value if axis is None else axis.content(value)

    def _default(self, path: str) -> Any:
        """The value of a parameter that the source fixes; absent too if only a trial can resolve
        it.
        """
        if self._source is None or not has(self._source.params, path):
            return _ABSENT
        value = at(self._source.params, path)
        return _ABSENT if isinstance(value, str) and "${" in value else value

    def _translated(self, path: str, parameter: Parameter, found: JSONValue) -> JSONValue:
        """The value in this study's own form."""
        axis = self._axes.get(path)
        if axis is not None and axis.contents:
            mine = [v for v in axis.values if same_value(axis.content(v), found)]
        elif parameter.choices:
            mine = [v for v in parameter.choices if same_value(v, found)]
        else:
            try:
                return parameter.true_value(parameter.internal(found))
            except ConfigError:
                mine = []
        if not mine:
            raise _NotTakenError(f"with {path} outside what this study allows")
        return mine[0]

    def _check_fixed(self, there: Mapping[str, JSONValue]) -> None:
        """Another backbone than the one that this study fixes is another task; another number is
        taken for a neighbour.
        """
        for path, value in there.items():
            if path in self._here or not has(self._spec.params, path):
                continue
            fixed = at(self._spec.params, path)
            numbers = all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in (fixed, value)
            )
            resolved = not (isinstance(fixed, str) and "${" in fixed)
            if resolved and not numbers and not same_value(fixed, value):
                raise _NotTakenError(f"with another {path} than params has here")


def _result(trial: TrialNews) -> tuple[float, bool]:
    if trial.state == "FAIL":
        raise _NotTakenError("failed")
    if not is_feasible(trial):
        raise _NotTakenError("infeasible")
    pruned = trial.state == "PRUNED"
    value: float | None = trial.values[0] if trial.values and not pruned else None
    if pruned and trial.intermediate:
        value = trial.intermediate[max(trial.intermediate)]
    if value is None or not math.isfinite(value):
        raise _NotTakenError("without a finite value")
    return value, pruned


def _bounded(taken: Sequence[Observation], *, maximize: bool) -> list[Observation]:
    """At most `MOST_OBSERVATIONS`, by number: the best half of them, and a spread of the others."""
    if len(taken) <= MOST_OBSERVATIONS:
        return list(taken)
    half = MOST_OBSERVATIONS // 2
    sign = -1.0 if maximize else 1.0
    order = sorted(taken, key=lambda o: (o.pruned, sign * o.value, o.number))
    others = sorted(order[half:], key=lambda o: o.number)
    places = np.linspace(0, len(others) - 1, MOST_OBSERVATIONS - half).astype(int)
    return sorted([*order[:half], *(others[i] for i in places)], key=lambda o: o.number)


def source_trials(here: Mapping[str, Parameter], prior: Prior, maximize: bool) -> SourceTrials:
    """The observations as arrays. Those that no longer lie in the study's space are not there."""
    rows, losses, pruned = [], [], []
    for o in prior.observations:
        try:
            row = {p: here[p].internal(v) for p, v in o.values.items() if p in here}
        except ConfigError:
            continue
        rows.append([row.get(path, math.nan) for path in here])
        losses.append(-o.value if maximize else o.value)
        pruned.append(o.pruned)
    table = np.array(rows, dtype=float).reshape(len(rows), len(here))
    internal = {path: table[:, j] for j, path in enumerate(here)}
    return SourceTrials(prior.source, internal, np.array(losses), np.array(pruned, dtype=bool))


# --------------------------------------------------------------------- the best of a source, again


def best_of(
    spec: StudySpec, priors: Sequence[Prior], most: int
) -> tuple[list[Enqueued], dict[str, int]]:
    """The `most` best distinct configurations of the sources that this study can run, within the
    shares of their cells and the trials beyond them: the best one of each source, then the second
    best of each, and so on.

    Best is what a Gaussian process of the source believes: of many noisy values the best one is
    lucky.

    Returns:
        The configurations, and how many better ones were left out, by the reason in words.
    """
    here, left_out = parameters(spec), Counter[str]()
    ordinals = {_key(cell): place for place, cell in enumerate(spec.cells())}
    axes = [axis.path for axis in spec.grid]
    found: list[Enqueued] = []
    seen: set[str] = set()
    of_cell: Counter[int] = Counter()
    beyond = spec.beyond_shares
    for o, source in _in_turn([_ranked(here, spec, prior) for prior in priors]):
        if len(found) == most:
            break
        if missing := [path for path in axes if path not in o.values]:
            left_out[f"without a value of {', '.join(missing)}"] += 1
            continue
        cell = {path: o.values[path] for path in axes}
        if (ordinal := ordinals.get(_key(cell))) is None:
            left_out["not on this study's grid"] += 1
            continue
        fixed = {path: v for path, v in o.values.items() if path not in cell}
        if (key := _key({**cell, **fixed})) in seen:
            continue
        seen.add(key)
        if of_cell[ordinal] == spec.budget.per_cell:
            if not beyond:
                left_out["beyond what the budget has for their cells"] += 1
                continue
            beyond -= 1
        else:
            of_cell[ordinal] += 1
        found.append(Enqueued(ordinal, fixed, source, o.number))
    return found, dict(left_out)


def _key(values: Mapping[str, JSONValue]) -> str:
    """The same for values that are the same: 1 and 1.0."""
    return repr(
        sorted(
            (
                path,
                repr(float(v))
                if isinstance(v, int | float) and not isinstance(v, bool)
                else value_label(v),
            )
            for path, v in values.items()
        )
    )


def _in_turn(
    ranked: Sequence[Sequence[tuple[Observation, str]]],
) -> Iterator[tuple[Observation, str]]:
    for place in range(max(map(len, ranked), default=0)):
        yield from (each[place] for each in ranked if place < len(each))


def _ranked(
    here: Mapping[str, Parameter], spec: StudySpec, prior: Prior
) -> list[tuple[Observation, str]]:
    """The complete observations with their source, the one believed to be the best first."""
    complete = replace(prior, observations=tuple(o for o in prior.observations if not o.pruned))
    if not complete.observations:
        return []
    trials = source_trials(here, complete, spec.directions[0] == "maximize")
    varied = [p for p in here.values() if not p.distribution.single()]
    cols = [
        Column.of(p.path, p.distribution)
        for grid in (False, True)
        for p in varied
        if p.grid is grid
    ]
    known = [c for c in cols if not np.isnan(trials.internal[c.name]).all()]
    expected = trials.loss
    if known:
        layout = Layout(
            tuple(c.n_choices for c in known), sum(not here[c.name].grid for c in known)
        )
        x = layout.filled(np.column_stack([c.encode(trials.internal[c.name]) for c in known]))
        y = Scale.of(trials.loss, trials.pruned).standard(trials.loss, trials.pruned)
        n = layout.n_searched
        with one_thread():
            posterior = Posterior(x, y, layout, fit(x, y, layout, BELIEVING))
            expected = posterior.mean(x[:, :n], x[:, n:])[:, 0]
    order = np.argsort(expected, kind="stable")
    return [(complete.observations[i], prior.source) for i in order]
