"""Checkpoints in an object store: what is read there is whole, and a store that fails disturbs no
trial.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.runner.files import CheckpointError, Checkpoints, Kept, generations
from orchestrator.runner.files import checkpoints as attempts
from orchestrator.runner.files.object_store import ObjectStore
from tests.support.checkpoints import begin, content, fill
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(generations, "_LAST_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(attempts, "SETTLES_S", 0.01)


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path / 'store'}"
        return
    root = f"/{uuid.uuid4().hex}"
    yield f"memory://{root}"
    fsspec.filesystem("memory").rm(root, recursive=True)


def stored(url: str, attempt: int) -> set[str]:
    fs, root = fsspec.core.url_to_fs(url)
    where = f"{root}/digits-1/trial-0/attempt-{attempt}"
    return {name.removeprefix(f"{where}/") for name in fs.find(where)}


def test_a_store_hands_files_to_a_host_that_shares_nothing_else(url: str, tmp_path: Path) -> None:
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    fill(first.directory, last="1", deep__er="1")
    (first.directory / "latest").symlink_to(first.directory / "last")
    os.utime(first.directory / "last", ns=(1_000_000, 2_000_000))
    first.close(final=True)
    fill(first.directory, last="written by nobody any more")

    with begin(Checkpoints(url, tmp_path / "host2"), 2) as second:
        assert second.resumed_from == 1
        assert content(second.directory) == {"last": "1", "deep/er": "1", "latest": "1"}
        assert (second.directory / "latest").readlink() == Path("last")
        assert (second.directory / "last").stat().st_mtime_ns == 2_000_000
        (second.directory / "deep" / "er").unlink()
        second.close(final=True)

    third = begin(Checkpoints(url, tmp_path / "host3"), 3)
    assert (third.resumed_from, content(third.directory)) == (2, {"last": "1", "latest": "1"})
    assert stored(url, 1) == set()
    third.discard_older()
    assert stored(url, 2) == set()


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kept], None]:
    """Looks at the directory of an attempt, which no thread does meanwhile."""
    monkeypatch.setattr(generations, "LOOK_EVERY_S", 3600.0)

    def look(kept: Kept) -> None:
        assert kept._uploader is not None
        kept._uploader._tried(kept._uploader._look)

    return look


def test_what_a_killed_attempt_had_written_was_uploaded_meanwhile(url: str, tmp_path: Path) -> None:
    with begin(Checkpoints(url, tmp_path / "host1"), 1) as first:
        fill(first.directory, last="1")
        wait_until(lambda: "manifest-000001" in stored(url, 1))
    second = begin(Checkpoints(url, tmp_path / "host2"), 2)
    assert (second.resumed_from, content(second.directory)) == (1, {"last": "1"})


def test_two_generations_are_kept_and_what_did_not_change_is_uploaded_once(
    url: str, tmp_path: Path, look: Callable[[Kept], None]
) -> None:
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    fill(first.directory, best="best")
    for epoch in range(5):
        fill(first.directory, last=str(epoch))
        look(first)
        look(first)
    (first.directory / "best").rename(first.directory / "renamed")
    look(first)
    look(first)
    look(first)
    kept = {"manifest-000005", "manifest-000006", "objects/1", "objects/6"}
    assert stored(url, 1) == kept
    assert content(begin(Checkpoints(url, tmp_path / "host2"), 2).directory) == {
        "last": "4",
        "renamed": "best",
    }


@pytest.mark.parametrize("broken", ["second object", "manifest"])
def test_an_upload_cut_off_midway_leaves_the_generation_before(
    url: str, broken: str, tmp_path: Path, look: Callable[[Kept], None], monkeypatch: Any
) -> None:
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    fill(first.directory, model="old", optimizer="old")
    look(first)
    look(first)
    put, write = ObjectStore.put, ObjectStore.write

    def put_one(self: ObjectStore, file: Path, path: str) -> None:
        if broken == "second object" and path.endswith("/4"):
            raise OSError("cut off")
        put(self, file, path)

    def write_half(self: ObjectStore, path: str, text: bytes) -> None:
        if broken == "manifest":
            write(self, path, text[: len(text) // 2])
            raise OSError("cut off")
        write(self, path, text)

    fill(first.directory, model="new", optimizer="new")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", put_one)
        patch.setattr(ObjectStore, "write", write_half)
        look(first)
        look(first)
    assert "objects/3" in stored(url, 1)
    with begin(Checkpoints(url, tmp_path / "host2"), 2) as second:
        assert (second.resumed_from, content(second.directory)) == (
            1,
            {"model": "old", "optimizer": "old"},
        )

    look(first)  # attempt 1 was not dead after all: it goes on where it was cut off
    assert content(begin(Checkpoints(url, tmp_path / "host3"), 2).directory) == {
        "model": "new",
        "optimizer": "new",
    }
    fill(first.directory, model="newer")
    look(first)
    look(first)
    assert len([name for name in stored(url, 1) if name.startswith("manifest")]) == 2


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_generation_that_is_not_whole_is_passed_over(
    url: str, damage: str, tmp_path: Path
) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    where = f"{root}/digits-1/trial-0/attempt-1"
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    for text in ("old", "new"):
        fill(first.directory, last=text)
        if text == "old":
            wait_until(lambda: "manifest-000001" in stored(url, 1))
    first.close(final=True)
    if damage == "gone":
        fs.rm_file(f"{where}/objects/2")
    else:
        fs.pipe_file(f"{where}/objects/2", b"n")
    second = begin(Checkpoints(url, tmp_path / "host2"), 2)
    assert (second.resumed_from, content(second.directory)) == (1, {"last": "old"})


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../escaped"])
def test_a_manifest_cannot_write_outside_the_directory(
    tmp_path: Path, name: str, caplog: Any
) -> None:
    url = f"file://{tmp_path / 'store'}"
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    fill(first.directory, last="1")
    first.close(final=True)
    (manifest,) = tmp_path.glob("store/**/manifest-*")
    data = json.loads(manifest.read_text())
    data["files"][name] = data["files"].pop("last")
    manifest.write_text(json.dumps(data))
    second = begin(Checkpoints(url, tmp_path / "host2"), 2)
    assert (second.resumed_from, content(second.directory)) == (None, {})
    assert "no generation of its checkpoints is complete" in caplog.text
    assert not list(tmp_path.rglob("escaped"))


def test_a_file_that_is_written_all_the_time_does_not_hold_up_the_others(
    url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(generations, "PATIENCE_S", 0.2)
    stop = threading.Event()
    with begin(Checkpoints(url, tmp_path / "host1"), 1) as first:

        def chatter() -> None:
            with (first.directory / "log").open("a") as log:
                while not stop.wait(0.002):
                    log.write("on and on\n")
                    log.flush()

        writer = threading.Thread(target=chatter)
        writer.start()
        fill(first.directory, last="1")
        try:
            wait_until(lambda: "manifest-000001" in stored(url, 1))
        finally:
            stop.set()
            writer.join()
        with begin(Checkpoints(url, tmp_path / "host2"), 2) as second:
            assert content(second.directory) == {"last": "1"}
        first.close(final=True)
    assert set(content(begin(Checkpoints(url, tmp_path / "host3"), 2).directory)) == {"last", "log"}


def test_a_file_being_written_is_not_uploaded_yet(
    url: str, tmp_path: Path, look: Callable[[Kept], None]
) -> None:
    with (
        begin(Checkpoints(url, tmp_path / "host1"), 1) as first,
        (first.directory / "last").open("w") as file,
    ):
        for _ in range(3):
            file.write("part ")
            file.flush()
            look(first)
            assert stored(url, 1) == set()
        look(first)
        assert stored(url, 1) == {"manifest-000001", "objects/1"}


def test_a_store_that_fails_is_logged_once_and_the_last_upload_makes_up_for_it(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    host = uuid.uuid4().hex
    url = f"memory://me:secret@{host}"
    failed = threading.Semaphore(0)

    def fail(*_: Any) -> None:
        failed.release()
        raise RuntimeError("ftp://me:secret@host is away")

    with begin(Checkpoints(url, tmp_path / "host1"), 1) as first:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put", fail)
            fill(first.directory, last="1")
            for _ in range(3):
                assert failed.acquire(timeout=30)
        first.close(final=True)
    (complaint,) = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    where = f"memory://me:***@{host}/digits-1/trial-0/attempt-1"
    assert (
        complaint
        == f"{where}: cannot upload checkpoints now, will try again: ftp://me:***@host is away"
    )
    assert content(begin(Checkpoints(url, tmp_path / "host2"), 2).directory) == {"last": "1"}


def test_a_last_upload_that_fails_or_hangs_ends_with_a_warning(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    go = threading.Event()

    def fail(*_: Any) -> None:
        raise RuntimeError("away")

    def hang(*_: Any) -> None:
        go.wait(60)

    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    monkeypatch.setattr(ObjectStore, "put", fail)
    fill(first.directory, last="1")
    first.close(final=True)
    assert "the last checkpoints were not uploaded: away" in caplog.text

    monkeypatch.setattr(ObjectStore, "put", hang)
    monkeypatch.setattr(generations, "LAST_UPLOAD_S", 0.1)
    second = begin(Checkpoints(url, tmp_path / "host1"), 2)
    fill(second.directory, last="2")
    try:
        second.close(final=True)
        assert "the last checkpoints were not uploaded within 0.1 s" in caplog.text
        monkeypatch.setattr(generations, "LAST_UPLOAD_S", 60.0)
        third = begin(Checkpoints(url, tmp_path / "host1"), 3)
        fill(third.directory, last="3")
        waiting = threading.Thread(target=lambda: third.close(final=True))
        waiting.start()
        wait_until(third._uploader._ending.is_set)  # type: ignore[union-attr]
        third.close(final=False)
        waiting.join(50)
        assert not waiting.is_alive(), "whoever waits for it is let go"
    finally:
        go.set()


def test_a_store_that_cannot_be_read_is_an_error_not_an_empty_directory(
    tmp_path: Path, monkeypatch: Any
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    checkpoints = Checkpoints(url, tmp_path / "host1")
    begin(checkpoints, 1).close(final=False)

    def fail(*_: Any) -> None:
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(ObjectStore, "names", fail)
    with pytest.raises(
        CheckpointError, match=f"^paths.checkpoints={url}: Unable to locate credentials$"
    ):
        begin(checkpoints, 2)


def test_an_attempt_that_could_not_upload_is_taken_up_on_its_own_host(
    tmp_path: Path, monkeypatch: Any
) -> None:
    url = f"memory://{uuid.uuid4().hex}"

    def fail(*_: Any) -> None:
        raise RuntimeError("away")

    checkpoints = Checkpoints(url, tmp_path / "host1")
    with monkeypatch.context() as patch, begin(checkpoints, 1) as first:
        patch.setattr(ObjectStore, "put", fail)
        fill(first.directory, last="1")
        first.close(final=True)
    assert content(begin(checkpoints, 2).directory) == {"last": "1"}
    assert content(begin(Checkpoints(url, tmp_path / "host2"), 2).directory) == {}


def test_an_attempt_that_removed_all_its_files_is_passed_over(
    url: str, tmp_path: Path, look: Callable[[Kept], None]
) -> None:
    first = begin(Checkpoints(url, tmp_path / "host1"), 1)
    fill(first.directory, last="1")
    look(first)
    look(first)
    second = begin(Checkpoints(url, tmp_path / "host2"), 2)
    (second.directory / "last").unlink()
    look(second)
    look(second)
    assert stored(url, 2) == {"manifest-000001"}
    third = begin(Checkpoints(url, tmp_path / "host3"), 3)
    assert (third.resumed_from, content(third.directory)) == (1, {"last": "1"})


def test_a_trial_that_deletes_its_directory_does_not_delete_what_was_uploaded(
    url: str, tmp_path: Path
) -> None:
    with begin(Checkpoints(url, tmp_path / "host1"), 1) as first:
        fill(first.directory, last="1")
        wait_until(lambda: "manifest-000001" in stored(url, 1))
        shutil.rmtree(first.directory)
        first.close(final=True)
    assert content(begin(Checkpoints(url, tmp_path / "host2"), 2).directory) == {"last": "1"}
