"""What a command says while it waits."""

from __future__ import annotations

import gc
import importlib
import io
import threading
from types import ModuleType

import pytest

from orchestrator.cli import main
from orchestrator.cli import waiting as module
from orchestrator.cli.waiting import waiting
from orchestrator.errors import ConfigError
from tests.support.waiting import wait_until


def timers() -> list[threading.Timer]:
    """Those that may still write something."""
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_what_takes_longer_than_a_moment_is_told_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_S", 0.01)
    said = []

    def is_told() -> bool:
        said.append(capsys.readouterr())
        return bool(said[-1].err)

    with waiting("starting the database"):
        wait_until(is_told)
    assert said[-1].err == "starting the database …\n"
    assert not any(each.out for each in said)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_erased_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(module, "MOMENT_S", 0.01)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("reading", only_on_terminal=True):
        wait_until(terminal.getvalue)
        assert terminal.getvalue() == "reading …"
    assert terminal.getvalue() == "reading …\r\x1b[K"


def test_on_a_terminal_a_command_says_that_it_starts_while_its_modules_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(module, "MOMENT_S", 0.01)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    really = importlib.import_module

    def load(name: str) -> ModuleType:
        if name != "orchestrator.cli.status":
            return really(name)
        terminal.truncate(0)
        terminal.seek(0)
        wait_until(terminal.getvalue)
        raise ConfigError("told after it was erased")

    monkeypatch.setattr(importlib, "import_module", load)
    assert main(["status"]) == ConfigError.exit_code
    assert terminal.getvalue() == (
        "starting …\r\x1b[Korchestrator: error: told after it was erased\n"
    )
    assert gc.isenabled()


def test_what_is_for_terminals_only_is_not_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_S", 60.0)
    with waiting("reading", only_on_terminal=True):
        assert not timers()
    assert capsys.readouterr().err == ""


def test_what_takes_no_time_is_not_mentioned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_S", 60.0)
    with waiting("starting the database"):
        assert timers()
    wait_until(lambda: not timers())
    assert capsys.readouterr().err == ""
