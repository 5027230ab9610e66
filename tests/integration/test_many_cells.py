"""What a grid of many cells must not cost: rows written without need, cells read that nobody is
shown.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.model import Budget, Completed, Failed, Report
from orchestrator.store import Store, WorkerLease
from orchestrator.store.ledger import grid
from tests.support.invariants import query
from tests.support.studies import PLACE, end, spec, start


def written(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Every row of cells and tickets, with the transaction that wrote it last."""
    return {
        table: query(
            store.url, f"SELECT {table}_id, xmin, ordinal FROM orchestrator.{table} ORDER BY 1"
        )
        for table in ("cell", "ticket")
    }


def test_cells_are_sent_in_batches_and_keep_the_order_of_the_grid(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "CELLS_AT_ONCE", 3)
    study = store.studies.launch(spec(cells=8, trials=20, per_cell=2)).study_id
    cells = query(
        store.url,
        "SELECT ordinal, values, bound FROM orchestrator.cell WHERE study_id = %s ORDER BY cell_id",
        study,
    )
    assert cells == [(k, {"a": k}, 2) for k in range(8)]
    tickets = query(
        store.url,
        "SELECT t.ordinal, c.ordinal, t.share FROM orchestrator.ticket t LEFT JOIN "
        "orchestrator.cell c USING (cell_id) ORDER BY t.ordinal",
    )
    assert tickets == [
        *((k, k % 8, k // 8 + 1) for k in range(16)),
        *((k, None, None) for k in range(16, 20)),
    ]


def test_a_launch_that_changes_nothing_writes_no_cell_and_no_ticket(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=5, trials=12, per_cell=2)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim)
    before = written(store)
    assert store.studies.launch(spec(cells=5, trials=12, per_cell=2)).added == 0
    assert written(store) == before


def test_a_larger_budget_is_tickets_more_and_no_other_row(store: Store) -> None:
    store.studies.launch(spec(cells=5, trials=12, per_cell=2))
    before = written(store)
    assert store.studies.launch(spec(cells=5, trials=15, per_cell=2)).added == 3
    after = written(store)
    assert after["cell"] == before["cell"]
    assert after["ticket"][:-3] == before["ticket"]
    assert [row[2] for row in after["ticket"][-3:]] == [12, 13, 14]


def test_more_or_fewer_shares_a_cell_are_laid_anew_within_the_budget(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=3, trials=9, per_cell=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim)
    for per_cell in (3, 2):
        store.studies.launch(replace(spec(cells=3), budget=Budget(9, per_cell)))
        shares = query(
            store.url,
            "SELECT cell_id, count(share) FROM orchestrator.ticket WHERE share IS NOT NULL GROUP "
            "BY 1",
        )
        assert sorted(count for _, count in shares) == [per_cell] * 3
        assert query(
            store.url, "SELECT count(*) FROM orchestrator.ticket WHERE state <> 'VOID'"
        ) == [(9,)]
        assert store.doctor.examine().findings == ()


def test_of_many_cells_the_best_are_read_then_what_runs_and_the_best_of_all_is_known(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=6, trials=12, budget=Budget(12, 1, max_failures_per_cell=0))
    ).study_id
    for cell in range(5):
        claim = start(store, lease, study)
        assert claim is not None
        end(
            store,
            claim,
            Failed("exception", "no") if cell == 1 else Completed((float([5, 0, 9, 7, 1][cell]),)),
        )
    assert start(store, lease, study) is not None  # cell 5 runs
    row = store.reads.find("study")
    few = store.reads.progress(row, maximize=True, most=4)
    assert [c.ordinal for c in few.cells] == [2, 3, 0, 4], "the best"
    assert (few.n_cells, few.best, few.best_trial, few.closed) == (6, 9.0, 2, 1)
    more = store.reads.progress(row, maximize=True, most=5)
    assert [c.ordinal for c in more.cells] == [2, 3, 0, 4, 5], "then what runs"
    assert more.cells[4].running == 1
    none = store.reads.progress(row, maximize=False, most=0)
    assert (none.cells, none.n_cells, none.best, none.best_trial) == ((), 6, 1.0, 4)
    every = store.reads.progress(row, maximize=True, most=6)
    assert [c.ordinal for c in every.cells] == list(range(6))


def test_of_trials_that_are_equally_good_the_first_is_the_best_whatever_its_cell(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=4, per_cell=2)).study_id
    for value in (1.0, 5.0, 5.0, 1.0):  # the first cell reaches it after the second
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, Completed((value,)))
    progress = store.reads.progress(store.reads.find("study"), maximize=True)
    assert [cell.best_trial for cell in progress.cells] == [2, 1]
    assert progress.best_trial == 1
    assert [trial.number for trial in store.reads.contenders(study, ("maximize",))][:1] == [1]


def test_the_best_trial_is_found_alone_also_when_infinite_or_another_breaks_a_constraint(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=5)).study_id
    assert store.reads.contenders(study, ("maximize",)) == []
    for value, constraint in (
        (3.0, 0.0),
        (math.inf, 1.0),
        (8.0, 1.0),
        (-math.inf, 0.0),
        (5.0, 0.0),
    ):
        claim = start(store, lease, study)
        assert claim is not None
        store.ledger.finish(claim, Completed((value,)), Report(constraints={"size": constraint}))
    (best,) = store.reads.contenders(study, ("maximize",))
    assert (best.number, best.values) == (4, (5.0,))
    (least,) = store.reads.contenders(study, ("minimize",))
    assert (least.number, least.values) == (3, (-math.inf,))
    assert len(store.reads.contenders(study, ("minimize", "maximize"))) == 5
    assert [t.number for t in store.reads.trials(study, number=2)] == [2]
    assert store.reads.trials(study, state="FAIL") == []
    assert store.ledger.claim_one(lease, study, PLACE) is None
