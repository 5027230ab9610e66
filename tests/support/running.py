"""Running attempts in tests, and looking at the processes they leave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.model import Outcome
from orchestrator.runner import Job, Message, PruneQuestion, Runner, Running, attempt_dir
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OBJECTIVES = "tests.support.objectives"


def objective(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"_target_": f"{OBJECTIVES}.{name}", **kwargs}


def make_job(runs: Path, target: dict[str, Any], **changes: Any) -> Job:
    number, attempt = changes.get("number", 0), changes.get("attempt", 1)
    fields: dict[str, Any] = {
        "study": "study",
        "number": number,
        "attempt": attempt,
        "seed": 7,
        "device": "cpu",
        "params": {"optim": {"lr": 0.1}},
        "values": {"optim.lr": 0.01},
        "objective": target,
        "metrics": ("score",),
        "directions": ("minimize",) * len(changes.get("metrics", ("score",))),
        "run_dir": attempt_dir(runs, "study", number, attempt),
        "checkpoint_dir": attempt_dir(runs, "study", number, attempt) / "checkpoints",
        "resumed": False,
    }
    return Job(**{**fields, **changes})


@contextmanager
def running_with(target: dict[str, Any], **options: Any) -> Iterator[Runner]:
    runner = Runner(target, **{"cwd": ROOT, "grace_s": 0.5, **options})
    try:
        runner.check()
        yield runner
    finally:
        runner.close()


def finish(
    running: Running, judge: Callable[[PruneQuestion], bool] = lambda _: False
) -> tuple[Outcome, list[Message]]:
    """Serves the attempt as a worker does, to its end."""
    messages: list[Message] = []

    def ended() -> bool:
        for message in running.poll(1.0):
            messages.append(message)
            if isinstance(message, PruneQuestion):
                running.answer_prune(judge(message))
        return running.outcome is not None

    wait_until(ended)
    assert running.outcome is not None
    return running.outcome, messages


def pids_of(runs: Path, number: int = 0) -> list[int]:
    """The processes that the objective of this trial said it has, once it has said so."""
    file = attempt_dir(runs, "study", number, 1) / "checkpoints" / "pids.json"
    wait_until(file.exists)
    pids: list[int] = json.loads(file.read_text())
    return pids


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if alive(int(child))
    ]


def own_children() -> list[int]:
    return children_of(os.getpid())


def leads(pid: int) -> bool:
    """Whether it has a session of its own; what the keeper runs for itself, such as
    git, has none.
    """
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
