"""What a worker does for the studies it finds: priorities, objectives it cannot import, devices,
limits of its own life.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import optuna
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.invariants import query
from tests.support.own_server import WORKER_ROLE, OwnServer
from tests.support.studies import RUNNER, spec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
QUICK = {"_target_": "tests.support.training.quick"}


def test_studies_are_served_by_priority_then_age(commands: Commands, store: Store) -> None:
    for name, priority in (("older", 0), ("newer", 0), ("urgent", 5)):
        store.studies.launch(spec(name, cells=2, objective=QUICK, priority=priority))
    commands.check("worker", "worker.idle_timeout_s=0.5", "worker.poll_s=0.2")
    started = {
        name: optuna.load_study(study_name=name, storage=store.url).trials[0].datetime_start
        for name in ("urgent", "older", "newer")
    }
    assert all(row.state == "FINISHED" for row in store.reads.studies())
    assert sorted(started, key=lambda name: str(started[name])) == ["urgent", "older", "newer"]


def test_a_worker_does_not_claim_from_a_study_whose_objective_it_cannot_import(
    commands: Commands, store: Store
) -> None:
    absent = {"_target_": "tests.support.training.quik"}
    store.studies.launch(spec("absent", cells=2, objective=absent, priority=9))
    store.studies.launch(spec("present", cells=2, objective=QUICK))
    done = commands.run("worker", "worker.idle_timeout_s=0.5", "worker.poll_s=0.2")
    assert done.returncode == 0
    assert done.stderr.count("not claiming from study absent") == 1
    assert "did you mean 'quick'" in done.stderr
    assert store.reads.trials(store.reads.find("absent").study_id) == [], "no trial fails for it"
    assert store.reads.find("present").state == "FINISHED"


def test_a_worker_ends_by_itself_after_its_trials(commands: Commands, store: Store) -> None:
    study = store.studies.launch(spec(cells=5, objective=QUICK)).study_id
    commands.check("worker", "worker.max_trials=2")
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE", "COMPLETE"]
    assert store.reads.workers() == []


def test_what_a_worker_has_prepared_is_given_back_intact_when_it_is_told_to_end(
    commands: Commands, store: Store
) -> None:
    waiting = {"_target_": "tests.support.training.interruptible"}
    study = store.studies.launch(spec(cells=3, objective=waiting)).study_id
    with commands.started("worker", "worker.drain_s=20", "worker.slots_per_device=1") as worker:
        wait_until(lambda: len(store.reads.trials(study)) == 2, 60)
        assert [len(store.reads.attempts(study, number)) for number in (0, 1)] == [1, 0], (
            "one runs, one is prepared"
        )
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
    assert [(t.state, t.attempts, t.worker_id) for t in store.reads.trials(study)] == [
        ("RUNNING", 1, None),
        ("PREPARED", 0, None),
    ]
    assert store.doctor.examine().findings == ()


def test_a_worker_serves_only_the_studies_it_is_told_to(commands: Commands, store: Store) -> None:
    for name in ("mine", "theirs"):
        store.studies.launch(spec(name, cells=2, objective=QUICK))
    commands.check("worker", "worker.studies=[mine]", "worker.idle_timeout_s=0.5")
    assert {row.name: row.state for row in store.reads.studies()} == {
        "mine": "FINISHED",
        "theirs": "ACTIVE",
    }


def test_with_no_device_free_a_worker_says_who_holds_it(commands: Commands, store: Store) -> None:
    with commands.started("worker", "worker.slots_per_device=1"):
        holder = wait_until(lambda: next((w for w in store.reads.workers() if w.device), None), 60)
        refused = commands.run("worker", "worker.slots_per_device=1", "worker.on_no_device=exit")
        assert refused.returncode == 6
        assert f"worker {holder.worker_id} (pid {holder.pid}" in refused.stderr
        with commands.started(
            "worker", "worker.slots_per_device=1", "worker.poll_s=0.2"
        ) as waiting:
            wait_until(lambda: len(store.reads.workers()) == 2, 60)
            first = min(store.reads.workers(), key=lambda w: w.worker_id)
            assert [w.device is None for w in store.reads.workers()] == [False, True]
            _terminate(first.pid)
            wait_until(lambda: [w.device is None for w in store.reads.workers()] == [False], 60)
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(timeout=30) == 0


def _terminate(pid: int) -> None:

    os.kill(pid, signal.SIGTERM)


def test_a_worker_waits_for_a_database_that_is_not_there_yet(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec(cells=2, objective=QUICK))
    name = str(make_url(store.url).database)
    _rename(store, name, f"{name}_away")
    with commands.started("worker", "worker.idle_timeout_s=1") as worker:
        assert "waiting for it" in (worker.stdout.readline() if worker.stdout else "")
        _rename(store, f"{name}_away", name)
        assert worker.wait(timeout=60) == 0
    assert store.reads.find("study").state == "FINISHED"


def test_a_worker_refused_for_its_password_says_the_way_out_and_is_not_healthy_until_it_is_let_in(
    tmp_path: Path,
) -> None:
    health, password = tmp_path / "health", tmp_path / "password"
    health.touch()  # left by a worker that was killed
    password.write_text("second")
    with OwnServer() as server:
        query(server.url, f"ALTER ROLE {WORKER_ROLE} PASSWORD 'first'")
        (server.data / "pg_hba.conf").write_text(
            f"local all {WORKER_ROLE} scram-sha-256\nlocal all all trust\n"
        )
        query(server.url, "SELECT pg_reload_conf()")
        commands = Commands(server.worker_url, tmp_path)
        words = (
            f"storage.password_file={password}",
            f"worker.health_file={health}",
            "worker.heartbeat_s=0.2",
        )
        with commands.started("worker", *words) as worker:
            output = worker.stdout
            assert output is not None
            said = output.readline()
            assert "rejects the password" in said
            assert f"ALTER ROLE {WORKER_ROLE} PASSWORD" in said
            assert "second" not in said
            assert not health.exists()
            query(server.url, f"ALTER ROLE {WORKER_ROLE} PASSWORD 'second'")
            wait_until(health.exists, 60)
            registered = health.stat().st_mtime_ns
            wait_until(lambda: health.stat().st_mtime_ns > registered, 60)
            server.stop("fast")
            wait_until(lambda: "does not answer" in output.readline(), 60)
            last = health.stat().st_mtime_ns
            server.start()
            wait_until(lambda: "reachable again" in output.readline(), 60)
            wait_until(lambda: health.stat().st_mtime_ns > last, 60)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 0
        assert not health.exists(), "ended in order: no worker is registered"


def test_a_health_file_that_cannot_be_written_is_said_before_anything_else(
    commands: Commands, store: Store
) -> None:
    done = commands.run("worker", f"worker.health_file={commands.directory}/no/health")
    assert (done.returncode, store.reads.workers()) == (2, [])
    assert done.stderr == (
        f"orchestrator: error: worker.health_file={commands.directory}/no/health: No "
        "such file or directory\n"
    )


def _rename(store: Store, old: str, new: str) -> None:
    _administrate(store, f"ALTER DATABASE {old} RENAME TO {new}")


def _administrate(store: Store, statement: str) -> None:
    store.rest()
    admin = make_url(store.url).set(drivername="postgresql", database="postgres")
    connection = psycopg2.connect(admin.render_as_string(hide_password=False))
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


def test_told_to_end_while_the_database_is_away_a_worker_ends_in_order(
    commands: Commands, store: Store
) -> None:
    name = str(make_url(store.url).database)
    with commands.started("worker", "worker.poll_s=0.1") as worker:
        wait_until(lambda: [w.device for w in store.reads.workers()] not in ([], [None]), 60)
        _administrate(store, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            output = worker.stdout
            assert output is not None
            wait_until(lambda: "does not answer" in output.readline(), 30)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 0, output.read()
        finally:
            _administrate(store, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_a_silent_worker_is_evicted_and_its_trial_goes_on_elsewhere(
    commands: Commands, store: Store
) -> None:
    slow = {"_target_": "tests.support.training.slow", "seconds": 60}
    study = store.studies.launch(
        spec(cells=1, objective=slow, runner=replace(RUNNER, grace_s=0.2))
    ).study_id
    lease = ("worker.lease_ttl_s=2", "worker.heartbeat_s=0.5", "worker.poll_s=0.2")
    with commands.started("worker", *lease) as frozen:
        wait_until(
            lambda: list(
                commands.directory.glob("runs/study-*/trial-0/attempt-1-*/checkpoints/seen")
            ),
            60,
        )
        frozen.send_signal(signal.SIGSTOP)
        commands.check("worker", *lease, "worker.max_trials=1", timeout=60)
        frozen.send_signal(signal.SIGCONT)
        wait_until(lambda: [w.pid for w in store.reads.workers()] == [frozen.pid], 60)
    (trial,) = store.reads.trials(study)
    assert (trial.state, trial.values, trial.attempts) == ("COMPLETE", (2.0,), 2)
    assert [a.outcome for a in store.reads.attempts(study, 0)] == ["lost", "completed"]


def test_the_same_study_can_be_replaced_by_a_larger_one_under_running_workers(
    commands: Commands, store: Store
) -> None:
    first = spec(cells=3, objective=QUICK)
    store.studies.launch(first)
    with commands.started("worker", "worker.poll_s=0.1", "worker.idle_timeout_s=20"):
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
        store.studies.launch(replace(first, budget=replace(first.budget, trials=6)))
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 60)
    assert len(optuna.load_study(study_name="study", storage=store.url).trials) == 6
