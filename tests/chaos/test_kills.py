"""SIGKILL of workers at random moments: every cell is complete exactly once, and what a dead one
held goes on in time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.settings import sampler_settings
from orchestrator.store import Store
from orchestrator.worker.maintenance import Maintenance
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import TTL_S, Fleet
from tests.support.studies import RUNNER, spec

TAKEN_UP_WITHIN_S = TTL_S + 2
GRID = {"search": (), "sampler": sampler_settings("random")}
TPE = {"sampler": sampler_settings("tpe", n_startup_trials=10)}


@pytest.mark.parametrize(
    ("kind", "apart"),
    [
        pytest.param(TPE, True, id="tpe"),
        pytest.param(GRID, True, id="grid-only", marks=pytest.mark.chaos("long")),
        pytest.param(GRID, False, id="one-host", marks=pytest.mark.chaos("long")),
    ],
)
def test_workers_killed_at_random_lose_and_double_nothing(
    commands: Commands,
    store: Store,
    dice: random.Random,
    long: bool,
    figures: Callable[..., None],
    tmp_path: Path,
    kind: dict[str, Any],
    apart: bool,
) -> None:
    cells, workers, kills, seconds = (300, 6, 200, 1.0) if long else (28, 4, 12, 0.5)
    # The last trials wait until all kills are done: the study does not end before, however slow
    # this process is.
    gate = tmp_path / "gate"
    gated = {"gate": str(gate), "gated_from": cells - 2 * workers}
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": seconds, **gated}
    study = spec(
        cells=cells, objective=objective, runner=replace(RUNNER, max_attempts=1000), **kind
    )
    study_id = store.studies.launch(study).study_id
    began = time.monotonic()
    with Fleet(commands) as fleet:
        killed = _rampage(fleet, store, dice, workers=workers, kills=kills, apart=apart, gate=gate)
        fleet.dismiss()
    invariants.check(commands, "study", cells=cells)
    delays = _takeovers(commands, killed)
    assert len(delays) > 1, "some of the killed held a trial"
    attempts = sum(t.attempts for t in store.reads.trials(study_id))
    figures(
        kills=len(killed),
        taken_up=len(delays),
        usual_takeover_s=round(statistics.median(delays), 2),
        slowest_takeover_s=round(max(delays), 2),
        attempts=attempts,
        cells=cells,
        seconds=round(time.monotonic() - began),
    )
    assert len(killed) == kills
    # A crowded machine keeps any process waiting for seconds: the slowest few may be its fault, in
    # the short form all.
    if long:
        assert statistics.quantiles(delays, n=10, method="inclusive")[-1] <= TAKEN_UP_WITHIN_S
        assert max(delays) <= 3 * TAKEN_UP_WITHIN_S
    assert attempts - cells <= len(killed)


def _rampage(
    fleet: Fleet,
    store: Store,
    dice: random.Random,
    *,
    workers: int,
    kills: int,
    apart: bool,
    gate: Path,
) -> dict[int, float]:
    """Kills workers, whatever they do, until the study is finished; replaces each at once; returns
    when each PID was killed.
    """
    maintenance = Maintenance(store, 1.0)  # as `launch` does while it follows
    killed: dict[int, float] = {}
    next_kill, deadline = time.monotonic() + 0.5, time.monotonic() + 600
    while store.reads.find("study").state != "FINISHED":
        assert time.monotonic() < deadline, "the study does not end"
        maintenance.sweep()
        for _ in range(workers - len(fleet.living())):
            fleet.start(apart=apart)
        # Every other one holds a trial: on a crowded machine most are still starting.
        busy = set(_busy(store)) if len(killed) % 2 else {member.pid for member in fleet.living()}
        victims = [member for member in fleet.living() if member.pid in busy]
        if len(killed) < kills and time.monotonic() >= next_kill and victims:
            victim = dice.choice(victims)
            killed[victim.pid] = fleet.kill(victim)
            next_kill = time.monotonic() + dice.uniform(0.1, 0.5)
        elif len(killed) == kills:
            gate.touch()
        time.sleep(0.05)
    return killed


def _busy(store: Store) -> list[int]:
    """The processes of workers that run a trial."""
    held = (
        "SELECT w.pid FROM orchestrator.trial t JOIN orchestrator.worker w USING (worker_id) "
        "WHERE t.attempts > 0"
    )
    return [pid for (pid,) in invariants.query(store.url, held)]


def _takeovers(commands: Commands, killed: dict[int, float]) -> list[float]:
    """Seconds from each kill of a worker that ran a trial to the start of that trial's next
    attempt.
    """
    rows = invariants.query(
        str(commands.url),
        "SELECT w.pid, extract(epoch FROM next.started_at)::float FROM orchestrator.attempt a "
        "JOIN orchestrator.worker w USING (worker_id) JOIN orchestrator.attempt next ON "
        "next.trial_id = a.trial_id AND next.attempt = a.attempt + 1 WHERE a.outcome = 'lost'",
    )
    # A worker that the machine starved for longer than its lease lost its trial too.
    return [at - killed[pid] for pid, at in rows if pid in killed]
