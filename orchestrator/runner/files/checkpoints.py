"""Where each attempt keeps its checkpoints, and how the next attempt gets them."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from orchestrator import faults
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.passwords import mask
from orchestrator.runner.files.generations import Uploader, fetch
from orchestrator.runner.files.object_store import ObjectStore, reason
from orchestrator.runner.files.tree import UnreadableError, copy_tree
from orchestrator.runner.protocol import rundir

logger = logging.getLogger(__name__)

MARKER: Final = ".orchestrator-place"
SETTLES_S: Final = 0.5
_GIVES_UP_S: Final = 5.0
_INCOMING: Final = ".incoming"
_ATTEMPT = re.compile(rf"(attempt-([1-9]\d*)(?:-[0-9a-f]{{16}})?)(?:{re.escape(_INCOMING)})?")
_PROTOCOL_TYPO = re.compile(r"[A-Za-z][A-Za-z0-9+-]+:(?!//)")


class CheckpointError(OrchestratorError):
    """The checkpoints of an attempt cannot be read or written here.

    The message names the setting of their place.
    """


class Checkpoints:
    """The checkpoints of all trials that this host runs.

    Every attempt writes to its own directory and reads no other:

    - place None: ``<runs>/<study>/trial-N/attempt-K-TOKEN/checkpoints``;
    - a directory: ``<place>/<study>/trial-N/attempt-K-TOKEN``;
    - a URL: the same as None, and the files are uploaded to
      ``<place>/<study>/trial-N/attempt-K-TOKEN``, see `generations`.

    Args:
        place: The setting ``paths.checkpoints``.
        runs: The setting ``paths.runs``.

    Raises:
        ConfigError: The place cannot be created, read or written from here, its protocol is
            unknown, or a package is missing.
    """

    def __init__(self, place: str | None, runs: Path) -> None:
        self._runs = runs
        self._store: ObjectStore | None = None
        self._directories: Path | None = None
        self._setting = (
            f"paths.runs={runs}" if place is None else f"paths.checkpoints={mask(place)}"
        )

        try:
            if place is None:
                self._identity = _identity_of_directory(runs)
            elif "://" in place:
                self._store = ObjectStore(place)
                self._identity = _identity_of_store(self._store)
            elif not place.strip():
                raise ConfigError(
                    "must be a directory or a URL; null keeps checkpoints in paths.runs"
                )
            elif _PROTOCOL_TYPO.match(place):
                raise ConfigError(
                    "a URL needs // after its protocol, as in s3://bucket/path; for a directory, "
                    "start the path with / or ./"
                )
            else:
                directory = Path(place).expanduser().absolute()
                self._identity = _identity_of_directory(directory)
                self._directories = None if directory.resolve() == runs.resolve() else directory
        except Exception as error:
            raise ConfigError(f"{self._setting}: {_reason(error)}") from error

    def identity(self) -> str:
        """A random word that identifies this place, the same for every host that uses it."""
        return self._identity

    def begin(
        self,
        study: str,
        number: int,
        attempt: int,
        *,
        resume: bool,
        tokens: Mapping[int, int | None] = MappingProxyType({}),
    ) -> Kept:
        """Creates the directory of an attempt.

        With `resume`, it is filled from the newest earlier attempt that left files.

        This takes as long as copying or downloading those files, and shares nothing with other
        calls: call it in a thread while the trial's lease is renewed. An earlier attempt whose
        files are unreadable or incomplete is skipped with a warning. Files of attempts before the
        one resumed from are deleted.

        Args:
            study: The study's folder.
            number: The trial's number in its study.
            attempt: The new attempt, from 1. Each attempt may be passed only once.
            resume: Whether to resume from an earlier attempt at all.
            tokens: The tokens of this attempt and of each earlier one, from the database, by
                attempt. They exclude files under the same trial number that were written before the
                database went back in time.

        Raises:
            CheckpointError: The place cannot be read or written, or the disk is full. No existing
                file is lost.
        """
        trial = _TrialPlace(self._runs, self._directories, self._store, study, number, tokens)
        directory = trial.directory(attempt)
        incoming = directory.with_name(directory.name + _INCOMING)
        try:
            source = self._hand_over(trial, attempt, incoming) if resume else None
            if source is None:
                shutil.rmtree(incoming, ignore_errors=True)
                incoming.mkdir(parents=True)
            faults.step("checkpoints.begin")
            if directory.is_dir() and any(directory.iterdir()):
                rundir.move_aside(directory)  # it belongs to another study
            incoming.rename(directory)
            trial.discard(attempt if not resume else source or 0)
        except Exception as error:
            shutil.rmtree(incoming, ignore_errors=True)
            raise CheckpointError(f"{self._setting}: {_reason(error)}") from error
        return Kept(trial, attempt, source)

    def _hand_over(self, trial: _TrialPlace, attempt: int, incoming: Path) -> int | None:
        """Copies the newest earlier attempt's files to `incoming`.

        Returns that attempt, None without files.
        """
        for earlier in trial.earlier(attempt):
            try:
                if trial.copy(earlier, incoming):
                    return earlier
            except UnreadableError as error:
                logger.warning(
                    "trial %d: cannot read the checkpoints of attempt %d: %s",
                    trial.number,
                    earlier,
                    _reason(error),
                )
        return None


class Kept:
    """The checkpoints of one attempt.

    As a context manager, it ends their upload on exit, without a final one.

    Attributes:
        directory: The existing directory where the attempt writes them.
        resumed_from: The attempt whose files it contains, None if it started empty.
    """

    def __init__(self, trial: _TrialPlace, attempt: int, resumed_from: int | None) -> None:
        self.directory = trial.directory(attempt)
        self.resumed_from = resumed_from
        self._trial = trial
        self._attempt = attempt
        self._uploader = (
            None
            if trial.store is None
            else Uploader(trial.store, trial.remote(attempt), self.directory)
        )

    @property
    def uploads(self) -> bool:
        """Whether there is an upload to end."""
        return self._uploader is not None

    def close(self, *, final: bool) -> None:
        """Ends the upload; does nothing if nothing is uploaded. Idempotent.

        Args:
            final: Whether to upload the current files first; the child must have ended. If True, it
                returns when that is done or has failed, after `LAST_UPLOAD_S` at the latest, or
                soon after another thread calls it with False. It raises nothing, so call it in a
                thread while the trial's lease is renewed. If False, it returns at once.
        """
        if self._uploader is not None:
            self._uploader.close(final=final)

    def discard_older(self) -> None:
        """Deletes the files of all earlier attempts, for a trial that has ended.

        This attempt's own ones stay.
        """
        self._trial.discard(self._attempt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close(final=False)


class _TrialPlace:
    """Where the attempts of one trial keep their checkpoints.

    `store` is None if nothing is uploaded.
    """

    def __init__(
        self,
        runs: Path,
        directories: Path | None,
        store: ObjectStore | None,
        study: str,
        number: int,
        tokens: Mapping[int, int | None],
    ) -> None:
        self._tokens = tokens
        self._with_runs = directories is None
        self._root = rundir.trial_dir(directories or runs, study, number)
        self._below = self._root.relative_to(directories or runs).as_posix()
        self.number = number
        self.store = store

    def directory(self, attempt: int) -> Path:
        where = self._root / self._name(attempt)
        return where / "checkpoints" if self._with_runs else where

    def remote(self, attempt: int) -> str:
        return f"{self._below}/{self._name(attempt)}"

    def _name(self, attempt: int) -> str:
        return rundir.attempt_name(attempt, self._tokens.get(attempt))

    def earlier(self, attempt: int) -> list[int]:
        """The attempts before this one that may have left files, the newest first."""
        names = [path.name for path in self._root.iterdir()] if self._root.is_dir() else []
        if self.store is not None and attempt > 1:
            names += self.store.names(self._below)
        found = {(match[1], int(match[2])) for match in map(_ATTEMPT.fullmatch, names) if match}
        ours = {number for name, number in found if name == self._name(number)}
        return sorted((number for number in ours if number < attempt), reverse=True)

    def copy(self, attempt: int, target: Path) -> bool:
        """Copies an attempt's files to the new directory `target`; False if there are none."""
        if self.store is not None and fetch(self.store, self.remote(attempt), target):
            return True

        # With a URL too: the attempt may have run on this host without being able to upload
        # anything.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return copy_tree(self.directory(attempt), target)

    def discard(self, below: int) -> None:
        """Deletes the files of the attempts before `below`, as far as possible now."""
        try:
            for attempt in self.earlier(below):
                directory = self.directory(attempt)
                for path in (directory, directory.with_name(directory.name + _INCOMING)):
                    shutil.rmtree(path, ignore_errors=True)
                if self.store is not None:
                    self.store.remove(self.remote(attempt))
        except Exception as error:  # noqa: BLE001 - leftover files are not a reason to fail
            logger.debug(
                "trial %d: cannot remove earlier checkpoints: %s", self.number, reason(error)
            )


def _identity_of_directory(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as probe:
        probe.write(b"can it be written?")
    marker = root / MARKER
    began = time.monotonic()
    while True:
        with contextlib.suppress(FileExistsError), marker.open("x", encoding="utf-8") as file:
            file.write(uuid.uuid4().hex)
        if word := marker.read_text(encoding="utf-8"):
            return word
        if time.monotonic() - began > _GIVES_UP_S:  # its creator died before writing to it
            marker.unlink(missing_ok=True)
        time.sleep(0.05)


def _identity_of_store(store: ObjectStore) -> str:
    try:
        store.write(f"{MARKER}-writable", b"yes")
    except NotImplementedError:
        raise ConfigError("this protocol is read-only: choose another one") from None
    before = None
    while True:
        try:
            word = store.read(MARKER).decode()
        except FileNotFoundError:
            word = ""
        if word and word == before:
            return word
        if not word:
            store.write(MARKER, uuid.uuid4().hex.encode())
        before = word
        # Few stores support exclusive creation. If several hosts write a first word at the same
        # time, the last one wins.
        time.sleep(SETTLES_S)


def _reason(error: Exception) -> str:
    """The system's message and the path, in one line without passwords."""
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return mask(f"{error.strerror}{place}")
    return reason(error)
