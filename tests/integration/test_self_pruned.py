"""Trials that prune themselves: they spend the budget like others, and a cell's last share waits
for a complete one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import optuna
import pytest

from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed, Pruned
from orchestrator.store import Attempt, Store, WorkerLease
from tests.support.studies import end, spec, start

BROKEN = Failed("exception", "ValueError: no")


def run(
    store: Store,
    lease: WorkerLease,
    study: int,
    outcomes: Callable[[Attempt], Completed | Pruned | Failed],
) -> int:
    """Runs the study to its end, checks it, and returns how many trials it took."""
    count = 0
    while (claim := start(store, lease, study)) is not None:
        end(store, claim, outcomes(claim))
        count += 1
        assert store.doctor.examine().findings == ()
    assert store.reads.find("study").reason == "budget spent"
    return count


def cells_of(store: Store) -> list[tuple[str, int, int, int, int, int]]:
    cells = store.reads.progress(store.reads.find("study"), maximize=True).cells
    return [(c.state, c.completed, c.pruned, c.failed, c.spent, c.bound) for c in cells]


def states_in_optuna(store: Store) -> Counter[str]:
    return Counter(
        t.state.name for t in optuna.load_study(study_name="study", storage=store.url).trials
    )


@pytest.mark.parametrize("complete", [(), (5, 13), (19,)])
def test_trials_that_prune_themselves_spend_the_budget_as_in_plain_optuna(
    store: Store, lease: WorkerLease, complete: tuple[int, ...]
) -> None:
    study = store.studies.launch(spec(cells=1, trials=20)).study_id
    n = run(
        store,
        lease,
        study,
        lambda claim: Completed((1.0,)) if claim.number in complete else Pruned(),
    )
    assert n == 20
    assert cells_of(store) == [("OPEN", len(complete), 20 - len(complete), 0, 20, 20)]
    assert states_in_optuna(store) == Counter(COMPLETE=len(complete), PRUNED=20 - len(complete))


def test_a_share_waits_for_a_complete_trial_while_the_budget_has_tickets(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=8, per_cell=2)).study_id
    cells: list[int] = []

    def outcome(claim: Attempt) -> Completed | Pruned:
        cells.append(claim.cell)
        assert store.ledger.may_prune(claim) is (claim.cell == 1 and 1 in cells[:-1])
        return Pruned() if claim.cell == 0 else Completed((1.0,))

    run(store, lease, study, outcome)
    # After two shares each, cell 0 is given as many more as it may fail in a row, before the last
    # one is anybody's.
    assert cells == [0, 1, 0, 1, 0, 0, 0, 1]
    assert cells_of(store) == [("OPEN", 0, 5, 0, 5, 5), ("OPEN", 3, 0, 0, 3, 3)]


def test_where_every_ticket_is_a_share_it_is_tried_again_and_not_for_ever(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    n = run(store, lease, study, lambda claim: Pruned() if claim.cell == 0 else Completed((1.0,)))
    assert n == 1 + 3 + 1, "its share, budget.max_failures_per_cell more tries, and the other cell"
    assert cells_of(store) == [("OPEN", 0, 4, 0, 1, 1), ("OPEN", 1, 0, 0, 1, 1)]
    assert states_in_optuna(store) == Counter(COMPLETE=1, PRUNED=4)


def test_a_trial_that_prunes_itself_breaks_a_row_of_failures_and_a_waiting_share_outlives_a_launch(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=2, trials=6)).study_id
    for outcome in (BROKEN, BROKEN, BROKEN, Pruned(), BROKEN, BROKEN, BROKEN):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim, outcome)
    assert {c[0] for c in cells_of(store)} == {"OPEN"}
    larger = spec(cells=2, trials=10, per_cell=2)
    assert store.studies.launch(larger).added == 4
    run(store, lease, study, lambda claim: Completed((1.0,)))
    assert [(c[1] >= 1, c[4] >= 2) for c in cells_of(store)] == [(True, True)] * 2
    assert sum(c[4] for c in cells_of(store)) == 10


def test_a_budget_without_room_for_a_share_that_waits_is_refused(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1, trials=4)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim, Pruned())
    with pytest.raises(
        ConfigError, match=r"budget\.trials=1 is too small: 1 trials .* 1 more .* to at least 2"
    ):
        store.studies.launch(spec(cells=1, trials=1))
    assert store.studies.launch(spec(cells=1, trials=2)).open_tickets == 1
    run(store, lease, study, lambda claim: Completed((1.0,)))
    assert cells_of(store) == [("OPEN", 1, 1, 0, 2, 2)]
