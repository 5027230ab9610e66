"""One running attempt, seen from the worker: its messages, its end, and the outcome."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from orchestrator import signals
from orchestrator.model import Failed, Interrupted, JSONValue, Outcome
from orchestrator.runner.keeper_handle import LONGEST_POLL_S, MARGIN_S, KeeperHandle
from orchestrator.runner.messages import EndRequest, Message, message_from
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import Channel, Line, wait_readable
from orchestrator.runner.protocol.contract import Job
from orchestrator.runner.protocol.target import imports_no_more

logger = logging.getLogger(__name__)

_MAX_ANSWER: Final = 60_000  # bytes that an idle socket's buffer accepts at once on any system
_VERDICT_CHECK_S: Final = 0.05
_UNSEEN_S: Final = 0.25
_BY_SIGNAL: Final = frozenset(
    cause for n in signals.ENDING for cause in (f"signal:{n.name}", f"exit:{128 + n}")
)
"""The causes of a failure by an ending signal, of the process or of a program in a shell."""


class Running:
    """One attempt under way; made by `Runner.start`.

    `outcome` is None until a `poll` (or `terminate`) finds that the attempt has ended. `facts` are
    available from then on.
    """

    def __init__(
        self,
        job: Job,
        keeper: KeeperHandle,
        channel: Channel,
        end_request: Callable[[], EndRequest],
        max_runtime_s: float | None,
        silence_s: float,
    ) -> None:
        self.job = job
        self.log_path = rundir.log_path(job.run_dir)
        self.facts: dict[str, JSONValue] = {}
        self._keeper = keeper
        self._channel = channel
        self._end_request = end_request
        self._max_runtime_s = max_runtime_s
        self._silence_s = silence_s
        self._inbox: list[Message] = []
        self._pid: int | None = None
        self._sent_result: dict[str, Any] | None = None
        self._ending: str | None = None
        self._stop_sent = False
        self._leaving_sent = False
        # By the monotonic clock: when the child last received a signal not sent by its keeper, when
        # it first received such a SIGTERM, and when this process was first asked to stop the
        # attempt.
        self._signalled_at = -math.inf
        self._terminated_at = math.inf
        self._stopped_at = math.inf
        self._killed = False  # because of such a SIGTERM
        self._pending: tuple[Outcome, float] | None = None  # an uncertain outcome, and since when
        self._outcome: Outcome | None = None
        self._terminating = threading.Lock()

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended, None before; by then its processes are gone.

        The messages returned by the same `poll` precede it.
        """
        return self._outcome

    def poll(self, timeout: float) -> list[Message]:
        """The child's messages since the last call.

        Waits for one at most `timeout` seconds, and never longer than `LONGEST_POLL_S`.
        """
        deadline = time.monotonic() + min(timeout, LONGEST_POLL_S)
        self._forward_end_request()
        while True:
            self._collect()
            left = deadline - time.monotonic()
            if self._inbox or self._outcome is not None or left <= 0:
                break
            self._wait(left)
        messages, self._inbox = self._inbox, []
        return messages

    def answer_prune(self, prune: bool) -> None:
        """Answers the last `PruneQuestion`; the child waits for it."""
        self._channel.send({"prune": prune}, wait=False)

    def answer_suggest(
        self,
        name: str,
        internal: float | None,
        *,
        refused: tuple[str, str] | None = None,
        warnings: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answers the last `SuggestQuestion`, which was about `name`; the child waits for it.

        Args:
            internal: Optuna's internal number for the value: the number itself, or the index of the
                choice.
            refused: instead, the class (``ValueError``, ``TypeError``) and text of the error to
                raise in the objective.
            warnings: class and text of the warnings to issue there.
        """
        answer: Line = {"name": name, "warnings": list(warnings)}
        answer |= {"internal": internal} if refused is None else {"refused": refused}
        self._channel.send({"suggest": answer}, wait=False)

    def answer_study(self, about: str, value: JSONValue) -> None:
        """Answers the last `StudyQuestion`; the child waits for it.

        If the value is too large, the child raises an error instead.
        """
        answer: Line = {"about": about, "value": value}
        if (size := len(json.dumps(value))) > _MAX_ANSWER:
            text = f"it takes {size} bytes of JSON; a trial can get at most {_MAX_ANSWER}"
            answer = {"about": about, "refused": text}
        self._channel.send({"study": answer}, wait=False)

    def ask_to_stop(self) -> None:
        """Makes ``trial.should_stop()`` true; how the child reacts is up to it. Idempotent."""
        if not self._stop_sent:
            self._stop_sent = self._channel.send({"stop": True}, wait=False)

    def terminate(self, reason: str = "ended by the worker") -> None:
        """Ends the attempt: SIGTERM to its process group, `grace_s`, SIGKILL.

        Returns when all are gone.

        The outcome becomes ``Interrupted(reason)``, unless the child had delivered a result before
        it died. Messages that arrive meanwhile are kept for the next `poll`. Can be called from any
        thread as long as no other thread polls; a second call waits for the first.
        """
        self._ending = self._ending or reason
        with self._terminating:
            self._keeper.send({"do": "terminate"}, wait=False)
            give_up_at = time.monotonic() + self.job.grace_s + MARGIN_S
            while self._outcome is None and time.monotonic() < give_up_at:
                self._wait(LONGEST_POLL_S)
                self._collect()
            if self._outcome is None:  # the keeper itself hangs: do its work
                self._keeper.kill()
                self._end_orphaned_group()

    def _collect(self) -> None:
        """Takes in what has arrived on both sockets, without waiting."""
        if self._outcome is not None:
            return
        if self._pending is not None:
            self._settle(*self._pending)
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
                verdict = partial(
                    self._judge, line["code"], line["cause"], line["oom"], line["peak_bytes"]
                )
                self._finish(verdict)
                return

        if self._keeper.problem is not None:
            self._finish(partial(imports_no_more, self._keeper.problem))
        elif self._keeper.channel.closed:
            self._end_orphaned_group()

    def _wait(self, seconds: float) -> None:
        """Waits until there is something to collect, at most `seconds`."""
        if self._pending is not None:
            wait_readable([], min(seconds, _VERDICT_CHECK_S))
        else:
            channels = [c for c in (self._channel, self._keeper.channel) if not c.closed]
            wait_readable(channels, seconds)

    def _forward_end_request(self) -> None:
        """Tells the child that this process is about to end.

        A child that received SIGTERM although this process did not is ended: somebody wants it
        gone.
        """
        request = self._current_end_request()
        if request != EndRequest.NONE and not self._leaving_sent:
            self._leaving_sent = self._channel.send({"leaving": True}, wait=False)
        waited = time.monotonic() - self._terminated_at >= self.job.moment_s
        if request < EndRequest.STOP and waited and not self._killed:
            self._killed = True
            self._keeper.send({"do": "terminate"}, wait=False)

    def _current_end_request(self) -> EndRequest:
        request = EndRequest.STOP if self._stop_sent else self._end_request()
        if request == EndRequest.STOP:
            self._stopped_at = min(self._stopped_at, time.monotonic())
        return request

    def _end_orphaned_group(self) -> None:
        """Cleans up after a keeper that died.

        The kernel killed the child with it (parent-death signal), but not what the child had
        started.
        """
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._ending is not None:
            self._finish(partial(Interrupted, self._ending))
        else:
            died = "the keeper, the process between worker and child, died"
            self._finish(partial(Interrupted, died, lost=True))

    def _read_child(self) -> None:
        while lines := self._channel.receive():
            for line in lines:
                try:
                    self._take(line)
                except (KeyError, TypeError, ValueError):
                    logger.warning(
                        "%s: dropped a malformed message: %.200s", self.job.run_dir, line
                    )

    def _take(self, line: Line) -> None:
        if (message := message_from(line)) is not None:
            self._inbox.append(message)
        elif "done" in line:
            # The result is here: the keeper need not wait long for whatever the process still does.
            self._keeper.send({"do": "linger"}, wait=False)
            self._sent_result = line["done"]

    def _finish(self, verdict: Callable[[], Outcome]) -> None:
        """Ends the attempt with the child's own result if it left one, else with `verdict`.

        Results are read only now, because a failure's message ends with the last lines of the log.
        """
        self._read_child()  # the child is dead, so everything it sent has arrived
        self._channel.close()
        outcome = self._result(rundir.read_result)
        if outcome is None and (sent := self._sent_result) is not None:
            outcome = self._result(partial(rundir.result_from_json, sent))
        self._settle(outcome or verdict(), time.monotonic())

    def _result(self, read: Callable[[Path], Outcome | None]) -> Outcome | None:
        try:
            return read(self.job.run_dir)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: cannot read the result: %s", self.job.run_dir, error)
            return None

    def _settle(self, outcome: Outcome, since: float) -> None:
        """Makes `outcome`, found at the time `since`, final.

        A failure that a signal may explain is held back first.

        A service manager signals the child, what the child started, and this process, in no
        particular order. If this process is to end as well, the signal caused the failure, and the
        trial is not to blame: the outcome becomes `Interrupted`. So does any later failure of an
        attempt that was asked to stop, but that one counts as a lost attempt, because it might have
        happened anyway.
        """
        self._pending = None
        if isinstance(outcome, Failed) and outcome.kind != "timeout":
            request, moment_s = self._current_end_request(), self.job.moment_s
            by_signal = (
                not _BY_SIGNAL.isdisjoint(outcome.causes) or since - self._signalled_at < moment_s
            )
            if request == EndRequest.STOP or (request == EndRequest.LEAVE and by_signal):
                soon = since - self._stopped_at < moment_s or self._signalled_at > -math.inf
                outcome = self._excuse(outcome, lost=not (by_signal or soon))

            # A failure without a trace of a signal may still come from one: the objective may have
            # its own handler, or a process that it started may have been signalled first.
            elif self._ending is None and not self._killed:
                hold_s = moment_s if by_signal else _UNSEEN_S
                if time.monotonic() - since < hold_s:
                    self._pending = (outcome, since)
                    return
        self._outcome = outcome

    def _excuse(self, failed: Failed, *, lost: bool) -> Interrupted:
        """The interruption that replaces a failure.

        The result file, which other workers read, is replaced too.
        """
        logger.warning(
            "trial %d failed while it was being ended and is given back: %s",
            self.job.number,
            failed.message,
        )
        first_line = failed.message.splitlines()[0]
        outcome = Interrupted(f"it failed while it was being ended: {first_line}", lost=lost)
        if (self.job.run_dir / "result.json").exists():
            try:
                rundir.write_result(self.job.run_dir, outcome)
            except OSError as error:
                logger.warning(
                    "%s: the result file still reports a failure that does not count: %s",
                    self.job.run_dir,
                    error,
                )
        return outcome

    def _judge(self, code: int, cause: str | None, out_of_memory: bool, peak_bytes: int) -> Outcome:
        """The outcome of a child without a result.

        Args:
            code: its exit code, negative for a signal.
            cause: why the keeper ended it, None if it did not.
            out_of_memory: whether the kernel's out-of-memory killer killed it.
            peak_bytes: the most memory that it held.
        """
        if cause == "timeout":
            limit = _span(self._max_runtime_s or 0.0)
            text = f"the time limit of {limit} (runner.max_runtime_min) was reached"
            return self._failed("timeout", text)
        if cause == "silence":
            return Interrupted(f"the worker gave no sign of life for {self._silence_s:g} s")

        if cause is not None and self._killed and self._ending is None:
            code = -signal.SIGTERM
        elif cause is not None:
            return Interrupted(self._ending or cause)
        if code >= 0:
            text = f"the process exited with code {code} without returning a result"
            return self._failed("exit", text, f"exit:{code}")

        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"SIG{-code}"
        if -code != signal.SIGKILL:
            return self._failed("signal", f"the process was killed by {name}", f"signal:{name}")
        if out_of_memory:
            text = (
                "the kernel's out-of-memory killer killed the process: it used too much memory "
                "(RAM)"
            )
            return replace(self._failed("oom", text), memory="host", peak_bytes=peak_bytes)
        text = "the process was killed by SIGKILL (the kernel's out-of-memory killer does this)"
        return self._failed("signal", text, f"signal:{name}")

    def _failed(self, kind: str, cause: str, *causes: str) -> Failed:
        return rundir.failure(kind, cause, self.job.run_dir, (kind, *causes))


def _span(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"
