"""What the three processes of an attempt hand each other when they start: plain data, JSON on the
way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.model import Direction, JSONValue

MOMENT_S: Final = 3.0
"""Within this time a signal that is sent to all processes of a worker has reached each of them."""


@dataclass(frozen=True)
class Job:
    """Everything a child needs to run one attempt of one trial.

    `params` are the study's defaults and `objective` its ``_target_`` with keyword arguments, or
    its command, both unresolved; `values` maps a dotted path into `params` to the true value this
    trial uses there. Where that is the name of an option of a config group, `contents` has by the
    same path what it stands for, or `options` names the path: the group is the program's own.
    `directions` has one for each of `metrics`; `device` is a torch device as the child sees it.
    `resumed` says that an earlier attempt ran, `resumed_from` which one's files are in
    `checkpoint_dir`; `grace_s` is the time from SIGTERM to SIGKILL for a program that the child
    ends itself, `moment_s` as `MOMENT_S`. `artifacts` is the place for what the trial stores, an
    absolute directory or a URL; None where nobody keeps any.
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

    def to_json(self) -> dict[str, JSONValue]:
        return {
            **vars(self),
            "run_dir": str(self.run_dir),
            "checkpoint_dir": str(self.checkpoint_dir),
        }

    def known_facts(self) -> dict[str, JSONValue]:
        """What the facts of the attempt say of the job."""
        return {
            "study": self.study,
            "trial": self.number,
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
    """What a keeper, and a child in an interpreter of its own, is started with; it holds no secret,
    for it is an argument.

    `words` are those of a command, none for a function;
    `held` are file descriptors (device locks) that keeper and child keep open; `checked` says that
    the objective was imported and found good by this process before it replaced itself (see
    `keeper.main`); `ahead`, that a child may import it while another still has the device.
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

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_argument(text: str) -> KeeperOptions:
        data = json.loads(text)
        return KeeperOptions(
            **{**data, **{key: tuple(data[key]) for key in ("kwargs", "words", "held")}}
        )

    @property
    def objective(self) -> dict[str, JSONValue]:
        """The objective as far as its code goes."""
        return {"command": list(self.words)} if self.words else {"_target_": self.target}
