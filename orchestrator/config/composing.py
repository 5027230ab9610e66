"""From a command line to a composed config: sweeps become grid and search, everything else goes to
Hydra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from orchestrator import program
from orchestrator.config import stages, sweeper
from orchestrator.config.group_axes import contents_of, groups_in_params, read_with_groups
from orchestrator.config.host import host_config, interpolated, refuse_typed_notify_url
from orchestrator.config.infeasible import leave_out_fixed
from orchestrator.config.loader import Loader
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
from orchestrator.config.places import URL_VARIABLE
from orchestrator.config.schema import SECTIONS
from orchestrator.config.sections import check_host_sections, check_sections, section_of
from orchestrator.config.space import Group, Space
from orchestrator.config.translate import declared
from orchestrator.errors import ConfigError
from orchestrator.model import Searched
from orchestrator.passwords import HIDDEN, mask
from orchestrator.settings import HOST, HostConfig
from orchestrator.stages import Inherits, touches


@dataclass(frozen=True)
class Composed:
    """A command line, composed. No password is in `config`, `hydra` or `overrides`: only `host` has
    it.

    Attributes:
        config: the whole config, unresolved, without Hydra's own node; grid and search after the
            command line.
        hydra: Hydra's own node (run directory, help …).
        overrides: the words as typed.
        host: the settings of this host, resolved and checked.
        groups: the names of all config groups there are.
        values: for ``enqueue``: the values that the words set, parameters by path and options of
            config groups by group.
        space: for ``launch``: grid and search.
        stages: for ``launch``: the stages in their order; empty if there are none.
    """

    config: DictConfig
    hydra: DictConfig
    overrides: tuple[str, ...]
    host: HostConfig
    groups: frozenset[str] = frozenset()
    values: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=Space)
    stages: tuple[ComposedStage, ...] = ()


@dataclass(frozen=True)
class ComposedStage:
    """One stage, composed as a study of its own; what it inherits is not in it yet.

    `own` are the paths of params that the stage, or the command line, sets itself.
    """

    name: str
    composed: Composed
    inherits: Inherits
    own: tuple[str, ...]


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


@dataclass(frozen=True)
class _Given:
    """What a command is composed from: its words, the options of groups that they choose, the
    storage's URL, and all of it as it was typed.
    """

    command: str
    loader: Loader
    words: Sequence[Word]
    chosen: Sequence[str]
    url: str | None
    overrides: Sequence[str]


def _compose(
    command: str, overrides: Sequence[str], config_dir: str | None, config_name: str
) -> Composed:
    given, base = _read(command, overrides, config_dir, config_name)
    before: Any = OmegaConf.to_container(base, resolve=False)
    if (refused := sweeper.refusal(before["hydra"].get("sweeper") or {})) is not None:
        raise refused
    check_host_sections(before, given.loader.config_name)
    if command != "launch":
        return _study(given, base)
    typed = [word for word in given.words if stages.of_stages(word)]
    given = replace(given, words=[w for w in given.words if not stages.of_stages(w)])
    written = stages.written(before.get("stages"), typed)
    declared_stages = stages.read(written)
    whole = _study(given, base)
    whole.config.stages = written
    if not declared_stages:
        return whole
    given = replace(given, words=stages.without_chains_budget(given.words))
    groups = groups_in_params(given.loader, given.chosen, base)
    return replace(whole, stages=tuple(_staged(given, whole, declared_stages, groups)))


def _read(
    command: str, overrides: Sequence[str], config_dir: str | None, config_name: str
) -> tuple[_Given, DictConfig]:
    """The command line in words, and the config with the options that they choose."""
    refuse_typed_notify_url(overrides)
    texts, url = take_url(overrides)
    loader = Loader(
        config_dir,
        config_name,
        [text for text in texts if text.startswith(("hydra.", "+hydra.", "++hydra."))],
    )
    words = read_with_groups(loader, texts)
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
        if (
            os.environ.get(URL_VARIABLE)
            and not _chooses(words, "storage")
            and loader.choice("storage", chosen) == "embedded"
        ):
            chosen.append("storage=postgres")
        base = loader.load(chosen)
    except ConfigError as error:
        if re.search(r"hydra[./]sweeper", str(error)):
            _refuse_sweeper(loader, words)
        # a config of the user's that lacks ours fails at the first choice, with a message that
        # misleads
        if chosen:
            check_host_sections(loader.load([]), loader.config_name)
        raise
    return _Given(command, loader, words, chosen, url, overrides), base


def _staged(
    given: _Given,
    whole: Composed,
    declared_stages: Sequence[stages.Declared],
    groups: Mapping[str, Group],
) -> list[ComposedStage]:
    """The stages, each composed with what the ones before it have set and frozen."""
    composed: list[ComposedStage] = []
    kept: list[str] = []
    elsewhere = _declared_anywhere(whole, declared_stages)
    params: dict[str, Any] = {}
    for declared_stage in declared_stages:
        earlier = composed[-1] if composed else None
        there = [] if earlier is None else earlier.composed.space.paths()
        stage = declared_stage.carrying(params, there)
        try:
            made = _stage(given, groups, stage, earlier, kept, elsewhere)
        except ConfigError as error:
            raise ConfigError(f"stages.{stage.name}: {error}") from error
        kept = _frozen_after(made, earlier, kept)
        paths = made.composed.space.paths()
        params = {path: v for path, v in stage.params.items() if not touches(path, paths)}
        composed.append(made)
    return composed


def _declared_anywhere(whole: Composed, declared: Sequence[stages.Declared]) -> set[str]:
    """The parameters of the top level and of every stage."""
    paths = set(whole.space.paths())
    for stage in declared:
        with suppress(ConfigError):  # told when the stage is composed
            paths.update(stage.paths)
    return paths


def _frozen_after(
    stage: ComposedStage, earlier: ComposedStage | None, kept: Sequence[str]
) -> list[str]:
    """The paths that are frozen once a stage has begun, by it or by earlier ones (`kept`)."""
    if stage.inherits.anew or earlier is None:
        return []
    freeze = stage.inherits.freeze
    paths = [*kept, *(earlier.composed.space.paths() if isinstance(freeze, str) else freeze)]
    own = [*stage.composed.space.paths(), *stage.own]
    return [path for path in dict.fromkeys(paths) if not touches(path, own)]


def _stage(
    given: _Given,
    groups: Mapping[str, Group],
    stage: stages.Declared,
    earlier: ComposedStage | None,
    kept: Collection[str],
    elsewhere: Collection[str],
) -> ComposedStage:
    """Composes one stage: the whole config, over it what the stage says, over that the words."""
    loader, words = given.loader, given.words
    its_words = stage.words(groups, words)
    for word in read_words(its_words, loader.groups):
        if word.role == "group":
            loader.checked_choice(word)
    # A choice of the command line is Hydra's only one of that group.
    taken = {word.key for word in words if word.role == "group"}
    its_words = [text for text in its_words if text.partition("=")[0].lstrip("+") not in taken]
    given = replace(given, chosen=[*given.chosen, *its_words])
    base = loader.load(given.chosen)
    with open_dict(base):
        for section in ("grid", "search"):
            if section in stage.sections:
                base[section] = stage.sections[section]
    fixed = [w.path for w in words if w.role == "param" and w.path and w.sweep is None]
    fixed += [path for w in words if w.sweep is None and (path := path_of_group(w, groups))]
    own = (*stage.params, *fixed)
    fixed += [] if earlier is None else earlier.own
    placed: dict[str, Searched] = {}

    def place(space: Space) -> None:
        if earlier is not None:
            before = earlier.composed.space
            placed.update(stages.put_narrowed(stage, space, before, fixed))

    composed = _study(given, base, place, elsewhere)
    before = None if earlier is None else earlier.composed.space
    inherits = stages.settled(stage, composed.space, before, placed, kept=kept, fixed=fixed)
    return ComposedStage(stage.name, composed, inherits, own)


def _study(
    given: _Given,
    base: DictConfig,
    place: Callable[[Space], None] = lambda _: None,
    elsewhere: Collection[str] = (),
) -> Composed:
    """Applies the words about settings and parameters to `base`, the config with the options
    that they choose.

    Args:
        place: puts more parameters into the declared space, before the words.
        elsewhere: the parameters of other stages.
    """
    command, loader, words, chosen = given.command, given.loader, given.words, given.chosen
    before: Any = OmegaConf.to_container(base, resolve=False)
    groups = groups_in_params(loader, chosen, base) if command == "launch" else {}
    refuse_sweeps_of_groups([word for word in words if path_of_group(word, groups) is None])
    commands = _has_command(words, before)
    forwarded = [
        check_setting(word, before, of_program=commands) for word in words if word.role == "setting"
    ]
    space = Space()
    if command == "launch":
        check_sections(before, loader.groups)
        params = section_of(before, "params")
        HydraConfig.instance().set_config(base)  # for ${hydra:…}
        appends = _appends_overrides(loader, base, chosen, forwarded)
        space = Space.from_yaml(
            declared(base, "grid"), declared(base, "search"), groups, appends_overrides=appends
        )
        place(space)
        space.check_spelling(params)
        forwarded += apply_to_params(words, params, space)
        space.fill(
            {axis.path: contents_of(loader, axis, chosen, forwarded) for axis in space.unfilled()}
        )
        space.check(params)
        space.leave_to_others(elsewhere)
    full = loader.load([*chosen, *forwarded]) if forwarded else base
    HydraConfig.instance().set_config(full)
    if str(full.hydra.get("mode")).endswith("MULTIRUN"):
        raise ConfigError(
            "hydra.mode=MULTIRUN: launch runs a sweep as one study by itself; leave it out"
        )
    host = host_config(full, given.url, typed_embedded="storage=embedded" in chosen)
    config = _shown_config(command, full, space, host)
    values = values_by_hand(words) if command == "enqueue" else {}
    return Composed(
        config,
        full.hydra,
        tuple(mask(text) for text in given.overrides),
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
        if url and (url != full.storage.get("url") or not interpolated(full.storage, "url")):
            full.storage.url = mask(url)
        if host.notify.url:
            full.notify.url = HIDDEN
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


def _chooses(words: Sequence[Word], group: str) -> bool:
    return any(word.role == "group" and word.path == group for word in words)


def _refuse_sweeper(loader: Loader, words: Sequence[Word]) -> None:
    """Raises ConfigError if a file that was chosen sets Hydra's sweeper, which Hydra refuses by its
    first unknown key.
    """
    files = [loader.config_name]
    files += [f"{word.path}/{word.value}" for word in words if word.role == "group"]
    for file in files:
        found = loader.raw(file)
        node = OmegaConf.select(found, "hydra.sweeper") if found is not None else None
        if isinstance(node, DictConfig):
            block: Any = OmegaConf.to_container(node, resolve=False)
            if (refused := sweeper.refusal(block)) is not None:
                raise refused


def _has_command(words: Sequence[Word], base: Mapping[str, Any]) -> bool:
    """Whether the objective is a program once the words are applied."""
    objective = base.get("objective")
    command = objective.get("command") if isinstance(objective, Mapping) else None
    for word in words:
        if word.role != "setting":
            continue
        if word.path == "objective.command":
            command = None if word.override.is_delete() else word.value
        elif word.path == "objective" and isinstance(word.value, dict):
            command = word.value.get("command", command)
    return command is not None


def _one_choice(loader: Loader, word: Word) -> str:
    """The choice of a group as an override for Hydra; of a sweep the first option, for the config
    must be composed with one.

    Raises:
        ConfigError: the group has no such option, or is one of ours, or the sweep is not a list.
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
    except ConfigError:  # reported when the objective is checked
        return False
