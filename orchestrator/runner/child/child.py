"""The child: runs the user's function, writes down how it ended, and ends."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from orchestrator import signals
from orchestrator.errors import ConfigError
from orchestrator.model import Completed, Failed, Interrupted, Outcome, Pruned
from orchestrator.runner.child.merge import Settled, Template, build_config
from orchestrator.runner.child.reuse import Traces
from orchestrator.runner.child.suggestions import WorkerGoneError
from orchestrator.runner.child.trial import Trial
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import (
    Channel,
    Message,
    MessageTooLongError,
    wait_readable,
)
from orchestrator.runner.protocol.contract import Job, KeeperOptions
from orchestrator.runner.protocol.executable import check_program
from orchestrator.runner.protocol.target import (
    arguments_of,
    causes_of,
    describe_exception,
    describe_import_error,
    hint_for,
    imports_no_more,
    locate,
    target_of,
    undecorated,
    words_of,
)
from orchestrator.runner.protocol.values import AttemptFailed, ResultError, as_result, shown
from orchestrator.runner.system import facts, linux, memory
from orchestrator.runner.system.streams import configure_streams, flush_streams

_PLAIN: Final = Job(
    study="rehearsal",
    number=0,
    attempt=1,
    seed=0,
    device="cpu",
    params={"lr": 0.1},
    values={"lr": 0.01},
    objective={"_target_": "rehearsal.train", "epochs": 1},
    metrics=("value",),
    directions=("minimize",),
    run_dir=Path(),
    checkpoint_dir=Path(),
    resumed=False,
)
_INTERPOLATING: Final = replace(
    _PLAIN,
    params={
        "lr": 0.1,
        "decay": "${.lr}",
        "scaled": "${linear_scaling:0.1,256,${data.batch_size}}",
        "data": {},
    },
    values={"lr": 0.01, "data.batch_size": 64},
)
# A child's rehearsal uses one up, as the attempt does that of the study. The keeper's does without:
# its forks are to have them.
_PLAIN_TEMPLATE: Final = Template(_PLAIN)
_INTERPOLATING_TEMPLATE: Final = Template(_INTERPOLATING)


class Terminated(SystemExit):
    """The keeper ends the attempt: unwinds the user's function so that its ``finally``
    blocks run.
    """


def serve(
    control: Channel, keeper_pid: int, options: KeeperOptions, template: Template | None
) -> NoReturn:
    """Gets ready, takes an attempt from the keeper at the other end of `control`, and runs it in
    this process, which ends here.

    With ``isolation=worker`` it takes another one as long as what went before leaves it fit for
    that. It says ``took`` before anything of an attempt happens, and ``free`` when nothing more of
    it will. Call it in a process of its own session.

    Args:
        template: Made of another attempt of the study, which most likely has the same ``params``.
    """
    linux.die_with_parent(signal.SIGKILL, keeper_pid)
    linux.prefer_for_oom()
    faulthandler.enable(file=2)
    termination = _Termination(control)
    termination.disarm()
    sources = _import_ahead(options)
    # otherwise an attempt waits for us
    if options.start == "spawn" and not wait_readable([control], 0):
        linux.gather_pages()
    if options.start == "spawn" or (template is not None and template.interpolates):
        rehearse(options.threads, _INTERPOLATING, _INTERPOLATING_TEMPLATE)
    else:
        rehearse(options.threads, _PLAIN, _PLAIN_TEMPLATE)
    known = next(reversed(sys.modules)) if options.start == "forkserver" else None
    while (order := _next_order(control, termination)) is not None and not _changed(sources):
        sock, *output = control.fds
        control.fds.clear()
        if output:
            _redirect(*output)
        termination.arm()
        control.send({"is": "took"})
        traces = Traces() if options.isolation == "worker" else None
        channel, job_path = Channel(socket.socket(fileno=sock)), Path(order["job"])
        if not _attempt(
            control, channel, job_path, template, options.threads, known, termination, traces
        ):
            break
        if traces is None:
            break
        if (unfit := _unfit(traces)) is not None:
            control.send({"is": "unfit", "why": unfit})
            break
        # it has trained with what it imported; one that changes under way changes nothing
        sources = {}
        _redirect(os.open(os.devnull, os.O_WRONLY))
        termination.disarm()
        control.send({"is": "free"})
        template = template_of(job_path)
    _leave(termination)


def _attempt(
    control: Channel,
    channel: Channel,
    path: Path,
    template: Template | None,
    threads: int | None,
    known: str | None,
    termination: _Termination,
    traces: Traces | None,
) -> bool:
    """Runs the attempt described at `path`; whether it came to a result that says nothing against
    this process.

    Args:
        known: as `facts.used_here` has it.
    """
    try:
        job = rundir.read_job(path)
    except OSError as error:  # removed since the worker made it, which says nothing about the trial
        reason = f"its run directory went away before it began: {error.strerror} ({error.filename})"
        channel.send({"done": rundir.result_to_json(Interrupted(reason, lost=True))})
        return False
    outcome: Outcome | None = None
    trial = Trial(job, channel)
    trial._signals = termination.signals
    try:
        outcome = _execute(job, trial, control, template, threads, traces)
        termination.ignore()
    except Terminated:
        termination.ignore()
        _say("ended by SIGTERM")
    # A failure after a signal is most often its consequence, so it is no verdict on the trial; a
    # result is one.
    if outcome is not None and not (termination.seen and isinstance(outcome, Failed)):
        trial._listen()
        judged = not isinstance(outcome, Failed) or not (termination.signals or trial._stop)
        _deliver(job, control, channel, outcome, known, lasting=judged)
    if traces is not None:
        trial._end()
    return isinstance(outcome, Completed | Pruned) and not (termination.seen or termination.signals)


def _unfit(traces: Traces) -> str | None:
    try:
        return traces.unfit()
    except Exception as error:  # noqa: BLE001 - a broken CUDA context, or what user code put in a module's place
        return f"it cannot be looked at: {describe_exception(error)}"


def _next_order(control: Channel, termination: _Termination) -> dict[str, Any] | None:
    """Waits for the keeper's next attempt; None when there will be none."""
    while not control.closed:
        wait_readable([control], None)
        messages = control.receive()
        termination.listen(messages)
        for message in messages:
            if "job" in message:
                return message
    return None


def _import_ahead(options: KeeperOptions) -> dict[str, int]:
    """Imports the objective; returns the files of its package that were read in this interpreter.

    An import that fails is left to the attempt, which says so.
    """
    sources: dict[str, int] = {}
    _lead_path()
    if options.ahead:
        with contextlib.suppress(BaseException):
            locate(options.target)
    if options.start == "spawn":
        configure_streams()
        package = options.target.partition(".")[0]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name.partition(".")[0] == package and isinstance(file, str):
                sources[file] = _modified(file)
        gc.freeze()  # what is collected after an attempt is then what the attempt made
    return sources


def _changed(sources: Mapping[str, int]) -> bool:
    """Whether a fresh interpreter would see other code than this one did."""
    return any(_modified(file) != modified for file, modified in sources.items())


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116
    except OSError:
        return -1


def rehearse(
    threads: int | None, job: Job = _INTERPOLATING, template: Template | None = None
) -> None:
    """Goes through what every attempt does around the user's function, so that the first one takes
    no longer than others.

    In a fork of a keeper that did so as well it only makes the pages of memory that this takes the
    fork's own.

    Args:
        job: With interpolations in its ``params`` or without; they take ten times as long as all
            the rest.
        template: Made of `job`; without one its config is made here.
    """
    build_config(Job.from_json(json.loads(json.dumps(job.to_json()))), template)
    _seed(0, threads)
    as_result(0.0, job.metrics, job.directions)


def template_of(example: Path) -> Template | None:
    """The template of that attempt's study; None where it cannot be made. User code is
    not called.
    """
    with contextlib.suppress(Exception):  # what is wrong there, the attempt says
        return Template(rundir.read_job(example))
    return None


class _Termination:
    """Takes the signals of this process, and of no process that it forks.

    A SIGTERM of the keeper, which says so on `control`, becomes `Terminated`; the first one. Any
    other signal was sent to all processes of a service or job, most likely, and is the worker's to
    obey: the keeper is told of it, and nothing else happens.
    """

    def __init__(self, control: Channel) -> None:
        self.seen = False
        self._control = control
        self._meant = False
        self._over = False
        self.signals: dict[int, float] = {}
        """Signals not sent by the keeper, each with the monotonic time of the last one."""
        os.register_at_fork(after_in_child=self._forget)

    def arm(self) -> None:
        """From here on SIGTERM ends the attempt if the keeper means it. For others a handler of the
        objective's stays.
        """
        self.signals, self._over = {}, False
        signal.signal(signal.SIGTERM, self._handle)
        for number in self._free(self._note):
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)  # native code that waits is not to notice

    def ignore(self) -> None:
        """From here on the result is being written, and SIGTERM has nothing left to ask for; it is
        told of all the same.
        """
        self._over = True

    def disarm(self) -> None:
        """From here on, between two attempts, a signal ends the process at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in self._free(self._note):
            signal.signal(number, signal.SIG_DFL)

    def listen(self, messages: Iterable[Message]) -> None:
        """Takes in whether the keeper means it."""
        self._meant = self._meant or any("end" in message for message in messages)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.listen(self._control.receive())
        if not self._meant:
            self._note(signum, frame)
        elif not self.seen and not self._over:
            self.seen = True
            raise Terminated(128 + signum)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signals[signum] = time.monotonic()
        self._control.send({"is": "signalled", "signal": signum}, wait=False)

    def _forget(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in signals.ENDING:
            if signal.getsignal(number) == self._note:
                signal.signal(
                    number,
                    signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                )

    @staticmethod
    def _free(ours: signals.Handler) -> list[signal.Signals]:
        """Those besides SIGTERM for which nobody else has a handler."""
        nobodys = (signal.SIG_DFL, signal.default_int_handler, ours)
        return [n for n in signals.ENDING if n != signal.SIGTERM and signal.getsignal(n) in nobodys]


def _lead_path() -> None:
    cwd = os.getcwd()  # noqa: PTH109 - asked for every attempt
    if sys.path[:1] != [cwd]:
        sys.path.insert(0, cwd)


def _execute(
    job: Job,
    trial: Trial,
    control: Channel,
    template: Template | None,
    threads: int | None,
    traces: Traces | None,
) -> Outcome:
    target, _ = target_of(job.objective)
    _lead_path()
    try:
        check_program(next(iter(words_of(job.objective)), None))
        function = locate(target)
    except Terminated:
        raise
    except ConfigError as error:
        return imports_no_more(str(error))
    except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
        _print_traceback(error)
        return imports_no_more(describe_import_error(target, error))
    _seed(job.seed, threads)
    if traces is not None:
        traces.note()
    try:
        cfg, kwargs = build_config(job, template)
        trial._settled = Settled(job, cfg)
        takes = arguments_of(function, kwargs)
        returned = _call(
            undecorated(function),
            tuple({"cfg": cfg, "trial": trial}[name] for name in takes),
            kwargs,
        )
        if returned is None and trial.should_stop():
            return Interrupted("stopped when asked")
        completed, left_out = as_result(returned, job.metrics, job.directions)
    except Terminated:
        raise
    except ResultError as error:
        return _failed("value", str(error))
    except AttemptFailed as error:
        return error.failed
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, and that is a result
        return _judge_exception(error, trial)
    for line in left_out:
        _say(line)
    for name, remark in trial._never_asked().items() if takes == ("trial",) else ():
        control.send({"is": "remark", "about": name, "why": remark})
    return completed


def _failed(kind: str, message: str, *causes: str) -> Failed:
    return Failed(kind, message, (kind, *causes))


def _call(
    function: Callable[..., object], given: tuple[object, ...], kwargs: Mapping[str, Any]
) -> object:
    pid = os.getpid()
    try:
        return function(*given, **kwargs)
    finally:
        # the objective forked, and this is the copy: only the original has a result
        if os.getpid() != pid:
            flush_streams()
            os._exit(0)


def _judge_exception(error: BaseException, trial: Trial) -> Outcome:
    # ours, and Optuna's without importing it
    if any(cls.__name__ == "TrialPruned" for cls in type(error).__mro__):
        return Pruned(trial.last_step)
    if isinstance(error, WorkerGoneError):
        return Interrupted(str(error), lost=True)
    if isinstance(error, SystemExit):
        if trial.should_stop():
            return Interrupted("stopped when asked")
        # as the interpreter does
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        text = f"the objective called sys.exit({shown(error.code)}) instead of returning a result"
        return _failed("exit", text, f"exit:{code & 0xFF}")
    hint = hint_for(error)
    if hint is not None:
        error.add_note(hint)
    _print_traceback(error)
    ran_out = memory.ran_out(error)
    text = describe_exception(error) if hint is None else f"{describe_exception(error)} {hint}"
    failed = _failed("exception" if ran_out is None else "oom", text, *causes_of(error))
    return (
        failed
        if ran_out is None
        else replace(failed, memory=ran_out, peak_bytes=memory.peak_bytes(ran_out))
    )


def _print_traceback(error: BaseException) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next  # begin where the user's code begins
    try:
        lines = traceback.format_exception(type(error), error, frames)
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        lines = traceback.format_tb(frames)
    _say("".join(lines).rstrip("\n"))


def _say(text: str) -> None:
    """Adds to the trial's log, which is our stderr unless the objective closed it."""
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _deliver(
    job: Job,
    control: Channel,
    channel: Channel,
    outcome: Outcome,
    known: str | None,
    *,
    lasting: bool,
) -> None:
    """Tells the worker; if it is `lasting`, any worker that finds the run directory as well."""
    try:
        if lasting:
            rundir.write_result(job.run_dir, outcome, facts.used_here(known))
            control.send({"is": "written"})  # the keeper syncs it while this process ends
    except OSError as error:
        _say(f"the result could not be written: {error}")
    try:
        # With the outcome in it: on a full disk this is the only copy.
        channel.send({"done": rundir.result_to_json(outcome)})
    except MessageTooLongError:
        channel.send({"done": None})


def _leave(termination: _Termination) -> NoReturn:
    """Ends the process as the interpreter would, without taking apart what the keeper loaded (that
    costs more than a fork).
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does: joins threads, runs executors' hooks
        atexit._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001 - the result is safe; nothing that comes later may change it
        _print_traceback(error)
    flush_streams()
    if termination.seen:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # so that the status says what ended it
    os._exit(0)


def _redirect(descriptor: int) -> None:
    """Puts `descriptor` in place of stdout and stderr."""
    flush_streams()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _seed(seed: int, threads: int | None) -> None:
    """Seeds ``random``, and numpy and torch if they are imported; gives torch its number of
    threads.
    """
    modules: Mapping[str, Any] = sys.modules
    random.seed(seed)
    if "numpy" in modules:
        modules["numpy"].random.seed(seed % 2**32)
    if "torch" in modules:
        modules["torch"].manual_seed(seed % 2**63)
        if threads is not None:
            modules["torch"].set_num_threads(threads)


def main() -> NoReturn:
    """``python -m orchestrator.runner.child OPTIONS KEEPER_PID [EXAMPLE]``: a child in an
    interpreter of its own.
    """
    argument, keeper_pid, *example = sys.argv[1:]
    del sys.argv[1:]
    options = KeeperOptions.from_argument(argument)
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, False)
    template = template_of(Path(*example)) if example else None
    configure_streams()
    serve(Channel(socket.socket(fileno=options.control)), int(keeper_pid), options, template)
