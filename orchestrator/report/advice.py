"""What to type so that a study goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.model import StudySpec

if TYPE_CHECKING:
    from orchestrator.store import Progress

AGAIN = "launch again with"
_LEAST = 10
"""Fewer trials say nothing of a wider range."""


def more_trials(spec: StudySpec, progress: Progress, wanted: int) -> str:
    """How so many trials more are run; empty if as many are still to run."""
    missing = wanted - _left(spec, progress)
    return f"{AGAIN} `budget.trials={spec.budget.trials + missing}`" * (missing > 0)


def extending(spec: StudySpec, progress: Progress, override: str, cells: int) -> str:
    """How the study is changed by an override, if any, and so many of its cells get trials after
    that, as many as were promised to them.
    """
    wanted = max(cells * spec.budget.per_cell, _LEAST)
    missing = max(wanted - _left(spec, progress), 0)
    words = [override] * bool(override) + ["study.extend=true"]
    words += [f"budget.trials={spec.budget.trials + missing}"] * (missing > 0)
    return f"{AGAIN} `{' '.join(words)}`"


def confirming(spec: StudySpec, progress: Progress, wanted: int) -> str:
    """How so many trials repeat the leading configurations; empty if some still will."""
    if spec.budget.confirm and _left(spec, progress):
        return ""
    trials = spec.budget.trials + wanted
    return (
        f"{AGAIN} `budget.trials={trials} budget.confirm={wanted}`: the last {wanted} "
        "trials repeat the leading configurations with other seeds"
    )


def _left(spec: StudySpec, progress: Progress) -> int:
    """Of the budget; trials beyond it, such as those of a rerun, are no part of it."""
    return max(min(progress.total, spec.budget.trials) - progress.spent, 0)
