"""What can be read of one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.store.connection.plain import Plain, Source, connection_words
from orchestrator.store.migrations import is_current
from orchestrator.store.news import News
from orchestrator.store.reads import Reads

if TYPE_CHECKING:
    from orchestrator.store.chains import Chains
    from orchestrator.store.course import Course
    from orchestrator.store.ledger.stages import Stages
    from orchestrator.store.ledger.studies import Studies
    from orchestrator.store.listing import Listing
    from orchestrator.store.measured import Measured
    from orchestrator.store.plain_studies import PlainStudies
    from orchestrator.store.watch import Watch


class Reading:
    """The sides of a database that change nothing."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.news = News(source)
        self.reads = Reads(source)

    # Few commands need these.

    @cached_property
    def watch(self) -> Watch:
        from orchestrator.store.watch import Watch

        return Watch(self._source)

    @cached_property
    def measured(self) -> Measured:
        from orchestrator.store.measured import Measured

        return Measured(self._source)

    @cached_property
    def listing(self) -> Listing:
        from orchestrator.store.listing import Listing

        return Listing(self._source)

    @cached_property
    def chains(self) -> Chains:
        from orchestrator.store.chains import Chains

        return Chains(self._source)

    @cached_property
    def course(self) -> Course:
        from orchestrator.store.course import Course

        return Course(self._source)

    @cached_property
    def plain_studies(self) -> PlainStudies:
        from orchestrator.store.plain_studies import PlainStudies

        return PlainStudies(self._source)


class Relaunching(Reading):
    """Those, and what launches a study; all without SQLAlchemy."""

    @cached_property
    def studies(self) -> Studies:
        from orchestrator.store.ledger.studies import Studies

        return Studies(self._source)

    @cached_property
    def stages(self) -> Stages:
        from orchestrator.store.ledger.stages import Stages

        return Stages(self._source)

    def rehearsal(self) -> Relaunching:
        """The same database for a launch that is only tried: what it writes is rolled back."""
        from orchestrator.store.rehearsal import Rehearsal

        return Relaunching(Rehearsal(self._source))

    def rest(self, unused_s: float = 0.0) -> None:
        """Gives up idle connections that nobody has used for `unused_s` seconds; at once before a
        long wait.
        """
        self._source.rest(unused_s)


@contextmanager
def open_to_relaunch(url: str, password_file: str | None) -> Iterator[Relaunching | None]:
    """A database for what a launch does first; None if SQLAlchemy is needed to open it.

    Args:
        url, password_file: as of `Store`.

    Raises:
        StoreUnavailableError: it cannot be reached.
        SchemaOutdatedError: as `migrations.migrate`.
    """
    with _plainly(url, password_file) as plain:
        yield None if plain is None else Relaunching(plain)


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
    with _plainly(url, password_file) as plain:
        if plain is not None:
            yield Reading(plain)
            return
    from orchestrator.store.store import Store  # slow to import, and seldom needed

    store = Store(url, password_file)
    store.migrate(create_optuna_tables)
    yield store


@contextmanager
def _plainly(url: str, password_file: str | None) -> Iterator[Plain | None]:
    """One connection to the database; None if it must be migrated or the URL is unusual."""
    words = connection_words(url, password_file)
    if words is None:
        yield None
        return
    plain = Plain(url, password_file, words)
    try:
        yield plain if is_current(plain) else None
    finally:
        plain.close()
