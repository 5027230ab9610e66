"""The journal of an attempt: its reports, for another worker if its own dies."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestrator.model import JSONValue
from orchestrator.runner.files.artifacts import ArtifactRecord
from orchestrator.runner.protocol.channel import Line
from orchestrator.runner.protocol.values import as_constraint, as_json, as_key, as_number, as_step

_NAME: Final = "journal.jsonl"
_LIMIT: Final = 64 << 20


class Journal:
    """Records messages as they are sent; a full or missing disk is not an error.

    It is emptied when a line cannot be written, and before it would exceed 64 MB: with a gap, it
    would present an outdated value of an attribute as the last one. A file that another attempt
    left under its name is emptied too.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = -1
        self._identity = (0, 0)
        self._size = 0
        with contextlib.suppress(OSError):
            self._file = os.open(
                run_dir / _NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644
            )
            self._identity = _identity(self._file)

    def append(self, message: Line) -> None:
        """Adds a message so that it survives this process (perhaps not a crash of the machine)."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError):
            if _identity(self._file) != self._identity:
                # The objective closed all descriptors it found: this number is another file now.
                return
            if self._size + len(line) > _LIMIT:
                self._empty()
            self._size += len(line)
            try:
                complete = os.write(self._file, line) == len(line)
            except OSError:
                complete = False
            if not complete:
                self._empty()

    def close(self) -> None:
        """Closes the file; later messages are dropped."""
        file, self._file = self._file, -1
        with contextlib.suppress(OSError):
            if _identity(file) == self._identity:
                os.close(file)

    def _empty(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0


class Entries(NamedTuple):
    """What an attempt reported.

    The first value of each step and of each constraint, the last value of each user attribute, and
    the records of stored artifacts by id.
    """

    reports: dict[int, float]
    attrs: dict[str, JSONValue]
    constraints: dict[str, float]
    artifacts: dict[str, JSONValue]


def read(run_dir: Path) -> Entries:
    """What the attempt in `run_dir` reported; nothing if it has no journal.

    Malformed lines are skipped: the last line of a killed process may be incomplete.

    Raises:
        OSError: There is a journal, but it cannot be read.
    """
    reports: dict[int, float] = {}
    attrs: dict[str, JSONValue] = {}
    constraints: dict[str, float] = {}
    artifacts: dict[str, JSONValue] = {}
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        (run_dir / _NAME).open("rb") as lines,
    ):
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                message: Any = json.loads(line)
                if "report" in message:
                    step, value = message["report"]
                    reports.setdefault(as_step(step), as_number(value))
                elif "constraint" in message:
                    name, number = as_constraint(*message["constraint"])
                    constraints.setdefault(name, number)
                elif "artifact" in message:
                    record = ArtifactRecord.from_json(message["artifact"])
                    artifacts[record.artifact_id] = record.to_json()
                else:
                    key, value = message["attr"]
                    attrs[as_key(key)] = as_json(value)
    return Entries(reports, attrs, constraints, artifacts)


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino
