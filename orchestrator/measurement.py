"""What a probe found in a cell, and what a trial of that cell takes from it. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.errors import did_you_mean
from orchestrator.model import JSONValue, Searched, StudySpec, has, value_label

KEYS: Final = ("bounds", "fixed", "infeasible", "largest", "facts")
"""What a probe may return."""
VERSION: Final = "version"
"""The key of a probe's declaration that its function does not get: raise it to measure anew."""


class MeasurementError(ValueError):
    """What a probe returned cannot be used; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """What a probe found in a cell.

    Attributes:
        bounds: the limits within which the optimum of a searched number is expected.
        fixed: the one value that a searched parameter gets.
        infeasible: why no device of this type can run the cell; None if it can.
        largest: the largest value of a numeric grid axis that can be run, all else being as in this
            cell.
        facts: whatever people should know.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fixed: Mapping[str, JSONValue] = field(default_factory=dict)
    infeasible: str | None = None
    largest: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, JSONValue] = field(default_factory=dict)

    @staticmethod
    def of(
        returned: Mapping[str, Any], spec: StudySpec, cell: Mapping[str, JSONValue]
    ) -> Measurement:
        """The measurement in what a probe returned, as plain JSON data.

        Bounds are clipped to the declared range.

        Raises:
            MeasurementError: an unknown key; a parameter that is not searched in this cell, or an
                axis that is not a numeric axis; bounds that are no range or leave nothing of the
                declared one; a fixed value that the parameter does not take.
        """
        for key in returned:
            if key not in KEYS:
                raise MeasurementError(
                    f"it returned {value_label(key)!r}{did_you_mean(str(key), KEYS)}; a probe "
                    f"returns a mapping of {', '.join(KEYS)}"
                )
        sections = {key: returned.get(key) or {} for key in KEYS if key != "infeasible"}
        for key, section in sections.items():
            if not isinstance(section, Mapping):
                raise MeasurementError(f"{key}={value_label(section)}: must be a mapping")
        infeasible = returned.get("infeasible")
        if infeasible is not None and (not isinstance(infeasible, str) or not infeasible.strip()):
            raise MeasurementError(
                f"infeasible={value_label(infeasible)}: must be the reason, in words"
            )
        searched = {p.path: p for p in spec.search if p.exists_in(cell)}
        return Measurement(
            bounds={
                path: _bounds(_of(searched, path, "bounds"), limits)
                for path, limits in sections["bounds"].items()
            },
            fixed={
                path: _fixed(_of(searched, path, "fixed"), value)
                for path, value in sections["fixed"].items()
            },
            infeasible=infeasible,
            largest={
                path: _largest(spec, path, value) for path, value in sections["largest"].items()
            },
            facts=dict(sections["facts"]),
        )

    def to_json(self) -> dict[str, JSONValue]:
        """As it is stored: what is empty is left out."""
        data: dict[str, JSONValue] = {
            "bounds": {path: list(limits) for path, limits in self.bounds.items()},
            "fixed": dict(self.fixed),
            "infeasible": self.infeasible,
            "largest": dict(self.largest),
            "facts": dict(self.facts),
        }
        return {key: value for key, value in data.items() if value}

    @property
    def label(self) -> str:
        """What it means for the search, for people; what it does not change, it does not say."""
        parts = [
            f"{path} from {low:.3g} to {high:.3g}" for path, (low, high) in self.bounds.items()
        ]
        parts += [f"{path}={value_label(value)}" for path, value in self.fixed.items()]
        parts += [f"largest {path} {value:g}" for path, value in self.largest.items()]
        if self.infeasible is not None:
            parts.append(f"not feasible: {self.infeasible}")
        if not parts:
            reason = self.facts.get("reason")
            parts.append(f"nothing to narrow{f': {reason}' if isinstance(reason, str) else ''}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Narrowed:
    """What all probes of a cell say about its trials: `bounds`, within which to search, and
    `fixed` values.
    """

    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    fixed: Mapping[str, JSONValue] = field(default_factory=dict)

    @staticmethod
    def by(
        measurements: Iterable[Mapping[str, Any]], spec: StudySpec, cell: Mapping[str, JSONValue]
    ) -> Narrowed:
        """Joins the stored measurements of a cell: bounds are intersected where they overlap, of
        others and of fixed values the later ones count. What no longer suits the study is left out.
        """
        bounds: dict[str, tuple[float, float]] = {}
        fixed: dict[str, JSONValue] = {}
        for stored in measurements:
            try:
                measurement = Measurement.of(stored, spec, cell)
            except MeasurementError:
                continue
            for path, (low, high) in measurement.bounds.items():
                before = bounds.get(path, (low, high))
                both = max(low, before[0]), min(high, before[1])
                bounds[path] = both if both[0] < both[1] else (low, high)
            fixed |= measurement.fixed
        return Narrowed({p: b for p, b in bounds.items() if p not in fixed}, fixed)

    def remarks(self, given: Mapping[str, JSONValue]) -> list[str]:
        """In words, which values given by hand lie outside what the probes found."""
        found = []
        for path, value in given.items():
            if path in self.bounds and isinstance(value, int | float):
                low, high = self.bounds[path]
                if not low <= value <= high:
                    found.append(
                        f"{path}={value_label(value)} lies outside what the cell's probe found: "
                        f"{low:.3g} to {high:.3g}"
                    )
            elif path in self.fixed and self.fixed[path] != value:
                found.append(
                    f"{path}={value_label(value)} is not what the cell's probe found: "
                    f"{value_label(self.fixed[path])}"
                )
        return found


def probe_key(declared: Mapping[str, JSONValue], code: str) -> str:
    """What a measurement depends on besides cell and device: what was declared, and the code."""
    text = json.dumps([declared, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_objective(declared: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """The probe's function and keyword arguments in the form of an objective."""
    return {key: value for key, value in declared.items() if key != VERSION}


def functions_of(declared: Mapping[str, JSONValue]) -> list[str]:
    """The dotted names of the functions that a probe calls: its own, and the user's ``build``."""
    build = declared.get("build")
    return [str(declared["_target_"]), *([build] if isinstance(build, str) else [])]


def typical_values(spec: StudySpec, cell: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """The cell with a value for each searched parameter that `params` has no default for: the
    middle of its range on its scale, or its first choice.
    """
    missing = {
        p.path: _middle(p)
        for p in spec.search
        if p.exists_in(cell) and not has(spec.params, p.path)
    }
    return {**cell, **missing}


def _middle(searched: Searched) -> JSONValue:
    if searched.kind == "categorical":
        return searched.choices[0]
    low, high = searched.low, searched.high
    assert low is not None
    assert high is not None
    middle = math.sqrt(low * high) if searched.log else (low + high) / 2
    if searched.step:
        middle = low + round((middle - low) / searched.step) * searched.step
    return round(middle) if searched.kind == "int" else float(middle)


def _of(searched: Mapping[str, Searched], path: str, key: str) -> Searched:
    if path not in searched:
        raise MeasurementError(
            f"{key}: {path} is not searched in this cell{did_you_mean(path, searched)}"
        )
    return searched[path]


def _bounds(searched: Searched, limits: Any) -> tuple[float, float]:
    where = f"bounds of {searched.path}"
    if searched.kind == "categorical":
        raise MeasurementError(
            f"{where}: it is one of several choices, and only numbers have bounds"
        )
    pair = list(limits) if isinstance(limits, list | tuple) else []
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise MeasurementError(
            f"{where}: {value_label(limits)} must be two finite numbers, [low, high]"
        )
    low, high = float(pair[0]), float(pair[1])
    assert searched.low is not None
    assert searched.high is not None
    if low >= high:
        raise MeasurementError(
            f"{where}: the first of [{low:g}, {high:g}] must be less than the second"
        )
    nothing = high <= searched.low or low >= searched.high
    if nothing or (searched.kind == "int" and math.ceil(low) > math.floor(high)):
        raise MeasurementError(
            f"{where}: [{low:g}, {high:g}] leaves nothing of the declared range from "
            f"{searched.low:g} to {searched.high:g}"
        )
    return max(low, float(searched.low)), min(high, float(searched.high))


def _fixed(searched: Searched, value: Any) -> JSONValue:
    where = f"fixed {searched.path}={value_label(value)}"
    if searched.kind == "categorical":
        if value not in searched.choices:
            raise MeasurementError(f"{where}: not one of its choices")
        return value
    assert searched.low is not None
    assert searched.high is not None
    if not _is_number(value) or not searched.low <= value <= searched.high:
        raise MeasurementError(f"{where}: must be from {searched.low:g} to {searched.high:g}")
    return int(value) if searched.kind == "int" and value == int(value) else value


def _largest(spec: StudySpec, path: str, value: Any) -> float:
    axis = next((axis for axis in spec.grid if axis.path == path), None)
    if axis is None:
        guess = did_you_mean(path, [axis.path for axis in spec.grid])
        raise MeasurementError(f"largest: {path} is not an axis of the grid{guess}")
    if not all(map(_is_number, axis.values)) or not _is_number(value):
        raise MeasurementError(
            f"largest {path}={value_label(value)}: axis and value must be numbers"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
