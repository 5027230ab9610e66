"""Disks that fill up and directories that vanish under the hands of workers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import CONFIG, Commands
from tests.support.fleet import Fleet
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

OBJECTIVE = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.8, "steps": 8}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    point = tmp_path / "disk"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(point)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def _fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError:
                return ballast


def _covered_once(store: Store, study: str, cells: int) -> None:
    """Every cell has its one complete trial, whatever failed on the way, and nothing
    runs any more.
    """
    trials = invariants.plain_trials(store.url, study)
    complete = [t.params["a"] for t in trials if t.state.name == "COMPLETE"]
    assert sorted(complete) == list(range(cells))
    assert {t.state.name for t in trials} <= {"COMPLETE", "FAIL"}
    invariants.check_ledger(store.url, study)


def test_a_run_directory_deleted_under_a_trial_costs_that_trial_and_not_the_worker(
    commands: Commands, store: Store
) -> None:
    study_id = store.studies.launch(spec(cells=3, objective=OBJECTIVE, runner=RUNNER)).study_id
    with Fleet(commands) as fleet:
        worker = fleet.start()
        mark = wait_until(lambda: list(commands.directory.glob("runs/study-*/trial-1/**/step")))[0]
        shutil.rmtree(next(parent for parent in mark.parents if parent.name == "trial-1"))
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        fleet.dismiss()
        assert worker.process.exitcode == 0
    _covered_once(store, "study", 3)
    failures = [str(t.failure) for t in store.reads.trials(study_id) if t.state == "FAIL"]
    assert all(
        "FileNotFoundError" in failure and "output.log" in failure for failure in failures
    ), failures


@pytest.mark.chaos("long")
def test_a_disk_that_fills_up_under_a_trial_is_named_and_the_study_goes_on_elsewhere(
    commands: Commands, store: Store, small_disk: Path, tmp_path: Path
) -> None:
    study_id = store.studies.launch(spec(cells=3, objective=OBJECTIVE, runner=RUNNER)).study_id
    with Fleet(commands) as fleet:
        full = fleet.start(f"paths.runs={small_disk}")
        wait_until(lambda: list(small_disk.glob("study-*/trial-0/attempt-*/**/step")))
        _fill(small_disk)
        code = full.ended()
        full.expected_dead = True
        assert code == 1
        assert f"paths.runs={small_disk}: " in full.text()
        assert "No space left on device" in full.text()
        assert "Traceback" not in full.text()
        fleet.start()
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        fleet.dismiss()
    _covered_once(store, "study", 3)
    failures = [str(t.failure) for t in store.reads.trials(study_id) if t.state == "FAIL"]
    assert all("No space left" in failure for failure in failures), failures


@pytest.mark.chaos("long")
def test_an_embedded_database_whose_data_is_removed_in_use_is_a_clear_error(tmp_path: Path) -> None:
    # PostgreSQL looks after its data once a minute.
    commands = Commands(None, tmp_path)
    words = ("experiment=tiny", f"--config-dir={CONFIG}", "worker.count=1", "budget.trials=300")
    with commands.started(
        "launch", *words, "objective._target_=tests.support.training.slow", "+objective.seconds=2"
    ) as launch:
        data = tmp_path / "postgres" / "pgdata"
        wait_until(lambda: list(tmp_path.glob("runs/tiny-*/trial-1")), 60)
        shutil.rmtree(data, ignore_errors=True)
        code = launch.wait(200)
        said = launch.stdout.read() if launch.stdout else ""
    assert code not in (0, None), said
    assert "Traceback" not in said
    assert str(data.parent) in said, "it names the directory"
