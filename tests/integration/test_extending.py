"""A study that is changed while it runs: what its trials, cells and tickets become."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import ConfigError, DifferentStudyError, LeaseLostError
from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.store import Attempt, Store
from tests.support.revised import Suggesting, extended, sql
from tests.support.studies import PLACE, spec

X = Searched("x", "float", 0.0, 1.0)


def declared(trials: int = 12, per_cell: int = 2, **changes: Any) -> StudySpec:
    return spec(
        cells=2, **{"budget": Budget(trials, per_cell, max_failures_at_start=None), **changes}
    )


def cells(store: Store, study: int) -> list[tuple[Any, ...]]:
    return sql(
        store.url,
        "SELECT l.ordinal, CAST(l.values AS text), l.state, l.completed FROM orchestrator.cell l "
        f"WHERE l.study_id = {study} ORDER BY 1",
    )


def test_a_value_more_makes_cells_that_get_their_share_and_a_value_less_frees_its_tickets(
    store: Store,
) -> None:
    study = store.studies.launch(declared(trials=6)).study_id
    worker = Suggesting(store, study)
    worker.run(3)
    with pytest.raises(
        DifferentStudyError, match=r"grid a \(\[0,1\] there, \[0,5,1\] here\)"
    ) as no:
        store.studies.launch(declared(trials=6, grid=(Axis("a", (0, 5, 1)),)))
    assert "study.extend=true" in str(no.value)
    assert store.studies.launch(declared(trials=6)).changes == (), (
        "a refused launch changes nothing"
    )

    launched = extended(store, declared(trials=6, grid=(Axis("a", (0, 5, 1)),)))
    assert launched.changes == ("grid a: [0,1] -> [0,5,1]", "1 cell added")
    worker.run()
    assert cells(store, study) == [
        (0, '{"a": 0}', "OPEN", 2),
        (1, '{"a": 5}', "OPEN", 2),
        (2, '{"a": 1}', "OPEN", 2),
    ]
    # `a=0` goes; two more trials have room for the share of a new cell
    launched = extended(store, declared(trials=8, grid=(Axis("a", (7, 1, 5)),)))
    assert launched.changes[1:3] == (
        "1 cell added",
        "1 cell taken from the grid, its trials stay",
    )
    assert worker.run() == 2
    assert [row[:3] for row in cells(store, study)] == [
        (0, '{"a": 7}', "OPEN"),
        (1, '{"a": 1}', "OPEN"),
        (2, '{"a": 5}', "OPEN"),
        (3, '{"a": 0}', "CLOSED"),
    ]
    assert store.reads.find("study").reason == "budget spent"
    assert store.doctor.examine().findings == ()
    # the same file again, in another order: nothing to change
    assert store.studies.launch(declared(trials=8, grid=(Axis("a", (1, 5, 7)),))).changes == ()
    back = extended(store, declared(trials=9, grid=(Axis("a", (0, 7, 1, 5)),)))
    assert "1 cell back on the grid" in back.changes
    assert worker.run() == 1
    assert store.doctor.examine().findings == ()


def test_a_budget_without_room_for_new_shares_is_refused_and_nothing_changes(store: Store) -> None:
    study = store.studies.launch(declared(trials=4)).study_id
    Suggesting(store, study).run()
    before = sql(store.url, "SELECT * FROM orchestrator.cell") + sql(
        store.url, "SELECT ticket_id, ordinal, cell_id, share, state FROM orchestrator.ticket"
    )
    with pytest.raises(ConfigError, match=r"budget.trials=5 is too small: .* at least 6"):
        extended(store, declared(trials=5, grid=(Axis("a", (0, 1, 2)),)))
    after = sql(store.url, "SELECT * FROM orchestrator.cell") + sql(
        store.url, "SELECT ticket_id, ordinal, cell_id, share, state FROM orchestrator.ticket"
    )
    assert before == after
    assert store.reads.spec(study).revision == 1
    assert sql(store.url, "SELECT count(*) FROM orchestrator.revision") == [(1,)]


def test_a_claim_of_the_revision_before_is_given_back_and_running_trials_finish(
    store: Store,
) -> None:
    study = store.studies.launch(declared(trials=8, per_cell=2)).study_id
    early, late, ahead = (Suggesting(store, study) for _ in range(3))
    running = early.create(ticket) if (ticket := early.claim()) else None  # in the cell a=0
    claimed = late.claim()  # in the cell a=1
    prepared = ahead.create(ticket, start=False) if (ticket := ahead.claim()) else None  # a=0
    assert claimed is not None
    assert claimed.cell_values == {"a": 1}
    changes = extended(
        store, declared(trials=8, grid=(Axis("a", (1, 2)),), search=(Searched("x", "float", 0, 2),))
    ).changes
    assert "1 cell taken from the grid, its trials stay" in changes
    with pytest.raises(LeaseLostError, match=r"extended \(revision 2\)"):
        late.create(claimed)
    assert isinstance(running, Attempt)
    early.end(running)
    assert prepared is not None
    assert ahead.store.ledger.start(prepared, ahead.lease, PLACE) is not None  # type: ignore[arg-type]
    ahead.end(prepared.begun() if not isinstance(prepared, Attempt) else prepared)
    early.run()
    assert cells(store, study)[2:] == [(2, '{"a": 0}', "CLOSED", 2)]
    assert [row[3] for row in cells(store, study)[:2]] == [3, 3]
    assert sql(
        store.url, "SELECT revision, count(*) FROM orchestrator.trial GROUP BY 1 ORDER BY 1"
    ) == [(1, 2), (2, 6)]
    assert sql(
        store.url,
        "SELECT DISTINCT distribution_json::json #>> '{attributes,high}' FROM trial_params "
        "WHERE param_name = 'x'",
    ) == [("2.0",)]
    assert store.doctor.examine().findings == ()
