"""The log of an attempt: all that was printed, or head and tail of it within the limit, whatever
the disk does.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.errors import ConfigError
from orchestrator.model import Completed
from orchestrator.runner import Runner
from orchestrator.runner.keeper.output import Output
from tests.support.running import finish, make_job, objective, own_children, running_with
from tests.support.waiting import wait_until

MARKER = re.compile(rb"\[orchestrator: ([\d,]+) bytes cut here\]\n")


def write_through(log: Path, limit: int | None, pieces: list[bytes]) -> str | None:
    """Prints the pieces into a log; returns what went wrong."""
    log.touch()
    reader, writer = os.pipe()
    output = Output(reader, log, limit)
    for piece in pieces:
        while piece:
            piece = piece[os.write(writer, piece) :]
    problem = output.finish(30)
    os.close(writer)
    return problem


@pytest.mark.parametrize(
    ("limit", "pieces"),
    [
        (1000, [b"%06d\n" % n for n in range(5000)]),
        (1000, [b"x" * 100_000, b"\n", b"y" * 100_000]),
        (200_000, [b"%06d\n" % n * 1000 for n in range(500)]),
        (3_000_001, [random.Random(n).randbytes(70_000) for n in range(200)]),
    ],
)
def test_a_log_never_exceeds_its_limit_and_keeps_head_and_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, pieces: list[bytes]
) -> None:
    log = tmp_path / "output.log"
    sizes = []
    pwrite = os.pwrite

    def measured(file: int, data: bytes, offset: int) -> int:
        written = pwrite(file, data, offset)
        sizes.append(os.fstat(file).st_size)
        return written

    monkeypatch.setattr(os, "pwrite", measured)
    assert write_through(log, limit, pieces) is None
    assert max(sizes) <= limit
    printed, kept = b"".join(pieces), log.read_bytes()
    [cut] = MARKER.findall(kept)
    head, tail = (part for index, part in enumerate(MARKER.split(kept)) if index != 1)
    # a line end of ours, where the head has none
    assert printed.startswith(head) or printed.startswith(head[:-1])
    assert printed.endswith(tail)
    assert len(printed) - int(cut.replace(b",", b"")) in (
        len(head) + len(tail),
        len(head) - 1 + len(tail),
    )
    assert len(head) >= limit * 0.4
    assert len(tail) >= limit * 0.15
    if pieces[0].startswith(b"000000\n"):  # of lines
        assert head.endswith(b"\n")
        assert tail.startswith(b"0")


@pytest.mark.parametrize("limit", [None, 30_000])
def test_a_log_within_its_limit_is_what_was_printed_after_what_was_there(
    tmp_path: Path, limit: int | None
) -> None:
    log = tmp_path / "output.log"
    log.write_bytes(b"before\n")
    assert write_through(log, limit, [b"line\n"] * 5000) is None
    assert log.read_bytes() == b"before\n" + b"line\n" * 5000


def test_output_that_a_full_disk_refused_is_counted_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "output.log"
    log.touch()
    pwrite = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if b"refused" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    reader, writer = os.pipe()
    output = Output(reader, log, 10_000)
    for piece, seen in ((b"first\n", b"first\n"), (b"refused\n", None), (b"last\n", b"last\n")):
        os.write(writer, piece)
        if seen is None:
            wait_until(lambda: output._log.problem)
        else:
            wait_until(lambda seen=seen: log.exists() and log.read_bytes().endswith(seen))  # type: ignore[misc]
    os.close(writer)
    assert output.finish(30) == f"the log is incomplete (No space left on device): {log}"
    note = b"[orchestrator: 8 bytes could not be written here: No space left on device]\n"
    assert log.read_bytes() == b"first\n" + note + b"last\n"


def test_a_disk_that_hangs_does_not_hold_up_the_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(_file: int, data: bytes, _offset: int) -> int:
        answers.wait()
        return len(data)

    monkeypatch.setattr(os, "pwrite", hang)
    (tmp_path / "output.log").touch()
    reader, writer = os.pipe()
    output = Output(reader, tmp_path / "output.log", None)
    os.write(writer, b"x")
    assert (
        output.finish(0.1)
        == f"the log is incomplete, because the disk hangs: {tmp_path / 'output.log'}"
    )
    answers.set()
    wait_until(lambda: "output" not in {thread.name for thread in threading.enumerate()})
    os.close(writer)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_a_trial_that_prints_much_ends_with_a_short_log_and_a_small_keeper(
    tmp_path: Path, start: str
) -> None:
    target = objective("prints_much", megabytes=20)
    before = set(own_children())
    with running_with(target, start=start, log_limit_bytes=1_000_000) as runner:
        [keeper] = set(own_children()) - before
        memory = psutil.Process(keeper).memory_info().rss
        running = runner.start(make_job(tmp_path, target))
        while running.outcome is None:
            running.poll(0.05)
            assert running.log_path.stat().st_size <= 1_000_000
        assert running.outcome == Completed((1.0,))
        assert psutil.Process(keeper).memory_info().rss - memory < 8_000_000
    lines = running.log_path.read_text().splitlines()
    assert [line.strip() for line in (lines[0], lines[1], lines[-1])] == ["0", "1", "199999"]
    assert sum("bytes cut here" in line for line in lines) == 1


def test_what_is_printed_can_be_read_while_the_trial_runs(tmp_path: Path) -> None:
    target = objective("prints_then_waits")
    with running_with(target) as runner:
        running = runner.start(make_job(tmp_path, target))
        wait_until(lambda: running.log_path.read_text() == "epoch 1\n")
        assert running.outcome is None
        running.ask_to_stop()
        assert finish(running)[0] == Completed((1.0,))


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    "body",
    [
        "logging.basicConfig()",  # keeps the stream that is there when it is imported
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
        "sys.stdout = None",
        "sys.stdout.close()",
    ],
)
def test_the_output_works_whatever_the_import_did_to_the_streams(
    tmp_path: Path, body: str, start: str
) -> None:
    (tmp_path / "my_streams.py").write_text(
        f"import io, logging, os, sys\n{body}\n"
        "def train(cfg, trial):\n"
        "    if sys.stdout and not sys.stdout.closed:\n"
        "        sys.stdout.reconfigure(encoding='utf-8')\n"
        "        print('prints')\n"
        "    logging.warning('logs')\n"
        "    os.system('echo echoes')\n"
        "    return 1.0\n"
    )
    target = {"_target_": "my_streams.train"}
    with running_with(target, cwd=tmp_path, start=start) as runner:
        running = runner.start(make_job(tmp_path / "runs", target))
        assert finish(running)[0] == Completed((1.0,))
    prints = [] if "None" in body or "close" in body else ["prints"]
    assert sorted(running.log_path.read_text().splitlines()) == [
        "WARNING:root:logs",
        "echoes",
        *prints,
    ]


def test_a_full_disk_under_the_log_does_not_disturb_the_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = objective("chatty", count=10)
    with running_with(target) as runner:
        job = make_job(tmp_path, objective("prints_much", megabytes=1))
        job.run_dir.mkdir(parents=True)
        for name in ("output.log", "journal.jsonl"):
            (job.run_dir / name).symlink_to("/dev/full")
        assert finish(runner.start(job))[0] == Completed((1.0,))
        assert (
            f"the log is incomplete (No space left on device): {job.run_dir / 'output.log'}"
            in caplog.text
        )
        outcome, messages = finish(runner.start(make_job(tmp_path, target)))
        assert outcome == Completed((1.0,))
        assert len(messages) == 20


@pytest.mark.parametrize("limit", [0, 999])
def test_a_limit_that_leaves_no_room_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match=f"runner.log_limit_bytes: {limit} must be at least 1000"):
        Runner(objective("give"), log_limit_bytes=limit)
