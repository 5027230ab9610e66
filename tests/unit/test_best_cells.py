"""Which cells hold the best trials so far."""

from __future__ import annotations

from typing import Literal, TypeAlias

from orchestrator.model import TrialNews
from orchestrator.search.cells.best import BestOfCells

State: TypeAlias = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]


def told(directions: tuple[str, ...], *trials: tuple[int, State, float]) -> BestOfCells:
    best = BestOfCells(directions)
    for number, (cell, state, value) in enumerate(trials):
        best.note(TrialNews(number, state, (), (value,) * len(directions), cell=cell), cell)
    return best


def test_cells_are_ranked_by_their_best_complete_trial() -> None:
    trials: tuple[tuple[int, State, float], ...] = (
        (0, "COMPLETE", 1.0),
        (1, "COMPLETE", 3.0),
        (2, "COMPLETE", 2.0),
        (0, "COMPLETE", 4.0),
        (3, "PRUNED", 9.0),
    )
    assert told(("maximize",), *trials).first(2) == [0, 1]
    assert told(("minimize",), *trials).first(9) == [0, 2, 1]


def test_several_objectives_have_no_one_best_cell() -> None:
    assert told(("minimize", "maximize"), (0, "COMPLETE", 1.0)).first(5) == []
