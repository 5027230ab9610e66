"""What the trials of a study say of its space, where nobody declared one: a study that plain Optuna
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

from orchestrator.errors import ConfigError
from orchestrator.model import JSONValue, Searched, StudySpec, TrialNews
from orchestrator.search.space import parameters


def undeclared(spec: StudySpec, trials: Sequence[TrialNews]) -> StudySpec:
    """The spec with those parameters in its search that every complete and every pruned trial has
    with the same distribution; all others are left to be discovered.
    """
    ended = [trial for trial in trials if trial.state in ("COMPLETE", "PRUNED")]
    if not ended:
        return spec
    common = {param.name: param.distribution for param in ended[0].params}
    for trial in ended[1:]:
        had = {param.name: param.distribution for param in trial.params}
        common = {name: text for name, text in common.items() if had.get(name) == text}
    found = []
    for name, text in common.items():
        one = _searched(name, distribution := _distribution(text))
        try:
            same = parameters(replace(spec, search=(one,)))[name].distribution == distribution
        except ConfigError:  # a choice that only Optuna takes
            continue
        if same:
            found.append(one)
    return replace(spec, search=tuple(found))


def true_values(trial: TrialNews) -> dict[str, JSONValue]:
    """The trial's parameters as its objective had them."""
    return {
        param.name: _distribution(param.distribution).to_external_repr(param.internal)
        for param in trial.params
    }


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _searched(name: str, distribution: BaseDistribution) -> Searched:
    if isinstance(distribution, CategoricalDistribution):
        return Searched(name, "categorical", choices=tuple(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    d: Any = distribution
    whole = isinstance(distribution, IntDistribution)
    step = None if whole and d.step == 1 else d.step
    return Searched(name, "int" if whole else "float", d.low, d.high, step, d.log)
