"""What worker, keeper and child pass to each other when they start: plain data, sent as JSON.

What they say to each other later, one JSON object per line:

- worker to keeper: ``do``: start, terminate, linger, ping
- keeper to worker: ``is``: imported, ready, broken, note, started, signalled, ended
- keeper to child: ``job`` (with the socket to the worker), ``end``
- child to keeper: ``is``: took, written, unfit, remark, signalled, free
- child to worker: those of `messages.message_from`, and ``done`` with the result
- worker to child: ``prune``, ``suggest``, ``study`` (answers), ``stop``, ``leaving``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator.model import Direction, JSONValue

MOMENT_S: Final = 3.0
"""The time within which a signal to all processes of a worker reaches each of them, seconds."""


@dataclass(frozen=True)
class Job:
    """Everything a child needs to run one attempt of one trial.

    Attributes:
        device: The torch device as the child sees it.
        params: The study's defaults, unresolved.
        values: The values that this trial uses, by dotted path into `params`. For a config group,
            the value is the name of the chosen option.
        objective: ``_target_`` with keyword arguments, or a command; unresolved.
        directions: One for each of `metrics`.
        resumed: Whether an earlier attempt ran.
        resumed_from: The attempt whose files are in `checkpoint_dir`, None if it is empty.
        grace_s: Time from SIGTERM to SIGKILL for a program that the child ends itself, seconds.
        artifacts: The place for the trial's artifacts, an absolute directory or a URL; None for a
            folder in the run directory.
        moment_s: See `MOMENT_S`.
        contents: For config groups of the study, the content of the chosen option, by path.
        options: The paths of config groups that are the program's own; it gets the option's name.
        probe: The name of the probe that this is an attempt of; None for a trial's.
    """

    study: str
    number: int
    attempt: int
    seed: int
    device: str
    params: Mapping[str, JSONValue]
    values: Mapping[str, JSONValue]
    objective: Mapping[str, JSONValue]
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    run_dir: Path
    checkpoint_dir: Path
    resumed: bool
    resumed_from: int | None = None
    grace_s: float = 5.0
    artifacts: str | None = None
    moment_s: float = MOMENT_S
    contents: Mapping[str, JSONValue] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    probe: str | None = None

    def to_json(self) -> dict[str, JSONValue]:
        return {
            **vars(self),
            "run_dir": str(self.run_dir),
            "checkpoint_dir": str(self.checkpoint_dir),
        }

    def facts(self) -> dict[str, JSONValue]:
        """The part of the attempt's facts that comes from the job."""
        of = {"trial": self.number} if self.probe is None else {"probe": self.probe}
        return {
            "study": self.study,
            **of,
            "attempt": self.attempt,
            "seed": self.seed,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Job:
        paths = {"run_dir": Path(data["run_dir"]), "checkpoint_dir": Path(data["checkpoint_dir"])}
        words = {name: tuple(data[name]) for name in ("metrics", "directions", "options")}
        return Job(**{**data, **paths, **words})


@dataclass(frozen=True)
class KeeperOptions:
    """What a keeper, or a child in a new interpreter, is started with.

    It contains no secret, because it is passed as an argument, which other users can see.

    Attributes:
        words: Those of a command, none for a function.
        held: File descriptors (device locks) that keeper and child keep open.
        checked: Whether this process imported the objective successfully before it replaced itself
            (see `keeper.main`).
        ahead: Whether a child may import the objective while another one still uses the device.
        only_checks: Whether the process only tells if the objective imports, and runs no attempt.
        also: What else it imports then: further functions, each with the names of its arguments.
    """

    control: int
    worker_pid: int
    target: str
    kwargs: tuple[str, ...]
    start: str
    threads: int | None
    grace_s: float
    silence_s: float
    words: tuple[str, ...] = ()
    held: tuple[int, ...] = ()
    isolation: str = "trial"
    checked: bool = False
    ahead: bool = True
    only_checks: bool = False
    also: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_argument(text: str) -> KeeperOptions:
        data = json.loads(text)
        lists = {key: tuple(data[key]) for key in ("kwargs", "words", "held")}
        also = tuple((target, tuple(kwargs)) for target, kwargs in data["also"])
        return KeeperOptions(**{**data, **lists, "also": also})

    @property
    def objective(self) -> dict[str, JSONValue]:
        """The part of the objective that determines its code."""
        return {"command": list(self.words)} if self.words else {"_target_": self.target}
