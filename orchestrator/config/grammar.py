"""Hydra's sweep grammar, read as grid axes and searched parameters. Pure: text in, `Axis` and
`Searched` out, and back.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Axis, JSONValue, Searched, value_label

TAGS = ("log", "grid")
# per axis: more is a slip such as range(0, 1, 1e-6), and every cell would be written out
MAX_VALUES = 10_000


def parse_override(text: str) -> Override:
    """Returns one command-line word as Hydra reads it, sweeps included.

    Raises:
        ConfigError: it is not an override, or uses a function or tag that has no meaning here.
    """
    override: Override = _parse(text, "override", text)
    return override


def parse_value(text: str, *, source: str) -> Any:
    """Returns a value written in the override grammar: a `Sweep`, or a plain value.

    Args:
        source: the setting as the user wrote it, for the message.

    Raises:
        ConfigError: as `parse_override`.
    """
    return plain(_parse(text, "value", source))


def plain(value: Any) -> Any:
    """Returns a parsed value without its quotes; a `Sweep` is returned as it is."""
    return value if isinstance(value, Sweep) else Override._convert_value(value)


def declaration(path: str, sweep: Sweep, *, section: str | None, source: str) -> Axis | Searched:
    """Returns what `sweep` declares for the parameter `path`.

    Args:
        section: ``grid`` or ``search`` where YAML says so; None on the command line, where a simple
            list and the tag ``grid`` make an axis and everything else is searched.
        source: the declaration as the user wrote it, for the message.

    Raises:
        ConfigError: the sweep has no meaning, no value, or bounds in the wrong order.
    """
    unknown = sorted(sweep.tags - set(TAGS))
    if unknown:
        raise ConfigError(
            f"{source}: unknown tag {unknown[0]!r}{did_you_mean(unknown[0], TAGS)}; there are "
            f"{', '.join(TAGS)}"
        )
    if section == "search" and "grid" in sweep.tags:
        raise ConfigError(
            f"{source}: the tag grid contradicts search; write the values under grid: {path}: […]"
        )
    in_grid = section == "grid" or "grid" in sweep.tags
    in_grid |= section is None and isinstance(sweep, ChoiceSweep) and sweep.simple_form
    if not in_grid:
        return _searched(path, sweep, source)
    if "log" in sweep.tags:
        raise ConfigError(
            f"{source}: the tag log applies to searched intervals only; a grid takes its values "
            "as they are listed"
        )
    if isinstance(sweep, IntervalSweep):
        raise ConfigError(
            f"{source}: an interval is not a list of values, which an axis needs; write "
            f"{path}={_edge(sweep.start)},{_edge(sweep.end)}"
        )
    if isinstance(sweep, RangeSweep):
        return axis(path, _range_values(sweep, source), source=source)
    assert isinstance(sweep, ChoiceSweep)
    return axis(path, map(Override._convert_value, sweep.list), source=source)


def axis(path: str, values: Iterable[JSONValue], *, source: str) -> Axis:
    """Returns a grid axis of distinct, finite values.

    Raises:
        ConfigError: no value, the same value twice, or one that JSON cannot hold.
    """
    return Axis(path, _distinct(values, source))


def categorical(path: str, values: Iterable[JSONValue], *, source: str) -> Searched:
    """Returns a searched parameter that takes one of `values`.

    Raises:
        ConfigError: as `axis`, or there is only one value.
    """
    choices = _distinct(values, source)
    if len(choices) == 1:
        _single(path, choices[0], source)
    return Searched(path, "categorical", choices=choices)


def normal_form(declared: Axis | Searched) -> str | list[JSONValue] | dict[str, JSONValue]:
    """Returns the YAML of a declaration: the inverse of reading it under ``grid`` or ``search``."""
    if isinstance(declared, Axis):
        return list(declared.values)
    if declared.when:
        when = {
            axis: values[0] if len(values) == 1 else list(values)
            for axis, values in declared.when.items()
        }
        return {"space": _sweep_of(declared), "when": when}
    return _sweep_of(declared)


def _sweep_of(declared: Searched) -> str | list[JSONValue]:
    if declared.kind == "categorical":
        return list(declared.choices)
    low, high = declared.low, declared.high
    assert low is not None
    assert high is not None
    if declared.step is not None:
        return f"range({low!r}, {_stop(low, high, declared.step)!r}, {declared.step!r})"
    text = f"interval({low!r}, {high!r})"
    text = f"int({text})" if declared.kind == "int" else text
    return f"tag(log, {text})" if declared.log else text


def check_finite(value: JSONValue, source: str) -> None:
    """Raises ConfigError unless `value` and all it holds can be stored: JSON with string keys and
    finite numbers.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{source}: the key {key!r} must be a string: quote it")
            check_finite(key, source)
            check_finite(item, source)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_finite(item, source)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"{source}: {value} cannot be stored; use a finite number, null, or a quoted word"
        )
    elif isinstance(value, str):
        _check_text(value, source)
    elif value is not None and not isinstance(value, (int, float)):
        raise ConfigError(
            f"{source}: {value!r} is of type {type(value).__name__}; use numbers, words, lists "
            "and mappings"
        )


def _check_text(text: str, source: str) -> None:
    # As JSON both look harmless, until PostgreSQL parses a study's JSON.
    if "\0" in text:
        raise ConfigError(f"{source}: text with a NUL character cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{source}: text with a lone surrogate cannot be stored; is it UTF-8?"
        ) from None


# --------------------------------------------------------------------------------------- the parser


def _parse(text: str, rule: str, source: str) -> Any:
    source = value_label(source)  # one line, whatever the user wrote
    try:
        return _parser().parse_rule(text, rule)
    except ValueError as error:  # an integer of more digits than Python takes
        raise ConfigError(f"{source}: {error}") from error
    except HydraException as error:
        cause: BaseException | None = error
        while cause is not None:  # our own errors arrive wrapped by the function call that met them
            if isinstance(cause, ConfigError):
                raise ConfigError(f"{source}: {cause}") from error
            cause = cause.__cause__
        reason = " ".join(str(error).split()) or "not understood"
        hint = "" if "=" in text or rule == "value" else "; settings are written key=value"
        if re.match(r"\+{0,2}objective\.command=", text):
            hint = (
                "; a command with '=' or other special characters needs quotes inside the shell's: "
                "'objective.command=\"python train.py +x=1\"'"
            )
        raise ConfigError(f"{source}: not in Hydra's override grammar ({reason}){hint}") from error


@functools.cache
def _parser() -> OverridesParser:
    functions = create_functions()
    replaced: dict[str, Callable[..., Any]] = {
        name: _keep_tags(functions.functions[name]) for name in ("float", "str", "bool")
    }
    replaced["int"] = _whole(_keep_tags(functions.functions["int"]))
    replaced["tag"] = _join_tags(functions.functions["tag"])
    replaced["sort"] = _sort_values(functions.functions["sort"])
    replaced["shuffle"] = _refused(
        functions.functions["shuffle"], "shuffle(…) has no meaning here; write the list itself"
    )
    replaced["glob"] = _refused(
        functions.functions["glob"], "glob(…) is not supported; list the options"
    )
    for name, function in replaced.items():
        # Functions has no way to replace one: registering a name twice is an error.
        del functions.definitions[name], functions.functions[name]
        functions.register(name, function)
    return OverridesParser(functions)


def _refused(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(message)

    return refuse


def _keep_tags(cast: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's casts lose the tags of choices and ranges: ``int(tag(log, range(1, 9)))``."""

    @functools.wraps(cast)
    def kept(*args: Any, value: Any = None) -> Any:
        source = args[0] if args else value
        tags = set(source.tags) if isinstance(source, Sweep) else set()
        result = cast(*args, value=value)
        if isinstance(result, Sweep):
            result.tags |= tags
        return result

    return kept


def _whole(cast: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra cuts ``int(interval(1.5, 8))`` down to 1…8."""

    @functools.wraps(cast)
    def whole(*args: Any, value: Any = None) -> Any:
        source = args[0] if args else value
        bounds: tuple[Any, ...] = ()
        if isinstance(source, IntervalSweep):
            bounds = (source.start, source.end)
        elif isinstance(source, RangeSweep):
            bounds = (source.start, source.stop, source.step)
        if any(not math.isfinite(bound) or bound != int(bound) for bound in bounds):
            raise ConfigError("int(…) needs whole numbers as bounds")
        return cast(*args, value=value)

    return whole


def _join_tags(tag: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's outer tag replaces the inner: ``tag(log, tag(grid, …))``."""

    @functools.wraps(tag)
    def joined(*args: Any, sweep: Any = None) -> Any:
        source = sweep if sweep is not None else args[-1] if args else None
        tags = set(source.tags) if isinstance(source, Sweep) else set()
        result = tag(*args, sweep=sweep)
        result.tags |= tags
        return result

    return joined


def _sort_values(sort: Callable[..., Any]) -> Callable[..., Any]:
    """Hydra's sort of a range whose step does not divide it has other values than the range."""

    @functools.wraps(sort)
    def sorted_values(
        *args: Any, sweep: Any = None, list: Any = None, reverse: bool = False
    ) -> Any:
        source = sweep if sweep is not None else args[0] if args else None
        if isinstance(source, RangeSweep):
            raise ConfigError(
                "sort(…) takes a list of values; a range is sorted already, and a negative step "
                "makes it descend"
            )
        return sort(*args, sweep=sweep, list=list, reverse=reverse)

    return sorted_values


# --------------------------------------------------------------------------------- what it declares


def _searched(path: str, sweep: Sweep, source: str) -> Searched:
    log = "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        if log:
            raise ConfigError(f"{source}: the tag log needs an interval or a range, not a choice")
        return categorical(path, map(Override._convert_value, sweep.list), source=source)
    step: float | int | None = None
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None
        assert high is not None
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigError(f"{source}: bounds must be finite numbers")
        if low > high:
            raise ConfigError(
                f"{source}: the low end {_edge(low)} must be less than the high end {_edge(high)}"
            )
    else:
        assert isinstance(sweep, RangeSweep)
        low, high, step = _range_ends(sweep, source)
    if low == high:
        _single(path, low, source)
    kind: Any = (
        "int"
        if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float)
        else "float"
    )
    if kind == "int" and step == 1:
        step = None
    if log and low <= 0:
        raise ConfigError(f"{source}: the tag log needs a low end greater than 0, not {_edge(low)}")
    if log and step is not None:
        raise ConfigError(
            f"{source}: the tag log and a step of {_edge(step)} exclude each other; leave out "
            "one of them"
        )
    return Searched(path, kind, low=low, high=high, step=step, log=log)


def _single(path: str, value: JSONValue, source: str) -> NoReturn:
    raise ConfigError(
        f"{source}: there is only one value, so nothing to search; set it as a plain value: "
        f"{path}={_edge(value)}"
    )


def _edge(value: JSONValue) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _distinct(values: Iterable[JSONValue], source: str) -> tuple[JSONValue, ...]:
    """The values as they were written, all different (1, 1.0 and true are equal)."""
    result: list[JSONValue] = []
    seen: set[Any] = set()
    for value in values:
        check_finite(value, source)
        hashable = isinstance(value, (str, int, float, bool)) or value is None
        if value in (seen if hashable else result):
            raise ConfigError(
                f"{source}: {value_label(value)} is listed twice (true equals 1, and false "
                "equals 0)"
            )
        result.append(value)
        if hashable:
            seen.add(value)
        if len(result) > MAX_VALUES:
            raise ConfigError(f"{source}: more than {MAX_VALUES:,} values")
    if not result:
        raise ConfigError(f"{source}: no value is given; give at least one")
    return tuple(result)


def _range_values(sweep: RangeSweep, source: str) -> list[float | int]:
    start, step, count, whole = _range_count(sweep, source)
    if count > MAX_VALUES:
        raise ConfigError(f"{source}: more than {MAX_VALUES:,} values")
    exact = (start + i * step for i in range(count))
    return [int(value) if whole else float(value) for value in exact]


def _range_ends(sweep: RangeSweep, source: str) -> tuple[float | int, float | int, float | int]:
    """The least and the greatest value, both inclusive, and the distance between neighbours."""
    start, step, count, whole = _range_count(sweep, source)
    if count == 0:
        raise ConfigError(f"{source}: the range is empty; as in Hydra, its end is excluded")
    low, high = sorted((start, start + (count - 1) * step))
    if whole:
        return int(low), int(high), int(abs(step))
    return float(low), float(high), float(abs(step))


def _range_count(sweep: RangeSweep, source: str) -> tuple[Fraction, Fraction, int, bool]:
    """Start, step, number of values, and whether they are whole.

    Exact in decimals: Hydra counts in binary, and ``range(0, 0.9, 0.3)`` has four values there, 0.9
    among them.
    """
    bounds = (sweep.start, sweep.stop, sweep.step)
    if any(bound is None or not math.isfinite(bound) for bound in bounds):
        raise ConfigError(f"{source}: bounds must be finite numbers")
    if sweep.step == 0:
        raise ConfigError(f"{source}: the step must not be 0")
    start, stop, step = (Fraction(str(bound)) for bound in bounds)
    return (
        start,
        step,
        max(0, math.ceil((stop - start) / step)),
        all(isinstance(bound, int) for bound in bounds),
    )


def _stop(low: float | int, high: float | int, step: float | int) -> float | int:
    """An end for ``range(low, end, step)`` such that its last value is `high`."""
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
        return high + step
    exact = Fraction(str(high)) + Fraction(str(step))
    wanted = round((exact - Fraction(str(low))) / Fraction(str(step)))
    pretty = float(exact)
    count = math.ceil((Fraction(str(pretty)) - Fraction(str(low))) / Fraction(str(step)))
    # rounded across a value: stop half-way
    return pretty if count == wanted else float(exact - Fraction(str(step)) / 2)
