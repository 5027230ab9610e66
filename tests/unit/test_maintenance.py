"""Who looks after the fleet, and how often, when there are many."""

from __future__ import annotations

import random
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

    def silent(self, _contact_s: float) -> list[Any]:
        self.whole += 1
        return []

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
