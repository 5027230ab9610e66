"""The child: calls the user's function, records how it ended, and exits."""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, NoReturn, Self

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
    Line,
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
from orchestrator.runner.protocol.values import (
    AttemptFailed,
    ResultError,
    as_measurement,
    as_result,
    preview,
)
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
# A child's rehearsal uses one of these up, as its attempt uses the study's template. The keeper's
# own rehearsal uses none, so that its forks have them.
_PLAIN_TEMPLATE: Final = Template(_PLAIN)
_INTERPOLATING_TEMPLATE: Final = Template(_INTERPOLATING)


class Terminated(SystemExit):
    """Raised when the keeper ends the attempt, so that the function's ``finally`` blocks run."""


def run_attempts(
    control: Channel, keeper_pid: int, options: KeeperOptions, template: Template | None
) -> NoReturn:
    """Gets ready, runs an attempt that the keeper sends over `control`, and ends this process.

    With ``isolation=worker``, it runs further attempts for as long as the process is fit for them.
    It sends ``took`` before an attempt has any effect, and ``free`` when the attempt can have none
    any more. Call it in a process that leads its own session.

    Args:
        template: Made from another attempt of the study, which most likely has the same ``params``.
    """
    linux.die_with_parent(signal.SIGKILL, keeper_pid)
    linux.prefer_for_oom()
    faulthandler.enable(file=2)
    termination = _Termination(control)
    termination.disarm()

    sources = _import_ahead(options)
    # Otherwise an attempt is waiting.
    if options.start == "spawn" and not wait_readable([control], 0):
        linux.gather_pages()
    if options.start == "spawn" or (template is not None and template.interpolates):
        rehearse(options.threads, _INTERPOLATING, _INTERPOLATING_TEMPLATE)
    else:
        rehearse(options.threads, _PLAIN, _PLAIN_TEMPLATE)
    last_import = next(reversed(sys.modules)) if options.start == "forkserver" else None

    while (order := _next_order(control, termination)) is not None and not _changed(sources):
        sock, *output = control.fds
        control.fds.clear()
        if output:
            _redirect(*output)
        termination.arm()
        control.send({"is": "took"})
        traces = Traces() if options.isolation == "worker" else None
        channel, job_path = Channel(socket.socket(fileno=sock)), Path(order["job"])
        clean = _run_attempt(
            control,
            channel,
            job_path,
            template=template,
            threads=options.threads,
            last_import=last_import,
            termination=termination,
            traces=traces,
        )
        if not clean or traces is None:
            break

        if (unfit := _unfit(traces)) is not None:
            control.send({"is": "unfit", "why": unfit})
            break
        sources = {}  # this process has trained with what it imported: later changes do not matter
        _redirect(os.open(os.devnull, os.O_WRONLY))
        termination.disarm()
        control.send({"is": "free"})
        template = template_of(job_path)
    _leave(termination)


def _run_attempt(
    control: Channel,
    channel: Channel,
    path: Path,
    *,
    template: Template | None,
    threads: int | None,
    last_import: str | None,
    termination: _Termination,
    traces: Traces | None,
) -> bool:
    """Runs the attempt described at `path`.

    Args:
        last_import: see `facts.used_here`.

    Returns:
        Whether it ended normally, so that this process may run another one.
    """
    try:
        job = rundir.read_job(path)
    except OSError as error:  # deleted since the worker wrote it, which is not the trial's fault
        reason = (
            f"its run directory vanished before it started: {error.strerror} ({error.filename})"
        )
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
        _log("ended by SIGTERM")

    # A failure after a signal is most likely its consequence, so it does not count against the
    # trial. A result counts even then.
    if outcome is not None and not (termination.seen and isinstance(outcome, Failed)):
        trial._receive()
        final = not isinstance(outcome, Failed) or not (termination.signals or trial._stop)
        _deliver(job, control, channel, outcome, last_import, final=final)
    if traces is not None:
        trial._end()
    return isinstance(outcome, Completed | Pruned) and not (termination.seen or termination.signals)


def _unfit(traces: Traces) -> str | None:
    try:
        return traces.unfit()
    except Exception as error:  # noqa: BLE001 - a broken CUDA context, or a module that user code replaced
        return f"it cannot be inspected: {describe_exception(error)}"


def _next_order(control: Channel, termination: _Termination) -> dict[str, Any] | None:
    """Waits for the keeper's next attempt; None when there will be no more."""
    while not control.closed:
        wait_readable([control], None)
        messages = control.receive()
        termination.listen(messages)
        for message in messages:
            if "job" in message:
                return message
    return None


def _import_ahead(options: KeeperOptions) -> dict[str, int]:
    """Imports the objective; returns the files of its package that this interpreter has read.

    A failed import is ignored here: the attempt repeats and reports it.
    """
    _put_cwd_first()
    package = options.target.partition(".")[0]
    with _Witness(package) as witness:
        if options.ahead:
            with contextlib.suppress(BaseException):
                locate(options.target)
    if options.start != "spawn":
        return {}
    configure_streams()
    sources = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == package and isinstance(file, str):
            sources[file] = witness.before.get(file) or _modified(file)
    gc.freeze()  # later collections then scan only what the attempts allocate
    return sources


class _Witness:
    """Notes when the files of a package were modified, before they are imported.

    A file may be changed while it is imported. A look at it afterwards would take the change for
    what was imported.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self.before: dict[str, int] = {}

    def __enter__(self) -> Self:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # the objective may have replaced the list
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Finds nothing itself: it looks at what the other finders will find."""
        if name.partition(".")[0] != self._package:
            return
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.origin is not None:
                    self.before[spec.origin] = _modified(spec.origin)
                return


def _changed(sources: Mapping[str, int]) -> bool:
    """Whether a new interpreter would read different code than this one did."""
    return any(_modified(file) != modified for file, modified in sources.items())


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116
    except OSError:
        return -1


def rehearse(
    threads: int | None, job: Job = _INTERPOLATING, template: Template | None = None
) -> None:
    """Does what every attempt does around the user's function, so that the first is not slower.

    In a fork of a keeper that has rehearsed too, this only copies the memory pages that it touches.

    Args:
        job: With interpolations in its ``params`` or without; they take ten times as long as the
            rest.
        template: Made from `job`; without one, the config is made here.
    """
    build_config(Job.from_json(json.loads(json.dumps(job.to_json()))), template)
    _seed(0, threads)
    as_result(0.0, job.metrics, job.directions)


def template_of(example: Path) -> Template | None:
    """The template of that attempt's study; None if it cannot be made. Calls no user code."""
    with contextlib.suppress(Exception):  # the attempt itself will report the problem
        return Template(rundir.read_job(example))
    return None


class _Termination:
    """Handles the ending signals of this process, but not of processes that it forks.

    The keeper announces its SIGTERM on `control`; the first one becomes `Terminated`. Any other
    signal was most likely sent to all processes of a service or job, and the worker decides what
    follows: it is reported to the keeper and otherwise ignored.
    """

    def __init__(self, control: Channel) -> None:
        self.seen = False
        self._control = control
        self._by_keeper = False
        self._over = False
        self.signals: dict[int, float] = {}
        """Signals in this attempt that the keeper did not send, and when last (monotonic clock)."""
        os.register_at_fork(after_in_child=self._forget)

    def arm(self) -> None:
        """From now on, the keeper's SIGTERM ends the attempt.

        Handlers that the objective installed stay.
        """
        self.signals, self._over = {}, False
        signal.signal(signal.SIGTERM, self._handle)
        for number in self._free(self._note):
            signal.signal(number, self._note)
            # System calls in native code must not fail with EINTR.
            signal.siginterrupt(number, False)

    def ignore(self) -> None:
        """From now on, while the result is written, SIGTERM no longer ends the attempt.

        It is still reported.
        """
        self._over = True

    def disarm(self) -> None:
        """From now on, between two attempts, a signal ends the process at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in self._free(self._note):
            signal.signal(number, signal.SIG_DFL)

    def listen(self, messages: Iterable[Line]) -> None:
        """Notes whether the keeper has announced its SIGTERM."""
        self._by_keeper = self._by_keeper or any("end" in message for message in messages)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.listen(self._control.receive())
        if not self._by_keeper:
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
        """The ending signals, except SIGTERM, for which nobody else has installed a handler."""
        free = (signal.SIG_DFL, signal.default_int_handler, ours)
        return [n for n in signals.ENDING if n != signal.SIGTERM and signal.getsignal(n) in free]


def _put_cwd_first() -> None:
    """Puts the working directory first on the module path."""
    cwd = os.getcwd()  # noqa: PTH109 - runs in every attempt
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
    _put_cwd_first()
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
        if job.probe is not None:
            return Completed((), as_measurement(returned))
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
        _log(line)
    if takes == ("trial",):
        for name, remark in trial._unread_params().items():
            control.send({"is": "remark", "about": name, "why": remark})
    return completed


def _failed(kind: str, message: str, *causes: str) -> Failed:
    return Failed(kind, message, (kind, *causes))


def _call(
    function: Callable[..., object], arguments: tuple[object, ...], kwargs: Mapping[str, Any]
) -> object:
    pid = os.getpid()
    try:
        return function(*arguments, **kwargs)
    finally:
        # The objective forked, and this is the copy: only the original reports.
        if os.getpid() != pid:
            flush_streams()
            os._exit(0)


def _judge_exception(error: BaseException, trial: Trial) -> Outcome:
    # Ours, and Optuna's without importing it.
    if any(cls.__name__ == "TrialPruned" for cls in type(error).__mro__):
        return Pruned(trial.last_step)
    if isinstance(error, WorkerGoneError):
        return Interrupted(str(error), lost=True)

    if isinstance(error, SystemExit):
        if trial.should_stop():
            return Interrupted("stopped when asked")
        # As the interpreter does.
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        who = "the objective" if trial._job.probe is None else f"the probe {trial._job.probe}"
        text = f"{who} called sys.exit({preview(error.code)}) instead of returning a result"
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
        frames = frames.tb_next  # start where the user's code starts
    try:
        lines = traceback.format_exception(type(error), error, frames)
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        lines = traceback.format_tb(frames)
    _log("".join(lines).rstrip("\n"))


def _log(text: str) -> None:
    """Adds a line to the trial's log: this process's stderr, unless the objective closed it."""
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def _deliver(
    job: Job,
    control: Channel,
    channel: Channel,
    outcome: Outcome,
    last_import: str | None,
    *,
    final: bool,
) -> None:
    """Sends the outcome to the worker.

    A `final` one is also written for any worker that reads the run directory.
    """
    try:
        if final:
            rundir.write_result(job.run_dir, outcome, facts.used_here(last_import))
            control.send({"is": "written"})  # the keeper syncs the file while this process ends
    except OSError as error:
        _log(f"cannot write the result: {error}")
    try:
        # The whole outcome: on a full disk, this is the only copy.
        channel.send({"done": rundir.result_to_json(outcome)})
    except MessageTooLongError:
        channel.send({"done": None})


def _leave(termination: _Termination) -> NoReturn:
    """Ends the process as the interpreter would, but does not free what the keeper loaded.

    To free it would take longer than the fork did.
    """
    try:
        # As multiprocessing does: joins threads, runs the hooks of executors.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001 - the result is safe; nothing may change it now
        _print_traceback(error)
    flush_streams()
    if termination.seen:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # so that the exit status shows the signal
    os._exit(0)


def _redirect(descriptor: int) -> None:
    """Replaces stdout and stderr by `descriptor`."""
    flush_streams()
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _seed(seed: int, threads: int | None) -> None:
    """Seeds ``random``, and numpy and torch if they are imported.

    Sets torch's number of threads.
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
    """``python -m orchestrator.runner.child OPTIONS KEEPER_PID [EXAMPLE]``: a spawned child."""
    argument, keeper_pid, *example = sys.argv[1:]
    del sys.argv[1:]
    options = KeeperOptions.from_argument(argument)
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, False)
    template = template_of(Path(*example)) if example else None
    configure_streams()
    control = Channel(socket.socket(fileno=options.control))
    run_attempts(control, int(keeper_pid), options, template)
