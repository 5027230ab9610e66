"""Probes as a user meets them: whole commands, real processes, a real database."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from orchestrator.store import Store
from tests.support.commands import CONFIG, Commands
from tests.support.invariants import query
from tests.support.studies import spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny", "study.name=probed")
MEASURES = "probes.p._target_=tests.support.measuring.measures"


def test_a_study_is_measured_first_and_searched_within_what_was_found(commands: Commands) -> None:
    plan = commands.check("launch", *TINY, MEASURES, "--dry-run")
    assert (
        "1 probe before the first trial of each cell, on each device type: 3 measurements" in plan
    )
    assert "  p: tests.support.measuring.measures" in plan

    said = commands.check("launch", *TINY, MEASURES)
    assert "probes: 3 of 3 measured" in said
    study = optuna.load_study(study_name="probed", storage=str(commands.url))
    assert len(study.trials) == 6
    asked = [trial.system_attrs["orchestrator:ask"] for trial in study.trials]
    assert [one["limits"] for one in asked] == [{"x": [0.2, 0.4]}] * 5 + [{}], "one is free"
    assert all(0.2 <= trial.params["x"] <= 0.4 for trial in study.trials[:5])
    declared = optuna.distributions.FloatDistribution(0.0, 1.0)
    assert {str(trial.distributions["x"]) for trial in study.trials} == {str(declared)}
    names = {found.filename for found in optuna.artifacts.get_all_artifact_meta(study)}
    assert names == {f"p-cell-{cell}-curve.txt" for cell in range(3)}

    status = commands.check("status", "study.name=probed")
    assert "probes: 3 of 3 measured" in status
    assert status.count("x from 0.2 to 0.4") == 3
    found = json.loads(commands.check("probe", "study.name=probed", "cell=1", "--json"))
    (one,) = found["probes"]
    assert (one["state"], one["found"]["bounds"]) == ("DONE", {"x": [0.2, 0.4]})
    shown = commands.check("probe", "study.name=probed", "cell=1")
    assert shown.startswith("probed: probes: 1 of 1 measured")
    log = commands.check("logs", "study.name=probed", "probe=p", "cell=1")
    assert log == "measuring a=1 with x=0.5 as number -1, attempt 1\n"
    replayed = commands.check("replay", "study.name=probed", "trial=3")
    assert "x within 0.2 to 0.4, as a probe found" in replayed
    assert "the same suggestion" in replayed
    replayed = commands.check("replay", "study.name=probed", "trial=5")
    assert "x in its declared range, in doubt of 0.2 to 0.4, as a probe found" in replayed
    assert "the same suggestion" in replayed
    by_hand = commands.check("enqueue", "study.name=probed", "a=1", "x=0.9")
    assert "x=0.9 lies outside what the cell's probe found: 0.2 to 0.4" in by_hand

    again = commands.check("probe", "study.name=probed", "cell=2", "--again")
    assert "1 probe will be measured again, before the next trial of its cell" in again
    log = commands.check("logs", "study.name=probed", "probe=p", "cell=2")
    assert log == "measuring a=2 with x=0.5 as number -1, attempt 1\n", "of the last one so far"
    more = commands.check("launch", *TINY, MEASURES, "budget.trials=9")
    assert "probes: 3 of 3 measured" in more
    attempts = [p["log"] for p in json.loads(commands.check("probe", "--json"))["probes"]]
    assert len(attempts) == 3
    commands.check("doctor")


def test_a_probe_that_fails_stops_nothing_and_says_why(commands: Commands) -> None:
    said = commands.check(
        "launch",
        *TINY,
        "a=0,1,2,3",
        "budget.trials=8",
        "probes.p._target_=tests.support.measuring.behaves_badly",
    )
    assert "finished: budget spent" in said
    assert "probes: 0 of 4 measured, 4 failed" in said
    assert "probe p failed in 1 cell, searched as declared: ValueError: nothing to measure" in said
    probes = json.loads(commands.check("probe", "--json"))["probes"]
    assert [one["state"] for one in probes] == ["FAILED"] * 4
    rules = (
        "ValueError: nothing to measure here",
        "bounds: y is not searched in this cell",
        "a probe returns a mapping, such as",
        "trial.report: the probe p runs before the cell's first trial, and has none",
    )
    for one, rule in zip(probes, rules, strict=True):
        assert rule in one["reason"]
    assert "Traceback" in Path(probes[0]["log"]).read_text()
    study = optuna.load_study(study_name="probed", storage=str(commands.url))
    (picture,) = optuna.artifacts.get_all_artifact_meta(study)
    assert picture.filename == "p-cell-0-curve.txt", "what it left before it failed"


def test_what_the_database_does_not_take_ends_the_probe_and_no_worker(
    commands: Commands, store: Store
) -> None:
    refuse = "ALTER TABLE study_system_attributes ADD CHECK (left(key, 10) <> 'artifacts:')"
    assert query(store.url, refuse) == []
    said = commands.check("launch", *TINY, MEASURES, "worker.count=1")
    assert "finished: budget spent" in said
    assert "probe p failed in 3 cells, searched as declared: the database does not take" in said


def test_one_whose_build_is_missing_in_a_module_called_objective_is_named_as_it_is(
    commands: Commands, tmp_path: Path
) -> None:
    functions = ("def train(cfg, trial): return 1.0", "def measure(cfg, trial, build): return {}")
    (tmp_path / "objective.py").write_text("\n".join(functions))
    done = replace(commands, cwd=tmp_path).run(
        "launch",
        *TINY,
        "objective._target_=objective.train",
        "probes.p._target_=objective.measure",
        "probes.p.build=objective.build",
    )
    assert "probes.p.build: 'objective.build': 'objective' has no attribute 'build'" in done.stderr


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("probes.p._target_=tests.support.measuring.nothing",), "probes.p._target_"),
        (
            (MEASURES, "probes.p.second=3"),
            "second",
        ),
        (
            (MEASURES, "probes.p.build=tests.support.measuring.builds"),
            "build",
        ),
        (
            (
                MEASURES,
                "worker.allow_targets=[tests.support.objectives.*,tests.support.training.*]",
            ),
            "probes.p._target_: 'tests.support.measuring.measures' may not run on this host",
        ),
    ],
)
def test_one_that_cannot_be_called_is_refused_before_anything_is_written(
    commands: Commands, words: tuple[str, ...], rule: str
) -> None:
    done = commands.run("launch", *TINY, *words)
    assert done.returncode != 0
    assert rule in done.stderr
    assert "Traceback" not in done.stderr
    store = Store(str(commands.url))
    assert store.reads.studies() == []
    store.rest()


def test_a_pause_gives_a_probe_back_and_resume_measures_it_again(
    commands: Commands, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waits = ("probes.p._target_=tests.support.measuring.waits", f"probes.p.gate={gate}")
    with commands.started("launch", *TINY, *waits, "worker.count=1") as launch:
        store = Store(str(commands.url))
        wait_until(
            lambda: any(
                row.held for s in store.reads.studies() for row in store.measured.of(s.study_id)
            )
        )
        commands.check("pause", "study.name=probed", "--now")
        study = store.reads.find("probed").study_id
        wait_until(lambda: store.measured.of(study)[0].state == "OPEN")
        assert store.measured.of(study)[0].reason == "stopped when asked"
        gate.touch()
        commands.check("resume", "study.name=probed")
        assert launch.wait() == 0
        assert [row.attempt for row in store.measured.of(study)] == [2, 1, 1]
        store.rest()


def test_a_stop_at_once_ends_a_probe_that_no_trial_waits_for(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    measure = {"p": {"_target_": "tests.support.measuring.waits", "gate": str(tmp_path / "gate")}}
    trains = {"_target_": "tests.support.training.quick"}
    study = store.studies.launch(spec(objective=trains, probes=measure)).study_id
    with commands.started("worker", "worker.devices=cpu", "worker.heartbeat_s=0.5"):
        wait_until(lambda: any(row.held for row in store.measured.of(study)))
        commands.check("stop", "study.name=study", "--now")
        wait_until(lambda: not any(row.held for row in store.measured.of(study)))
    assert store.measured.of(study)[0].reason == "stopped when asked"
    commands.check("delete", "study.name=study", "--yes")
