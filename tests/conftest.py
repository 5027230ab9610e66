"""Fixtures of all tests: a real PostgreSQL, one server a run and one database a test."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

# How long an example takes, or to make one, says something about the machine and what else it does,
# not about the program.
# And every run has the same examples, so that a change is blamed for what it broke alone; `make
# random` looks for others.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="RANDOM_EXAMPLES" not in os.environ,
)
hypothesis.settings.load_profile("any machine")

# Before anything imports numpy: the thread pools of tests side by side, and of their children,
# would crowd the cores.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Each of the hundreds of interpreters that the tests start would compile all of the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from tests.support.scratch import scratch_directory, share  # noqa: E402 - after the above

if TYPE_CHECKING:
    from tests.support.postgres import TestServer

_SERVER_PATH = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    # by nohup, which what is tested would respect
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if not hasattr(config, "workerinput"):
        # Not under pytest's own directory: that is private, and a server started by root runs as
        # another user.
        config.stash[_SERVER_PATH] = scratch_directory("orchestrator-tests-")
    else:
        config.stash[_SERVER_PATH] = Path(config.workerinput["server_path"])
    share(config.stash[_SERVER_PATH])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the nightly tests out, unless ``-m`` names them or a test is asked for by its own
    name.
    """
    if "nightly" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_collection_finish() -> None:
    """Spares every garbage collection of the tests the modules and tests that all of them have."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["server_path"] = str(node.config.stash[_SERVER_PATH])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_SERVER_PATH], ignore_errors=True)


@pytest.fixture(scope="session")
def database_server(pytestconfig: pytest.Config) -> Iterator[TestServer]:
    """The PostgreSQL server that all workers of this run share: an embedded one, or the one at
    ``TEST_POSTGRES_URL``.
    """
    # not for tests without a database: it imports Optuna
    from tests.support.postgres import TestServer

    server = TestServer(
        pytestconfig.stash[_SERVER_PATH] / "server", os.environ.get("TEST_POSTGRES_URL")
    )
    yield server
    server.close()


@pytest.fixture
def database_url(database_server: TestServer) -> Iterator[str]:
    """A database of the test's own with the current schema; dropped afterwards, whoever is still
    connected.
    """
    with database_server.prepared() as url:
        yield url


@pytest.fixture
def empty_database_url(database_server: TestServer) -> Iterator[str]:
    """A database of the test's own without any tables."""
    with database_server.empty() as url:
        yield url
