"""The guard of the dashboard: every route of the installed optuna-dashboard, called as a web server
calls it.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import optuna
import psutil
import pytest
from bottle import HTTPResponse
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import InMemoryStorage

from orchestrator.config import DashboardConfig
from orchestrator.dashboard import guard
from orchestrator.dashboard.access import Access
from orchestrator.dashboard.guard import Guard
from orchestrator.dashboard.live import LiveStudies
from orchestrator.dashboard.server import pages
from orchestrator.errors import ConfigError, StoreUnavailableError
from orchestrator.store import Store, StudyRow
from orchestrator.store.reads import Reads

HARDENED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PASSWORD = "correct horse"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        return str(json.loads(self.body)["reason"])


@dataclass
class Ledger:
    """Stands for the ledger's `Reads`: the studies of ours, and the numbers of the trials that
    still run.
    """

    rows: list[StudyRow]
    running: tuple[int, ...] = ()
    away: bool = False

    def studies(self) -> list[StudyRow]:
        if self.away:
            raise StoreUnavailableError("the database is away")
        return self.rows

    def trials(self, study_id: int, *, live_only: bool) -> list[int]:
        assert live_only
        return list(self.running)


@dataclass
class Site:
    """optuna-dashboard on a storage in memory that holds one study of ours with one
    running trial.
    """

    app: Any
    storage: InMemoryStorage
    ledger: Ledger
    study: optuna.Study
    trial: optuna.Trial

    def routes(self, *, reading: bool) -> list[tuple[str, str]]:
        """Method and a path that matches, of every route."""
        return [
            (r.method, self.path(r.rule)) for r in self.app.routes if (r.method == "GET") == reading
        ]

    def path(self, rule: str) -> str:
        ids = {
            "study_id": str(self.study._study_id),
            "trial_id": str(self.trial._trial_id),
            "artifact_id": "a1",
            "": "",
        }
        ids |= {"plot_type": "edf", "history_id": "h", "filename": "bundle.js"}
        return re.sub(r"<(\w*)(:[^<>]*(<[^<>]*>)?[^<>]*)?>", lambda found: ids[found[1]], rule)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="mine")
    row = StudyRow(
        study._study_id, "mine", 1, "ACTIVE", None, True, datetime.now(UTC), datetime.now(UTC)
    )
    ledger = Ledger([row])
    (tmp_path / "stored").mkdir()
    store = cast(Store, type("Opened", (), {"reads": cast(Reads, ledger)}))
    app = pages(store, storage, FileSystemArtifactStore(tmp_path / "stored"))
    return Site(app, storage, ledger, study, study.ask())


def ask(app: Any, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request as the server hands it over; `Host` is a loopback address unless given."""
    content = b"" if body is None else json.dumps(body).encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.partition("?")[0],
        "REMOTE_ADDR": "192.0.2.1",
    }
    environ |= {
        "HTTP_HOST": "127.0.0.1:8080",
        "HTTP_ACCEPT_ENCODING": "",
        "CONTENT_LENGTH": str(len(content)),
    }
    environ |= {
        "CONTENT_TYPE": "application/json",
        "wsgi.input": io.BytesIO(content),
        "QUERY_STRING": path.partition("?")[2],
    }
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    setup_testing_defaults(environ)
    told: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(
        status: str, fields: list[tuple[str, str]], _exc_info: Any = None
    ) -> Callable[[bytes], object]:
        told.append((status, fields))
        return io.BytesIO().write

    answered = app(environ, start_response)
    sent = b"".join(answered)
    getattr(answered, "close", lambda: None)()
    (status, fields) = told[-1]
    assert len({name.lower() for name, _ in fields}) == len(fields), f"a header twice: {fields}"
    return Answer(int(status.split()[0]), dict(fields), sent)


def access(**changes: Any) -> Access:
    return replace(Access.checked(DashboardConfig()), **changes)


def basic(password: str, user: str = "anyone") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# -------------------------------------------------------------------------------------- every route


def test_all_routes_are_tried(site: Site) -> None:
    reading, changing = site.routes(reading=True), site.routes(reading=False)
    assert len(reading) >= 13
    assert len(changing) >= 20
    for method, path in [*reading, *changing]:
        route, _ = site.app.router.match(
            {"REQUEST_METHOD": method, "PATH_INFO": path.rstrip("/") or "/"}
        )
        assert (route.method, site.path(route.rule)) == (method, path)


def test_no_route_answers_without_the_password(site: Site) -> None:
    guarded = Guard(site.app, access(password=PASSWORD.encode()))
    for method, path in site.routes(reading=True) + site.routes(reading=False):
        for headers in (
            {},
            {"authorization": basic("")},
            {"authorization": "Bearer"},
            {"authorization": "Digest x"},
        ):
            answer = ask(guarded, method, path, {}, **headers)
            assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, True), (
                method,
                path,
                headers,
            )
            assert PASSWORD.encode() not in answer.body
    assert ask(guarded, "GET", "/no/such/page").status == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "MKCOL"])
def test_no_route_changes_anything_when_read_only(site: Site, method: str) -> None:
    guarded = Guard(site.app, access(read_only=True))
    site.ledger.rows = []
    for path in {path for _, path in site.routes(reading=True) + site.routes(reading=False)}:
        answer = ask(guarded, method, path, {})
        assert (answer.status, "read-only" in answer.reason) == (403, True), path
    assert ask(guarded, "GET", "/api/studies").status == 200
    assert ask(guarded, "HEAD", "/api/studies").status == 200


@pytest.mark.parametrize(
    "foreign",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:8080"},
        {"origin": "https://127.0.0.1.evil.example:8080"},
        {"origin": "http://evil.example@127.0.0.1:8080"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"origin": "file://127.0.0.1:8080"},
        {"referer": "http://evil.example/127.0.0.1:8080/"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:8080"},
    ],
    ids=str,
)
def test_no_route_takes_a_change_from_another_site(site: Site, foreign: dict[str, str]) -> None:
    site.ledger.rows = []
    guarded = Guard(site.app, access())
    for method, path in site.routes(reading=False):
        answer = ask(guarded, method, path, {}, **foreign)
        assert (answer.status, "own page" in answer.reason) == (403, True), (method, path)
    # a link from elsewhere may be followed
    assert ask(guarded, "GET", "/dashboard", **foreign).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.",
        "10.0.0.1",
        "",
        "127.0.0.1,x",
        "a b",
        "::1",
    ],
)
def test_no_route_answers_to_a_foreign_name(site: Site, host: str) -> None:
    guarded = Guard(site.app, access())
    for method, path in site.routes(reading=True) + site.routes(reading=False):
        answer = ask(guarded, method, path, host=host)
        assert (answer.status, "dashboard.hosts" in answer.reason) == (403, True), (method, path)


def test_every_answer_is_hardened_and_open_to_no_other_origin(site: Site) -> None:
    guarded = Guard(site.app, access())
    asked = [
        *site.routes(reading=True),
        *site.routes(reading=False),
        ("GET", "/no/such/page"),
        ("PATCH", "/dashboard"),
    ]
    for (method, path), host in itertools.product(asked, ("localhost", "evil.example")):
        answer = ask(guarded, method, path, {}, host=host)
        assert {name: answer.headers.get(name) for name in HARDENED} == HARDENED, (method, path)
        assert "Content-Security-Policy" in answer.headers, (method, path)
        assert not [
            name for name in answer.headers if name.lower().startswith("access-control-")
        ], (method, path)


def test_the_page_keeps_the_policy_that_optuna_dashboard_gives_it(site: Site) -> None:
    page = ask(Guard(site.app, access()), "GET", "/dashboard")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")


def test_refusals_are_valid_wsgi(site: Site) -> None:
    environ: dict[str, Any] = {"QUERY_STRING": ""}
    setup_testing_defaults(environ)
    for method, host in itertools.product(("GET", "HEAD"), ("evil.example", "localhost")):
        checked = validator(Guard(site.app, access(password=b"x")))
        answered = checked(
            environ | {"REQUEST_METHOD": method, "HTTP_HOST": host}, lambda *_: io.BytesIO().write
        )
        assert (b"".join(answered) == b"") == (method == "HEAD")
        answered.close()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- who may come in


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LocalHost:9000", "[::1]:8080", "[::1]", "127.0.0.1:1"]
)
def test_it_answers_to_its_loopback_names_at_any_port(site: Site, host: str) -> None:
    guarded = Guard(site.app, access())
    assert ask(guarded, "GET", "/api/studies", host=host).status == 200
    created = {"study_name": f"of {host}", "directions": ["minimize"]}
    assert (
        ask(guarded, "POST", "/api/studies", created, host=host, origin=f"http://{host}").status
        == 201
    )


def test_it_answers_to_the_names_it_is_given_also_through_a_proxy_that_changes_the_host(
    site: Site,
) -> None:
    guarded = Guard(site.app, Access.checked(DashboardConfig(hosts=["Tuning.example.org"])))
    created = [{"study_name": name, "directions": ["minimize"]} for name in "abc"]
    origin = "https://tuning.example.org"
    assert (
        ask(
            guarded, "POST", "/api/studies", created[0], host="tuning.example.org", origin=origin
        ).status
        == 201
    )
    assert (
        ask(
            guarded, "POST", "/api/studies", created[1], host="127.0.0.1:8080", origin=origin
        ).status
        == 201
    )
    assert (
        ask(
            guarded,
            "POST",
            "/api/studies",
            created[2],
            host="tuning.example.org",
            origin="https://example.org",
        ).status
        == 403
    )


@pytest.mark.parametrize("user", ["", "anyone", "jürgen"])
@pytest.mark.parametrize("password", ["correct horse", "with:colon", "größer"])
def test_the_password_opens_whatever_the_user_name(site: Site, user: str, password: str) -> None:
    guarded = Guard(site.app, access(password=password.encode()))
    assert ask(guarded, "GET", "/api/studies", authorization=basic(password, user)).status == 200
    token = password.encode().decode("latin-1")
    assert ask(guarded, "GET", "/api/studies", authorization=f"bearer {token}").status == 200


def test_guessing_is_slowed_down_and_an_old_tab_locks_nobody_out(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    guarded = Guard(site.app, access(password=PASSWORD.encode()))

    def status(password: str, client: str = "192.0.2.1") -> int:
        environ = {"authorization": basic(password)}
        return ask(
            lambda e, s: guarded(e | {"REMOTE_ADDR": client}, s), "GET", "/api/studies", **environ
        ).status

    assert {status("old") for _ in range(50)} == {401}
    assert status(PASSWORD) == 200
    with caplog.at_level(logging.WARNING):
        assert [status(f"guess {n}") for n in range(12)] == [401] * 9 + [429] * 3
    assert status(PASSWORD) == 429  # or a guess that is right would tell
    assert status(PASSWORD, "192.0.2.2") == 200
    assert ask(guarded, "GET", "/api/studies").status == 401  # who gives none is asked for one
    now += 60
    assert status(PASSWORD) == 200
    assert "guess" not in caplog.text
    assert [record.getMessage() for record in caplog.records] == [
        "10 wrong passwords from 192.0.2.1; it is refused for up to 60 s"
    ]


def test_guesses_from_many_addresses_fill_no_memory(site: Site) -> None:
    guarded = Guard(site.app, access(password=PASSWORD.encode()))
    for n in range(guard._ADDRESSES + 50):
        ask(
            lambda e, s, n=n: guarded(e | {"REMOTE_ADDR": f"2001:db8::{n:x}"}, s),
            "GET",
            "/",
            authorization=basic("wrong"),
        )
    assert len(guarded._guesses._wrong) == guard._ADDRESSES


def test_a_long_body_is_refused_before_it_is_read(site: Site) -> None:
    guarded = Guard(site.app, access())
    note = {"version": 1, "body": "x" * (guard.BODY_BYTES - 100)}
    path = f"/api/studies/{site.study._study_id}/note"
    assert ask(guarded, "PUT", path, note).status == 204
    answer = ask(guarded, "PUT", path, note | {"version": 2, "body": "x" * guard.BODY_BYTES})
    assert (answer.status, "1048576" in answer.reason) == (413, True)


# ------------------------------------------------------------------------------------- live studies


def writes(site: Site) -> Iterator[tuple[str, str]]:
    """Routes that change a study or a trial, notes aside."""
    for route in site.app.routes:
        if route.method != "GET" and "_id" in route.rule and not route.rule.endswith("/note"):
            yield route.method, site.path(route.rule)


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED", "STOPPING", "FINISHED while a trial runs"])
def test_a_live_study_takes_nothing_but_notes(site: Site, state: str) -> None:
    site.ledger.rows = [replace(site.ledger.rows[0], state=state.split()[0])]
    site.ledger.running = (0,)
    before = site.storage.get_trial(site.trial._trial_id)
    tried = list(writes(site))
    assert len(tried) >= 13
    for method, path in tried:
        # Bottle reads all three alike
        for spelled in (path, f"{path}/", path.replace("/api/", "/api\xff/", 1)):
            body = {"state": "Fail", "study_name": "other", "user_attrs": {"a": 1}}
            answer = ask(site.app, method, spelled, body)
            assert (answer.status, "orchestrator stop study.name=mine" in answer.reason) == (
                409,
                True,
            ), (method, spelled)
    assert site.storage.get_all_studies()[0].study_name == "mine"
    assert site.storage.get_trial(site.trial._trial_id) == before
    note = {"version": 1, "body": "seen"}
    study, trial = site.study._study_id, site.trial._trial_id
    assert ask(site.app, "PUT", f"/api/studies/{study}/note", note).status == 204
    assert ask(site.app, "PUT", f"/api/studies/{study}/{trial}/note", note).status == 204


def test_a_trial_is_known_by_its_own_study_whatever_study_the_path_names(site: Site) -> None:
    other = optuna.create_study(storage=site.storage, study_name="not ours")
    path = f"/api/artifacts/{other._study_id}/{site.trial._trial_id}"
    assert ask(site.app, "POST", path, {"file": "data:,eA==", "filename": "x"}).status == 409


def test_a_finished_study_and_those_of_others_can_be_changed(site: Site) -> None:
    site.ledger.rows = [replace(site.ledger.rows[0], state="FINISHED")]
    other = optuna.create_study(storage=site.storage, study_name="not ours")
    assert (
        ask(site.app, "POST", f"/api/trials/{other.ask()._trial_id}/tell", {"state": "Fail"}).status
        == 204
    )
    assert (
        ask(site.app, "POST", f"/api/studies/{other._study_id}/rename", {"study_name": "b"}).status
        == 201
    )
    assert ask(site.app, "DELETE", f"/api/studies/{site.study._study_id}").status == 204
    assert [study.study_name for study in site.storage.get_all_studies()] == ["b"]


def test_nothing_is_changed_while_the_ledger_cannot_be_asked(site: Site) -> None:
    site.ledger.away = True
    for method, path in writes(site):
        answer = ask(site.app, method, path, {})
        assert (answer.status, answer.reason) == (503, "the database is away"), (method, path)


def test_the_tables_are_never_upgraded_from_the_browser(site: Site) -> None:
    answer = ask(site.app, "POST", "/incompatible-rdb-schema")
    assert (answer.status, "orchestrator db upgrade" in answer.reason) == (403, True)


def test_a_route_that_is_not_known_is_refused_for_a_live_study(site: Site) -> None:
    ledger = cast(Reads, site.ledger)
    route = type("Route", (), {"method": "PATCH", "rule": "/api/new/<study_id:int>"})
    refused = LiveStudies(ledger, site.storage).apply(lambda **_: "changed", route)(
        study_id=site.study._study_id
    )
    assert isinstance(refused, HTTPResponse)
    assert refused.status_code == 409


# ---------------------------------------------------------------------------------------- artifacts


def test_an_artifact_is_downloaded_and_never_shown(site: Site, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>alert(1)</script>")
    store = FileSystemArtifactStore(tmp_path / "stored")
    study, trial = site.study._study_id, site.trial._trial_id
    places = {
        f"/artifacts/{study}": upload_artifact(
            artifact_store=store, file_path=str(page), study_or_trial=site.study
        ),
        f"/artifacts/{study}/{trial}": upload_artifact(
            artifact_store=store, file_path=str(page), study_or_trial=site.trial
        ),
    }
    for path, artifact in places.items():
        for prefix in ("/artifacts", "/art\xffifacts"):
            spelled = f"{path}/{artifact}".replace("/artifacts", prefix, 1)
            answer = ask(Guard(site.app, access()), "GET", spelled)
            assert (answer.status, answer.body) == (200, page.read_bytes())
            assert answer.headers["Content-Disposition"] == "attachment"
            assert answer.headers["Content-Security-Policy"].startswith("sandbox;")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in answer.headers


# ----------------------------------------------------------------------------------------- settings


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "0"])
def test_an_address_that_others_reach_needs_a_password(host: str, password_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"dashboard\.host={re.escape(host)}: .* needs dashboard\.password_file"
    ):
        Access.checked(DashboardConfig(host=host))
    allowed = Access.checked(DashboardConfig(host=host, password_file=str(password_file)))
    assert (allowed.password, "correct horse" in repr(allowed)) == (b"correct horse", False)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/"),
        ("127.0.0.2", "http://127.0.0.2:8080/"),
        ("localhost", "http://127.0.0.1:8080/"),
        ("::1", "http://[::1]:8080/"),
    ],
)
def test_a_loopback_address_needs_none(host: str, url: str) -> None:
    allowed = Access.checked(DashboardConfig(host=host))
    assert (allowed.url, allowed.terms) == (url, "open to every user of this machine")
    assert {host, "localhost"} <= allowed.names


def test_all_addresses_of_this_machine_are_its_names_when_it_listens_at_all(
    password_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ethernet = [
        SimpleNamespace(family=socket.AF_INET, address="192.0.2.7"),
        SimpleNamespace(family=socket.AF_INET6, address="fe80::7%eth0"),
        SimpleNamespace(family=psutil.AF_LINK, address="00:00:5e:00:53:07"),
    ]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": ethernet})
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU01")
    allowed = Access.checked(
        DashboardConfig(host="0.0.0.0", password_file=str(password_file), read_only=True)
    )
    assert allowed.names == {
        "127.0.0.1",
        "::1",
        "localhost",
        "0.0.0.0",
        "192.0.2.7",
        "fe80::7",
        "gpu01",
    }
    assert (allowed.url, allowed.terms) == (
        "http://127.0.0.1:8080/",
        "asks for the password, read-only",
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": ""}, r"dashboard\.host: is empty"),
        ({"host": "no such name"}, r"dashboard\.host=no such name: .*must be an address or a name"),
        ({"host": "a" * 70}, r"dashboard\.host=a+: .*must be an address or a name"),
        ({"hosts": ["*"]}, r"dashboard\.hosts=\*: must be a host name"),
        ({"hosts": ["http://a.example"]}, r"dashboard\.hosts=http://a\.example: must be"),
        ({"hosts": ["a.example:8080"]}, r"dashboard\.hosts=a\.example:8080: must be"),
        (
            {"password_file": "/nowhere/at/all"},
            r"dashboard\.password_file=/nowhere/at/all: No such file",
        ),
        ({"password_file": "/"}, r"dashboard\.password_file=/: Is a directory"),
        ({"password_file": "/dev/null"}, r"dashboard\.password_file=/dev/null: is empty"),
    ],
)
def test_a_setting_that_cannot_hold_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Access.checked(DashboardConfig(**settings))


@pytest.mark.parametrize("content", [b"first-word\nsecond-word", b"x" * 1025, b"null\0byte"])
def test_a_file_that_holds_more_than_a_password_is_refused_and_not_shown(
    password_file: Path, content: bytes
) -> None:
    password_file.write_bytes(content)
    with pytest.raises(ConfigError, match="one line of at most 1024 bytes") as refused:
        Access.checked(DashboardConfig(password_file=str(password_file)))
    assert content.decode()[:9] not in str(refused.value).replace(str(password_file), "")


def test_a_password_that_all_can_read_is_warned_of(
    password_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="orchestrator"):
        Access.checked(DashboardConfig(password_file=str(password_file)))
        assert caplog.text == ""
        password_file.chmod(0o600 | stat.S_IROTH)
        Access.checked(DashboardConfig(password_file=str(password_file)))
    assert f"chmod 600 {password_file}" in caplog.text
    assert "correct horse" not in caplog.text
