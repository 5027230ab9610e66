"""Where studies live: the embedded server that commands share, and a password that shows up
nowhere.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import psycopg2
import pytest

from orchestrator.store.embedded import server as embedded
from tests.support.commands import CONFIG, Commands, descendants
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
TINY = (f"--config-dir={CONFIG}", "experiment=tiny", "sampler=random")
CANARY = "cAnAry-Pa55"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(f"/tmp/orchestrator-test-{os.getpid()}-{tmp_path_factory.mktemp('home').name}")
    path.mkdir()
    path.chmod(0o755)
    return path


def test_commands_share_the_embedded_server_and_the_last_one_stops_it(home: Path) -> None:
    commands = Commands(None, home)
    commands.check("launch", *TINY, "worker.count=1")
    server = home / "postgres"
    assert not embedded.running(server), "the last one out stopped it"
    assert "finished (budget spent)" in commands.check("status")
    url = commands.check("db", "url").strip()
    assert embedded.running(server), "db url keeps it up"
    assert len(optuna.load_study(study_name="tiny", storage=url).trials) == 6
    assert "stopped" in commands.check("db", "stop")
    assert not embedded.running(server)
    assert "no embedded server was running" in commands.check("db", "stop")


def test_a_study_survives_the_death_of_its_embedded_server(home: Path) -> None:
    commands = Commands(None, home)
    slow = (
        "objective._target_=tests.support.training.slow",
        "+objective.seconds=1",
        "worker.count=2",
        "worker.heartbeat_s=1",
    )
    with commands.started("launch", *TINY, *slow) as launch:
        wait_until(lambda: list(home.glob("runs/tiny-*/trial-1")), 60)
        postmaster = int((home / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        assert launch.wait(timeout=120) == 0, launch.communicate()[0]
    url = commands.check("db", "url").strip()
    trials = optuna.load_study(study_name="tiny", storage=url).trials
    assert sorted(t.params["a"] for t in trials if t.state.name == "COMPLETE") == [0, 0, 1, 1, 2, 2]
    assert all(t.state.is_finished() for t in trials)
    commands.check("db", "stop")


def test_the_password_of_the_url_shows_up_nowhere(database_url: str, tmp_path: Path) -> None:
    commands = Commands(
        database_url.replace("postgres@", f"postgres:{CANARY}@"), tmp_path, fresh=True
    )
    slow = (
        "objective._target_=tests.support.chaos_objective.train",
        f"+objective.gate={tmp_path}/gate",
        "worker.count=1",
        "a=1",
        "budget.trials=1",
    )
    with commands.started("launch", *TINY, *slow, "budget.per_cell=1") as launch:
        wait_until(lambda: list(tmp_path.glob("runs/tiny-*/trial-0/attempt-1-*/job.json")), 60)
        family = wait_until(lambda: found if len(found := descendants(launch.pid)) >= 3 else [])
        looked_at = [_command_and_environment(pid) for pid in family]
        said = "\n".join(command for command, _ in looked_at)
        child_environments = [
            command + environment
            for command, environment in looked_at
            if "keeper" in command + environment
        ]
        (tmp_path / "gate").touch()
        assert launch.wait(timeout=60) == 0
        said += launch.communicate()[0]
    assert child_environments, "a worker, a keeper and a child were looked at"
    said += "".join(child_environments)
    said += "".join(
        replace(commands, fresh=False).check(*words)
        for words in (("status",), ("best", "--json"), ("launch", *TINY, *slow, "--cfg", "job"))
    )
    said += "\n".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    said += _whole_database(database_url)
    assert "tiny" in said
    assert CANARY not in said


def _command_and_environment(pid: int) -> tuple[str, str]:
    try:
        process = psutil.Process(pid)
        return " ".join(process.cmdline()), str(process.environ())
    except psutil.NoSuchProcess:
        return "", ""


def _whole_database(url: str) -> str:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables "
            "WHERE table_schema IN ('public', 'orchestrator')"
        )
        text = []
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT t::text FROM {table} t")
            text += [row[0] for row in cursor.fetchall()]
    connection.close()
    return "\n".join(text)
