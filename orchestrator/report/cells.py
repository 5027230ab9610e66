"""Statements about cells: which is the best, which others may be, how well they are known, and
which were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.model import JSONValue, StudySpec, count_label
from orchestrator.report.axes import SURE, probability, trusted
from orchestrator.report.compared import Compared
from orchestrator.report.statement import Statement
from orchestrator.report.words import between, decimals, listed, rounded, short
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
    for rival in rivals[:_MOST_CELLS]:
        found.append(_rival(science, leader, rival, cells))
    if len(rivals) > _MOST_CELLS:
        found.append(
            Statement(
                "cell",
                f"{len(rivals)} of {count_label(len(science.cells), 'cell')} may still be better "
                "than the leading one",
                "open",
                {"open": len(rivals), "cells": len(science.cells)},
                f"each with a probability of more than {1.0 - SURE:.2f}",
            )
        )
    found += _left_out(science, compared, progress)
    return found


def _leader(
    spec: StudySpec, science: Science, leader: CellKnowledge, values: Mapping[str, JSONValue]
) -> Statement:
    places = decimals((leader.high - leader.low) / 2.0)
    reach = f"{rounded(leader.estimate, places)} ({between(leader.low, leader.high, places)})"
    numbers = {"cell": dict(values), **asdict(leader)}
    evidence = (
        f"{count_label(leader.useful, 'trial')} of the cell and what the others say of it; without "
        "noise, over all values of its searched parameters"
    )
    if len(science.cells) == 1:
        return Statement(
            "cell",
            f"The best `{spec.metrics[0]}` that {named_cell(values)} can reach is about {reach}",
            "finding",
            numbers,
            evidence,
        )
    sure = leader.probability_best >= SURE and trusted(science) and leader.useful > 0
    is_best = "is the best" if leader.useful else "has no trial, and is predicted to be the best"
    return Statement(
        "cell",
        f"The cell {named_cell(values)} {is_best} of {len(science.cells)} with P "
        f"{probability(leader.probability_best)}: its `{spec.metrics[0]}` can reach about {reach}",
        "finding" if sure else "open",
        numbers,
        evidence,
    )


def _rival(
    science: Science,
    leader: CellKnowledge,
    rival: CellKnowledge,
    cells: list[dict[str, JSONValue]],
) -> Statement:
    known = short((rival.high - rival.low) / 2.0)
    decide = (
        "more than 50 further ones in each cell would be needed"
        if rival.more is None
        else f"about {rival.more} more in each cell would decide"
    )
    return Statement(
        "cell",
        f"The cell {named_cell(cells[rival.place])} has {count_label(rival.useful, 'trial')}: its "
        f"optimum is known to ±{known} only, and it is better than "
        f"{named_cell(cells[leader.place])} with P {probability(rival.probability_better)}; "
        f"{decide}",
        "open",
        {"cell": dict(cells[rival.place]), **asdict(rival)},
        "joint draws of both optima; how much another trial would tell is projected from the model",
        "" if rival.more is None else f"`budget.per_cell` {rival.useful + rival.more} or more",
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
