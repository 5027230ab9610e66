"""The model's estimate for each cell, for the end of a launch and for `best`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import search

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate
    from orchestrator.store import Progress, Reading

MOST_CELLS = 500
"""With more cells than this, nothing is estimated: it would take minutes."""


def of_cells(store: Reading, progress: Progress) -> list[CellEstimate | None]:
    """An estimate for each cell of `progress`, None where there is none.

    Repeated calls give the same.
    """
    cells = [cell.values for cell in progress.cells]
    if progress.n_cells > MOST_CELLS or not any(cell.completed for cell in progress.cells):
        return [None] * len(cells)
    # This imports Optuna, which is slow: only the commands that need it do so.
    model = search.Search(store.reads.spec(progress.study.study_id))
    model.feed(store.news.since(progress.study.study_id, 0)[0])
    return model.summary(cells)
