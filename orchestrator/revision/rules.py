"""What differs between a study and a declaration of it, and what of that may be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from orchestrator.model import (
    Axis,
    JSONValue,
    Searched,
    StudySpec,
    at,
    has,
    same_value,
    value_label,
)
from orchestrator.revision.change import Change
from orchestrator.revision.words import (
    ABSENT,
    as_text,
    by_path,
    common,
    flattened,
    is_number,
    labelled,
    named,
    paths,
    step_of,
)


def changes(old: StudySpec, new: StudySpec) -> tuple[Change, ...]:
    """What of a study's identity the declaration changes, which is in the form of `continued`."""
    if old.spec_hash() == new.spec_hash():
        return ()
    found = [
        Change(word, ", ".join(a), ", ".join(b), f"another {word.partition('.')[2]} makes the "
               "results so far incomparable")
        for word, a, b in (
            ("study.direction", old.directions, new.directions),
            ("study.metric", old.metrics, new.metrics),
        )
        if a != b
    ]  # fmt: skip
    for section in ("grid", "search"):
        there, here = by_path(old, section), by_path(new, section)
        for path in sorted(there.keys() | here.keys()):
            if as_text(there.get(path, ABSENT)) != as_text(here.get(path, ABSENT)):
                why = _refusal(old, new, section, path)
                found.append(
                    Change(f"{section} {path}", labelled(there, path), labelled(here, path), why)
                )
    found += _others("objective", flattened(old.objective), flattened(new.objective), _OBJECTIVE)
    found += _params(old, new)
    return tuple(found)


_OBJECTIVE = "another objective makes the results so far incomparable"
_PARAMS = (
    "the trials so far ran with the one value and new ones would run with the other; as an axis of "
    "the grid, with both values, they are told apart"
)


def defaults(old: StudySpec, new: StudySpec) -> dict[str, JSONValue]:
    """The value that trials so far have for each parameter that is new in grid or search.

    The specs are such that `changes` refuses nothing.
    """
    found = {}
    for path in paths(new):
        if not old.declares(path):
            (found[path],) = _defaults(old, new, path)
    values = {axis.path: axis for axis in new.grid}
    return {
        path: _option(values[path], value) if path in values else value
        for path, value in found.items()
    }


def _refusal(old: StudySpec, new: StudySpec, section: str, path: str) -> str | None:
    """Why a study cannot be changed so in its grid or search; None if it can."""
    before = named(getattr(old, section), path)
    now = named(getattr(new, section), path)
    if before is None and old.declares(path):
        return "a parameter does not move between grid and search"
    if now is None:
        if new.declares(path):
            return "a parameter does not move between grid and search"
        return "params has no value of its kind for it, which new trials would have"
    if before is None:
        return _new_refusal(old, new, now)
    if isinstance(before, Axis):
        return _axis_refusal(before, now)
    return _search_refusal(before, now, old.grid)


def _new_refusal(old: StudySpec, new: StudySpec, item: Any) -> str | None:
    found = _defaults(old, new, item.path)
    if not found:
        return "params has no default for it, which the trials so far would have"
    if len(found) > 1:
        values = ", ".join(map(value_label, found))
        return f"the trials so far have different values for it ({values})"
    (value,) = found
    if isinstance(value, str) and "${" in value:
        return f"its default {value} is not a value, so that what trials so far had is not known"
    if isinstance(item, Axis):
        if item.of_program or _option(item, value) is None:
            return (
                f"the trials so far have {value_label(value)}, which must be one of its values, "
                "so that their cells stay in the grid"
            )
        return None
    return None if _holds(item, value) else (
        f"the trials so far have {value_label(value)}, its default in params, which lies outside"
    )  # fmt: skip


def _axis_refusal(old: Axis, new: Axis) -> str | None:
    if (old.group != "", old.contents != ()) != (new.group != "", new.contents != ()):
        return "an axis of a config group and one of values are not the same axis"
    contents = dict(zip(map(as_text, new.all_values), new.contents, strict=False))
    for value, content in zip(old.all_values, old.contents, strict=False):
        if as_text(contents[as_text(value)]) != as_text(content):
            return f"{value_label(value)} stands for something else than in the trials so far"
    if all(map(is_number, old.all_values)) and not all(map(is_number, new.all_values)):
        return "its values are numbers, which are stored as such; words cannot be added to them"
    return None


def _search_refusal(old: Searched, new: Searched, grid: Sequence[Axis]) -> str | None:
    if old.kind != new.kind:
        return f"what was {_KIND[old.kind]} cannot become {_KIND[new.kind]}"
    for axis in grid:
        there, here = (item.when.get(axis.path, axis.all_values) for item in (old, new))
        if {*map(as_text, there)} != {*map(as_text, common(axis.all_values, here))}:
            return f"trials so far have it by another condition on {axis.path}"
    if new.kind == "categorical":
        return None
    if step_of(old) != step_of(new):
        return "another step leaves trials so far between its values"
    whole = new.whole
    if new.log and whole.low is not None and whole.low <= 0:
        return "a log scale needs positive values, and what trials so far may have begins at " + (
            f"{whole.low:g}"
        )
    step = step_of(new)
    if step and old.whole.low is not None and new.low is not None:
        apart = (Fraction(str(new.low)) - Fraction(str(old.whole.low))) / Fraction(str(step))
        if apart.denominator != 1:
            return f"its values must stay whole steps of {step:g} from {old.whole.low:g}"
    return None


_KIND = {"float": "a float", "int": "an int", "categorical": "a choice"}


def _defaults(old: StudySpec, new: StudySpec, path: str) -> list[JSONValue]:
    """The different values that trials so far have at a path: by their option where an axis of
    options holds it, else by the defaults of `params`.
    """
    for axis in old.grid:
        rest = path.removeprefix(f"{axis.path}.")
        if rest != path and axis.contents:
            inside = [at(content, rest) for content in axis.contents if has(content, rest)]
            return list({as_text(value): value for value in inside}.values())
    for params in (old.params, new.params):
        if has(params, path):
            return [at(params, path)]
    return []


def _option(axis: Axis, default: JSONValue) -> JSONValue:
    """Which value of the axis the default is, None if it is none of them."""
    return next((v for v in axis.values if same_value(axis.content(v), default)), None)


def _holds(item: Searched, value: JSONValue) -> bool:
    if item.kind == "categorical":
        return any(same_value(choice, value) for choice in item.choices)
    if not is_number(value) or item.low is None or item.high is None:
        return False
    if not item.low <= value <= item.high or (item.kind == "int" and value != int(value)):
        return False
    step = step_of(item)
    apart = Fraction(str(value)) - Fraction(str(item.low))
    return not step or (apart / Fraction(str(step))).denominator == 1


def _params(old: StudySpec, new: StudySpec) -> Iterator[Change]:
    """What differs in the defaults of `params`.

    A default that every trial has a value instead of may differ, and one that a change of grid or
    search speaks of is part of that change.
    """
    changed = {
        path
        for path in {*paths(old), *paths(new)}
        if old.declares(path) != new.declares(path)
        or _is_fixed(named([*new.grid, *new.search], path))
    }
    for change in _others("params", flattened(old.params), flattened(new.params), _PARAMS):
        key = change.what.partition(" ")[2]
        if any(_overlap(key, path) for path in changed):
            continue
        if any(_overlap(key, axis.path) for axis in new.grid if axis.contents):
            continue  # which of the options it is is nobody's default
        always = any(path == key for path in paths(new)) and not any(
            item.when for spec in (old, new) for item in spec.search if item.path == key
        )
        yield replace(change, refusal=None) if always else change


def _is_fixed(item: Axis | Searched) -> bool:
    values = item.values if isinstance(item, Axis) else item.choices or (item.low, item.high)
    return len({as_text(value) for value in values}) == 1


def _overlap(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.")


def _others(
    section: str, there: Mapping[str, Any], here: Mapping[str, Any], refusal: str
) -> Iterator[Change]:
    for key in sorted(there.keys() | here.keys()):
        if as_text(there.get(key, ABSENT)) != as_text(here.get(key, ABSENT)):
            yield Change(f"{section} {key}", labelled(there, key), labelled(here, key), refusal)
