"""The chaos tests' own options: how long a form, and the seed that repeats a run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support.commands import Commands
from tests.support.own_server import OwnServer

LONG_TIMEOUT_S = 1800
FIGURES = "figures"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption(
        "--chaos",
        choices=("short", "long"),
        default="short",
        help="short: as in CI; long: every fault in full",
    )
    group.addoption(
        "--chaos-seed",
        type=int,
        default=None,
        help="repeats a run of the chaos tests; printed by each",
    )


def is_long(config: pytest.Config) -> bool:
    return bool(config.getoption("--chaos", "short") == "long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            if is_long(config):
                item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))
            elif any("long" in mark.args for mark in item.iter_markers("chaos")):
                item.add_marker(pytest.mark.skip("long form only: --chaos=long"))


@pytest.fixture
def long(pytestconfig: pytest.Config) -> bool:
    """Whether the long form was asked for."""
    return is_long(pytestconfig)


@pytest.fixture
def dice(pytestconfig: pytest.Config, figures: Callable[..., None]) -> random.Random:
    """Chance, with its seed noted so that it can be repeated: the same choices, as far as processes
    keep the same time.
    """
    given = pytestconfig.getoption("--chaos-seed", None)
    seed = int.from_bytes(os.urandom(4), "big") if given is None else given
    figures(**{"--chaos-seed": seed})
    return random.Random(seed)


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Notes what was measured, for the summary at the end of the run."""

    def note(**measured: object) -> None:
        record_property(FIGURES, ", ".join(f"{name}={value}" for name, value in measured.items()))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{report.nodeid.rpartition('/')[2]} ({report.duration:.0f} s): {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == FIGURES
    ]
    if lines:
        terminalreporter.section("what the chaos tests measured")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A PostgreSQL of the test's own; `url`, `commands` and `store` are then on it."""
    with OwnServer() as running:
        yield running


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The test's database: on its own server if it has one, else on that of all tests."""
    if "server" in request.fixturenames:
        server: OwnServer = request.getfixturevalue("server")
        return server.url
    shared: str = request.getfixturevalue("database_url")
    return shared


@pytest.fixture
def commands(url: str, tmp_path: Path) -> Commands:
    return Commands(url, tmp_path)


@pytest.fixture
def store(url: str) -> Store:
    return Store(url)
