"""`orchestrator dashboard`: optuna-dashboard on the same storage, on this machine only."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import psutil
import pytest

from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.studies import end, spec, start
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def make_study(store: Store) -> None:
    study = store.studies.launch(spec("shown", cells=3)).study_id
    lease = store.fleet.register(60)
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)


def test_the_dashboard_shows_the_study_to_this_machine_only(commands: Commands, store: Store) -> None:
    make_study(store)
    port = free_port()
    with commands.started("dashboard", f"dashboard.port={port}") as dashboard:
        listing = wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/studies"), 60)
        assert [study["study_name"] for study in json.loads(listing)["study_summaries"]] == ["shown"]
        listening = [c.laddr.ip for c in psutil.Process(dashboard.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
        dashboard.send_signal(signal.SIGTERM)
        assert dashboard.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_named(commands: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = commands.run("dashboard", f"dashboard.port={port}")
    assert (done.returncode, f"dashboard.port={port}" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_a_browser_draws_the_trials_of_the_study(commands: Commands, store: Store, tmp_path: Path) -> None:
    make_study(store)
    port = free_port()
    flags = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    )
    with commands.started("dashboard", f"dashboard.port={port}"):
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/studies"), 60)
        page = subprocess.run(
            [
                str(CHROMIUM),
                *flags.split(),
                f"--user-data-dir={tmp_path}/profile",
                "--virtual-time-budget=20000",
                "--dump-dom",
                f"http://127.0.0.1:{port}/dashboard",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        ).stdout
    assert "shown" in page
