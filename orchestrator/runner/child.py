"""The child: runs the user's function once, writes down how it ended, and ends."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from orchestrator.errors import ConfigError
from orchestrator.model import Failed, Interrupted, JSONValue, Outcome, Pruned
from orchestrator.runner import couplings, linux, rundir
from orchestrator.runner.channel import Channel, MessageTooLongError
from orchestrator.runner.contract import Job
from orchestrator.runner.output import flush_streams
from orchestrator.runner.suggestions import WorkerGoneError
from orchestrator.runner.target import (
    causes_of,
    describe_exception,
    describe_import_error,
    imports_no_more,
    locate,
    takes_trial_alone,
    target_of,
)
from orchestrator.runner.trial import Trial
from orchestrator.runner.values import ResultError, as_result, shown

_OBJECTIVE = "__objective__"


class Terminated(SystemExit):
    """SIGTERM arrived: unwinds the user's function so that its ``finally`` blocks run."""


def run(sock: socket.socket, job_path: Path, keeper_pid: int, threads: int | None) -> NoReturn:
    """Runs the attempt described at `job_path` in this process, which ends here. Call it in a process of its own session."""
    linux.die_with_parent(signal.SIGKILL, keeper_pid)
    linux.prefer_for_oom()
    termination = _Termination()
    channel = Channel(sock)
    _open_streams()
    try:
        job = rundir.read_job(job_path)
    except OSError as error:  # removed since the worker made it, which says nothing about the trial
        reason = f"its run directory went away before it began: {error.strerror} ({error.filename})"
        channel.send({"done": rundir.result_to_json(Interrupted(reason, lost=True))})
        _leave(termination)
    outcome: Outcome | None = None
    try:
        outcome = _execute(job, Trial(job, channel), threads)
        termination.ignore()
    except Terminated:
        termination.ignore()
        _say("ended by SIGTERM")
    # A failure after SIGTERM is most often its consequence, so it is no verdict on the trial; a result is one.
    if outcome is not None and not (termination.seen and isinstance(outcome, Failed)):
        _deliver(job, channel, outcome)
    _leave(termination)


class _Termination:
    """Turns the first SIGTERM into `Terminated`, in this process and in no process that it forks."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGTERM, self._handle)
        os.register_at_fork(after_in_child=self._forget)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.seen:
            self.seen = True
            raise Terminated(128 + signum)

    def ignore(self) -> None:
        """From here on the result is being written, and SIGTERM has nothing left to ask for."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _forget(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def build_config(job: Job) -> tuple[DictConfig, dict[str, Any]]:
    """The `cfg` and the keyword arguments for the user's function: the trial's values merged in, then resolved.

    Interpolations in both see `params` as their root. `cfg` is in struct mode: reading or writing an unknown key is an error.

    Raises:
        omegaconf.errors.OmegaConfBaseException: An interpolation cannot be resolved.
    """
    couplings.register()
    _, kwargs = target_of(job.objective)
    cfg = OmegaConf.create({**job.params, _OBJECTIVE: kwargs})
    for path, value in job.values.items():
        _set(cfg, path, value)
    OmegaConf.resolve(cfg)
    resolved: dict[str, Any] = OmegaConf.to_container(cfg.pop(_OBJECTIVE))  # type: ignore[assignment]
    OmegaConf.set_struct(cfg, True)
    return cfg, resolved


def _set(cfg: DictConfig, path: str, value: JSONValue) -> None:
    # A parent that is an interpolation (`optim: ${presets.adam}`) becomes a copy: one new value must not hide the rest of it.
    parts = path.split(".")
    for count in range(1, len(parts)):
        parent = ".".join(parts[:count])
        node = OmegaConf.select(cfg, parent)
        owner = OmegaConf.select(cfg, ".".join(parts[: count - 1])) if count > 1 else cfg
        if OmegaConf.is_config(node) and OmegaConf.is_dict(owner) and OmegaConf.is_interpolation(owner, parts[count - 1]):
            OmegaConf.update(cfg, parent, OmegaConf.to_container(node), merge=False)
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)


def _execute(job: Job, trial: Trial, threads: int | None) -> Outcome:
    target, _ = target_of(job.objective)
    cwd = str(Path.cwd())
    if sys.path[:1] != [cwd]:
        sys.path.insert(0, cwd)
    try:
        function = locate(target)
    except Terminated:
        raise
    except ConfigError as error:
        return imports_no_more(str(error))
    except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
        _print_traceback(error)
        return imports_no_more(describe_import_error(target, error))
    _seed(job.seed, threads)
    try:
        cfg, kwargs = build_config(job)
        returned = _call(function, cfg, trial, kwargs)
        if returned is None and trial.should_stop():
            return Interrupted("stopped when asked")
        completed, left_out = as_result(returned, job.metrics)
    except Terminated:
        raise
    except ResultError as error:
        return _failed("value", str(error))
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, and that is a result
        return _judge_exception(error, trial)
    for line in left_out:
        _say(line)
    return completed


def _failed(kind: str, message: str, *causes: str) -> Failed:
    return Failed(kind, message, (kind, *causes))


def _call(function: Callable[..., object], cfg: DictConfig, trial: Trial, kwargs: Mapping[str, Any]) -> object:
    pid = os.getpid()
    try:
        return function(trial, **kwargs) if takes_trial_alone(function, kwargs) else function(cfg, trial, **kwargs)
    finally:
        if os.getpid() != pid:  # the objective forked, and this is the copy: only the original has a result
            flush_streams()
            os._exit(0)


def _judge_exception(error: BaseException, trial: Trial) -> Outcome:
    if any(cls.__name__ == "TrialPruned" for cls in type(error).__mro__):  # ours, and Optuna's without importing it
        return Pruned(trial.last_step)
    if isinstance(error, WorkerGoneError):
        return Interrupted(str(error), lost=True)
    if isinstance(error, SystemExit):
        if trial.should_stop():
            return Interrupted("stopped when asked")
        code = error.code if isinstance(error.code, int) else int(error.code is not None)  # as the interpreter does
        text = f"the objective called sys.exit({shown(error.code)}) instead of returning a result"
        return _failed("exit", text, f"exit:{code & 0xFF}")
    _print_traceback(error)
    out_of_memory = isinstance(error, MemoryError) or any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    return _failed("oom" if out_of_memory else "exception", describe_exception(error), *causes_of(error))


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


def _deliver(job: Job, channel: Channel, outcome: Outcome) -> None:
    try:
        rundir.write_result(job.run_dir, outcome)
    except OSError as error:
        _say(f"the result could not be written: {error}")
    try:
        # With the outcome in it: on a full disk this is the only copy.
        channel.send({"done": rundir.result_to_json(outcome)})
    except MessageTooLongError:
        channel.send({"done": None})


def _leave(termination: _Termination) -> NoReturn:
    """Ends the process as the interpreter would, without taking apart what the keeper loaded (that costs more than a fork)."""
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


def _open_streams() -> None:
    """Makes what is printed appear at once in the pipe to the log, which the keeper has put in place of stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the import may have closed it, or put an object of its own there
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(file=2)


def _seed(seed: int, threads: int | None) -> None:
    """Seeds ``random``, and numpy and torch if they are imported; gives torch its number of threads."""
    modules: Mapping[str, Any] = sys.modules
    random.seed(seed)
    if "numpy" in modules:
        modules["numpy"].random.seed(seed % 2**32)
    if "torch" in modules:
        modules["torch"].manual_seed(seed % 2**63)
        if threads is not None:
            modules["torch"].set_num_threads(threads)


def main() -> NoReturn:
    """``python -m orchestrator.runner.child SOCKET JOB KEEPER_PID THREADS``: a child in an interpreter of its own."""
    descriptor, job_path, keeper_pid, threads = sys.argv[1:]
    del sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    run(socket.socket(fileno=int(descriptor)), Path(job_path), int(keeper_pid), int(threads) or None)


if __name__ == "__main__":
    main()
