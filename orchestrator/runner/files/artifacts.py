"""Artifacts: files that a trial stores for people, by id, in one place for all studies.

A directory contains one file per artifact, so that `optuna.artifacts.FileSystemArtifactStore` can
read it as well; a URL can be any that fsspec supports. An artifact's record (`ArtifactRecord`) is
stored with the trial, where Optuna and its dashboard expect it.
"""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from orchestrator.errors import ConfigError
from orchestrator.model import JSONValue
from orchestrator.passwords import mask
from orchestrator.runner.files.object_store import ObjectStore
from orchestrator.runner.protocol.values import as_json, preview

UNKNOWN_TYPE: Final = "application/octet-stream"
_MAX_NAME: Final = 255
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PROTOCOL_TYPO = re.compile(r"[A-Za-z][A-Za-z0-9+-]+:(?!//)")


class ArtifactError(OSError):
    """A file could not be stored; the message says which, where and why.

    It has the system's `errno`.
    """


@dataclass(frozen=True)
class ArtifactRecord:
    """The record of one artifact, with the fields of Optuna's `ArtifactMeta`.

    Raises:
        TypeError: a field is not a string.
        ValueError: a field is malformed.
    """

    artifact_id: str
    filename: str
    mimetype: str
    encoding: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.artifact_id, str) or not _ID.fullmatch(self.artifact_id):
            raise ValueError(f"{preview(self.artifact_id)} is not an artifact id")
        if not isinstance(self.filename, str):
            raise TypeError(
                f"the name of an artifact must be a string, got {preview(self.filename)}"
            )
        if not 1 <= len(self.filename) <= _MAX_NAME:
            raise ValueError(
                f"the name of an artifact must have 1 to {_MAX_NAME} characters, got "
                f"{len(self.filename)}"
            )
        as_json(self.filename)  # refuses text that a database cannot store

        # Checked strictly, because the dashboard puts them into headers of HTTP responses.
        if not isinstance(self.mimetype, str):
            raise TypeError(
                f"mimetype must be a string such as image/png, got {preview(self.mimetype)}"
            )
        if not _TYPE.fullmatch(self.mimetype):
            raise ValueError(f"mimetype must have the form image/png, got {preview(self.mimetype)}")
        if self.encoding is None:
            return
        if not isinstance(self.encoding, str) or not _TYPE.fullmatch(f"x/{self.encoding}"):
            raise ValueError(f"{preview(self.encoding)} is not a content encoding")

    @staticmethod
    def of(path: Path, name: str | None, mimetype: str | None) -> ArtifactRecord:
        """A record with a new id; name and type come from `path` where they are None."""
        name = path.name if name is None else name
        guessed, encoding = mimetypes.guess_type(name) if isinstance(name, str) else (None, None)
        return ArtifactRecord(
            str(uuid.uuid4()),
            name,
            guessed or UNKNOWN_TYPE if mimetype is None else mimetype,
            encoding,
        )

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ArtifactRecord:
        return ArtifactRecord(
            data["artifact_id"], data["filename"], data["mimetype"], data["encoding"]
        )

    def to_json(self) -> dict[str, JSONValue]:
        return asdict(self)


class ArtifactPlace:
    """The files of all artifacts, by id.

    It implements Optuna's artifact store: `open_reader`, `write`, `remove`.

    Args:
        place: an absolute directory, created with the first file, or an fsspec URL.

    Raises:
        ConfigError: the URL's protocol is unknown, or its package is missing.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._directory = None if "://" in place else Path(place)
        self._store: ObjectStore | None = None
        if self._directory is None:
            self._store = ObjectStore(place)

    def add(self, file: Path, artifact_id: str) -> None:
        """Copies a file, which may change after this returns.

        The copy is complete or does not exist.

        Raises:
            FileNotFoundError: there is no such file.
            IsADirectoryError: it is a directory.
            ValueError: it is not a regular file but, for instance, a pipe.
            ArtifactError: it cannot be read or stored.
        """
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            text = "there is no such file to store as an artifact"
            raise FileNotFoundError(errno.ENOENT, text, str(file)) from None
        if stat.S_ISDIR(mode):
            hint = (
                "an artifact must be a single file, not a directory; store an archive of it:"
                " shutil.make_archive(name, 'zip', directory)"
            )
            raise IsADirectoryError(errno.EISDIR, hint, str(file))
        if not stat.S_ISREG(mode):
            raise ValueError(f"{file} is not a regular file, so it cannot be stored as an artifact")

        try:
            if self._store is not None:
                self._store.put(file, artifact_id)
            else:
                with file.open("rb") as content:
                    self.write(artifact_id, content)
        except Exception as error:
            number, why = errno.EIO, _first_line(error)
            if isinstance(error, OSError):
                number, why = error.errno or number, error.strerror or why
            raise ArtifactError(
                number, f"{why}: {file} could not be stored in paths.artifacts={self._place}"
            ) from error

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The content of an artifact.

        Raises:
            FileNotFoundError: this place does not have it.
            ArtifactError: the object store does not answer, or refuses.
        """
        if self._store is not None:
            try:
                return self._store.open(_checked(artifact_id))
            except FileNotFoundError:
                raise
            except Exception as error:
                raise ArtifactError(
                    errno.EIO, f"{_first_line(error)}: paths.artifacts={self._place}"
                ) from error
        return (self._folder / _checked(artifact_id)).open("rb")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Stores an artifact; it is on disk when this returns."""
        if self._store is not None:
            self._store.write(_checked(artifact_id), content_body.read())
            return
        path = self._folder / _checked(artifact_id)
        partial = path.with_name(f".{artifact_id}.partial")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                shutil.copyfileobj(content_body, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def size(self, artifact_id: str) -> int | None:
        """How many bytes an artifact has; None if this place does not have it."""
        if not _ID.fullmatch(artifact_id):
            return None
        if self._store is not None:
            return self._store.size(artifact_id)
        try:
            return (self._folder / artifact_id).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, artifact_id: str) -> None:
        """Removes an artifact; it is not an error if there is none."""
        if self._store is not None:
            self._store.remove(_checked(artifact_id))
        else:
            (self._folder / _checked(artifact_id)).unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        assert self._directory is not None
        return self._directory


def checked_place(setting: str | None, data: Path) -> str:
    """Where `paths.artifacts` puts artifacts: an absolute directory or a URL.

    An explicit setting must be writable.

    The default, in `paths.data`, is created with the first artifact: a host that stores none does
    not need it.

    Raises:
        ConfigError: it cannot be created or written, or is neither a directory nor a URL.
    """
    if setting is None:
        return str(data / "artifacts")
    try:
        if "://" in setting:
            if mask(setting) != setting:  # every trial's run directory would contain it
                raise ConfigError(
                    "must not contain a password; pass credentials the way the fsspec backend "
                    "expects (for instance AWS_* variables)"
                )
            ArtifactPlace(setting)
            return setting
        if not setting.strip():
            raise ConfigError("must be a directory or a URL; null keeps artifacts in paths.data")
        if _PROTOCOL_TYPO.match(setting):
            raise ConfigError(
                "a URL needs // after its protocol, as in s3://bucket/path; for a directory, "
                "start the path with / or ./"
            )

        directory = Path(setting).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"can it be written?")
    except ConfigError as error:
        raise ConfigError(f"paths.artifacts={mask(setting)}: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"paths.artifacts={setting}: {error.strerror} ({error.filename or setting})"
        ) from error
    return str(directory)


def _checked(artifact_id: str) -> str:
    if not _ID.fullmatch(artifact_id):
        raise FileNotFoundError(errno.ENOENT, "not an artifact id", artifact_id)
    return artifact_id


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
