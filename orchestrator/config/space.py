"""Grid and search of a study: what YAML declares, changed word by word by the command line. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import Sweep

from orchestrator.config import grammar
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Axis, JSONValue, Searched

_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")


class Space:
    """The axes and searched parameters of one study, each path at most once; the last word wins."""

    def __init__(self) -> None:
        self.grid: dict[str, Axis] = {}
        self.search: dict[str, Searched] = {}

    @staticmethod
    def from_yaml(grid: Any, search: Any) -> Space:
        """Reads the sections ``grid`` and ``search``; null takes a declaration of another file back.

        Raises:
            ConfigError: a path in both sections or in two spellings, or a declaration without meaning.
        """
        space = Space()
        declared: dict[str, str] = {}
        for section, node in (("grid", grid), ("search", search)):
            for path, value in flatten(section, node).items():
                if value is None:
                    continue
                if path in declared:
                    raise ConfigError(f"{path} is in grid and in search; take it out of one (grid.{path}=null)")
                declared[path] = section
                space.declare(section, path, value)
        return space

    def declare(self, section: str, path: str, value: Any) -> None:
        """Puts what ``grid`` or ``search`` say about `path`: a list, a sweep, or a sweep written as a string.

        Raises:
            ConfigError: it is a plain value, or as `grammar.declaration`.
        """
        shown = f"{section}.{path}={_text(value)}"
        if isinstance(value, str):
            value = grammar.parse_value(value, shown=shown)
        if isinstance(value, Sweep):
            self.put(grammar.declaration(path, value, section=section, shown=shown))
        elif isinstance(value, list):
            build = grammar.axis if section == "grid" else grammar.categorical
            self.put(build(path, value, shown=shown))
        else:
            form = f"[{_text(value)}, …]" if section == "grid" else "tag(log, interval(1e-4, 1e-1)) or [a, b]"
            raise ConfigError(f"{shown}: a plain value is set under params; {section}.{path} takes values such as {form}")

    def put(self, declared: Axis | Searched) -> None:
        """Puts an axis or a searched parameter in place of what was declared for its path."""
        if isinstance(declared, Axis):
            self.search.pop(declared.path, None)
            self.grid[declared.path] = declared
        else:
            self.grid.pop(declared.path, None)
            self.search[declared.path] = declared

    def drop(self, path: str) -> bool:
        """Takes `path` and everything below it out; whether there was anything."""
        gone = [known for known in self.paths() if known == path or known.startswith(f"{path}.")]
        for known in gone:
            self.grid.pop(known, None)
            self.search.pop(known, None)
        return bool(gone)

    def paths(self) -> list[str]:
        return [*self.grid, *self.search]

    def parent_of(self, path: str) -> str | None:
        """Returns the declared path that `path` lies below, or None."""
        return next((known for known in self.paths() if path.startswith(f"{known}.")), None)

    def check(self, params: Mapping[str, Any]) -> None:
        """Checks the paths against each other and against the defaults.

        Raises:
            ConfigError: a path below another, or below a plain value.
        """
        for section, paths in (("grid", self.grid), ("search", self.search)):
            for path in paths:
                above = self.parent_of(path)
                if above is not None:
                    raise ConfigError(f"{section}.{path} lies below {above}, which is declared too; declare one of them")
                check_ancestors(path, params, shown=f"{section}.{path}")

    def check_spelling(self, params: Mapping[str, Any]) -> None:
        """Refuses a path that params does not have and that is so close to one of its parameters that it must be a slip.

        Raises:
            ConfigError: names both. Paths that differ in a digit only (``beta1``, ``beta2``) are no slip.
        """
        leaves = [leaf for leaf in leaf_paths(params) if leaf not in self.grid and leaf not in self.search]
        for section, paths in (("grid", self.grid), ("search", self.search)):
            for path in paths:
                close = [] if has(params, path) else difflib.get_close_matches(path, leaves, n=1, cutoff=0.8)
                if close and re.sub(r"\d", "", close[0]) != re.sub(r"\d", "", path):
                    raise ConfigError(
                        f"{section}.{path}: params has no {path} (did you mean {close[0]!r}?); if it is new, give it a"
                        " default in params"
                    )

    def to_yaml(self) -> dict[str, dict[str, Any]]:
        """Returns the sections ``grid`` and ``search`` in normal form: dotted keys, lists, and sweeps as strings."""
        return {
            "grid": {path: grammar.normal_form(axis) for path, axis in self.grid.items()},
            "search": {path: grammar.normal_form(searched) for path, searched in self.search.items()},
        }

    def example(self) -> dict[str, JSONValue]:
        """Returns one value for every path: those of the first cell, and the low ends."""
        values: dict[str, JSONValue] = {path: axis.values[0] for path, axis in self.grid.items()}
        for path, searched in self.search.items():
            values[path] = searched.choices[0] if searched.kind == "categorical" else searched.low
        return values


def flatten(section: str, node: Any) -> dict[str, Any]:
    """Returns the leaves of a section under their dotted paths; keys may be dotted, nested or both.

    Raises:
        ConfigError: it is no mapping, a key is no path, or one path is there in two spellings.
    """
    result: dict[str, Any] = {}
    for path, value in _leaves(section, node, ""):
        if path in result:
            raise ConfigError(f"{section}.{path} is there in two spellings, dotted and nested; keep one of them")
        result[path] = value
    return result


def _leaves(section: str, node: Any, above: str) -> Iterator[tuple[str, Any]]:
    if node is None:
        return
    if not isinstance(node, Mapping):
        raise ConfigError(f"{section}={_text(node)}: {section} maps parameters to their values: {section}: {{optim.lr: …}}")
    for key, value in node.items():
        path = f"{above}{key}"
        check_path(path, shown=f"{section}.{path}")
        if isinstance(value, Mapping):
            yield from _leaves(section, value, f"{path}.")
        else:
            yield path, value


def check_path(path: str, *, shown: str) -> None:
    """Raises ConfigError unless `path` is a dotted path."""
    if not _PATH.fullmatch(path):
        raise ConfigError(f"{shown}: {path!r} is no dotted path such as optim.lr")


def check_ancestors(path: str, params: Mapping[str, Any], *, shown: str) -> None:
    """Raises ConfigError where `path` lies below a plain value of params; below null there may be something."""
    parts = path.split(".")
    for length in range(1, len(parts)):
        above = ".".join(parts[:length])
        value = at(params, above) if has(params, above) else None
        if value is not None and not isinstance(value, (Mapping, list)):
            raise ConfigError(f"{shown}: params.{above}={value!r} is a plain value and holds nothing")


def at(node: Any, path: str) -> Any:
    """Returns what plain containers hold at a dotted path (numbers index lists).

    Raises:
        KeyError: nothing is there.
    """
    for part in path.split("."):
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise KeyError(path)
    return node


def has(node: Any, path: str) -> bool:
    """Whether plain containers hold anything, null included, at a dotted path."""
    try:
        at(node, path)
    except KeyError:
        return False
    return True


def leaf_paths(node: Mapping[str, Any], above: str = "") -> list[str]:
    """Returns the dotted paths of everything in nested mappings that is no mapping itself."""
    paths: list[str] = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            paths += leaf_paths(value, f"{above}{key}.")
        else:
            paths.append(f"{above}{key}")
    return paths


def suggestion(path: str, params: Mapping[str, Any], space: Space, settings: list[str]) -> str:
    """Returns `` (did you mean …?)`` over parameters, declared paths and settings."""
    return did_you_mean(path, dict.fromkeys([*leaf_paths(params), *space.paths(), *settings]))


def _text(value: Any) -> str:
    if isinstance(value, Sweep):
        return "…"
    return value if isinstance(value, str) else repr(value)
