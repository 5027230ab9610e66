"""The `trial` that a user's function is called with: Optuna's words, and what a training job needs
besides.
"""

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
    Message,
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
    shown,
)

_T = TypeVar("_T")
_MOST_REMARKS = 20


class TrialPruned(Exception):  # noqa: N818 - Optuna's name
    """Raise it to end the trial early on purpose, after `Trial.should_prune` said so.
    ``optuna.TrialPruned`` does as well.
    """


class Trial(Suggests):
    """One attempt of one trial, as the user's function sees it. Usable from any thread of the
    process it was given to.
    """

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
        # when signals came that may be the worker's as well, by the monotonic clock
        self._signals: Mapping[int, float] = {}
        self._answers: dict[str, Any] = {}
        self._told_all = False  # of its parameters, whether or not it asked for each
        self._settled: Settled | None = None

    # ----------------------------------------------------------------------------------- what it is

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self._job.number

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of this trial by name: those of grid and search, and what was suggested in
        this attempt.
        """
        self._told_all = True
        return {**self._job.values, **self._suggested()}

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The attributes set in this attempt, as they are stored."""
        return dict(self._user_attrs)

    @property
    def study(self) -> Study:
        """The study of this trial, to look at: its name, directions, metric names, user attributes
        and best trial.
        """
        return Study(self._job, self._ask_about)

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that were chosen before the attempt began: those of grid and search."""
        return dict(self._job.values)

    @property
    def distributions(self) -> dict[str, Any]:
        """Optuna's distribution of every parameter that the trial has by now; imports Optuna.

        Raises:
            ValueError: They are too large to be handed to a trial.
        """
        # Not imported above: an objective that asks for no such object is started without Optuna.
        optuna = importlib.import_module("optuna.distributions")
        return {
            name: optuna.json_to_distribution(text)
            for name, text in self._ask_about("distributions").items()
        }

    @property
    def datetime_start(self) -> datetime | None:
        """When the first attempt of the trial began, by the database's clock, in local time without
        a zone, as in Optuna.
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
        """The torch device to train on: ``cuda:0`` or ``cpu``. No other GPU is visible to this
        process.
        """
        return self._job.device

    @property
    def seed(self) -> int:
        """The trial's seed, the same in every attempt. ``random`` is seeded with it before the
        function is called.

        So are numpy and torch when the objective's module had imported them by then, and only then.
        """
        return self._job.seed

    @property
    def attempt(self) -> int:
        """Which attempt of the trial this is, from 1."""
        return self._job.attempt

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt ran, so that there may be a checkpoint to go on from."""
        return self._job.resumed

    @property
    def resumed_from(self) -> int | None:
        """The earlier attempt whose files `checkpoint_dir` held at the start; None if
        it was empty.
        """
        return self._job.resumed_from

    @property
    def checkpoint_dir(self) -> Path:
        """An existing directory for this attempt alone; at its start it holds what the attempt
        before left in its own.

        Write a checkpoint under another name and rename it when it is whole: the process may be
        killed at any time, and the next attempt takes what it finds. Links that lead out of the
        directory are handed on as they are.
        """
        return self._job.checkpoint_dir

    # --------------------------------------------------------------------------------- what it does

    def report(self, value: float, step: int) -> None:
        """Hands the study an intermediate value of the metric at `step`; it returns at once.

        A step reported before is ignored with a warning. NaN is allowed: a pruner counts it as
        worse than anything.

        Args:
            value: Any real number, a 0-d numpy or torch value included.
            step: An integer in 0 … 2**31 - 1, in the unit that the study's pruner counts in.

        Raises:
            TypeError: `value` is no real number, or `step` no integer.
            ValueError: `step` is out of range.
            NotImplementedError: The study has several objectives.
        """
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
        """Whether the study's pruner says to end this trial, judged on all that was reported so
        far; waits for the answer.

        False when the worker is gone: nobody is left to judge, and the process is about to be
        ended.

        Raises:
            NotImplementedError: The study has several objectives.
        """
        self._refuse_several("should_prune")
        with self._lock:
            return bool(self._wait_for("prune", {"prune": self.last_step}))

    def should_stop(self) -> bool:
        """Whether the worker asked for an early end: write a checkpoint and return None, and the
        trial goes on elsewhere.

        It costs a microsecond: ask as often as you like.
        """
        with self._lock:
            self._refuse_fork()
            self._listen()
            return self._stop

    def set_user_attr(self, key: str, value: Any) -> None:
        """Stores an attribute of the trial, shown by dashboards; a later value of the same key
        replaces an earlier one.

        NaN and infinities are stored as the strings ``nan``, ``inf`` and ``-inf``, for JSON has no
        such numbers.

        Args:
            key: At most 512 characters.
            value: Anything with a JSON form: numbers, strings, lists, mappings, numpy and torch
                values; at most 1 MB.

        Raises:
            TypeError: `key` is no string, or `value` has no JSON form.
            ValueError: It holds NUL or a lone surrogate, contains itself, or is too long.
        """
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
        """Says how well the trial keeps a constraint: zero or less is feasible, more is by how much
        it is violated.

        The trial is feasible if it keeps all; the sampler learns to avoid where others do not. A
        constraint that was set before is ignored with a warning. Call it before the function
        returns, for failed trials too.

        Args:
            key: A name for the constraint, 500 characters at most.
            value: Anything that `float` takes but NaN. Infinities are stored as the largest floats.

        Raises:
            TypeError: `key` is no string, or `value` no number.
            ValueError: `value` is NaN, or `key` holds NUL or a lone surrogate, or is too long.
        """
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
        """Stores a copy of the file as an artifact of the trial, shown by optuna-dashboard; returns
        the artifact's id.

        When it returns the copy is in `paths.artifacts`, and the file may change or go. Every call
        adds an artifact, under a name used before as well. In a study it is known by once the
        worker has told the database, a second later or so.

        Args:
            path: A file; of a directory store an archive.
            name: What people see, at most 255 characters; the file's own name if None.
            mimetype: Such as ``image/png``; guessed from the name if None.

        Raises:
            FileNotFoundError: There is no such file.
            IsADirectoryError: It is a directory.
            TypeError: `name` or `mimetype` is no string.
            ValueError: `name` or `mimetype` is malformed, or `path` leads to a pipe or the like.
            orchestrator.runner.files.artifacts.ArtifactError: An `OSError`: the file cannot be read
                or stored, or the disk is full.
        """
        file = Path(path)
        record = ArtifactRecord.of(file, name, mimetype)
        self._refuse_fork()
        # Outside the lock: a large file must keep no other thread from its reports.
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

    # --------------------------------------------------------------------------------------- inside

    def _signalled(self, within_s: float, *numbers: int) -> bool:
        """Whether one of these signals, or any if none is given, came within the last seconds."""
        since = time.monotonic() - within_s
        return any(
            at >= since for number, at in self._signals.items() if not numbers or number in numbers
        )

    def _worker_ends(self, within_s: float) -> bool:
        """Whether the worker says within that time that it ends, or that the trial is to."""
        give_up_at = time.monotonic() + within_s
        with self._lock:
            self._listen()
            while (
                not (self._stop or self._leaving or self._channel.closed)
                and (left := give_up_at - time.monotonic()) > 0
            ):
                wait_readable([self._channel], left)
                self._listen()
            return self._stop or self._leaving

    def _never_asked(self) -> dict[str, str]:
        """What grid and search set for this trial and a function of the trial alone never heard of,
        a remark for each.
        """
        # What it got by an interpolation in its arguments, or asked for in an earlier attempt, it
        # may have heard of.
        if self._told_all or self._job.resumed or "${" in str(self._job.objective):
            return {}
        asked = self._suggested()
        others = asked.keys() - self._job.values.keys()
        return {
            name: (
                f"trial {self.number} completed without asking for {name}, which the study "
                f"sets{did_you_mean(name, others)}"
            )
            for name in [*self._job.values, *self._set_by_params()]
            if name not in asked
        }

    def _set_by_params(self) -> list[str]:
        """The parameters that ``params`` give a value which nothing else in ``params`` may use."""
        if "${" in str(self._job.params):
            return []
        return [
            path
            for path in leaf_paths(self._job.params)
            if at(self._job.params, path) not in (None, {})
        ][:_MOST_REMARKS]

    def _end(self) -> None:
        """Ends the attempt for whoever still has this object: nothing is reported or written any
        more.
        """
        self._journal.close()
        self._channel.shut()

    def _fixed(self, name: str) -> tuple[JSONValue, ...]:
        found = self._settled.value(name) if self._settled is not None else ()
        try:
            return tuple(as_json(value) for value in found)
        except (TypeError, ValueError):
            # what a resolver of the user's made: no value that anybody asks for
            return tuple(map(shown, found))

    def _ask(self, question: Message) -> Message | None:
        with self._lock:
            answer: Message | None = self._wait_for("suggest", question)
            # Not a late one, to a question that a signal cut short.
            while answer is not None and answer["name"] != question["suggest"][0]:
                answer = self._wait_for("suggest")
            return answer

    def _ask_about(self, what: str) -> Any:
        """What the database has of the study or the trial: one of `ABOUT`."""
        with self._lock:
            answer: Message | None = self._wait_for("study", {"study": what})
            # late, to a question that a signal cut short
            while answer is not None and answer["about"] != what:
                answer = self._wait_for("study")
        if answer is None:
            raise WorkerGoneError("the worker that knows the study is gone")
        if "refused" in answer:
            raise ValueError(f"{what}: {answer['refused']}")
        return answer["value"]

    def _wait_for(self, kind: str, question: Message | None = None) -> Any:
        """The worker's next answer of that kind, after putting the question if there is one; None
        when the worker is gone.
        """
        self._refuse_fork()
        self._answers.pop(kind, None)
        if question is not None:
            self._channel.send(question)
        while kind not in self._answers and not self._channel.closed:
            wait_readable([self._channel], None)
            self._listen()
        return self._answers.get(kind)

    def _listen(self) -> None:
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

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this trial belongs to another process: call it in the process that the "
                "objective was called in"
            )


def _explain(key: object, convert: Callable[[], _T]) -> _T:
    try:
        return convert()
    except (TypeError, ValueError) as error:
        name = repr(key) if isinstance(key, str) and len(key) <= 80 else type(key).__name__
        raise type(error)(f"user attribute {name}: {error}") from None
