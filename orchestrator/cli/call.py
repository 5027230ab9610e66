"""A command line: the subcommand's own words, Hydra's flags, the config, the database."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator import config, search
from orchestrator.config import Composed, Flags
from orchestrator.errors import ConfigError
from orchestrator.store import Store
from orchestrator.store.embedded.server import EmbeddedServer

RETRY = "retry=failed"
"""The word that makes a launch run the failed trials again."""
# Words that belong to a command and are removed before Hydra parses the rest.
_SWITCHES = {
    "launch": ("--json", "--dry-run", RETRY),
    "pause": ("--json", "--now"),
    "stop": ("--json", "--now"),
    "trials": ("--json", "--csv"),
    "logs": ("--json", "-f", "--follow"),
    "delete": ("--json", "--yes"),
    **dict.fromkeys(
        ("status", "best", "resume", "retry", "enqueue", "doctor", "replay", "rerun"),
        ("--json",),
    ),
}
_WORDS = {
    "trials": ("n", "cell", "state", "sort"),
    "best": ("trial", "out"),
    "logs": ("trial", "attempt"),
    "retry": ("trial",),
    "replay": ("trial",),
    "rerun": ("trial",),
    "status": ("n",),
}
_REVIVE_S = 2.0  # short: a worker that tries this has a trial to look after
_ACTIONS = {"db": ("start", "stop", "url", "upgrade")}


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
        rest = list(arguments)
        action = None
        if actions := _ACTIONS.get(command):
            if rest and not rest[0].startswith("-") and "=" not in rest[0]:
                action = rest.pop(0)
            if action not in actions and "--help" not in rest and "-h" not in rest:
                raise ConfigError(
                    f"{command} needs one of {', '.join(actions)}: orchestrator {command} "
                    f"{actions[0]}"
                )

        switches = frozenset(word for word in rest if word in _SWITCHES.get(command, ()))
        rest = [word for word in rest if word not in switches]
        words = {}
        for key in _WORDS.get(command, ()):
            found = [w for w in rest if w.startswith(f"{key}=")]
            if len(found) > 1:
                raise ConfigError(f"{' '.join(found)}: give {key} once")
            for word in found:
                words[key] = word.partition("=")[2]
                rest.remove(word)

        if command == "launch":
            other = next((word for word in rest if word.startswith("retry=")), None)
            if other is not None:
                raise ConfigError(
                    f"{other}: must be {RETRY}; for a parameter of that name, write params.retry=…"
                )
        own = [switch for switch in _SWITCHES.get(command, ()) if switch.startswith("--")]
        return Call(command, config.parse_flags(rest, own), switches, words, action)

    @cached_property
    def composed(self) -> Composed:
        return config.compose(
            self.command,
            self.flags.overrides,
            config_dir=self.flags.config_dir,
            config_name=self.flags.config_name,
        )

    @property
    def json(self) -> bool:
        return "--json" in self.switches

    @property
    def study_name(self) -> str | None:
        name = self.composed.config.study.name
        return None if name is None else str(name)

    def number(self, key: str, *, or_word: str | None = None) -> int | None:
        """The command's word `key` as a whole number; None if it was not given.

        Args:
            or_word: a word the caller allows as well, for the error message.

        Raises:
            ConfigError: it is not a whole number.
        """
        text = self.words.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"\d+", text):
            raise ConfigError(
                f"{key}={text}: must be a whole number{f' or {or_word}' if or_word else ''}"
            )
        return int(text)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The database of the `storage` settings, migrated.

        An embedded server stays up at least as long as the block lasts.

        Raises:
            StoreUnavailableError: it cannot be reached or started.
        """
        storage = self.composed.host.storage
        if storage.kind == "embedded":
            assert storage.path is not None
            path = storage.path
            with EmbeddedServer.open(path) as embedded:

                def start_again() -> None:
                    EmbeddedServer.open(path, patience_s=_REVIVE_S, new_data=False).close()

                yield self._migrated(Store(embedded.url, start_again=start_again))
        else:
            assert storage.url is not None
            yield self._migrated(Store(storage.url, storage.password_file))

    def _migrated(self, store: Store) -> Store:
        store.migrate(lambda url: search.create_optuna_tables(url))
        return store
