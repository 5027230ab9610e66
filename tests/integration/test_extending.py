"""A study that is changed while it runs: what its trials, cells and tickets become."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cli.call import Call
from orchestrator.cli.failures import Failures
from orchestrator.cli.launch_loop import FollowedStudy
from orchestrator.cli.opening import announcement
from orchestrator.cli.screen import View
from orchestrator.errors import ConfigError, DifferentStudyError, LeaseLostError
from orchestrator.faults import CRASH_AT
from orchestrator.model import Axis, Budget, Failed, Report, Searched, StudySpec
from orchestrator.prior import Enqueued, Observation, Prior
from orchestrator.search import by_hand, extension
from orchestrator.store import Attempt, Store, Ticket
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
    with pytest.raises(LeaseLostError, match="given back"):
        late.create(claimed)
    with pytest.raises(LeaseLostError, match="given back"):  # as a worker of an older version
        store.ledger.create(claimed, late.suggest(claimed), late.lease, PLACE)
    # as a claim that began before and got its ticket after it
    overtaken = store.ledger.claim_one(late.lease, study, PLACE)
    assert isinstance(overtaken, Ticket)
    with pytest.raises(LeaseLostError, match=r"extended \(revision 2\)"):
        late.create(overtaken)
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


def test_ten_workers_claim_while_two_people_extend_the_study_at_once(database_url: str) -> None:
    """Neither waits for the other in a circle, no suggestion is made under an old revision, and the
    shares of all revisions are exact.
    """
    store = Store(database_url)
    study = store.studies.launch(declared(trials=60, per_cell=6)).study_id
    problems: list[BaseException] = []
    said: list[tuple[str, ...]] = []
    begun = threading.Barrier(12)

    def attempt(what: Callable[[Store], None]) -> None:
        mine = Store(database_url)
        try:
            begun.wait(30)
            what(mine)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            problems.append(error)
        finally:
            mine.rest()

    def more(value: int, high: float) -> Callable[[Store], None]:
        changed = declared(
            trials=60,
            per_cell=6,
            grid=(Axis("a", (0, 1, value)),),
            search=(replace(X, high=high),),
        )
        return lambda mine: said.append(extended(mine, changed).changes)

    work: list[Callable[[Store], None]] = [lambda mine: _run(mine, study)] * 10
    threads = [
        threading.Thread(target=attempt, args=(what,))
        for what in [*work, more(5, 2.0), more(9, 3.0)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    first, second = sorted(said, key=lambda changes: "[0,1]" not in changes[0])
    assert first[0].startswith("grid a: [0,1] -> ")
    kept = first[0].removeprefix("grid a: [0,1] -> ")
    assert second[0].startswith(f"grid a: {kept} -> "), "the second sees what the first has made"
    _run(store, study)
    on_grid = [row[3] for row in cells(store, study) if row[2] == "OPEN"]
    assert all(completed >= 6 for completed in on_grid)
    assert sum(row[3] for row in cells(store, study)) == 60
    assert store.doctor.examine().findings == ()
    store.rest()


def _run(store: Store, study: int) -> None:
    Suggesting(store, study).run()


def test_a_launch_that_is_killed_while_it_extends_has_changed_nothing(database_url: str) -> None:
    store = Store(database_url)
    study = store.studies.launch(declared(trials=12)).study_id
    Suggesting(store, study).run(3)
    whole = "SELECT ordinal, CAST(values AS text), state, bound, removed_in FROM orchestrator.cell"
    before = sql(database_url, whole)
    wider = "grid=(Axis('a', (1, 2)),), search=(replace(X, high=2.0),)"
    code = (
        "import sys\nfrom dataclasses import replace\nfrom orchestrator.model import Axis\n"
        "from orchestrator.store import Store\nfrom tests.support.revised import extended\n"
        "from tests.integration.test_extending import X, declared\n"
        f"extended(Store(sys.argv[1]), declared({wider}))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, database_url],
        env={**os.environ, CRASH_AT: "mid-extend"},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert sql(database_url, whole) == before
    assert store.reads.spec(study).revision == 1
    assert store.doctor.examine().findings == ()
    changed = declared(grid=(Axis("a", (1, 2)),), search=(replace(X, high=2.0),))
    assert len(extended(store, changed).changes) > 2
    again = extended(store, changed)  # as one whose answer was lost
    assert (again.changes, again.added) == ((), 0)
    _run(store, study)
    assert store.doctor.examine().findings == ()
    store.rest()


def test_what_was_agreed_to_is_what_is_done(store: Store) -> None:
    study = store.studies.launch(declared()).study_id
    mine = declared(grid=(Axis("a", (0, 1, 2)),))
    with pytest.raises(DifferentStudyError) as shown:
        store.studies.launch(mine)
    assert (shown.value.revision, shown.value.changes) == (1, ("grid a: [0,1] -> [0,1,2]",))
    extended(store, declared(grid=(Axis("a", (0, 1, 7)),)))
    with pytest.raises(DifferentStudyError, match=r"\[0,1,7\] there") as anew:
        store.studies.launch(mine, extension, revision=shown.value.revision)
    store.studies.launch(mine, extension, revision=anew.value.revision)
    assert [row.changes for row in store.reads.revisions(study)] == [
        (),
        ("grid a: [0,1] -> [0,1,7]",),
        ("grid a: [0,1,7] -> [0,1,2]",),
    ]


def test_nothing_begins_by_hand_where_the_grid_no_longer_is(store: Store) -> None:
    study = store.studies.launch(declared(trials=8)).study_id
    worker = Suggesting(store, study)
    ticket = worker.claim()
    assert ticket is not None
    failed = worker.create(ticket)
    assert isinstance(failed, Attempt)
    store.ledger.finish(failed, Failed("exception", "broken"), Report())
    ticket = worker.claim()
    assert ticket is not None
    complete = worker.create(ticket)
    assert isinstance(complete, Attempt)
    worker.end(complete)
    store.interventions.enqueue(study, {"a": 0}, {"x": 0.5})
    extended(store, declared(trials=8, grid=(Axis("a", (1, 2)),), search=(replace(X, low=0.9),)))
    with pytest.raises(ConfigError, match="no longer on the study's grid"):
        store.interventions.retry(study, failed.number)
    assert store.interventions.retry(study, None) == []
    with pytest.raises(ConfigError, match=r"trial=1: .* no longer .* choose a trial of the grid"):
        store.interventions.repeat(study, complete.number, 2)
    with pytest.raises(ConfigError, match="has no cell a=0"):
        store.interventions.enqueue(study, {"a": 0}, {"x": 0.95})
    spec_now = store.reads.spec(study)
    assert by_hand(spec_now, {"a": 1, "x": 0.95}) == ({"a": 1}, {"x": 0.95})
    with pytest.raises(ConfigError, match=r"x=0.5: not a value"):
        by_hand(spec_now, {"a": 1, "x": 0.5})
    worker.run()
    assert {row[3] for row in cells(store, study) if row[2] == "OPEN"} == {3, 4}
    assert cells(store, study)[2][3] == 1, "what was enqueued there is dropped"
    assert store.doctor.examine().findings == ()


def test_an_axis_and_a_parameter_that_depends_on_it_come_together(store: Store) -> None:
    study = store.studies.launch(declared(trials=8)).study_id
    worker = Suggesting(store, study)
    worker.run(2)
    depth = Searched("k", "int", 1, 4, when={"m": (1,)})
    other = declared(
        trials=12,
        params={"a": 0, "x": 0.5, "m": 0, "k": 2},
        grid=(Axis("a", (0, 1)), Axis("m", (0, 1))),
        search=(X, depth, replace(depth, path="l", when={"m": (0,)})),
    )
    with pytest.raises(ConfigError, match="params has no default"):
        extended(store, other)
    other = replace(other, params={**other.params, "l": 3})
    assert "2 cells added" in extended(store, other).changes
    worker.run()
    names = "SELECT revision, array_to_string(array_agg(DISTINCT k.key ORDER BY k.key), ' ') "
    assert sql(
        store.url,
        names + "FROM orchestrator.trial o, json_each(o.values) AS k(key, value) "
        "GROUP BY revision, o.values ->> 'm' ORDER BY revision, o.values ->> 'm'",
    ) == [(1, "a l m x"), (2, "a l m x"), (2, "a k m x")]
    assert store.doctor.examine().findings == ()


def test_what_repeats_a_trial_gets_the_default_that_the_trial_got(store: Store) -> None:
    study = store.studies.launch(declared(trials=8)).study_id
    worker = Suggesting(store, study)
    worker.run(1)
    ticket = worker.claim()
    assert ticket is not None
    failed = worker.create(ticket)
    assert isinstance(failed, Attempt)
    store.ledger.finish(failed, Failed("exception", "broken"), Report())
    store.interventions.repeat(study, 0, 2)
    store.interventions.retry(study, failed.number)
    store.interventions.enqueue(study, {"a": 1}, {})
    claimed = worker.claim()  # the first repetition, whose worker holds it
    assert claimed is not None
    more = Searched("y", "float", 0.0, 1.0)
    extended(store, declared(trials=8, params={"a": 0, "x": 0.5, "y": 0.3}, search=(X, more)))
    worker.run()
    trials = sql(store.url, "SELECT number, values, retried_from FROM orchestrator.trial")
    values = {number: found for number, found, _ in trials}
    assert list(values.values()).count(values[0]) == 3, "itself and its two repetitions"
    assert values[0]["y"] == 0.3
    (again,) = (found for _, found, number in trials if number == failed.number)
    assert again == values[failed.number]
    assert again["y"] == 0.3
    others = [v for number, v in values.items() if v not in (values[0], values[failed.number])]
    assert others
    assert all(v["y"] != 0.3 for v in others), "the others are suggested as ever"
    assert store.doctor.examine().findings == ()


def test_what_was_promised_to_run_first_runs_outside_a_narrower_range(store: Store) -> None:
    source = Prior("source", 77, (Observation(0, {"x": 0.9, "a": 0}, 1.0),))
    taken: dict[str, Any] = {"warm_start": ("source",), "enqueue_best": 1}
    best = [Enqueued(0, {"x": 0.9}, "source", 0)]
    study = store.studies.launch(declared(**taken), priors=[source], enqueued=best).study_id
    extended(store, declared(search=(replace(X, high=0.5),), **taken))
    _run(store, study)
    trials = sql(store.url, "SELECT values FROM orchestrator.trial")
    assert trials.count(({"a": 0, "x": 0.9},)) == 1
    assert store.doctor.examine().findings == ()


def test_a_launch_says_what_another_has_changed_and_that_no_trial_is_left_under_it(
    store: Store,
) -> None:
    made = declared(trials=6)
    study = store.studies.launch(made).study_id
    said: list[str] = []
    call = cast(Call, SimpleNamespace(switches=frozenset()))
    view = cast(View, SimpleNamespace(say=said.append, most_cells=100))
    row = store.reads.find(made.name)
    followed = FollowedStudy(call, store, row, made, view, Failures(store, row))
    followed.progress()
    store.studies.launch(replace(made, seed=made.seed + 1))
    followed.progress()
    assert said == [], "no revision"
    other = declared(trials=6, grid=(Axis("a", (0, 5)),))
    extended(store, other)
    followed.progress()
    followed.progress()
    (line,) = said
    assert "was changed by another launch: revision 2\n  changed grid a: [0,1] -> [0,5]" in line

    Suggesting(store, study).run()
    narrower = replace(other, search=(replace(X, high=0.5),))
    text = announcement(call, store, narrower, extended(store, narrower))
    assert "is changed; no trial is left to run under it: budget.trials=6 is spent; raise" in text
    fewer = replace(narrower, budget=Budget(5, 2, max_failures_at_start=None))
    text = announcement(call, store, fewer, extended(store, fewer))
    assert "6 trials are spent already, and budget.trials=5; raise budget.trials" in text
