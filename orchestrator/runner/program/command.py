"""Runs a program as the objective: starts it, reads its metrics, ends it with the trial.

`run` is called in the child like any user's function. The program stays in the child's process
group, so whatever ends the child (worker, keeper, time limit) also ends the program and everything
it started.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf

from orchestrator.config import hydra_word, program_words
from orchestrator.errors import ConfigError
from orchestrator.model import Failed, JSONValue, at
from orchestrator.program import FIELD, Program, read, written
from orchestrator.runner.child.trial import Trial, TrialPruned
from orchestrator.runner.program.metrics import Metrics, MetricsFile, Pump
from orchestrator.runner.protocol import rundir
from orchestrator.runner.protocol.channel import wait_readable
from orchestrator.runner.protocol.contract import Job
from orchestrator.runner.protocol.executable import search_path
from orchestrator.runner.protocol.target import causes_of, describe_exception
from orchestrator.runner.protocol.values import AttemptFailed, ResultError
from orchestrator.runner.system import linux, sources

_TICK_S: Final = 0.25  # how soon a stop request and changes of the metrics file are noticed
# Delay before SIGTERM: whoever signalled the worker may have signalled the program too, and a
# second SIGTERM would disturb its shutdown.
_ONCE_S: Final = 0.5
_LATE: Final = 1 / 60  # of `MOMENT_S`, that is 0.05 s; every successful trial waits this long
_STEP_S: Final = 0.005
_MAX_VARIABLE: Final = 100_000  # Linux allows 128 KiB per variable
# A shell reports the second for the first.
_SIGKILL_ENDS: Final = (-signal.SIGKILL, 128 + signal.SIGKILL)


def run(
    cfg: DictConfig,
    trial: Trial,
    *,
    command: Sequence[str],
    result: JSONValue,
    overrides: JSONValue,
    hydra: JSONValue,
) -> dict[str, float] | None:
    """Runs the program to its end and returns the metrics that it reported.

    None if it was asked to stop.

    Raises:
        TrialPruned: The pruner ended it.
        ResultError: It succeeded without reporting a result.
        AttemptFailed: It could not be started, or ended by a signal or with an exit code other than
            0.
    """
    job = trial._job
    program = read(
        {"command": list(command), "result": result, "overrides": overrides, "hydra": hydra}
    )
    metrics = Metrics(trial, job.metrics, program.result_of(job.metrics))
    return _ProgramRun(job, trial, metrics, program, OmegaConf.to_container(cfg)).run()


class _ProgramRun:
    """One run of the program, for one attempt."""

    def __init__(
        self, job: Job, trial: Trial, metrics: Metrics, program: Program, params: Any
    ) -> None:
        facts: dict[str, JSONValue] = {
            "trial.number": job.number,
            "trial.attempt": job.attempt,
            "trial.resumed": job.resumed,
            "trial.seed": job.seed,
            "trial.device": job.device,
            "trial.checkpoint_dir": str(job.checkpoint_dir),
            "trial.run_dir": str(job.run_dir),
            "study.name": job.study,
            "params_file": str(job.run_dir / "params.json"),
            "metrics_file": str(job.run_dir / "metrics.jsonl"),
        }
        self._grace_s = job.grace_s
        self._moment_s = job.moment_s
        self._trial = trial
        self._metrics = metrics
        self._stopping = False  # the program was asked to stop
        self._stop_at: float | None = None
        self._oom_kills = linux.oom_kills()

        metrics_file = Path(str(facts["metrics_file"]))
        rundir.move_aside(metrics_file)
        options = {path: job.values[path] for path in job.options}
        chosen = {path: job.values[path] for path in (*job.contents, *job.options)}
        _write_params(Path(str(facts["params_file"])), params, facts, chosen)
        words = _words(program, {**facts, **options}, params, options)
        words += _hydra_words(program, job)

        # Standard error is read only if a regex may match there; otherwise it goes straight to the
        # log.
        by_regex = "regex" in program.result if isinstance(program.result, Mapping) else False
        self._process = _start(words, _environment(facts, params, options), pipe_errors=by_regex)
        self._file = MetricsFile(metrics_file, metrics)
        self._pumps = [
            Pump(stream.fileno(), descriptor, take, b"" if by_regex else b"{")
            for stream, descriptor, take in (
                (self._process.stdout, 1, metrics.printed),
                (self._process.stderr, 2, metrics.searched),
            )
            if stream is not None
        ]
        self._end = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None

    def run(self) -> dict[str, float] | None:
        try:
            self._follow()
        except TrialPruned:
            self._ask_to_end()
            self._see_out()
            self._metrics.store_attributes()
            raise
        except SystemExit:  # from SIGTERM, which the whole group received, and so did the program
            self._see_out()
            raise
        self._metrics.store_attributes()
        if self._stopping:
            return None
        return self._judged(self._process.returncode)

    def _follow(self, until: float | None = None) -> None:
        """Handles the program's output until it ends, or until `until` (monotonic clock)."""
        while until is None or time.monotonic() < until:
            ended = self._process.poll() is not None
            if ended:
                self._metrics.asks = False  # it is complete: no need to ask the pruner
            for pump in self._pumps:
                (pump.finish if ended else pump.drain)()
            (self._file.finish if ended else self._file.read)()
            if ended:
                return
            if not self._stopping and until is None and self._trial.should_stop():
                self._stop()
            left = _TICK_S if until is None else min(_TICK_S, until - time.monotonic())
            end = [] if self._end is None else [self._end]
            wait_readable([*end, *(pump.source for pump in self._pumps if pump.open)], left)

    def _stop(self) -> None:
        """Asks the program to end, unless it received the same signal as this process."""
        now = time.monotonic()
        self._stop_at = now + _ONCE_S if self._stop_at is None else self._stop_at
        if self._trial._signalled(self._moment_s, signal.SIGTERM):
            self._stopping, self._metrics.asks = True, False
        elif now >= self._stop_at:
            self._stopping = True
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        """Sends SIGTERM to the process group: the program and what it started.

        This process ignores it.
        """
        self._metrics.asks = False
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)

    def _see_out(self) -> None:
        """Gives the program, which received SIGTERM, its grace, then kills it.

        The keeper kills what it started, once this process has ended.
        """
        self._metrics.asks = False
        self._follow(time.monotonic() + self._grace_s)
        self._process.kill()  # does nothing if it has ended
        self._process.wait()
        self._follow()

    def _judged(self, code: int) -> dict[str, float] | None:
        if code != 0:
            raise AttemptFailed(_failure(code, out_of_memory=linux.oom_kills() > self._oom_kills))
        # After a signal it may have ended early with exit code 0, and its last metrics are not a
        # result.
        if self._was_signalled(self._moment_s * _LATE) and self._trial._worker_ends(self._moment_s):
            return None
        return self._metrics.result()

    def _was_signalled(self, within_s: float) -> bool:
        """Whether this process was signalled recently, or is within `within_s` seconds.

        Whoever signals all processes may signal the program first.
        """
        give_up_at = time.monotonic() + within_s
        while not (signalled := self._trial._signalled(self._moment_s)):
            if time.monotonic() >= give_up_at:
                break
            time.sleep(_STEP_S)
        return signalled


def _failure(code: int, *, out_of_memory: bool) -> Failed:
    if out_of_memory and code in _SIGKILL_ENDS:
        text = "the kernel's out-of-memory killer killed the program: it used too much memory (RAM)"
        return Failed("oom", text, ("oom",))
    if code > 0:
        return Failed("exit", f"the program exited with code {code}", ("exit", f"exit:{code}"))
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"SIG{-code}"
    return Failed("signal", f"the program was killed by {name}", ("signal", f"signal:{name}"))


def _words(
    program: Program,
    facts: Mapping[str, JSONValue],
    params: Mapping[str, JSONValue],
    options: Mapping[str, JSONValue],
) -> list[str]:
    """The words to run, with placeholders replaced and overrides appended."""
    try:
        words = program.arguments(lambda name: facts[name] if name in facts else at(params, name))
        if not program.appends_overrides:
            return words
        # Options of config groups come before the values below them, which override them.
        return [
            *words,
            *(f"{path}={hydra_word(option)}" for path, option in options.items()),
            *program_words(params),
        ]
    except KeyError as error:
        raise ResultError(f"{FIELD}: this trial has no parameter {error}") from None
    except ConfigError as error:
        raise ResultError(str(error)) from None


def _hydra_words(program: Program, job: Job) -> list[str]:
    """A Hydra app's own output directory: by default, runs of the same second share one."""
    if not sources.hydra_app(program):
        return []
    settings = program.hydra_settings(
        str(job.run_dir / sources.HYDRA_DIRECTORY), job.number, f"{job.study}-{job.number}"
    )
    return [f"{key}={hydra_word(value)}" for key, value in settings.items()]


def _start(
    words: Sequence[str], env: Mapping[str, str], *, pipe_errors: bool
) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def tie() -> None:
        linux.die_with_parent(signal.SIGKILL, parent)

    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if pipe_errors else None,
            env=dict(env),
            preexec_fn=tie if sys.platform == "linux" else None,
        )
    except OSError as error:
        text = f"{FIELD}: {words[0]!r} could not be started: {describe_exception(error)}"
        raise AttemptFailed(Failed("exception", text, ("exception", *causes_of(error)))) from error


def _write_params(
    path: Path,
    params: Mapping[str, JSONValue],
    facts: Mapping[str, JSONValue],
    options: Mapping[str, JSONValue],
) -> None:
    """Writes everything that a program may want to know, as one JSON object."""
    trial = {
        name.partition(".")[2]: value for name, value in facts.items() if name.startswith("trial.")
    }
    study = {"name": facts["study.name"]}
    content = {
        "params": params,
        "options": options,
        "trial": trial,
        "study": study,
        "metrics_file": facts["metrics_file"],
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _environment(
    facts: Mapping[str, JSONValue],
    params: Mapping[str, JSONValue],
    options: Mapping[str, JSONValue],
) -> dict[str, str]:
    """This process's environment plus the facts and the parameters.

    Parameters whose variables would have the same name are left out.
    """
    # Otherwise Python programs buffer what they print into a pipe.
    env = {"PYTHONUNBUFFERED": "1", **os.environ, "PATH": search_path()}
    names: dict[str, list[str]] = {}
    for path, value in [*_leaves(params), *options.items()]:
        names.setdefault(_variable(f"param_{path}"), []).append(written(value))
    env |= {
        name: values[0]
        for name, values in names.items()
        if len(values) == 1 and len(values[0].encode()) <= _MAX_VARIABLE
    }
    return env | {_variable(name): written(value) for name, value in facts.items()}


def _variable(name: str) -> str:
    return f"ORCHESTRATOR_{re.sub('[^A-Z0-9]', '_', name.upper())}"


def _leaves(node: Mapping[str, JSONValue], above: str = "") -> list[tuple[str, JSONValue]]:
    leaves: list[tuple[str, JSONValue]] = []
    for key, value in node.items():
        leaves += (
            _leaves(value, f"{above}{key}.")
            if isinstance(value, Mapping) and value
            else [(f"{above}{key}", value)]
        )
    return leaves
