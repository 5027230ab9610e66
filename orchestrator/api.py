"""Studies from Python: ``orchestrator.study("digits").report()``; the commands stand on the same
functions.

Imports nothing slow until it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator import config

if TYPE_CHECKING:
    from orchestrator.config import StorageConfig
    from orchestrator.report import Report
    from orchestrator.store import Reading

_REVIVE_S = 2.0  # short: a worker that tries this has a trial to look after


def study(name: str | None = None, *, storage: str | None = None) -> Study:
    """A study in a database; nothing is read until it is asked for something.

    Args:
        name: Its name; the newest study if not given.
        storage: URL of the database, ``postgresql+psycopg2://user@host/database``. If not given,
            the commands' own: that of ``ORCHESTRATOR_STORAGE_URL``, else the embedded one of this
            user.
    """
    return Study(name, storage)


@dataclass(frozen=True)
class Study:
    """A study by its name and the database it is in, as `study` made it."""

    name: str | None = None
    storage: str | None = None

    def report(self) -> Report:
        """What the study says now: ``.statements``, ``.html()``, ``.markdown()``, ``.data``,
        ``.save(path)``; a notebook shows the page.

        Raises:
            ConfigError: There is no such study, or the URL is none.
            StoreUnavailableError: The database does not answer.
        """
        from orchestrator.report import report_of

        words = [] if self.storage is None else [f"storage.url={self.storage}"]
        host = config.read_plainly("report", words) or config.compose("report", words)
        with reading(host.host.storage) as store:
            return report_of(store, self.name, host.groups)


@contextmanager
def reading(storage: StorageConfig) -> Iterator[Reading]:
    """The database, migrated, for who reads a little and changes nothing.

    An embedded server stays up at least as long as the block lasts.

    Raises:
        StoreUnavailableError: it cannot be reached or started.
    """
    from orchestrator.store import open_to_read

    with (
        server(storage) as (url, password_file, _),
        open_to_read(url, password_file, create_optuna_tables) as opened,
    ):
        yield opened


@contextmanager
def server(
    storage: StorageConfig,
) -> Iterator[tuple[str, str | None, Callable[[], None] | None]]:
    """The server's URL, its password file, and what starts it again if it is ours to start."""
    if storage.kind != "embedded":
        assert storage.url is not None
        yield storage.url, storage.password_file, None
        return
    from orchestrator.store.embedded.server import EmbeddedServer

    assert storage.path is not None
    path = storage.path
    with EmbeddedServer.open(path) as embedded:

        def start_again() -> None:
            EmbeddedServer.open(path, patience_s=_REVIVE_S, new_data=False).close()

        yield embedded.url, None, start_again


def create_optuna_tables(url: str) -> None:
    """Creates Optuna's tables, or upgrades them; imports Optuna."""
    from orchestrator import search  # slow to import, and seldom needed

    search.create_optuna_tables(url)
