"""The shape of each schedule by name: a pure function of the step, as fractions of the peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple


class Point(NamedTuple):
    """Where a schedule stands at one step.

    Attributes:
        level: the learning rate as a fraction of the peak.
        height: the position within a cycle, from 0 (its foot) to 1 (its top); momentum is cycled
            against it.
    """

    level: float
    height: float


Shape = Callable[[int], Point]


@dataclass(frozen=True)
class Kind:
    """One schedule by name.

    Attributes:
        shape: makes the function of the step from the number of steps and the options.
        defaults: the options that this schedule takes, with their defaults.
        steps: the fewest steps that its options leave room for.
        cycles_momentum: whether ``momentum`` is an option.
    """

    shape: Callable[[int, Mapping[str, Any]], Shape]
    defaults: Mapping[str, Any]
    steps: Callable[[Mapping[str, Any]], int] = lambda _options: 1
    cycles_momentum: bool = False


def with_warmup(shape: Shape, warmup_steps: int) -> Shape:
    """Puts a linear rise to the first level of `shape` before it, which neither starts at 0 nor
    repeats that level.
    """
    if warmup_steps == 0:
        return shape
    first = shape(0)

    def point(step: int) -> Point:
        if step >= warmup_steps:
            return shape(step - warmup_steps)
        return Point(first.level * (step + 1) / (warmup_steps + 1), first.height)

    return point


def _constant(_steps: int, _options: Mapping[str, Any]) -> Shape:
    return lambda _step: Point(1.0, 1.0)


def _step(steps: int, options: Mapping[str, Any]) -> Shape:
    stages = options["drops"] + 1

    def point(step: int) -> Point:
        level = max(options["low"], options["gamma"] ** (step * stages // steps))
        return Point(level, level)

    return point


def _exponential(steps: int, options: Mapping[str, Any]) -> Shape:
    def point(step: int) -> Point:
        level = options["low"] ** _progress(step, steps)
        return Point(level, level)

    return point


def _cosine(steps: int, options: Mapping[str, Any]) -> Shape:
    return lambda step: _between(options["low"], _fall(_progress(step, steps)))


def _cyclic(steps: int, options: Mapping[str, Any], top: Callable[[float], float]) -> Shape:
    """Triangles of equal length; `top` is how high the one at a given number of cycles reaches."""

    def point(step: int) -> Point:
        cycles = _progress(step, steps) * options["cycles"]
        triangle = 1 - abs(2 * (cycles - math.floor(cycles)) - 1)
        return _between(options["low"], triangle * top(cycles))

    return point


def _triangular(steps: int, options: Mapping[str, Any]) -> Shape:
    return _cyclic(steps, options, lambda _cycles: 1.0)


def _triangular2(steps: int, options: Mapping[str, Any]) -> Shape:
    return _cyclic(steps, options, lambda cycles: 0.5 ** math.floor(cycles))


def _exp_range(steps: int, options: Mapping[str, Any]) -> Shape:
    return _cyclic(steps, options, lambda cycles: float(options["gamma"] ** cycles))


def _sgdr(steps: int, options: Mapping[str, Any]) -> Shape:
    starts = _restarts(steps, options)

    def point(step: int) -> Point:
        cycle = max(index for index, start in enumerate(starts[:-1]) if start <= step)
        start, end = starts[cycle], starts[cycle + 1]
        return _between(options["low"], _fall(_progress(step - start, end - start)))

    return point


def _restarts(steps: int, options: Mapping[str, Any]) -> list[int]:
    """The first step of each cycle, and the number of steps; each cycle has two steps or more."""
    # By the last one: a large power of the growth is too large for a float, never too small.
    last = options["cycles"] - 1
    weights = [options["growth"] ** (cycle - last) for cycle in range(options["cycles"])]
    starts = [0]
    for cycle in range(1, len(weights)):
        exact = round(steps * sum(weights[:cycle]) / sum(weights))
        left = 2 * (len(weights) - cycle)
        starts.append(min(max(exact, starts[-1] + 2), steps - left))
    return [*starts, steps]


def _onecycle(steps: int, options: Mapping[str, Any]) -> Shape:
    low, last = options["low"], steps - 1
    top = min(max(options["rise"] * steps - 1, 0), last)

    def point(step: int) -> Point:
        if step <= top:
            return _between(low, 1 - _fall(step / top) if top else 1.0)
        return _between(low * options["final"], _fall((step - top) / (last - top)))

    return point


def _wsd(steps: int, options: Mapping[str, Any]) -> Shape:
    falling = max(1, round(options["decay"] * steps)) if steps > 1 else 0

    def point(step: int) -> Point:
        done = max(0, step + 1 - (steps - falling))
        return _between(options["low"], 1 - done / falling if done else 1.0)

    return point


def _progress(step: int, steps: int) -> float:
    """From 0 at the first step to 1 at the last."""
    return step / (steps - 1) if steps > 1 else 0.0


def _fall(progress: float) -> float:
    """Half a cosine, from 1 down to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def _between(base: float, height: float) -> Point:
    return Point(base + (1 - base) * height, height)


def _two_a_cycle(options: Mapping[str, Any]) -> int:
    return 2 * int(options["cycles"])


_CYCLIC: Final = {"low": 0.25, "cycles": 4}
KINDS: Final[Mapping[str, Kind]] = {
    "constant": Kind(_constant, {}),
    "step": Kind(
        _step, {"low": 0.0, "drops": 2, "gamma": 0.1}, steps=lambda options: options["drops"] + 1
    ),
    "exponential": Kind(_exponential, {"low": 1e-3}),
    "cosine": Kind(_cosine, {"low": 1e-3}),
    "triangular": Kind(_triangular, _CYCLIC, _two_a_cycle, cycles_momentum=True),
    "triangular2": Kind(_triangular2, _CYCLIC, _two_a_cycle, cycles_momentum=True),
    "exp_range": Kind(_exp_range, _CYCLIC | {"gamma": 0.5}, _two_a_cycle, cycles_momentum=True),
    "sgdr": Kind(_sgdr, {"low": 1e-3, "cycles": 3, "growth": 2.0}, _two_a_cycle),
    "onecycle": Kind(_onecycle, {"low": 0.04, "rise": 0.3, "final": 1e-4}, cycles_momentum=True),
    "wsd": Kind(_wsd, {"low": 1e-3, "decay": 0.2}),
}
