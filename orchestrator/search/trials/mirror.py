"""The study as far as news has arrived: Optuna's trials behind Optuna's own storage interface."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.storages._in_memory import _StudyInfo
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.model import Direction, TrialNews
from orchestrator.search.trials.rows import NO_VERDICT_KEY

_LONG_AGO = datetime(2000, 1, 1)
NO_VERDICT = ("signal", "lost", "budget", "device", "import")
"""Kinds of failures that say nothing about a trial's parameters: faults of the machine or the
fleet, a study that ended.
"""


class Mirror(InMemoryStorage):
    """A storage of one study whose trials keep their numbers, gaps and all; a trial's id here is
    its number.

    Only what samplers and pruners call is answered from the news: reading trials and the best one,
    and attributes written on a trial, which change no trial already handed out.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[Direction],
        trials: Mapping[int, FrozenTrial] | None = None,
    ) -> None:
        super().__init__()
        words = [
            StudyDirection.MAXIMIZE if d == "maximize" else StudyDirection.MINIMIZE
            for d in directions
        ]
        # Not `create_new_study`, which logs the creation of a study that exists only here.
        self._studies[0] = _StudyInfo(name, words)
        self._study_name_to_id[name] = 0
        self._name = name
        self._by_number: dict[int, FrozenTrial] = dict(sorted((trials or {}).items()))
        self._numbers: list[int] = list(self._by_number)
        self._trials: list[FrozenTrial] = list(self._by_number.values())

    def put(self, trial: FrozenTrial) -> None:
        """Adds the trial or replaces the one with its number."""
        number, numbers = trial.number, self._numbers
        place = (
            len(numbers) if not numbers or number > numbers[-1] else bisect_left(numbers, number)
        )
        if number in self._by_number:
            self._trials[place] = trial
        else:
            numbers.insert(place, number)
            self._trials.insert(place, trial)
        self._by_number[number] = trial

    def remove(self, number: int) -> None:
        """Forgets the trial of that number, if there is one."""
        if self._by_number.pop(number, None) is not None:
            place = bisect_left(self._numbers, number)
            del self._numbers[place], self._trials[place]

    def find(self, number: int) -> FrozenTrial | None:
        """The trial of that number, or None."""
        return self._by_number.get(number)

    def next_number(self) -> int:
        """One more than the highest number here."""
        return self._numbers[-1] + 1 if self._numbers else 0

    def restricted(self, trials: Iterable[FrozenTrial]) -> Mirror:
        """A storage of the same study that holds these trials only."""
        directions: list[Direction] = [
            "maximize" if d == StudyDirection.MAXIMIZE else "minimize"
            for d in self.get_study_directions(0)
        ]
        return Mirror(self._name, directions, {trial.number: trial for trial in trials})

    def study(
        self, *, sampler: BaseSampler | None = None, pruner: BasePruner | None = None
    ) -> Study:
        """An Optuna study on this storage."""
        return Study(self._name, self, sampler or RandomSampler(0), pruner or NopPruner())

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = (
            list(self._trials) if states is None else [t for t in self._trials if t.state in states]
        )
        return copy.deepcopy(trials) if deepcopy else trials

    def _get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._by_number:
            raise KeyError(f"No trial with trial_id {trial_id} exists.")
        return self._by_number[trial_id]

    def _set_trial(self, trial_id: int, trial: FrozenTrial) -> None:
        self.put(trial)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = [
            t for t in self.get_all_trials(study_id, False, (TrialState.COMPLETE,)) if t.values
        ]
        if not complete:
            raise ValueError("No trials are completed yet.")
        maximize = self.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
        return (max if maximize else min)(complete, key=lambda t: t.values[0])


def is_feasible(news: TrialNews) -> bool:
    """Whether the trial broke none of its constraints, in whichever form an Optuna wrote them."""
    return all(float(value) <= 0 for value in frozen(news).constraints.values())


def frozen(news: TrialNews) -> FrozenTrial:
    """News as Optuna's trial; parameters whose distribution this Optuna cannot read
    are left out.
    """
    params: dict[str, Any] = {}
    dists: dict[str, BaseDistribution] = {}
    for param in news.params:
        try:
            distribution = _distribution(param.distribution)
            params[param.name] = distribution.to_external_repr(param.internal)
        except (ValueError, KeyError, TypeError, IndexError):
            continue
        dists[param.name] = distribution
    state = TrialState[news.state]
    system_attrs = dict(news.system_attrs)
    if news.failure in NO_VERDICT:
        system_attrs[NO_VERDICT_KEY] = news.failure
    return FrozenTrial(
        number=news.number,
        trial_id=news.number,
        state=state,
        value=None,
        values=news.values,
        datetime_start=_LONG_AGO,
        datetime_complete=_LONG_AGO if state.is_finished() else None,
        params=params,
        distributions=dists,
        user_attrs={},
        system_attrs=system_attrs,
        intermediate_values=dict(news.intermediate),
    )


def blank_trial(number: int, system_attrs: Mapping[str, Any]) -> FrozenTrial:
    """A trial about to be suggested: running, without parameters yet."""
    return frozen(TrialNews(number, "RUNNING", system_attrs=system_attrs))


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)
