"""What a study says, in sentences: the most important ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.model import MOST_BELIEVED, StudySpec, count_label
from orchestrator.report.axes import about_axes
from orchestrator.report.cells import about_cells
from orchestrator.report.compared import Compared
from orchestrator.report.endings import about_failures
from orchestrator.report.parameters import about_parameters
from orchestrator.report.statement import Statement
from orchestrator.report.winner import FEWEST, about_the_best, about_the_front, complete

if TYPE_CHECKING:
    from orchestrator.search import Search
    from orchestrator.store import Progress, TrialRow

__all__ = ["Statement", "statements"]

_RANK = {
    "best": 0,
    "front": 0,
    "unpredictable": 1,
    "contrast": 2,
    "interaction": 3,
    "edge": 4,
    "seeds": 4,
    "importance": 5,
    "no-difference": 5,
    "tie": 6,
    "cell": 6,
    "undecided": 6,
    "failures": 7,
    "cannot-say": 8,
}


def statements(
    spec: StudySpec, search: Search | None, progress: Progress, trials: Sequence[TrialRow]
) -> list[Statement]:
    """Everything that can be said, and what cannot; a function of the finished trials and the
    study's seed. First the best trial, then what is found, what is wrong, what is open.

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
        compared = Compared.of(spec, progress)
        science = None if search is None else compared.science(search)
        if science is None:
            found.append(_no_model(done))
        else:
            found += about_axes(spec, science, compared)
            found += about_cells(spec, science, compared, progress)
            found += about_parameters(spec, science, compared)
            found += _missing(spec)
    found += about_failures(spec, progress, trials)
    return sorted(found, key=_rank)


def _rank(statement: Statement) -> tuple[int, bool]:
    open_ = statement.verdict == "open"
    return _RANK[statement.kind] if not open_ else max(_RANK[statement.kind], 6), open_


def _missing(spec: StudySpec) -> list[Statement]:
    """What this study cannot be asked."""
    if spec.n_cells == 1:
        return [
            Statement(
                "cannot-say",
                "The study has one cell: there is nothing to compare"
                + ("" if spec.grid else "; put the question into `grid`, as two or more values"),
                "note",
                {"cells": 1},
                "the grid of the study",
            )
        ]
    return []


def _no_model(done: Sequence[TrialRow]) -> Statement:
    n = len(done)
    if n < FEWEST:
        why = f"a model needs {FEWEST} complete trials, and there {'is' if n == 1 else 'are'} {n}"
    elif n > MOST_BELIEVED:
        why = f"there are more than {MOST_BELIEVED:,} complete trials, too many for a model"
    else:
        why = "there is no model of these trials"
    return Statement(
        "cannot-say",
        f"Not enough to say what the parameters do: {why}",
        "open",
        {"complete": n},
        "contrasts, importances and the estimates of cells come from a Gaussian process",
    )


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
