"""The section ``stages``: what it declares, and what each stage adds to the words of a launch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestrator.config.overrides import Word
from orchestrator.config.space import Group, Space, flatten
from orchestrator.config.words import hydra_word
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Searched, leaf_paths, same_value, value_label
from orchestrator.settings import SECTIONS_OF_STUDY
from orchestrator.stages import BEST, NOTHING, Inherits, touches

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")
_MERGED = ("params", "probes", "budget", "stop_when", "infeasible", "runner")
_CHOSEN = ("sampler", "pruner")
SECTIONS = ("grid", "search", *_MERGED, *_CHOSEN, "allocation")
"""The sections that a stage may have; those of the top level are the same for all."""
_KEYS = ("name", "freeze", "narrow", "carry", *SECTIONS)
_OF_CHAIN = ("budget.trials", "budget.hours")


@dataclass(frozen=True)
class Declared:
    """One stage as it is written: the `sections` that it has itself, and what it inherits.

    `carried` are the values of params, by path, that earlier stages set and that stay.
    """

    name: str
    sections: Mapping[str, Any]
    inherits: Inherits = field(default_factory=Inherits)
    carried: Mapping[str, Any] = field(default_factory=dict)

    def words(self, groups: Mapping[str, Group], typed: Sequence[Word]) -> list[str]:
        """The stage's sections, but for grid and search, as overrides for Hydra; the words of the
        command line, `typed`, come after them.

        Raises:
            ConfigError: a section is not what it must be, or a value cannot be written.
        """
        words = [f"++{path}=null" for path in _OF_CHAIN]
        for section in _MERGED:
            node = self.sections.get(section)
            if node is None:
                continue
            if not isinstance(node, Mapping):
                schema = SECTIONS_OF_STUDY.get(section)
                inside = "…" if schema is None else fields(schema)[0].name
                raise ConfigError(
                    f"{section}={value_label(node)}: {section} is a section; write a mapping: "
                    f"{section}: {{{inside}: …}}"
                )
            if section != "params":
                for path in leaf_paths(node):
                    words.append(f"++{section}.{path}={hydra_word(_leaf(node, path))}")
        for path, value in self.params.items():
            if path in groups and isinstance(value, str):
                words.append(f"{groups[path].key}={value}")
            else:
                words.append(f"++params.{path}={hydra_word(value)}")
        for section in _CHOSEN:
            if any(word.role == "group" and word.path == section for word in typed):
                continue  # chosen on the command line for all stages
            words += _choice(section, self.sections.get(section))
        if (allocation := self.sections.get("allocation")) is not None:
            words.append(f"++allocation={hydra_word(allocation)}")
        return words

    @property
    def paths(self) -> list[str]:
        """The parameters in its grid and its search, and those that it narrows.

        Raises:
            ConfigError: as `flatten`.
        """
        declared = [flatten(key, self.sections.get(key)) for key in ("grid", "search")]
        return [*self.inherits.narrow, *(path for paths in declared for path in paths)]

    @property
    def own_params(self) -> dict[str, Any]:
        """The values of params that the stage sets itself, by path."""
        node = self.sections.get("params")
        if not isinstance(node, Mapping):
            return {}
        return {path: _leaf(node, path) for path in leaf_paths(node)}

    @property
    def params(self) -> dict[str, Any]:
        """The values of params that stages set, by path: this one, and earlier ones."""
        return {**self.carried, **self.own_params}

    def carrying(self, params: Mapping[str, Any], earlier: Collection[str]) -> Declared:
        """The stage with the `params` that earlier stages set, but for those that it freezes.

        Args:
            earlier: the parameters of the stage before.
        """
        if self.inherits.anew:
            return self
        frozen = self.inherits.freeze
        if not isinstance(frozen, str):
            earlier = [path for path in earlier if touches(path, frozen)]
        taken = [*earlier, *self.own_params]
        carried = {path: value for path, value in params.items() if not touches(path, taken)}
        return replace(self, carried=carried)


def written(node: Any, typed: Sequence[Word]) -> list[dict[str, Any]]:
    """The list of stages of a config, with those words of the command line that are about them.

    Raises:
        ConfigError: no list of mappings; a name that is missing, wrong or given twice; a word that
            names no stage, or nothing that one has.
    """
    for word in typed:
        if word.path == "stages":
            node = None if word.override.is_delete() else word.value
    node = [] if node is None else node
    if not isinstance(node, list):
        raise ConfigError(
            f"stages={value_label(node)}: must be a list: stages: [{{name: coarse, grid: …}}, "
            "{name: fine, freeze: best, …}]"
        )
    entries = [dict(_mapping(entry, f"stages[{k}]")) for k, entry in enumerate(node)]
    names = [_name_of(entry, k) for k, entry in enumerate(entries)]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise ConfigError(f"stages[{k}].name={name}: two stages have this name")
    for word in typed:
        if word.path != "stages":
            _set(word, dict(zip(names, entries, strict=True)))
    return entries


def read(entries: Sequence[Mapping[str, Any]]) -> list[Declared]:
    """The stages that a list of `written` declares.

    Raises:
        ConfigError: a key that no stage has, or something inherited that makes no sense.
    """
    return [_declared(entry["name"], entry, first=k == 0) for k, entry in enumerate(entries)]


def of_stages(word: Word) -> bool:
    """Whether a word is about stages."""
    return word.role == "setting" and word.path.split(".")[0] == "stages"


def without_chains_budget(words: Sequence[Word]) -> list[Word]:
    """The words that concern each stage: ``budget.trials`` and ``budget.hours`` of the top level
    are those of all stages together.

    Raises:
        ConfigError: the section is set as a whole.
    """
    for word in words:
        if word.role == "setting" and word.path == "budget":
            raise ConfigError(
                f"{word.text}: with stages, set what is in it one by one: budget.trials=…"
            )
    return [w for w in words if not (w.role == "setting" and w.path in _OF_CHAIN)]


def put_narrowed(
    declared: Declared, space: Space, earlier: Space, fixed: Collection[str]
) -> dict[str, Searched]:
    """Puts the parameters that the stage narrows into its space, with the range that the stage
    before declares, and returns them.

    Args:
        fixed: the paths that have one value in every stage, by the command line.

    Raises:
        ConfigError: the stage before does not search one, or one has no width, is declared by this
            stage too, or exists only where an axis has a value that this stage does not settle.
    """
    placed = {}
    for path in declared.inherits.narrow:
        source = f"narrow.{path}"
        if path in fixed:
            continue
        if path in earlier.grid:
            raise ConfigError(
                f"{source}: {path} is an axis of the stage before, which has no width; freeze it, "
                "or declare other values in grid"
            )
        if path not in earlier.search:
            guess = did_you_mean(path, earlier.search)
            there = f"; it searches {', '.join(earlier.search)}" if earlier.search else ""
            raise ConfigError(f"{source}: the stage before does not search {path}{guess or there}")
        old = earlier.search[path]
        if old.kind == "categorical":
            raise ConfigError(
                f"{source}: {path} is a choice ({', '.join(map(value_label, old.choices))}), which "
                "has no width; freeze it, or declare other choices in search"
            )
        if touches(path, space.paths()):
            raise ConfigError(
                f"{source}: this stage declares {path} in grid or search too; leave out one of them"
            )
        placed[path] = replace(old, when=_condition(declared, old, space, source))
    space.search |= placed
    return placed


def settled(
    declared: Declared,
    space: Space,
    earlier: Space | None,
    placed: Mapping[str, Searched],
    *,
    kept: Collection[str],
    fixed: Collection[str],
) -> Inherits:
    """What a stage inherits, after the words of the command line, which come first.

    Args:
        placed: what `put_narrowed` put; a word may have replaced it.
        kept: the paths that are frozen since earlier stages.
        fixed: as of `put_narrowed`.

    Raises:
        ConfigError: a path to freeze is no parameter of the stage before, or is declared by this
            stage too.
    """
    inherits = declared.inherits
    narrow = {
        path: share
        for path, share in inherits.narrow.items()
        if path in placed and space.search.get(path) is placed[path]
    }
    if isinstance(inherits.freeze, str) or earlier is None:
        return replace(inherits, narrow=narrow)
    freeze = []
    for path in inherits.freeze:
        if path in fixed:
            continue
        there = [*earlier.paths(), *kept]
        if path not in there:
            listed = f"; it has {', '.join(there)}" if there else "; it has none"
            raise ConfigError(
                f"freeze: {path} is no parameter of the stage before"
                f"{did_you_mean(path, there) or listed}"
            )
        if touches(path, [*space.paths(), *declared.own_params]):
            raise ConfigError(
                f"freeze: {path} is declared by this stage too, in grid, search, narrow or params; "
                "leave out one of them"
            )
        freeze.append(path)
    return replace(inherits, freeze=tuple(freeze), narrow=narrow)


# ----------------------------------------------------------------------------------------- reading


def _declared(name: str, entry: Mapping[str, Any], *, first: bool) -> Declared:
    try:
        return Declared(
            name, {key: entry[key] for key in SECTIONS if key in entry}, _inherits(entry, first)
        )
    except ConfigError as error:
        raise ConfigError(f"stages.{name}: {error}") from error


def _inherits(entry: Mapping[str, Any], first: bool) -> Inherits:
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(_unknown(str(key)))
    given = [key for key in ("freeze", "narrow", "carry") if entry.get(key) is not None]
    if first and given:
        raise ConfigError(f"{given[0]}: there is no stage before the first one")
    carry = entry.get("carry")
    if carry not in (None, NOTHING):
        raise ConfigError(
            f"carry={value_label(carry)}: must be the word {NOTHING}"
            f"{did_you_mean(str(carry), [NOTHING])}, or be left out: what is frozen stays frozen"
        )
    if carry and len(given) > 1:
        raise ConfigError(f"{given[0]}: with carry: {NOTHING}, the stage inherits nothing")
    return Inherits(_freeze(entry.get("freeze")), _narrow(entry.get("narrow")), bool(carry))


def _freeze(node: Any) -> tuple[str, ...] | str:
    if node is None:
        return ()
    if node == BEST:
        return BEST
    paths = [node] if isinstance(node, str) else node
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(
            f"freeze={value_label(node)}: must be the word {BEST}, for all parameters of the best "
            "trial, or a list of paths: [model.hidden_units]"
        )
    return tuple(dict.fromkeys(paths))


def _narrow(node: Any) -> dict[str, float]:
    if node is None:
        return {}
    shares: dict[str, float] = {}
    for path, share in _flat(_mapping(node, "narrow"), ""):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(
                f"narrow.{path}={value_label(share)}: must be a share of the old width, greater "
                "than 0 and at most 1"
            )
        shares[path] = float(share)
    return shares


def _flat(node: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _condition(
    declared: Declared, old: Searched, space: Space, source: str
) -> dict[str, tuple[Any, ...]]:
    """Where a narrowed parameter exists: as before on an axis that this stage has too."""
    when = {}
    for axis, values in old.when.items():
        if axis in space.grid:
            when[axis] = tuple(
                value
                for value in space.grid[axis].values
                if any(same_value(value, other) for other in values)
            )
            if not when[axis]:
                raise ConfigError(
                    f"{source}: {old.path} exists only where {axis} is one of "
                    f"{', '.join(map(value_label, values))}, and this stage's grid has none of them"
                )
        elif declared.inherits.freeze != BEST and axis not in declared.inherits.freeze:
            raise ConfigError(
                f"{source}: {old.path} depends on {axis}; freeze {axis} too, or put it into grid"
            )
    return when


def _mapping(node: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{source}={value_label(node)}: must be a mapping")
    return node


def _name_of(entry: Mapping[str, Any], k: int) -> str:
    name = entry.get("name")
    if name is None:
        raise ConfigError(f"stages[{k}].name must be given: {{name: coarse, …}}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"stages[{k}].name={name!r}: must consist of letters, digits, '_' and '-', at most 50, "
            "and begin with a letter or digit"
        )
    return name


def _set(word: Word, entries: Mapping[str, dict[str, Any]]) -> None:
    """Applies ``stages.NAME.KEY=value``."""
    _, name, *keys = word.path.split(".")
    if not entries:
        raise ConfigError(f"{word.text}: there are no stages")
    if name not in entries:
        raise ConfigError(
            f"{word.text}: there is no stage {name}{did_you_mean(name, entries)}; the stages are "
            f"{', '.join(entries)}"
        )
    if not keys or keys[0] == "name" or word.override.is_delete():
        raise ConfigError(f"{word.text}: set what is in a stage: stages.{name}.budget.trials=…")
    if keys[0] not in _KEYS:
        raise ConfigError(f"{word.text}: {_unknown(keys[0])}")
    value = word.override.get_value_string() if word.sweep is not None else word.value
    node = entries[name]
    if keys[0] in ("grid", "search", "narrow") and len(keys) > 1:
        _declare(node, keys[0], ".".join(keys[1:]), value)
        return
    for key in keys[:-1]:
        below = node.get(key)
        node[key] = dict(below) if isinstance(below, Mapping) else {}
        node = node[key]
    node[keys[-1]] = value


def _declare(entry: dict[str, Any], section: str, path: str, value: Any) -> None:
    """Declares a path in place of whatever the section has there, dotted or nested."""
    node = entry.get(section)
    entry[section] = {**_without(node if isinstance(node, Mapping) else {}, path), path: value}


def _without(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    rest = {}
    for key, item in node.items():
        if key == path:
            continue
        inside = isinstance(item, Mapping) and path.startswith(f"{key}.")
        rest[key] = _without(item, path.removeprefix(f"{key}.")) if inside else item
    return rest


def _choice(section: str, node: Any) -> list[str]:
    """A stage's sampler or pruner: a name, or a mapping of a name and options."""
    if node is None:
        return []
    if isinstance(node, str):
        return [f"{section}={node}"]
    options = _mapping(node, section)
    words = [f"{section}={options['name']}"] if "name" in options else []
    return words + [
        f"++{section}.{key}={hydra_word(value)}" for key, value in options.items() if key != "name"
    ]


def _unknown(key: str) -> str:
    if key in ("study", "objective"):
        return f"{key} is the same for all stages; set it at the top level"
    guess = did_you_mean(key, _KEYS)
    return f"a stage has no {key}{guess}; it has {', '.join(_KEYS)}"


def _leaf(node: Any, path: str) -> Any:
    for part in path.split("."):
        node = node[part]
    return node
