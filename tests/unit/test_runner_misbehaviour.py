"""Objectives that do what they should not: each comes to a typed outcome, leaves nothing behind and
does not touch the next.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model import Completed, Failed, Interrupted, Outcome
from orchestrator.runner import Job, Message, Runner, attempt_dir, journal, read_result
from tests.support.running import (
    alive,
    all_gone,
    children_of,
    finish,
    make_job,
    objective,
    own_children,
    pids_of,
    running_with,
)
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Bench:
    """A runner with its keeper's process id."""

    runner: Runner
    keeper: int

    def run(self, runs: Path, target: dict[str, Any]) -> tuple[Outcome, list[Message], Job]:
        """Runs the objective and then a good one; when the first has its outcome, the keeper has
        the standby alone.
        """
        job = make_job(runs, target)
        outcome, messages = finish(self.runner.start(job))
        assert alive(self.keeper)
        [standby] = children_of(self.keeper)
        assert children_of(standby) == []
        following = self.runner.start(make_job(runs, objective("give", what="float"), number=1))
        assert finish(following)[0] == Completed((0.5,))
        return outcome, messages, job


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    before = set(own_children())
    with running_with(
        objective("give", what="float"), grace_s=0.3, log_limit_bytes=1_000_000
    ) as runner:
        [keeper] = set(own_children()) - before
        yield Bench(runner, keeper)


@pytest.mark.parametrize(
    ("name", "kwargs", "first_line", "causes"),
    [
        (
            "raises",
            {},
            "ValueError: first line second",
            "exception ValueError builtins.ValueError Exception",
        ),
        (
            "raises_connection_reset",
            {},
            "ConnectionResetError: by peer",
            "exception builtins.ConnectionResetError OSError",
        ),
        (
            "raises_outside_exception",
            {},
            "OwnInterrupt: not an Exception",
            "exception tests.support.objectives.OwnInterrupt",
        ),
        (
            "unprintable",
            {},
            "BadError: (its text cannot be shown: RuntimeError)",
            "exception BadError",
        ),
        ("runs_out_of_memory", {}, "MemoryError: no memory left", "oom MemoryError"),
        (
            "recurses",
            {},
            "RecursionError: maximum recursion depth exceeded",
            "exception RecursionError RuntimeError",
        ),
        (
            "wrong_key",
            {},
            "ConfigAttributeError: Key 'lrr' is not in struct",
            "exception ConfigAttributeError AttributeError",
        ),
        ("returns_what_raises", {}, "RuntimeError: computed only now", "exception RuntimeError"),
        ("give", {"what": "nan"}, "the objective returned nan for 'score'", "value"),
        (
            "returns_much",
            {"what": "list"},
            "the objective returned 6000000 values for 1 metric (score)",
            "value",
        ),
        (
            "exits",
            {"code": 0},
            "the objective called sys.exit(0) instead of returning a result",
            "exit exit:0",
        ),
        (
            "exits",
            {"code": 3},
            "the objective called sys.exit(3) instead of returning a result",
            "exit exit:3",
        ),
        (
            "exits",
            {"code": "no GPU"},
            "the objective called sys.exit('no GPU') instead of returning",
            "exit exit:1",
        ),
        (
            "vanishes",
            {"code": 0},
            "the process exited with code 0 without returning a result",
            "exit exit:0",
        ),
        (
            "vanishes",
            {"code": 3},
            "the process exited with code 3 without returning a result",
            "exit exit:3",
        ),
        ("segfaults", {}, "the process was killed by SIGSEGV", "signal signal:SIGSEGV"),
        (
            "dies_of",
            {"signum": int(signal.SIGABRT)},
            "the process was killed by SIGABRT",
            "signal signal:SIGABRT",
        ),
        ("dies_of", {"signum": 40}, "the process was killed by SIG40", "signal signal:SIG40"),
        (
            "dies_of",
            {"signum": int(signal.SIGTERM)},
            "the process was killed by SIGTERM",
            "signal signal:SIGTERM",
        ),
        (
            "dies_of",
            {"signum": int(signal.SIGKILL)},
            "the process was killed by SIGKILL (the kernel's",
            "signal signal:SIGKILL",
        ),
        ("closes_its_output", {}, "LookupError: nobody hears me", "exception LookupError"),
        ("replaces_its_output", {}, "LookupError: nobody hears me", "exception LookupError"),
        (
            "opens_all_it_can",
            {"fail": True},
            "OSError: [Errno 24] Too many open files: '/dev/null'",
            "exception OSError",
        ),
        (
            "deletes_its_run_directory",
            {"value": None},
            "the objective did not return a number for 'score': None",
            "value",
        ),
    ],
)
def test_a_failure_names_its_cause_and_then_its_log(
    bench: Bench, tmp_path: Path, name: str, kwargs: dict[str, Any], first_line: str, causes: str
) -> None:
    outcome, _, job = bench.run(tmp_path, objective(name, **kwargs))
    assert isinstance(outcome, Failed)
    lines = outcome.message.splitlines()
    assert lines[0].startswith(first_line)
    assert lines[1] == f"log: {job.run_dir / 'output.log'}"
    assert "\0" not in outcome.message
    outcome.message.encode()
    assert outcome.kind == outcome.causes[0] == causes.split()[0]
    assert set(causes.split()) <= set(outcome.causes)
    assert not {"object", "BaseException", "builtins.BaseException"} & set(outcome.causes)
    if (left := read_result(job.run_dir)) is not None:
        assert isinstance(left, Failed)
        assert left.causes == outcome.causes


def test_a_probe_that_exits_is_called_what_it_is(bench: Bench, tmp_path: Path) -> None:
    job = make_job(tmp_path, objective("exits", code=3), probe="lr")
    outcome, _ = finish(bench.runner.start(job))
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("the probe lr called sys.exit(3) instead of returning")


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("forks_and_returns", {}),
        ("leaves_processes", {}),
        ("starts_many", {"count": 200}),
        ("leaves_one_that_prints", {}),
        ("leaves_thread", {}),
        ("loses_its_directory", {}),
        ("deletes_its_run_directory", {"value": 1.0}),
        ("opens_all_it_can", {"fail": False}),
        ("holds_the_interpreter", {"seconds": 1}),
        ("returns_much", {"what": "text"}),
        ("returns_much", {"what": "curve"}),
    ],
)
def test_a_result_counts_whatever_else_the_objective_did(
    bench: Bench, tmp_path: Path, name: str, kwargs: dict[str, Any]
) -> None:
    outcome, _, _ = bench.run(tmp_path, objective(name, **kwargs))
    assert isinstance(outcome, Completed)
    assert outcome.values == (1.0,)
    assert set(outcome.attrs) <= {"left"}  # and no 50 MB
    assert all_gone(outcome.attrs.get("left", []))


def test_nonsense_in_every_descriptor_is_dropped(bench: Bench, tmp_path: Path) -> None:
    outcome, messages, job = bench.run(tmp_path, objective("garbles_every_descriptor"))
    assert outcome == Completed((1.0,))
    assert messages == []
    assert journal.read(job.run_dir) == ({}, {}, {}, {})


def test_files_of_an_objective_that_closed_every_descriptor_stay_its_own(
    bench: Bench, tmp_path: Path
) -> None:
    outcome, _, _ = bench.run(tmp_path, objective("closes_every_descriptor"))
    assert outcome == Completed((1.0,), {"written_to": []})


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_the_time_limit_ends_the_whole_group(tmp_path: Path, start: str) -> None:
    options = {"max_runtime_s": 3.0, "grace_s": 0.2, "start": start}
    with running_with(objective("hangs_with_grandchild"), **options) as runner:
        outcome, _ = finish(runner.start(make_job(tmp_path, objective("hangs_with_grandchild"))))
        assert all_gone(pids_of(tmp_path)[:2])
        assert finish(runner.start(make_job(tmp_path, objective("give", what="float"), number=1)))[
            0
        ] == Completed((0.5,))
    assert isinstance(outcome, Failed)
    assert outcome.causes == ("timeout",)
    log = attempt_dir(tmp_path, "study", 0, 1) / "output.log"
    assert outcome.message.startswith(
        f"the time limit of 3 s (runner.max_runtime_min) was reached\nlog: {log}"
    )


def test_the_time_limit_ends_native_code_that_holds_the_interpreter(tmp_path: Path) -> None:
    target = objective("holds_the_interpreter", seconds=300)
    with running_with(target, max_runtime_s=0.5, grace_s=0.2) as runner:
        started = time.monotonic()
        outcome, _ = finish(runner.start(make_job(tmp_path, target)))
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"
    assert time.monotonic() - started < 100, "long before the native code is done"


def test_a_keeper_that_the_objective_killed_is_a_lost_attempt(tmp_path: Path) -> None:
    with running_with(objective("kills_its_parent")) as runner:
        outcome, _ = finish(runner.start(make_job(tmp_path, objective("kills_its_parent"))))
        assert outcome == Interrupted(
            "the keeper, the process between worker and child, died", lost=True
        )
        [child] = pids_of(tmp_path)
        wait_until(lambda: all_gone([child]))
        assert finish(runner.start(make_job(tmp_path, objective("give", what="float"), number=1)))[
            0
        ] == Completed((0.5,))
