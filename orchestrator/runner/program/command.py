"""Runs a program as the objective: starts it, passes on what it says about its metrics, and ends it
when it is to end.

`run` is a function like any user's, called in the child. The program stays in the child's process
group, so whatever ends the child (worker, keeper, time limit) ends the program and all it started.
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

_TICK_S: Final = 0.25  # how soon a stop and the metrics file are seen
# whoever told the worker may have told the program, and a second SIGTERM would disturb what it does
_ONCE_S: Final = 0.5
_LATE: Final = 1 / 60  # of `MOMENT_S`, so 0.05 s: each trial that ends well has to wait so long
_STEP_S: Final = 0.005
_MAX_VARIABLE: Final = 100_000  # Linux takes 128 KiB in one
# a shell puts the second in place of the first
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
    """Runs the program to its end and returns the metrics it reported; None when it was asked to
    stop.

    Raises:
        TrialPruned: The pruner ended it.
        ResultError: It ended well and said no result.
        AttemptFailed: It could not be started, or ended with an exit code other than 0 or by a
            signal.
    """
    job = trial._job
    program = read(
        {"command": list(command), "result": result, "overrides": overrides, "hydra": hydra}
    )
    metrics = Metrics(trial, job.metrics, program.result_of(job.metrics))
    return _Attempt(job, trial, metrics, program, OmegaConf.to_container(cfg)).run()


class _Attempt:
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
        self._stopping = False  # it was told
        self._stop_at: float | None = None
        self._oom_kills = linux.oom_kills()
        metrics_file = Path(str(facts["metrics_file"]))
        rundir.move_aside(metrics_file)
        options = {path: job.values[path] for path in job.options}
        chosen = {path: job.values[path] for path in (*job.contents, *job.options)}
        _write_params(Path(str(facts["params_file"])), params, facts, chosen)
        words = _words(program, {**facts, **options}, params, options)
        words += _hydra_words(program, job)
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
        except SystemExit:  # SIGTERM, to the program as well: it was sent to the group
            self._see_out()
            raise
        self._metrics.store_attributes()
        if self._stopping:
            return None
        return self._judged(self._process.returncode)

    def _follow(self, until: float | None = None) -> None:
        """Serves the program until it has ended, or the monotonic clock says `until`."""
        while until is None or time.monotonic() < until:
            ended = self._process.poll() is not None
            if ended:
                self._metrics.asks = False  # it is complete, whatever the pruner would say
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
        """Tells the program to end, unless it was told together with this process."""
        now = time.monotonic()
        self._stop_at = now + _ONCE_S if self._stop_at is None else self._stop_at
        if self._trial._signalled(self._moment_s, signal.SIGTERM):
            self._stopping, self._metrics.asks = True, False
        elif now >= self._stop_at:
            self._stopping = True
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        """Sends SIGTERM to the program and what it started; this process, of the same group, has
        nothing left to be asked.
        """
        self._metrics.asks = False
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)

    def _see_out(self) -> None:
        """Leaves the program, which got SIGTERM, its grace. What it started is killed by the keeper
        after this process.
        """
        self._metrics.asks = False
        self._follow(time.monotonic() + self._grace_s)
        self._process.kill()  # of one that has ended it does nothing
        self._process.wait()
        self._follow()

    def _judged(self, code: int) -> dict[str, float] | None:
        if code != 0:
            raise AttemptFailed(_failure(code, out_of_memory=linux.oom_kills() > self._oom_kills))
        # Told to end it may have said all that it had, and that is no result.
        if self._struck(self._moment_s * _LATE) and self._trial._worker_ends(self._moment_s):
            return None
        return self._metrics.result()

    def _struck(self, within_s: float) -> bool:
        """Whether a signal came lately, or comes within that time: whoever signals all processes
        may begin with the program.
        """
        give_up_at = time.monotonic() + within_s
        while (
            not (struck := self._trial._signalled(self._moment_s)) and time.monotonic() < give_up_at
        ):
            time.sleep(_STEP_S)
        return struck


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
    known: Mapping[str, JSONValue],
    params: Mapping[str, JSONValue],
    options: Mapping[str, JSONValue],
) -> list[str]:
    try:
        words = program.arguments(lambda name: known[name] if name in known else at(params, name))
        if not program.appends_overrides:
            return words
        # The option is chosen first, then what is below it gets its value.
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
    """What gives an app of Hydra's an output directory of its own: by its default, attempts of one
    second share one.
    """
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
    """Writes all that a program may want to know, as one JSON object."""
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
    """This process's environment, with the facts and the parameters; two parameters of one name are
    left out.
    """
    # Python would hold back what it prints into a pipe.
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
