"""Parameters that objectives ask for as they run, on a real PostgreSQL: written under the lease,
kept by every attempt.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from orchestrator.cli import main
from orchestrator.config import WorkerConfig
from orchestrator.errors import ConfigError, LeaseLostError, StoreUnavailableError
from orchestrator.model import Axis, Budget, Param
from orchestrator.search import values_by_hand
from orchestrator.store import Attempt, Store, WorkerLease
from orchestrator.store.ledger.suggested import Suggested
from orchestrator.worker.worker import Worker
from tests.support import optuna_style
from tests.support.asking import AskedStudy
from tests.support.studies import RUNNER, end, spec, start

THIS = "tests.support.optuna_style"
LR = Param("lr", 0.25, distribution_to_json(FloatDistribution(0.0, 1.0)))


def words(*choices: str, index: float = 0.0) -> Param:
    return Param("opt", index, distribution_to_json(CategoricalDistribution(choices)))


def begun(store: Store, lease: WorkerLease, cells: int = 2) -> Attempt:
    claim = start(store, lease, store.studies.launch(spec(cells=cells)).study_id)
    assert claim is not None
    return claim


def refuse(before: str) -> None:
    raise ValueError(before)


def test_a_parameter_is_written_to_optunas_trial_and_to_ours(
    store: Store, lease: WorkerLease
) -> None:
    claim = begun(store, lease)
    assert store.suggested.add(claim, LR, 0.25) == LR
    assert store.suggested.add(claim, words("a", "b", index=1.0), "b") == words("a", "b", index=1.0)
    trial = optuna.load_study(study_name="study", storage=store.url).trials[0]
    assert trial.params == {"a": 0, "x": 0.5, "lr": 0.25, "opt": "b"}
    assert trial.distributions["lr"] == FloatDistribution(0.0, 1.0)
    assert store.reads.trials(claim.study_id)[0].params == {
        "a": 0,
        "x": 0.5,
        "lr": 0.25,
        "opt": "b",
    }
    assert {p.name for news in store.news.running(claim.study_id) for p in news.params} == {
        "a",
        "x",
        "lr",
        "opt",
    }
    assert store.suggested.distributions(claim.study_id).keys() == {"a", "x", "lr", "opt"}
    assert store.doctor.examine().findings == ()


def test_a_parameter_that_the_trial_has_stays_as_it_is(store: Store, lease: WorkerLease) -> None:
    claim = begun(store, lease)
    store.suggested.add(claim, LR, 0.25)
    other = Param("lr", 0.75, LR.distribution)
    assert store.suggested.add(claim, other, 0.75, check_first=refuse) == LR
    assert store.reads.trials(claim.study_id)[0].params["lr"] == 0.25


def test_it_is_no_news_until_the_trial_ends(store: Store, lease: WorkerLease) -> None:
    claim = begun(store, lease)
    _, position = store.news.since(claim.study_id, 0)
    store.suggested.add(claim, LR, 0.25)
    assert store.news.since(claim.study_id, position) == ([], position)
    end(store, claim)
    ((news,), _) = store.news.since(claim.study_id, position)
    assert LR in news.params


def test_an_attempt_that_lost_its_trial_writes_no_parameter(
    store: Store, lease: WorkerLease
) -> None:
    claim = begun(store, lease)
    store.ledger.release(claim, "test")
    again = start(store, store.fleet.register(60), claim.study_id)
    assert again is not None
    with pytest.raises(LeaseLostError):
        store.suggested.add(claim, LR, 0.25)
    store.suggested.add(again, LR, 0.25)
    end(store, again)
    with pytest.raises(LeaseLostError):
        store.suggested.add(again, words("a"), "a")
    assert store.reads.trials(claim.study_id)[0].params.keys() == {"a", "x", "lr"}


def test_of_two_trials_that_are_the_first_to_use_a_name_one_sees_the_other(
    store: Store, lease: WorkerLease
) -> None:
    first = begun(store, lease)
    second = start(store, store.fleet.register(60), first.study_id)
    assert second is not None

    def add(claim: Attempt, param: Param) -> str:
        try:
            store.suggested.add(claim, param, "a", check_first=refuse)
        except ValueError as error:
            return str(error)
        return "written"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(add, (first, second), (words("a", "b"), words("a", "c"))), key=len)
    assert said[0] == "written"
    assert said[1] in (words("a", "b").distribution, words("a", "c").distribution)
    held = [trial.params.get("opt") for trial in store.reads.trials(first.study_id)]
    assert sorted(map(str, held)) == ["None", "a"], "the one that was refused wrote nothing"


# ------------------------------------------------------------------------------- with a real worker


def work(store: Store, runs: Path) -> int:
    """A worker in this process, to the end of the study."""
    settings = WorkerConfig(devices=["cpu"], idle_timeout_s=0.1, poll_s=0.05, heartbeat_s=1.0)
    return Worker(Store(store.url), settings, runs).run()


def test_an_attempt_after_a_kill_gets_the_answers_of_the_first(
    store: Store, tmp_path: Path
) -> None:
    opt = Axis("opt", ("adam", "sgd"))
    runner = replace(RUNNER, retries=1)
    made = spec(
        params={},
        grid=(opt,),
        search=(),
        budget=Budget(4, 2),
        objective={"_target_": f"{THIS}.dies_once"},
        runner=runner,
    )
    study = store.studies.launch(made).study_id
    assert work(store, tmp_path) == 4
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    for trial in trials:
        assert (
            trial.user_attrs["first"]
            == trial.user_attrs["second"]
            == [trial.params["x"], trial.params["kind"]]
        )
        assert trial.user_attrs["optimizer"] == trial.params["opt"]
        assert trial.value == trial.params["x"] + trial.params["more"]
    assert sorted(t.params["opt"] for t in trials) == ["adam", "adam", "sgd", "sgd"]
    assert [t.attempts for t in store.reads.trials(study)] == [2] * 4
    assert store.doctor.examine().findings == ()


def test_the_commands_know_parameters_that_were_asked_for(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    made = spec(
        params={},
        grid=(),
        search=(),
        budget=Budget(2),
        objective={"_target_": f"{THIS}.tells_its_lr"},
    )
    study = store.studies.launch(made).study_id

    def said(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*words, f"paths.data={tmp_path}"]) == code
        both = capsys.readouterr()
        return both.err if code else both.out

    assert "lr=0.125: not in this study's grid or search" in said(
        "enqueue", "study.name=study", "lr=0.125", code=2
    )
    assert work(store, tmp_path) == 2
    refused = said("enqueue", "study.name=study", "lr=5", code=2)
    assert (
        "lr=5: outside what this study's objective requests, float from 0.0001 to 1 (log)"
        in refused
    )
    assert "enqueued lr=0.125" in said("enqueue", "study.name=study", "lr=0.125")
    assert work(store, tmp_path) == 1
    assert store.reads.trials(study)[2].values == (0.125,)
    replayed = json.loads(said("replay", "--json", "trial=1"))
    assert (replayed["same"], replayed["later"]) == (True, ["lr"])
    best = json.loads(said("best", "--json", "trial=2"))["best"][0]
    assert (best["params"], best["overrides"]) == ({"lr": 0.125}, ["++lr=0.125"])
    out = tmp_path / "best.yaml"
    said("best", "trial=2", f"out={out}")
    assert yaml.safe_load(out.read_text()) == {"lr": 0.125}
    assert "running" in said("status")


def test_a_trial_that_is_run_again_gets_the_values_of_the_one_that_failed(
    store: Store, tmp_path: Path
) -> None:
    made = spec(
        params={},
        grid=(),
        search=(),
        budget=Budget(1, 1, None, 0),
        objective={"_target_": f"{THIS}.breaks_once"},
    )
    study = store.studies.launch(made).study_id
    assert work(store, tmp_path) == 1
    assert [r.number for r in store.interventions.retry(study, None)] == [0]
    assert work(store, tmp_path) == 1
    failed, again = store.reads.trials(study)
    assert (failed.state, again.state) == ("FAIL", "COMPLETE")
    assert failed.params["lr"] == again.params["lr"]


def test_other_choices_for_a_known_name_fail_the_trial_with_the_reason(
    store: Store, tmp_path: Path
) -> None:
    made = spec(
        params={},
        grid=(),
        search=(),
        objective={"_target_": f"{THIS}.changes_its_mind"},
        budget=Budget(2, 1, None, 0),
    )
    study = store.studies.launch(made).study_id
    work(store, tmp_path)
    first, second = store.reads.trials(study)
    assert (first.state, second.state) == ("COMPLETE", "FAIL")
    assert "parameter 'opt': CategoricalDistribution does not support dynamic value space" in str(
        second.failure
    )


def test_an_answer_waits_until_the_database_is_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Suggested.add, []

    def away_at_first(self: Suggested, *arguments: Any, **named: Any) -> Param:
        calls.append(arguments)
        if len(calls) < 3:
            raise StoreUnavailableError("away")
        return add(self, *arguments, **named)

    monkeypatch.setattr(Suggested, "add", away_at_first)
    made = spec(
        params={},
        grid=(),
        search=(),
        budget=Budget(1),
        objective={"_target_": f"{THIS}.tells_its_lr"},
    )
    study = store.studies.launch(made).study_id
    assert work(store, tmp_path) == 1
    (trial,) = store.reads.trials(study)
    assert (trial.state, trial.attempts, len(calls)) == ("COMPLETE", 1, 3)
    assert len({arguments[1] for arguments in calls}) == 1, "the same value each time"


def test_a_value_in_params_is_what_is_suggested_and_stands_in_every_trial(
    store: Store, tmp_path: Path
) -> None:
    made = spec(
        params={
            "batch_size": 128,
            "width3": 16,
            "depth": None,
            "base": 0.5,
            "lr": "${linear_scaling:${base},500,10}",
        },
        grid=(),
        search=(),
        budget=Budget(6),
        objective={"_target_": f"{THIS}.tuned"},
        runner=RUNNER,
    )
    store.studies.launch(made)
    assert work(store, tmp_path) == 6
    trials = optuna.load_study(study_name="study", storage=store.url).trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 6
    assert [(t.params["batch_size"], t.params["lr"]) for t in trials] == [(128, 0.01)] * 6
    assert {t.params.get("width3", 16) for t in trials} == {16}
    assert len({t.params["depth"] for t in trials}) > 1, "null leaves it open"
    assert trials[0].distributions["batch_size"] == CategoricalDistribution([32, 64, 128])


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch_size", 48, "one of 32, 64, 128"),
        ("batch_size", "64", "one of 32, 64, 128"),
        ("depth", 2.5, "int from 1 to 4"),
        ("lr", 0.5, r"float from 1e-05 to 0\.1 \(log\)"),
        ("lr", [0.01], r"float from 1e-05 to 0\.1 \(log\)"),
        ("depth", True, "int from 1 to 4"),
    ],
)
def test_a_value_in_params_that_the_objective_does_not_ask_for_is_refused(
    name: str, value: Any, wanted: str
) -> None:
    bare = spec(params={name: value}, grid=(), search=(), budget=Budget(1))
    trial = AskedStudy(bare).start(settled=Fixed({name: value}))
    with pytest.raises(
        ValueError, match=rf"params\.{name}=.*: outside what the objective requests, {wanted}"
    ):
        optuna_style.tuned(trial)


class Fixed:
    """What `Settled` says of plain params."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params

    def value(self, name: str) -> tuple[Any, ...]:
        return (self._params[name],) if name in self._params else ()


def test_a_value_by_hand_that_contradicts_the_one_in_params_is_refused_at_the_door() -> None:
    asked = {"lr": LR.distribution}
    assert values_by_hand({}, {"lr": 0.25}, asked, {"lr": 0.25}) == {"lr": 0.25}
    assert values_by_hand({}, {"lr": 0.25}, asked, {"lr": None}) == {"lr": 0.25}
    with pytest.raises(ConfigError, match=r"lr=0\.5: this study fixes it to params\.lr=0\.25"):
        values_by_hand({}, {"lr": 0.5}, asked, {"lr": 0.25})


def test_a_trial_shows_its_study_as_it_is_and_optunas_lightgbm_callback_goes_by_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    made = spec(
        params={},
        search=(),
        grid=(),
        budget=Budget(2),
        objective={"_target_": f"{THIS}.looks_at_its_study"},
        runner=RUNNER,
    )
    study = store.studies.launch(made).study_id
    assert work(store, tmp_path) == 2
    first, second = optuna.load_study(study_name="study", storage=store.url).trials
    assert (first.state.name, first.intermediate_values) == (
        "COMPLETE",
        dict.fromkeys(range(3), first.value),
    )
    seen = first.user_attrs["seen"]
    assert (seen["name"], seen["direction"], seen["metrics"]) == (
        "study",
        "MAXIMIZE",
        list(made.metrics),
    )
    assert seen["attrs"]["orchestrator:metrics"] == list(made.metrics)
    assert seen["best"] == "No trials are completed yet."
    assert seen["started"] == str(first.datetime_start)
    assert (seen["relative"], seen["distributions"]) == (
        {},
        {name: str(d) for name, d in first.distributions.items()},
    )
    assert second.user_attrs["seen"]["best"] == [0, first.value, first.params]
    assert (
        main(
            [
                "rerun",
                "study.name=study",
                "trial=1",
                f"paths.data={tmp_path}",
                "worker.devices=[cpu]",
            ]
        )
        == 0
    )
    assert store.reads.about("started", study, 99, ("maximize",)) is None, (
        "of a trial that was deleted meanwhile"
    )
