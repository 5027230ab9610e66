"""From what a user declared to Optuna's distributions: one for each parameter, the same in the
whole study. Pure.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Axis, JSONValue, Param, Searched, StudySpec, same_value, value_label

MAX_LABEL = 60
MAX_EXACT_INT = 2**53
LOG_RATIO = 4
"""A positive numeric axis whose largest value is this many times its smallest, or more, is ordered
by its logarithm.
"""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the study: its distribution, and the true value behind each choice when it
    is categorical.

    The distribution covers all that the parameter has been in the study; `narrowed` is what is
    searched now, None if that is all of it.
    """

    path: str
    distribution: BaseDistribution
    grid: bool
    choices: tuple[JSONValue, ...] = ()
    searched: Searched | None = None
    narrowed: BaseDistribution | None = None

    @property
    def now(self) -> BaseDistribution:
        """What new trials get a value of."""
        return self.narrowed or self.distribution

    @property
    def choices_now(self) -> tuple[JSONValue, ...]:
        """The choices that new trials get one of."""
        return self.searched.choices if self.searched is not None else self.choices

    @property
    def limits(self) -> list[float] | None:
        """Where new trials have it: lowest and highest value of a number, the places in `choices`
        otherwise; None: everywhere.
        """
        if isinstance(self.narrowed, CategoricalDistribution):
            return [self.internal(choice) for choice in self.choices_now]
        if isinstance(self.narrowed, FloatDistribution | IntDistribution):
            return [float(self.narrowed.low), float(self.narrowed.high)]
        return None

    @property
    def fixed(self) -> float | None:
        """The internal number that all new trials have where others had another; None if there is
        no such one.
        """
        return self.limits[0] if self.limits and self.limits[0] == self.limits[-1] else None

    @property
    def when(self) -> Mapping[str, tuple[JSONValue, ...]]:
        """The condition under which it exists: axes and their values; empty for one that always
        does.
        """
        return self.searched.when if self.searched is not None else {}

    def exists_in(self, cell: Mapping[str, JSONValue]) -> bool:
        """Whether a trial of that cell, which has a value for every axis, has this parameter."""
        return self.searched is None or self.searched.exists_in(cell)

    def internal(self, value: JSONValue) -> float:
        """Optuna's internal number of a true value.

        Raises:
            ConfigError: the value is not one this parameter takes.
        """
        if isinstance(self.distribution, CategoricalDistribution):
            for index, choice in enumerate(self.choices):
                if _identical(choice, value):
                    return float(index)
        elif (
            _is_number(value)
            and abs(value) <= sys.float_info.max
            and self.distribution._contains(float(value))
        ):
            return in_steps(self.distribution, float(value))
        raise ConfigError(
            f"{self.path}={value_label(value)}: not a value of this study's {describe_one(self)}"
        )

    def check_now(self, value: JSONValue) -> None:
        """Raises ConfigError if a new trial does not get that value, because it has been taken from
        what is searched.
        """
        if self.narrowed is not None and self.searched is not None:
            replace(self, distribution=self.narrowed, choices=self.choices_now).internal(value)

    def true_value(self, internal: float) -> JSONValue:
        """The value that user code receives for Optuna's internal number."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.choices[int(internal)]
        return self.distribution.to_external_repr(in_steps(self.distribution, internal))

    def param(self, internal: float) -> Param:
        """The parameter as Optuna's tables hold it."""
        return Param(
            self.path,
            in_steps(self.distribution, float(internal)),
            distribution_to_json(self.distribution),
        )


def in_steps(distribution: BaseDistribution, internal: float) -> float:
    """Optuna's internal number as one would write it: the third step of 0.1 from 0 is 0.3, not
    0.30000000000000004.
    """
    if not isinstance(distribution, FloatDistribution) or distribution.step is None:
        return internal
    low, step = Fraction(str(distribution.low)), Fraction(str(distribution.step))
    return float(low + round((Fraction(str(internal)) - low) / step) * step)


def parameters(spec: StudySpec) -> dict[str, Parameter]:
    """Every parameter of the study, grid axes first, in the order the user wrote them.

    Raises:
        ConfigError: an axis is empty, repeats a value or holds one that no storage can hold; limits
            that are not a range; a path that is both in grid and in search; a condition on
            something that is not an axis or not one of its values.
    """
    result: dict[str, Parameter] = {}
    for made in [
        *(_from_axis(axis) for axis in spec.grid),
        *(_from_searched(item) for item in spec.search),
    ]:
        if made.path in result:
            raise ConfigError(
                f"{made.path}: declared twice; a parameter may be in grid or search only once"
            )
        result[made.path] = made
    for made in result.values():
        for name, values in made.when.items():
            axis = result.get(name)
            if axis is None or not axis.grid:
                raise ConfigError(f"search.{made.path}.when: {name} is not an axis of the grid")
            for value in values:
                axis.internal(value)
    return result


def by_hand(
    spec: StudySpec, values: Mapping[str, JSONValue]
) -> tuple[dict[str, JSONValue], dict[str, JSONValue]]:
    """Splits typed values into a cell and values of searched parameters, each in the study's own
    form.

    An axis that is given no value takes the default in `params`.

    Raises:
        ConfigError: a parameter that the study neither has in its grid nor searches, or not in that
            cell; a value outside, or an axis without one.
    """
    declared = parameters(spec)
    for path, value in values.items():
        if path not in declared:
            raise ConfigError(
                f"{path}={value_label(value)}: not in this study's grid or search, nor "
                f"requested by a trial so far{did_you_mean(path, declared)}"
            )
        declared[path].check_now(value)
    cell, given = {}, {}
    for parameter in declared.values():
        if not parameter.grid and parameter.path in values:
            given[parameter.path] = parameter.true_value(parameter.internal(values[parameter.path]))
    for axis in spec.grid:
        if axis.path in values:
            found = [v for v in axis.values if same_value(v, values[axis.path])]
        else:
            default = _default(spec.params, axis.path)
            found = [
                v
                for v in axis.values
                if len(axis.values) == 1 or same_value(axis.content(v), default)
            ]
        if not found:
            there = ", ".join(map(value_label, axis.values))
            typed = axis.path in values
            what = (
                f"{axis.path}={value_label(values[axis.path])}: not on the grid"
                if typed
                else f"{axis.path} must be given"
            )
            raise ConfigError(f"{what}; the grid has {there}")
        cell[axis.path] = found[0]
    check_exist([declared[path] for path in given], cell)
    return cell, given


def check_exist(wanted: Iterable[Parameter], cell: Mapping[str, JSONValue]) -> None:
    """Raises ConfigError unless all the parameters exist in that cell."""
    for parameter in wanted:
        if not parameter.exists_in(cell):
            there = ", ".join(f"{axis}={value_label(cell[axis])}" for axis in parameter.when)
            raise ConfigError(
                f"{parameter.path}: exists only if {_condition(parameter)}, and not where {there}"
            )


def _condition(parameter: Parameter) -> str:
    return " and ".join(
        f"{axis}={'|'.join(map(value_label, values))}" for axis, values in parameter.when.items()
    )


def _default(params: Mapping[str, JSONValue], path: str) -> JSONValue:
    node: JSONValue = params
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """The one study-wide distribution of every parameter, grid and search.

    Raises:
        ConfigError: as `parameters`.
    """
    return {path: parameter.distribution for path, parameter in parameters(spec).items()}


def describe(spec: StudySpec) -> list[tuple[str, str]]:
    """Path and plain words for every parameter, for people.

    Raises:
        ConfigError: as `parameters`.
    """
    rows = []
    for parameter in parameters(spec).values():
        kind = "grid" if parameter.grid else "search"
        rows.append((parameter.path, f"{kind}: {describe_one(parameter)}"))
    return rows


def describe_one(parameter: Parameter) -> str:
    """One parameter in words: ``float from 0.0001 to 0.1 (log)``, ``one of a, b, if
    model.kind=sgd``.
    """
    condition = f", if {_condition(parameter)}" if parameter.when else ""
    d = parameter.now
    if isinstance(d, CategoricalDistribution):
        return "one of " + ", ".join(map(unmistakable, d.choices)) + condition
    assert isinstance(d, FloatDistribution | IntDistribution)
    word = "int" if isinstance(d, IntDistribution) else "float"
    step = f", step {d.step:g}" if d.step not in (None, 1) else ""
    return f"{word} from {d.low:g} to {d.high:g}{' (log)' if d.log else ''}{step}{condition}"


def unmistakable(value: JSONValue) -> str:
    """A value in Python's words, as the objective has it; text that reads like another value is
    quoted.
    """
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and (
        value.lower() in ("", "true", "false", "null", "none") or _reads_as_number(value)
    ):
        return json.dumps(value)
    return value_label(value)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_axis(axis: Axis) -> Parameter:
    distribution, choices = _axis_distribution(axis.path, axis.all_values)
    narrowed = _axis_distribution(axis.path, axis.values)[0] if axis.stored else None
    return Parameter(axis.path, distribution, grid=True, choices=choices, narrowed=narrowed)


def _axis_distribution(
    path: str, values: tuple[JSONValue, ...]
) -> tuple[BaseDistribution, tuple[JSONValue, ...]]:
    """The distribution of an axis of these values, and the choices if it is categorical."""
    where = f"grid.{path}"
    _check_values(where, values)
    if all(_is_number(value) for value in values):
        low, high = min(values), max(values)
        _check_width(where, low, high)
        log = low > 0 and high / low >= LOG_RATIO
        if all(isinstance(value, int) for value in values):
            return IntDistribution(low, high, log=log), ()
        return FloatDistribution(float(low), float(high), log=log), ()
    return CategoricalDistribution(_labels(values)), values


def _from_searched(item: Searched) -> Parameter:
    narrowed = None if item.stored is None else _searched_distribution(item)
    distribution = _searched_distribution(item.whole)
    choices = item.whole.choices if item.kind == "categorical" else ()
    return Parameter(item.path, distribution, False, choices, item, narrowed)


def _searched_distribution(item: Searched) -> BaseDistribution:
    where = f"search.{item.path}"
    if item.kind == "categorical":
        _check_values(where, item.choices)
        return CategoricalDistribution(_labels(item.choices))
    if item.kind not in ("int", "float"):
        raise ConfigError(f"{where}: kind must be float, int or categorical, not {item.kind!r}")
    for name, limit in (("low", item.low), ("high", item.high)):
        if not _is_number(limit):
            raise ConfigError(f"{where}: {name} must be a number, not {value_label(limit)}")
        _check_scalar(where, limit)
    assert item.low is not None
    assert item.high is not None
    _check_width(where, item.low, item.high)
    try:
        if item.kind == "float":
            return FloatDistribution(
                float(item.low), float(item.high), log=item.log, step=item.step
            )
        if any(float(limit) != int(limit) for limit in (item.low, item.high, item.step or 1)):
            raise ConfigError(
                f"{where}: an int parameter needs whole numbers as low, high and step"
            )
        return IntDistribution(
            int(item.low), int(item.high), log=item.log, step=int(item.step or 1)
        )
    except ArithmeticError as error:  # of the decimals in which Optuna counts steps
        raise ConfigError(
            f"{where}: the step {item.step} is too small for a range that wide"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{where}: {str(error).replace('`', '')}") from error


def _check_values(where: str, values: Sequence[JSONValue]) -> None:
    if not values:
        raise ConfigError(f"{where}: needs at least one value")
    given: set[tuple[object, object]] = set()
    for value in values:
        _check_scalar(where, value, "; in quotes it is a word, which may be of any length")
        if (alike := _key(value)) in given:
            raise ConfigError(f"{where}: {value_label(value)} is given twice")
        given.add(alike)


def _key(value: JSONValue) -> tuple[object, object]:
    """The same for values that an axis must not have both: numbers by size, all others as
    `_identical` compares them.
    """
    if isinstance(value, Mapping | list | tuple):
        return "container", json.dumps(value, sort_keys=True)
    return ("number" if _is_number(value) else type(value)), value


def _check_scalar(where: str, value: JSONValue, as_text: str = "") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not a finite number")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_EXACT_INT:
        raise ConfigError(
            f"{where}: {value} would be rounded: a whole number must be from -{MAX_EXACT_INT} to "
            f"{MAX_EXACT_INT} (2**53), because Optuna stores it as a float{as_text}"
        )


def check_limits(where: str, low: float, high: float) -> None:
    """Raises ConfigError unless a storage keeps the numbers from `low` to `high` as they are."""
    for limit in (low, high):
        _check_scalar(where, limit)
    _check_width(where, low, high)


def _check_width(where: str, low: float, high: float) -> None:
    if not math.isfinite(float(high) - float(low)):
        raise ConfigError(
            f"{where}: from {low:g} to {high:g} is wider than a float can say, about 1.8e308"
        )


def _labels(values: Sequence[JSONValue]) -> tuple[bool | int | float | str | None, ...]:
    """What Optuna's tables call each choice: scalars themselves, lists and dicts a short text; all
    different for ``==``.
    """
    # Optuna finds a choice by ==, so True would be taken for 1: such lists are labelled as text
    # throughout.
    scalars = [v for v in values if not isinstance(v, list | tuple | dict)]
    ambiguous = len(set(scalars)) < len(scalars)
    used: set[bool | int | float | str | None] = set()
    labels: list[bool | int | float | str | None] = []
    for value in values:
        label = value
        if isinstance(value, list | tuple | dict) or (ambiguous and not isinstance(value, str)):
            label = value_label(value)
        if isinstance(label, str) and len(label) > MAX_LABEL:
            label = label[: MAX_LABEL - 1] + "…"
        unique, again = label, 2
        while unique in used:
            unique, again = f"{label} #{again}", again + 1
        used.add(unique)
        labels.append(unique)
    return tuple(labels)


def _is_number(value: JSONValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _identical(a: JSONValue, b: JSONValue) -> bool:
    """Equality that tells True from 1 and 1 from 1.0, also inside lists and dicts."""
    if (
        isinstance(a, Mapping)
        or isinstance(b, Mapping)
        or isinstance(a, list | tuple)
        or isinstance(b, list | tuple)
    ):
        return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    return type(a) is type(b) and bool(a == b)
