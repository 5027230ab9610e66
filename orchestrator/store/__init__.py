"""The database: who may do what, decided in one place. The only importer of SQLAlchemy.

`Store` joins the sides: `studies` (launch), `fleet` (workers and devices), `ledger` (trials),
`suggested` (parameters that objectives ask for), `interventions` (what people do to a study under
way), `deletion` (of a study), `news` (what samplers read), `reads` (what people and workers read),
`listing` (trials for people), `watch` (what people follow) and `doctor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.doctor import Doctor, Examination, Finding
from orchestrator.store.ledger.brake import is_braked, likeness
from orchestrator.store.ledger.claims import Attempt, Claim, Place, Prepared, Ticket
from orchestrator.store.ledger.deletion import Alive, Deletion, Leavings, RunsPlace
from orchestrator.store.ledger.fleet import Fleet, Silent, SlotOffer, WorkerLease
from orchestrator.store.ledger.interventions import Interventions, Retried
from orchestrator.store.ledger.ledger import Ledger
from orchestrator.store.ledger.studies import Launched, Studies
from orchestrator.store.ledger.suggested import Suggested
from orchestrator.store.ledger.tickets import MOST_CHOICES, Choice, Undecided
from orchestrator.store.listing import STATES, ListedTrial, Listing, Selection, SortKey
from orchestrator.store.migrations import migrate
from orchestrator.store.news import News
from orchestrator.store.reads import (
    AttemptRow,
    CellRow,
    ClosedFor,
    CodeRow,
    FailureRow,
    Progress,
    Reads,
    Servers,
    StudyRow,
    TimeLine,
    TrialRow,
    WorkerRow,
)
from orchestrator.store.watch import Held, RunningRow, StudyLine, Watch

__all__ = [
    "MOST_CHOICES",
    "STATES",
    "Alive",
    "Attempt",
    "AttemptRow",
    "CellRow",
    "Choice",
    "Claim",
    "ClosedFor",
    "CodeRow",
    "Examination",
    "FailureRow",
    "Finding",
    "Held",
    "Launched",
    "Leavings",
    "ListedTrial",
    "Place",
    "Prepared",
    "Progress",
    "Retried",
    "RunningRow",
    "RunsPlace",
    "Selection",
    "Servers",
    "Silent",
    "SlotOffer",
    "SortKey",
    "Store",
    "StudyLine",
    "StudyRow",
    "Ticket",
    "TimeLine",
    "TrialRow",
    "Undecided",
    "WorkerLease",
    "WorkerRow",
    "is_braked",
    "likeness",
]


class Store:
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
        self._start_again = start_again
        self.studies = Studies(self._database)
        self.fleet = Fleet(self._database)
        self.ledger = Ledger(self._database)
        self.suggested = Suggested(self._database)
        self.interventions = Interventions(self._database)
        self.deletion = Deletion(self._database)
        self.news = News(self._database)
        self.reads = Reads(self._database)
        self.watch = Watch(self._database)
        self.listing = Listing(self._database)
        self.doctor = Doctor(self._database)

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

    def rest(self, unused_s: float = 0.0) -> None:
        """Gives up idle connections that nobody has used for `unused_s` seconds; at once before a
        long wait.
        """
        self._database.rest(unused_s)

    @property
    def url(self) -> str:
        """The full URL, password included: for plain Optuna tools, never for a log."""
        return self._database.url.render_as_string(hide_password=False)

    @property
    def masked_url(self) -> str:
        """The URL with its password masked."""
        return self._database.masked_url
