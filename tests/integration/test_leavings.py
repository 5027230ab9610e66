"""What a trial leaves in the database: facts, and the records of its artifacts, under the lease and
at no extra statement.
"""

from __future__ import annotations

import json
import shlex
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.artifacts import get_all_artifact_meta

from orchestrator.cli import main
from orchestrator.config import WorkerConfig
from orchestrator.errors import LeaseLostError
from orchestrator.model import Completed, Failed, Report
from orchestrator.store import Store, WorkerLease
from orchestrator.worker.shutdown import Drain
from orchestrator.worker.worker import Worker
from tests.support.counting import count_messages
from tests.support.studies import PLACE, RUNNER, spec, start
from tests.support.waiting import wait_until

FACTS: dict[str, Any] = {
    "host": "far",
    "git": {"commit": "0123456789abcdef", "dirty": True, "directory": "/code"},
    "device": {"name": "H100", "key": "GPU-1"},
    "seed": 5,
    "duration_s": 1.5,
    "peak_memory_bytes": 123_400_000,
    "peak_device_bytes": None,
}
SHOWN = {
    "orchestrator:host": "far",
    "orchestrator:device": "H100",
    "orchestrator:commit": "0123456789ab-dirty",
    "orchestrator:peak_memory_mb": 123.4,
    "orchestrator:duration_s": 1.5,
}


def record(artifact_id: str, name: str = "curve.csv") -> dict[str, Any]:
    return {"artifact_id": artifact_id, "filename": name, "mimetype": "text/csv", "encoding": None}


def trials_of(store: Store) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="study", storage=store.url).trials


def test_facts_of_the_last_attempt_are_shown_and_cost_no_round_trip(
    store: Store, lease: WorkerLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_messages(monkeypatch)
    study = store.studies.launch(spec(cells=3)).study_id
    counts = []
    for facts in (None, FACTS):
        claim = start(store, lease, study)
        assert claim is not None
        counted.take()
        store.ledger.finish(claim, Completed((1.0,)), Report(facts=facts or {}))
        counts.append(counted.take())
    assert counts[0] == counts[1]
    assert [trial.user_attrs for trial in trials_of(store)] == [{}, SHOWN]
    assert [store.reads.attempts(study, number)[0].facts for number in (0, 1)] == [None, FACTS]


def test_every_attempt_keeps_its_own_facts(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1, runner=replace(RUNNER, retries=1))).study_id
    first = start(store, lease, study)
    assert first is not None
    store.ledger.release(first, "told to end", facts=FACTS | {"host": "one"})
    second = start(store, lease, study)
    assert second is not None
    assert store.ledger.retry(second, Failed("exit", "lost"), Report(facts=FACTS | {"host": "two"}))
    third = start(store, lease, study)
    assert third is not None
    store.ledger.finish(third, Failed("oom", "too much"), Report(facts=FACTS | {"host": "three"}))
    told = [(row.outcome, (row.facts or {})["host"]) for row in store.reads.attempts(study, 0)]
    assert told == [("interrupted", "one"), ("retried", "two"), ("failed", "three")]
    assert trials_of(store)[0].user_attrs["orchestrator:host"] == "three"


def test_artifacts_are_known_to_optuna_until_a_dashboard_deletes_them(
    store: Store, lease: WorkerLease
) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    claim = start(store, lease, study)
    assert claim is not None
    assert claim.optuna_trial_id is not None
    store.ledger.report(claim, Report({}, {}, artifacts={"a": record("a")}))
    store.ledger.finish(
        claim, Completed((1.0,)), Report(artifacts={"a": record("a", "x"), "b": record("b")})
    )
    (trial,) = trials_of(store)
    storage = optuna.storages.get_storage(store.url)
    told = [
        (meta.artifact_id, meta.filename) for meta in get_all_artifact_meta(trial, storage=storage)
    ]
    assert sorted(told) == [("a", "curve.csv"), ("b", "curve.csv")]
    connection = sa.create_engine(store.url).connect()
    with connection.begin():  # as optuna-dashboard does
        null = {"value": json.dumps(json.dumps(None))}
        connection.execute(
            sa.text(
                "UPDATE trial_system_attributes SET value_json = :value WHERE key = 'artifacts:a'"
            ),
            null,
        )
    connection.close()
    assert store.reads.artifacts(study, [0]) == {0: [record("b")]}


def test_an_attempt_that_lost_its_trial_adds_no_artifact(store: Store, lease: WorkerLease) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    lost = start(store, lease, study)
    assert lost is not None
    store.ledger.release(lost, "gone")
    assert store.ledger.claim_one(lease, study, PLACE) is not None
    with pytest.raises(LeaseLostError):
        store.ledger.report(lost, Report({}, {}, artifacts={"a": record("a")}))
    assert store.reads.artifacts(study, [0]) == {0: []}


def test_a_worker_writes_what_a_trial_leaves_and_rerun_reproduces_it_bit_for_bit(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = {"lr": 0.1, "dropout": 0.3, "a": 0, "x": 0.0}
    objective = {"_target_": "tests.support.leaving.trains"}
    store.studies.launch(spec(cells=1, params=params, metrics=("loss",), objective=objective))
    settings = WorkerConfig(devices=["cpu"], threads=1, max_trials=1)
    assert Worker(store, settings, tmp_path / "runs", artifacts=f"{tmp_path}/artifacts").run() == 1

    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    before = store.reads.find("study"), trials_of(store)
    assert main(["rerun", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["same"] is True
    assert again["values"] == again["stored"] != {"loss": 0.0}
    assert again["differs"] == []
    assert (store.reads.find("study"), trials_of(store)) == before
    (kept,) = (tmp_path / "artifacts").iterdir()

    assert main(["best", "--json"]) == 0
    (best,) = json.loads(capsys.readouterr().out)["best"]
    assert best["seed"] == again["seed"] == best["facts"]["seed"]
    assert [record["artifact_id"] for record in best["artifacts"]] == [kept.name]
    assert best["rerun"] == "orchestrator rerun study.name=study trial=0"

    connection = sa.create_engine(store.url).connect()
    with connection.begin():
        connection.execute(sa.text("UPDATE trial_values SET value = value + 1e-15"))
    connection.close()
    monkeypatch.setattr(
        "orchestrator.cli.rerun._run", lambda *_: _Ran(again["values"]["loss"], tmp_path)
    )
    assert main(shlex.split(best["rerun"])[1:]) == 1
    said = capsys.readouterr().out
    assert "not reproduced" in said
    assert ", but the trial has 0." in said


def test_a_trial_that_is_given_back_keeps_what_it_stored_last(store: Store, tmp_path: Path) -> None:
    study = store.studies.launch(
        spec(cells=1, objective={"_target_": "tests.support.leaving.stores_when_stopped"})
    ).study_id
    worker = Worker(
        store,
        WorkerConfig(devices=["cpu"], threads=1),
        tmp_path / "runs",
        artifacts=f"{tmp_path}/artifacts",
    )
    running = threading.Thread(target=worker.run)
    running.start()
    wait_until(lambda: list(tmp_path.glob("runs/study-*/trial-0/attempt-1-*/checkpoints/mark")), 60)
    worker.drain(Drain.STOP)
    running.join(60)
    (kept,) = (tmp_path / "artifacts").iterdir()
    assert [artifact["artifact_id"] for artifact in store.reads.artifacts(study, [0])[0]] == [
        kept.name
    ]
    (attempt,) = store.reads.attempts(study, 0)
    assert attempt.outcome == "interrupted"
    assert attempt.facts is not None
    assert attempt.facts["duration_s"] > 0


class _Ran:
    """An attempt that ended with a value, on a machine of another kind."""

    def __init__(self, value: float, directory: Path) -> None:
        self.outcome = Completed((value,))
        self.log_path = directory / "output.log"
        self.facts: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trial=7"], "trial=7: study study has no trial with that number run by this program"),
        (["trial=x"], "trial=x: must be a whole number or best"),
        (["trial=0"], "trial=0: it has not ended yet"),
        (["study.name=study", "trial=best"], "study study has no complete trial yet"),
        ([], "study study has no complete trial yet"),
    ],
)
def test_a_trial_that_cannot_run_again_is_refused_in_one_line(
    store: Store,
    lease: WorkerLease,
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    start(store, lease, store.studies.launch(spec(cells=1)).study_id)
    assert main(["rerun", *words]) != 0
    assert capsys.readouterr().err == f"orchestrator: error: {line}\n"
