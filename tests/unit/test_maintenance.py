"""Who looks after the fleet, and how often, when there are many."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.worker import maintenance
from orchestrator.worker.maintenance import SWEEPERS, Maintenance


class Fleet:
    """Counts the looks at a fleet of so many workers."""

    def __init__(self, workers: int) -> None:
        self.size, self.whole, self.own_host = workers, 0, 0
        self.server, self.read_only = None, False
        self.now: datetime | None = None
        self.found: list[Any] = []

    def silent(self, _contact_s: float) -> list[Any]:
        self.whole += 1
        return self.found

    def dead_here(self) -> list[Any]:
        self.own_host += 1
        return []


def looked(workers: int, seconds: int, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The looks of `workers` that sweep whenever they may, each second, for so long after the first
    of each.
    """
    random.seed(1)
    now = [1000.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], clock_gettime=lambda _: now[0], CLOCK_BOOTTIME=7
    )
    monkeypatch.setattr(maintenance, "time", clock)
    fleet = Fleet(workers)
    store: Any = SimpleNamespace(fleet=fleet, ledger=SimpleNamespace(end_studies=lambda: []))
    sweepers = [Maintenance(store, 1.0) for _ in range(workers)]
    for sweeper in sweepers:
        assert sweeper.sweep()
    fleet.whole = 0
    for _ in range(seconds):
        now[0] += 1.0
        for sweeper in sweepers:
            assert sweeper.sweep(), "it is time, for the own host at least"
            assert not sweeper.sweep(), "not twice within a second"
    return fleet


def test_a_thousand_workers_look_at_the_fleet_as_often_together_as_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = looked(1000, 500, monkeypatch)
    assert 0.8 * SWEEPERS * 500 < fleet.whole < 1.2 * SWEEPERS * 500
    assert fleet.own_host == 1000 * 500 - fleet.whole, "their own host they look at every time"


def test_a_few_workers_look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = looked(SWEEPERS, 10, monkeypatch)
    assert (fleet.whole, fleet.own_host) == (10 * SWEEPERS, 0)


def test_a_step_of_the_servers_clock_makes_nobody_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, evicted = [1000.0], []
    clock = SimpleNamespace(
        monotonic=lambda: now[0], clock_gettime=lambda _: now[0], CLOCK_BOOTTIME=7
    )
    monkeypatch.setattr(maintenance, "time", clock)
    contacts: list[float] = []

    class Stepping(Fleet):
        def silent(self, contact_s: float) -> list[Any]:
            contacts.append(contact_s)
            return super().silent(contact_s)

    fleet = Stepping(1)
    ledger = SimpleNamespace(end_studies=lambda: [], evict=lambda one: evicted.append(one))
    store: Any = SimpleNamespace(fleet=fleet, ledger=ledger)
    sweeper = Maintenance(store, 1.0)
    start = datetime(2030, 1, 1, tzinfo=UTC)

    def sweep(after_s: float, server_s: float) -> None:
        now[0] += after_s
        fleet.now = start + timedelta(seconds=server_s)
        assert sweeper.sweep()

    sweep(0, 0)
    sweep(60, 60.9)  # slewing, or a slow answer
    expired, dead = SimpleNamespace(dead=False), SimpleNamespace(dead=True)
    expired.worker_id, expired.reason, dead.worker_id, dead.reason = 1, "silent", 2, "died"
    fleet.found = [expired, dead]
    sweep(1, 3662)
    assert evicted == [dead], "only the lease ran out, and only by the step"
    assert "clock stepped forward by 3600 s" in caplog.text
    sweep(1, 3663)
    assert contacts[-1] == 1.0, "the time in contact begins anew"
    assert evicted == [dead, expired, dead], "whether a lease counts is the store's to say"
