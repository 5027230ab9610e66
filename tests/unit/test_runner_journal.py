"""The journal of an attempt: what it reported, for a worker that delivers the result of another."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from orchestrator.runner import journal
from orchestrator.runner.journal import Journal
from tests.support.running import finish, make_job, objective, running_with


def test_what_a_trial_reported_is_read_by_anybody(tmp_path: Path) -> None:
    job = make_job(tmp_path, objective("pruned_like_optuna"))
    with running_with(job.objective) as runner:
        finish(runner.start(job))
        reports, attrs, *_ = journal.read(job.run_dir)
        assert list(reports) == [3, 9, 5]
        assert (reports[3], math.isnan(reports[9]), reports[5]) == (1.0, True, 2.0)
        assert attrs == {}
        # in the same directory: what was there is dropped
        refused = make_job(tmp_path, objective("refused"))
        finish(runner.start(refused))
        assert journal.read(job.run_dir) == (
            {},
            {"kept": {"a": [1, [1.5]], "3": "inf", "none": None}},
            {},
            {},
        )


def test_the_first_report_of_a_step_and_the_last_value_of_an_attribute_count(
    tmp_path: Path,
) -> None:
    written = Journal(tmp_path)
    for message in (
        {"report": [1, 0.5]},
        {"report": [1, 0.7]},
        {"attr": ["a", 1]},
        {"report": [2, math.inf]},
        {"attr": ["a", 2]},
    ):
        written.append(message)
    assert journal.read(tmp_path) == ({1: 0.5, 2: math.inf}, {"a": 2}, {}, {})


def test_a_torn_line_and_lines_without_sense_are_left_out(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == ({}, {}, {}, {})
    assert journal.read(tmp_path / "gone") == ({}, {}, {}, {})
    lines = [
        '{"report":[1,0.5]}',
        "[1]",
        "7",
        "{}",
        '{"report":[1.5,0.5]}',
        '{"report":[3]}',
        '{"report":[4,"x"]}',
        '{"attr":["a","\\u0000"]}',
        '{"attr":["b","\\ud800"]}',
        '{"attr":[1,1]}',
        "[" * 100_000,
        '{"report":[5,NaN]}',
        '{"report":[6,0.2',
    ]
    (tmp_path / "journal.jsonl").write_bytes(b"\xff\n" + "\n".join(lines).encode())
    reports, attrs, *_ = journal.read(tmp_path)
    assert list(reports) == [1, 5]
    assert attrs == {}


@pytest.mark.parametrize("how", ["raises", "short"])
def test_a_journal_that_missed_a_line_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    written = Journal(tmp_path)
    written.append({"attr": ["a", "early"]})
    write = os.write

    def full(file: int, data: bytes) -> int:
        if how == "raises":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        written.append({"attr": ["a", "missed"]})
    written.append({"attr": ["b", "late"]})
    assert journal.read(tmp_path) == ({}, {"b": "late"}, {}, {})


def test_a_journal_stays_within_64_megabytes(tmp_path: Path) -> None:
    written = Journal(tmp_path)
    for number in range(140):
        written.append({"attr": [f"key {number}", "x" * 500_000]})
    assert (tmp_path / "journal.jsonl").stat().st_size <= 64 << 20
    _, attrs, *_ = journal.read(tmp_path)
    assert attrs.keys() >= {"key 138", "key 139"}


def test_a_run_directory_that_is_gone_or_closed_to_us_disturbs_nobody(tmp_path: Path) -> None:
    Journal(tmp_path / "gone").append({"report": [1, 1.0]})
    (tmp_path / "journal.jsonl").mkdir()
    Journal(tmp_path).append({"report": [1, 1.0]})
    with pytest.raises(IsADirectoryError):
        journal.read(tmp_path)


def test_a_line_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    Journal(tmp_path).append({"report": [7, 0.25]})
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == {"report": [7, 0.25]}
