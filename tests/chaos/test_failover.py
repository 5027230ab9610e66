"""The database goes back in time under a fleet at work, or takes no writes for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.settings import sampler_settings
from orchestrator.store import Store
from tests.support import invariants
from tests.support.chaos_objective import value_at
from tests.support.commands import Commands
from tests.support.fleet import TTL_S, Fleet
from tests.support.own_server import OwnServer
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until


def test_after_a_failover_that_loses_the_last_seconds_every_value_is_of_its_own_parameters(
    server: OwnServer,
    commands: Commands,
    store: Store,
    tmp_path: Path,
    long: bool,
    figures: Callable[..., None],
) -> None:
    cells, gated, lost_s, count = (390, 130, 8.0, 6) if long else (30, 10, 1.0, 4)
    gates = tmp_path / "gates"
    gates.mkdir()
    given = {"long_s": 6.0 if long else 1.5, "gates": str(gates), "gated": gated}
    objective = {"_target_": "tests.support.chaos_objective.train_mixed", **given}
    sampler = sampler_settings("tpe" if long else "random")
    study_id = store.studies.launch(
        spec(cells=cells, objective=objective, sampler=sampler, runner=RUNNER)
    ).study_id
    store.rest()
    with Fleet(commands) as fleet:
        workers = [fleet.start(apart=True) for _ in range(count)]
        wait_until(lambda: _complete(server) >= gated // 2, 60)
        copy, copied_at = server.backup(), time.monotonic()
        kept = _complete(server)
        (gates / "1").touch()
        wait_until(
            lambda: time.monotonic() - copied_at >= lost_s and _complete(server) >= kept + count, 60
        )
        lost = _complete(server) - kept
        server.fail_over(copy)
        (gates / "2").touch()
        wait_until(lambda: _state(server) == "FINISHED", 120 if long else 60)
        said = [
            worker.name for worker in workers if "the database went back in time" in worker.text()
        ]
        fleet.dismiss()
    invariants.check(commands, "study", cells=cells)
    trials = invariants.plain_trials(server.url, "study")
    wrong = [
        t.number
        for t in trials
        if t.values != [pytest.approx(value_at(t.params["a"], t.params["x"], 4))]
    ]
    figures(
        lost=lost, said=len(said), attempts=sum(t.attempts for t in store.reads.trials(study_id))
    )
    assert wrong == []
    assert said, "it is said in the log"
    store.rest()


def test_while_the_server_takes_no_writes_trials_train_on_and_readers_read(
    server: OwnServer, commands: Commands, store: Store
) -> None:
    objective = {"_target_": "tests.support.chaos_objective.train", "seconds": 1.0}
    study_id = store.studies.launch(spec(cells=6, objective=objective, runner=RUNNER)).study_id
    store.rest()
    with Fleet(commands) as fleet:
        workers = [fleet.start(apart=True) for _ in range(2)]
        wait_until(lambda: _complete(server) >= 2, 60)
        _read_only(server, "on")
        began = time.monotonic()
        wait_until(lambda: all("does not accept writes" in worker.text() for worker in workers), 30)
        for command in ("status", "best", "doctor"):
            assert commands.check(command, "study.name=study")
        refused = commands.run("pause", "study.name=study")
        assert (refused.returncode, "does not accept writes" in refused.stderr) == (3, True)
        wait_until(lambda: time.monotonic() - began > 2 * TTL_S)
        assert len(fleet.living()) == 2, "nobody gave up"
        _read_only(server, "off")
        wait_until(lambda: _state(server) == "FINISHED", 60)
        fleet.dismiss()
    invariants.check(commands, "study", cells=6)
    assert [t.attempts for t in store.reads.trials(study_id)] == [1] * 6, (
        "no running trial was given up"
    )
    store.rest()


def _read_only(server: OwnServer, setting: str) -> None:
    invariants.query(server.url, f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
    invariants.query(server.url, "SELECT pg_reload_conf()")


def _complete(server: OwnServer) -> int:
    return int(
        invariants.query(
            server.url, "SELECT count(*) FROM orchestrator.trial WHERE state = 'COMPLETE'"
        )[0][0]
    )


def _state(server: OwnServer) -> str:
    return str(invariants.query(server.url, "SELECT state FROM orchestrator.study")[0][0])
