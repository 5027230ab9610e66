"""The run directory: the folder through which a worker and the child of one attempt share files.

```
<runs>/<study>/trial-<number>/attempt-<k>-<token>/
                                          checkpoints/  its checkpoints, unless `paths.checkpoints`
                                          is another directory environment.json  the code, machine
                                          and device it ran on, and what it took job.json      what
                                          the child is to do params.json   of a command: what the
                                          program may read metrics.jsonl of a command: what the
                                          program may append to journal.jsonl what it reported,
                                          while it ran output.log    all that it printed, or head
                                          and tail of it result.json   how it ended, written by the
                                          child, complete or absent
```
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from orchestrator.model import Completed, Failed, Interrupted, JSONValue, Outcome, Pruned
from orchestrator.runner.protocol.contract import Job

_TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 4096
_ESCAPES = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]"
)


class RunDirectoryError(OSError):
    """A run directory cannot be made or written; as text, what the system said and the path in one
    line.
    """

    def __str__(self) -> str:
        return f"{self.strerror} ({self.filename})"


def attempt_dir(
    runs: Path, study: str, number: int, attempt: int, token: int | None = None
) -> Path:
    """Where attempt `attempt` (1-based) of trial `number` has its run directory."""
    return trial_dir(runs, study, number) / attempt_name(attempt, token)


def attempt_name(attempt: int, token: int | None) -> str:
    """The folder of one attempt and of no other, whatever becomes of the database.

    One that went back in time hands out numbers of trials and attempts again, while processes of
    before may still write, and results lie on disk: a token comes never again. None: of an attempt
    that is older than this.
    """
    return f"attempt-{attempt}" if token is None else f"attempt-{attempt}-{token:016x}"


def trial_dir(root: Path, study: str, number: int) -> Path:
    """The directory of trial `number` below `root`; whatever the study's name, it is one folder
    deep.
    """
    name = quote(study, safe=" =+,@")
    if name.startswith("."):  # '.', '..' and hidden folders
        name = "%2E" + name[1:]
    return root / name / f"trial-{number}"


def log_path(run_dir: Path) -> Path:
    return run_dir / "output.log"


def prepare(job: Job) -> Path:
    """Makes the directories of an attempt and writes its job; returns the path of the job.

    What an earlier study of the same name left there cannot leak into this one: an old result is
    moved aside. Nothing is deleted.

    Raises:
        RunDirectoryError: The directory cannot be made or written.
    """
    try:
        return _prepare(job)
    except OSError as error:  # a full disk names no file
        raise RunDirectoryError(
            error.errno, error.strerror or str(error), error.filename or str(job.run_dir)
        ) from error


def _prepare(job: Job) -> Path:
    job.run_dir.mkdir(parents=True, exist_ok=True)
    move_aside(job.run_dir / "result.json")
    job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    log_path(job.run_dir).touch()
    path = job.run_dir / "job.json"
    _write(path, job.to_json())
    return path


def read_job(path: Path) -> Job:
    """The job that `prepare` wrote at `path`."""
    return Job.from_json(json.loads(path.read_bytes()))


def write_result(
    run_dir: Path, outcome: Outcome, used: Mapping[str, JSONValue] | None = None
) -> None:
    """Writes the outcome so that half of it is never seen; `sync_result` makes it survive a crash
    of the machine.

    Args:
        used: What the child says of itself besides, see `read_used`.

    Raises:
        OSError: The disk is full or gone.
    """
    _write(run_dir / "result.json", {**result_to_json(outcome), "used": {**(used or {})}})


def sync_result(run_dir: Path) -> None:
    """Returns when the result in `run_dir`, if there is one, would survive a crash of
    the machine.
    """
    # without a disk there is nothing to survive; the child told the worker as well
    with contextlib.suppress(OSError):
        for path in (run_dir / "result.json", run_dir):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_result(run_dir: Path) -> Outcome | None:
    """The outcome that the child wrote, or None when it did not get that far; a failure comes with
    its log's last lines.

    It works at any time after the attempt, for any process that sees the directory.
    """
    try:
        data = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return result_from_json(data, run_dir)


def read_used(run_dir: Path) -> dict[str, Any]:
    """What the child that wrote the result said of itself; empty if it did not get that far."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return dict(json.loads((run_dir / "result.json").read_bytes())["used"])
    return {}


def result_to_json(outcome: Outcome) -> dict[str, JSONValue]:
    """An outcome as plain data, for the file and for the socket."""
    match outcome:
        case Completed(values, attrs):
            return {"outcome": "completed", "values": list(values), "attrs": dict(attrs)}
        case Pruned(step):
            return {"outcome": "pruned", "step": step}
        case Failed(kind, message, causes, memory, peak_bytes):
            told = {
                "kind": kind,
                "message": message,
                "causes": list(causes),
                "memory": memory,
                "peak_bytes": peak_bytes,
            }
            return {"outcome": "failed", **told}
        case Interrupted(reason, lost):
            return {"outcome": "interrupted", "reason": reason, "lost": lost}


def result_from_json(data: dict[str, Any], run_dir: Path) -> Outcome:
    """The outcome that `result_to_json` made `data` of; a failure is completed as by `failure`."""
    match data["outcome"]:
        case "completed":
            return Completed(tuple(float(value) for value in data["values"]), data["attrs"])
        case "pruned":
            return Pruned(data["step"])
        case "failed":
            told = failure(data["kind"], data["message"], run_dir, tuple(data.get("causes", ())))
            return replace(told, memory=data.get("memory"), peak_bytes=data.get("peak_bytes"))
        case "interrupted":
            return Interrupted(data["reason"], data.get("lost", False))
        case other:
            raise ValueError(f"{run_dir / 'result.json'}: unknown outcome {other!r}")


def failure(kind: str, cause: str, run_dir: Path, causes: tuple[str, ...]) -> Failed:
    """A failure whose message has the cause in its first line, then the path of the log and the
    log's last lines.
    """
    log = log_path(run_dir)
    lines = [
        _ESCAPES.sub("", cause).encode("utf-8", "replace").decode(),
        f"log: {log}",
        *_tail(log),
    ]
    return Failed(kind, "\n".join(lines), causes)


def _tail(log: Path) -> list[str]:
    """The last lines that say something, without what a terminal or a database cannot take."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    lines = text.split("\n")
    if size > _TAIL_BYTES:
        lines = lines[1:] or lines  # the first is a fragment, unless it is all there is
    # A progress bar rewrites its line with carriage returns: its last state is the one to show.
    shown = [_ESCAPES.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip() for line in lines]
    return [line for line in shown if line][-_TAIL_LINES:]


def move_aside(path: Path) -> None:
    """Gives what another study left at `path` another name; nothing there is no error."""
    if not path.exists():
        return
    count = 1
    while (target := path.with_name(f"{path.name}.old-{count}")).exists():
        count += 1
    path.rename(target)


def _write(path: Path, data: JSONValue) -> None:
    temporary = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(data).encode())
        temporary.replace(path)  # both are in one directory, so this is atomic
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
