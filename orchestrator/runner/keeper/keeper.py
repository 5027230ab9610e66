"""The keeper: ensures that a child can neither outlive its worker nor take it down.

There is one process per worker and study. It imports the objective once, so that a child is a fork
that takes milliseconds, and never calls it. Its one duty is to end the child's whole process group
when the worker says so, dies or falls silent, or when the trial's time is up. After the import it
runs no user code, so user code that holds the interpreter lock cannot block it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator import signals
from orchestrator.runner.child import child
from orchestrator.runner.child.merge import Template
from orchestrator.runner.keeper import forking
from orchestrator.runner.keeper.child_handle import ChildHandle
from orchestrator.runner.keeper.importing import connect, ignore, import_objective
from orchestrator.runner.keeper.output import Output
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import Channel, Line, wait_readable
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.runner.system import facts, linux
from orchestrator.runner.system.memory import peak_host_bytes
from orchestrator.runner.system.sources import Sources
from orchestrator.runner.system.streams import configure_streams, flush_streams

_WAKING: Final = (signal.SIGCHLD, *signals.ENDING)
_TICK_S: Final = 1.0
_CLEANUP_S: Final = 3.0
_DRAIN_S: Final = 1.5
_STANDBY_GRACE_S: Final = 0.5
_MOST_NOTES: Final = 5
_NOT_REUSED: Final = "runner.isolation=worker: the process of a trial is not used again: "


@dataclass
class _SupervisedAttempt:
    """The attempt that runs now, and what the keeper must know to end it."""

    child: ChildHandle
    order: Line
    ends_at: float | None
    grace_s: float
    oom_kills: int
    worker_socket: int | None  # its descriptor, until the child has confirmed the attempt
    printed: int
    facts: facts.AttemptFacts
    output: Output | None = None
    restarted: bool = False
    cause: str | None = None
    end_requested: bool = False
    kill_at: float | None = None
    peak_host_bytes: int = 0
    cpu_s: float = 0.0

    def note_usage(self, usage: resource.struct_rusage) -> None:
        """Adds what a reaped process of this attempt used."""
        self.peak_host_bytes = max(self.peak_host_bytes, peak_host_bytes(usage))
        self.cpu_s += usage.ru_utime + usage.ru_stime

    def end(self, cause: str) -> None:
        """Asks the process group to end, and has it killed `grace_s` later.

        The first `cause` is kept.
        """
        if not self.end_requested:
            self.end_requested = True
            self.child.ask_to_end()
        self.cause = self.cause or cause
        self.end_within(self.grace_s)

    def end_within(self, seconds: float) -> None:
        """Gives the child `seconds` from now to end by itself."""
        at = time.monotonic() + seconds
        self.kill_at = at if self.kill_at is None else min(at, self.kill_at)

    def confirm(self) -> None:
        """Notes that the child has the worker's socket: the keeper's copy is closed."""
        if self.worker_socket is not None:
            os.close(self.worker_socket)
            self.worker_socket = None


class _InChildError(BaseException):
    """Raised in a forked child to leave the keeper's stack."""

    def __init__(self, control: Channel, template: Template | None) -> None:
        self.control = control
        self.template = template


class Keeper:
    """Runs attempts, one at a time, each in a child that got ready while the previous attempt ran.

    There are at most two idle children: the *standby*, made whenever there is none, and, with
    ``isolation=worker``, the one that ran the previous attempt. This process forks only while it
    has no other thread.
    """

    def __init__(self, channel: Channel, options: KeeperOptions) -> None:
        self._channel = channel
        self._options = options
        self._own = linux.own_children()  # started by the objective's import: not to be killed
        self._attempt: _SupervisedAttempt | None = None
        self._standby: ChildHandle | None = None
        self._kept: ChildHandle | None = None
        self._example: Path | None = None
        self._template: Template | None = None  # made once here; each fork has its own copy
        self._handlers: dict[signal.Signals, Any] = {}
        self._notes: set[str] = set()
        self._remarked: set[str] = set()
        self._leaving = False
        self._sources = Sources(options.objective)
        self._environment = facts.Environment(self._sources)
        self._heard_at = time.monotonic()
        self._signalled = True
        self._wake, self._wake_writer = socket.socketpair()
        for end in (self._wake, self._wake_writer):
            end.setblocking(False)

    def serve(self) -> _InChildError | None:
        """Runs attempts until the worker is gone.

        Returns:
            None in the keeper; in a forked child, what it needs to start.
        """
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for signum in _WAKING:
            self._handlers[signum] = signal.getsignal(signum)
            signal.signal(signum, ignore)  # a handler is needed for the wakeup descriptor
        # The parent of the worker, or the import, may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAKING)

        try:
            # A new interpreter takes seconds of work to get ready, so with `spawn` only when
            # needed.
            if self._options.start == "forkserver":
                self._get_standby()
                self._environment.look_at_code()
            while self._attempt is not None or not self._leaving:
                self._wait()
                for message in self._channel.receive():
                    self._heard_at = time.monotonic()
                    self._obey(message)
                # Signals to a whole service reach this process too, and are ignored: as long as the
                # worker lives, it decides.
                if self._channel.closed or os.getppid() != self._options.worker_pid:
                    self._leaving = True
                    if self._attempt is not None:
                        self._attempt.end("the worker is gone")
                self._hear_child()
                self._enforce()
                self._reap()
        except _InChildError as here:
            return here

        if self._kept is not None:
            self._kept.dismiss(self._options.grace_s)
        if self._standby is not None:
            # Short, because it may be in the middle of a long import.
            self._standby.dismiss(min(_STANDBY_GRACE_S, self._options.grace_s))
        self._end_adopted()
        return None

    def _wait(self) -> None:
        now = time.monotonic()
        until = now + _TICK_S
        channels = [self._channel]
        if self._attempt is not None:
            deadlines = (self._attempt.ends_at, self._attempt.kill_at)
            until = min([until, *(at for at in deadlines if at is not None)])
            channels.append(self._attempt.child.channel)

        # The slow checks run only when a child may have ended, and after a wait without events.
        readable: list[Channel | int] = [
            self._wake.fileno(),
            *(c for c in channels if not c.closed),
        ]
        self._signalled = not wait_readable(readable, until - now)
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                self._signalled = True

        # If it slept far too long, this process itself was stopped (machine suspended, container
        # frozen), and the worker is not to blame for the silence.
        overslept = time.monotonic() - until
        if overslept > _TICK_S:
            self._heard_at += overslept

    def _obey(self, message: Line) -> None:
        attempt = self._attempt
        match message.get("do"):
            case "start" if attempt is None and not self._leaving:
                limit = message["max_runtime_s"]
                ends_at = None if limit is None else time.monotonic() + limit
                self._start_attempt(self._take_child(), message, self._channel.fds.pop(0), ends_at)
            case "terminate" if attempt is not None:
                attempt.end("terminated")
            # The result is there, so the process must end soon.
            case "linger" if attempt is not None:
                attempt.end_within(self._options.grace_s)

    def _start_attempt(
        self,
        child: ChildHandle,
        order: Line,
        worker_socket: int,
        ends_at: float | None,
        *,
        restarted: bool = False,
    ) -> None:
        """Hands the attempt in `order` to the child, and gets the next standby ready.

        Args:
            worker_socket: The descriptor of the socket to the worker, for the child.
            ends_at: When its time is up, by the monotonic clock.
            restarted: Whether another child ended before it could take the attempt.
        """
        printed = child.hand_over(order["job"], worker_socket)
        run_dir = Path(order["job"]).parent

        # A spawned child has imported the code as it was when it started, not when the keeper did.
        # A program reads its files at each start.
        if self._options.start == "spawn":
            self._environment = facts.Environment(self._sources)
        elif self._options.words:
            self._environment.forget_code()
        attempt_facts = facts.AttemptFacts(run_dir, self._environment, order["facts"])

        self._attempt = attempt = _SupervisedAttempt(
            child=child,
            order=order,
            ends_at=ends_at,
            grace_s=self._options.grace_s,
            oom_kills=linux.oom_kills(),
            worker_socket=worker_socket,
            printed=printed,
            facts=attempt_facts,
            restarted=restarted,
        )
        self._learn_from(Path(order["job"]))
        self._channel.send({"is": "started", "pid": child.pid})
        self._get_standby()  # before `Output` starts a thread, as it may fork
        attempt.output = Output(printed, rundir.log_path(run_dir), order["log_limit_bytes"])
        attempt_facts.begin(child.cpu_s())

    def _learn_from(self, job: Path) -> None:
        """Prepares for the next attempts, which most likely have this one's ``params``."""
        self._example = job
        if self._template is None and self._options.start == "forkserver":
            self._template = child.template_of(job)

    def _take_child(self) -> ChildHandle:
        """A child for the next attempt: the kept one, the standby, or a new one (not ready yet)."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.fit():
                return kept
            kept.dismiss(0.0)
        standby, self._standby = self._standby, None
        if standby is not None:
            if standby.fit():
                return standby
            standby.dismiss(0.0)
        return self._make_child()

    def _get_standby(self) -> None:
        """Makes sure that a child is getting ready for the next attempt."""
        if self._standby is None and not self._leaving:
            with contextlib.suppress(OSError):  # then the next attempt only starts later
                self._standby = self._make_child()

    def _make_child(self) -> ChildHandle:
        if self._options.start == "spawn":
            return ChildHandle.spawn(self._options, self._example)
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        flush_streams()
        try:
            with warnings.catch_warnings():
                # Python warns of other threads; `forking.reason_to_spawn` has checked those.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            for descriptor in (printed, output):
                os.close(descriptor)
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            os.close(printed)
            self._become_child(output)
            raise _InChildError(Channel(theirs), self._template)
        theirs.close()
        os.close(output)
        return ChildHandle(pid, Channel(ours), printed)

    def _become_child(self, output: int) -> None:
        os.setsid()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        signal.set_wakeup_fd(-1)
        # Restores handlers that the objective's import installed, such as faulthandler's.
        for signum, handler in self._handlers.items():
            ours = signum in (signal.SIGCHLD, signal.SIGTERM) or handler in (ignore, None)
            signal.signal(signum, signal.SIG_DFL if ours else handler)
        self._channel.close()
        self._wake.close()
        self._wake_writer.close()
        for idle in (self._kept, self._standby):
            if idle is not None:
                idle.close()
        if self._attempt is not None:
            self._attempt.child.close()
            self._attempt.confirm()
            os.close(self._attempt.printed)
        forking.forget_exit_functions()

    def _hear_child(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        for message in attempt.child.channel.receive():
            match message.get("is"):
                case "took":
                    attempt.confirm()
                case "written" if attempt.output is not None:
                    attempt.output.sync_result()
                case "unfit":
                    self._send_note(f"{_NOT_REUSED}{message.get('why')}")
                case "remark":
                    self._remark(str(message.get("about")), str(message.get("why")))
                case "signalled":
                    self._channel.send(message)
                case "free":
                    self._keep(attempt)

    def _send_note(self, note: str) -> None:
        """Sends a note for the worker's log: each text once, at most `_MOST_NOTES` texts."""
        if note not in self._notes and len(self._notes) < _MOST_NOTES:
            self._notes.add(note)
            self._channel.send({"is": "note", "message": note})

    def _remark(self, about: str, remark: str) -> None:
        """Sends a note about a parameter of the study, once per parameter."""
        if about not in self._remarked:
            self._remarked.add(about)
            self._channel.send({"is": "note", "message": remark})

    def _keep(self, attempt: _SupervisedAttempt) -> None:
        """Ends the attempt, and keeps its child for the next one if it is fit for that."""
        if strays := self._reap_adopted():
            self._send_note(_NOT_REUSED + "it left processes in other sessions")
        if strays or attempt.end_requested or self._leaving:
            attempt.child.channel.close()  # makes the child exit
            attempt.end_within(self._options.grace_s)
            return
        self._kept = attempt.child
        attempt.peak_host_bytes, attempt.cpu_s = attempt.child.used()
        self._conclude(attempt, 0)

    def _enforce(self) -> None:
        """Ends the attempt when its time is up or the worker is silent; kills what does not end."""
        attempt, now = self._attempt, time.monotonic()
        if attempt is None:
            return
        if attempt.ends_at is not None and now >= attempt.ends_at:
            attempt.ends_at = None
            attempt.end("timeout")
        if attempt.worker_socket is not None and not linux.runs(attempt.child.pid):
            self._hear_child()  # it may have confirmed the attempt before it was stopped
            if attempt.worker_socket is not None:
                # `_reap` then gives the attempt to another child
                attempt.child.signal_group(signal.SIGKILL)
        if now - self._heard_at >= self._options.silence_s:
            attempt.end("silence")
        if attempt.kill_at is not None and now >= attempt.kill_at:
            attempt.kill_at = now + _TICK_S  # repeated, in case it forked at this very moment
            attempt.child.signal_group(signal.SIGKILL)

    def _reap(self) -> None:
        if not self._signalled:
            return
        self._reap_adopted()
        for idle in (self._kept, self._standby):
            if idle is not None and idle.collect() is not None:
                idle.close()
                self._kept = None if idle is self._kept else self._kept
                self._standby = None if idle is self._standby else self._standby
        attempt = self._attempt
        if attempt is None or (code := attempt.child.collect()) is None:
            return

        self._hear_child()
        if attempt.child.usage is not None:
            attempt.note_usage(attempt.child.usage)
        attempt.child.close()
        self._end_adopted()
        if (
            attempt.worker_socket is not None
            and not attempt.end_requested
            and not attempt.restarted
        ):
            self._restart_attempt(attempt)
        else:
            self._conclude(attempt, code)
            self._get_standby()

    def _restart_attempt(self, attempt: _SupervisedAttempt) -> None:
        """Gives the attempt to a new child, because the first one ended before it confirmed it.

        That is not the trial's fault.
        """
        assert attempt.output is not None
        assert attempt.worker_socket is not None
        attempt.output.finish(_DRAIN_S)
        self._attempt = None
        self._start_attempt(
            self._make_child(),
            attempt.order,
            attempt.worker_socket,
            attempt.ends_at,
            restarted=True,
        )

    def _conclude(self, attempt: _SupervisedAttempt, code: int) -> None:
        """Reports to the worker how the attempt ended.

        Call it when none of its processes is left.
        """
        assert attempt.output is not None
        self._attempt = None
        attempt.confirm()
        if (problem := attempt.output.finish(_DRAIN_S)) is not None:
            self._channel.send({"is": "note", "message": problem})

        out_of_memory = code == -signal.SIGKILL and linux.oom_kills() > attempt.oom_kills
        used = rundir.read_used(attempt.facts.run_dir)
        final_facts = attempt.facts.end(
            used, peak_host_bytes=attempt.peak_host_bytes, cpu_s=attempt.cpu_s
        )
        self._channel.send(
            {
                "is": "ended",
                "code": code,
                "cause": attempt.cause,
                "oom": out_of_memory,
                "peak_bytes": attempt.peak_host_bytes,
                "facts": final_facts,
            }
        )
        attempt.facts.write()  # last, so that the worker does not wait for it

    def _reap_adopted(self) -> set[int]:
        """Reaps the adopted orphans that have ended; returns those that are still alive."""
        children = (
            self._kept,
            self._standby,
            None if self._attempt is None else self._attempt.child,
        )
        orphans = (
            linux.own_children()
            - self._own
            - {child.pid for child in children if child is not None}
        )
        for pid in list(orphans):
            with contextlib.suppress(ChildProcessError):
                reaped, _, usage = os.wait4(pid, os.WNOHANG)
                if reaped:
                    orphans.discard(pid)
                    if self._attempt is not None:
                        self._attempt.note_usage(usage)
        return orphans

    def _end_adopted(self) -> None:
        """Kills and reaps what the child left running, including processes in other sessions."""
        give_up_at = time.monotonic() + _CLEANUP_S
        while (left := self._reap_adopted()) and time.monotonic() < give_up_at:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def main(options: KeeperOptions) -> None:
    """Is a keeper for the worker that started this process."""
    channel = connect(options)
    if not options.checked:
        if (start := import_objective(options, channel)) is None:
            return
        if start == "spawn":
            _start_over(
                replace(options, start="spawn", checked=True, ahead=not forking.uses_cuda())
            )

    linux.adopt_orphans()
    configure_streams()
    if "numpy" in sys.modules:
        # numpy imports it lazily; otherwise every child would have to, in order to seed it.
        importlib.import_module("numpy.random")
    if options.start == "forkserver":
        if "torch" in sys.modules:
            # The first optimizer of a process imports it, which takes as long as importing torch
            # does: here once, instead of in every child.
            with contextlib.suppress(Exception):
                importlib.import_module("torch._dynamo")
        child.rehearse(None)
    gc.collect()
    gc.freeze()  # forked children then share these pages: a collection would copy them
    if options.start == "forkserver":
        linux.gather_pages()
    channel.send({"is": "ready", "start": options.start})
    linux.die_with_parent(signal.SIGTERM, options.worker_pid)
    keeper_pid = os.getpid()
    here = Keeper(channel, options).serve()
    if here is not None:
        child.run_attempts(here.control, keeper_pid, options, here.template)


def _start_over(options: KeeperOptions) -> None:
    """Replaces this process by a keeper without the objective, to free CUDA, threads and memory."""
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, True)
    flush_streams()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
    os.execv(
        sys.executable, [sys.executable, "-m", "orchestrator.runner.keeper", options.to_argument()]
    )
