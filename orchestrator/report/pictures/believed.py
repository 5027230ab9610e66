"""The pictures of what the model believes: of each cell, and along the searched parameters."""

from __future__ import annotations

from orchestrator.report.picture import Picture
from orchestrator.report.pictures import contour, optima, surrogate
from orchestrator.report.subject import Subject


def pictures(subject: Subject) -> list[Picture]:
    """The optimum of each cell, the model over parameters, cell by cell, and over two of them."""
    cells = [cell.values for cell in subject.cells]
    found = optima.pictures(subject.spec, cells, subject.estimates)
    if subject.sliced is not None:
        found += surrogate.pictures(subject.spec, subject.sliced, plain=subject.plain)
        found += contour.pictures(subject.spec, subject.sliced)
    return found
