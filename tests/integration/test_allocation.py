"""Allocations that choose cells, and suggestions that know each other, on a real PostgreSQL."""

from __future__ import annotations

import json

import optuna

from orchestrator.model import Budget, Failed, Suggestion, TrialNews
from orchestrator.store import MOST_CHOICES, Choice, Store, Ticket, Undecided, WorkerLease
from tests.support.large import complete
from tests.support.studies import PLACE, begun, end, spec, start, suggestion, take

WHY = {"rule": "test", "words": "it looks good"}


def next_of(
    store: Store, lease: WorkerLease, study: int, choice: Choice | None = None
) -> Ticket | Undecided | None:
    claim = store.ledger.claim_one(lease, study, PLACE, choice, adaptive=True)
    assert claim is None or isinstance(claim, Ticket | Undecided)
    return claim


def shares(store: Store, lease: WorkerLease, study: int) -> None:
    while isinstance(claim := next_of(store, lease, study), Ticket):
        end(store, begun(store, claim, lease))


def test_beyond_the_shares_the_caller_chooses_the_cell_and_the_reason_stays_with_the_trial(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=3, trials=5, allocation="adaptive")).study_id
    shares(store, lease, study)
    undecided = next_of(store, lease, study)
    assert isinstance(undecided, Undecided)
    assert (undecided.ordinal, undecided.cells) == (
        3,
        ((0, {"a": 0}), (1, {"a": 1}), (2, {"a": 2})),
    )
    assert next_of(store, lease, study) == undecided, "nothing was taken"
    for _ in range(2):
        claim = next_of(store, lease, study, Choice(2, WHY))
        assert isinstance(claim, Ticket)
        assert claim.cell == 2
        end(store, begun(store, claim, lease))
    row = store.reads.find("study")
    assert [c.completed for c in store.reads.progress(row, maximize=True).cells] == [1, 1, 3]
    assert row.reason == "budget spent"
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.user_attrs.get("orchestrator:why") for t in trials] == [None, None, None, WHY, WHY]
    assert store.doctor.examine().findings == ()


def test_a_chosen_cell_that_was_closed_meanwhile_is_replaced(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(
        spec(cells=2, allocation="adaptive", budget=Budget(4, 1, max_failures_per_cell=0))
    ).study_id
    shares(store, lease, study)
    claim = next_of(store, lease, study, Choice(1, WHY))
    assert isinstance(claim, Ticket)
    end(store, begun(store, claim, lease), Failed("exception", "no"))
    undecided = next_of(store, lease, study)
    assert isinstance(undecided, Undecided)
    assert [ordinal for ordinal, _ in undecided.cells] == [0]
    claim = next_of(store, lease, study, Choice(1, WHY))
    assert isinstance(claim, Ticket)
    assert claim.cell == 0
    assert "had been closed" in json.dumps(claim.why)


def test_a_suggestion_that_did_not_know_of_a_trial_is_refused(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    other = store.fleet.register(60)
    _, known = store.news.since(study, 0)
    mine = take(store, lease, study)
    assert mine is not None
    assert start(store, other, study) is not None
    assert store.ledger.create(mine, suggestion(mine), lease, PLACE, since=known) is None
    assert [t.number for t in store.reads.trials(study)] == [0], "nothing was created"
    news, known = store.news.since(study, known)
    assert [n.number for n in news] == [0]
    created = store.ledger.create(mine, suggestion(mine), lease, PLACE, since=known)
    assert created is not None
    assert created.number == 1


def test_a_trial_that_ended_since_is_no_reason_to_ask_again(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    other = store.fleet.register(60)
    theirs = start(store, other, study)
    assert theirs is not None
    _, known = store.news.since(study, 0)
    mine = take(store, lease, study)
    assert mine is not None
    end(store, theirs)
    assert store.ledger.create(mine, suggestion(mine), lease, PLACE, since=known) is not None


def test_a_function_is_told_the_news_under_the_lock(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=4)).study_id
    mine = take(store, lease, study)
    assert mine is not None
    assert start(store, store.fleet.register(60), study) is not None
    told: list[int] = []

    def suggest(news: list[TrialNews], position: int) -> Suggestion:
        told.extend([*(n.number for n in news), position])
        assert mine is not None
        return suggestion(mine)

    created = store.ledger.create(mine, suggest, lease, PLACE, since=0)
    assert created is not None
    assert (told, created.number) == ([0, 1], 1)


def test_what_was_known_at_a_position_can_be_told_later(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=3)).study_id
    other = store.fleet.register(60)
    first, second = start(store, lease, study), start(store, other, study)
    assert first is not None
    assert second is not None
    end(store, first)
    _, position = store.news.since(study, 0)
    end(store, second)
    third = start(store, lease, study)
    assert third is not None
    assert [(n.number, n.state) for n in store.news.at(study, position)] == [
        (0, "COMPLETE"),
        (1, "RUNNING"),
    ]
    assert store.news.at(study, position)[1].values is None


def test_of_a_large_grid_the_caller_gets_the_likely_cells_and_those_with_the_fewest_trials(
    store: Store, lease: WorkerLease
) -> None:
    cells = 3 * MOST_CHOICES
    study = store.studies.launch(
        spec(cells=cells, trials=cells + 9, allocation="adaptive")
    ).study_id
    complete(store.url, study, 0, cells - 1)
    likely = [cells - 1, 700, 300]
    first = store.ledger.claim_one(lease, study, PLACE, adaptive=True, likely=likely)
    assert isinstance(first, Undecided)
    others = MOST_CHOICES - len(likely)
    assert first.cells == tuple((k, {"a": k}) for k in [*range(others), *sorted(likely)])
    claim = store.ledger.claim_one(lease, study, PLACE, Choice(0, WHY), adaptive=True)
    assert isinstance(claim, Ticket)
    assert claim.cell == 0
    after = store.ledger.claim_one(
        lease,
        store.studies.launch(spec(cells=cells, trials=cells + 9)).study_id,
        PLACE,
        adaptive=True,
    )
    assert isinstance(after, Undecided)
    assert [k for k, _ in after.cells] == [*range(1, MOST_CHOICES + 1)], (
        "one with a ticket more stands behind"
    )
