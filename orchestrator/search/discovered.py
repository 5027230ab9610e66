"""The parameters that objectives request while they run: names that neither grid nor search
declares, learnt from trials.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.space import Parameter

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # others may have ended before they requested all


class Discovered:
    """The undeclared part of a study's space, as far as the trials learnt so far reveal it.

    `first` holds the first distribution met of every name, which settles kind, scale and choices
    for the whole study; `space` the names that were always requested in the same way, which a
    sampler can suggest together; `widest`, for numbers that were requested with different limits,
    the range that covers all of them.
    """

    def __init__(self, declared: Collection[str]) -> None:
        self._declared = frozenset(declared)
        self._varies: set[str] = set()
        self.first: dict[str, BaseDistribution] = {}
        self.space: dict[str, BaseDistribution] = {}
        self.widest: dict[str, BaseDistribution] = {}

    def learn(self, trial: FrozenTrial) -> None:
        """Learns a trial's undeclared parameters; idempotent."""
        for name, distribution in trial.distributions.items():
            if name in self._declared:
                continue
            first = self.first.setdefault(name, distribution)
            if first is not distribution and first != distribution:
                self._vary(name, first, distribution)
            elif name not in self._varies:
                self.space[name] = first

    def _vary(self, name: str, first: BaseDistribution, distribution: BaseDistribution) -> None:
        before = self.widest.get(name) if name in self._varies else first
        wide = widened(before, distribution) if before is not None else None
        if wide is None:
            self.widest.pop(name, None)
        else:
            self.widest[name] = wide
        self._varies.add(name)
        self.space.pop(name, None)

    def parameters(self) -> dict[str, Parameter]:
        """The names of `space` as parameters left to the sampler."""
        return {name: undeclared(name, distribution) for name, distribution in self.space.items()}


def widened(one: BaseDistribution, other: BaseDistribution) -> BaseDistribution | None:
    """The range that covers two of the same kind and scale; None if they have steps or choices."""
    if (
        isinstance(one, IntDistribution)
        and isinstance(other, IntDistribution)
        and one.step == other.step == 1
    ):
        return IntDistribution(min(one.low, other.low), max(one.high, other.high), log=one.log)
    if (
        isinstance(one, FloatDistribution)
        and isinstance(other, FloatDistribution)
        and one.step is other.step is None
    ):
        return FloatDistribution(min(one.low, other.low), max(one.high, other.high), log=one.log)
    return None


def undeclared(name: str, distribution: BaseDistribution) -> Parameter:
    """A parameter of which only the distribution that an objective requested is known."""
    choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
    return Parameter(name, distribution, grid=False, choices=choices)


def check_agrees(name: str, before: BaseDistribution, requested: BaseDistribution) -> None:
    """Checks that a study may hold both distributions for one name: Optuna allows limits and steps
    to differ, nothing else.

    Raises:
        ValueError: the kind, the scale or the choices differ; names both.
    """
    try:
        check_distribution_compatibility(before, requested)
    except ValueError as error:
        raise ValueError(
            f"parameter {name!r}: {error} It was {before} before and is {requested} now."
        ) from None


def common(
    space: Mapping[str, BaseDistribution], trials: Collection[FrozenTrial]
) -> dict[str, BaseDistribution]:
    """The part of `space` that every trial with a result has."""
    ended = [trial.distributions for trial in trials if trial.state in _ENDED]
    return {name: d for name, d in space.items() if all(had.get(name) == d for had in ended)}


def group_of(
    name: str, space: Mapping[str, BaseDistribution], trials: Collection[FrozenTrial]
) -> dict[str, BaseDistribution]:
    """The part of `space` that is always requested together with `name`: names that the same trials
    with a result have.

    The parameters of one branch of an objective form a group, as in Optuna's TPE with
    ``group=True``.
    """
    rest = {other: d for other, d in space.items() if other != name}
    for trial in trials:
        if rest and trial.state in _ENDED:
            here = name in trial.distributions
            rest = {other: d for other, d in rest.items() if (other in trial.distributions) == here}
    return {other: d for other, d in space.items() if other == name or other in rest}
