"""What one sees while a study is under way, and what workers and a launch say of what is
missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support.commands import CONFIG, Commands, line_with
from tests.support.scratch import scratch_directory
from tests.support.studies import spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny")
SOON = ("worker.poll_s=0.1", "worker.heartbeat_s=0.5")
EPOCHS = {"_target_": "tests.support.training.epochs", "count": 400, "seconds": 0.1}


def test_status_tells_parameters_step_and_pace_of_a_running_trial(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(spec(cells=1, objective=EPOCHS))
    with commands.started("worker", *SOON):
        wait_until(
            lambda: any((trial.last or 0) > 3 for trial in store.watch.running(study.study_id)), 60
        )
        (trial,) = json.loads(commands.check("status", "--json"))["running"]
        assert trial["step"] > 3
        assert trial["value"] == pytest.approx(trial["step"] / 10)
        assert 0.05 < trial["seconds_per_step"] < 5
        assert trial["seconds_left"] is None, "nobody knows how many steps it has"
        said = commands.check("status")
        x = trial["params"]["x"]
        assert re.search(rf"\n +0 +\d+ s +\d+ +[\d.]+ +[\d.]+ s +1 +1 +a=0 x={x:.3g}", said), said
        assert re.search(r"\n1 .* trial 0 of study\n", said), said
        assert not re.search(r"(?m) +$", said), "no spaces at the end of a line"


def test_status_lists_the_newest_studies_and_older_ones_that_are_active(
    commands: Commands, store: Store
) -> None:
    for k in range(4):
        store.studies.launch(spec(f"s{k}", cells=2))
    for k in (0, 2):
        commands.check("stop", f"study.name=s{k}")
    said = commands.check("status", "n=1")
    assert re.findall(r"(?m)^>? +(s\d) +0/2 ", said) == ["s3", "s1"]
    assert "… 2 older studies: orchestrator status n=all" in said
    assert re.findall(r"(?m)^>? +(s\d) +0/\d ", commands.check("status", "n=all")) == [
        *("s3", "s2", "s1", "s0")
    ]
    named = json.loads(commands.check("status", "--json", "study.name=s0"))
    assert [each["name"] for each in named["studies"]] == ["s0"]
    assert named["studies"][0]["best"] is None


def test_a_worker_says_at_once_which_of_its_studies_are_not_there(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec("digits", cells=1))
    with commands.started("worker", "worker.studies=[digit,'']", *SOON) as worker:
        said = line_with(worker, "worker.studies")
        assert "the database has no study digit (did you mean 'digits'?)" in said
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
        assert worker.communicate()[0].count("no study digit") == 0, "not again and again"


def test_a_module_that_hides_a_package_is_noticed_before_the_study_exists(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "optuna.py").write_text("")
    there = replace(commands, cwd=tmp_path)
    done = there.run("launch", *TINY, "worker.count=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"optuna.py in the working directory {tmp_path} hides the installed module" in (
        done.stderr
    )
    assert store.reads.studies() == []
    (tmp_path / "optuna.py").rename(tmp_path / "tuning.py")
    assert "dry run" in there.check("launch", *TINY, "--dry-run")


def test_a_launch_without_a_database_yet_says_what_it_waits_for_on_standard_error() -> None:
    place = scratch_directory("orchestrator-first-")
    commands = Commands(None, place)
    try:
        done = commands.run(
            *("launch", *TINY, "--json", "worker.count=1", "budget.trials=3"),
            *("budget.per_cell=1", f"storage.path={place}/pg"),
        )
        assert done.returncode == 0, done.stderr
        assert f"starting the database in {place}/pg …" in done.stderr
        json.loads(done.stdout)
    finally:
        commands.run("db", "stop", f"storage.path={place}/pg")
        shutil.rmtree(place, ignore_errors=True)


def test_the_live_table_of_a_launch_shows_a_bar_and_its_running_trials(
    commands: Commands, store: Store
) -> None:
    slow = [f"objective.{key}={value}" for key, value in EPOCHS.items() if key == "_target_"]
    slow += [f"+objective.{key}={value}" for key, value in EPOCHS.items() if key != "_target_"]
    line = commands.line("launch", *TINY, "worker.count=1", *slow)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = commands.environment() | {"TERM": "xterm"}
    environment.pop("COLUMNS", None)
    environment.pop("LINES", None)
    launch = subprocess.Popen(
        line,
        cwd=commands.cwd,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen, end = "", time.monotonic() + 90
    try:
        while not re.search(r" 0 +\d+ s +\d+ +[\d.]+ +[\d.]+ s +a=", seen):
            assert time.monotonic() < end, seen[-3000:]
            seen += os.read(ours, 1 << 16).decode(errors="replace")
            seen = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen)
        assert "waiting for the first trial: 1 worker " in seen
        assert re.search(r"━ 0 %", seen)
    finally:
        launch.send_signal(signal.SIGTERM)
        while True:
            try:
                if not os.read(ours, 1 << 16):
                    break
            except OSError:
                break
        launch.wait(timeout=60)
        os.close(ours)
