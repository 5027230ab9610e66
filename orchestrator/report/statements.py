"""What a study says, in sentences: the most important ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.model import MOST_BELIEVED, StudySpec, count_label
from orchestrator.report.advice import more_trials
from orchestrator.report.axes import about_axes, trusted
from orchestrator.report.cells import about_cells
from orchestrator.report.compared import Compared
from orchestrator.report.endings import about_failures
from orchestrator.report.metric import about_the_metrics
from orchestrator.report.parameters import about_edges, about_parameters
from orchestrator.report.statement import Statement
from orchestrator.report.winner import FEWEST, about_the_best, about_the_front, complete

if TYPE_CHECKING:
    from orchestrator.search import Science, Search
    from orchestrator.store import Progress, TrialRow

__all__ = ["Statement", "statements"]

_ORDER = (
    "metric",
    "best",
    "front",
    "few-trials",
    "unpredictable",
    "contrast",
    "interaction",
    "no-difference",
    "cell",
    "importance",
    "seeds",
    "edge",
    "failures",
    "cannot-say",
)
"""What is found and what can be done about it, most important first. What is open comes after it,
as it is found, but for the best and what keeps everything open; then notes.
"""
_FIRST = ("metric", "best", "front", "few-trials", "unpredictable")


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
    done = complete(trials)
    found: list[Statement] = []
    unjudged = list(about_the_metrics(spec, done))
    if not done:
        found.append(_nothing(trials))
    elif len(spec.directions) > 1:
        found += [*unjudged, *about_the_front(spec, trials)]
    elif unjudged:
        found += unjudged
    else:
        leaders = None if search is None else search.leaders()
        found += about_the_best(spec, leaders, trials, progress)
        compared = Compared.of(spec, progress)
        science = None if search is None else compared.science(search)
        if science is None:
            found.append(_no_model(done))
        else:
            found += [] if trusted(science) else [_few(spec, science, progress)]
            found += about_axes(spec, science, compared, progress)
            found += about_cells(spec, science, compared, progress)
            found += about_parameters(spec, science)
            found += about_edges(spec, science, compared, progress)
    found += about_failures(spec, progress, trials)
    return sorted(found, key=_rank)


def _rank(statement: Statement) -> tuple[int, int]:
    if statement.kind in _FIRST:
        return 0, _ORDER.index(statement.kind)
    if statement.verdict == "open":
        return 2, 0
    return 3 if statement.verdict == "note" else 1, _ORDER.index(statement.kind)


def _few(spec: StudySpec, science: Science, progress: Progress) -> Statement:
    missing = science.needed - science.complete
    each = len(science.cells)
    wanted = -(-missing // each) * each
    return Statement(
        "few-trials",
        f"{science.complete} complete trials are too few for {science.parameters} parameters: with "
        f"fewer than {science.needed} no difference counts as found",
        "open",
        {
            "complete": science.complete,
            "parameters": science.parameters,
            "needed": science.needed,
        },
        "ten trials for each parameter, axes included; with fewer, the model is sure of what it "
        "has not seen",
        more_trials(spec, progress, wanted),
    )


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
