"""The words of a command line: which are Hydra's, which are settings, which are parameters, and
what parameters do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Override,
    OverrideType,
    QuotedString,
    Sweep,
)

from orchestrator.config import grammar
from orchestrator.config.plain import NAMING
from orchestrator.config.schema import SECTIONS, settings
from orchestrator.config.space import Group, Space, check_ancestors, check_path, flatten, suggestion
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.model import Axis, at, has, leaf_paths
from orchestrator.program import OPTIONS
from orchestrator.settings import HOST

_URL = re.compile(r"\+{0,2}storage\.url=(.*)", re.DOTALL)
_FUNCTION = re.compile(r"\s*\w+\s*\(")  # the grammar's functions: choice(…), interval(…), …
_PREFIX = {
    OverrideType.CHANGE: "",
    OverrideType.ADD: "+",
    OverrideType.FORCE_ADD: "++",
    OverrideType.DEL: "~",
}
_CHOSEN = ("sampler.name", "pruner.name", "storage.kind")
_LISTS = (
    "worker.devices",
    "worker.studies",
    "worker.allow_targets",
    "dashboard.hosts",
    "runner.retry_on",
    "study.direction",
    "study.metric",
    "study.bounds",
)


@dataclass(frozen=True)
class Word:
    """One override. For the roles param, grid and search `path` is what is below that section, else
    the whole key.
    """

    text: str
    role: Literal["hydra", "group", "setting", "param", "grid", "search"]
    path: str
    override: Override

    @property
    def value(self) -> Any:
        return self.override.value()

    @property
    def sweep(self) -> Sweep | None:
        value = self.override._value
        return value if isinstance(value, Sweep) else None

    @property
    def of_user(self) -> bool:
        """Whether it is about a config group of the user's, which may fill a section of params."""
        return self.role == "group" and re.split(r"[./]", self.path)[0] not in (
            *SECTIONS,
            "experiment",
            "hydra",
        )

    @property
    def key(self) -> str:
        """The key as typed, without ``+`` or ``~`` before it; of a group with the package:
        ``net@params.net``.
        """
        return self.override.get_key_element().lstrip("+~")

    def under(self, path: str, *, force: bool = False) -> str:
        """The same override of another key; `force` adds the key where there is none."""
        prefix = "++" if force else _PREFIX[self.override.type]
        value = f"={self.override.get_value_string()}" if "=" in self.text else ""
        return f"{prefix}{path}{value}"


def take_url(texts: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the words without those that set ``storage.url``, and the last URL set.

    A URL is taken as typed and never passed to Hydra: a password may contain any character of the
    override grammar, and Hydra keeps overrides in its config and prints them in messages.
    """
    rest, url = [], None
    for text in texts:
        match = _URL.fullmatch(text)
        if match is None:
            rest.append(text)
            continue
        url = match[1]
        if len(url) > 1 and url[0] == url[-1] and url[0] in "'\"":
            url = url[1:-1]
    return rest, url


def read_words(texts: Sequence[str], groups: Collection[str]) -> list[Word]:
    """Returns each override with its role; the first part of its key decides.

    Raises:
        ConfigError: not an override, an unknown group, or a sweep over something other than a
            parameter.
    """
    return [_read(text, groups) for text in texts]


def _read(text: str, groups: Collection[str]) -> Word:
    override = grammar.parse_override(text)
    key = override.key_or_group
    first, _, rest = key.partition(".")
    word: Word
    if first == "hydra" or key.startswith("hydra/"):
        word = Word(text, "hydra", key, override)
    elif (
        override.package is not None
        or "/" in key
        or (key in groups and not isinstance(override.value(), dict))
    ):
        if key not in groups:
            raise ConfigError(
                f"{text}: there is no config group {key!r}{did_you_mean(key, groups)}"
            )
        return Word(text, "group", key, override)
    elif first == "params":
        word = Word(text, "param", rest, override)
    elif first == "grid" or first == "search":
        word = Word(text, "grid" if first == "grid" else "search", rest, override)
    elif first == "experiment":
        raise ConfigError(f"{text}: experiment is a config group; choose one with experiment=name")
    elif first in SECTIONS:
        word = Word(text, "setting", key, override)
    else:
        word = Word(text, "param", key, override)
    _refuse_empty_key(word)
    if word.role == "setting" and first == "storage" and isinstance(override.value(), dict):
        raise ConfigError(
            "storage={…}: set its keys one by one: storage.url=…, storage.password_file=…"
        )
    # What a stage declares may be a sweep.
    if word.sweep is not None and word.role in ("hydra", "setting") and first != "stages":
        raise ConfigError(f"{text}: {_no_sweep(key)}{as_parameter(word)}")
    return word


def _refuse_empty_key(word: Word) -> None:
    deleted = word.override.is_delete()
    if not word.override.key_or_group:
        raise ConfigError(
            f"{word.text}: the name before '=' is missing; settings are written key=value"
        )
    if word.role == "param" and not word.path and deleted:
        raise ConfigError(
            f"{word.text}: params itself cannot be deleted; delete a parameter: ~optim.lr"
        )
    if word.role == "setting" and deleted and word.path in (*HOST, "objective", "study"):
        raise ConfigError(
            f"{word.text}: the section {word.path} cannot be deleted; change the settings in it"
        )


def as_parameter(word: Word) -> str:
    """How to write a parameter whose name begins like a section or a group of ours."""
    key = word.override.key_or_group
    if "/" in key or word.override.package is not None or key.startswith("hydra"):
        return ""
    return f"; a parameter of that name is written params.{key}=…"


def _no_sweep(key: str) -> str:
    if key in _LISTS:
        return f"a sweep over a setting is not possible; write a list: {key}=[a,b]"
    return f"a sweep over a setting is not possible; give {key} one value, and launch once for each"


def last_choices(words: Sequence[Word]) -> list[Word]:
    """Returns the words with only the last one about each of the user's config groups: it wins,
    where Hydra refuses a second.
    """
    chosen: list[Word] = []
    for word in words:
        before = next(
            (other for other in chosen if word.of_user and other.of_user and other.key == word.key),
            None,
        )
        if before is None:
            chosen.append(word)
            continue
        chosen = [other for other in chosen if other is not before]
        types = before.override.type, word.override.type
        if types != (OverrideType.ADD, OverrideType.DEL):
            # An added group is in no defaults list, and a deleted one is in one.
            prefix = {
                (OverrideType.ADD, OverrideType.CHANGE): "+",
                (OverrideType.DEL, OverrideType.ADD): "",
            }.get(types)
            chosen.append(word if prefix is None else _with_prefix(prefix, word))
    return chosen


def _with_prefix(prefix: str, word: Word) -> Word:
    text = prefix + word.text.lstrip("+")
    return replace(word, text=text, override=grammar.parse_override(text))


def refuse_sweeps_of_groups(words: Sequence[Word]) -> None:
    """Raises ConfigError for a sweep over a config group, with the right form."""
    for word in words:
        if word.role == "group" and word.sweep is not None:
            if word.of_user and isinstance(word.sweep, ChoiceSweep):
                raise ConfigError(
                    f"{word.text}: options of a config group make an axis if they fill a section "
                    f"of params: let the first line of each {word.path}/*.yaml be '# @package "
                    f"params.{word.path.replace('/', '.')}'"
                )
            first = getattr(word.sweep, "list", ["…"])[0]
            raise ConfigError(
                f"{word.text}: a sweep over a config group is not possible; choose one, "
                f"{word.path}={first}, and launch once for each (under a study.name of its own)"
            )


def refuse_study_settings(command: str, words: Sequence[Word]) -> None:
    """Raises ConfigError where a command that only works on stored studies is given a setting of
    the study.
    """
    for word in words:
        root = re.split(r"[./]", word.path)[0]
        if word.role == "hydra" or (word.role in ("setting", "group") and root in HOST):
            continue
        if command in NAMING and word.path == "study.name" and word.role == "setting":
            continue
        if command == "enqueue" and (word.role == "param" or word.of_user):
            continue
        if command == "worker" and word.path == "study.name":
            raise ConfigError(
                f"{word.text}: a worker serves every active study; to serve only this one, "
                f"write worker.studies=[{word.text.partition('=')[2]}]"
            )
        taken = [
            *(["study.name"] if command in NAMING else []),
            *(f"{section}.*" for section in HOST),
        ]
        of_host = [name for name in settings() if name.split(".")[0] in HOST]
        guess = did_you_mean(word.path, [*of_host, *(["study.name"] if command in NAMING else [])])
        raise ConfigError(
            f"{word.text}: {command} takes {', '.join(taken)} only; what a study runs is stored "
            f"with it by launch{guess}"
        )


def values_by_hand(words: Sequence[Word]) -> dict[str, Any]:
    """The parameters to which the words give one value each; an option of a config group under the
    group's name.

    Raises:
        ConfigError: a sweep, a deletion, a parameter without a name, or one given twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        if word.role != "param" and not word.of_user:
            continue
        if word.sweep is not None or word.override.is_delete() or not word.path:
            raise ConfigError(
                f"{word.text}: enqueue takes one value per parameter, such as optim.lr=0.01"
            )
        path = word.path if word.role == "param" else word.key
        if path in values:
            raise ConfigError(f"{word.text}: {path} is given twice")
        values[path] = word.value
    return values


def check_setting(word: Word, base: Mapping[str, Any], *, of_program: bool = False) -> str:
    """Returns the override of a setting in the form that Hydra accepts.

    Args:
        of_program: the objective is a program, whose options need no ``+``.

    Raises:
        ConfigError: there is no such setting, or the chosen sampler or pruner does not have it.
    """
    section = word.path.split(".")[0]
    if word.path in _CHOSEN:
        raise ConfigError(
            f"{word.text}: choose the whole group: {section}={word.value}{as_parameter(word)}"
        )
    inside = next((name for name in settings() if name.startswith(f"{word.path}.")), None)
    if inside is not None and isinstance(word.value, str | int | float):
        raise ConfigError(
            f"{word.text}: {word.path} is a section; set what is in it, such as "
            f"{inside}=…{as_parameter(word)}"
        )
    # maps the user's own names
    if (
        f"{word.path}.".startswith(("infeasible.monotone.", "probes."))
        and not word.override.is_delete()
    ):
        return word.under(word.path, force=True)
    if has(base, word.path) and word.override.type != OverrideType.ADD:
        return word.text
    if word.override.type == OverrideType.DEL:
        raise ConfigError(
            f"{word.text}: there is no setting {word.path} to "
            f"delete{did_you_mean(word.path, leaf_paths(base))}"
        )
    if section == "objective":
        if of_program and word.path.split(".")[1] in OPTIONS:
            return word.under(word.path, force=True)
        if word.override.type == OverrideType.CHANGE:
            raise ConfigError(
                f"{word.text}: objective has no argument {word.path.partition('.')[2]}; to add "
                f"one write +{word.text}{as_parameter(word)}"
            )
        return word.text
    if word.path in (*settings(), *SECTIONS):
        name = (
            at(base, f"{section}.name")
            if section in ("sampler", "pruner") and has(base, f"{section}.name")
            else None
        )
        if name is not None:
            options = (
                ", ".join(f"{section}.{key}" for key in base[section] if key != "name")
                or "no options"
            )
            raise ConfigError(
                f"{word.text}: {section}={name} has no such option; it has "
                f"{options}{as_parameter(word)}"
            )
        return word.under(word.path, force=True)
    raise ConfigError(
        f"unknown setting {word.path}{did_you_mean(word.path, settings())}, in "
        f"{word.text}{as_parameter(word)}"
    )


def apply_to_params(words: Sequence[Word], params: dict[str, Any], space: Space) -> list[str]:
    """Changes `space` word by word, so that the last word about a path wins, and returns the plain
    values as overrides for Hydra.

    Args:
        params: the defaults before these words; changed in place as far as needed to know which
            paths exist.

    Raises:
        ConfigError: a path that does not exist and is not added with ``+``, or a declaration
            without meaning.
    """
    forwarded = _fixed_options(words, params, space)
    for word in words:  # a value may be typed before the option that it belongs to
        _of_group(word, space)
    for word in words:
        space.find_options(params, lambda path: _below(path, words, space))
        _of_group(word, space)
        if word.role == "param":
            if word.path:
                check_path(word.path, source=word.text)
            _refuse_quoted_sweep(word)
            if word.sweep is not None:
                _sweep(word, word.sweep, params, space)
            elif word.override.is_delete():
                forwarded += _delete(word, params, space)
            elif _is_option_of_program(word, words, params, space):
                space.put(Axis(word.path, (word.value,), group=word.path))
            else:
                forwarded += _set(word, params, space)
        elif word.role in ("grid", "search"):
            _declare(word, params, space)
    space.find_options(params, lambda path: _below(path, words, space))
    return forwarded


def _of_group(word: Word, space: Space) -> None:
    """Makes a sweep over a group that fills a section of params an axis; a choice of one of its
    options takes the axis out.
    """
    path = path_of_group(word, space.groups)
    if path is None:
        return
    if isinstance(word.sweep, ChoiceSweep):
        space.put(
            grammar.axis(path, map(Override._convert_value, word.sweep.list), source=word.text)
        )
    else:
        space.choose(path, None if word.override.is_delete() else word.value)


def path_of_group(word: Word, groups: Mapping[str, Group]) -> str | None:
    """Returns the path in params that the group of a word fills; None for any other
    group or word.
    """
    if word.role != "group":
        return None
    return next((path for path, group in groups.items() if group.key.lstrip("+") == word.key), None)


def _is_option_of_program(
    word: Word, words: Sequence[Word], params: Mapping[str, Any], space: Space
) -> bool:
    """Whether a word fixes an option of a config group that the program has: what lies below it is
    set or searched as well.
    """
    if (
        not space.appends_overrides
        or not word.path
        or word.path in space.groups
        or not isinstance(word.value, str)
    ):
        return False
    section = at(params, word.path) if has(params, word.path) else None
    return _below(word.path, words, space) or (isinstance(section, Mapping) and bool(section))


def _fixed_options(words: Sequence[Word], params: dict[str, Any], space: Space) -> list[str]:
    """Removes words from params that have declarations below them, where they are options of the
    program's own groups.

    Returns the overrides that do the same in Hydra.
    """
    gone = []
    for path in leaf_paths(params) if space.appends_overrides else ():
        value = at(params, path)
        declared = path in space.paths() or path in space.groups
        if (
            isinstance(value, str)
            and "${" not in value
            and not declared
            and _below(path, words, space)
        ):
            space.put(Axis(path, (value,), group=path))
            above, _, last = path.rpartition(".")
            del (at(params, above) if above else params)[last]
            gone.append(f"~params.{path}")
    return gone


def _below(path: str, words: Sequence[Word], space: Space) -> bool:
    """Whether anything is declared or given a value below `path`."""
    typed = (
        word.path
        for word in words
        if word.role in ("param", "grid", "search") and not word.override.is_delete()
    )
    return space.below(path) or any(other.startswith(f"{path}.") for other in typed)


def _sweep(word: Word, sweep: Sweep, params: Mapping[str, Any], space: Space) -> None:
    if word.override.is_delete() or not word.path:
        raise ConfigError(f"{word.text}: a sweep belongs to one parameter: optim.lr=interval(0, 1)")
    if word.override.type == OverrideType.CHANGE and _is_new(word.path, params, space):
        raise _unknown(word, params, space)
    space.put(grammar.declaration(word.path, sweep, section=None, source=word.text))
    if word.override.type != OverrideType.CHANGE:
        space.added.add(word.path)


def _refuse_quoted_sweep(word: Word) -> None:
    """Raises ConfigError for ``act="'choice(tanh,gelu)'"``, a pair of quotes too many."""
    value = word.override._value
    if not isinstance(value, QuotedString) or not _FUNCTION.match(value.text):
        return
    try:
        meant = grammar.parse_value(value.text, source=word.text)
    except ConfigError:
        return
    if isinstance(meant, Sweep):
        text = f"{word.text.partition('=')[0]}={value.text}"
        raise ConfigError(
            f"{word.text}: this is a quoted word that reads like a sweep; leave the inner quotes "
            f"out: '{text}'. A word that is meant is written under params in the experiment file"
        )


def _is_new(path: str, params: Mapping[str, Any], space: Space) -> bool:
    """Whether the path exists nowhere yet; a path below an axis is compared with the axis's values
    later.
    """
    return (
        not has(params, path)
        and path not in space.paths()
        and space.parent_of(path) not in space.grid
    )


def _delete(word: Word, params: dict[str, Any], space: Space) -> list[str]:
    axis = space.grid.get(space.parent_of(word.path) or "")
    if axis is not None and not axis.group:
        raise ConfigError(
            f"{word.text}: {word.path} lies below {axis.path}, whose values replace it"
        )
    dropped = space.drop(word.path) if word.path else False
    if not has(params, word.path):
        if dropped:
            return []
        raise _unknown(word, params, space)
    above, _, last = word.path.rpartition(".")
    holder = at(params, above) if above else params
    if isinstance(holder, dict):
        del holder[last]
    return [word.under(f"params.{word.path}")]


def _set(word: Word, params: dict[str, Any], space: Space) -> list[str]:
    value = word.value
    if not word.path and not isinstance(value, dict):
        raise ConfigError(f"{word.text}: params is a section; set its parameters: optim.lr=…")
    below = _inside(value, f"{word.path}." if word.path else "") if isinstance(value, dict) else {}
    new = bool(word.path) and not has(params, word.path)
    is_section = (
        bool(word.path)
        and not new
        and isinstance(at(params, word.path), Mapping)
        and at(params, word.path) != {}
    )
    if (
        is_section
        and value is not None
        and not isinstance(value, dict)
        and word.override.type != OverrideType.FORCE_ADD
    ):
        inside = f"{word.path}.{leaf_paths(at(params, word.path))[0]}"
        group = space.groups.get(word.path)
        choose = (
            f"choose an option of the config group that fills it ({group.key}=…), "
            if group is not None
            else ""
        )
        raise ConfigError(
            f"{word.text}: {word.path} is a section of params; {choose}set {inside}=…, or "
            f"replace it whole with ++{word.text}"
        )
    fixes = any(path == word.path or path.startswith(f"{word.path}.") for path in space.paths())
    of_option = space.parent_of(word.path) in space.grid
    if new and word.override.type == OverrideType.CHANGE and not fixes and not of_option:
        raise _unknown(word, params, space)
    above = space.parent_of(word.path)
    if above is not None and not (above in space.grid and space.grid[above].group):
        raise ConfigError(
            f"{word.text}: {word.path} lies below {above}, whose values replace it; fix {above} "
            "or drop it first"
        )
    if word.path and above is None:
        check_ancestors(word.path, params, source=word.text)
    if word.path in space.paths():  # also if the value is a mapping, whose leaves are set below
        space.drop(word.path)
    for path, item in (below or {word.path: value}).items():
        space.drop(path)
        _put(params, path, item)
    of_program = above is not None and space.grid[above].of_program and above not in space.groups
    # Some options of a group may have what is added to all of them.
    to_all = word.override.type == OverrideType.ADD and any(
        word.path.startswith(f"{path}.") for path in space.groups
    )
    return [
        word.under(
            f"params.{word.path}" if word.path else "params",
            force=to_all or (new and (fixes or of_program)),
        )
    ]


def _inside(value: Mapping[str, Any], above: str) -> dict[str, Any]:
    """The leaves of a mapping that is a value; its keys may be any words."""
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= (
            _inside(item, f"{above}{key}.")
            if isinstance(item, Mapping) and item
            else {f"{above}{key}": item}
        )
    return leaves


def _put(params: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    node: Any = params
    for part in above:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[part] if isinstance(node, dict) else None
    if isinstance(node, dict):
        node[last] = value


def _declare(word: Word, params: Mapping[str, Any], space: Space) -> None:
    """Applies ``grid.x=[1,2]``, ``search.x=…`` or ``~grid.x``, with the meaning it has in YAML."""
    section = word.role
    paths = space.grid if section == "grid" else space.search
    if word.override.is_delete() or (word.path and word.value is None):
        below = [path for path in paths if not word.path or path.startswith(f"{word.path}.")]
        gone = [word.path] if word.path in paths else below
        if not gone and word.path:
            raise ConfigError(
                f"{word.text}: {section} has no {word.path}{did_you_mean(word.path, paths)}"
            )
        for path in gone:
            space.drop(path, below=False)
        return
    try:
        values = (
            {word.path: word.value}
            if word.path and not isinstance(word.value, dict)
            else _nested(word)
        )
    except ConfigError as error:
        raise ConfigError(f"{error}{as_parameter(word)}") from error
    for path, value in values.items():
        check_path(path, source=word.text)
        if word.override.type == OverrideType.CHANGE and _is_new(path, params, space):
            raise _unknown(word, params, space)
        # A path is declared in one section only: put() moves it.
        try:
            space.declare(section, path, value)
        except ConfigError as error:
            raise ConfigError(f"{error}{as_parameter(word)}") from error
        if word.override.type != OverrideType.CHANGE:
            space.added.add(path)


def _nested(word: Word) -> dict[str, Any]:
    leaves = flatten(word.role, word.value)
    return {f"{word.path}.{leaf}" if word.path else leaf: value for leaf, value in leaves.items()}


def _unknown(word: Word, params: Mapping[str, Any], space: Space) -> ConfigError:
    guess = suggestion(word.path, params, space, settings())
    add = (
        ""
        if word.override.is_delete()
        else f"; to add it to params write +{word.text.lstrip('+~')}"
    )
    if word.role in ("grid", "search") and not word.override.is_delete():
        add = f"; to add {word.path} to {word.role} write +{word.text}{as_parameter(word)}"
    return ConfigError(
        f"{word.text}: {word.path} is neither a setting nor a parameter in params{guess}{add}"
    )
