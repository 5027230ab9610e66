"""What can be read of one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.store.connection.plain import Plain, Source, connection_words
from orchestrator.store.listing import Listing
from orchestrator.store.migrations import is_current
from orchestrator.store.news import News
from orchestrator.store.reads import Reads
from orchestrator.store.watch import Watch


class Reading:
    """The sides of a database that change nothing."""

    def __init__(self, source: Source) -> None:
        self.news = News(source)
        self.reads = Reads(source)
        self.watch = Watch(source)
        self.listing = Listing(source)


@contextmanager
def open_to_read(
    url: str, password_file: str | None, create_optuna_tables: Callable[[str], None]
) -> Iterator[Reading]:
    """A database, migrated, for a command that reads a little; without SQLAlchemy unless it must be
    migrated or the URL is unusual.

    Args:
        url, password_file: as of `Store`.
        create_optuna_tables: as of `migrations.migrate`.

    Raises:
        StoreUnavailableError: it cannot be reached.
        SchemaOutdatedError: as `migrations.migrate`.
    """
    words = connection_words(url, password_file)
    if words is not None:
        plain = Plain(url, password_file, words)
        try:
            if is_current(plain):
                yield Reading(plain)
                return
        finally:
            plain.close()
    from orchestrator.store.store import Store  # slow to import, and seldom needed

    store = Store(url, password_file)
    store.migrate(create_optuna_tables)
    yield store
