"""What a study says, in sentences: the most important ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.model import StudySpec, count_label
from orchestrator.report.endings import about_failures
from orchestrator.report.statement import Statement
from orchestrator.report.winner import about_the_best, about_the_front, complete

if TYPE_CHECKING:
    from orchestrator.search import Search
    from orchestrator.store import Progress, TrialRow

__all__ = ["Statement", "statements"]

_RANK = {
    "cannot-say": 1,
    "best": 0,
    "front": 0,
}
"""Statements in this order; of one rank in the order in which they are made."""


def statements(
    spec: StudySpec, search: Search | None, progress: Progress, trials: Sequence[TrialRow]
) -> list[Statement]:
    """Everything that can be said, and what cannot; a function of the finished trials and the
    study's seed.

    Args:
        spec: the study; of one that plain Optuna made, a spec with its space.
        search: fed with the study's trials; None where there is nothing to model.
        progress: of all cells, or of the first ones of a large grid.
        trials: all trials of the study.
    """
    done, found = complete(trials), []
    if not done:
        found.append(_nothing(trials))
    elif len(spec.directions) > 1:
        found += about_the_front(spec, trials)
    else:
        found += about_the_best(spec, search.leaders() if search is not None else None, trials)
    found += about_failures(spec, progress, trials)
    return sorted(found, key=lambda s: _RANK.get(s.kind, 2))


def _nothing(trials: Sequence[TrialRow]) -> Statement:
    running = sum(t.state == "RUNNING" for t in trials)
    more = f"; {count_label(running, 'trial')} of it run" if running else ""
    return Statement(
        "cannot-say",
        f"No trial is complete: nothing can be said about the parameters yet{more}",
        "open",
        {"complete": 0, "running": running},
        f"{count_label(len(trials), 'trial')} so far",
    )
