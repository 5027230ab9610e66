"""The database: who may do what, decided in one place. The only importer of SQLAlchemy.

`Store` joins the sides: `studies` (launch), `fleet` (workers and devices), `ledger` (trials),
`suggested` (parameters that objectives ask for), `stopping` (before a budget is spent),
`interventions` (what people do to a study under
way), `deletion` (of a study) and `doctor`; and those of `Reading`, which changes nothing and needs
no SQLAlchemy: `news` (what samplers read), `reads` (what people and workers read), `listing`
(trials for people), `watch` (what people follow), `course` (what attempts took) and
`plain_studies` (those that plain Optuna made).

Names are loaded on first use: commands that only read need no SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import names_of

if TYPE_CHECKING:
    from orchestrator.store.chains import ChainRow, StageRow
    from orchestrator.store.course import Span
    from orchestrator.store.doctor import Examination, Finding
    from orchestrator.store.ledger.claims import Attempt, Claim, Place, Prepared, Ticket
    from orchestrator.store.ledger.deletion import Alive, Leavings, RunsPlace
    from orchestrator.store.ledger.fleet import Silent, SlotOffer, WorkerLease
    from orchestrator.store.ledger.interventions import Retried
    from orchestrator.store.ledger.notices import Notice, Notices
    from orchestrator.store.ledger.probes import Probe
    from orchestrator.store.ledger.stages import NotBegun
    from orchestrator.store.ledger.studies import Launched
    from orchestrator.store.ledger.tickets import MOST_CHOICES, Choice, Undecided
    from orchestrator.store.listing import STATES, ListedTrial, Selection, SortKey
    from orchestrator.store.measured import ProbeRow
    from orchestrator.store.plain_studies import PlainStudy, PlainTrial
    from orchestrator.store.reading import Reading, Relaunching, open_to_read, open_to_relaunch
    from orchestrator.store.reads import (
        AttemptRow,
        CellRow,
        ClosedFor,
        CodeRow,
        FailureRow,
        Progress,
        RevisionRow,
        Servers,
        StudyRow,
        TimeLine,
        TrialRow,
        WorkerRow,
    )
    from orchestrator.store.states import DELETING, is_braked, is_ended_early, likeness
    from orchestrator.store.store import Store
    from orchestrator.store.watch import Held, RunningRow, StudyLine

__all__ = [
    "DELETING",
    "MOST_CHOICES",
    "STATES",
    "Alive",
    "Attempt",
    "AttemptRow",
    "CellRow",
    "ChainRow",
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
    "NotBegun",
    "Notice",
    "Notices",
    "Place",
    "PlainStudy",
    "PlainTrial",
    "Prepared",
    "Probe",
    "ProbeRow",
    "Progress",
    "Reading",
    "Relaunching",
    "Retried",
    "RevisionRow",
    "RunningRow",
    "RunsPlace",
    "Selection",
    "Servers",
    "Silent",
    "SlotOffer",
    "SortKey",
    "Span",
    "StageRow",
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
    "is_ended_early",
    "likeness",
    "open_to_read",
    "open_to_relaunch",
]
_HOME = {
    "chains": (
        "ChainRow",
        "StageRow",
    ),
    "course": ("Span",),
    "doctor": (
        "Examination",
        "Finding",
    ),
    "ledger.claims": (
        "Attempt",
        "Claim",
        "Place",
        "Prepared",
        "Ticket",
    ),
    "ledger.deletion": (
        "Alive",
        "Leavings",
        "RunsPlace",
    ),
    "ledger.fleet": (
        "Silent",
        "SlotOffer",
        "WorkerLease",
    ),
    "ledger.interventions": ("Retried",),
    "ledger.notices": ("Notice", "Notices"),
    "ledger.probes": ("Probe",),
    "ledger.stages": ("NotBegun",),
    "ledger.studies": ("Launched",),
    "ledger.tickets": (
        "MOST_CHOICES",
        "Choice",
        "Undecided",
    ),
    "listing": (
        "STATES",
        "ListedTrial",
        "Selection",
        "SortKey",
    ),
    "measured": ("ProbeRow",),
    "plain_studies": (
        "PlainStudy",
        "PlainTrial",
    ),
    "reading": (
        "Reading",
        "Relaunching",
        "open_to_read",
        "open_to_relaunch",
    ),
    "reads": (
        "AttemptRow",
        "CellRow",
        "ClosedFor",
        "CodeRow",
        "FailureRow",
        "Progress",
        "RevisionRow",
        "Servers",
        "StudyRow",
        "TimeLine",
        "TrialRow",
        "WorkerRow",
    ),
    "states": (
        "DELETING",
        "is_braked",
        "is_ended_early",
        "likeness",
    ),
    "store": ("Store",),
    "watch": (
        "Held",
        "RunningRow",
        "StudyLine",
    ),
}

__getattr__ = names_of(__name__, _HOME)
