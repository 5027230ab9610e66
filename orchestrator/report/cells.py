"""Statements about cells: which is the best, which others may be, how well they are known, and
which were left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, StudySpec, count_label
from orchestrator.report.advice import more_trials
from orchestrator.report.axes import trusted
from orchestrator.report.compared import Compared
from orchestrator.report.statement import SURE, Statement
from orchestrator.report.words import between, decimals, listed, probability, rounded, short
from orchestrator.report.words import cell as named_cell

if TYPE_CHECKING:
    from orchestrator.search import CellKnowledge, Science
    from orchestrator.store import Progress

_MOST_CELLS = 3


def about_cells(
    spec: StudySpec, science: Science, compared: Compared, progress: Progress
) -> list[Statement]:
    """Of the cells that have estimates."""
    cells = compared.cells
    leader = next(c for c in science.cells if c.place == science.leader)
    found = [_leader(spec, science, leader, cells[leader.place])]
    rivals = [
        c
        for c in science.cells
        if c is not leader and c.more != 0 and c.probability_better > 1.0 - SURE
    ]
    rivals.sort(key=lambda c: -c.probability_better)
    if rivals and len(science.axes) > 1:  # those of one axis are its values, and told there
        found.append(_rivals(spec, science, rivals, cells, progress))
    found += _left_out(science, compared, progress)
    return found


def _leader(
    spec: StudySpec, science: Science, leader: CellKnowledge, values: Mapping[str, JSONValue]
) -> Statement:
    places = decimals((leader.high - leader.low) / 2.0)
    reach = f"{rounded(leader.estimate, places)} ({between(leader.low, leader.high, places)})"
    numbers = {"cell": dict(values), **asdict(leader)}
    trials = count_label(leader.useful, "complete trial")
    if len(science.cells) == 1:
        where = named_cell(values) if values else "the search"
        return Statement(
            "cell",
            f"The best `{spec.metrics[0]}` that {where} can reach is about {reach}",
            "finding" if trusted(science) else "open",
            numbers,
            f"{trials}; without noise, over all values of the searched parameters",
        )
    evidence = (
        f"{trials} of the cell and what the others say of it; without noise, over all values of "
        "its searched parameters"
    )
    count = len(science.cells)
    sure = leader.probability_best >= SURE and trusted(science) and leader.useful > 0
    lead = min(abs(leader.estimate - c.estimate) for c in science.cells if c is not leader)
    little = sure and lead <= science.margin
    if little:
        evidence += (
            f"; a difference below {short(science.margin)} counts as none: that is "
            f"{science.margin_rule}"
        )
    is_best = (
        "has no trial, and is predicted to be the best"
        if not leader.useful
        else "is the best"
        if sure
        else "is the best bet"
    )
    return Statement(
        "cell",
        f"The cell {named_cell(values)} {is_best} of {count}, "
        f"P {probability(leader.probability_best)}: its `{spec.metrics[0]}` can reach about {reach}"
        f"{'. Its lead is next to nothing' if little else ''}",
        "note" if little else "finding" if sure else "open",
        {**numbers, "lead": lead, "margin": science.margin},
        evidence,
    )


def _rivals(
    spec: StudySpec,
    science: Science,
    rivals: Sequence[CellKnowledge],
    cells: Sequence[Mapping[str, JSONValue]],
    progress: Progress,
) -> Statement:
    named = [
        f"{named_cell(cells[c.place])} (P {probability(c.probability_better)}; "
        f"{count_label(c.useful, 'trial')}, known to ±{short((c.high - c.low) / 2.0)})"
        for c in rivals
    ]
    first, decide, advice = rivals[0], "", ""
    if trusted(science):
        show = (
            "show that the first is no better and no worse"
            if first.alike
            else "tell the first from it"
        )
        decide = (
            f"; more than 50 further trials in each cell would be needed to {show}"
            if first.more is None
            else f"; about {count_label(first.more, 'more trial')} in each cell would {show}"
        )
        advice = more_trials(spec, progress, (first.more or 0) * len(science.cells))
    return Statement(
        "cell",
        f"{count_label(len(rivals), 'other cell')} may be better than that one: "
        f"{listed(named, most=_MOST_CELLS)}{decide}",
        "open",
        {
            "open": len(rivals),
            "cells": [{"cell": dict(cells[c.place]), **asdict(c)} for c in rivals],
        },
        f"joint draws of the optima: better with a probability of more than {1.0 - SURE:.2f}; how "
        "much another trial would tell is projected from the model",
        advice,
    )


def _left_out(science: Science, compared: Compared, progress: Progress) -> list[Statement]:
    if compared.about:
        some = [f"{count:,} values of `{path}`" for path, count in compared.left_out.items()]
        without = f", without {listed(some)}" if some else ""
        return [
            Statement(
                "cannot-say",
                f"Of {progress.n_cells:,} cells only {len(science.cells)} are compared: "
                f"{count_label(compared.about, 'cell')} with the best values, and those that "
                f"differ from one of them in one axis{without}. What the axes do elsewhere is not "
                "said",
                "note",
                {
                    "cells": progress.n_cells,
                    "compared": len(science.cells),
                    "values_left_out": dict(compared.left_out),
                },
                "to compare all would take minutes; many have no trial",
            )
        ]
    known = {c.place for c in science.cells}
    missing = [cell for place, cell in enumerate(compared.cells) if place not in known]
    if not missing:
        return []
    return [
        Statement(
            "cannot-say",
            f"{count_label(len(missing), 'cell')} of {progress.n_cells} "
            f"{'has' if len(missing) == 1 else 'have'} no complete trial and "
            f"{'is' if len(missing) == 1 else 'are'} left out of all comparisons: "
            f"{listed([named_cell(cell) for cell in missing])}",
            "warning",
            {"cells": [dict(cell) for cell in missing]},
            "the trials of each cell",
        )
    ]
