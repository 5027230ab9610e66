"""Revisions of a study: what a launch with another declaration changes, and what may be changed.

A study that is extended keeps one distribution for each parameter, which covers all that the
parameter has ever been: `Axis.stored` and `Searched.stored`. Values are only ever added to it, at
its end, because Optuna's tables hold a choice as its place in the list. What is taken away is no
longer suggested, and no longer a cell of the grid. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from orchestrator.model import (
    Axis,
    JSONValue,
    Param,
    Searched,
    StudySpec,
    at,
    has,
    same_value,
    value_label,
)

_ABSENT = {"absent": True}
_MOST_TEXT = 80


@dataclass(frozen=True)
class Change:
    """One difference between a study and the declaration that is launched now.

    `what` is the setting, `there` and `here` its value in the study and in the declaration, in
    words. `refusal` says why the study cannot be changed so; None: it can.
    """

    what: str
    there: str
    here: str
    refusal: str | None = None

    @property
    def difference(self) -> str:
        """``grid data.batch_size ([32,64] there, [32,128] here)``."""
        return f"{self.what} ({self.there} there, {self.here} here)"

    def __str__(self) -> str:
        return f"{self.what}: {self.there} -> {self.here}"


@dataclass(frozen=True)
class Extension:
    """The next revision of a study.

    `distributions` has, by name, the distribution that trials so far have and the one that they get
    (JSON), where the two differ; what they mean by their internal values is the same in both.
    `added` are the parameters that trials so far lack, with the true value that they get.
    """

    spec: StudySpec
    changes: tuple[str, ...]
    distributions: Mapping[str, tuple[str, str]]
    added: tuple[tuple[Param, JSONValue], ...]


Extend: TypeAlias = Callable[[StudySpec, StudySpec], Extension]
"""Makes the extension of a study (first) by a declaration in the form of `continued`; raises
`ConfigError` if it cannot be extended so, naming every difference that is in the way.
"""


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
        there, here = _by_path(old, section), _by_path(new, section)
        for path in sorted(there.keys() | here.keys()):
            if _text(there.get(path, _ABSENT)) != _text(here.get(path, _ABSENT)):
                why = _refusal(old, new, section, path)
                found.append(
                    Change(f"{section} {path}", _label(there, path), _label(here, path), why)
                )
    found += _others("objective", _flat(old.objective), _flat(new.objective), _OBJECTIVE)
    mine, other = _undeclared(old, new)
    found += _others("params", mine, other, _PARAMS)
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
    for path in _paths(new):
        if not old.declares(path):
            (found[path],) = _defaults(old, new, path)
    values = {axis.path: axis for axis in new.grid}
    return {
        path: _option(values[path], value) if path in values else value
        for path, value in found.items()
    }


# ---------------------------------------------------------------------------------- in one form


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
    if not _is_number(value) or (was.kind == "int" and value != int(value)):
        return None
    number = int(value) if was.kind == "int" else value
    return replace(was, low=number, high=number, stored=None)


def _axis(old: Axis, new: Axis) -> Axis:
    if (old.group != "", old.contents != ()) != (new.group != "", new.contents != ()):
        return new  # another kind of axis
    known = old.all_values
    values = tuple(_known(value, known) for value in new.values)
    of_new = dict(zip(map(_text, values), new.contents, strict=False))
    if {*map(_text, values)} == {*map(_text, old.values)}:
        contents = tuple(of_new.get(_text(v), c) for v, c in zip(known, old.contents, strict=False))
        return replace(new, values=old.values, contents=contents, stored=old.stored)
    stored = (*known, *_others_of(values, known))
    of_old = dict(zip(map(_text, known), old.contents, strict=False))
    contents = tuple((of_old | of_new)[_text(value)] for value in stored) if new.contents else ()
    return replace(new, values=values, contents=contents, stored=() if stored == values else stored)


def _searched(old: Searched, new: Searched, axes: Mapping[str, Axis]) -> Searched:
    new = replace(new, when=_when(old, new, axes), stored=None)
    known = old.whole.choices
    choices = tuple(_known(choice, known) for choice in new.choices)
    stored = (*known, *_others_of(choices, known))
    now = {*map(_text, choices)}
    new = replace(new, choices=tuple(c for c in stored if _text(c) in now))
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
        when = {path: {*map(_text, values)} for path, values in item.when.items()}
        return item.kind, item.low, item.high, _step(item), item.log, _text(item.choices), when

    return facts(a) == facts(b)


def _when(old: Searched, new: Searched, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """The condition, completed by what it said of values that are no longer on the grid."""
    result = {}
    for path in dict.fromkeys([*old.when, *new.when]):
        if (axis := axes.get(path)) is None:
            continue
        gone = _others_of(axis.all_values, axis.values)
        now = tuple(_known(value, axis.all_values) for value in new.when.get(path, axis.values))
        exists = (*now, *_others_of(_common(gone, old.when.get(path, gone)), now))
        if path in new.when or _others_of(axis.all_values, exists):
            before = old.when.get(path, ())
            same = {*map(_text, before)} == {*map(_text, exists)}
            result[path] = before if same else exists
    return result


# ------------------------------------------------------------------------------------ what may be


def _refusal(old: StudySpec, new: StudySpec, section: str, path: str) -> str | None:
    """Why a study cannot be changed so in its grid or search; None if it can."""
    before = _named(getattr(old, section), path)
    now = _named(getattr(new, section), path)
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
    contents = dict(zip(map(_text, new.all_values), new.contents, strict=False))
    for value, content in zip(old.all_values, old.contents, strict=False):
        if _text(contents[_text(value)]) != _text(content):
            return f"{value_label(value)} stands for something else than in the trials so far"
    if all(map(_is_number, old.all_values)) and not all(map(_is_number, new.all_values)):
        return "its values are numbers, which are stored as such; words cannot be added to them"
    return None


def _search_refusal(old: Searched, new: Searched, grid: Sequence[Axis]) -> str | None:
    if old.kind != new.kind:
        return f"what was {_KIND[old.kind]} cannot become {_KIND[new.kind]}"
    for axis in grid:
        there, here = (item.when.get(axis.path, axis.all_values) for item in (old, new))
        if {*map(_text, there)} != {*map(_text, _common(axis.all_values, here))}:
            return f"trials so far have it by another condition on {axis.path}"
    if new.kind == "categorical":
        return None
    if _step(old) != _step(new):
        return "another step leaves trials so far between its values"
    whole = new.whole
    if new.log and whole.low is not None and whole.low <= 0:
        return "a log scale needs positive values, and what trials so far may have begins at " + (
            f"{whole.low:g}"
        )
    step = _step(new)
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
            return list({_text(value): value for value in inside}.values())
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
    if not _is_number(value) or item.low is None or item.high is None:
        return False
    if not item.low <= value <= item.high or (item.kind == "int" and value != int(value)):
        return False
    step = _step(item)
    apart = Fraction(str(value)) - Fraction(str(item.low))
    return not step or (apart / Fraction(str(step))).denominator == 1


def _undeclared(old: StudySpec, new: StudySpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults in `params` of both, without those that every trial has a value for."""
    paths = {*_paths(old), *_paths(new)}

    def covered(key: str) -> bool:
        return any(
            key == path or key.startswith(f"{path}.") or path.startswith(f"{key}.")
            for path in paths
        )

    here, there = _flat(old.params), _flat(new.params)
    same = {key for key in here.keys() & there.keys() if _text(here[key]) == _text(there[key])}
    left = {key for key in here.keys() | there.keys() if key not in same and not covered(key)}
    return (
        {key: value for key, value in here.items() if key in left},
        {key: value for key, value in there.items() if key in left},
    )


# ---------------------------------------------------------------------------------------- in words


def _others(
    section: str, there: Mapping[str, Any], here: Mapping[str, Any], refusal: str
) -> Iterator[Change]:
    for key in sorted(there.keys() | here.keys()):
        if _text(there.get(key, _ABSENT)) != _text(here.get(key, _ABSENT)):
            yield Change(f"{section} {key}", _label(there, key), _label(here, key), refusal)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # 1 is not True here


def _label(section: Mapping[str, Any], key: str) -> str:
    if key not in section:
        return "none"
    value = section[key]
    text = value if isinstance(value, str) and " " in value else value_label(value)
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 3]}…"


def _by_path(spec: StudySpec, section: str) -> dict[str, Any]:
    data = spec.to_json()[section]
    if section == "grid":
        return {axis["path"]: _axis_words(axis) for axis in data}
    return {item["path"]: _searched_words(item) for item in data}


def _searched_words(item: Mapping[str, Any]) -> str:
    """``float from 0.0001 to 0.1 (log)``, ``one of ["relu","gelu"], if model=mlp``."""
    when = [
        f"{path}={'|'.join(map(value_label, values))}"
        for path, values in item.get("when", {}).items()
    ]
    condition = f", if {' and '.join(when)}" if when else ""
    if item["kind"] == "categorical":
        return f"one of {value_label(item['choices'])}{condition}"
    step = f", step {item['step']:g}" if item["step"] not in (None, 1) else ""
    log = " (log)" if item["log"] else ""
    return f"{item['kind']} from {item['low']!r} to {item['high']!r}{log}{step}{condition}"


def _axis_words(axis: Mapping[str, Any]) -> Any:
    if "contents" not in axis:
        return axis["values"]
    contents = dict(zip(axis.get("stored", axis["values"]), axis["contents"], strict=True))
    return {value: contents[value] for value in axis["values"]}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _paths(spec: StudySpec) -> list[str]:
    return [*(axis.path for axis in spec.grid), *(item.path for item in spec.search)]


def _named(items: Iterable[Any], path: str) -> Any:
    return next((item for item in items if item.path == path), None)


def _known(value: JSONValue, known: Iterable[JSONValue]) -> JSONValue:
    """The value as the study has it."""
    return next((one for one in known if same_value(one, value)), value)


def _others_of(values: Iterable[JSONValue], known: Iterable[JSONValue]) -> tuple[JSONValue, ...]:
    texts = {*map(_text, known)}
    return tuple(value for value in values if _text(value) not in texts)


def _common(values: Iterable[JSONValue], known: Iterable[JSONValue]) -> tuple[JSONValue, ...]:
    texts = {*map(_text, known)}
    return tuple(value for value in values if _text(value) in texts)


def _step(item: Searched) -> float | int | None:
    return item.step or (1 if item.kind == "int" else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
