"""What the model believes of each cell, for the end of a launch and for `best`."""

from __future__ import annotations

from orchestrator.model import StudySpec
from orchestrator.search import CellEstimate, Search
from orchestrator.store import Progress, Store

MOST_CELLS = 500
"""Of more cells nothing is estimated: it would take minutes."""


def of_cells(store: Store, spec: StudySpec, progress: Progress) -> list[CellEstimate | None]:
    """An estimate for each cell of `progress`, None where nothing can be told."""
    cells = [cell.values for cell in progress.cells]
    if len(cells) > MOST_CELLS or not any(cell.completed for cell in progress.cells):
        return [None] * len(cells)
    search = Search(spec)
    search.feed(store.reads.news(progress.study.study_id, 0)[0])
    return search.summary(cells)
