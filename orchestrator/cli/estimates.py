"""What the model believes of each cell, for the end of a launch and for `best`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import search
from orchestrator.store import Progress, Store

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate

MOST_CELLS = 500
"""Of more cells nothing is estimated: it would take minutes."""


def of_cells(store: Store, progress: Progress) -> list[CellEstimate | None]:
    """An estimate for each cell of `progress`, None where nothing can be told; the same whoever
    asks.
    """
    cells = [cell.values for cell in progress.cells]
    if progress.n_cells > MOST_CELLS or not any(cell.completed for cell in progress.cells):
        return [None] * len(cells)
    # Optuna is brought in here, for the commands that need it
    model = search.Search(store.reads.spec(progress.study.study_id))
    model.feed(store.news.since(progress.study.study_id, 0)[0])
    return model.summary(cells)
