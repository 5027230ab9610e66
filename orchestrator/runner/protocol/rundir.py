"""The run directory: the folder through which a worker and the child of one attempt share files.

```
<runs>/<study>/trial-<number>/attempt-<k>-<token>/
    checkpoints/      its checkpoints, unless `paths.checkpoints` is another directory
    environment.json  its code, machine, device and resource use
    job.json          what the child is to do
    params.json       for a command: what the program may read
    metrics.jsonl     for a command: what the program may append to
    journal.jsonl     what the attempt reported while it ran
    output.log        everything it printed, or the head and tail of it
    result.json       how it ended, written by the child; complete or absent
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
    """A run directory cannot be created or written.

    Its text is the system's message and the path.
    """

    def __str__(self) -> str:
        return f"{self.strerror} ({self.filename})"


def attempt_dir(
    runs: Path, study: str, number: int, attempt: int, token: int | None = None
) -> Path:
    """The run directory of attempt `attempt` (1-based) of trial `number`."""
    return trial_dir(runs, study, number) / attempt_name(attempt, token)


def probe_dir(
    runs: Path, study: str, name: str, cell: int, attempt: int, token: int | None
) -> Path:
    """The run directory of attempt `attempt` (1-based) of a probe in cell `cell`."""
    probe = study_dir(runs, study) / f"probe-{name}-cell-{cell}"
    return probe / attempt_name(attempt, token)


def attempt_name(attempt: int, token: int | None) -> str:
    """The name of an attempt's folder, unique even if the database goes back in time.

    Such a database assigns the numbers of trials and attempts again, while old processes may still
    write and old results are still on disk. Tokens never repeat. `token` is None for attempts of
    old versions.
    """
    return f"attempt-{attempt}" if token is None else f"attempt-{attempt}-{token:016x}"


def trial_dir(root: Path, study: str, number: int) -> Path:
    """The directory of trial `number` below `root`."""
    return study_dir(root, study) / f"trial-{number}"


def study_dir(root: Path, study: str) -> Path:
    """The directory of a study below `root`: one folder, whatever its name."""
    name = quote(study, safe=" =+,@")
    if name.startswith("."):  # '.', '..' and hidden folders
        name = "%2E" + name[1:]
    return root / name


def log_path(run_dir: Path) -> Path:
    return run_dir / "output.log"


def prepare(job: Job) -> Path:
    """Creates the directories of an attempt and writes its job; returns the path of the job.

    An old result, left by an earlier study of the same name, is moved aside, so that it is not
    mistaken for this attempt's. Nothing is deleted.

    Raises:
        RunDirectoryError: The directory cannot be created or written.
    """
    try:
        return _prepare(job)
    except OSError as error:
        text = error.strerror or str(error)
        where = error.filename or str(job.run_dir)  # the error of a full disk names no file
        raise RunDirectoryError(error.errno, text, where) from error


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
    """Writes the outcome atomically; `sync_result` makes it survive a crash of the machine.

    Args:
        used: What the child reports about itself in addition, see `read_used`.

    Raises:
        OSError: The disk is full or gone.
    """
    _write(run_dir / "result.json", {**result_to_json(outcome), "used": {**(used or {})}})


def sync_result(run_dir: Path) -> None:
    """Returns once the result in `run_dir`, if any, would survive a crash of the machine."""
    with contextlib.suppress(OSError):  # the worker has the child's message as well
        for path in (run_dir / "result.json", run_dir):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_result(run_dir: Path) -> Outcome | None:
    """The outcome that the child wrote, or None if it did not get that far.

    A failure includes the last lines of the log. Works at any time after the attempt, for any
    process that can read the directory.
    """
    try:
        data = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return result_from_json(data, run_dir)


def read_used(run_dir: Path) -> dict[str, Any]:
    """What the child reported about itself with the result; empty if it did not get that far."""
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
            return {
                "outcome": "failed",
                "kind": kind,
                "message": message,
                "causes": list(causes),
                "memory": memory,
                "peak_bytes": peak_bytes,
            }
        case Interrupted(reason, lost):
            return {"outcome": "interrupted", "reason": reason, "lost": lost}


def result_from_json(data: dict[str, Any], run_dir: Path) -> Outcome:
    """The inverse of `result_to_json`; a failure also gets the end of the log, as in `failure`."""
    match data["outcome"]:
        case "completed":
            return Completed(tuple(float(value) for value in data["values"]), data["attrs"])
        case "pruned":
            return Pruned(data["step"])
        case "failed":
            causes = tuple(data.get("causes", ()))
            failed = failure(data["kind"], data["message"], run_dir, causes)
            return replace(failed, memory=data.get("memory"), peak_bytes=data.get("peak_bytes"))
        case "interrupted":
            return Interrupted(data["reason"], data.get("lost", False))
        case other:
            raise ValueError(f"{run_dir / 'result.json'}: unknown outcome {other!r}")


def failure(kind: str, cause: str, run_dir: Path, causes: tuple[str, ...]) -> Failed:
    """A failure whose message is the cause, then the path and the last lines of the log."""
    log = log_path(run_dir)
    lines = [
        _ESCAPES.sub("", cause).encode("utf-8", "replace").decode(),
        f"log: {log}",
        *_tail(log),
    ]
    return Failed(kind, "\n".join(lines), causes)


def _tail(log: Path) -> list[str]:
    """The log's last non-blank lines, without control characters and escape sequences."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    lines = text.split("\n")
    if size > _TAIL_BYTES:
        lines = lines[1:] or lines  # the first is a fragment, unless it is the only one

    # A progress bar rewrites its line with carriage returns: keep its last state.
    last_states = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
    clean = [_ESCAPES.sub("", line).rstrip() for line in last_states]
    return [line for line in clean if line][-_TAIL_LINES:]


def move_aside(path: Path) -> None:
    """Renames whatever another study left at `path`; it is not an error if there is nothing."""
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
        temporary.replace(path)  # atomic, as both are in one directory
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
