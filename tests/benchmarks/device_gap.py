"""How long a device idles between two trials, from the last line of one objective to the first of
the next, in JSON lines.

Whole workers on a PostgreSQL of their own, with finished trials in the study beforehand; the
objective imports torch and takes ``--seconds``. In the same run plain Optuna: ``study.optimize``
with the sampler of the same name in one process a worker, on the same database with the same
trials. Shown are median and 95th percentile of the gaps in milliseconds, and the share of a
worker's time, from its first trial's start to its last one's end, that was spent in user code.
``wakes_late_ms`` tells what the machine itself adds: how late a process that sleeps was woken
meanwhile, at the 95th percentile. On a virtual machine that may be tens of milliseconds, for a
processor that idles is given back late; ``--awake`` keeps them busy with loops of the lowest
priority, which give way at once to whatever else wants to run. Run as

    python tests/benchmarks/device_gap.py --samplers gp --history 200 --seconds 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna

from orchestrator.model import StudySpec
from orchestrator.settings import sampler_settings
from orchestrator.store import Store
from tests.benchmarks.trial_cost import copy_to_plain, fill, spec
from tests.support.invariants import query
from tests.support.own_server import OwnServer
from tests.support.studies import RUNNER

ROOT = Path(__file__).parents[2]
PLAIN = """
import sys, types, optuna
from tests.support.timed import objective
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, name, sampler, trials, seconds = sys.argv[1:]
kinds = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
made = getattr(optuna.samplers, kinds[sampler])()
study = optuna.load_study(study_name=name, storage=optuna.storages.RDBStorage(url), sampler=made)
def run(trial):
    for name in "ab":
        trial.suggest_categorical(name, ["p", "q", "r"])
    cfg = types.SimpleNamespace(**{name: trial.suggest_float(name, 0.0, 1.0) for name in "xyz"})
    told = objective(cfg, trial, float(seconds))
    for key in ("began", "ended"):
        trial.set_user_attr(key, told[key])
    trial.set_user_attr("worker", __import__("os").getpid())
    return told["value"]
study.optimize(run, n_trials=int(trials))
"""


class Bench:
    """One server, with one study of ours and one of plain Optuna for each setting."""

    def __init__(self, server: OwnServer, seconds: float, trials: int, workers: int) -> None:
        self._server = server
        self._store = Store(server.url)
        self._seconds = seconds
        self._trials = trials
        self._workers = workers

    def study(self, sampler: str, history: int, isolation: str) -> str:
        """The name of a new study with `history` finished trials, and a plain twin."""
        name = f"{sampler}-{history}-{isolation}-{time.monotonic_ns()}"
        objective = {"_target_": "tests.support.timed.objective", "seconds": self._seconds}
        made = StudySpec(**{**spec(name, "random").__dict__, "objective": objective})
        study = fill(self._store, made, history)
        copy_to_plain(self._server.url, study, f"plain-{name}")
        runner = replace(RUNNER, isolation=isolation)
        self._store.studies.launch(
            StudySpec(**{**made.__dict__, "sampler": sampler_settings(sampler), "runner": runner})
        )
        self._store.rest()
        return name

    def show(self, who: str, name: str, settings: dict[str, Any]) -> None:
        """Runs the workers and prints their line."""
        study = name if who == "ours" else f"plain-{name}"
        with tempfile.TemporaryDirectory() as scratch:
            if who == "ours":
                command = [
                    sys.executable,
                    "-m",
                    "orchestrator",
                    "worker",
                    "storage=postgres",
                    f"paths.data={scratch}",
                ]
                command += [f"worker.studies=[{name}]", f"worker.max_trials={self._trials}"]
                command += [f"worker.prefetch={settings['prefetch']}"]
                env = {**os.environ, "ORCHESTRATOR_STORAGE_URL": self._server.worker_url}
            else:
                command = [
                    sys.executable,
                    "-c",
                    PLAIN,
                    self._server.worker_url,
                    study,
                    settings["sampler"],
                ]
                command += [str(self._trials), str(self._seconds)]
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running = [
                subprocess.Popen(command, env=env, cwd=ROOT, **quiet) for _ in range(self._workers)
            ]
            late_ms = []
            while any(process.poll() is None for process in running):
                due = time.monotonic() + 0.02
                time.sleep(0.02)
                late_ms.append((time.monotonic() - due) * 1e3)
            codes = [process.wait() for process in running]
            if any(codes):
                raise RuntimeError(f"a worker of {study} failed")
        gaps, shares = [], []
        for spans in self._spans(study, ours=who == "ours"):
            gaps += [(after[0] - before[1]) / 1e6 for before, after in pairwise(spans)]
            shares.append(
                sum(ended - began for began, ended in spans) / (spans[-1][1] - spans[0][0])
            )
        line = {
            "who": who,
            **settings,
            "seconds": self._seconds,
            "workers": self._workers,
            "gaps": len(gaps),
        }
        line |= {
            "median_ms": round(statistics.median(gaps), 1),
            "p95_ms": round(statistics.quantiles(gaps, n=20)[-1], 1),
        }
        line |= {
            "busy": round(statistics.mean(shares), 4),
            "wakes_late_ms": round(statistics.quantiles(late_ms, n=20)[-1], 1),
        }
        print(json.dumps(line), flush=True)

    def _spans(self, study: str, *, ours: bool) -> list[list[tuple[int, int]]]:
        """Start and end of the user code of each worker's trials, monotonic
        nanoseconds, in order.
        """
        storage = optuna.storages.RDBStorage(self._server.url)
        trials = optuna.load_study(study_name=study, storage=storage).trials
        storage.engine.dispose()
        of: dict[object, list[tuple[int, int]]] = {}
        workers = self._workers_of(study) if ours else {}
        for trial in trials:
            if "ended" in trial.user_attrs:
                worker = workers.get(trial.number) if ours else trial.user_attrs["worker"]
                of.setdefault(worker, []).append(
                    (int(trial.user_attrs["began"]), int(trial.user_attrs["ended"]))
                )
        return [sorted(spans) for spans in of.values()]

    def _workers_of(self, study: str) -> dict[int, int]:
        statement = (
            "SELECT t.number, a.worker_id FROM orchestrator.attempt a JOIN orchestrator.trial t "
            "USING (trial_id)"
        )
        return dict(
            query(
                self._server.url,
                f"{statement} JOIN studies s USING (study_id) WHERE s.study_name = %s",
                study,
            )
        )


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Within this block no processor idles."""
    spin = (
        "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        f"while os.getppid() == {os.getpid()}:\n    for _ in range(1_000_000): pass"
    )
    spinning = [subprocess.Popen([sys.executable, "-c", spin]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every combination that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", choices=["tpe", "gp", "random"], default=["gp"])
    parser.add_argument("--history", type=int, nargs="+", default=[200])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--trials", type=int, default=30, help="of each worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--awake", action="store_true", help="let no processor idle")
    chosen: Any = parser.parse_args(arguments)
    with (
        OwnServer(max_connections=100) as server,
        awake() if chosen.awake else contextlib.nullcontext(),
    ):
        bench = Bench(server, chosen.seconds, chosen.trials, chosen.workers)
        for sampler in chosen.samplers:
            for history in chosen.history:
                known = {"sampler": sampler, "history": history}
                for isolation, prefetch in (("trial", 1), ("trial", 0), ("worker", 1)):
                    name = bench.study(sampler, history, isolation)
                    bench.show(
                        "ours", name, {**known, "isolation": isolation, "prefetch": prefetch}
                    )
                bench.show("plain", name, known)


if __name__ == "__main__":
    main()
