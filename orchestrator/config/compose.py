"""From a command line to a composed config, by Hydra's own loader."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from orchestrator import program
from orchestrator.config import grammar
from orchestrator.config.infeasible import leave_out_fixed
from orchestrator.config.overrides import (
    Word,
    apply_to_params,
    check_setting,
    last_choices,
    path_of_group,
    read_words,
    refuse_study_settings,
    refuse_sweeps_of_groups,
    take_url,
    values_by_hand,
)
from orchestrator.config.schema import SECTIONS, STUDY_SECTIONS, checked, settings
from orchestrator.config.space import Group, Space
from orchestrator.errors import ConfigError, denied, did_you_mean
from orchestrator.model import Axis
from orchestrator.passwords import mask
from orchestrator.settings import HOST, HostConfig, StorageConfig

T = TypeVar("T")
URL_VARIABLE = "ORCHESTRATOR_STORAGE_URL"
DATA_VARIABLE = "ORCHESTRATOR_DATA_DIR"
_EMBEDDED = "postgres"
# what OmegaConf adds to its messages
_NOISE = re.compile(r"\n\s*((object|reference)_type=.*|full_key: *$)", re.MULTILINE)


@dataclass(frozen=True)
class Composed:
    """A command line, composed. No password is in `config`, `hydra` or `overrides`: only `host` has
    it.

    Attributes:
        config: the whole config, unresolved, without Hydra's own; grid and search as the command
            line left them.
        hydra: Hydra's own node (run directory, help …).
        overrides: the words as typed.
        host: the settings of this host, resolved and checked.
        groups: the names of all config groups there are.
        values: of ``enqueue``: what the words give a value, parameters by path and options of
            config groups by the group.
        space: of ``launch``: grid and search.
    """

    config: DictConfig
    hydra: DictConfig
    overrides: tuple[str, ...]
    host: HostConfig
    groups: frozenset[str] = frozenset()
    values: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=Space)


def compose(
    command: str,
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    config_name: str = "config",
) -> Composed:
    """Returns the config of one command; composes it as Hydra does, and keeps sweeps apart as grid
    and search.

    Args:
        command: ``launch`` takes every setting; other commands those of this host, so their config
            holds nothing else.
        config_dir: a directory of the user's, searched before the shipped one.

    Raises:
        ConfigError: anything the user did wrong, in one line that holds no password.
    """
    try:
        return _compose(command, overrides, config_dir, config_name)
    except ConfigError as error:
        raise ConfigError(mask(str(error))) from error
    except RecursionError:
        raise ConfigError("a value is nested too deeply, or contains itself") from None


def _compose(
    command: str, overrides: Sequence[str], config_dir: str | None, config_name: str
) -> Composed:
    texts, url = take_url(overrides)
    loader = Loader(
        config_dir,
        config_name,
        [text for text in texts if text.startswith(("hydra.", "+hydra.", "++hydra."))],
    )
    words = read_words(texts, loader.groups)
    if command == "launch":
        words = last_choices(words)
    else:
        refuse_study_settings(command, words)
        refuse_sweeps_of_groups(words)
    chosen = [word.text for word in words if word.role == "hydra"]
    chosen += [
        _one_choice(loader, word)
        for word in words
        if word.role == "group" and not (command == "enqueue" and word.of_user)
    ]
    if url is not None and not _chooses(words, "storage"):
        chosen.append("storage=postgres")
    try:
        base = loader.load(chosen)
    except ConfigError:
        # a config of the user's that lacks ours fails at the first choice, with a message that
        # misleads
        if chosen:
            _check_host_sections(loader.load([]), loader.config_name)
        raise
    if (
        os.environ.get(URL_VARIABLE)
        and not _chooses(words, "storage")
        and base.hydra.runtime.choices.get("storage") == "embedded"
    ):
        chosen.append("storage=postgres")
        base = loader.load(chosen)

    before: Any = OmegaConf.to_container(base, resolve=False)
    _check_host_sections(before, loader.config_name)
    groups = _groups_in_params(loader, chosen, base) if command == "launch" else {}
    refuse_sweeps_of_groups([word for word in words if path_of_group(word, groups) is None])
    forwarded = [check_setting(word, before) for word in words if word.role == "setting"]
    space = Space()
    if command == "launch":
        _check_sections(before, loader.groups)
        params = _section(before, "params")
        HydraConfig.instance().set_config(base)  # for ${hydra:…}
        appends = _appends_overrides(loader, base, chosen, forwarded)
        space = Space.from_yaml(
            declared(base, "grid"), declared(base, "search"), groups, appends_overrides=appends
        )
        space.check_spelling(params)
        forwarded += apply_to_params(words, params, space)
        space.fill(
            {axis.path: _contents(loader, axis, chosen, forwarded) for axis in space.unfilled()}
        )
        space.check(params)
    full = loader.load([*chosen, *forwarded]) if forwarded else base
    HydraConfig.instance().set_config(full)
    if str(full.hydra.get("mode")).endswith("MULTIRUN"):
        raise ConfigError(
            "hydra.mode=MULTIRUN: launch runs a sweep as one study by itself; leave it out"
        )
    host = _host(full, url, typed_embedded="storage=embedded" in chosen)
    config = _shown_config(command, full, space, host)
    values = values_by_hand(words) if command == "enqueue" else {}
    return Composed(
        config,
        full.hydra,
        tuple(mask(text) for text in overrides),
        host,
        loader.groups,
        values,
        space,
    )


def _shown_config(command: str, full: DictConfig, space: Space, host: HostConfig) -> DictConfig:
    """The sections that concern `command`, unresolved; takes passwords out of `full` itself, which
    `hydra` is a part of.
    """
    with open_dict(full):
        full.storage.kind = host.storage.kind
        url = host.storage.url
        if url and (url != full.storage.get("url") or not _interpolated(full.storage, "url")):
            full.storage.url = mask(url)
        if command == "launch":
            for section, content in space.to_yaml().items():
                full[section] = content
            leave_out_fixed(full, space)
    sections = SECTIONS if command == "launch" else HOST
    config = OmegaConf.create(
        {section: full._get_node(section) for section in sections if section in full}
    )
    if command != "launch":
        config.study = {"name": OmegaConf.select(full, "study.name")}
    OmegaConf.set_struct(config, None)
    return config


class Loader:
    """Hydra's loader over the user's directory and the shipped one; touches none of Hydra's
    process-wide state it can avoid.

    Raises:
        ConfigError: the directory does not exist, or cannot be read.
    """

    def __init__(
        self, config_dir: str | None, config_name: str, hydra_overrides: Sequence[str] = ()
    ) -> None:
        version.setbase("1.3")
        path = create_config_search_path(str(shipped_directory()))
        if config_dir is not None:
            directory = Path(config_dir).expanduser().absolute()
            if not os.path.isdir(directory):  # noqa: PTH112 - pathlib's raises where the way there may not be gone
                raise ConfigError(
                    f"--config-dir {config_dir}: "
                    f"{denied(directory) or 'there is no such directory'}"
                )
            # Before the shipped one, not behind it as in Hydra: a user's experiment/digits.yaml
            # must not be passed over.
            path.prepend(
                provider="command-line",
                path=f"file://{directory}",
                anchor=SearchPathQuery(provider="main"),
            )
        self.config_name = config_name.removesuffix(".yaml")
        loader = ConfigLoaderImpl(config_search_path=path)
        self.hydra = Hydra("orchestrator", loader)
        # hydra.searchpath, in the config or among the overrides, may add directories, and groups
        # with them.
        found = translated(
            lambda: loader._parse_overrides_and_create_caching_repo(
                self.config_name, list(hydra_overrides)
            )
        )
        self._repository = found[1]
        self.groups = frozenset(self._groups_below(""))

    def _groups_below(self, parent: str) -> Iterator[str]:
        for name in self.options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group != "hydra":
                yield group
                yield from self._groups_below(group)

    def load(self, overrides: Sequence[str]) -> DictConfig:
        """Returns the composed config, `hydra` included.

        Raises:
            ConfigError: whatever Hydra, OmegaConf or the YAML parser says, in one line.
        """
        return translated(
            lambda: self.hydra.compose_config(
                self.config_name, list(overrides), run_mode=RunMode.RUN, from_shell=False
            )
        )

    def options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        """The options of a group, or the groups below it.

        Raises:
            ConfigError: a directory cannot be read.
        """
        return translated(lambda: list(self._repository.get_group_options(group, kind)))

    def checked_choice(self, word: Word) -> str:
        """Returns the choice of a group as an override for Hydra.

        Raises:
            ConfigError: the group has no such option.
        """
        chosen = word.value
        options = self.options(word.path)
        if word.override.is_delete() and word.path in HOST:
            raise ConfigError(
                f"{word.text}: {word.path} cannot be left out; choose one of "
                f"{', '.join(sorted(options))}"
            )
        drop = "" if word.path in SECTIONS else f", or none with ~{word.path}"
        for option in chosen if isinstance(chosen, list) else [chosen]:
            if isinstance(option, str) and option not in options and not word.override.is_delete():
                raise ConfigError(
                    f"{word.path}={option}: there is no such option{did_you_mean(option, options)};"
                    f" {word.path} has {', '.join(sorted(options))}"
                )
            if not isinstance(option, str) and not word.override.is_delete():
                raise ConfigError(
                    f"{word.text}: {word.path} is a config group; choose one of "
                    f"{', '.join(sorted(options))}{drop}"
                )
        return word.text

    def packages(self, overrides: Sequence[str]) -> dict[str, str]:
        """Returns where the chosen option of each group lands in the config, by the key that
        chooses it.
        """
        defaults = translated(
            lambda: self.hydra.config_loader.compute_defaults_list(
                self.config_name, list(overrides), RunMode.RUN
            )
        )
        return {
            d.override_key: d.package for d in defaults.defaults if d.override_key and d.package
        }

    def header_package(self, group: str, options: Sequence[str]) -> str | None:
        """Returns what the first lines of a group's options say is their package, if all can be
        read and say the same.
        """
        try:
            found = translated(
                lambda: [self._repository.load_config(f"{group}/{option}") for option in options]
            )
        except ConfigError:  # said when one is chosen
            return None
        packages = {
            result.header.get("package") if result is not None else None for result in found
        }
        return packages.pop() if len(packages) == 1 else None


def shipped_directory() -> Path:
    """The config that comes with the package: inside it when installed, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "conf"


def translated(action: Callable[[], T]) -> T:
    """Returns what `action` returns; what Hydra and OmegaConf raise becomes a ConfigError of one
    line.
    """
    try:
        return action()
    except MissingConfigException as error:
        text = re.split(r"\n\s*(?:Available options|Config search path|Search path)", str(error))[0]
        missing = (error.missing_cfg_file or "").rsplit("/", 1)[-1]
        known = f"; there are {', '.join(error.options)}" if error.options else ""
        raise ConfigError(
            f"{_one_line(text)}{did_you_mean(missing, error.options or ())}{known}"
        ) from error
    except PermissionError as error:
        raise ConfigError(denied(error.filename) or _one_line(str(error))) from error
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
    ) as error:
        cause = (
            error.__cause__
            if isinstance(error.__cause__, (OmegaConfBaseException, yaml.YAMLError))
            else None
        )
        parts = [str(error).split("\nSee https:")[0], *([str(cause)] if cause is not None else [])]
        text = _NOISE.sub("", ": ".join(part for part in parts if part.strip()))
        raise ConfigError(_one_line(text) or type(error).__name__) from error


def resolved(config: DictConfig, section: str) -> Any:
    """Returns a section as plain containers, its interpolations resolved.

    Raises:
        ConfigError: one of them cannot be; names the section and the reason.
    """
    if section not in config:
        return None
    try:
        node = config[section]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{section}{_where(section, error)}: {_one_line(str(error).splitlines()[0])}"
        ) from error


def declared(config: DictConfig, section: str) -> Any:
    """Returns ``grid`` or ``search`` as plain containers. What makes a declaration is resolved, by
    the whole config; values in it are not: they are resolved in each trial, by its params.

    Raises:
        ConfigError: an interpolation cannot be resolved; names the section and the reason.
    """
    if section not in config:
        return None
    try:
        return _declarations(config[section], section)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{section}{_where(section, error)}: {_one_line(str(error).splitlines()[0])}"
        ) from error


def _declarations(node: Any, shown: str) -> Any:
    if not isinstance(node, DictConfig):
        return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    found: dict[Any, Any] = {}
    for key in map(str, node):
        text = node._get_node(key)._value()  # type: ignore[union-attr]
        if key == "when" and OmegaConf.is_config(node[key]):
            found[key] = OmegaConf.to_container(node[key], resolve=True)
        elif isinstance(text, str) and "${" in text and _lists_values(text, f"{shown}.{key}"):
            found[key] = text
        else:
            found[key] = _declarations(node[key], f"{shown}.{key}")
    return found


def _lists_values(text: str, shown: str) -> bool:
    """Whether a declaration that interpolates is a sweep over values which do: ``choice(${lr},
    0.1)``.
    """
    try:
        return isinstance(grammar.parse_value(text, shown=shown), ChoiceSweep)
    except ConfigError:
        return False


def _where(section: str, error: OmegaConfBaseException) -> str:
    key = str(getattr(error, "full_key", None) or "")
    return key.removeprefix(section) if key.startswith(f"{section}.") else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _chooses(words: Sequence[Word], group: str) -> bool:
    return any(word.role == "group" and word.path == group for word in words)


def _section(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    node = config.get(section) or {}
    if not isinstance(node, dict):
        raise ConfigError(f"{section}={node!r}: {section} is a section; give it a mapping")
    return node


def _check_sections(config: Mapping[str, Any], groups: Collection[str]) -> None:
    for name in config:
        if name == "experiment":
            chosen = config["hydra"]["runtime"]["choices"].get("experiment")
            raise ConfigError(
                f"experiment/{chosen}.yaml: its first line must be '# @package _global_'"
            )
        if name in groups and name not in SECTIONS:
            raise ConfigError(
                f"unknown section {name!r}: for parameters the first line of {name}/*.yaml must "
                f"be '# @package params.{name}',"
                " for settings '# @package _global_'"
            )
        if name not in (*SECTIONS, "hydra"):
            guess = did_you_mean(str(name), [*SECTIONS, *settings()])
            raise ConfigError(
                f"unknown section {name!r}{guess}; what the objective reads goes under params: "
                f"params: {{{name}: …}}"
            )


def _check_host_sections(config: Mapping[str, Any] | DictConfig, name: str) -> None:
    missing = [section for section in HOST if section not in config]
    if missing:
        if name == "config":
            raise ConfigError(
                "the config.yaml of --config-dir hides the shipped one and has no "
                f"{', '.join(missing)}: give it another name,"
                " let it begin with 'defaults: [config, _self_]', and choose it with --config-name"
            )
        raise ConfigError(
            f"{name}.yaml has no {', '.join(missing)}: let it begin with 'defaults: [config, "
            "_self_]'"
        )


def _one_choice(loader: Loader, word: Word) -> str:
    """The choice of a group as an override for Hydra; of a sweep the first option, for the config
    must be composed with one.

    Raises:
        ConfigError: the group has no such option, or is one of ours, or the sweep is no list.
    """
    if word.sweep is None:
        return loader.checked_choice(word)
    options = [Override._convert_value(item) for item in getattr(word.sweep, "list", ())]
    choices = [f"{word.override.get_key_element()}={option}" for option in options]
    for choice in read_words(choices, loader.groups):
        loader.checked_choice(choice)
    if not (word.of_user and choices):
        refuse_sweeps_of_groups([word])
    return choices[0]


def _groups_in_params(loader: Loader, chosen: Sequence[str], base: DictConfig) -> dict[str, Group]:
    """The user's config groups that fill a section of params, by its path."""
    choices: Mapping[str, Any] = base.hydra.runtime.choices
    listed = {str(key): str(key).split("@")[0] for key in choices}
    typed = {word.split("=", 1)[0] for word in chosen}
    candidates = [
        (f"+{key}" if f"+{key}" in typed else key, group, choices[key])
        for key, group in listed.items()
    ]
    candidates += [
        (f"+{group}", group, None) for group in loader.groups if group not in listed.values()
    ]
    candidates = [
        c for c in candidates if c[1].split("/")[0] not in (*SECTIONS, "experiment", "hydra")
    ]
    packages = loader.packages(chosen) if candidates else {}
    groups: dict[str, Group] = {}
    for key, group, option in candidates:
        options = loader.options(group)
        package = (
            packages.get(key.lstrip("+"))
            or (key.split("@")[1] if "@" in key else None)
            or loader.header_package(group, options)
        )
        if options and package is not None and package.startswith("params."):
            groups.setdefault(package.removeprefix("params."), Group(key, tuple(options), option))
    return groups


def _contents(
    loader: Loader, axis: Axis, chosen: Sequence[str], forwarded: Sequence[str]
) -> tuple[Any, ...]:
    """What each option of an axis puts in its place in params, with the plain values of the command
    line in it.

    Raises:
        ConfigError: an option cannot be composed with them, or differs from another one elsewhere
            in the config too.
    """
    contents, first = [], None
    for option in axis.values:
        choice = f"{axis.group}={option}"
        key = choice.lstrip("+")
        others = [
            word for word in chosen if word.split("=", 1)[0].lstrip("+") != key.split("=", 1)[0]
        ]
        try:
            whole: Any = OmegaConf.to_container(
                loader.load([*others, choice, *forwarded]), resolve=False
            )
        except ConfigError as error:
            raise ConfigError(
                _not_in_option(key, axis.path, str(error)) or f"{key}: {error}"
            ) from error
        del whole["hydra"]
        _check_sections(whole, loader.groups)
        contents.append(_taken_out(whole["params"], axis.path))
        first = whole if first is None else first
        if (other := _first_difference(first, whole)) is not None:
            raise ConfigError(
                f"{key}: differs from {axis.group.lstrip('+')}={axis.values[0]} in {other} too, "
                "and the axis stands for"
                f" params.{axis.path} alone; keep all that an option says in that section"
            )
    return tuple(contents)


def _not_in_option(choice: str, path: str, message: str) -> str | None:
    """In our words what Hydra says of a plain value for which an option has no place; None if it
    says something else.
    """
    found = re.match(
        rf"Could not (override|delete from config\.) '(params\.{re.escape(path)}\.(\S+))'", message
    )
    if found is None:
        return None
    inside = f"{path}.{found[3]}"
    how = f"; to give it to every option write +{inside}=…" if found[1] == "override" else ""
    return f"{inside}: {choice} has no {found[3]}{how}"


def _taken_out(params: Any, path: str) -> Any:
    *above, last = path.split(".")
    for part in above:
        params = params.get(part, {})
    return params.pop(last, {})


def _first_difference(a: Any, b: Any, above: str = "") -> str | None:
    """The path of the first difference between nested mappings, None where there is none."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            path = f"{above}.{key}" if above else str(key)
            if key not in a or key not in b:
                return path
            if (found := _first_difference(a[key], b[key], path)) is not None:
                return found
        return None
    return None if repr(a) == repr(b) else above


def _appends_overrides(
    loader: Loader, base: DictConfig, chosen: Sequence[str], settings: Sequence[str]
) -> bool:
    """Whether the objective is a program that gets the parameters as overrides."""
    of_objective = any(re.match(r"[+~]*objective\b", text) for text in settings)
    config = loader.load([*chosen, *settings]) if of_objective else base
    objective: Any = OmegaConf.to_container(config, resolve=False).get("objective")  # type: ignore[union-attr]
    try:
        return (
            isinstance(objective, dict)
            and program.is_program(objective)
            and program.read(objective).appends_overrides
        )
    except ConfigError:  # said when the objective is checked
        return False


# ---------------------------------------------------------------------------------------- this host


def _host(full: DictConfig, url: str | None, *, typed_embedded: bool) -> HostConfig:
    values = {section: resolved(full, section) or {} for section in HOST}
    storage, worker, paths = values["storage"], values["worker"], values["paths"]
    for section in HOST:
        if not isinstance(values[section], dict):
            checked(section, HOST[section], values[section])
    if url is not None:
        typed = _typed_url(url)
        storage["url"] = typed
        if typed and typed != mask(typed) and _interpolated(full.storage, "password_file"):
            storage["password_file"] = None  # the environment's, of the environment's URL
    lists = (
        (worker, "devices"),
        (worker, "studies"),
        (worker, "allow_targets"),
        (values["dashboard"], "hosts"),
    )
    for holder, key in lists:  # worker.devices=0 says the same as worker.devices=[0]
        if holder.get(key) is not None and not isinstance(holder[key], list):
            holder[key] = [holder[key]]
    for holder, key in (
        (storage, "path"),
        (paths, "data"),
        (paths, "runs"),
        (worker, "health_file"),
    ):
        if isinstance(holder.get(key), (str, Path)):
            holder[key] = str(Path(holder[key]).expanduser().absolute())
    host = HostConfig(
        **{section: checked(section, schema, values[section]) for section, schema in HOST.items()}
    )
    host = replace(host, storage=_checked_storage(host, typed_embedded))
    if host.worker.heartbeat_s >= host.worker.lease_ttl_s / 2:
        raise ConfigError(
            f"worker.heartbeat_s={host.worker.heartbeat_s:g}: must be less than half of"
            f" worker.lease_ttl_s={host.worker.lease_ttl_s:g}"
        )
    return host


def _checked_storage(host: HostConfig, typed_embedded: bool) -> StorageConfig:
    """Returns the storage as it is meant: a URL makes it a server's, and an embedded one has a
    directory.
    """
    storage = host.storage
    if storage.url and storage.kind == "embedded":
        if typed_embedded:
            raise ConfigError(
                "storage=embedded and storage.url exclude each other; leave out one of them"
            )
        storage = replace(storage, kind="postgres")
    if storage.kind == "postgres" and not storage.url:
        raise ConfigError(
            "storage=postgres needs storage.url=postgresql+psycopg2://user@host:5432/database,"
            f" or the environment variable {URL_VARIABLE}"
        )
    if storage.url and not re.match(r"postgres(ql)?(\+\w+)?://", storage.url):
        raise ConfigError(
            "storage.url must start with postgresql+psycopg2:// (its value is not shown here)"
        )
    if storage.kind == "embedded" and storage.path is None:
        storage = replace(storage, path=host.paths.data / _EMBEDDED)
    return storage


def default_storage_path() -> Path:
    """Where the embedded server of this user is when nothing on the command line says otherwise."""
    return Path(_data_directory()).absolute() / _EMBEDDED


def _typed_url(url: str) -> str | None:
    if url in ("null", ""):
        return None
    if "${" not in url:
        return url
    try:
        return str(OmegaConf.create({"url": url}).url)
    except OmegaConfBaseException as error:
        raise ConfigError(f"storage.url: {_one_line(str(error).splitlines()[0])}") from error


def _interpolated(node: DictConfig, key: str) -> bool:
    return key in node and OmegaConf.is_interpolation(node, key)


def _data_directory() -> str:
    return os.environ.get(DATA_VARIABLE) or platformdirs.user_data_dir(
        "orchestrator", appauthor=False
    )


OmegaConf.register_new_resolver("orchestrator.data_dir", _data_directory, replace=True)

__all__ = [
    "STUDY_SECTIONS",
    "Composed",
    "Loader",
    "compose",
    "declared",
    "resolved",
    "shipped_directory",
    "translated",
]
