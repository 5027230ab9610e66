"""The webhook: what is sent, how often, and that one that fails or hangs hurts nobody."""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from orchestrator.config import compose
from orchestrator.errors import ConfigError
from orchestrator.passwords import HIDDEN
from orchestrator.runner.keeper_handle import environment
from orchestrator.settings import NotifyConfig
from orchestrator.store import Notice
from orchestrator.worker import notifying
from orchestrator.worker.notifying import Notifier, Webhook, webhook
from tests.support.waiting import wait_until

AT = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
ENDED = Notice("digits", "finished", "budget spent", AT, None, "accuracy", 59, 60, 1, 0.98, 12)
CLOSED = Notice("digits", "cell closed", "out of memory", AT, {"a": 1}, "v", 0, 9, 4, None, None)
SECRET = "T0ken"


class FakeStore:
    """A database with these notices to take."""

    def __init__(self, *notices: Notice) -> None:
        self.left = list(notices)
        self.asked: list[tuple[str, Any]] = []

    def notices(self, target: str, studies: Any = None) -> FakeStore:
        self.asked.append((target, studies))
        return self

    def take(self, *, last: bool = False) -> list[Notice]:
        taken, self.left = self.left, []
        return taken


class Server:
    """An HTTP server that answers each message with the next of `codes`; None: it hangs until the
    end of the test.
    """

    def __init__(self, *codes: int | None) -> None:
        self.codes = list(codes)
        self.got: list[Any] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.got.append(json.loads(self.rfile.read(length)))
                code = outer.codes.pop(0) if outer.codes else 200
                if code is None:
                    outer.over.wait()
                    return
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/login")
                self.end_headers()

            def do_GET(self) -> None:
                outer.got.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def hook(self) -> Webhook:
        return Webhook(f"http://127.0.0.1:{self.http.server_port}/{SECRET}", slack=False)


@contextmanager
def serving(*codes: int | None) -> Iterator[Server]:
    server = Server(*codes)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(notifying, "PATIENCE_S", 60.0)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def notifier(store: FakeStore, hook: Webhook) -> Notifier:
    return Notifier(store, hook, ["digits"])  # type: ignore[arg-type]


def test_each_notice_is_sent_once_in_order_and_says_all() -> None:
    with serving() as server:
        store = FakeStore(ENDED)
        one = notifier(store, server.hook)
        one.look()
        store.left.append(CLOSED)
        one.close()
        assert server.got == [
            {
                "study": "digits",
                "kind": "finished",
                "reason": "budget spent",
                "time": "2026-11-30T12:00:00+00:00",
                "cell": None,
                "trials": {"spent": 59, "total": 60, "failed": 1},
                "best": {"metric": "accuracy", "value": 0.98, "trial": 12},
                "text": "study digits finished: budget spent; 59 of 60 trials, 1 failed, best "
                "accuracy 0.98 (trial 12)",
            },
            {
                "study": "digits",
                "kind": "cell closed",
                "reason": "out of memory",
                "time": "2026-11-30T12:00:00+00:00",
                "cell": {"a": 1},
                "trials": {"spent": 0, "total": 9, "failed": 4},
                "best": None,
                "text": "study digits: cell a=1 closed: out of memory; 0 of 9 trials, 4 failed",
            },
        ]
    (target, studies) = store.asked[0]
    assert studies == ["digits"]
    assert SECRET not in target
    assert SECRET not in repr(server.hook)


def test_slack_gets_its_own_form() -> None:
    hook = webhook(NotifyConfig(url="https://hooks.slack.com/services/T/B/x", url_file=None))
    assert hook is not None
    assert hook.slack
    assert json.loads(hook.message(CLOSED)) == {
        "text": "study digits: cell a=1 closed: out of memory; 0 of 9 trials, 4 failed"
    }
    other = webhook(NotifyConfig(url="https://chat.example.org/hook", form="slack"))
    assert other is not None
    assert other.slack


def test_a_webhook_that_is_down_for_a_moment_is_tried_again() -> None:
    with serving(500, 503) as server:
        one = notifier(FakeStore(ENDED), server.hook)
        one.look()
        one.close()
        assert len(server.got) == 3


def test_one_that_fails_is_logged_once_without_its_url(caplog: pytest.LogCaptureFixture) -> None:
    with serving(*[500] * 9) as server, caplog.at_level(logging.WARNING):
        store = FakeStore(ENDED, CLOSED)
        one = notifier(store, server.hook)
        one.look()
        wait_until(lambda: len(server.got) == 6, 10)
        store.left = [ENDED]
        one.close()
    (said,) = caplog.messages
    assert "was not told that study digits finished: budget spent" in said
    assert "(HTTP 500)" in said
    assert SECRET not in caplog.text
    assert "127.0.0.1" not in caplog.text


def test_one_that_refuses_for_good_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with serving(404) as server:
        one = notifier(FakeStore(ENDED), server.hook)
        one.look()
        one.close()
        assert len(server.got) == 1
    assert "(HTTP 404)" in caplog.text


def test_a_redirect_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with serving(302) as server:
        one = notifier(FakeStore(ENDED), server.hook)
        one.look()
        one.close()
        assert len(server.got) == 1, "it is neither followed nor asked for again"
    assert "(HTTP 302)" in caplog.text


def test_no_reason_names_the_host() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate is not valid for 'chat.example.org'")
    assert notifying._reason(URLError(error)) == "TLS: SSLCertVerificationError"


def test_one_that_hangs_delays_neither_a_look_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifying, "PATIENCE_S", 0.05)
    with serving(None) as server:
        store = FakeStore(ENDED)
        one = notifier(store, server.hook)
        one.look()
        wait_until(lambda: len(server.got) == 1, 10)
        store.left = [CLOSED] * 500
        one.look()  # returns while the first message hangs
        assert store.left == []
        one.close()
        assert len(server.got) == 1


def test_one_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifying, "TIMEOUT_S", 0.05)
    with serving(None, None, None) as server:
        one = notifier(FakeStore(ENDED), server.hook)
        one.look()
        one.close()
    assert "no answer within 0.05 s" in caplog.text


# -------------------------------------------------------------------------------------- its secret


@pytest.mark.parametrize("command", ["launch", "worker", "status"])
def test_its_url_comes_from_the_environment_and_is_shown_nowhere(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://chat.example.org/{SECRET}"
    monkeypatch.setenv("ORCHESTRATOR_NOTIFY_URL", url)
    composed = compose(command, [])
    assert composed.host.notify.url == url
    assert composed.config.notify.url == HIDDEN
    assert SECRET not in f"{composed!r} {composed.host!r}"
    monkeypatch.delenv("ORCHESTRATOR_NOTIFY_URL")
    assert webhook(compose(command, []).host.notify) is None


@pytest.mark.parametrize("command", ["launch", "worker"])
@pytest.mark.parametrize(
    "word",
    [
        "notify.url=URL",
        "notify=URL",
        "++notify.uri=URL",
        "notify.url=URL,b",
        "notify.url='${oc.env:NONE,URL}'",
    ],
)
def test_it_is_neither_typed_nor_written_in_a_config(command: str, word: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.url: is a secret") as error:
        compose(command, [word.replace("URL", f"https://chat.example.org/{SECRET}")])
    assert SECRET not in str(error.value)


def test_trials_get_no_variable_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_HOOK", f"https://chat.example.org/{SECRET}")
    monkeypatch.setenv("OTHER", "kept")
    compose("worker", ["notify.url=${oc.env:TEAM_HOOK}"])
    given = environment()
    assert "TEAM_HOOK" not in given
    assert given["OTHER"] == "kept"


def test_a_file_may_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "hook"
    file.write_text(f"https://chat.example.org/{SECRET}\n")
    hook = webhook(NotifyConfig(url_file=str(file)))
    assert hook is not None
    assert hook.url.endswith(f"/{SECRET}")
    for settings, said in (
        (NotifyConfig(url="https://a.b/c", url_file=str(file)), "leave out one of them"),
        (NotifyConfig(url_file=str(tmp_path / "none")), "No such file"),
        (NotifyConfig(url=f"ftp://a.b/{SECRET}"), "notify.url: must be one URL, http"),
        (NotifyConfig(url=f"https:///{SECRET}"), "notify.url: must be one URL, http"),
        (NotifyConfig(url=f"https://a b/{SECRET}"), "notify.url: must be one URL, http"),
        (NotifyConfig(url=f"https://a:b/{SECRET}"), "notify.url: must be one URL, http"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            webhook(settings)
        assert SECRET not in str(error.value)
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="the file is empty"):
        webhook(NotifyConfig(url_file=str(file)))
