"""A study deleted for good: its rows, its run directories, its checkpoints and its artifacts."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.runner.files.removal import Removal
from orchestrator.store import Alive, Leavings, Store
from tests.support.commands import ROOT, Commands, kill
from tests.support.studies import RUNNER, begun, end, spec, start, suggestion, take
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
NAME = "study.name=study"
LEAVES = {"_target_": "tests.support.leaving.leaves_files"}
SLOW = {"_target_": "tests.support.training.interruptible"}
SOON = ("worker.heartbeat_s=0.5", "worker.lease_ttl_s=10", "worker.poll_s=0.1")


def rows(store: Store) -> dict[str, int]:
    """How many rows each table has that a study has rows in."""
    connection = psycopg2.connect(store.url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT n.nspname || '.' || c.relname FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.relkind = 'r' AND n.nspname IN ('public', 'orchestrator') "
                "AND c.relname NOT IN ('alembic_version', 'version_info', 'version', 'worker', "
                "'slot', 'event')"
            )
            tables = [name for (name,) in cursor.fetchall()]
            counts = {}
            for table in tables:
                cursor.execute(f"SELECT count(*) FROM {table}")
                counts[table] = cursor.fetchone()[0]
            return counts
    finally:
        connection.close()


@pytest.fixture
def ran(commands: Commands, store: Store) -> int:
    """A study that ran here: two trials, each with a log, a checkpoint and an artifact."""
    study = store.studies.launch(spec(cells=2, objective=LEAVES)).study_id
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    assert [t.state for t in store.reads.trials(study)] == ["COMPLETE"] * 2
    return study


def files(directory: Path) -> list[Path]:
    below = [directory / "runs", directory / "artifacts"]
    return [p for root in below for p in root.rglob("*") if p.is_file() and p.name[0] != "."]


def test_everything_of_the_study_is_gone_and_nothing_else(
    commands: Commands, store: Store, ran: int
) -> None:
    assert len(list((commands.directory / "artifacts").iterdir())) == 2
    plain = optuna.create_study(study_name="plain", storage=store.url)
    plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    before = rows(store)
    other = store.studies.launch(spec("other", cells=2, objective=LEAVES)).study_id
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON)
    its = [p for p in files(commands.directory) if "/other-" in str(p)]
    with_both = rows(store)

    said = json.loads(commands.check("delete", "--yes", "--json", NAME))
    assert said["trials"] == 2
    assert said["artifacts"] == 2
    assert said["bytes"] > 0
    assert (said["not_here"], said["artifacts_not_here"]) == ([], 0)
    left = files(commands.directory)
    assert not any("/study-" in str(p) for p in left)
    assert [p for p in left if "/other-" in str(p)] == its
    assert len(list((commands.directory / "artifacts").iterdir())) == 2
    # The two studies of ours were the same, so half of their rows are left.
    of_plain = {table: count - (with_both[table] - count) for table, count in before.items()}
    assert {table: 2 * count - of_plain[table] for table, count in rows(store).items()} == with_both
    assert len(optuna.load_study(study_name="plain", storage=store.url).trials) == 3
    assert [t.state for t in store.reads.trials(other)] == ["COMPLETE"] * 2
    assert store.doctor.examine().findings == ()

    again = commands.run("delete", "--yes", "study.name=othr")
    assert again.returncode == 2
    assert "did you mean 'other'?" in again.stderr
    assert store.studies.launch(spec(cells=2, objective=LEAVES)).created


def test_a_live_study_is_refused_until_it_is_stopped(commands: Commands, store: Store) -> None:
    study = store.studies.launch(
        spec(cells=1, objective=SLOW, runner=replace(RUNNER, grace_s=0.2))
    ).study_id
    with commands.started("worker", "worker.drain_s=0.5", *SOON):
        wait_until(lambda: [t.state for t in store.reads.trials(study)] == ["RUNNING"], 60)
        refused = commands.run("delete", "--yes", NAME)
        assert refused.returncode == 1
        assert "a worker holds 1 trial of it" in refused.stderr
        assert "orchestrator stop --now study.name=study" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        commands.check("stop", "--now", NAME)
        wait_until(lambda: store.reads.find("study").state == "FINISHED", 20)
        assert "deleted study study: 1 trial," in commands.check("delete", "--yes", NAME)
    assert store.reads.studies() == []


def test_a_study_that_a_launch_follows_is_refused(store: Store) -> None:
    study = store.studies.launch(spec()).study_id
    store.studies.follow(study, 30.0)
    assert store.deletion.examine(study) == Alive(followed=True, held=0)
    assert store.deletion.begin(study, "me") == Alive(followed=True, held=0)
    assert store.reads.find("study").active
    store.studies.follow(study, 0.0)
    assert isinstance(store.deletion.begin(study, "me"), Leavings)


def test_a_deletion_cut_short_anywhere_is_completed_by_the_same_command(
    commands: Commands, store: Store, ran: int
) -> None:
    before = rows(store)
    begun = store.deletion.begin(ran, "me@here")
    assert isinstance(begun, Leavings)
    one, *_ = (commands.directory / "runs").glob("study-*/trial-0")
    shutil.rmtree(one)
    (commands.directory / "artifacts" / begun.artifacts[0]).unlink()
    assert rows(store) == before, "the rows still say where the files are"
    assert "finished (being deleted by me@here)" in commands.check("status", NAME)
    with pytest.raises(ConfigError, match="is being deleted by me@here; complete that with"):
        store.studies.launch(spec(cells=2, objective=LEAVES))

    said = json.loads(commands.check("delete", "--yes", "--json", NAME))
    assert said["artifacts"] == 1
    assert files(commands.directory) == []
    assert set(rows(store).values()) == {0}


def test_a_study_set_going_again_meanwhile_keeps_its_rows(store: Store) -> None:
    study = store.studies.launch(spec()).study_id
    store.deletion.begin(study, "me")
    store.interventions.enqueue(study, {"a": 0}, {})
    with pytest.raises(ConfigError, match="was set going again"):
        store.deletion.finish(study)
    assert store.reads.find("study").active


def test_a_file_that_cannot_be_deleted_keeps_the_study(
    commands: Commands, store: Store, ran: int
) -> None:
    (folder,) = (commands.directory / "runs").glob("study-*")
    elsewhere = commands.directory / "moved"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    failed = commands.run("delete", "--yes", NAME)
    assert failed.returncode == 1
    assert f"{folder} is a symbolic link" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert store.reads.find("study").reason is not None
    folder.unlink()
    elsewhere.rename(folder)
    commands.check("delete", "--yes", NAME)
    assert store.reads.studies() == []


def test_run_directories_of_other_hosts_are_named(commands: Commands, store: Store) -> None:
    study = store.studies.launch(spec(cells=2)).study_id
    lease = store.fleet.register(60)
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)
    store.ledger.deregister(lease, "done")
    said = commands.check("delete", "--yes", NAME)
    assert "not reached from here: /nowhere/study-" in said
    assert "on host test-host (2 attempts); delete it there" in said


@pytest.mark.parametrize("kind", ["directory", "url"])
def test_checkpoints_and_artifacts_go_wherever_they_are(
    kind: str, commands: Commands, store: Store
) -> None:
    place = commands.directory / "bucket"
    url = "" if kind == "directory" else "file://"
    where = (
        f"paths.checkpoints={url}{place}/checkpoints",
        f"paths.artifacts={url}{place}/artifacts",
    )
    study = store.studies.launch(spec(cells=1, objective=LEAVES)).study_id
    commands.check("worker", "worker.idle_timeout_s=0.5", *SOON, *where)
    assert len(list(place.glob("artifacts/*"))) == 1
    (folder,) = place.glob("checkpoints/study-*")
    (place / "checkpoints" / "another").mkdir()
    said = commands.check("delete", "--yes", NAME, *where)
    assert "1 artifact" in said
    assert str(folder) in said
    assert list(place.glob("artifacts/*")) == []
    assert list(place.glob("checkpoints/study-*")) == []
    assert (place / "checkpoints" / "another").is_dir()
    assert store.reads.trials(study) == []


def test_an_object_store_that_refuses_is_a_problem_in_words(tmp_path: Path) -> None:
    removal = Removal()
    removal.checkpoints("nosuch://bucket/path", "study")
    removal.artifacts_of("nosuch://bucket/path", ("a",))
    assert [problem.partition(": ")[0] for problem in removal.problems] == [
        "paths.checkpoints=nosuch://bucket/path",
        "paths.artifacts=nosuch://bucket/path",
    ]
    assert all("unknown protocol 'nosuch'" in problem for problem in removal.problems)


def test_links_are_deleted_and_not_followed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "set.bin").write_bytes(b"precious")
    runs = tmp_path / "runs"
    (runs / "trial-0").mkdir(parents=True)
    (runs / "trial-0" / "log").write_bytes(b"x" * 1000)
    (runs / "trial-0" / "data").symlink_to(data)
    (runs / "trial-0" / "gone").symlink_to(tmp_path / "nowhere")
    removal = Removal()
    removal.folder(runs)
    removal.folder(runs)
    assert (removal.bytes, removal.places, removal.problems) == (1000, [str(runs)], [])
    assert (data / "set.bin").read_bytes() == b"precious"


def test_without_a_terminal_and_without_yes_nothing_is_deleted(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec())
    refused = commands.run("delete", NAME)
    assert refused.returncode == 2
    assert "add --yes to delete without being asked" in refused.stderr
    assert "study.name must be given" in commands.run("delete", "--yes").stderr
    assert len(store.reads.studies()) == 1


@pytest.mark.parametrize(("typed", "deleted"), [("study\n", True), ("y\n", False), ("\x04", False)])
def test_on_a_terminal_the_name_has_to_be_typed(
    typed: str, deleted: bool, commands: Commands, store: Store
) -> None:
    store.studies.launch(spec())
    keyboard, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            commands.line("delete", NAME),
            cwd=ROOT,
            env=commands.environment(),
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(keyboard, typed.encode())
        out, err = process.communicate(timeout=60)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert "study study, active: 0 trials" in err
    assert "type the study's name to delete all of this:" in err
    assert (process.returncode == 0) is deleted
    assert ("deleted study study" in out) is deleted
    assert ("nothing was deleted" in err) is not deleted
    assert (store.reads.studies() == []) is deleted


def test_a_role_that_may_not_delete_says_so_in_one_sentence(
    commands: Commands, store: Store
) -> None:
    store.studies.launch(spec())
    role = f"reader_{os.getpid()}"
    connection = psycopg2.connect(store.url.replace("+psycopg2", ""))
    connection.autocommit = True

    def execute(*statements: str) -> None:
        for statement in statements:
            connection.cursor().execute(statement)

    execute(
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA orchestrator, public TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA orchestrator, public TO {role}",
    )
    separator = "&" if "?" in store.url else "?"
    reader = replace(commands, url=f"{store.url}{separator}options=-c%20role%3D{role}")
    try:
        refused = reader.run("delete", "--yes", NAME)
        assert refused.returncode == 1
        assert f"the database role {role} may not delete studies" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert "study study has no trial yet" in reader.check("trials", NAME)
    finally:
        execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")
        connection.close()
    assert store.reads.find("study").active


def test_a_server_that_takes_no_writes_keeps_the_study(commands: Commands, store: Store) -> None:
    store.studies.launch(spec())
    separator = "&" if "?" in store.url else "?"
    read_only = "options=-c%20default_transaction_read_only%3Don"
    standby = replace(commands, url=f"{store.url}{separator}{read_only}")
    refused = standby.run("delete", "--yes", NAME)
    assert refused.returncode == 3
    assert "does not accept writes" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert store.reads.find("study").active


def test_a_worker_that_was_killed_here_does_not_keep_its_study(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(spec(cells=1, objective=SLOW)).study_id
    with commands.started("worker", "worker.lease_ttl_s=600"):
        wait_until(lambda: [t.state for t in store.reads.trials(study)] == ["RUNNING"], 60)
        kill(store.reads.workers()[0].pid)
    commands.check("delete", "--yes", NAME)
    assert store.reads.studies() == []


def test_a_late_result_of_a_deleted_study_is_refused_quietly(store: Store) -> None:
    study = store.studies.launch(spec(cells=1)).study_id
    lease = store.fleet.register(60)
    ticket = take(store, lease, study)
    assert ticket is not None
    attempt = begun(store, ticket, lease, suggestion(ticket))
    store.ledger.deregister(lease, "its machine vanished")
    found: Any = store.deletion.begin(study, "me")
    assert isinstance(found, Leavings)
    store.deletion.finish(study)
    with pytest.raises(OrchestratorError):
        end(store, attempt)
    assert set(rows(store).values()) == {0}
