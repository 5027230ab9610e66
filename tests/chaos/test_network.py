"""The network between workers and the database freezes, is cut, or swallows everything; others
stand beside it untouched.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import pytest

from orchestrator.store import Store
from orchestrator.worker.maintenance import Maintenance
from tests.support import invariants
from tests.support.commands import Commands
from tests.support.fleet import Fleet
from tests.support.proxy import Proxy
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

OBJECTIVE = {"_target_": "tests.support.chaos_objective.train", "seconds": 0.7}
FAULTS: dict[str, Callable[[Proxy], None]] = {
    "freeze": Proxy.freeze,
    "cut": Proxy.cut,
    "black_hole": Proxy.swallow,
}
STATEMENT_S = 30.0  # of orchestrator.store.connection.database


@pytest.mark.chaos("long")
def test_workers_behind_a_bad_network_survive_and_those_beside_it_go_on(
    commands: Commands, store: Store, long: bool, figures: Callable[..., None]
) -> None:
    away_s, cells = (20.0, 110) if long else (3.0, 20)
    faults = FAULTS if long else {name: FAULTS[name] for name in ("cut", "black_hole")}
    study_id = store.studies.launch(
        spec(cells=cells * len(faults), objective=OBJECTIVE, runner=RUNNER)
    ).study_id
    rates: dict[str, float] = {}
    with Proxy(str(commands.url)) as proxy, Fleet(commands) as fleet:
        behind = [fleet.start(apart=True, url=proxy.url) for _ in range(2)]
        beside = [fleet.start(apart=True) for _ in range(2)]
        wait_until(lambda: len(_done_by(commands, study_id)) == 4)
        for name, strike in faults.items():
            before = _done_by(commands, study_id)
            until = time.monotonic() + away_s
            while time.monotonic() < until:
                strike(proxy)
                time.sleep(0.02)  # a network that is cut is cut again and again
            during = _done_by(commands, study_id)
            rates[name] = round(sum(during[m.pid] - before[m.pid] for m in beside) / away_s, 2)
            proxy.thaw()
            wait_until(
                partial(_all_completed_more, commands, study_id, [m.pid for m in behind], during),
                60,
            )
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 120)
        fleet.dismiss()
        assert all(m.process.exitcode == 0 for m in fleet.members)
    invariants.check(commands, "study", cells=cells * len(faults))
    figures(away_s=away_s, **{f"trials_per_s_beside_{name}": rate for name, rate in rates.items()})
    assert all(rate > 0.5 * len(beside) / 0.7 for rate in rates.values()), "the others went on"


def test_answers_lost_on_the_way_are_asked_for_again_and_nothing_is_done_twice(
    commands: Commands, store: Store, dice: random.Random, long: bool, figures: Callable[..., None]
) -> None:
    cells = 200 if long else 16
    lost = 0

    def one_in_ten(said: bytes) -> bool:
        nonlocal lost
        loses = b"COMMIT" in said and dice.random() < 0.1
        lost += loses
        return loses

    store.studies.launch(spec(cells=cells, objective={**OBJECTIVE, "seconds": 0.1}, runner=RUNNER))
    with Proxy(str(commands.url)) as proxy, Fleet(commands) as fleet:
        proxy.lose_answers(one_in_ten)
        for _ in range(3):
            fleet.start(apart=True, url=proxy.url)
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 300)
        fleet.dismiss()
        assert not any(m.process.exitcode for m in fleet.members)
    maintenance = Maintenance(store, 0.2)

    def none_left() -> bool:
        """A worker whose farewell, or whose first word, was answered in vain is evicted by whoever
        comes next.
        """
        maintenance.sweep()
        return not store.reads.workers()

    wait_until(none_left)
    invariants.check(commands, "study", cells=cells)
    figures(answers_lost=lost, cells=cells)
    assert lost > 5


@pytest.mark.chaos("long")
def test_a_connection_that_stays_up_and_says_nothing_holds_a_worker_for_a_statement_s_time_only(
    commands: Commands, store: Store, figures: Callable[..., None]
) -> None:
    store.studies.launch(spec(cells=1, objective={**OBJECTIVE, "seconds": 5.0}, runner=RUNNER))
    with Proxy(str(commands.url)) as proxy, Fleet(commands) as fleet:
        worker = fleet.start(url=proxy.url)
        wait_until(
            lambda: list(commands.directory.glob("runs/study-*/trial-0/attempt-1-*/job.json"))
        )
        proxy.hang_at(b"UPDATE orchestrator.worker")
        assert proxy.hung.wait(30)
        began = time.monotonic()
        wait_until(lambda: store.reads.find("study").state == "FINISHED", STATEMENT_S + 30)
        figures(hung_s=round(time.monotonic() - began))
        fleet.dismiss()
        assert worker.process.exitcode == 0
    invariants.check(commands, "study", cells=1)


def _all_completed_more(
    commands: Commands, study_id: int, pids: list[int], before: dict[int, int]
) -> bool:
    now = _done_by(commands, study_id)
    return all(now[pid] > before[pid] for pid in pids)


def _done_by(commands: Commands, study_id: int) -> dict[int, int]:
    """How many trials each worker process has completed."""
    rows = invariants.query(
        str(commands.url),
        "SELECT w.pid, count(*) FROM orchestrator.attempt a JOIN orchestrator.worker w USING "
        "(worker_id) JOIN orchestrator.trial t USING (trial_id) WHERE t.study_id = %s AND "
        "a.outcome = 'completed' GROUP BY w.pid",
        study_id,
    )
    return dict(rows)
