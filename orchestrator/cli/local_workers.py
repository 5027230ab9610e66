"""The worker processes that `launch` runs on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from orchestrator import config
from orchestrator.cli import screen
from orchestrator.cli.call import Call
from orchestrator.cli.serve import LAUNCHER_PID
from orchestrator.devices import usable_cores
from orchestrator.errors import OrchestratorError
from orchestrator.model import StudySpec, count_label

_RESTARTS: Final = 5
"""Consecutive failures of workers, while no trial is spent, after which the launch gives up."""
_PAUSE_S: Final = (0.2, 10.0)
"""First and longest pause before a dead worker is replaced.

It is doubled each time while no trial is spent.
"""


_NOTIFY: Final = "ORCHESTRATOR_NOTIFY_URL"


class LocalWorkers:
    """The workers of this launch: started on entry, replaced when they die, ended on exit."""

    def __init__(
        self, call: Call, spec: StudySpec, count: int, output: Path, view: screen.View
    ) -> None:
        overrides = _host_overrides(call, spec, count)
        self._command = [sys.executable, "-m", "orchestrator", "worker", *overrides]
        self._environment = {
            **os.environ,
            LAUNCHER_PID: str(os.getpid()),
            **_storage_environment(call),
            _NOTIFY: call.host.notify.url or "",
        }
        self._output = output
        self._view = view
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._errors = 0
        self._pause_s = _PAUSE_S[0]
        self._restart_at: dict[int, float] = {}
        self._spent = 0
        self._count = count
        self.ending = False

    def __enter__(self) -> LocalWorkers:
        for k in range(self._count):
            self._start(k)
        return self

    def announce(self) -> None:
        """Says how many there are, and where their logs are."""
        if self._count:
            started = count_label(self._count, "worker")
            self._view.say(f"{started} started; logs: {self._output}/worker-*.log")
        else:
            self._view.say(
                "worker.count=0: only following; trials run on the workers already running"
            )

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGTERM)
        for process in self._running.values():
            process.wait()

    def _start(self, k: int) -> None:
        with (self._output / f"worker-{k + 1}.log").open("ab") as log:
            # In a session of its own: Ctrl-C reaches the launch alone, which passes it on.
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._running[k] = process

    def signal(self, number: signal.Signals) -> None:
        """Sends `number` to all of them; after that, dead workers are not replaced."""
        self.ending = True
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(number)

    def replace_dead(self, spent: int) -> None:
        """Starts another worker for each that died.

        The pause before that grows as long as the study's count of `spent` trials stays the same.

        Raises:
            OrchestratorError: workers keep ending with an error; the last lines of a log say why.
        """
        if spent != self._spent:
            self._spent, self._errors, self._pause_s = spent, 0, _PAUSE_S[0]

        for k, process in list(self._running.items()):
            # Exit code 0: it ended by itself, as worker.max_trials requests.
            if process.poll() in (None, 0) or self.ending:
                continue
            if k not in self._restart_at:
                self._errors += process.returncode > 0
                if self._errors > _RESTARTS:
                    raise OrchestratorError(self._last_words(k))
                cause = _exit_label(process.returncode)
                self._view.say(f"worker {k + 1} ended with {cause}; starting another")
                self._restart_at[k] = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _PAUSE_S[1])
            elif time.monotonic() >= self._restart_at[k]:
                del self._restart_at[k]
                self._start(k)

    def _last_words(self, k: int) -> str:
        log = self._output / f"worker-{k + 1}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return "\n  ".join([f"the workers exit as soon as they start; {log} ends with", *lines])

    @property
    def pids(self) -> set[int]:
        """Of the processes started last, dead or alive."""
        return {process.pid for process in self._running.values()}

    @property
    def done(self) -> bool:
        """Whether there were workers and all of them ended by themselves, without an error."""
        return bool(self._running) and all(p.poll() == 0 for p in self._running.values())

    @property
    def all_gone(self) -> bool:
        """Whether every worker has ended."""
        return all(process.poll() is not None for process in self._running.values())


def _exit_label(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _host_overrides(call: Call, spec: StudySpec, count: int) -> list[str]:
    """This host's settings as overrides for the workers; never a URL that is a secret."""
    host = call.host
    worker = {key: value for key, value in asdict(host.worker).items() if key != "count"}
    health_file = host.worker.health_file
    worker["health_file"] = None if health_file is None else str(health_file)
    worker["studies"] = worker["studies"] or [spec.name]
    worker["threads"] = worker["threads"] or max(1, usable_cores() // max(1, count))

    settings = {
        **{f"worker.{key}": value for key, value in worker.items()},
        "paths.data": str(host.paths.data),
        "paths.runs": str(host.paths.runs),
        "paths.checkpoints": host.paths.checkpoints,
        "paths.artifacts": host.paths.artifacts,
        "notify.url_file": host.notify.url_file,
        "notify.form": host.notify.form,
    }
    overrides = [f"{key}={config.hydra_word(value)}" for key, value in settings.items()]
    overrides.append(f"storage={host.storage.kind}")
    if host.storage.kind == "embedded":
        overrides.append(f"storage.path={config.hydra_word(str(host.storage.path))}")
    return overrides


def _storage_environment(call: Call) -> dict[str, str]:
    """The database's URL for the workers; as an argument, every process list would show it."""
    storage = call.host.storage
    if storage.kind == "embedded" or storage.url is None:
        return {}
    environment = {"ORCHESTRATOR_STORAGE_URL": storage.url}
    if storage.password_file:
        environment["ORCHESTRATOR_STORAGE_PASSWORD_FILE"] = storage.password_file
    return environment
