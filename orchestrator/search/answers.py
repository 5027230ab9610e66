"""Answers to a running trial whose objective requests a parameter: the study's own value, or one
from the sampler.
"""

from __future__ import annotations

import math
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial

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
from orchestrator.search.discovered import (
    Discovered,
    check_agrees,
    common,
    group_of,
    undeclared,
    widened,
)
from orchestrator.search.gp.sampler import HybridGPSampler
from orchestrator.search.samplers import GeneticSampler
from orchestrator.search.space import (
    Parameter,
    check_exist,
    check_limits,
    describe_one,
    in_steps,
    unmistakable,
)
from orchestrator.search.tpe.sampler import HybridTPESampler
from orchestrator.search.trials.history import BOUNDS_KEY, FIXED_KEY, PART_KEY
from orchestrator.search.trials.mirror import Mirror, frozen
from orchestrator.search.trials.quasirandom import POSITION_KEY, strided

ENOUGH = 10
"""With fewer trials that have a parameter, those that lack it are used as well."""
Warned: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    `internal` is in the representation of the requested distribution; `new` the parameter to store
    with the trial, None if it has it already, and `value` its true value; `warnings` are classes
    and texts, for the objective.
    """

    internal: float
    new: Param | None = None
    value: JSONValue = None
    warnings: Warned = ()


class Answers:
    """The answers to one running trial, as Optuna's `Trial` would give them; a name is answered the
    same way every time.

    A name of the grid or the search has the value that the trial got when it was created. Another
    one keeps the value it had in an earlier attempt, has one given by hand or the one that `params`
    has for it, or is left to the sampler: once per trial for all names discovered so far, which are
    drawn together for the trial's cell, and by itself for a name that is new or was requested with
    other limits.

    Args:
        trial: what is stored of the trial.
        ticket: ordinal of its ticket; with `retry` (how often it had failed before) and the study's
            seed it makes draws reproducible.
    """

    def __init__(
        self,
        spec: StudySpec,
        declared: Mapping[str, Parameter],
        discovered: Discovered,
        mirror: Mirror,
        sampler: Any,
        trial: TrialNews,
        *,
        ticket: int,
        retry: int,
    ) -> None:
        self._declared = declared
        self._discovered = discovered
        self._mirror = mirror
        self._sampler = sampler
        self._number = trial.number
        self._attrs = dict(trial.system_attrs)
        self._by_hand: dict[str, JSONValue] = dict(self._attrs.get(FIXED_KEY, {}))
        self._had: dict[str, tuple[BaseDistribution, float]] = {}
        self._params = spec.params
        self._seed = [abs(spec.seed), int(spec.seed < 0)]
        self._n_cells, self._ticket, self._retry = spec.n_cells, ticket, retry
        self._drawn: dict[str, Any] = {}
        for param in trial.params:
            self.keep(param)

    def keep(self, param: Param) -> None:
        """From now on the trial has this parameter."""
        self._had[param.name] = json_to_distribution(param.distribution), param.internal

    def answer(
        self, name: str, kind: str, arguments: Mapping[str, Any], fixed: Sequence[JSONValue] = ()
    ) -> Answer:
        """The value of one parameter; a name that was answered before does not reach the sampler
        again.

        Args:
            fixed: the value that the trial's resolved `params` have for the name; nothing where
                they have none.

        Raises:
            ValueError: the arguments make no distribution, contradict what the study knows of that
                name, or exclude the value that it has.
            TypeError: an argument is of the wrong type.
        """
        requested, warned = distribution_of(name, kind, arguments)
        parameter = self._declared.get(name)
        if parameter is not None:
            return Answer(self._declared_value(parameter, requested), warnings=warned)
        if name in self._had:
            before, internal = self._had[name]
            check_agrees(name, before, requested)
            if before != requested:
                warned += (
                    (
                        "RuntimeWarning",
                        (
                            f"parameter {name!r} is {before} in this trial; {requested} changes "
                            "nothing"
                        ),
                    ),
                )
            return Answer(internal, warnings=warned)
        if name in self._discovered.first:
            check_agrees(name, self._discovered.first[name], requested)
        internal = in_steps(requested, self._new_value(name, requested, fixed))
        return Answer(
            internal,
            Param(name, internal, distribution_to_json(requested)),
            requested.to_external_repr(internal),
            warned,
        )

    def check_of(self, new: Param) -> Callable[[str], None] | None:
        """Returns the check of a new parameter against the distribution (JSON) that another trial
        has for its name.

        It raises ValueError if the two are incompatible. None if `answer` has checked already,
        against a trial learnt before.
        """
        if new.name in self._discovered.first:
            return None
        return lambda before: check_agrees(
            new.name, json_to_distribution(before), json_to_distribution(new.distribution)
        )

    def _declared_value(self, parameter: Parameter, requested: BaseDistribution) -> float:
        where = f"{'grid' if parameter.grid else 'search'}.{parameter.path}"
        if parameter.path not in self._had:
            try:
                check_exist([parameter], self._cell())
            except ConfigError as error:
                raise ValueError(f"search.{error}") from None
            raise ValueError(f"{where}: this trial was created without it")
        internal = self._had[parameter.path][1]
        value = parameter.true_value(internal)
        # For a searched one all values, so that a mistake shows in the first trial.
        d = parameter.now
        limits = [*parameter.choices_now] or [d.to_external_repr(end) for end in (d.low, d.high)]  # type: ignore[attr-defined]
        for one in [value] if parameter.grid else [*limits, value]:
            if internal_in(requested, one) is None:
                wanted = describe_one(undeclared(parameter.path, requested))
                raise ValueError(
                    f"{where}: {unmistakable(one)} is outside what the objective requests, {wanted}"
                )
        found = internal_in(requested, value)
        assert found is not None
        return found

    def _cell(self) -> dict[str, JSONValue]:
        axes = [parameter for parameter in self._declared.values() if parameter.grid]
        return {axis.path: axis.true_value(self._had[axis.path][1]) for axis in axes}

    def _new_value(
        self, name: str, requested: BaseDistribution, fixed: Sequence[JSONValue]
    ) -> float:
        if name in self._by_hand:
            given = internal_in(requested, self._by_hand[name])
            if given is None:
                wanted = describe_one(undeclared(name, requested))
                raise ValueError(
                    f"{name}={unmistakable(self._by_hand[name])} was enqueued; the objective "
                    f"requests {wanted}"
                )
            return given
        if fixes(fixed, requested):
            return _fixed_value(name, requested, fixed[0])
        if requested.single():
            return 0.0 if isinstance(requested, CategoricalDistribution) else float(requested.low)  # type: ignore[attr-defined]
        if name not in self._drawn and name in self._discovered.space:
            self._draw_group(name)
        if name in self._drawn:
            internal = float(requested.to_internal_repr(self._drawn[name]))
            if requested._contains(internal):
                return internal
        return float(requested.to_internal_repr(self._drawn_alone(name, requested)))

    def _draw_group(self, name: str) -> None:
        """Draws `name` together with what belongs to it, as far as this trial has no values of them
        yet.
        """
        others, space = self._others(), dict(self._discovered.space)
        trials = [trial for trial in others if name in trial.params]
        if isinstance(self._sampler, HybridTPESampler):
            space = group_of(name, space, others)
        elif isinstance(self._sampler, GeneticSampler):
            # it breeds only from trials that have every parameter
            space = common(space, others)
            trials = [trial for trial in others if space.items() <= trial.distributions.items()]
        else:
            trials = others
            space |= self._discovered.widest if isinstance(self._sampler, HybridGPSampler) else {}
        self._drawn |= self._sample(space, trials if len(trials) >= ENOUGH else others, name)[0]

    def _drawn_alone(self, name: str, requested: BaseDistribution) -> Any:
        """A value for one name, learnt from the trials whose value would be valid for this request.

        A Gaussian process learns it from all trials together with the other names, within the
        requested limits.
        """
        others = self._others()
        before = self._discovered.widest.get(name) or self._discovered.space.get(name)
        wide = None if before is None else widened(before, requested)
        if isinstance(self._sampler, HybridGPSampler) and wide is not None:
            space = {**self._discovered.space, **self._discovered.widest, name: wide}
            limits = [float(requested.low), float(requested.high)]  # type: ignore[attr-defined]
            return self._sample(space, others, name, {name: limits})[0][name]
        trials = [
            t
            for t in others
            if name in t.params and internal_in(requested, t.params[name]) is not None
        ]
        if len(trials) < ENOUGH:
            trials += [t for t in others if name not in t.params]
        space = (
            {} if isinstance(self._sampler, GeneticSampler) else {name: requested}
        )  # nor does Optuna's NSGA-II breed such a name
        drawn, ask_independent = self._sample(space, trials, name)
        return drawn[name] if name in drawn else ask_independent(name, requested)

    def _others(self) -> list[FrozenTrial]:
        return [
            trial
            for trial in self._mirror.get_all_trials(0, deepcopy=False)
            if trial.number != self._number
        ]

    def _sample(
        self,
        space: Mapping[str, BaseDistribution],
        trials: Sequence[FrozenTrial],
        key: str,
        bounds: Mapping[str, list[float]] = MappingProxyType({}),
    ) -> tuple[dict[str, Any], Any]:
        """Values of `space` from the sampler, which sees the grid and `trials`, and a function that
        asks it for one more name.
        """
        axes = {
            path: parameter.distribution
            for path, parameter in self._declared.items()
            if parameter.grid
        }
        fixed = {path: d.to_external_repr(self._had[path][1]) for path, d in axes.items()}
        fixed |= {
            name: d.to_external_repr(self._had[name][1])
            for name, d in space.items()
            if name in self._had
        }
        fixed |= {
            name: value[0]
            for name, d in space.items()
            if name not in fixed and (value := self._to_be(name, d))
        }
        fixed |= {name: value for name, value in self._by_hand.items() if name in space}
        number = zlib.crc32(key.encode())
        seeds = [
            np.random.SeedSequence([*self._seed, *rest, number])
            for rest in ((self._ticket, self._retry, 3), (self._retry, 4))
        ]
        seed, sequence_seed = (int(sequence.generate_state(1)[0]) for sequence in seeds)
        position = (strided(self._ticket, self._n_cells, len(space)), sequence_seed)
        attrs = {**self._attrs, FIXED_KEY: fixed, BOUNDS_KEY: dict(bounds), POSITION_KEY: position}
        if len(self._declared) > len(axes) or self._discovered.first.keys() - space.keys():
            attrs[PART_KEY] = True
        trial = frozen(TrialNews(self._number, "RUNNING", system_attrs=attrs))
        study = self._mirror.restricted([*trials, trial]).study(sampler=self._sampler)
        self._sampler.reseed(seed)
        drawn = self._sampler.sample_relative(study, trial, {**axes, **space}) if space else {}
        return drawn, lambda name, requested: self._sampler.sample_independent(
            study, trial, name, requested
        )

    def _to_be(self, name: str, distribution: BaseDistribution) -> tuple[JSONValue, ...]:
        """The value that `params` will give a name once it is requested, as far as it can be told
        here.
        """
        value = plain_value(self._params, name)
        return (
            value
            if fixes(value, distribution) and internal_in(distribution, value[0]) is not None
            else ()
        )


def plain_value(params: Mapping[str, JSONValue], name: str) -> tuple[JSONValue, ...]:
    """What unresolved `params` hold at the dotted path `name`: one value, or none where that is a
    section or interpolated.
    """
    value = at(params, name) if has(params, name) else {}
    return () if isinstance(value, Mapping) or "${" in str(value) else (value,)


def fixes(values: Sequence[JSONValue], requested: BaseDistribution) -> bool:
    """Whether the value in `params` is the answer. Null is if it is one of the choices; otherwise
    it leaves the name open.
    """
    return bool(values) and (values[0] is not None or internal_in(requested, None) is not None)


def _fixed_value(name: str, requested: BaseDistribution, value: JSONValue) -> float:
    internal = internal_in(requested, value)
    if internal is None:
        wanted = describe_one(undeclared(name, requested))
        raise ValueError(
            f"params.{name}={unmistakable(value)}: outside what the objective requests, {wanted}"
        )
    return internal


def distribution_of(
    name: str, kind: str, arguments: Mapping[str, Any]
) -> tuple[BaseDistribution, Warned]:
    """Optuna's distribution for the arguments of ``trial.suggest_<kind>``, and Optuna's warnings.

    Raises:
        ValueError: they do not make one, or one that no storage can hold.
        TypeError: an argument is of the wrong type.
    """
    made: BaseDistribution
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if kind == "categorical":
                made = CategoricalDistribution(arguments["choices"])
            else:
                for limit in ("low", "high", "step"):
                    if isinstance(arguments[limit], float) and not math.isfinite(arguments[limit]):
                        raise ValueError(f"`{limit}` must be finite, but got {arguments[limit]}.")
                made = (
                    FloatDistribution(**arguments)
                    if kind == "float"
                    else IntDistribution(**arguments)
                )
                check_limits(f"suggest_{kind}", made.low, made.high)
        except (ValueError, ConfigError) as error:
            raise ValueError(f"parameter {name!r}: {error}") from None
        except ArithmeticError as error:  # from the decimals in which Optuna counts steps
            raise ValueError(
                f"parameter {name!r}: the step is too small for a range that wide"
            ) from error
    return made, tuple((warning.category.__name__, str(warning.message)) for warning in caught)


def internal_in(requested: BaseDistribution, value: JSONValue) -> float | None:
    """Optuna's internal number for a true value of any distribution; None if it is outside
    `requested`.
    """
    if isinstance(requested, CategoricalDistribution):
        return next(
            (float(i) for i, choice in enumerate(requested.choices) if same_value(choice, value)),
            None,
        )
    is_number = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
    return (
        in_steps(requested, float(value))
        if is_number and requested._contains(float(value))
        else None
    )


def values_by_hand(
    declared: Mapping[str, Parameter],
    values: Mapping[str, JSONValue],
    requested: Mapping[str, str],
    params: Mapping[str, JSONValue] = MappingProxyType({}),
) -> dict[str, JSONValue]:
    """The typed values whose names objectives have requested; `requested` holds the distribution of
    each such name.

    Raises:
        ConfigError: a value is outside that distribution, or differs from the one that `params`
            fix.
    """
    found = {}
    for name, value in values.items():
        if name in requested and name not in declared:
            distribution = json_to_distribution(requested[name])
            if internal_in(distribution, value) is None:
                wanted = describe_one(undeclared(name, distribution))
                raise ConfigError(
                    f"{name}={unmistakable(value)}: outside what this study's objective "
                    f"requests, {wanted}"
                )
            there = plain_value(params, name)
            if fixes(there, distribution) and not same_value(there[0], value):
                raise ConfigError(
                    f"{name}={value_label(value)}: this study fixes it to "
                    f"params.{name}={value_label(there[0])}"
                )
            found[name] = value
    return found
