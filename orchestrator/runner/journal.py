"""The journal of an attempt: what its child reported, for the worker that delivers the result of a
dead one.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestrator.model import JSONValue
from orchestrator.runner.files.artifacts import ArtifactRecord
from orchestrator.runner.protocol.channel import Message
from orchestrator.runner.protocol.values import as_constraint, as_json, as_key, as_number, as_step

_NAME: Final = "journal.jsonl"
_LIMIT: Final = 64 << 20


class Journal:
    """Writes messages down as they are sent; a disk that is full or gone disturbs nobody.

    It starts anew when a line could not be written, and before it would grow over 64 MB: with a gap
    in it, it would pass off an attribute's earlier value as the last. What another attempt left
    under its name is dropped.
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

    def append(self, message: Message) -> None:
        """Adds a message, so that it survives this process (but perhaps not a crash of the
        machine).
        """
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with contextlib.suppress(OSError):
            if _identity(self._file) != self._identity:
                # the objective closed every descriptor it found, and this is a file of its own now
                return
            if self._size + len(line) > _LIMIT:
                self._start_anew()
            self._size += len(line)
            try:
                complete = os.write(self._file, line) == len(line)
            except OSError:
                complete = False
            if not complete:
                self._start_anew()

    def close(self) -> None:
        """Ends it; later messages are dropped."""
        file, self._file = self._file, -1
        with contextlib.suppress(OSError):
            if _identity(file) == self._identity:
                os.close(file)

    def _start_anew(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0


class Entries(NamedTuple):
    """What an attempt reported: values by step and constraints (the first of each), user attributes
    (the last of a key).

    `artifacts` are the records of what it stored, by id.
    """

    reports: dict[int, float]
    attrs: dict[str, JSONValue]
    constraints: dict[str, float]
    artifacts: dict[str, JSONValue]


def read(run_dir: Path) -> Entries:
    """What the attempt in `run_dir` reported.

    Nothing without a journal. A line that makes no sense is left out, as the last one of a killed
    process may be.

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
