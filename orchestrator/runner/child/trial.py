"""The `trial` that a user's function gets: Optuna's interface, and more for training jobs."""

from __future__ import annotations

import importlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import did_you_mean
from orchestrator.model import JSONValue, at, leaf_paths
from orchestrator.runner.child.merge import Settled
from orchestrator.runner.child.study import Study
from orchestrator.runner.child.suggestions import Suggests, WorkerGoneError
from orchestrator.runner.files.artifacts import ArtifactPlace, ArtifactRecord
from orchestrator.runner.journal import Journal
from orchestrator.runner.protocol.channel import (
    Channel,
    Line,
    MessageTooLongError,
    wait_readable,
)
from orchestrator.runner.protocol.contract import Job
from orchestrator.runner.protocol.values import (
    as_constraint,
    as_json,
    as_key,
    as_number,
    as_step,
    preview,
)

_T = TypeVar("_T")
_MOST_REMARKS = 20


class TrialPruned(Exception):  # noqa: N818 - Optuna's name
    """Raise it to end the trial when `Trial.should_prune` returns True.

    ``optuna.TrialPruned`` works as well.
    """


class Trial(Suggests):
    """One attempt of one trial, as the user's function sees it.

    Any thread of the process that got it may use it.
    """

    # Members that only `child.py` uses have a leading underscore too, so that users see nothing but
    # their own interface.

    def __init__(self, job: Job, channel: Channel) -> None:
        super().__init__()
        self._job = job
        self._channel = channel
        self._journal = Journal(job.run_dir)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._steps: set[int] = set()
        self._user_attrs: dict[str, JSONValue] = {}
        self._constraints: dict[str, float] = {}
        self._stop = False
        self._leaving = False
        # Signals that the worker may have received as well, with their times by the monotonic
        # clock.
        self._signals: Mapping[int, float] = {}
        self._answers: dict[str, Any] = {}
        self._read_all_params = False  # through `params`, whether or not it asked for each one
        self._settled: Settled | None = None

    # ----------------------------------------------------------------------------------- properties

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0; -1 in a probe, which has no trial."""
        return self._job.number

    @property
    def params(self) -> dict[str, Any]:
        """The trial's parameters by name: of grid and search, and suggested in this attempt."""
        self._read_all_params = True
        return {**self._job.values, **self._suggested()}

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The attributes set in this attempt, as they are stored."""
        return dict(self._user_attrs)

    @property
    def study(self) -> Study:
        """The trial's study, read-only: name, directions, metrics, user attributes, best trial."""
        return Study(self._job, self._ask_about)

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that were chosen before the attempt started: those of grid and search."""
        return dict(self._job.values)

    @property
    def distributions(self) -> dict[str, Any]:
        """Optuna's distribution of every parameter that the trial has so far; imports Optuna.

        Raises:
            ValueError: They are too large to be passed to a trial.
        """
        # Imported here, because most objectives need no such object and start faster without
        # Optuna.
        optuna = importlib.import_module("optuna.distributions")
        return {
            name: optuna.json_to_distribution(text)
            for name, text in self._ask_about("distributions").items()
        }

    @property
    def datetime_start(self) -> datetime | None:
        """When the trial's first attempt started, by the database's clock.

        It is a naive local time, as in Optuna.
        """
        started = self._ask_about("started")
        return (
            None
            if started is None
            else datetime.fromisoformat(started).astimezone().replace(tzinfo=None)
        )

    @property
    def constraints(self) -> dict[str, float]:
        """The constraints set in this attempt, as they are stored."""
        return dict(self._constraints)

    @property
    def device(self) -> str:
        """The torch device to train on: ``cuda:0`` or ``cpu``.

        No other GPU is visible to this process.
        """
        return self._job.device

    @property
    def seed(self) -> int:
        """The trial's seed, the same in every attempt.

        ``random`` is seeded with it before the function is called.

        So are numpy and torch, but only if the objective's module has imported them by then.
        """
        return self._job.seed

    @property
    def attempt(self) -> int:
        """Which attempt of the trial this is, from 1."""
        return self._job.attempt

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt ran, so that there may be a checkpoint to continue from."""
        return self._job.resumed

    @property
    def resumed_from(self) -> int | None:
        """The earlier attempt whose files `checkpoint_dir` contained at the start.

        None if it was empty.
        """
        return self._job.resumed_from

    @property
    def checkpoint_dir(self) -> Path:
        """An existing directory for this attempt only.

        At its start it contains what the previous attempt left.

        Write a checkpoint under a temporary name and rename it when it is complete: the process may
        be killed at any time, and the next attempt gets whatever is there. Symbolic links that lead
        out of the directory are copied as they are.
        """
        return self._job.checkpoint_dir

    # -------------------------------------------------------------------------------------- methods

    def report(self, value: float, step: int) -> None:
        """Reports an intermediate value of the metric at `step`; returns at once.

        A step that was reported before is ignored with a warning. NaN is allowed: a pruner
        considers it worse than any number.

        Args:
            value: Any real number, including a 0-d numpy or torch value.
            step: An integer in 0 … 2**31 - 1, in the unit of the study's pruner.

        Raises:
            TypeError: `value` is not a real number, or `step` is not an integer.
            ValueError: `step` is out of range.
            NotImplementedError: The study has several objectives.
        """
        self._refuse_probe("report")
        self._refuse_several("report")
        number = as_number(value)
        step = as_step(step)
        with self._lock:
            self._refuse_fork()
            if step in self._steps:
                warnings.warn(
                    f"step {step} was reported before; this report is ignored", stacklevel=2
                )
                return
            self._steps.add(step)
            message = {"report": [step, number]}
            self._channel.send(message)
            self._journal.append(message)

    def should_prune(self) -> bool:
        """Whether the study's pruner would end this trial, given all reports so far.

        It waits for the answer.

        False if the worker is gone: nobody can answer, and this process is about to be ended.

        Raises:
            NotImplementedError: The study has several objectives.
        """
        self._refuse_probe("should_prune")
        self._refuse_several("should_prune")
        with self._lock:
            return bool(self._wait_for("prune", {"prune": self.last_step}))

    def should_stop(self) -> bool:
        """Whether the worker wants the attempt to end: then write a checkpoint and return None.

        The trial continues elsewhere. A call costs a microsecond, so call it as often as you like.
        """
        with self._lock:
            self._refuse_fork()
            self._receive()
            return self._stop

    def set_user_attr(self, key: str, value: Any) -> None:
        """Stores an attribute of the trial, shown by dashboards.

        A later value for the same key replaces it.

        NaN and infinities are stored as the strings ``nan``, ``inf`` and ``-inf``, because JSON has
        no such numbers.

        Args:
            key: At most 512 characters.
            value: Anything that can be converted to JSON: numbers, strings, lists, mappings, numpy
                and torch values; at most 1 MB.

        Raises:
            TypeError: `key` is not a string, or `value` cannot be converted to JSON.
            ValueError: One of them contains NUL or a lone surrogate, or is too long, or `value`
                contains itself.
        """
        self._refuse_probe("set_user_attr")
        key = _explain(key, lambda: as_key(key))
        stored = _explain(key, lambda: as_json(value))
        with self._lock:
            self._refuse_fork()
            message = {"attr": [key, stored]}
            try:
                self._channel.send(message)
            except MessageTooLongError as error:
                raise ValueError(f"user attribute {key!r}: {error}") from None
            self._journal.append(message)
            self._user_attrs[key] = stored

    def set_constraint(self, key: str, value: float) -> None:
        """Stores how far the trial violates a constraint; zero or less means that it is satisfied.

        The trial is feasible if it satisfies all constraints; the sampler learns to avoid regions
        where trials do not. A constraint that was set before is ignored with a warning. Call it
        before the function returns, also in trials that fail.

        Args:
            key: A name for the constraint, at most 500 characters.
            value: Anything that `float` accepts except NaN. Infinities are stored as the largest
                floats.

        Raises:
            TypeError: `key` is not a string, or `value` is not a number.
            ValueError: `value` is NaN; or `key` contains NUL or a lone surrogate, or is too long.
        """
        self._refuse_probe("set_constraint")
        key, number = as_constraint(key, value)
        with self._lock:
            self._refuse_fork()
            if key in self._constraints:
                warnings.warn(
                    f"constraint {key!r} was set before; this value is ignored", stacklevel=2
                )
                return
            self._constraints[key] = number
            message = {"constraint": [key, number]}
            self._channel.send(message)
            self._journal.append(message)

    def log_artifact(
        self, path: str | os.PathLike[str], *, name: str | None = None, mimetype: str | None = None
    ) -> str:
        """Stores a copy of the file as an artifact of the trial, shown by optuna-dashboard.

        Returns the artifact's id.

        When it returns, the copy is in `paths.artifacts`, and the file may be changed or deleted.
        Every call adds an artifact, even under a name used before. The artifact appears in the
        study about a second later, when the worker has written it to the database.

        Args:
            path: A file; for a directory, store an archive.
            name: The name that people see, at most 255 characters; the file's own name if None.
            mimetype: Such as ``image/png``; guessed from the name if None.

        Raises:
            FileNotFoundError: There is no such file.
            IsADirectoryError: It is a directory.
            TypeError: `name` or `mimetype` is not a string.
            ValueError: `name` or `mimetype` is malformed, or `path` is not a regular file.
            orchestrator.runner.files.artifacts.ArtifactError: An `OSError`: the file cannot be read
                or stored, or the disk is full.
        """
        file = Path(path)
        record = ArtifactRecord.of(file, name, mimetype)
        self._refuse_fork()
        # Outside the lock: a large file must not block the reports of other threads.
        ArtifactPlace(self._job.artifacts or str(self._job.run_dir / "artifacts")).add(
            file, record.artifact_id
        )
        with self._lock:
            message = {"artifact": record.to_json()}
            self._channel.send(message)
            self._journal.append(message)
        return record.artifact_id

    @property
    def last_step(self) -> int | None:
        """The highest step reported in this attempt, None before the first."""
        return max(self._steps, default=None)

    # ------------------------------------------------------------------------------------ internals

    def _signalled(self, within_s: float, *numbers: int) -> bool:
        """Whether one of these signals (by default any) arrived in the last `within_s` seconds."""
        since = time.monotonic() - within_s
        times = [at for number, at in self._signals.items() if not numbers or number in numbers]
        return any(at >= since for at in times)

    def _worker_ends(self, within_s: float) -> bool:
        """Whether the worker says within `within_s` seconds that it or this attempt is to end."""
        give_up_at = time.monotonic() + within_s
        with self._lock:
            self._receive()
            while not (self._stop or self._leaving or self._channel.closed):
                left = give_up_at - time.monotonic()
                if left <= 0:
                    break
                wait_readable([self._channel], left)
                self._receive()
            return self._stop or self._leaving

    def _unread_params(self) -> dict[str, str]:
        """A remark for each parameter that the study sets but the objective never read."""
        # It may have read them through interpolations in its arguments, or in an earlier attempt.
        if self._read_all_params or self._job.resumed or "${" in str(self._job.objective):
            return {}
        suggested = self._suggested()
        others = suggested.keys() - self._job.values.keys()
        return {
            name: f"trial {self.number} completed without asking for {name}, which the study sets"
            + did_you_mean(name, others)
            for name in [*self._job.values, *self._set_by_params()]
            if name not in suggested
        }

    def _set_by_params(self) -> list[str]:
        """The parameters whose value in ``params`` nothing else in ``params`` can use."""
        params = self._job.params
        if "${" in str(params):
            return []
        return [path for path in leaf_paths(params) if at(params, path) not in (None, {})][
            :_MOST_REMARKS
        ]

    def _end(self) -> None:
        """Ends the attempt: code that still has this object can report and write nothing more."""
        self._journal.close()
        self._channel.shut()

    def _fixed(self, name: str) -> tuple[JSONValue, ...]:
        found = self._settled.value(name) if self._settled is not None else ()
        try:
            return tuple(as_json(value) for value in found)
        # The value of a user's resolver: it can equal no suggestion, so any text makes the right
        # error.
        except (TypeError, ValueError):
            return tuple(map(preview, found))

    def _ask(self, question: Line) -> Line | None:
        self._refuse_probe("suggest_*")
        with self._lock:
            answer: Line | None = self._wait_for("suggest", question)
            # Skip late answers, to earlier questions that a signal interrupted.
            while answer is not None and answer["name"] != question["suggest"][0]:
                answer = self._wait_for("suggest")
            return answer

    def _ask_about(self, what: str) -> Any:
        """What the database says about the study or the trial; `what` is one of `ABOUT`."""
        self._refuse_probe(f"study ({what})")
        with self._lock:
            answer: Line | None = self._wait_for("study", {"study": what})
            # Skip late answers, as in `_ask`.
            while answer is not None and answer["about"] != what:
                answer = self._wait_for("study")
        if answer is None:
            raise WorkerGoneError("the worker that answers questions about the study is gone")
        if "refused" in answer:
            raise ValueError(f"{what}: {answer['refused']}")
        return answer["value"]

    def _wait_for(self, kind: str, question: Line | None = None) -> Any:
        """The worker's next answer of that kind, after sending `question` if given.

        None if the worker is gone.
        """
        self._refuse_fork()
        self._answers.pop(kind, None)
        if question is not None:
            self._channel.send(question)
        while kind not in self._answers and not self._channel.closed:
            wait_readable([self._channel], None)
            self._receive()
        return self._answers.get(kind)

    def _receive(self) -> None:
        """Takes in the worker's messages that have arrived, without waiting."""
        for message in self._channel.receive():
            if message.get("stop"):
                self._stop = True
            if message.get("leaving"):
                self._leaving = True
            self._answers |= {
                kind: message[kind] for kind in ("prune", "suggest", "study") if kind in message
            }

    def _refuse_several(self, method: str) -> None:
        if len(self._job.metrics) > 1:
            raise NotImplementedError(
                f"trial.{method} is not supported for a study with several objectives"
            )

    def _refuse_probe(self, method: str) -> None:
        if self._job.probe is not None:
            raise RuntimeError(
                f"trial.{method}: the probe {self._job.probe} runs before the cell's first trial, "
                "and has none; return what people should know as facts"
            )

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this trial belongs to another process: use it only in the process that called "
                "the objective"
            )


def _explain(key: object, convert: Callable[[], _T]) -> _T:
    try:
        return convert()
    except (TypeError, ValueError) as error:
        name = repr(key) if isinstance(key, str) and len(key) <= 80 else type(key).__name__
        raise type(error)(f"user attribute {name}: {error}") from None
