"""Deletes what the trials of a study left on disk or in an object store."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.passwords import mask
from orchestrator.runner.files.artifacts import ArtifactPlace
from orchestrator.runner.files.object_store import ObjectStore, reason
from orchestrator.runner.protocol import rundir


@dataclass
class Removal:
    """What was deleted, and in words what could not be.

    `places` are the folders that are gone, `bytes` what they and the artifacts held.
    """

    bytes: int = 0
    places: list[str] = field(default_factory=list)
    artifacts: int = 0
    problems: list[str] = field(default_factory=list)

    def folder(self, folder: Path) -> None:
        """Deletes a folder with all that is in it; no link is followed. A missing one is none of
        the problems.
        """
        if not os.path.lexists(folder):
            return
        if folder.is_symlink():
            self.problems.append(f"{folder} is a symbolic link: delete what it leads to, and it")
            return
        known = len(self.problems)
        for top, folders, files in os.walk(folder, topdown=False, onerror=self._failed):
            for name in files:
                self._gone(Path(top, name), Path.unlink)
            for name in folders:
                path = Path(top, name)
                self._gone(path, Path.unlink if path.is_symlink() else Path.rmdir)
        self._gone(folder, Path.rmdir)
        if len(self.problems) == known:
            self.places.append(str(folder))

    def checkpoints(self, place: str, study: str) -> None:
        """Deletes the folder of a study's checkpoints in `place`, a directory or an fsspec URL.

        Args:
            study: the study's folder.
        """
        if "://" not in place:
            self.folder(rundir.study_dir(Path(place).expanduser().absolute(), study))
            return
        folder = rundir.study_dir(Path(), study).as_posix()
        try:
            store = ObjectStore(place)
            if (size := store.size(folder)) is not None:
                store.remove(folder)
                self.bytes += size
                self.places.append(f"{store}/{folder}")
        except Exception as error:  # noqa: BLE001 - each backend raises its own
            self.problems.append(f"paths.checkpoints={mask(place)}: {reason(error)}")

    def artifacts_of(self, place: str, ids: tuple[str, ...]) -> None:
        """Deletes artifacts; those that are not in `place` are not counted."""
        artifacts: ArtifactPlace | None = None
        try:
            for artifact_id in ids:
                artifacts = artifacts or ArtifactPlace(place)
                if (size := artifacts.size(artifact_id)) is not None:
                    artifacts.remove(artifact_id)
                    self.artifacts += 1
                    self.bytes += size
        except Exception as error:  # noqa: BLE001 - each backend raises its own
            self.problems.append(f"paths.artifacts={mask(place)}: {reason(error)}")

    def _gone(self, path: Path, remove: Callable[[Path], None]) -> None:
        try:
            status = path.lstat()
            remove(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._failed(error)
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            self.bytes += status.st_size

    def _failed(self, error: OSError) -> None:
        self.problems.append(f"{error.strerror} ({error.filename})")
