"""Workers as jobs of a real Slurm that runs them on this host: whatever ends a job, the study goes
on and no trial fails.

They run where `sinfo` answers, as a user who may submit. A job that was requeued would wait two
minutes: it is let go earlier.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.acceptance, pytest.mark.xdist_group("slurm")]
BREAKS = {"_target_": "tests.support.signalled.breaks_with_its_helper"}
SAVES = {"_target_": "tests.support.signalled.saves_when_asked"}


@pytest.fixture(scope="module", autouse=True)
def slurm() -> None:
    if reason := _no_slurm():
        pytest.skip(f"no Slurm that runs jobs here: {reason}")


def _no_slurm() -> str | None:
    if shutil.which("sinfo") is None:
        return "there is no sinfo"
    try:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return "sinfo does not answer"
    if done.returncode:
        return done.stderr.splitlines()[0]
    here = socket.gethostname().partition(".")[0]
    return None if here in done.stdout.split() else f"this host, {here}, is no node of it"


def _slurm(*words: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


class Jobs:
    """Jobs that run a worker; those that are left are killed in the end."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._ids: list[str] = []

    def submit(self, *words: str, options: tuple[str, ...] = ()) -> str:
        script = self._commands.directory / "job.sh"
        line = [
            sys.executable,
            "-m",
            "orchestrator",
            "worker",
            "worker.poll_s=0.1",
            "worker.slots_per_device=1",
            *words,
        ]
        script.write_text(f"#!/bin/bash\ncd {self._commands.cwd}\nexec {' '.join(line)}\n")
        log = f"--output={self._commands.directory}/slurm-%j.out"
        self._ids.append(
            _slurm(
                "sbatch",
                "--parsable",
                "--requeue",
                "--open-mode=append",
                log,
                *options,
                str(script),
                env=self._commands.environment(),
            )
        )
        return self._ids[-1]

    def state(self, job: str) -> str:
        """Its state, such as RUNNING; empty once Slurm has forgotten it."""
        return _slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def log(self, job: str) -> str:
        return (self._commands.directory / f"slurm-{job}.out").read_text()

    def end(self) -> None:
        for job in self._ids:
            subprocess.run(
                ["scancel", "-s", "KILL", "--full", job], capture_output=True, timeout=60
            )
            subprocess.run(["scancel", job], capture_output=True, timeout=60)


@pytest.fixture
def jobs(commands: Commands) -> Iterator[Jobs]:
    submitted = Jobs(commands)
    yield submitted
    submitted.end()


def _begins(commands: Commands, store: Store, objective: dict[str, Any]) -> None:
    store.studies.launch(spec(cells=1, objective=objective, runner=replace(RUNNER, max_attempts=1)))
    store.rest()


def _trains(directory: Path) -> bool:
    return bool(list(directory.glob("runs/study-*/trial-0/attempt-1-*/checkpoints/pids.json")))


def _attempts(store: Store) -> list[str | None]:
    study_id = store.reads.find("study").study_id
    return [attempt.outcome for attempt in store.reads.attempts(study_id, 0)]


@pytest.mark.parametrize("objective", [SAVES, BREAKS])
def test_a_requeued_job_gives_its_trial_back_and_takes_it_up_when_it_runs_again(
    jobs: Jobs, commands: Commands, store: Store, objective: dict[str, Any]
) -> None:
    _begins(commands, store, objective)
    job = jobs.submit("worker.idle_timeout_s=1", "worker.drain_s=20")
    wait_until(lambda: _trains(commands.directory), 60)
    _slurm("scontrol", "requeue", job)
    wait_until(lambda: _attempts(store) == ["interrupted"], 40)
    wait_until(lambda: jobs.state(job) == "PENDING", 60)
    # in the same second the node refuses it
    _slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
    wait_until(lambda: jobs.state(job) == "COMPLETED", 60)
    assert _attempts(store) == ["interrupted", "completed"]
    assert store.doctor.examine().findings == ()


@pytest.mark.parametrize(
    "words",
    [
        ("scancel",),
        ("scancel", "--batch", "-s", "USR1"),
        ("scancel", "--full", "-s", "TERM"),
        ("scancel", "--full", "-s", "USR2"),
    ],
)
def test_whatever_a_job_is_told_to_end_by_its_trial_goes_on_in_another(
    jobs: Jobs, commands: Commands, store: Store, words: tuple[str, ...]
) -> None:
    _begins(commands, store, BREAKS if words[-1] != "USR1" else SAVES)
    job = jobs.submit("worker.drain_s=20")
    wait_until(lambda: _trains(commands.directory), 60)
    _slurm(*words, job)
    wait_until(lambda: _attempts(store) == ["interrupted"], 40)
    wait_until(lambda: jobs.state(job) in ("CANCELLED", "COMPLETED"), 60)
    assert "ended after 0 trials" in jobs.log(job)
    jobs.submit("worker.idle_timeout_s=0.2")
    wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
    assert _attempts(store) == ["interrupted", "completed"]
