"""A declaration in the form of the study that it continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.model import Axis, Searched, StudySpec, at, has, same_value
from orchestrator.revision.words import (
    as_known,
    as_text,
    common,
    is_number,
    step_of,
    without,
)


def continued(new: StudySpec, old: StudySpec) -> StudySpec:
    """A declaration in the form of the study it continues, with what that has been before.

    Axes, values and choices are in the order of the study wherever they are the same, for their
    order is part of what is stored. A parameter that was in the grid or was searched, and is no
    longer, stays in the study with the one value that `params` has for it now.
    """
    new = new.as_launched_before(old)
    axes = {axis.path: axis for axis in new.grid}
    searched = {item.path: item for item in new.search}
    grid = []
    for before in old.grid:
        now = axes.pop(before.path, None)
        if now is None and before.path not in searched:
            now = _fixed_axis(before, new.params)
        if now is not None:
            grid.append(_axis(before, now))
    declared = {axis.path for axis in new.grid}
    grid += axes.values()
    by_path = {axis.path: axis for axis in grid}
    search = []
    for was in old.search:
        item = searched.pop(was.path, None)
        if item is None and was.path not in declared:
            item = _fixed_search(was, new.params)
        if item is not None:
            search.append(_searched(was, item, by_path))
    search += searched.values()
    return replace(new, grid=tuple(grid), search=tuple(search), revision=old.revision)


def _fixed_axis(before: Axis, params: Mapping[str, Any]) -> Axis | None:
    """An axis that is no longer one: its only value is what `params` has; None if that is none."""
    if not has(params, before.path):
        return None
    value = at(params, before.path)
    for known in before.all_values:
        if same_value(before.content(known), value):
            contents = (before.content(known),) if before.contents else ()
            return Axis(before.path, (known,), contents, before.group)
    return None if before.group else Axis(before.path, (value,))


def _fixed_search(was: Searched, params: Mapping[str, Any]) -> Searched | None:
    """The same of a parameter that is no longer searched."""
    if not has(params, was.path):
        return None
    value = at(params, was.path)
    if was.kind == "categorical":
        return Searched(was.path, "categorical", choices=(value,), when=was.when)
    if not is_number(value) or (was.kind == "int" and value != int(value)):
        return None
    number = int(value) if was.kind == "int" else value
    return replace(was, low=number, high=number, stored=None)


def _axis(old: Axis, new: Axis) -> Axis:
    if (old.group != "", old.contents != ()) != (new.group != "", new.contents != ()):
        return new  # another kind of axis
    known = old.all_values
    values = tuple(as_known(value, known) for value in new.values)
    of_new = dict(zip(map(as_text, values), new.contents, strict=False))
    if {*map(as_text, values)} == {*map(as_text, old.values)}:
        contents = tuple(
            of_new.get(as_text(v), c) for v, c in zip(known, old.contents, strict=False)
        )
        return replace(new, values=old.values, contents=contents, stored=old.stored)
    stored = (*known, *without(values, known))
    of_old = dict(zip(map(as_text, known), old.contents, strict=False))
    contents = tuple((of_old | of_new)[as_text(value)] for value in stored) if new.contents else ()
    return replace(new, values=values, contents=contents, stored=() if stored == values else stored)


def _searched(old: Searched, new: Searched, axes: Mapping[str, Axis]) -> Searched:
    new = replace(new, when=_when(old, new, axes), stored=None)
    known = old.whole.choices
    choices = tuple(as_known(choice, known) for choice in new.choices)
    stored = (*known, *without(choices, known))
    now = {*map(as_text, choices)}
    new = replace(new, choices=tuple(c for c in stored if as_text(c) in now))
    if _says_the_same(old, new):
        return old
    if new.kind != old.kind:
        return new
    whole = replace(new, choices=stored)
    if new.kind != "categorical":
        before, limits = old.whole, (new.low, new.high)
        low, high = (
            pick(before, now)  # type: ignore[type-var]
            for pick, before, now in zip((min, max), (before.low, before.high), limits, strict=True)
        )
        whole = replace(new, low=low, high=high)
    return new if _says_the_same(whole, new) else replace(new, stored=whole)


def _says_the_same(a: Searched, b: Searched) -> bool:
    """Whether two declarations allow the same values in the same cells."""

    def facts(item: Searched) -> tuple[Any, ...]:
        when = {path: {*map(as_text, values)} for path, values in item.when.items()}
        return item.kind, item.low, item.high, step_of(item), item.log, as_text(item.choices), when

    return facts(a) == facts(b)


def _when(old: Searched, new: Searched, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """The condition, completed by what it said of values that are no longer on the grid."""
    result = {}
    for path in dict.fromkeys([*old.when, *new.when]):
        if (axis := axes.get(path)) is None:
            continue
        gone = without(axis.all_values, axis.values)
        now = tuple(as_known(value, axis.all_values) for value in new.when.get(path, axis.values))
        exists = (*now, *without(common(gone, old.when.get(path, gone)), now))
        if path in new.when or without(axis.all_values, exists):
            before = old.when.get(path, ())
            same = {*map(as_text, before)} == {*map(as_text, exists)}
            result[path] = before if same else exists
    return result
