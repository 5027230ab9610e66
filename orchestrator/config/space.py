"""Grid and search of a study: what YAML declares and the command line changes, word by word. Pure.

A searched parameter is a sweep, or a mapping ``{space: <sweep>, when: {axis: value or list of
values}}``: it then exists only in cells that have one of the listed values for every axis named. In
`search` the keys ``space`` and ``when`` of a mapping mean this; a parameter with such a name is
declared by its dotted path (``model.space: [a, b]``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.types import Sweep

from orchestrator.config import grammar
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import (
    Axis,
    JSONValue,
    Searched,
    at,
    has,
    leaf_paths,
    same_value,
    value_label,
)

_MAX_SHOWN = 60
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True)
class Group:
    """A config group of the user's that fills a path of ``params``.

    Attributes:
        key: how an override names it: ``model``, ``+model`` where no defaults list has it,
            ``net@params.net``.
        options: the names of its options.
        chosen: the option that is composed, or None.
    """

    key: str
    options: tuple[str, ...]
    chosen: str | None = None


class Space:
    """The axes and searched parameters of one study, each path at most once; the last declaration
    wins.

    Words of an axis at a path that a config group fills are options of the group.
    `appends_overrides` says that the objective is a program that gets the parameters as overrides:
    there words of an axis are options of a group of the program's own, if anything lies below its
    path.
    """

    def __init__(
        self, groups: Mapping[str, Group] | None = None, *, appends_overrides: bool = False
    ) -> None:
        self.grid: dict[str, Axis] = {}
        self.search: dict[str, Searched] = {}
        self.groups: Mapping[str, Group] = groups or {}
        self.appends_overrides = appends_overrides
        self.added: set[str] = set()
        """Paths that options of an axis above need not have: ``+model.norm=…`` adds them."""
        self._conditions: dict[str, Mapping[str, Any]] = {}
        self._fixed: set[str] = set()
        self._not_searched: set[str] = set()
        self._chosen: dict[str, str | None] = {
            path: group.chosen for path, group in self.groups.items()
        }

    @staticmethod
    def from_yaml(
        grid: Any,
        search: Any,
        groups: Mapping[str, Group] | None = None,
        *,
        appends_overrides: bool = False,
    ) -> Space:
        """Reads the sections ``grid`` and ``search``; null cancels a declaration of another file.

        Raises:
            ConfigError: a path in both sections or in two spellings, or a declaration without
                meaning.
        """
        space = Space(groups, appends_overrides=appends_overrides)
        declared: dict[str, str] = {}
        for section, node in (("grid", grid), ("search", search)):
            for path, value in flatten(section, node).items():
                if value is None:
                    space._fixed.add(path)
                    space._not_searched.add(path)
                    continue
                if path in declared:
                    raise ConfigError(
                        f"{path} is both in grid and in search; remove it from one of them "
                        f"(grid.{path}=null)"
                    )
                declared[path] = section
                space.declare(section, path, value)
        return space

    def declare(self, section: str, path: str, value: Any) -> None:
        """Puts what ``grid`` or ``search`` say about `path`: a list, a sweep, or a sweep written as
        a string.

        In ``search`` it may be a mapping of such a ``space`` and the condition ``when``, which
        `check` looks into.

        Raises:
            ConfigError: it is a plain value, or as `grammar.declaration`.
        """
        if isinstance(value, Mapping):
            when = _condition(path, value)
            self.declare(section, path, value["space"])
            self._conditions[path] = when
            return
        source = f"{section}.{path}={_text(value)}"
        if isinstance(value, str):
            value = grammar.parse_value(value, source=source)
        if isinstance(value, Sweep):
            self.put(grammar.declaration(path, value, section=section, source=source))
        elif isinstance(value, list):
            build = grammar.axis if section == "grid" else grammar.categorical
            self.put(build(path, value, source=source))
        else:
            form = (
                f"[{_text(value)}, …]"
                if section == "grid"
                else "tag(log, interval(1e-4, 1e-1)) or [a, b]"
            )
            raise ConfigError(
                f"{source}: a plain value is set under params; {section}.{path} takes values "
                f"such as {form}"
            )

    def put(self, declared: Axis | Searched) -> None:
        """Declares an axis or a searched parameter, replacing what was declared for its path.

        Raises:
            ConfigError: a config group fills the path, and a word is not one of its options or is
                searched.
        """
        if declared.path in self.groups:
            declared = _of_group(declared, self.groups[declared.path])
        self._conditions.pop(declared.path, None)
        self.added.discard(declared.path)
        if isinstance(declared, Axis):
            if self.search.pop(declared.path, None) is not None:
                self._not_searched.add(declared.path)
            self.grid[declared.path] = declared
        else:
            self.grid.pop(declared.path, None)
            self.search[declared.path] = declared

    def drop(self, path: str, *, below: bool = True) -> bool:
        """Removes `path` and everything `below` it; returns whether there was anything."""
        gone = [
            other
            for other in self.paths()
            if other == path or (below and other.startswith(f"{path}."))
        ]
        for other in gone:
            if self.grid.pop(other, None) is not None:
                self._fixed.add(other)
            if self.search.pop(other, None) is not None:
                self._not_searched.add(other)
            self._conditions.pop(other, None)
        return bool(gone)

    def choose(self, path: str, option: str | None) -> None:
        """Fixes the group at `path` to one of its options: it is no longer an axis, and conditions
        on it are decided by that option.
        """
        self._chosen[path] = option
        if self.grid.pop(path, None) is not None:
            self._fixed.add(path)

    def fill(self, contents: Mapping[str, tuple[JSONValue, ...]]) -> None:
        """Sets what the options of each axis of a config group stand for, in their order."""
        for path, of_options in contents.items():
            self.grid[path] = replace(self.grid[path], contents=of_options)

    def unfilled(self) -> list[Axis]:
        """The axes whose options' contents `fill` has not set yet."""
        return [axis for path, axis in self.grid.items() if path in self.groups and axis.of_program]

    def find_options(self, params: Mapping[str, Any], below: Callable[[str], bool]) -> None:
        """Finds the axes of words that are options of the program's own config groups: those with
        something below them.
        """
        for path, axis in self.grid.items() if self.appends_overrides else ():
            words = any(isinstance(v, str) for v in axis.values) and all(
                v is None or isinstance(v, str) for v in axis.values
            )
            section = at(params, path) if has(params, path) else None
            if (
                words
                and not axis.group
                and (below(path) or (isinstance(section, Mapping) and section))
            ):
                self.grid[path] = replace(axis, group=path)

    def below(self, path: str) -> bool:
        """Whether anything is declared below `path`."""
        return any(other.startswith(f"{path}.") for other in self.paths())

    def paths(self) -> list[str]:
        return [*self.grid, *self.search]

    def leave_to_others(self, paths: Collection[str]) -> None:
        """From now on, those of the paths that are not declared count as removed: other stages
        declare them, so what is said of them for all stages is not meant here.
        """
        self._fixed.update(paths)
        self._not_searched.update(paths)

    def was_axis(self, path: str) -> bool:
        """Whether `path` was an axis and has been removed from the grid again."""
        return path in self._fixed and path not in self.grid

    def was_searched(self, path: str) -> bool:
        """Whether `path` was searched and is not any more."""
        return path in self._not_searched and path not in self.search

    def parent_of(self, path: str) -> str | None:
        """Returns the declared path that `path` lies below, the longest if there are several, or
        None.
        """
        return max(
            (other for other in self.paths() if path.startswith(f"{other}.")), key=len, default=None
        )

    def check(self, params: Mapping[str, Any]) -> None:
        """Checks the paths against each other and against the defaults, and determines in which
        cells each parameter exists.

        An axis that was removed again has the one value in `params`: what exists for another value
        is not searched at all.

        Raises:
            ConfigError: a path below a plain value, below what is searched, or below an axis with a
                value that has no such path; a plain value in place of a section; a condition on
                something that is not an axis or not one of its values.
        """
        for section, paths in (("grid", self.grid), ("search", self.search)):
            for path, declared in paths.items():
                source, above = f"{section}.{path}", self.parent_of(path)
                if above in self.search:
                    raise ConfigError(
                        f"{source} lies below {above}, which is searched; declare one of the two"
                    )
                if above is None:
                    check_ancestors(path, params, source=source)
                if not (isinstance(declared, Axis) and declared.group):
                    self._check_mounted(path, declared, params, source=source)
                    check_replaced(
                        declared, at(params, path) if has(params, path) else None, source=source
                    )
        for path, condition in list(self._conditions.items()):
            when = self._settled(path, condition, params)
            if when is None:
                self.drop(path)
            else:
                self.search[path] = replace(self.search[path], when=when)
        for path in self.paths():
            self._check_above(path)

    def _check_mounted(
        self, path: str, declared: Axis | Searched, params: Mapping[str, Any], *, source: str
    ) -> None:
        """Raises ConfigError if words are options of a group of that name that fills
        another path.
        """
        values = declared.values if isinstance(declared, Axis) else declared.choices
        for mounted, group in self.groups.items():
            is_its_name = (
                group.key.lstrip("+").split("@")[0].replace("/", ".") == path and mounted != path
            )
            if (
                is_its_name
                and not has(params, path)
                and any(value in group.options for value in values)
            ):
                raise ConfigError(
                    f"{source}: the config group {path} fills params.{mounted}; declare its "
                    f"options as grid.{mounted}"
                )

    def _check_above(self, path: str) -> None:
        """Raises ConfigError unless every value of the axis above has the path in the cells it is
        declared for.
        """
        axis = self.grid.get(self.parent_of(path) or "")
        if axis is None or axis.of_program:
            return
        rest = path.removeprefix(f"{axis.path}.")
        have = [value for value in axis.values if _may_hold(axis.content(value), rest)]
        searched = self.search.get(path)
        concerned = (
            searched.when.get(axis.path, axis.values) if searched is not None else axis.values
        )
        lacking = [
            value for value in concerned if not any(same_value(value, other) for other in have)
        ]
        if path in self.added:
            lacking = [value for value in lacking if not isinstance(axis.content(value), Mapping)]
        if not lacking:
            return
        section = "grid" if searched is None else "search"
        if not any(isinstance(axis.content(value), Mapping) for value in axis.values):
            raise ConfigError(
                f"{section}.{path} lies below {axis.path}, whose values are not mappings; "
                "declare one of the two"
            )
        what = f"{section}.{path}: {axis.path}={_short(lacking[0])} has no {rest}"
        if not have:
            leaves = [leaf for value in axis.values for leaf in _leaves_of(axis.content(value))]
            raise ConfigError(f"{what}{did_you_mean(rest, leaves)}; no value of {axis.path} has it")
        there = ", ".join(map(_short, have))
        if searched is None:
            raise ConfigError(
                f"{what}, and an axis must have its values in every cell; instead, search it "
                f"where it exists: when: {axis.path}: {there}"
            )
        if searched.when.get(axis.path):
            raise ConfigError(f"{what}; let when name only those that have it: {there}")
        form = f"{{space: …, when: {{{axis.path}: {there if len(have) == 1 else f'[{there}]'}}}}}"
        raise ConfigError(f"{what}; declare in YAML where it exists: search: {{{path}: {form}}}")

    def _settled(
        self, path: str, condition: Mapping[str, Any], params: Mapping[str, Any]
    ) -> dict[str, tuple[JSONValue, ...]] | None:
        """The axes and their values that a condition names; None where it can never hold."""
        when: dict[str, tuple[JSONValue, ...]] = {}
        for name, wanted in self._named(path, condition, ""):
            source = f"search.{path}.when.{name}={value_label(wanted)}"
            grammar.check_finite(wanted, source)
            if name not in self.grid:
                fixed = at(params, name) if has(params, name) else None
                fixed = self._chosen[name] if name in self.groups else fixed
                if isinstance(fixed, str) and "${" in fixed:
                    raise ConfigError(
                        f"{source}: {name} is no longer an axis, and its value {fixed} is "
                        "resolved only in a trial"
                    )
                if not any(same_value(fixed, value) for value in _any_of(wanted, [fixed])):
                    return None
                continue
            values = self.grid[name].values
            if _is_ambiguous(wanted, values):
                raise ConfigError(
                    f"{source}: is a value of grid.{name}, and also a list of its values; write "
                    f"[{value_label(wanted)}] for that value, or change the others"
                )
            chosen = _any_of(wanted, values)
            unknown = [
                value
                for value in chosen
                if not any(same_value(value, present) for present in values)
            ]
            if unknown or not chosen:
                there = ", ".join(map(value_label, values))
                what = (
                    f"{value_label(unknown[0])} is not on the axis"
                    if unknown
                    else "no value is given; name at least one"
                )
                raise ConfigError(f"{source}: {what}; grid.{name} has {there}")
            when[name] = tuple(
                present for present in values if any(same_value(value, present) for value in chosen)
            )
        return when

    def _named(self, path: str, node: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
        """The axes that a condition names, by dotted or nested keys, with what it says of each."""
        for key, value in node.items():
            name = f"{above}{key}"
            if name in self.grid or name in self._fixed or name in self.groups:
                yield name, value
            elif isinstance(value, Mapping) and value:
                yield from self._named(path, value, f"{name}.")
            else:
                what = (
                    "is searched, and conditions may name grid axes only"
                    if name in self.search
                    else "is not an axis of the grid"
                )
                there = (
                    f"; the axes are {', '.join(self.grid)}" if self.grid else "; there is no grid"
                )
                raise ConfigError(
                    f"search.{path}.when: {name} {what}{did_you_mean(name, self.grid) or there}"
                )

    def check_spelling(self, params: Mapping[str, Any]) -> None:
        """Refuses a path that is not in params but so close to one of its parameters that it must
        be a slip.

        Raises:
            ConfigError: names both. Paths that differ in a digit only (``beta1``, ``beta2``) are
                not a slip.
        """
        leaves = [
            leaf for leaf in leaf_paths(params) if leaf not in self.grid and leaf not in self.search
        ]
        for section, paths in (("grid", self.grid), ("search", self.search)):
            for path in paths:
                of_group = any(
                    path.startswith(f"{group}.") for group in self.groups
                )  # checked together with the contents of its options
                close = (
                    []
                    if of_group or has(params, path)
                    else difflib.get_close_matches(path, leaves, n=1, cutoff=0.8)
                )
                if close and re.sub(r"\d", "", close[0]) != re.sub(r"\d", "", path):
                    raise ConfigError(
                        f"{section}.{path}: params has no {path} (did you mean {close[0]!r}?); if "
                        "it is new, give it a default in params"
                    )

    def to_yaml(self) -> dict[str, dict[str, Any]]:
        """Returns the sections ``grid`` and ``search`` in normal form: dotted keys, lists, and
        sweeps as strings.
        """
        return {
            "grid": {path: grammar.normal_form(axis) for path, axis in self.grid.items()},
            "search": {
                path: grammar.normal_form(searched) for path, searched in self.search.items()
            },
        }

    def examples(self) -> Iterator[tuple[str, dict[str, JSONValue]]]:
        """Yields values that trials lay over params, each with the axis value it stands for (empty
        for any).

        First values and low ends; then again without what exists in some cells only; then with
        every other value that holds something itself, or interpolates.
        """
        cell = {path: axis.values[0] for path, axis in self.grid.items()}
        always = [path for path, searched in self.search.items() if not searched.when]
        yield "", self._laid(cell, list(self.search))
        if len(always) < len(self.search):
            yield "", self._laid(cell, always)
        for path, axis in self.grid.items():
            for value in axis.values:
                content = axis.content(value)
                if not axis.of_program and (
                    isinstance(content, (Mapping, list)) or "${" in str(content)
                ):
                    there = {**cell, path: value}
                    yield (
                        f"{path}={_short(value)}",
                        self._laid(
                            there, [p for p, s in self.search.items() if s.exists_in(there)]
                        ),
                    )
        for path, searched in self.search.items():
            for choice in searched.choices:
                if isinstance(choice, (Mapping, list)) or "${" in str(choice):
                    yield f"{path}={_short(choice)}", {**self._laid(cell, always), path: choice}

    def _laid(
        self, cell: Mapping[str, JSONValue], searched: Collection[str]
    ) -> dict[str, JSONValue]:
        values = {
            path: axis.content(cell[path])
            for path, axis in self.grid.items()
            if not axis.of_program
        }
        for path in searched:
            one = self.search[path]
            values[path] = one.choices[0] if one.kind == "categorical" else one.low
        return values


def _of_group(declared: Axis | Searched, group: Group) -> Axis | Searched:
    """The axis as one of options, where its values are words."""
    key = group.key.lstrip("+")
    values = declared.values if isinstance(declared, Axis) else declared.choices
    words = [value for value in values if isinstance(value, str)]
    if not words or (isinstance(declared, Axis) and declared.contents):
        return declared
    listed = ", ".join(sorted(group.options))
    if isinstance(declared, Searched):
        raise ConfigError(
            f"search.{declared.path}: {key} is a config group, and its options make an axis of "
            f"the grid: {key}={','.join(words)}, or grid: {{{declared.path}: "
            f"[{', '.join(words)}]}}"
        )
    for value in values:
        if value not in group.options:
            guess = did_you_mean(str(value), group.options)
            raise ConfigError(
                f"grid.{declared.path}={_short(value)}: the config group {key} fills "
                f"{declared.path} and has no such option{guess}; it has {listed}"
            )
    return replace(declared, group=group.key)


def check_replaced(declared: Axis | Searched, section: Any, *, source: str) -> None:
    """Raises ConfigError if a plain value other than null would replace a section of params.

    Args:
        section: what params has at the path.
    """
    if not (isinstance(section, Mapping) and section):
        return
    values = declared.values if isinstance(declared, Axis) else declared.choices
    plain = [value for value in values if value is not None and not isinstance(value, Mapping)]
    if plain or (isinstance(declared, Searched) and declared.kind != "categorical"):
        value = f"={_short(plain[0])}" if plain else ""
        inside = f"{declared.path}.{leaf_paths(section)[0]}"
        raise ConfigError(
            f"{source}{value}: {declared.path} is a section of params, and a plain value would "
            f"replace it; declare the parameters in it ({inside}), or give the axis mappings. "
            "Words are options of a config group if the first line of "
            f"{declared.path.replace('.', '/')}/*.yaml is '# @package params.{declared.path}'"
        )


def _may_hold(content: JSONValue, path: str) -> bool:
    """Whether there is something at a dotted path; below an interpolation there may be."""
    node = content
    for part in path.split("."):
        if isinstance(node, str) and "${" in node:
            return True
        if not has(node, part):
            return False
        node = at(node, part)
    return True


def _leaves_of(content: JSONValue) -> list[str]:
    return leaf_paths(content) if isinstance(content, Mapping) else []


def _short(value: JSONValue) -> str:
    text = value_label(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def flatten(section: str, node: Any) -> dict[str, Any]:
    """Returns the leaves of a section under their dotted paths; keys may be dotted, nested or both.

    Raises:
        ConfigError: it is not a mapping, a key is not a path, or one path is declared in two
            spellings.
    """
    result: dict[str, Any] = {}
    for path, value in _leaves(section, node, ""):
        if path in result:
            raise ConfigError(
                f"{section}.{path} is declared twice, dotted and nested; keep one of them"
            )
        result[path] = value
    return result


def _leaves(section: str, node: Any, above: str) -> Iterator[tuple[str, Any]]:
    if node is None:
        return
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"{section}={_text(node)}: {section} maps parameters to their values: {section}: "
            f"{{optim.lr: …}}"
        )
    for key, value in node.items():
        path = f"{above}{key}"
        check_path(path, source=f"{section}.{path}")
        if section == "search" and isinstance(value, Mapping) and _is_conditional(value):
            yield path, None if value.get("space", "") is None else value
        elif isinstance(value, Mapping):
            yield from _leaves(section, value, f"{path}.")
        else:
            yield path, value


def _is_conditional(node: Mapping[Any, Any]) -> bool:
    """Whether a mapping under ``search`` is a declaration rather than a level of nesting."""
    says_space = "space" in node and not isinstance(node["space"], Mapping)
    return says_space or (
        "when" in node and (node["when"] is None or isinstance(node["when"], Mapping))
    )


def _condition(path: str, declared: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a conditional declaration says under ``when``, which may be missing.

    Raises:
        ConfigError: a key besides ``space`` and ``when``, no space, or no condition in ``when``.
    """
    for key in declared:
        if key not in ("space", "when"):
            raise ConfigError(
                f"search.{path}.{key}: besides space there may be "
                f"when{did_you_mean(str(key), ['when'])}; parameters below"
                f" {path} are declared by their dotted paths"
            )
    if "space" not in declared or isinstance(declared["space"], Mapping):
        raise ConfigError(
            f"search.{path}: it has a condition but no space; write {path}: {{space: interval(0, "
            f"1), when: …}}"
        )
    when = declared.get("when", {})
    if "when" in declared and not (isinstance(when, Mapping) and when):
        raise ConfigError(
            f"search.{path}.when={_text(when)}: names the axes: when: {{model.kind: [a, b]}}; or "
            "leave it out"
        )
    result: Mapping[str, Any] = when
    return result


def _is_ambiguous(wanted: Any, values: Collection[JSONValue]) -> bool:
    """Whether `wanted` is one of the values, and a list of such."""
    return isinstance(wanted, list | tuple) and all(
        any(same_value(one, value) for one in some for value in values)
        for some in ([wanted], wanted)
    )


def _any_of(wanted: Any, values: Collection[JSONValue]) -> list[JSONValue]:
    """The values that a condition takes: a list is one of `values` as a whole, or any of its
    elements.
    """
    whole = not isinstance(wanted, list) or any(same_value(wanted, value) for value in values)
    return [wanted] if whole else list(wanted)


def is_path(text: str) -> bool:
    """Whether `text` is a dotted path."""
    return _PATH.fullmatch(text) is not None


def check_path(path: str, *, source: str) -> None:
    """Raises ConfigError unless `path` is a dotted path."""
    if not is_path(path):
        raise ConfigError(f"{source}: {path!r} is not a dotted path such as optim.lr")


def check_ancestors(path: str, params: Mapping[str, Any], *, source: str) -> None:
    """Raises ConfigError if `path` lies below a plain value of params other than null."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        above = ".".join(parts[:length])
        value = at(params, above) if has(params, above) else None
        if value is not None and not isinstance(value, (Mapping, list)):
            raise ConfigError(
                f"{source}: params.{above}={value!r} is a plain value, so nothing can be below it"
            )


def suggestion(path: str, params: Mapping[str, Any], space: Space, settings: list[str]) -> str:
    """Returns `` (did you mean …?)`` over parameters, declared paths and settings."""
    return did_you_mean(path, dict.fromkeys([*leaf_paths(params), *space.paths(), *settings]))


def _text(value: Any) -> str:
    if isinstance(value, Sweep):
        return "…"
    return value if isinstance(value, str) else repr(value)
