"""Chains of stages in the ledger: a stage begins once, with what it inherits, whoever asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import psycopg2
import psycopg2.extras
import pytest

from orchestrator.cli import stage_words
from orchestrator.errors import ConfigError
from orchestrator.model import Budget, Completed, Searched, StudySpec
from orchestrator.stages import Chain, Inherited, Inherits, Stage, inherit
from orchestrator.store import Launched, NotBegun, Store, WorkerLease
from tests.support.studies import end, spec, start

AT_ONCE = 4


def chain(name: str = "chain", **changes: object) -> Chain:
    first = spec(f"{name}.first", cells=2)
    second = replace(
        first, name=f"{name}.second", grid=(), budget=Budget(2, max_failures_at_start=None)
    )
    stages = (
        Stage("first", first),
        Stage("second", second, Inherits(("a",), {"x": 0.5})),
        Stage("third", replace(second, name=f"{name}.third"), Inherits("best")),
    )
    return replace(Chain(name, stages), **changes)  # type: ignore[arg-type]


def finish(store: Store, lease: WorkerLease, study_id: int) -> None:
    while (claim := start(store, lease, study_id)) is not None:
        end(store, claim, Completed((0.5,)))


def begun(outcome: Launched | NotBegun) -> Launched:
    assert isinstance(outcome, Launched)
    return outcome


def second_of(store: Store, declared: Chain, x: float = 0.5) -> Inherited:
    """What the second stage inherits of a best trial with this `x`."""
    before = store.reads.spec(store.reads.find(declared.stages[0].spec.name).study_id)
    return inherit(declared.stages[1], before, Inherited(), {"a": 1, "x": x}, 1)


def test_a_stage_begins_once_however_many_ask_at_the_same_time(
    database_url: str, store: Store, lease: WorkerLease
) -> None:
    declared = chain()
    starting = Barrier(AT_ONCE)

    def launch(_: int) -> Launched | NotBegun:
        own = Store(database_url)
        starting.wait()
        try:
            return own.stages.launch(declared, 0, Inherited())
        finally:
            own.rest()

    def go_on(k: int) -> Launched | NotBegun:
        own = Store(database_url)
        inherited = second_of(own, declared, x=0.3 + 0.1 * k)  # each believes something else
        starting.wait()
        try:
            return own.stages.go_on(declared, 1, inherited)
        finally:
            own.rest()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        first = [begun(outcome) for outcome in threads.map(launch, range(AT_ONCE))]
        assert sum(one.created for one in first) == 1
        assert {one.open_tickets for one in first} == {2}
        finish(store, lease, first[0].study_id)
        second = list(threads.map(go_on, range(AT_ONCE)))
    (made,) = [one for one in second if isinstance(one, Launched)]
    assert [one for one in second if one is not made] == [NotBegun("moved")] * (AT_ONCE - 1)
    row = store.chains.find("chain")
    assert row is not None
    assert [stage.study for stage in row.begun] == ["chain.first", "chain.second"]
    stored = store.reads.spec(made.study_id)
    assert stored.to_json() == row.begun[1].inherited.of(declared.stages[1]).to_json()
    assert stored.params == {"a": 1, "x": 0.5}
    (x,) = stored.search
    assert (x.low, x.high) == pytest.approx((row.begun[1].inherited.search[0].low, x.high))
    assert store.reads.find("chain").study_id == made.study_id, "the newest stage"
    with pytest.raises(ConfigError, match="is the stage second of chain, whose budget bounds"):
        store.studies.launch(stored)
    assert store.doctor.examine("chain").findings == ()
    assert store.doctor.examine("chain").studies == 2


def test_no_stage_begins_before_the_one_before_it_is_finished(store: Store) -> None:
    declared = chain()
    first = begun(store.stages.launch(declared, 0, Inherited()))
    assert store.stages.go_on(declared, 1, second_of(store, declared)) == NotBegun("moved")
    assert store.stages.launch(declared, 1, second_of(store, declared)) == NotBegun("moved")
    store.interventions.stop(first.study_id, "me")
    store.ledger.end_studies()
    assert isinstance(store.stages.go_on(declared, 1, second_of(store, declared)), Launched)


def test_a_person_holds_the_stages_that_have_not_begun(store: Store, lease: WorkerLease) -> None:
    declared = chain()
    finish(store, lease, begun(store.stages.launch(declared, 0, Inherited())).study_id)
    store.stages.hold("chain", "STOPPED", "stopped by me")
    inherited = second_of(store, declared)
    assert store.stages.go_on(declared, 1, inherited) == NotBegun("stopped", "stopped by me")
    with pytest.raises(ConfigError, match=r"a chain of stages.* warm_start=chain\.first$"):
        store.news.source("chain")
    store.stages.hold("chain", "PAUSED", "paused by me")
    second = begun(store.stages.go_on(declared, 1, inherited))
    assert store.reads.find("chain").state == "PAUSED"
    assert start(store, lease, second.study_id) is None
    again = begun(store.stages.launch(declared, 1, inherited))
    assert again.changes[0] == "study: paused by me -> active"
    row = store.chains.find("chain")
    assert row is not None
    assert row.state == "ACTIVE"
    finish(store, lease, second.study_id)
    over = "chain chain: stage 2 of 3 (second); that stage is over: "
    alone = "no launch follows it; to go on: the same launch again"
    for follows, settled, said in (
        (True, False, "the launch that follows it goes on"),
        (False, False, f"{alone}, or an answer to the one that asks"),
        (False, True, alone),
    ):
        store.studies.follow(second.study_id, 60.0 if follows else 0.0)
        if settled:
            store.stages.settle(second.study_id)
        row = store.chains.find("chain")
        assert row is not None
        assert stage_words.headline(row) == over + said
    with pytest.raises(ConfigError, match="no chain of this name"):
        store.stages.hold("other", "PAUSED", "paused by me")


def test_the_hours_of_a_chain_bound_every_stage(
    database_url: str, store: Store, lease: WorkerLease
) -> None:
    declared = chain(hours=1.0)
    first = begun(store.stages.launch(declared, 0, Inherited()))
    left = store.reads.progress(store.reads.find("chain"), maximize=True).seconds_left
    assert left is not None
    assert 3500 < left <= 3600
    finish(store, lease, first.study_id)
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE orchestrator.chain SET deadline_at = clock_timestamp()")
    connection.close()
    assert store.stages.go_on(declared, 1, second_of(store, declared)) == NotBegun("late")
    assert isinstance(store.stages.launch(declared, 1, second_of(store, declared)), Launched)


def test_a_name_is_a_studys_or_a_chains(store: Store) -> None:
    store.studies.launch(spec("taken"))
    with pytest.raises(ConfigError, match="has a study of this name, and a chain"):
        store.stages.launch(chain("taken"), 0, Inherited())
    store.studies.launch(chain("half").stages[0].spec)
    with pytest.raises(ConfigError, match="one of this name that is no stage of it"):
        store.stages.launch(chain("half"), 0, Inherited())
    assert store.chains.find("half") is None, "nothing was written"
    store.stages.launch(chain(), 0, Inherited())
    with pytest.raises(ConfigError, match="has a chain of stages of this name"):
        store.studies.launch(spec("chain"))
    with pytest.raises(ConfigError, match=r"did you mean 'chain'"):
        store.reads.find("chian")


def larger(stage: Stage, trials: int) -> Stage:
    return replace(
        stage, spec=replace(stage.spec, budget=replace(stage.spec.budget, trials=trials))
    )


def test_a_declaration_may_change_where_nothing_depends_on_it(
    store: Store, lease: WorkerLease
) -> None:
    declared = chain()
    one, two, three = declared.stages
    finish(store, lease, begun(store.stages.launch(declared, 0, Inherited())).study_id)
    inherited = second_of(store, declared)

    def launch(*stages: Stage, most: int | None = None) -> Launched:
        changed = replace(declared, stages=stages, most=most)
        return begun(store.stages.launch(changed, 1, inherited))

    assert launch(one, two, larger(three, 5)).changes == (
        "stage third, which has not begun: budget.trials: 2 -> 5",
    )
    assert launch(one, two).changes == ("stage 3: third -> none",)
    assert launch(one, larger(two, 3), three).changes == (
        "budget.trials: 2 -> 3",
        "stage 3: none -> third",
    )
    assert launch(larger(one, 9), larger(two, 3), three).changes == (
        "nothing in stage first, which is over: not budget.trials: 2 -> 9",
    )
    row = store.chains.find("chain")
    assert row is not None
    assert row.stages[0]["spec"]["budget"]["trials"] == 2
    with pytest.raises(ConfigError, match="are over had 2 trials, and the others have 8; raise"):
        launch(larger(one, 1), larger(two, 3), larger(three, 5), most=9)
    with pytest.raises(ConfigError, match=r"stages\.second: this stage has begun, and what it inh"):
        launch(one, replace(larger(two, 3), inherits=Inherits(("a",), {"x": 0.4})), three)
    with pytest.raises(ConfigError, match=r"stages\[1\]: the stage second of chain has begun"):
        launch(one, three, two)
    with pytest.raises(
        ConfigError,
        match=r"^stages\.second\.budget\.trials=2 is too small: .* set "
        r"stages\.second\.budget\.trials to at least 4",
    ):
        launch(one, replace(two, spec=replace(two.spec, budget=Budget(2, per_cell=4))), three)
    other = replace(one, spec=replace(one.spec, search=(Searched("x", "float", 0.0, 2.0),)))
    with pytest.raises(
        ConfigError, match=r"stages\.first: this stage is over, and had a different"
    ):
        launch(other, larger(two, 3), three)


def test_the_doctor_sees_what_is_lost_of_an_inheritance(
    database_url: str, store: Store, lease: WorkerLease
) -> None:
    declared = chain()
    finish(store, lease, begun(store.stages.launch(declared, 0, Inherited())).study_id)
    second = begun(store.stages.go_on(declared, 1, second_of(store, declared)))
    assert store.doctor.examine().findings == ()
    spoilt: StudySpec = replace(
        store.reads.spec(second.study_id), params={"a": 0}, search=declared.stages[1].spec.search
    )
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE orchestrator.study SET spec = %s WHERE study_id = %s",
            (psycopg2.extras.Json(spoilt.to_json()), second.study_id),
        )
        cursor.execute(
            "UPDATE orchestrator.stage SET began_at = began_at - interval '1 h' WHERE ordinal = 1"
        )
    connection.close()
    found = {finding.kind: finding.message for finding in store.doctor.examine("chain").findings}
    assert found == {
        "inheritance lost": "stage second of chain inherited a=1, but its study has 0",
        "range lost": "stage second of chain searches x from 0.25 to 0.75, but its study does not",
        "stage out of order": "stage second of chain began before stage first, which comes before"
        " it",
    }


def test_a_chain_is_deleted_after_its_stages(store: Store, lease: WorkerLease) -> None:
    declared = chain()
    first = begun(store.stages.launch(declared, 0, Inherited()))
    finish(store, lease, first.study_id)
    with pytest.raises(ConfigError, match="to be deleted first"):
        store.stages.delete("chain")
    store.stages.hold("chain", "STOPPED", "being deleted by me")
    with pytest.raises(ConfigError, match="this chain is being deleted by me; complete that with"):
        store.stages.launch(declared, 0, Inherited())
    store.deletion.begin(first.study_id, "me")
    store.deletion.finish(first.study_id)
    store.stages.delete("chain")
    store.stages.delete("chain")
    assert store.chains.all() == []
