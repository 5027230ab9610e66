"""What a launch takes from other studies, on a real PostgreSQL: once, and for good."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution

from orchestrator import search
from orchestrator.cli import replay, warm_start
from orchestrator.errors import ConfigError
from orchestrator.faults import CRASH_AT
from orchestrator.model import ASK_KEY, Completed, Failed, StudySpec
from orchestrator.settings import sampler_settings
from orchestrator.store import Store, Ticket, WorkerLease
from orchestrator.worker.studies import Served
from tests.support.invariants import query
from tests.support.studies import begun, end, spec, suggestion, take


def source(store: Store, lease: WorkerLease) -> int:
    """A study of four cells and eight trials: the best are x = 0.2 in cells 1 and 2."""
    study = store.studies.launch(spec("source", cells=4, per_cell=2)).study_id
    for number in range(8):
        claim = take(store, lease, study)
        assert claim is not None
        x = 0.2 if number in (1, 2) else 0.1 * number
        value = 9.0 - number if number in (1, 2) else -float(number)
        end(store, begun(store, claim, lease, suggestion(claim, x=x)), Completed((value,)))
    return study


def target(**changes: Any) -> StudySpec:
    made = spec("target", cells=3, per_cell=2, sampler=sampler_settings("gp"))
    return replace(made, **{"warm_start": ("source",), **changes})


def launch(store: Store, wanted: StudySpec) -> tuple[int, warm_start.Taken]:
    taken = warm_start.taken(store, wanted)
    launched = store.studies.launch(wanted, priors=taken.new, enqueued=taken.enqueued)
    return launched.study_id, taken


def suggested(store: Store, study: int, claim: Ticket) -> Any:
    """As a worker suggests."""
    row = store.reads.find("target")
    stored = store.reads.spec(study)
    served = Served(row, stored, search.Search(stored), None)  # type: ignore[arg-type]
    served.priors = store.news.priors(study, stored.warm_start)
    served.forget()
    served.learn(store)
    return served.suggest(claim, 1)


def killed(url: str, wanted: StudySpec) -> None:
    """A launch that dies before it has committed; to be run in a process of its own."""
    os.environ[CRASH_AT] = "mid-launch"
    launch(Store(url), wanted)


def test_the_best_run_first_within_the_shares_and_once(store: Store, lease: WorkerLease) -> None:
    source(store, lease)
    wanted = target(enqueue_best=3)
    doomed = multiprocessing.get_context("fork").Process(target=killed, args=(store.url, wanted))
    doomed.start()
    doomed.join()
    assert doomed.exitcode == -signal.SIGKILL
    assert [row.name for row in store.reads.studies()] == ["source"]
    study, taken = launch(store, wanted)
    assert [(e.cell, e.number) for e in taken.enqueued] == [(1, 1), (2, 2), (0, 0)]
    again, nothing = launch(store, wanted)
    assert (again, nothing.new, [*nothing.enqueued]) == (study, [], [])
    claims = []
    for _ in range(6):
        claim = take(store, lease, study)
        assert claim is not None
        claims.append(claim)
        made = begun(store, claim, lease, suggested(store, study, claim))
        # one that fails gives its place to an ordinary trial
        end(store, made, Failed("exception", "x") if len(claims) == 1 else None)
    assert [(c.cell, c.fixed) for c in claims[:4]] == [
        (1, {"x": 0.2}),
        (1, None),
        (2, {"x": 0.2}),
        (0, {"x": 0.0}),
    ]
    last = take(store, lease, study)
    assert last is not None
    end(store, begun(store, last, lease, suggested(store, study, last)))
    assert take(store, lease, study) is None, "they are part of the budget"
    trials = optuna.load_study(study_name="target", storage=store.url).trials
    cells = [t.params["a"] for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(cells) == [0, 0, 1, 1, 2, 2], "exactly per_cell"
    assert trials[0].user_attrs["orchestrator:copied_from"] == {"study": "source", "trial": 1}
    assert "orchestrator:copied_from" not in trials[1].user_attrs
    assert store.doctor.examine().findings == ()


def test_replay_and_workers_see_what_was_copied_whatever_becomes_of_the_source(
    store: Store, lease: WorkerLease
) -> None:
    there = source(store, lease)
    study, _ = launch(store, target())
    before = store.news.priors(study, ["source"])
    assert [o.number for o in before[0].observations] == [0, 1, 2, 4, 5, 6]
    assert before[0].left_out == {"with a outside what this study allows": 2}
    claim = take(store, lease, study)
    assert claim is not None
    first = suggested(store, study, claim)
    assert first.values["x"] == pytest.approx(0.2, abs=0.15)
    assert first.system_attrs[ASK_KEY]["warm_start"] == ["source"]
    end(store, begun(store, claim, lease, first))
    optuna.delete_study(study_name="source", storage=store.url)
    query(store.url, "DELETE FROM orchestrator.study WHERE study_id = %s RETURNING 1", there)
    row, stored = store.reads.find("target"), store.reads.spec(study)
    trial = replay.with_suggestion(store, row, 0)
    again = replay._suggest_again(store, row, stored, stored, trial, trial.system_attrs[ASK_KEY])
    assert again.params == first.params
    # Without the source from now on: earlier trials keep what they knew.
    changed = store.studies.launch(target(warm_start=())).changes
    assert changed == ("warm_start: source -> none",)
    stored = store.reads.spec(study)
    again = replay._suggest_again(store, row, stored, stored, trial, trial.system_attrs[ASK_KEY])
    assert again.params == first.params
    # And with it again: the copy is still there, the source is not.
    launch(store, target())
    assert store.news.priors(study, ["source"]) == before


def test_a_study_of_plain_optuna_is_a_source_too(store: Store) -> None:
    plain = optuna.create_study(study_name="source", storage=store.url, direction="maximize")
    plain.set_metric_names(["accuracy"])
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(-1.0, 2.0)}
    for x in (-0.5, 0.25, 0.75):
        plain.add_trial(
            optuna.trial.create_trial(params={"x": x}, distributions=space, values=[-abs(x - 0.3)])
        )
    study, taken = launch(store, target(enqueue_best=1))
    (prior,) = store.news.priors(study, ["source"])
    assert [dict(o.values) for o in prior.observations] == [{"x": 0.25}, {"x": 0.75}]
    assert "its metric is accuracy, not value" in prior.remark
    assert taken.enqueued == []
    assert taken.not_enqueued == {"without a value of a": 2}


def test_what_cannot_be_a_source_is_refused_before_anything_is_written(
    store: Store, lease: WorkerLease
) -> None:
    source(store, lease)
    with pytest.raises(ConfigError, match=r"no study of this name \(did you mean 'source'\?\)"):
        launch(store, target(warm_start=("sorce",)))
    with pytest.raises(ConfigError, match="maximize there and minimize here"):
        launch(store, target(directions=("minimize",)))
    assert [row.name for row in store.reads.studies()] == ["source"]
    launch(store, target(enqueue_best=1))
    with pytest.raises(ConfigError, match="was created with 1"):
        launch(store, target(enqueue_best=2))
