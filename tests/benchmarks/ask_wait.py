"""How long workers wait for one another when they ask for trials at once, beside the suggestion
itself; a JSON line a setting.

Whole workers on a PostgreSQL of their own, with finished trials in the study beforehand; every
trial takes the same time, so that all of them ask in the same moment. Shown are how often a sampler
was asked for a trial, milliseconds for one suggestion, and those that giving a trial its parameters
took besides (round trips, learning what others created, waiting for the lock). Run as

    OMP_NUM_THREADS=1 python tests/benchmarks/ask_wait.py --samplers gp tpe --workers 8 --history
    200
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli import main as command_line
from orchestrator.model import Searched, StudySpec
from orchestrator.settings import sampler_settings
from orchestrator.store import Store, Ticket
from orchestrator.worker.claiming import Claiming
from orchestrator.worker.studies import Served
from tests.benchmarks.trial_cost import fill, spec
from tests.support.own_server import OwnServer

ROOT = Path(__file__).parents[2]


class Watch:
    """Notes how long a worker's suggestions and creations take, seconds, and how often it asked for
    each trial.
    """

    def __init__(self) -> None:
        self.suggested_s: list[float] = []
        self.rows: list[dict[str, Any]] = []

    def install(self) -> None:
        """Puts itself round the methods that are measured, in this process."""
        suggest, create = Served.suggest, Claiming._create

        @functools.wraps(suggest)
        def watched_suggest(*arguments: Any) -> Any:
            since = time.monotonic()
            suggestion = suggest(*arguments)
            self.suggested_s.append(time.monotonic() - since)
            return suggestion

        @functools.wraps(create)
        def watched_create(claiming: Claiming, ticket: Ticket, *, start: bool) -> Any:
            self.suggested_s.clear()
            since = time.monotonic()
            created = create(claiming, ticket, start=start)
            took = time.monotonic() - since
            self.rows.append(
                {
                    "asks": len(self.suggested_s),
                    "suggested_s": sum(self.suggested_s),
                    "took_s": took,
                }
            )
            return created

        Served.suggest = watched_suggest  # type: ignore[method-assign,assignment]
        Claiming._create = watched_create  # type: ignore[method-assign,assignment]


def measure(
    server: OwnServer, sampler: str, workers: int, history: int, trials: int, seconds: float
) -> dict[str, Any]:
    """One line."""
    store, name = Store(server.url), f"{sampler}-{workers}-{history}"
    objective = {"_target_": "tests.support.timed.objective", "seconds": seconds}
    floats = tuple(Searched(path, "float", 0.0, 1.0) for path in "xyz")
    made = StudySpec(
        **{
            **spec(name, "random").__dict__,
            "objective": objective,
            "search": floats,
            "params": dict.fromkeys("xyz", 0.5),
        }
    )
    fill(store, made, history)
    store.studies.launch(StudySpec(**{**made.__dict__, "sampler": sampler_settings(sampler)}))
    store.rest()
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            __file__,
            "--watched",
            "worker",
            "storage=postgres",
            f"paths.data={scratch}",
        ]
        command += [f"worker.studies=[{name}]", f"worker.max_trials={trials}"]
        env = {**os.environ, "ORCHESTRATOR_STORAGE_URL": server.worker_url, "PYTHONPATH": str(ROOT)}
        started = [
            subprocess.Popen(
                command,
                env=env,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(workers)
        ]
        said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a worker of {name} failed")
    # the first one connects and imports
    rows = [row for text in said for row in json.loads(text.splitlines()[-1])[1:]]
    once = sorted(1e3 * row["suggested_s"] / row["asks"] for row in rows)
    waited = sorted(1e3 * (row["took_s"] - row["suggested_s"]) for row in rows)
    return {
        "sampler": sampler,
        "workers": workers,
        "history": history,
        "seconds": seconds,
        "trials": len(rows),
        "asks": round(statistics.mean(row["asks"] for row in rows), 2),
        "asked_thrice": sum(row["asks"] > 2 for row in rows),
        "suggestion_ms": {
            "median": round(statistics.median(once), 1),
            "p95": round(once[int(0.95 * len(once))], 1),
        },
        "besides_ms": {
            "median": round(statistics.median(waited), 1),
            "p95": round(waited[int(0.95 * len(waited))], 1),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every combination that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", choices=["tpe", "gp"], default=["gp", "tpe"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--history", type=int, nargs="+", default=[200])
    parser.add_argument("--trials", type=int, default=20, help="of each worker")
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = parser.parse_args(arguments)
    with OwnServer(max_connections=100) as server:
        for sampler, workers, history in itertools.product(
            chosen.samplers, chosen.workers, chosen.history
        ):
            line = measure(server, sampler, workers, history, chosen.trials, chosen.seconds)
            print(json.dumps(line), flush=True)


def watched(arguments: Sequence[str]) -> int:
    """The command line of `orchestrator`, watched; prints what was noted."""
    watch = Watch()
    watch.install()
    code = command_line(list(arguments))
    print(json.dumps(watch.rows), flush=True)
    return int(code or 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        sys.exit(watched(sys.argv[2:]))
    main()
