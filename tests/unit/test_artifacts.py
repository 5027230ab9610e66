"""Artifacts: stored as the file was at the call, known by their record, refused in one line that
names the file.
"""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.artifacts import FileSystemArtifactStore

from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed
from orchestrator.runner import ArtifactLogged
from orchestrator.runner.files.artifacts import (
    ArtifactError,
    ArtifactPlace,
    ArtifactRecord,
    checked_place,
)
from orchestrator.worker.delivery import LeftResults
from tests.support.running import finish, make_job, running_with

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def objective(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"_target_": f"tests.support.leaving.{name}", **kwargs}


def test_an_artifact_is_what_the_file_was_at_the_call_and_a_dead_workers_successor_learns_of_it(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    with running_with(objective("stores")) as runner:
        job = make_job(tmp_path / "runs", objective("stores"), artifacts=str(store))
        outcome, messages = finish(runner.start(job))
    assert isinstance(outcome, Completed)
    first, second = outcome.attrs["ids"]
    records = [message.record for message in messages if isinstance(message, ArtifactLogged)]
    assert records == [
        ArtifactRecord(first, "curve.csv", "text/csv"),
        ArtifactRecord(second, "net.onnx", "model/onnx"),
    ]
    assert sorted(path.name for path in store.iterdir()) == sorted([first, second])
    with FileSystemArtifactStore(store).open_reader(first) as file:
        assert file.read() == b"as it was"
    left = LeftResults().result_in(job.run_dir)
    assert left is not None
    assert list(left[1].artifacts.values()) == [record.to_json() for record in records]
    assert left[1].facts["seed"] == job.seed


def test_what_cannot_be_stored_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the directory should be")
    with running_with(objective("tries_to_store")) as runner:
        job = make_job(
            tmp_path / "runs", objective("tries_to_store"), artifacts=str(tmp_path / "store")
        )
        outcome, messages = finish(runner.start(job))
    assert isinstance(outcome, Completed)
    here = job.checkpoint_dir
    assert messages == []
    assert outcome.attrs["errors"] == {
        "missing": (
            "FileNotFoundError: [Errno 2] there is no such file to store as an artifact: "
            f"'{here}/gone.png'"
        ),
        "directory": (
            "IsADirectoryError: [Errno 21] an artifact must be a single file, not a directory;"
            f" store an archive of it: shutil.make_archive(name, 'zip', directory): '{here}'"
        ),
        "pipe": (
            f"ValueError: {here}/pipe is not a regular file, so it cannot be stored as an artifact"
        ),
        "name": "TypeError: the name of an artifact must be a string, got 3",
        "empty": "ValueError: the name of an artifact must have 1 to 255 characters, got 0",
        "nul": "ValueError: text with a NUL character cannot be stored",
        "type": r"ValueError: mimetype must have the form image/png, got 'text/html\r\nX-Evil: 1'",
        "place": (
            f"ArtifactError: [Errno 17] File exists: {here}/file could not be stored in "
            f"paths.artifacts={tmp_path}/store"
        ),
    }


def test_a_full_disk_leaves_no_half_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: Any, target: Any, _length: int) -> None:
        target.write(source.read(1))
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "big").write_text("much")
    place = ArtifactPlace(str(tmp_path / "store"))
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(
        ArtifactError, match=f"No space left on device: {tmp_path}/big could not be stored in"
    ) as caught:
        place.add(tmp_path / "big", ID)
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("url", [False, True])
def test_a_directory_and_a_url_keep_artifacts_alike(tmp_path: Path, url: bool) -> None:
    place = ArtifactPlace(f"file://{tmp_path}/store" if url else f"{tmp_path}/store")
    (tmp_path / "file").write_bytes(b"content")
    place.add(tmp_path / "file", ID)
    with place.open_reader(ID) as file:
        assert file.read() == b"content"
    place.write(ID, io.BytesIO(b"other"))
    with place.open_reader(ID) as file:
        assert file.read() == b"other"
    for _ in range(2):
        place.remove(ID)
    for gone in (ID, "../file"):
        with pytest.raises(FileNotFoundError):
            place.open_reader(gone)


def test_a_child_that_dies_has_stored_what_it_stored(tmp_path: Path) -> None:
    with running_with(objective("dies")) as runner:
        job = make_job(tmp_path, objective("dies"), artifacts=str(tmp_path / "store"))
        outcome, messages = finish(runner.start(job))
    assert isinstance(outcome, Failed)
    (logged,) = messages
    assert isinstance(logged, ArtifactLogged)
    assert (tmp_path / "store" / logged.record.artifact_id).read_text() == "x"


def test_a_place_that_does_not_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = {
        f"{tmp_path}/file": r"File exists",
        f"{tmp_path}/file/below": r"Not a directory",
        " ": "must be a directory or a URL; null keeps artifacts in paths.data",
        "s3:bucket/x": "a URL needs // after its protocol",
        "s4://bucket": "unknown protocol 's4'",
        "ftp://me:secret@host/x": "must not contain a password",
    }
    for setting, why in refused.items():
        with pytest.raises(ConfigError, match=why) as caught:
            checked_place(setting, tmp_path)
        assert str(caught.value).startswith("paths.artifacts=")
        assert "secret" not in str(caught.value)
    assert checked_place(None, tmp_path) == f"{tmp_path}/artifacts"
    assert not (tmp_path / "artifacts").exists()
    assert checked_place(f"{tmp_path}/new", tmp_path) == f"{tmp_path}/new"


def test_a_record_that_would_write_headers_is_dropped() -> None:
    good = {"artifact_id": ID, "filename": "a", "mimetype": "a/b", "encoding": None}
    assert ArtifactRecord.from_json(good).to_json() == good
    for change in (
        {"mimetype": "a/b\r\nX: y"},
        {"artifact_id": "../x"},
        {"encoding": "gzip\n"},
        {"filename": "\ud800"},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            ArtifactRecord.from_json(good | change)
