"""Hydra's loader over the user's directory and the shipped one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import version
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig

from orchestrator.config.overrides import Word, as_parameter
from orchestrator.config.parsed import ParsedOnce
from orchestrator.config.places import shipped_directory
from orchestrator.config.schema import SECTIONS
from orchestrator.config.translate import translated
from orchestrator.errors import ConfigError, denied, did_you_mean
from orchestrator.settings import HOST

SHIPPED_IN_PARAMS = ("schedule",)
"""Groups of ours that fill a section of params. They are groups only in a config whose defaults
list has them, or to which ``+`` adds them: elsewhere the name is a parameter like any other.
"""


class Loader:
    """Hydra's loader over the user's directory and the shipped one; touches as little of Hydra's
    process-wide state as it can.

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
            # Before the shipped one, not after it as in Hydra: a user's experiment/digits.yaml must
            # win.
            path.prepend(
                provider="command-line",
                path=f"file://{directory}",
                anchor=SearchPathQuery(provider="main"),
            )
        self.config_name = config_name.removesuffix(".yaml")
        self._config_dir = config_dir
        self._parsed = loader = ParsedOnce(path)
        self._packages: dict[tuple[str, ...], dict[str, str]] = {}
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
        config: DictConfig = translated(
            lambda: self.hydra.compose_config(
                self.config_name, list(overrides), run_mode=RunMode.RUN, from_shell=False
            )
        )
        self._packages[tuple(overrides)] = {
            d.override_key: d.package for d in self._parsed.composed if d.override_key and d.package
        }
        return config

    def raw(self, path: str) -> DictConfig | None:
        """Returns one file as it is, without its defaults list composed; None if there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        found = translated(lambda: self._repository.load_config(path))
        config = None if found is None else found.config
        return config if isinstance(config, DictConfig) else None

    def options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        """The options of a group, or the groups below it.

        Raises:
            ConfigError: a directory cannot be read.
        """
        return translated(lambda: list(self._repository.get_group_options(group, kind)))

    def shipped(self, group: str) -> list[str]:
        """The options of a group that come with the program."""
        return sorted(path.stem for path in (shipped_directory() / group).glob("*.yaml"))

    def lists(self, group: str, overrides: Sequence[str]) -> bool:
        """Whether a defaults list names the group; also true where the config cannot be composed,
        which is reported when it is.
        """
        try:
            return group in self._defaults(overrides).overrides.known_choices
        except ConfigError:
            return True

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
        hint = as_parameter(word) if word.path in (*SECTIONS, *SHIPPED_IN_PARAMS) else ""
        for option in chosen if isinstance(chosen, list) else [chosen]:
            if isinstance(option, str) and option not in options and not word.override.is_delete():
                raise ConfigError(
                    f"{word.path}={option}: there is no such option{did_you_mean(option, options)};"
                    f" {word.path} has {', '.join(sorted(options))}{self._where(word.path)}{hint}"
                )
            if not isinstance(option, str) and not word.override.is_delete():
                raise ConfigError(
                    f"{word.text}: {word.path} is a config group; choose one of "
                    f"{', '.join(sorted(options))}{drop}{hint}"
                )
        return word.text

    def _where(self, group: str) -> str:
        """How options of one's own are found, for when one is not there."""
        if self._config_dir is None:
            return f"; for those in ./conf/{group}/, add --config-dir=conf"
        return f" (searched {Path(self._config_dir) / group} and the shipped config)"

    def packages(self, overrides: Sequence[str]) -> dict[str, str]:
        """Returns where the chosen option of each group lands in the config, by the key that
        chooses it.
        """
        if tuple(overrides) not in self._packages:
            self.load(overrides)
        return self._packages[tuple(overrides)]

    def choice(self, group: str, overrides: Sequence[str]) -> str | None:
        """The option of a group that would be composed, None if there is none.

        Raises:
            ConfigError: as `load`.
        """
        return self._defaults(overrides).overrides.known_choices.get(group)

    def _defaults(self, overrides: Sequence[str]) -> DefaultsList:
        found: DefaultsList = translated(
            lambda: self.hydra.config_loader.compute_defaults_list(
                self.config_name, list(overrides), RunMode.RUN
            )
        )
        return found

    def header_package(self, group: str, options: Sequence[str]) -> str | None:
        """Returns the package that the first lines of a group's options name, if all can be read
        and agree.
        """
        try:
            found = translated(
                lambda: [self._repository.load_config(f"{group}/{option}") for option in options]
            )
        except ConfigError:  # reported when one is chosen
            return None
        packages = {
            result.header.get("package") if result is not None else None for result in found
        }
        return packages.pop() if len(packages) == 1 else None
