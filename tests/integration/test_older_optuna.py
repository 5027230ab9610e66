"""A storage that an Optuna before 5 made or writes to: it stored local times where 5 stores UTC,
and no revision tells.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from orchestrator.cli import main
from orchestrator.store import Store
from tests.support.invariants import query
from tests.support.studies import end, spec, start

OTHERS = "trial_id NOT IN (SELECT optuna_trial_id FROM orchestrator.trial)"


def write_beside_optuna(store: Store, study: int) -> None:
    """Trials of ours, and between them some of plain Optuna, one of which was enqueued and one has
    times of long ago.
    """
    lease = store.fleet.register(60)
    storage = optuna.storages.RDBStorage(store.url)
    plain = optuna.load_study(study_name="study", storage=storage)
    plain.enqueue_trial({})
    for _ in range(4):
        claim = start(store, lease, study)
        assert claim is not None
        end(store, claim)
        plain.tell(plain.ask(), 1.0)
    old = optuna.trial.create_trial(value=1.0)
    plain.add_trial(old)
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim)
    query(
        store.url,
        "UPDATE trials SET datetime_start = '2020-01-01', datetime_complete = '2020-01-02' "
        f"WHERE {OTHERS} AND trial_id = (SELECT max(trial_id) FROM trials WHERE {OTHERS})",
    )
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("hours", "noted"),
    [(0, False), (-5, True), (5.5, True), (-14, True)],
    ids=["UTC", "New York", "Kolkata", "far west"],
)
def test_trials_that_carry_local_times_are_noticed(store: Store, hours: float, noted: bool) -> None:
    study = store.studies.launch(spec(cells=6)).study_id
    write_beside_optuna(store, study)
    assert store.doctor.examine().notes == ()
    query(
        store.url,
        "UPDATE trials SET datetime_start = datetime_start + make_interval(mins => "
        f"{int(hours * 60)}), datetime_complete = datetime_complete + make_interval(mins => "
        f"{int(hours * 60)}) WHERE {OTHERS} AND datetime_start > '2021-01-01'",
    )
    found = store.doctor.examine("study")
    assert found.findings == ()
    assert [note.kind for note in found.notes] == (["local time"] if noted else [])
    if noted:
        assert "of its trials carry times that are not UTC" in found.notes[0].message
    assert store.doctor.examine("another").notes == ()


def test_a_trial_that_one_version_began_and_the_other_ended_is_noticed(store: Store) -> None:
    storage = optuna.storages.RDBStorage(store.url)
    plain = optuna.create_study(study_name="plain", storage=storage)
    plain.tell(plain.ask(), 1.0)
    storage.engine.dispose()
    assert store.doctor.examine().notes == ()
    query(store.url, "UPDATE trials SET datetime_start = datetime_start + interval '9 hours'")
    (note,) = store.doctor.examine().notes
    assert (note.study, note.kind) == ("plain", "local time")


def test_tables_that_an_older_optuna_made_are_told_of_where_it_matters(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = store.studies.launch(spec(cells=6)).study_id
    query(store.url, "UPDATE version_info SET library_version = '4.9.0'")
    lease = store.fleet.register(60)
    claim = start(store, lease, study)
    assert claim is not None
    end(store, claim)
    assert store.doctor.examine().notes == (), "ours were UTC always"
    write_beside_optuna(store, study)
    (note,) = store.doctor.examine().notes
    assert note.kind == "older Optuna"
    monkeypatch.setenv("ORCHESTRATOR_STORAGE_URL", store.url)
    monkeypatch.setenv("ORCHESTRATOR_DATA_DIR", str(tmp_path))
    store.rest()
    assert main(["db", "upgrade"]) == 0
    assert f"note: {note.message}" in capsys.readouterr().out
    query(store.url, "UPDATE version_info SET library_version = '5.0.0'")
    assert main(["db", "upgrade"]) == 0
    assert "note" not in capsys.readouterr().out
