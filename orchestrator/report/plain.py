"""What a report of a study that plain Optuna made is made from: as of one of ours, by its trials
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator import search
from orchestrator.model import Budget, StudySpec, TrialNews
from orchestrator.report.subject import Subject
from orchestrator.report.winner import complete
from orchestrator.store import CellRow, Progress, Span, StudyRow, TrialRow

if TYPE_CHECKING:
    from orchestrator.store import PlainStudy, Reading

_PLAIN = "made by plain Optuna"


def read(store: Reading, study: PlainStudy) -> Subject:
    """A study without a ledger, as if it were one of ours without a grid."""
    stored = store.plain_studies.trials(study.study_id)
    running, waiting = store.plain_studies.unfinished(study.study_id)
    news = [replace(trial.news, cell=0) for trial in stored]
    spec = search.undeclared(
        StudySpec(
            name=study.name,
            directions=study.directions,
            metrics=study.metrics,
            objective={"_target_": _PLAIN},
            params={},
            grid=(),
            search=(),
            budget=Budget(len(news) + running + waiting, 0),
        ),
        news,
    )
    model = search.Search(spec)
    model.feed(news)
    spans = [
        Span(
            one.news.number,
            0,
            one.news.state,
            1,
            None,
            "",
            None,
            None,
            one.started_at,
            one.ended_at,
            {"COMPLETE": "completed", "PRUNED": "pruned"}.get(one.news.state, "failed"),
        )
        for one in stored
        if one.started_at is not None
    ]
    trials = [_trial(one) for one in news]
    begun = min((span.started_at for span in spans), default=datetime(1970, 1, 1, tzinfo=UTC))
    row = StudyRow(study.study_id, study.name, 0, _PLAIN, None, False, begun, begun)
    return Subject(
        spec,
        _progress(row, spec, trials, running, waiting),
        model,
        trials,
        {one.number: one for one in news},
        spans,
        plain=True,
        waiting=waiting,
    )


def _trial(news: TrialNews) -> TrialRow:
    failure = "no message: plain Optuna keeps none" if news.state == "FAIL" else None
    return TrialRow(
        news.number,
        news.state,
        0,
        search.true_values(news),
        news.values,
        1,
        failure,
        None,
        None,
        search.is_feasible(news),
    )


def _progress(
    row: StudyRow, spec: StudySpec, trials: Sequence[TrialRow], running: int, waiting: int
) -> Progress:
    counts = {state: sum(t.state == state for t in trials) for state in ("COMPLETE", "PRUNED")}
    failed = len(trials) - sum(counts.values())
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    done = [(t.values[0], t.number) for t in complete(trials) if t.values]
    value, number = min(done, key=lambda one: (sign * one[0], one[1]), default=(None, None))
    spent = sum(counts.values())
    cell = CellRow(
        0,
        {},
        "OPEN",
        None,
        spent,
        counts["COMPLETE"],
        counts["PRUNED"],
        failed,
        running,
        value,
        number,
        spent,
        share=spent,
    )
    return Progress(
        study=row,
        total=spec.budget.trials,
        spent=spent,
        running=running,
        waiting=waiting,
        failed=failed,
        spent_since=0,
        seconds=0.0,
        seconds_left=None,
        n_cells=1,
        best=value,
        best_trial=number,
        cells=(cell,),
    )
