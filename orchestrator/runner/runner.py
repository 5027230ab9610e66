"""The worker's side: starts the keeper, hands it attempts, and turns what comes back into messages
and one outcome.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from orchestrator import signals
from orchestrator.errors import ConfigError
from orchestrator.model import Failed, Interrupted, JSONValue, Outcome
from orchestrator.runner.child.study import ABOUT
from orchestrator.runner.child.suggestions import KINDS
from orchestrator.runner.files.artifacts import ArtifactRecord
from orchestrator.runner.keeper.output import MIN_LIMIT
from orchestrator.runner.keeper_handle import MARGIN_S, KeeperHandle
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import Channel, wait_readable
from orchestrator.runner.protocol.channel import Message as Line
from orchestrator.runner.protocol.contract import MOMENT_S, Job, KeeperOptions
from orchestrator.runner.protocol.target import imports_no_more, target_of, words_of
from orchestrator.runner.protocol.values import as_constraint, as_json, as_key, as_number, as_step
from orchestrator.settings import RunnerSettings

logger = logging.getLogger(__name__)

SECRETS: Final = (
    "ORCHESTRATOR_STORAGE_URL",
    "ORCHESTRATOR_STORAGE_PASSWORD_FILE",
    "PGPASSWORD",
    "PGPASSFILE",
)
"""Environment variables that no process with user code in it gets to see."""

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_SLICE_S: Final = 0.25
_MAX_ANSWER: Final = 60_000  # bytes that the buffer of an idle socket takes at once on any system
_HELD_S: Final = 0.05
_UNSEEN_S: Final = 0.25
_BY_SIGNAL: Final = frozenset(
    cause for n in signals.ENDING for cause in (f"signal:{n.name}", f"exit:{128 + n}")
)
"""Of a failure: what ends by a signal says so, and a shell tells it of what it ran."""


class Told(enum.IntEnum):
    """What this process was told about its own end."""

    NOTHING = 0
    LEAVE = 1  # to end once the attempt has
    STOP = 2  # to end the attempt


@dataclass(frozen=True)
class Reported:
    """The objective called ``trial.report(value, step)``; `value` may be NaN or infinite."""

    step: int
    value: float


@dataclass(frozen=True)
class PruneAsked:
    """The objective waits in ``trial.should_prune()`` for `Running.answer_prune`; `step` is the
    highest it reported.
    """

    step: int | None


@dataclass(frozen=True)
class AttrSet:
    """The objective called ``trial.set_user_attr(key, value)``; `value` is plain JSON data."""

    key: str
    value: JSONValue


@dataclass(frozen=True)
class ConstraintSet:
    """The objective called ``trial.set_constraint(key, value)``, once for a key;
    `value` is finite.
    """

    key: str
    value: float


@dataclass(frozen=True)
class ArtifactLogged:
    """The objective called ``trial.log_artifact(…)``, and the file is stored."""

    record: ArtifactRecord


@dataclass(frozen=True)
class SuggestAsked:
    """The objective waits in ``trial.suggest_*`` for `Running.answer_suggest`; `arguments` are its
    own, as plain data.

    `fixed` holds the value that the study's ``params`` have for the name in this trial, if they
    have one.
    """

    name: str
    kind: str
    arguments: Mapping[str, JSONValue]
    fixed: tuple[JSONValue, ...] = ()


@dataclass(frozen=True)
class StudyAsked:
    """The objective waits for `Running.answer_study`, for one of `ABOUT`: what the database has of
    its study or its trial.
    """

    about: str


Message: TypeAlias = (
    Reported | PruneAsked | AttrSet | ConstraintSet | ArtifactLogged | SuggestAsked | StudyAsked
)


class Runner:
    """Runs attempts of one objective, one at a time, each in a child process of its own session.
    For one thread.

    Args:
        objective: ``_target_`` and keyword arguments, or a command; unresolved.
        isolation: ``trial`` gives every attempt a process of its own; with ``worker`` one process
            runs them in turn, until one of them leaves it unfit for another.
        start: ``forkserver`` forks each child from a process that imported the objective once;
            ``spawn`` starts an interpreter for each. The first falls back to the second when the
            import did what a fork does not survive.
        env: Set in the children's environment (devices, above all), over this process's own without
            `SECRETS`.
        threads: Limit for the numerical libraries' thread pools of a child; None leaves them alone.
        grace_s: Time from SIGTERM to SIGKILL.
        max_runtime_s: Time limit of an attempt, None for no limit.
        silence_s: How long this process may be stopped or gone without a trace before the child is
            ended. A thread gives the sign of life, so this process may well wait for something else
            than `poll`.
        cwd: Working directory of the children, first on their module path; default: this process's.
        held: File descriptors that stay open in keeper and child, such as a device's lock.
        log_limit_bytes: Size that a log never exceeds on disk: of a longer one, head and most
            recent part are kept. None for no limit.
        device: What the facts of an attempt say of the device it ran on.
        moment_s: How long a failure by a signal waits for this process to be told to end, for then
            it is none; and how long a child that got SIGTERM from others goes on if this process
            got none.

    Raises:
        ConfigError: A setting is out of range, or the objective has no usable ``_target_`` or
            command.
    """

    def __init__(
        self,
        objective: Mapping[str, JSONValue],
        *,
        isolation: str = RunnerSettings.isolation,
        start: str = RunnerSettings.start,
        env: Mapping[str, str] | None = None,
        threads: int | None = None,
        grace_s: float = RunnerSettings.grace_s,
        max_runtime_s: float | None = None,
        silence_s: float = 60.0,
        cwd: Path | None = None,
        held: Sequence[int] = (),
        log_limit_bytes: int | None = None,
        device: Mapping[str, JSONValue] | None = None,
        moment_s: float = MOMENT_S,
    ) -> None:
        if isolation not in ("trial", "worker"):
            raise ConfigError(f"runner.isolation: {isolation!r} is neither 'trial' nor 'worker'")
        if start not in ("forkserver", "spawn"):
            raise ConfigError(f"runner.start: {start!r} is neither 'forkserver' nor 'spawn'")
        _require("threads", threads, threads is None or threads >= 1, "at least 1")
        _require("grace_s", grace_s, grace_s >= 0, "at least 0")
        _require(
            "max_runtime_s",
            max_runtime_s,
            max_runtime_s is None or max_runtime_s > 0,
            "more than 0",
        )
        _require("silence_s", silence_s, silence_s > 0, "more than 0")
        enough = log_limit_bytes is None or log_limit_bytes >= MIN_LIMIT
        _require("log_limit_bytes", log_limit_bytes, enough, f"at least {MIN_LIMIT}")
        self._target, kwargs = target_of(objective)
        self._words = words_of(objective)
        self._kwargs = tuple(kwargs)
        self._isolation = isolation
        self._start = start
        self._env = dict(env or {})
        self._threads = threads
        self._grace_s = grace_s
        self._max_runtime_s = max_runtime_s
        self._silence_s = silence_s
        self._cwd = cwd
        self._held = tuple(held)
        self._log_limit_bytes = log_limit_bytes
        self._device = None if device is None else dict(device)
        self._moment_s = moment_s
        self._keeper: KeeperHandle | None = None
        self._running: Running | None = None

    def begin(self) -> None:
        """Has a keeper import the objective, and does not wait for it; `check` does."""
        self._living_keeper()

    def check(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns once a keeper is ready that has imported the objective; costs nothing when one
        is. Call it before each claim.

        Args:
            meanwhile: called every 0.25 s while the objective is imported, which may take minutes.
                What it raises ends the wait, and is raised; the import goes on, until `close`.

        Raises:
            ConfigError: The objective does not import, does not exist, or can be called neither as
                ``(cfg, trial, **kwargs)`` nor as ``(trial, **kwargs)``; or the program of a command
                is not there.
        """
        keeper = self._living_keeper()
        while not keeper.ready:
            meanwhile()
            wait_readable([keeper.channel], _SLICE_S)
            keeper.read()
            if keeper.problem is not None or keeper.channel.closed:
                problem = keeper.problem or keeper.last_words(self._target)
                self._keeper = None
                keeper.end(0.0)
                raise ConfigError(problem)

    def start(self, job: Job, told: Callable[[], Told] = lambda: Told.NOTHING) -> Running:
        """Starts an attempt; it does not wait for the child. A keeper that died is replaced.

        Args:
            told: What this process was told so far; asked while the attempt runs.

        Raises:
            OSError: The run directory cannot be made or written.
            RuntimeError: The attempt before has not ended yet.
        """
        if self._running is not None and self._running.outcome is None:
            raise RuntimeError("an attempt is running: a runner runs one at a time")
        job = replace(job, grace_s=self._grace_s, moment_s=self._moment_s)
        path = rundir.prepare(job)
        keeper = self._living_keeper()
        ours, theirs = socket.socketpair()
        with theirs:
            # Not sent when the keeper died this moment: the first `poll` finds that out.
            order = {
                "job": str(path),
                "max_runtime_s": self._max_runtime_s,
                "log_limit_bytes": self._log_limit_bytes,
            }
            known = {**job.known_facts(), "threads": self._threads, "device": self._device}
            keeper.send({"do": "start", **order, "facts": known}, [theirs.fileno()])
        self._running = Running(
            job, keeper, Channel(ours), told, self._max_runtime_s, self._silence_s
        )
        return self._running

    def close(self) -> None:
        """Ends the running attempt and the keeper; nothing of either is left when it returns.
        Calling it again is allowed.
        """
        if self._running is not None and self._running.outcome is None:
            self._running.terminate("the worker ended")
        if self._keeper is not None:
            self._keeper.end(self._grace_s)
            self._keeper = None

    def _living_keeper(self) -> KeeperHandle:
        last = self._running.outcome if self._running is not None else None
        # After a loss it has to show anew that the objective imports: one that was imported long
        # ago says nothing of today's.
        lost = isinstance(last, Interrupted) and last.lost
        if self._keeper is not None:
            self._keeper.read()
            if self._keeper.channel.closed or lost:
                self._keeper.end(0.0)
                self._keeper = None
        if lost:
            self._running = None
        if self._keeper is None:
            self._keeper = KeeperHandle(self._options(), self._environment(), self._cwd)
        return self._keeper

    def _options(self) -> KeeperOptions:
        return KeeperOptions(
            control=-1,
            worker_pid=os.getpid(),
            target=self._target,
            kwargs=self._kwargs,
            start=self._start,
            threads=self._threads,
            grace_s=self._grace_s,
            silence_s=self._silence_s,
            words=self._words,
            held=self._held,
            isolation=self._isolation,
        )

    def _environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key not in SECRETS}
        # Without it torch.cuda.is_available(), which modules like to call when imported,
        # initialises CUDA: no fork after that.
        env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        if self._threads is not None:
            env |= dict.fromkeys(_THREAD_VARIABLES, str(self._threads))
        return env | self._env


class Running:
    """One attempt under way. `outcome` is None until a `poll` (or `terminate`) finds that it ended;
    `facts` come with it.
    """

    def __init__(
        self,
        job: Job,
        keeper: KeeperHandle,
        channel: Channel,
        told: Callable[[], Told],
        max_runtime_s: float | None,
        silence_s: float,
    ) -> None:
        self.job = job
        self.log_path = rundir.log_path(job.run_dir)
        self.facts: dict[str, JSONValue] = {}
        self._keeper = keeper
        self._channel = channel
        self._told = told
        self._max_runtime_s = max_runtime_s
        self._silence_s = silence_s
        self._inbox: list[Message] = []
        self._pid: int | None = None
        self._done: dict[str, Any] | None = None
        self._ending: str | None = None
        self._stop_asked = False
        self._said_leaving = False
        self._signalled_at = -math.inf  # when the child last got a signal that was none of ours
        # when this process, or a person, first wanted the attempt to stop
        self._stopped_at = math.inf
        self._terminated_at = math.inf  # when it first got such a SIGTERM
        self._killed = False  # for it
        # the outcome, and when it was there, until it is certain
        self._judged: tuple[Outcome, float] | None = None
        self._outcome: Outcome | None = None
        self._terminating = threading.Lock()

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended, once it has: its processes are gone by then. Messages of the same
        `poll` come before it.
        """
        return self._outcome

    def poll(self, timeout: float) -> list[Message]:
        """What the child said since the last call; waits for something to come at most `timeout` s,
        and never over 0.25 s.

        The cap lets the caller look at what its signal handlers did.
        """
        deadline = time.monotonic() + min(timeout, _SLICE_S)
        self._pass_on()
        while True:
            self._collect()
            left = deadline - time.monotonic()
            if self._inbox or self._outcome is not None or left <= 0:
                break
            self._wait(left)
        messages, self._inbox = self._inbox, []
        return messages

    def answer_prune(self, prune: bool) -> None:
        """Answers the last `PruneAsked`; the child waits for it."""
        self._channel.send({"prune": prune}, wait=False)

    def answer_suggest(
        self,
        name: str,
        internal: float | None,
        *,
        refused: tuple[str, str] | None = None,
        warnings: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answers the last `SuggestAsked`, which was about `name`; the child waits for it.

        Args:
            internal: Optuna's internal number of the value: the number itself, or the place among
                the choices.
            refused: instead, the class (``ValueError``, ``TypeError``) and the text of the error to
                raise there.
            warnings: class and text of what to warn of there.
        """
        answer: Line = {"name": name, "warnings": list(warnings)}
        answer |= {"internal": internal} if refused is None else {"refused": refused}
        self._channel.send({"suggest": answer}, wait=False)

    def answer_study(self, about: str, value: JSONValue) -> None:
        """Answers the last `StudyAsked`; the child waits for it. A value too large for that is
        refused there.
        """
        answer: Line = {"about": about, "value": value}
        if (size := len(json.dumps(value))) > _MAX_ANSWER:
            answer = {
                "about": about,
                "refused": f"{size} bytes of JSON, at most {_MAX_ANSWER} are handed to a trial",
            }
        self._channel.send({"study": answer}, wait=False)

    def ask_to_stop(self) -> None:
        """Makes ``trial.should_stop()`` true; what the child does about it is its own affair.
        Asking again changes nothing.
        """
        if not self._stop_asked:
            self._stop_asked = self._channel.send({"stop": True}, wait=False)

    def terminate(self, reason: str = "ended by the worker") -> None:
        """Ends the attempt: SIGTERM to its process group, `grace_s`, SIGKILL. Returns when none of
        it is left.

        The outcome becomes ``Interrupted(reason)``, unless the child's result was there before it
        died. Messages that arrive meanwhile are kept for the next `poll`. From any thread, as long
        as no other polls; a second call waits for the first.
        """
        self._ending = self._ending or reason
        with self._terminating:
            self._keeper.send({"do": "terminate"}, wait=False)
            give_up_at = time.monotonic() + self.job.grace_s + MARGIN_S
            while self._outcome is None and time.monotonic() < give_up_at:
                self._wait(_SLICE_S)
                self._collect()
            if self._outcome is None:  # the keeper itself hangs: do its work
                self._keeper.kill()
                self._end_orphaned_group()

    def _collect(self) -> None:
        """Takes in what has arrived on both sockets, without waiting."""
        if self._outcome is not None:
            return
        if self._judged is not None:
            self._settle(*self._judged)
            return
        self._read_child()
        for line in self._keeper.read():
            if line.get("is") == "started":
                self._pid = int(line["pid"])
            elif line.get("is") == "signalled":
                self._signalled_at = time.monotonic()
                if line["signal"] == signal.SIGTERM:
                    self._terminated_at = min(self._terminated_at, self._signalled_at)
            elif line.get("is") == "ended":
                self.facts = line["facts"]
                self._finish(
                    partial(
                        self._judge, line["code"], line["cause"], line["oom"], line["peak_bytes"]
                    )
                )
                return
        if self._keeper.problem is not None:
            self._finish(partial(imports_no_more, self._keeper.problem))
        elif self._keeper.channel.closed:
            self._end_orphaned_group()

    def _wait(self, seconds: float) -> None:
        """Waits until there is something to collect, `seconds` at most."""
        if self._judged is not None:
            wait_readable([], min(seconds, _HELD_S))
        else:
            wait_readable(
                [c for c in (self._channel, self._keeper.channel) if not c.closed], seconds
            )

    def _pass_on(self) -> None:
        """Tells the child that this process is to end; ends a child that got SIGTERM where this
        process got none.
        """
        told = self._now_told()
        if told != Told.NOTHING and not self._said_leaving:
            self._said_leaving = self._channel.send({"leaving": True}, wait=False)
        alone = told < Told.STOP and time.monotonic() - self._terminated_at >= self.job.moment_s
        if alone and not self._killed:
            self._killed = True
            self._keeper.send({"do": "terminate"}, wait=False)

    def _now_told(self) -> Told:
        told = Told.STOP if self._stop_asked else self._told()
        if told == Told.STOP:
            self._stopped_at = min(self._stopped_at, time.monotonic())
        return told

    def _end_orphaned_group(self) -> None:
        """The keeper is dead. The kernel killed the child with it (parent-death signal), but not
        what the child had started.
        """
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._ending is not None:
            self._finish(partial(Interrupted, self._ending))
        else:
            self._finish(
                partial(
                    Interrupted, "the keeper, the process between worker and child, died", lost=True
                )
            )

    def _read_child(self) -> None:
        while lines := self._channel.receive():
            for line in lines:
                try:
                    self._take(line)
                except (KeyError, TypeError, ValueError):
                    logger.warning(
                        "%s: a message that makes no sense was dropped: %.200s",
                        self.job.run_dir,
                        line,
                    )

    def _take(self, line: Line) -> None:
        if "report" in line:
            step, value = line["report"]
            self._inbox.append(Reported(as_step(step), as_number(value)))
        elif "prune" in line:
            step = line["prune"]
            self._inbox.append(PruneAsked(None if step is None else as_step(step)))
        elif "attr" in line:
            key, value = line["attr"]
            self._inbox.append(AttrSet(as_key(key), as_json(value)))
        elif "constraint" in line:
            self._inbox.append(ConstraintSet(*as_constraint(*line["constraint"])))
        elif "artifact" in line:
            self._inbox.append(ArtifactLogged(ArtifactRecord.from_json(line["artifact"])))
        elif "suggest" in line:
            name, kind, arguments = line["suggest"]
            if not isinstance(name, str) or kind not in KINDS or not isinstance(arguments, dict):
                raise ValueError(kind)
            self._inbox.append(SuggestAsked(name, kind, arguments, tuple(line.get("fixed", ()))))
        elif "study" in line:
            if line["study"] not in ABOUT:
                raise ValueError(line["study"])
            self._inbox.append(StudyAsked(line["study"]))
        elif "done" in line:
            self._keeper.send({"do": "linger"}, wait=False)
            self._done = line["done"]

    def _finish(self, verdict: Callable[[], Outcome]) -> None:
        """Ends the attempt: with the child's own result if it left one, else with `verdict`, which
        may look at the log.
        """
        self._read_child()  # the child is dead: all that it sent is here
        self._channel.close()
        outcome = self._result(rundir.read_result)
        # only now: a failure ends with the last lines of the log
        if outcome is None and (told := self._done) is not None:
            outcome = self._result(partial(rundir.result_from_json, told))
        self._settle(outcome or verdict(), time.monotonic())

    def _result(self, read: Callable[[Path], Outcome | None]) -> Outcome | None:
        try:
            return read(self.job.run_dir)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: the result cannot be read: %s", self.job.run_dir, error)
            return None

    def _settle(self, outcome: Outcome, since: float) -> None:
        """Makes `outcome`, known `since` then, certain: at once, unless it is a failure that may
        come from a signal to all.

        A service manager sends it to the child, to what that started, and to this process, in no
        order. If this process is to end as well, such a failure is none: it comes from the signal.
        Neither is one that comes later in an attempt that was asked to stop, but that counts as a
        lost attempt: for all one knows it would have come all the same.
        """
        self._judged = None
        if isinstance(outcome, Failed) and outcome.kind != "timeout":
            told, moment_s = self._now_told(), self.job.moment_s
            struck = (
                not _BY_SIGNAL.isdisjoint(outcome.causes) or since - self._signalled_at < moment_s
            )
            if told == Told.STOP or (told == Told.LEAVE and struck):
                soon = since - self._stopped_at < moment_s or self._signalled_at > -math.inf
                outcome = self._excuse(outcome, lost=not (struck or soon))
            # One that shows no sign of it may come from it all the same: the objective has a
            # handler of its own, or what it had started was the first to get the signal.
            elif (
                self._ending is None
                and not self._killed
                and time.monotonic() - since < (moment_s if struck else _UNSEEN_S)
            ):
                self._judged = (outcome, since)
                return
        self._outcome = outcome

    def _excuse(self, failed: Failed, *, lost: bool) -> Interrupted:
        logger.warning(
            "trial %d failed when it was to end, and is given back: %s",
            self.job.number,
            failed.message,
        )
        outcome = Interrupted(
            f"it failed when it was to end: {failed.message.splitlines()[0]}", lost=lost
        )
        # other workers deliver what they find there
        if (self.job.run_dir / "result.json").exists():
            try:
                rundir.write_result(self.job.run_dir, outcome)
            except OSError as error:
                logger.warning(
                    "%s: a failure that is none stays there: %s", self.job.run_dir, error
                )
        return outcome

    def _judge(self, code: int, cause: str | None, out_of_memory: bool, peak_bytes: int) -> Outcome:
        """The outcome of a child without a result; `code` is negative for a signal, `cause` says
        why the keeper ended it.
        """
        if cause == "timeout":
            limit = _span(self._max_runtime_s or 0.0)
            return self._failed(
                "timeout", f"the time limit of {limit} (runner.max_runtime_min) was reached"
            )
        if cause == "silence":
            return Interrupted(f"the worker gave no sign of life for {self._silence_s:g} s")
        if cause is not None and self._killed and self._ending is None:
            code = -signal.SIGTERM
        elif cause is not None:
            return Interrupted(self._ending or cause)
        if code >= 0:
            return self._failed(
                "exit",
                f"the process exited with code {code} without returning a result",
                f"exit:{code}",
            )
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"SIG{-code}"
        if -code != signal.SIGKILL:
            return self._failed("signal", f"the process was killed by {name}", f"signal:{name}")
        if out_of_memory:
            killed = (
                "the kernel's out-of-memory killer killed the process: it used too much memory "
                "(RAM)"
            )
            return replace(self._failed("oom", killed), memory="host", peak_bytes=peak_bytes)
        killed = "the process was killed by SIGKILL (the kernel's out-of-memory killer does this)"
        return self._failed("signal", killed, f"signal:{name}")

    def _failed(self, kind: str, cause: str, *causes: str) -> Failed:
        return rundir.failure(kind, cause, self.job.run_dir, (kind, *causes))


def _span(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"runner.{name}: {value!r} must be {rule}")
