"""The pictures of what the model believes: of each cell, and along the searched parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.model import MOST_CELLS, JSONValue
from orchestrator.report.picture import Picture
from orchestrator.report.pictures import contour, optima, surrogate
from orchestrator.report.subject import Subject

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate


def pictures(subject: Subject) -> list[Picture]:
    """The optimum of each cell, the model over parameters, cell by cell, and over two of them."""
    found = optima.pictures(subject.spec, *_estimated(subject))
    if subject.sliced is not None:
        found += surrogate.pictures(subject.spec, subject.sliced, plain=subject.plain)
        found += contour.pictures(subject.spec, subject.sliced)
    return found


def _estimated(
    subject: Subject,
) -> tuple[Sequence[Mapping[str, JSONValue]], Sequence[CellEstimate | None]]:
    """The cells with what is believed of them: of a large grid those that are compared, some of
    which may have no trial.
    """
    if subject.spec.n_cells <= MOST_CELLS or subject.science is None:
        return [cell.values for cell in subject.cells], subject.estimates
    compared = subject.science.cells
    cells = [subject.compared.cells[one.place] for one in compared]
    return cells, [one.belief for one in compared]
