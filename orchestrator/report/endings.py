"""Statements about trials that failed or were pruned, and about cells that are closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from orchestrator.model import StudySpec, count_label
from orchestrator.report.statement import Statement
from orchestrator.report.words import cell as named_cell
from orchestrator.report.words import listed
from orchestrator.store import likeness

if TYPE_CHECKING:
    from orchestrator.store import Progress, TrialRow

_MANY_FAILED = 0.1
_MANY_PRUNED = 0.8


def about_failures(
    spec: StudySpec, progress: Progress, trials: Sequence[TrialRow]
) -> list[Statement]:
    """How many trials failed and why, which cells are closed, and how many trials were pruned."""
    ended = [t for t in trials if t.state in ("COMPLETE", "PRUNED", "FAIL")]
    return [
        *_failed(spec, ended),
        *_settled(progress),
        *_closed(spec, progress),
        *_closed_somewhere(progress),
        *_pruned(spec, ended),
        *_infeasible(ended),
    ]


def _settled(progress: Progress) -> Iterator[Statement]:
    cells = [cell for cell in progress.cells if cell.settled]
    if cells:
        yield Statement(
            "failures",
            f"{count_label(len(cells), 'cell')} had enough trials before the budget was spent: "
            f"{listed([named_cell(c.values) for c in cells])}",
            "note",
            {"settled": len(cells), "cells": progress.n_cells},
            "stop_when, and the state of the cells",
        )


def _closed(spec: StudySpec, progress: Progress) -> Iterator[Statement]:
    cells = [cell for cell in progress.cells if cell.state == "CLOSED" and not cell.settled]
    if cells:
        n = max(progress.closed - sum(c.settled for c in progress.cells), len(cells))
        yield Statement(
            "failures",
            f"{count_label(n, 'cell')} of {progress.n_cells} {'is' if n == 1 else 'are'} closed "
            "and cannot be compared fairly: "
            f"{listed([f'{named_cell(c.values)} ({c.reason})' for c in cells])}",
            "warning",
            {"closed": n, "cells": progress.n_cells},
            "the state of the cells",
            f"`orchestrator retry study.name={spec.name} trial=failed`, once the cause is mended",
        )


def _closed_somewhere(progress: Progress) -> Iterator[Statement]:
    for cell in progress.cells:
        if cell.state != "CLOSED" and cell.closed_for:
            where = listed([f"{c.device} ({c.reason})" for c in cell.closed_for])
            yield Statement(
                "failures",
                f"{named_cell(cell.values)} gets no trials on {where}",
                "note",
                {"devices": [c.device for c in cell.closed_for]},
                "trials that ran out of memory there",
            )


def _pruned(spec: StudySpec, ended: Sequence[TrialRow]) -> Iterator[Statement]:
    pruned = sum(t.state == "PRUNED" for t in ended)
    if pruned:
        share = pruned / len(ended)
        much = share >= _MANY_PRUNED
        yield Statement(
            "failures",
            f"{count_label(pruned, 'trial')} of {len(ended)} {'was' if pruned == 1 else 'were'} "
            f"pruned ({100 * share:.0f} %): what they last reported guides the search, but says "
            "nothing of the values that are reached here",
            "warning" if much else "note",
            {"pruned": pruned, "ended": len(ended)},
            "the states of the ended trials",
            _less_pruning(spec) if much else "",
        )


def _infeasible(ended: Sequence[TrialRow]) -> Iterator[Statement]:
    infeasible = sum(t.state == "COMPLETE" and not t.feasible for t in ended)
    if infeasible:
        yield Statement(
            "failures",
            f"{count_label(infeasible, 'complete trial')} of {len(ended)} broke a constraint and "
            "cannot be the best",
            "note",
            {"infeasible": infeasible, "ended": len(ended)},
            "the constraints that trials reported",
        )


def _less_pruning(spec: StudySpec) -> str:
    warmup = getattr(spec.pruner, "n_warmup_steps", None)
    later = "" if warmup is None else f", or `pruner.n_warmup_steps` of more than {warmup},"
    return f"`pruner=none`{later} in the next study lets more of them end"


def _failed(spec: StudySpec, ended: Sequence[TrialRow]) -> Iterator[Statement]:
    failed = [t for t in ended if t.state == "FAIL"]
    if not failed:
        return
    alike: dict[str, list[str]] = {}
    for trial in failed:
        reason = trial.failure or "no reason recorded"
        alike.setdefault(likeness(reason), []).append(_in_short(reason))
    reasons = Counter({messages[0]: len(messages) for messages in alike.values()})
    share = len(failed) / len(ended)
    causes = listed([f"{why} ({n})" for why, n in reasons.most_common()], most=3)
    yield Statement(
        "failures",
        f"{count_label(len(failed), 'trial')} of {len(ended)} failed ({100 * share:.0f} %): "
        f"{causes}",
        "warning" if share >= _MANY_FAILED else "note",
        {"failed": len(failed), "ended": len(ended), "reasons": dict(reasons)},
        "the states of the ended trials, with the reason of each",
        f"`orchestrator logs study.name={spec.name} trial={failed[0].number}` shows the first",
    )


def _in_short(reason: str) -> str:
    """The first line of why a trial failed."""
    return reason.partition("\n")[0][:120].replace("`", "'")
