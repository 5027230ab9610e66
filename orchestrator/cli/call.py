"""A command line: the subcommand's own words, Hydra's flags, the config, the database."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, cached_property
from typing import TYPE_CHECKING

from orchestrator import api, config
from orchestrator.cli.commands import COMMANDS, RETRY
from orchestrator.config import Flags
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.lazy import uncollected

if TYPE_CHECKING:
    from orchestrator.config import Composed, HostConfig, Plain
    from orchestrator.store import Reading, Relaunching, Store

_MOST_DIGITS = 18  # of a whole number; more would be too large for PostgreSQL


@dataclass(frozen=True)
class Call:
    """A parsed command line; nothing has been opened or written yet.

    `words` are the command's own settings (`trial=3`); `action` is the word after `db`.
    """

    command: str
    flags: Flags
    switches: frozenset[str] = frozenset()
    words: dict[str, str] = field(default_factory=dict)
    action: str | None = None

    @staticmethod
    def parse(command: str, arguments: Sequence[str]) -> Call:
        """Separates the words of `command` from Hydra's.

        Raises:
            ConfigError: a word is missing or unknown.
        """
        known = COMMANDS[command]
        rest = list(arguments)
        action = None
        if actions := tuple(known.actions):
            if rest and not rest[0].startswith("-") and "=" not in rest[0]:
                action = rest.pop(0)
            if action not in actions and "--help" not in rest and "-h" not in rest:
                raise ConfigError(
                    f"{command} needs one of {', '.join(actions)}: orchestrator {command} "
                    f"{actions[0]}"
                )

        switches = frozenset(word for word in rest if word in known.switches)
        rest = [word for word in rest if word not in switches]
        words = {}
        for key in known.keys:
            found = [w for w in rest if w.startswith(f"{key}=")]
            if len(found) > 1:
                raise ConfigError(f"{' '.join(found)}: give {key} once")
            for word in found:
                words[key] = word.partition("=")[2]
                rest.remove(word)
        if not known.overrides:
            _refuse_misspelt(command, rest)

        if command == "launch":
            other = next((word for word in rest if word.startswith("retry=")), None)
            if other is not None:
                raise ConfigError(
                    f"{other}: must be {RETRY}; for a parameter of that name, write params.retry=…"
                )
        own = [switch for switch in known.switches if switch.startswith("--")]
        return Call(command, config.parse_flags(rest, own), switches, words, action)

    @cached_property
    def composed(self) -> Composed:
        return config.compose(
            self.command,
            self.flags.overrides,
            config_dir=self.flags.config_dir,
            config_name=self.flags.config_name,
        )

    @cached_property
    def _plain(self) -> Plain | None:
        """The same without Hydra, where the command line is plain."""
        flags = self.flags
        if flags != Flags(flags.overrides):
            return None
        return config.read_plainly(self.command, flags.overrides)

    @property
    def host(self) -> HostConfig:
        """The settings of this host, resolved and checked."""
        return self.composed.host if self._plain is None else self._plain.host

    @property
    def groups(self) -> frozenset[str]:
        """The names of all config groups there are."""
        return self.composed.groups if self._plain is None else self._plain.groups

    @property
    def json(self) -> bool:
        return "--json" in self.switches

    @property
    def study_name(self) -> str | None:
        if self._plain is not None:
            return self._plain.study
        name = self.composed.config.study.name
        return None if name is None else str(name)

    def number(
        self, key: str, *, or_word: str | None = None, within: tuple[int, int] | None = None
    ) -> int | None:
        """The command's word `key` as a whole number, which may be written as ``1e3``; None if it
        was not given.

        Args:
            or_word: a word the caller allows as well, for the error message.
            within: the least and the greatest there may be; None: any from 0.

        Raises:
            ConfigError: it is not a whole number, or not within those.
        """
        text = self.words.get(key)
        if text is None:
            return None
        low, high = within or (0, 10**_MOST_DIGITS - 1)
        number = _whole(text)
        if number is not None and number > high and within is None:
            raise ConfigError(f"{key}={text}: is too large")
        if number is None or not low <= number <= high:
            limits = "" if within is None else f" from {low:,} to {high:,}"
            raise ConfigError(
                f"{key}={text}: must be a whole number{limits}{f' or {or_word}' if or_word else ''}"
            )
        return number

    def flag(self, key: str) -> bool:
        """The command's word `key` as a boolean; False if it was not given.

        Raises:
            ConfigError: it is neither true nor false.
        """
        text = self.words.get(key, "false")
        if text not in ("true", "false"):
            raise ConfigError(f"{key}={text}: must be true or false")
        return text == "true"

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The database of the `storage` settings, migrated.

        An embedded server stays up at least as long as the block lasts.

        Raises:
            StoreUnavailableError: it cannot be reached or started.
        """
        # Slow to import, and not needed for help.
        from orchestrator.store import Store

        with api.server(self.host.storage) as (url, password_file, start_again):
            store = Store(url, password_file, start_again)
            store.migrate(api.create_optuna_tables)
            yield store

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """The same for a command that reads a little and changes nothing: it is there sooner."""
        with api.reading(self.host.storage) as opened:
            yield opened

    @contextmanager
    def relaunching(self) -> Iterator[tuple[Relaunching, Callable[[], Store]] | None]:
        """The database for what a launch does first, and what makes all else possible in it, which
        is slow to import; None if the server must be started first, or the database be migrated.

        Raises:
            StoreUnavailableError: it cannot be reached.
        """
        storage = self.host.storage
        if storage.kind == "embedded":
            from orchestrator.store.embedded import server

            assert storage.path is not None
            if not server.running(storage.path):
                yield None
                return
        from orchestrator.store import open_to_relaunch

        with (
            api.server(self.host.storage) as (url, password_file, start_again),
            open_to_relaunch(url, password_file) as store,
        ):
            if store is None:
                yield None
                return

            @cache
            def whole() -> Store:
                with uncollected():
                    from orchestrator.store import Store
                return Store(url, password_file, start_again)

            yield store, whole


def _whole(text: str) -> int | None:
    """The whole number from 0 that a text shows, as digits or as ``1e3``; None if it shows none."""
    if not re.fullmatch(r"\d+|\d+(\.\d+)?[eE]\+?\d\d?", text):
        return None
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else None


def _refuse_misspelt(command: str, rest: Sequence[str]) -> None:
    """Raises ConfigError for a word that looks like one of the command's own and sets nothing."""
    known = COMMANDS[command]
    sections = {setting.partition(".")[0] for setting in known.settings}
    for word in rest:
        key, equals, _ = word.partition("=")
        guess = did_you_mean(key, known.keys)
        if guess and equals and key.isidentifier() and key not in sections:
            raise ConfigError(f"{word}: {command} has no word of this name{guess}")
