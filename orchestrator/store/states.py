"""The states of our rows, and what they mean in SQL and in Python; without SQLAlchemy."""

from __future__ import annotations

import re
from typing import Final

SCHEMA: Final = "orchestrator"
KNOWN_OPTUNA_REVISIONS: Final = frozenset({"v3.2.0.a"})
"""Revisions of Optuna's own schema whose tables look as `schema` has them; any other is refused."""
UNSPENT: Final = ("OPEN", "LIVE")
"""The states of a ticket that is still to be spent."""
LIVE: Final = ("CLAIMED", "PREPARED", "RUNNING")
"""The states of a trial that has not ended: without parameters yet, not begun yet, begun.

Formatted into SQL, such a tuple of several strings reads as a list for ``IN``.
"""
ACTIVE: Final = (
    "s.state = 'ACTIVE' AND (s.deadline_at IS NULL OR s.deadline_at > clock_timestamp())"
)
"""SQL: whether the study `s` hands out trials: it is not finished and its time is not over."""
BRAKED: Final = "paused by itself: "
"""How the reason begins of a pause that nobody asked for, see `ledger.brake`."""
ENOUGH: Final = "enough: "
"""How the reason begins for which a study or a cell ended before its budget was spent, see
`ledger.stopping`.
"""
NO_CHANGE: Final = "no change"
"""How the reason ends of the event of a launch that changed nothing, or created its study."""
STOPPED: Final = "enough"
"""Kind of the event that tells that a study had enough trials, and why."""
SETTLED: Final = "cell settled"
"""The same of a cell."""
DELETING: Final = "being deleted by "
"""How the reason begins of a study between `Deletion.begin` and `Deletion.finish`."""
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|\d+(\.\d+)?([eE][-+]?\d+)?")


def likeness(failure: str) -> str:
    """What failures with the same cause have in common: the first line of the message, with its
    numbers replaced.
    """
    return _NUMBER.sub("0", failure.partition("\n")[0])


def is_ended_early(state: str, reason: str | None) -> bool:
    """Whether a study of that state and reason ended before its budget was spent, because it had
    enough trials.
    """
    return state == "FINISHED" and (reason or "").startswith(ENOUGH)


def is_braked(state: str, reason: str | None) -> bool:
    """Whether a study of that state and reason paused itself."""
    return state == "PAUSED" and (reason or "").startswith(BRAKED)
