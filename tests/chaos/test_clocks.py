"""Workers whose clocks and time zones are wrong: only the database's clock counts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support import invariants
from tests.support.commands import ROOT, Commands
from tests.support.fleet import LEASE, TTL_S
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

HOUR_S = 3600
ZONES = (
    {"CLOCK_OFF_BY_S": str(HOUR_S), "TZ": "Asia/Tokyo", "PGTZ": "America/New_York"},
    {"CLOCK_OFF_BY_S": str(-HOUR_S), "TZ": "America/Los_Angeles", "PGTZ": "Asia/Kolkata"},
    {"PGTZ": "Pacific/Kiritimati"},
)
SITECUSTOMIZE = Path(__file__).parents[1] / "support" / "wrong_clock"


@dataclass(frozen=True)
class Abroad(Commands):
    """Commands in an environment of their own, on a clock that is off."""

    extra: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = True  # the clock is set as Python starts

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "PYTHONPATH": f"{SITECUSTOMIZE}{os.pathsep}{ROOT}",
            **self.extra,
        }


@pytest.mark.chaos("long")
def test_clocks_off_by_an_hour_and_odd_time_zones_change_nothing(
    commands: Commands, store: Store, figures: Callable[..., None]
) -> None:
    cells, seconds = 9, 2 * TTL_S / 3
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": seconds}
    study_id = store.studies.launch(spec(cells=cells, objective=objective, runner=RUNNER)).study_id
    began = datetime.now(UTC)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Abroad(commands.url, commands.directory, extra=zone).started("worker", *LEASE)
            )
            for zone in ZONES
        ]
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 120)
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    invariants.check(commands, "study", cells=cells)
    assert {t.attempts for t in store.reads.trials(study_id)} == {1}, "nobody was taken for dead"
    assert (
        len(invariants.query(store.url, "SELECT DISTINCT worker_id FROM orchestrator.attempt")) == 3
    )
    evicted = invariants.query(
        store.url, "SELECT count(*) FROM orchestrator.event WHERE kind = 'evicted'"
    )
    trials = invariants.plain_trials(store.url, "study")
    starts = [t.datetime_start.replace(tzinfo=UTC) for t in trials if t.datetime_start]
    durations = [t.duration.total_seconds() for t in trials if t.duration]
    figures(
        false_takeovers=evicted[0][0],
        longest_trial_s=round(max(durations), 1),
        shortest_trial_s=round(min(durations), 1),
    )
    assert evicted == [(0,)]
    assert all(
        began - timedelta(seconds=5) < start < datetime.now(UTC) + timedelta(seconds=5)
        for start in starts
    )
    assert all(seconds <= duration < seconds + 30 for duration in durations)


@pytest.mark.chaos("long")
def test_a_worker_on_a_wrong_clock_that_dies_is_followed_in_time_and_one_that_lives_is_left_alone(
    commands: Commands, store: Store
) -> None:
    objective = {
        "_target_": "tests.support.chaos_objective.train",
        "seconds": 2 * TTL_S,
        "steps": 40,
    }
    study_id = store.studies.launch(spec(cells=2, objective=objective, runner=RUNNER)).study_id
    ahead, behind = (Abroad(commands.url, commands.directory, extra=zone) for zone in ZONES[:2])
    words = (*LEASE, "worker.prefetch=0")  # a trial for each of them
    with ahead.started("worker", *words) as doomed, behind.started("worker", *words) as heir:
        wait_until(
            lambda: (
                len([t for t in store.reads.trials(study_id, live_only=True) if t.worker_id]) == 2
            ),
            60,
        )
        victim = next(w.worker_id for w in store.reads.workers() if w.pid == doomed.pid)
        number = next(
            t.number for t in store.reads.trials(study_id, live_only=True) if t.worker_id == victim
        )
        doomed.kill()
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        heir.send_signal(signal.SIGTERM)
        assert heir.wait(30) == 0
    invariants.check(commands, "study", cells=2)
    outcomes = {n: [a.outcome for a in store.reads.attempts(study_id, n)] for n in (0, 1)}
    assert outcomes == {number: ["lost", "completed"], 1 - number: ["completed"]}
