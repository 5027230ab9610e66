"""One database with all that can be done in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.doctor import Doctor
from orchestrator.store.ledger.deletion import Deletion
from orchestrator.store.ledger.fleet import Fleet
from orchestrator.store.ledger.interventions import Interventions
from orchestrator.store.ledger.ledger import Ledger
from orchestrator.store.ledger.notices import Notices
from orchestrator.store.ledger.probes import Probes
from orchestrator.store.ledger.stopping import Stopping
from orchestrator.store.ledger.suggested import Suggested
from orchestrator.store.migrations import migrate
from orchestrator.store.reading import Relaunching


class Store(Relaunching):
    """One database, ready for use.

    Args:
        url: a PostgreSQL URL; see `database.storage_url`.
        password_file: a file with the password, or None.
        start_again: starts the server again if it should have died; for one that is ours to start.
    """

    def __init__(
        self,
        url: str,
        password_file: str | None = None,
        start_again: Callable[[], None] | None = None,
    ) -> None:
        self._database = Database(storage_url(url, password_file))
        super().__init__(self._database)
        self._start_again = start_again
        self.fleet = Fleet(self._database)
        self.ledger = Ledger(self._database)
        self.probes = Probes(self._database)
        self.stopping = Stopping(self._database)
        self.suggested = Suggested(self._database)
        self.interventions = Interventions(self._database)
        self.deletion = Deletion(self._database)
        self.doctor = Doctor(self._database)

    def notices(self, target: str, studies: Sequence[str] | None = None) -> Notices:
        """What this process may tell `target` of; see `Notices`."""
        return Notices(self._database, target, studies)

    def migrate(self, create_optuna_tables: Callable[[str], None]) -> None:
        """Creates or upgrades the schemas; see `migrations.migrate`."""
        migrate(self._database, create_optuna_tables)

    def revive(self) -> None:
        """After the database did not answer: starts it again if it is ours to start; says nothing
        if that fails for now.

        Raises:
            OrchestratorError: its data is gone.
        """
        if self._start_again is not None:
            with contextlib.suppress(StoreUnavailableError):
                self._start_again()

    @property
    def url(self) -> str:
        """The full URL, password included: for plain Optuna tools, never for a log."""
        return self._database.url.render_as_string(hide_password=False)

    @property
    def masked_url(self) -> str:
        """The URL with its password masked."""
        return self._database.masked_url
