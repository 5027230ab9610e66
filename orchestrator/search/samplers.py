"""The samplers that a study may name, behind one interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from orchestrator.errors import ConfigError
from orchestrator.search.gp.sampler import HybridGPSampler
from orchestrator.search.tpe.sampler import HybridTPESampler
from orchestrator.search.trials.history import BOUNDS_KEY, Column, columns, single_values
from orchestrator.search.trials.quasirandom import POSITION_KEY, unit_point
from orchestrator.settings import QMCSettings, SamplerSettings, Unreadable, check


class RandomCellSampler(BaseSampler):
    """Suggests the parameters a trial has not fixed uniformly at random on their scales, in its
    bounds.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self.reseed(seed)

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._rng = np.random.default_rng(seed)

    def reseed_rng(self) -> None:
        self.reseed(None)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = {
            c.name: c.external(float(c.spread(self._rng.random(1))[0]))
            for c in columns(search_space, trial)
        }
        return drawn | single_values(search_space, trial)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        column = Column.of(param_name, param_distribution)
        return column.external(float(column.spread(self._rng.random(1))[0]))


class QuasiRandomSampler(RandomCellSampler):
    """Suggests points of a low-discrepancy sequence: trial number (or ticket) i gets the i-th,
    whichever worker asks.

    Args:
        qmc_type: ``sobol`` or ``halton``.
        scramble: randomise the sequence by the study's seed.
        seed: for the scrambling if the trial does not carry one, and for parameters suggested one
            by one.
    """

    def __init__(
        self,
        *,
        qmc_type: str = QMCSettings.qmc_type,
        scramble: bool = QMCSettings.scramble,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self._kind = qmc_type
        self._scramble = scramble
        self._sequence_seed = seed

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        searched = columns(search_space, trial)
        suggestion = single_values(search_space, trial)
        if searched:
            index, seed = trial.system_attrs.get(POSITION_KEY, (trial.number, self._sequence_seed))
            kind: Any = self._kind
            unit = unit_point(len(searched), int(index), seed, kind, self._scramble)
            suggestion |= {
                c.name: c.external(float(c.spread(unit[j : j + 1])[0]))
                for j, c in enumerate(searched)
            }
        return suggestion


class GeneticSampler(NSGAIISampler):
    """Optuna's NSGA-II over the parameters a trial has not fixed; offspring are moved into the
    trial's bounds.
    """

    def reseed(self, seed: int | None) -> None:
        """Makes all that follows depend on `seed` (None: on the operating system's entropy)."""
        self._rng.rng.seed(seed)
        self._random = RandomCellSampler(seed=seed)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        searched = columns(search_space, trial)
        bred = super().sample_relative(study, trial, {c.name: c.distribution for c in searched})
        suggestion = single_values(search_space, trial)
        for column in searched:
            if column.name in bred:
                internal = np.array(
                    [column.distribution.to_internal_repr(bred[column.name])], dtype=float
                )
                suggestion[column.name] = column.external(float(column.encode(internal)[0]))
        return suggestion

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        column = Column.of(param_name, param_distribution).within(
            trial.system_attrs.get(BOUNDS_KEY, {}).get(param_name)
        )
        return column.external(float(column.spread(self._random._rng.random(1))[0]))


_CLASSES: dict[str, type[BaseSampler]] = {
    "tpe": HybridTPESampler,
    "gp": HybridGPSampler,
    "random": RandomCellSampler,
    "qmc": QuasiRandomSampler,
    "nsga2": GeneticSampler,
}


def make_sampler(settings: SamplerSettings) -> BaseSampler:
    """The sampler that the study's settings name; reseed it before use.

    Raises:
        ConfigError: this version has no such sampler or option, or a value breaks its rule.
    """
    if isinstance(settings, Unreadable):
        raise ConfigError(settings.why)
    check("sampler", settings)
    options = {key: value for key, value in vars(settings).items() if key != "name"}
    return _CLASSES[settings.name](**options)
