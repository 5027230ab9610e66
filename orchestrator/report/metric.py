"""Statements about a metric that no trial can be judged by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from orchestrator.model import StudySpec, count_label
from orchestrator.report.statement import Statement

if TYPE_CHECKING:
    from orchestrator.store import TrialRow

_FEWEST = 3
"""Two trials may have the same value by chance."""


def about_the_metrics(spec: StudySpec, done: Sequence[TrialRow]) -> Iterator[Statement]:
    """Of the metrics that are finite in no complete trial, and of those that are the same in all,
    whatever the parameters.
    """
    for place, metric in enumerate(spec.metrics if done else ()):
        values = [(trial.values or ())[place] for trial in done]
        if not any(map(math.isfinite, values)):
            yield Statement(
                "metric",
                f"No trial has a finite `{metric}`; "
                f"{count_label(len(done), 'trial')} reached the end",
                "warning",
                {"metric": metric, "trials": len(done)},
                "the values of the complete trials",
                f"`orchestrator logs study.name={spec.name} trial={done[0].number}` shows what one "
                "of them printed; search where training does not diverge, such as at smaller "
                "learning rates",
            )
        elif len(done) >= _FEWEST and len(set(values)) == 1 and _differ(done):
            yield Statement(
                "metric",
                f"Each of {len(done)} complete trials has the same `{metric}`, {values[0]:.6g}: "
                "does the objective return the right number?",
                "warning",
                {"metric": metric, "value": values[0], "trials": len(done)},
                "the values of the complete trials, whose parameters differ",
            )


def _differ(done: Sequence[TrialRow]) -> bool:
    return any(trial.params != done[0].params for trial in done)
