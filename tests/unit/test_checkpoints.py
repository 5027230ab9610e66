"""Checkpoints: every attempt has its own, begins with those of the attempt before, and no late
writer can touch them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import faults
from orchestrator.errors import ConfigError
from orchestrator.model import Completed
from orchestrator.runner.files import CheckpointError, Checkpoints, generations, tree
from orchestrator.runner.files import checkpoints as attempts
from orchestrator.runner.files.object_store import ObjectStore
from orchestrator.runner.protocol.contract import Job
from tests.support.checkpoints import begin, content, fill
from tests.support.running import finish, make_job, objective, running_with

AS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(generations, "_LAST_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(attempts, "SETTLES_S", 0.01)


@pytest.fixture(params=["runs", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "runs" else str(tmp_path / "shared")


# ----------------------------------------------------------------------------------- in directories


def test_three_attempts_hand_their_files_on(place: str | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    first = begin(checkpoints, 1)
    assert (first.resumed_from, content(first.directory)) == (None, {})
    fill(first.directory, last="1", old="1", deep__er="1")
    os.utime(first.directory / "old", ns=(1_000, 2_000))
    (first.directory / "last").chmod(0o640)

    second = begin(Checkpoints(place, tmp_path / "runs"), 2)
    assert second.resumed_from == 1
    assert content(second.directory) == {"last": "1", "old": "1", "deep/er": "1"}
    assert (second.directory / "old").stat().st_mtime_ns == 2_000
    assert stat.S_IMODE((second.directory / "last").stat().st_mode) == 0o640
    fill(second.directory, last="2", new="2")
    (second.directory / "old").unlink()

    third = begin(checkpoints, 3)
    assert third.resumed_from == 2
    assert content(third.directory) == {"last": "2", "new": "2", "deep/er": "1"}
    assert begin(checkpoints, 1, number=1).resumed_from is None, "another trial has nothing of it"


def test_each_place_has_its_paths(tmp_path: Path) -> None:
    runs, shared = tmp_path / "runs", tmp_path / "shared"
    with_runs = runs / "digits-1" / "trial-0" / "attempt-1" / "checkpoints"
    assert begin(Checkpoints(None, runs), 1).directory == with_runs
    assert (
        begin(Checkpoints(str(shared), runs), 1).directory
        == shared / "digits-1" / "trial-0" / "attempt-1"
    )
    assert begin(Checkpoints(f"file://{shared}", runs), 1).directory == with_runs
    (tmp_path / "link").symlink_to(runs)
    assert begin(Checkpoints(str(tmp_path / "link"), runs), 1).directory == with_runs, (
        "logs and results are no checkpoints"
    )


def test_a_late_writer_never_reaches_the_next_attempts_files(
    place: str | None, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    zombie = begin(checkpoints, 1).directory
    fill(zombie, last="one", log="one")
    with (zombie / "log").open("a") as held:
        second = begin(checkpoints, 2).directory
        held.write(" more")
        held.flush()
        fill(zombie, last="late", surprise="late")
        (zombie / "last").replace(zombie / "renamed")
        assert content(second) == {"last": "one", "log": "one"}
        third = begin(checkpoints, 3).directory
        held.write(" and more")
    assert not zombie.exists(), "what two attempts ago left is gone"
    fill(zombie, last="later still")
    assert content(third) == content(second) == {"last": "one", "log": "one"}
    assert begin(checkpoints, 4).resumed_from == 3


def test_with_resume_off_every_attempt_begins_empty(place: str | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    first = begin(checkpoints, 1, resume=False).directory
    fill(first, last="1")
    second = begin(checkpoints, 2, resume=False)
    assert (second.resumed_from, content(second.directory)) == (None, {})
    assert not first.exists()


def test_an_attempt_that_left_nothing_is_passed_over(place: str | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    fill(begin(checkpoints, 1).directory, last="1")
    shutil.rmtree(begin(checkpoints, 2).directory)
    (begin(checkpoints, 3).directory / "last").unlink()
    fourth = begin(checkpoints, 4)
    assert (fourth.resumed_from, content(fourth.directory)) == (1, {"last": "1"})


def test_an_attempt_cut_off_while_it_began_is_no_source(
    place: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        assert name == "checkpoints.begin"
        raise Killed

    checkpoints = Checkpoints(place, tmp_path / "runs")
    fill(begin(checkpoints, 1).directory, a="1", b="1")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "step", die)
        with pytest.raises(Killed):
            begin(checkpoints, 2)
    (left,) = tmp_path.rglob("*.incoming")
    (left / "b").unlink()
    third = begin(checkpoints, 3)
    assert (third.resumed_from, content(third.directory)) == (1, {"a": "1", "b": "1"})
    begin(checkpoints, 4)
    assert list(tmp_path.rglob("*.incoming")) == []


def test_at_the_end_of_a_trial_only_the_last_attempts_files_stay(
    place: str | None, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    first = begin(checkpoints, 1)
    fill(first.directory, last="1")
    with begin(checkpoints, 2) as second:
        assert first.directory.exists(), "until then the one before stays"
        second.discard_older()
        assert content(second.directory) == {"last": "1"}
        assert not first.directory.exists()
        first.discard_older()
        assert content(second.directory) == {"last": "1"}, (
            "an older attempt deletes nothing of a newer one"
        )


def test_files_of_another_study_are_moved_aside(place: str | None, tmp_path: Path) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    foreign = begin(checkpoints, 1).directory
    fill(foreign, last="foreign")
    assert content(begin(checkpoints, 1).directory) == {}
    assert content(foreign.with_name(f"{foreign.name}.old-1")) == {"last": "foreign"}


def test_links_lead_into_the_copy(tmp_path: Path) -> None:
    checkpoints = Checkpoints(None, tmp_path / "runs")
    first = begin(checkpoints, 1).directory
    fill(first, epoch__3="three", outside="x")
    (first / "absolute").symlink_to(first / "epoch" / "3")
    (first / "epoch" / "relative").symlink_to("3")
    (first / "folder").symlink_to(first / "epoch")
    (first / "elsewhere").symlink_to("/nowhere/at/all")
    (first / "empty").mkdir()
    second = begin(checkpoints, 2).directory
    shutil.rmtree(first)
    assert (
        (second / "absolute").read_text() == (second / "epoch" / "relative").read_text() == "three"
    )
    assert (second / "folder" / "3").read_text() == "three"
    assert (second / "elsewhere").readlink() == Path("/nowhere/at/all")
    assert (second / "empty").is_dir()


def test_sockets_and_pipes_are_left_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(None, tmp_path / "runs")
    first = begin(checkpoints, 1).directory
    fill(first, last="1")
    os.mkfifo(first / "pipe")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(first)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        second = begin(checkpoints, 2).directory
    assert [path.name for path in second.iterdir()] == ["last"]


def test_a_file_that_vanishes_while_it_is_copied_leads_to_another_look(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """A late writer goes from epoch 1 to 2 after the directory was listed: neither may be missing
    both.
    """
    checkpoints = Checkpoints(None, tmp_path / "runs")
    zombie = begin(checkpoints, 1).directory
    fill(zombie, epoch1="1")
    copy_file = tree._copy_file

    def rotate_then_copy(source: Path, target: Path) -> bool:
        if not (zombie / "epoch2").exists():
            fill(zombie, epoch2="2")
            (zombie / "epoch1").unlink()
        return copy_file(source, target)

    monkeypatch.setattr(tree, "_copy_file", rotate_then_copy)
    assert content(begin(checkpoints, 2).directory) == {"epoch2": "2"}


def test_files_that_cannot_be_read_are_passed_over_with_a_warning(
    place: str | None, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    first = begin(checkpoints, 1)
    fill(first.directory, good="1")
    second = begin(checkpoints, 2)
    fill(second.directory, bad="2")
    path_open = Path.open

    def broken(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == second.directory / "bad":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return path_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    third = begin(checkpoints, 3)
    assert (third.resumed_from, content(third.directory)) == (1, {"good": "1"})
    assert "cannot read the checkpoints of attempt 2: Permission denied" in caplog.text


@pytest.mark.parametrize("kernel_copies", [True, False])
def test_a_full_disk_says_which_setting_and_leaves_no_half(
    place: str | None, kernel_copies: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(place, tmp_path / "runs")
    fill(begin(checkpoints, 1).directory, last="1")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        if kernel_copies and sys.platform == "linux":
            patch.setattr(os, "copy_file_range", full)
        setting = (
            f"paths.runs={tmp_path / 'runs'}" if place is None else f"paths.checkpoints={place}"
        )
        with pytest.raises(
            CheckpointError, match=rf"^{setting}: No space left on device \(.*last\)$"
        ):
            begin(checkpoints, 2)
    assert list(tmp_path.rglob("*.incoming")) == []
    assert content(begin(checkpoints, 3).directory) == {"last": "1"}


def test_where_the_kernel_cannot_copy_the_files_are_copied_all_the_same(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    checkpoints = Checkpoints(None, tmp_path / "runs")
    fill(begin(checkpoints, 1).directory, last="x" * 3_000_000)
    assert content(begin(checkpoints, 2).directory) == {"last": "x" * 3_000_000}


# -------------------------------------------------------------------------- the place, as a setting


def test_all_that_see_one_place_call_it_the_same(tmp_path: Path) -> None:
    def identity(place: str | None, runs: str) -> str:
        return Checkpoints(place, tmp_path / runs).identity()

    shared, store = str(tmp_path / "shared"), f"file://{tmp_path / 'store'}"
    seen = [
        [identity(place, runs) for runs in ("host1", "host2")] for place in (None, shared, store)
    ]
    assert seen[1][0] == seen[1][1]
    assert seen[2][0] == seen[2][1]
    assert seen[0] == [identity(None, "host1"), identity(None, "host2")]
    assert len({*seen[0], seen[1][0], seen[2][0]}) == 4


@pytest.mark.parametrize("kind", ["directory", "store"])
def test_many_who_come_first_at_once_agree(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(attempts, "SETTLES_S", 0.5)
    place = str(tmp_path / "shared") if kind == "directory" else f"file://{tmp_path / 'store'}"
    all_here, one_by_one, seen = threading.Barrier(8), threading.Lock(), list[str]()
    write = ObjectStore.write

    def slow(self: ObjectStore, path: str, text: bytes) -> None:
        if path == attempts.MARKER:  # all have found none
            all_here.wait(30)
            with one_by_one:
                time.sleep(0.01)
                write(self, path, text)

    def come() -> None:
        seen.append(Checkpoints(place, tmp_path / "runs").identity())

    monkeypatch.setattr(ObjectStore, "write", slow)
    threads = [threading.Thread(target=come) for _ in range(all_here.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(seen), len(set(seen))) == (8, 1)


def test_an_empty_marker_is_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(attempts, "_GIVES_UP_S", 0.1)
    for directory in (tmp_path / "shared", tmp_path / "store"):
        directory.mkdir()
        (directory / attempts.MARKER).touch()
    for place in (str(tmp_path / "shared"), f"file://{tmp_path / 'store'}"):
        identity = Checkpoints(place, tmp_path).identity()
        assert identity
        assert Checkpoints(place, tmp_path).identity() == identity


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "sfpt://host/x",
            r"paths.checkpoints=sfpt://host/x: unknown protocol 'sfpt' \(did you mean 'sftp'\?\)",
        ),
        (
            "sftp2://me:secret@host/x",
            r"paths.checkpoints=sftp2://me:\*\*\*@host/x: unknown protocol 'sftp2'.*",
        ),
        (
            "s3:bucket/x",
            (
                r"paths.checkpoints=s3:bucket/x: a URL needs // after its protocol, as in "
                r"s3://bucket/path.*"
            ),
        ),
        (
            "",
            (
                r"paths.checkpoints=: must be a directory or a URL; null keeps checkpoints in "
                r"paths.runs"
            ),
        ),
        ("memory://a*", r"paths.checkpoints=memory://a\*: .* must not contain any of \* \? \["),
        ("data://x", "paths.checkpoints=data://x: Read only filesystem"),
        ("/proc/nowhere", r"paths.checkpoints=/proc/nowhere: .*\(/proc/nowhere\)"),
        ("file:///proc/nowhere", r"paths.checkpoints=file:///proc/nowhere: .*\(/proc/nowhere\)"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(
    place: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Checkpoints(place, tmp_path)


def test_a_protocol_that_only_reads_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(ObjectStore, "write", refuse)
    with pytest.raises(
        ConfigError, match=r"^paths\.checkpoints=memory://x: this protocol is read-only"
    ):
        Checkpoints("memory://x", tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ConfigError, match=r"^paths.checkpoints=gs://bucket: .*gcsfs.* \(pip install gcsfs\)$"
    ):
        Checkpoints("gs://bucket", tmp_path)


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_is_refused(place: str | None, tmp_path: Path) -> None:
    where = tmp_path / ("runs" if place is None else "shared")
    Checkpoints(place, tmp_path / "runs")
    where.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=rf"^paths\..*={where}: Permission denied"):
            Checkpoints(place, tmp_path / "runs")
    finally:
        where.chmod(0o700)


# -------------------------------------------------------------------------------- what a trial sees


def test_a_trial_sees_which_attempt_it_goes_on_from(tmp_path: Path) -> None:
    target = objective("counts_attempts")
    checkpoints = Checkpoints(None, tmp_path)
    seen = []
    with running_with(target) as runner:
        for attempt in (1, 2, 3):
            with checkpoints.begin("study", 0, attempt, resume=True) as kept:
                changes = {
                    "checkpoint_dir": kept.directory,
                    "resumed": attempt > 1,
                    "resumed_from": kept.resumed_from,
                }
                job = make_job(tmp_path, target, attempt=attempt, **changes)
                assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
                outcome, _ = finish(runner.start(job))
                assert isinstance(outcome, Completed)
                seen.append((kept.resumed_from, outcome.attrs["attempts"]))
    assert seen == [(None, [1]), (1, [1, 2]), (2, [1, 2, 3])]


def test_what_lies_under_a_trials_number_from_before_a_failover_is_not_handed_on(
    place: str | None, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    lost = checkpoints.begin("digits-1", 0, 1, resume=True, tokens={1: 7}).directory
    fill(lost, weights="of another trial")
    first = checkpoints.begin("digits-1", 0, 1, resume=True, tokens={1: 8}).directory
    assert first != lost, "whoever still writes there reaches nobody's files"
    shutil.rmtree(first)
    second = checkpoints.begin("digits-1", 0, 2, resume=True, tokens={1: 8, 2: 9})
    assert (second.resumed_from, content(second.directory)) == (None, {})
    second.discard_older()
    assert content(lost) == {"weights": "of another trial"}


def test_an_attempt_of_a_version_that_kept_no_tokens_is_handed_on(
    place: str | None, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(place, tmp_path / "runs")
    fill(begin(checkpoints, 1).directory, weights="1")
    after = checkpoints.begin("digits-1", 0, 2, resume=True, tokens={1: None, 2: 9})
    assert (after.resumed_from, content(after.directory)) == (1, {"weights": "1"})
