"""`orchestrator dashboard`: optuna-dashboard on the same storage, safe to leave open beside a
running study.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from orchestrator.search import open_storage
from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.studies import end, spec, start
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PASSWORD = "correct-horse-battery"


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that has been started; requests to it as any program or browser may send them."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        told = {name.replace("_", "-"): value for name, value in headers.items()} | {
            "Content-Type": "application/json"
        }
        try:
            connection.request(method, path, None if body is None else json.dumps(body), told)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def up(self) -> bool:
        assert self.process.poll() is None, "the dashboard ended"
        try:
            return self.ask("GET", "/api/meta")[0] in (200, 401)
        except OSError:
            return False

    def listening(self) -> list[str]:
        return [
            c.laddr.ip
            for c in psutil.Process(self.process.pid).net_connections()
            if c.status == psutil.CONN_LISTEN
        ]

    def stop(self) -> str:
        """Ends it as a container does; returns all that it said."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said
        return said


@contextmanager
def dashboard(commands: Commands, *words: str, reach: str = "127.0.0.1") -> Iterator[Dashboard]:
    port = free_port(reach)
    with commands.started("dashboard", f"dashboard.port={port}", *words) as process:
        started = Dashboard(process, reach, port)
        wait_until(started.up, 60)
        yield started


def make_study(store: Store) -> int:
    study = store.studies.launch(spec("shown", cells=3)).study_id
    lease = store.fleet.register(60)
    while (claim := start(store, lease, study)) is not None:
        end(store, claim)
    return study


def names(store: Store) -> list[str]:
    return [study.study_name for study in open_storage(store.url).get_all_studies()]


def test_the_dashboard_shows_the_study_to_this_machine_only(
    commands: Commands, store: Store
) -> None:
    make_study(store)
    with dashboard(commands) as served:
        status, listing = served.ask("GET", "/api/studies")
        assert (
            status,
            [study["study_name"] for study in json.loads(listing)["study_summaries"]],
        ) == (200, ["shown"])
        assert served.listening() == ["127.0.0.1"]
        said = served.stop()
    assert (
        f"optuna-dashboard at http://127.0.0.1:{served.port}/ (open to every user of this "
        "machine; press Ctrl-C to end it)"
    ) in said


def test_a_live_study_can_be_neither_deleted_nor_renamed_nor_its_trials_told(
    commands: Commands, store: Store
) -> None:
    study = store.studies.launch(spec("live", cells=1)).study_id
    lease = store.fleet.register(60)
    claim = start(store, lease, study)
    assert claim is not None
    (trial,) = optuna.load_study(study_name="live", storage=open_storage(store.url)).trials
    with dashboard(commands) as served:
        refused = [
            served.ask("DELETE", f"/api/studies/{study}"),
            served.ask("POST", f"/api/studies/{study}/rename", {"study_name": "other"}),
            served.ask("POST", f"/api/trials/{trial._trial_id}/tell", {"state": "Fail"}),
        ]
        assert [status for status, _ in refused] == [409] * 3
        assert all(
            "orchestrator stop study.name=live" in json.loads(body)["reason"] for _, body in refused
        )
        assert (
            served.ask("PUT", f"/api/studies/{study}/note", {"version": 1, "body": "seen"})[0]
            == 204
        )

        end(store, claim)  # its last trial: the study is finished
        assert (
            served.ask("DELETE", f"/api/studies/{study}", {}, Origin="http://evil.example")[0]
            == 403
        )
        assert (
            served.ask(
                "DELETE",
                f"/api/studies/{study}",
                {},
                Host="evil.example",
                Origin="http://evil.example",
            )[0]
            == 403
        )
        assert names(store) == ["live"]
        assert served.ask("POST", f"/api/studies/{study}/rename", {"study_name": "other"})[0] == 201
        assert names(store) == ["other"]
        (renamed,) = json.loads(served.ask("GET", "/api/studies")[1])["study_summaries"]
        assert served.ask("DELETE", f"/api/studies/{renamed['study_id']}")[0] == 204
        assert names(store) == []
        assert served.stop().count("refused: study live is ACTIVE") == 3


def test_other_machines_are_let_in_with_the_password_only(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    study = make_study(store)
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o600)
    token = f"Bearer {PASSWORD}"
    words = (
        "dashboard.host=0.0.0.0",
        "dashboard.read_only=true",
        f"dashboard.password_file={file}",
    )
    with dashboard(replace(commands, fresh=True), *words) as served:
        assert served.listening() == ["0.0.0.0"]
        assert served.ask("GET", "/api/studies")[0] == 401
        assert served.ask("GET", "/static/bundle.js")[0] == 401
        assert served.ask("GET", "/api/studies", Authorization="Bearer wrong")[0] == 401
        assert served.ask("GET", "/api/studies", Authorization=token)[0] == 200
        status, body = served.ask("DELETE", f"/api/studies/{study}", Authorization=token)
        assert (status, "read-only" in json.loads(body)["reason"]) == (403, True)
        argv = psutil.Process(served.process.pid).cmdline()
        said = served.stop()
    assert names(store) == ["shown"]
    assert "(asks for the password, read-only; press Ctrl-C to end it)" in said
    assert PASSWORD not in said + " ".join(argv)


def test_a_request_too_long_or_not_finished_holds_up_nobody(commands: Commands) -> None:
    with dashboard(commands) as served:
        unfinished = [socket.create_connection((served.host, served.port)) for _ in range(20)]
        for connection in unfinished:
            connection.sendall(
                b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            )
        assert served.ask("POST", "/api/studies", {"study_name": "x" * (1 << 21)})[0] == 413
        announced = socket.create_connection((served.host, served.port), timeout=60)
        announced.sendall(
            b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
        )
        assert announced.recv(12) == b"HTTP/1.1 413"
        assert served.ask("GET", "/api/studies")[0] == 200
        for connection in [*unfinished, announced]:
            connection.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_it_listens_at_the_ipv6_loopback_address(commands: Commands) -> None:
    with dashboard(commands, "dashboard.host=::1", reach="::1") as served:
        assert served.listening() == ["::1"]
        assert f"http://[::1]:{served.port}/" in served.stop()


def test_a_port_that_is_taken_is_named(commands: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = commands.run("dashboard", f"dashboard.port={port}")
    assert (done.returncode, f"dashboard.port={port}" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_without_a_password_it_does_not_even_look_for_the_database(tmp_path: Path) -> None:
    nowhere = Commands("postgresql+psycopg2://nobody@127.0.0.1:1/nothing", tmp_path)
    done = nowhere.run("dashboard", "dashboard.host=0.0.0.0", timeout=30)
    assert done.returncode == 2
    assert "dashboard.host=0.0.0.0" in done.stderr
    assert "dashboard.password_file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_a_browser_draws_the_trials_of_the_study(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    make_study(store)
    flags = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-sync"
    )
    with dashboard(commands) as served:
        page = subprocess.run(
            [
                str(CHROMIUM),
                *flags.split(),
                f"--user-data-dir={tmp_path}/profile",
                "--virtual-time-budget=20000",
                "--dump-dom",
                f"http://127.0.0.1:{served.port}/dashboard",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        ).stdout
    assert "shown" in page
