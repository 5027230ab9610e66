"""The keeper: between worker and child, so that a child can neither outlive its worker nor take it
down.

One process per worker and study. It imports the objective once (a child is then a fork that takes
milliseconds, with torch warm), never calls it, and has one duty: to end the child's whole process
group when the worker says so, dies or falls silent, or when the trial's time is up. It works while
user code holds the interpreter lock, for it runs none.
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
import traceback
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from orchestrator import signals
from orchestrator.errors import ConfigError
from orchestrator.runner.child import child
from orchestrator.runner.child.merge import Template
from orchestrator.runner.keeper import forking
from orchestrator.runner.keeper.child_handle import ChildHandle
from orchestrator.runner.keeper.output import Output
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import Channel, Message, wait_readable
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.runner.protocol.executable import check_program
from orchestrator.runner.protocol.target import check_call, describe_import_error, locate
from orchestrator.runner.system import facts, linux
from orchestrator.runner.system.memory import peak_host_bytes
from orchestrator.runner.system.sources import Sources
from orchestrator.runner.system.streams import configure_streams, flush_streams, open_streams

_WAKING: Final = (signal.SIGCHLD, *signals.ENDING)
_TICK_S: Final = 1.0
_CLEANUP_S: Final = 3.0
_DRAIN_S: Final = 1.5
_STANDBY_GRACE_S: Final = 0.5
_TOLD: Final = 5
_NOT_AGAIN: Final = "runner.isolation=worker: the process of a trial is not used again: "


@dataclass
class _Attempt:
    """The attempt that runs now."""

    child: ChildHandle
    order: Message
    ends_at: float | None
    grace_s: float
    oom_kills: int
    worker: int | None  # the worker's socket, until the child has said that it took the attempt
    printed: int
    facts: facts.AttemptFacts
    output: Output | None = None
    replaced: bool = False
    cause: str | None = None
    asked: bool = False
    kill_at: float | None = None
    peak_host_bytes: int = 0
    cpu_s: float = 0.0

    def note_usage(self, usage: resource.struct_rusage) -> None:
        """Takes in what a process of this attempt had used when it was reaped."""
        self.peak_host_bytes = max(self.peak_host_bytes, peak_host_bytes(usage))
        self.cpu_s += usage.ru_utime + usage.ru_stime

    def end(self, cause: str) -> None:
        """Asks the group to end, and sees to it `grace_s` later; the first cause given stays."""
        if not self.asked:
            self.asked = True
            self.child.ask_to_end()
        self.cause = self.cause or cause
        self.end_within(self.grace_s)

    def end_within(self, seconds: float) -> None:
        """Leaves the child `seconds` from now to end by itself."""
        at = time.monotonic() + seconds
        self.kill_at = at if self.kill_at is None else min(at, self.kill_at)

    def taken(self) -> None:
        if self.worker is not None:
            os.close(self.worker)
            self.worker = None


class _InChildError(BaseException):
    """Raised in a forked child, which leaves the keeper's stack behind."""

    def __init__(self, control: Channel, template: Template | None) -> None:
        self.control = control
        self.template = template


class Keeper:
    """Runs attempts, one at a time, each in a child that got ready for it while the one before ran.

    Of such children there are at most two: the *standby*, made whenever there is none, and with
    ``isolation=worker`` the one that ran the attempt before. This process forks only while it has
    no thread.
    """

    def __init__(self, channel: Channel, options: KeeperOptions) -> None:
        self._channel = channel
        self._options = options
        self._own = linux.own_children()  # started by the objective's import: not ours to end
        self._attempt: _Attempt | None = None
        self._standby: ChildHandle | None = None
        self._kept: ChildHandle | None = None
        self._example: Path | None = None
        self._template: Template | None = None  # made here once: each fork has a copy of its own
        self._handlers: dict[signal.Signals, Any] = {}
        self._told: set[str] = set()
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
        """Runs attempts until the worker is gone, then returns None; in a forked child, what it is
        to begin with.
        """
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for signum in _WAKING:
            self._handlers[signum] = signal.getsignal(signum)
            signal.signal(signum, _pass)  # only to be woken
        # whoever started the worker, or the import, may have blocked them
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAKING)
        try:
            # a fresh interpreter takes seconds to get ready: when there is work
            if self._options.start == "forkserver":
                self._get_standby()
                self._environment.look_at_code()
            while self._attempt is not None or not self._leaving:
                self._wait()
                for message in self._channel.receive():
                    self._heard_at = time.monotonic()
                    self._obey(message)
                # A signal to a whole service reaches us too: as long as the worker lives, it is the
                # worker that decides.
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
            # it may be deep in an import
            self._standby.dismiss(min(_STANDBY_GRACE_S, self._options.grace_s))
        self._end_adopted()
        return None

    def _wait(self) -> None:
        now = time.monotonic()
        until = now + _TICK_S
        if self._attempt is not None:
            until = min(
                [
                    until,
                    *(
                        at
                        for at in (self._attempt.ends_at, self._attempt.kill_at)
                        if at is not None
                    ),
                ]
            )
        channels = [
            self._channel,
            *([] if self._attempt is None else [self._attempt.child.channel]),
        ]
        # What takes long to look at is looked at when a child of ours may have ended, and now and
        # then.
        self._signalled = not wait_readable(
            [self._wake.fileno(), *(c for c in channels if not c.closed)], until - now
        )
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                self._signalled = True
        # Slept far too long: we were stopped ourselves (machine suspended, container frozen), so
        # the silence was ours.
        overslept = time.monotonic() - until
        if overslept > _TICK_S:
            self._heard_at += overslept

    def _obey(self, message: Message) -> None:
        attempt = self._attempt
        match message.get("do"):
            case "start" if attempt is None and not self._leaving:
                limit = message["max_runtime_s"]
                ends_at = None if limit is None else time.monotonic() + limit
                self._begin(self._take_child(), message, self._channel.fds.pop(0), ends_at)
            case "terminate" if attempt is not None:
                attempt.end("terminated")
            # the result is there; what the process still does is not waited for
            case "linger" if attempt is not None:
                attempt.end_within(self._options.grace_s)
            case "quit":
                self._leaving = True
                if attempt is not None:
                    attempt.end("terminated")

    def _begin(
        self,
        child: ChildHandle,
        order: Message,
        worker: int,
        ends_at: float | None,
        *,
        replaced: bool = False,
    ) -> None:
        printed = child.hand_over(order["job"], worker)
        run_dir = Path(order["job"]).parent
        if self._options.start == "spawn":  # the child imported what was there when it started
            self._environment = facts.Environment(self._sources)
        elif self._options.words:
            self._environment.forget_code()
        told = facts.AttemptFacts(run_dir, self._environment, order["facts"])
        ooms = linux.oom_kills()
        self._attempt = attempt = _Attempt(
            child, order, ends_at, self._options.grace_s, ooms, worker, printed, told
        )
        attempt.replaced = replaced
        self._learn_from(Path(order["job"]))
        self._channel.send({"is": "started", "pid": child.pid})
        self._get_standby()  # before the output gets its thread
        attempt.output = Output(printed, rundir.log_path(run_dir), order["log_limit_bytes"])
        told.begin(child.cpu_s())

    def _learn_from(self, job: Path) -> None:
        """Notes what the attempt tells of those that follow: most likely they have the same
        ``params``.
        """
        self._example = job
        if self._template is None and self._options.start == "forkserver":
            self._template = child.template_of(job)

    def _take_child(self) -> ChildHandle:
        """A child for the next attempt: the one kept, else the standby, else one that has yet to
        get ready.
        """
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
        """Sees to it that there is a child that gets ready for the next attempt; without it the
        next one only starts later.
        """
        if self._standby is None and not self._leaving:
            with contextlib.suppress(OSError):
                self._standby = self._make_child()

    def _make_child(self) -> ChildHandle:
        if self._options.start == "spawn":
            return ChildHandle.spawn(self._options, self._example)
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        flush_streams()
        try:
            with warnings.catch_warnings():
                # of native threads, which `forking.reason_to_spawn` judged
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
        # what the objective's import set, above all faulthandler's and the like
        for signum, handler in self._handlers.items():
            ours = signum in (signal.SIGCHLD, signal.SIGTERM) or handler in (_pass, None)
            signal.signal(signum, signal.SIG_DFL if ours else handler)
        self._channel.close()
        self._wake.close()
        self._wake_writer.close()
        for idle in (self._kept, self._standby):
            if idle is not None:
                idle.close()
        if self._attempt is not None:
            self._attempt.child.close()
            self._attempt.taken()
            os.close(self._attempt.printed)
        forking.forget_exit_functions()

    def _hear_child(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        for message in attempt.child.channel.receive():
            match message.get("is"):
                case "took":
                    attempt.taken()
                case "written" if attempt.output is not None:
                    attempt.output.sync_result()
                case "unfit":
                    self._tell(f"{_NOT_AGAIN}{message.get('why')}")
                case "remark":
                    self._remark(str(message.get("about")), str(message.get("why")))
                case "signalled":
                    self._channel.send(message)
                case "free":
                    self._keep(attempt)

    def _tell(self, why: str) -> None:
        """Sends a note that every trial may give cause for: once, and no more than a few."""
        if why not in self._told and len(self._told) < _TOLD:
            self._told.add(why)
            self._channel.send({"is": "note", "message": why})

    def _remark(self, about: str, remark: str) -> None:
        """Sends a note about a name of the study, once."""
        if about not in self._remarked:
            self._remarked.add(about)
            self._channel.send({"is": "note", "message": remark})

    def _keep(self, attempt: _Attempt) -> None:
        """Ends the attempt, and keeps its child for the next one if nothing speaks against that."""
        if strays := self._reap_adopted():
            self._tell(_NOT_AGAIN + "it left processes in sessions of their own")
        if strays or attempt.asked or self._leaving:
            attempt.child.channel.close()  # so that it ends
            attempt.end_within(self._options.grace_s)
            return
        self._kept = attempt.child
        attempt.peak_host_bytes, attempt.cpu_s = attempt.child.used()
        self._conclude(attempt, 0)

    def _enforce(self) -> None:
        attempt, now = self._attempt, time.monotonic()
        if attempt is None:
            return
        if attempt.ends_at is not None and now >= attempt.ends_at:
            attempt.ends_at = None
            attempt.end("timeout")
        if attempt.worker is not None and not linux.runs(attempt.child.pid):
            self._hear_child()  # what it said before it was stopped
            if attempt.worker is not None:
                # `_reap` then gives the attempt to another one
                attempt.child.signal_group(signal.SIGKILL)
        if now - self._heard_at >= self._options.silence_s:
            attempt.end("silence")
        if attempt.kill_at is not None and now >= attempt.kill_at:
            attempt.kill_at = now + _TICK_S  # again, should it have forked in this very moment
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
        if attempt.worker is not None and not attempt.asked and not attempt.replaced:
            self._begin_anew(attempt)
        else:
            self._conclude(attempt, code)
            self._get_standby()

    def _begin_anew(self, attempt: _Attempt) -> None:
        """Gives an attempt whose child ended before it took it to a new one: that says nothing
        about the trial.
        """
        assert attempt.output is not None
        assert attempt.worker is not None
        attempt.output.finish(_DRAIN_S)
        self._attempt = None
        self._begin(
            self._make_child(), attempt.order, attempt.worker, attempt.ends_at, replaced=True
        )

    def _conclude(self, attempt: _Attempt, code: int) -> None:
        """Tells the worker how the attempt ended: nothing of it is left."""
        assert attempt.output is not None
        self._attempt = None
        attempt.taken()
        if (problem := attempt.output.finish(_DRAIN_S)) is not None:
            self._channel.send({"is": "note", "message": problem})
        out_of_memory = code == -signal.SIGKILL and linux.oom_kills() > attempt.oom_kills
        used = rundir.read_used(attempt.facts.run_dir)
        known = attempt.facts.end(
            used, peak_host_bytes=attempt.peak_host_bytes, cpu_s=attempt.cpu_s
        )
        ended = {
            "code": code,
            "cause": attempt.cause,
            "oom": out_of_memory,
            "peak_bytes": attempt.peak_host_bytes,
        }
        self._channel.send({"is": "ended", **ended, "facts": known})
        attempt.facts.write()  # nobody waits for it

    def _reap_adopted(self) -> set[int]:
        """Reaps the ended ones among the orphans we adopted; returns those that live."""
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
        """Kills and reaps what the child left running, also those that went into sessions of their
        own: all are ours now.
        """
        give_up_at = time.monotonic() + _CLEANUP_S
        while (left := self._reap_adopted()) and time.monotonic() < give_up_at:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _pass(_signal: int, _frame: FrameType | None) -> None:
    """What a keeper does about a signal: the worker tells it what is to be done."""


def main() -> None:
    """``python -m orchestrator.runner.keeper OPTIONS``: serves the worker at the other end of the
    control socket.
    """
    signals.handle(_pass)
    signals.let_in()
    options = KeeperOptions.from_argument(sys.argv[1])
    # it runs what it imports, and nothing of it is to be undone
    linux.die_with_parent(signal.SIGKILL, options.worker_pid)
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=options.control))
    open_streams()
    del sys.argv[1:]  # a module that reads them when it is imported must not meet ours
    if not options.checked:
        if (problem := _import_objective(options)) is not None:
            channel.send({"is": "broken", "message": problem})
            return
        reason = forking.reason_to_spawn() if options.start == "forkserver" else None
        if reason is not None:
            channel.send(
                {"is": "note", "message": f"every trial starts a fresh interpreter: {reason}"}
            )
        if reason is not None or options.start == "spawn":
            _start_over(
                replace(options, start="spawn", checked=True, ahead=not forking.uses_cuda())
            )
    linux.adopt_orphans()
    configure_streams()
    if "numpy" in sys.modules:
        # numpy loads it at first use: every child would, to seed it
        importlib.import_module("numpy.random")
    if options.start == "forkserver":
        child.rehearse(None)
    gc.collect()
    # forked children then share these pages instead of copying them at their first collection
    gc.freeze()
    if options.start == "forkserver":
        linux.gather_pages()
    channel.send({"is": "ready", "start": options.start})
    linux.die_with_parent(signal.SIGTERM, options.worker_pid)
    keeper_pid = os.getpid()
    here = Keeper(channel, options).serve()
    if here is not None:
        child.serve(here.control, keeper_pid, options, here.template)


def _import_objective(options: KeeperOptions) -> str | None:
    """Imports the objective into this process; returns what is wrong with it, or None."""
    cwd = str(Path.cwd())
    if sys.path[:1] != [cwd]:
        sys.path.insert(0, cwd)
    try:
        check_program(next(iter(options.words), None))
        check_call(options.target, locate(options.target), options.kwargs)
    except ConfigError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
        traceback.print_exc()
        return describe_import_error(options.target, error)
    return None


def _start_over(options: KeeperOptions) -> None:
    """Replaces this process by a keeper that has not imported the objective: frees a CUDA context,
    threads and memory.
    """
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, True)
    flush_streams()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
    os.execv(
        sys.executable, [sys.executable, "-m", "orchestrator.runner.keeper", options.to_argument()]
    )
