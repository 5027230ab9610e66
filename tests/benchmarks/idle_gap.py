"""Milliseconds in which a device waits for the runner between two trials, without a database.

A small objective (it imports torch) notes the time at its first and last line, and the trials run
one after the other through `Runner`, whose owner does nothing between them. Shown are median and
95th percentile of

- ``end``: from the objective's last line to the outcome in the worker's hands: its process is gone
  by then, or, with ``isolation=worker``, free for the next trial,
- ``start``: from `Runner.start` to the objective's first line,
- ``idle``: from the last line of one trial to the first line of the next.

One line of JSON a way to run, figures without the first trial, which has to wait for imports. Run
as

    python tests/benchmarks/idle_gap.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.model import Completed
from orchestrator.runner import Job, Runner, attempt_dir

ROOT = Path(__file__).parents[2]
WAYS = (("trial", "forkserver"), ("trial", "spawn"), ("worker", "forkserver"), ("worker", "spawn"))


def train(cfg: Any, trial: Any, work_s: float) -> dict[str, Any]:
    """Does `work_s` seconds of a training's work; returns when it began and ended, by the clock
    that all processes share.
    """
    entered = time.monotonic_ns()
    weights = torch.zeros(64, 64)
    while time.monotonic_ns() < entered + work_s * 1e9:
        weights = torch.tanh(weights @ weights + cfg.optim.lr)
        time.sleep(0.001)
    return {
        "score": float(weights.sum()),
        "entered": str(entered),
        "left": str(time.monotonic_ns()),
    }


def gaps(isolation: str, start: str, trials: int, work_s: float) -> dict[str, list[float]]:
    """Milliseconds of each gap, the first trial's left out."""
    objective = {"_target_": "tests.benchmarks.idle_gap.train", "work_s": work_s}
    found: dict[str, list[float]] = {"end": [], "start": [], "idle": []}
    with tempfile.TemporaryDirectory() as runs:
        runner = Runner(objective, isolation=isolation, start=start, threads=1, cwd=ROOT)
        try:
            runner.check()
            before = None
            for number in range(trials + 1):
                run_dir = attempt_dir(Path(runs), "gaps", number, 1)
                job = Job(
                    study="gaps",
                    number=number,
                    attempt=1,
                    seed=number,
                    device="cpu",
                    params={
                        "optim": {"lr": 0.1, "wd": "${.lr}"},
                        "data": {"batch_size": 64},
                        "model": {"width": 128},
                    },
                    values={"optim.lr": 0.01, "data.batch_size": 32},
                    objective=objective,
                    metrics=("score",),
                    directions=("minimize",),
                    run_dir=run_dir,
                    checkpoint_dir=run_dir / "checkpoints",
                    resumed=False,
                )
                begun = time.monotonic_ns()
                running = runner.start(job)
                while running.outcome is None:
                    running.poll(1.0)
                ended = time.monotonic_ns()
                if not isinstance(running.outcome, Completed):
                    raise SystemExit(f"trial {number}: {running.outcome}")
                entered, left = (
                    int(str(running.outcome.attrs[name])) for name in ("entered", "left")
                )
                if before is not None:
                    found["end"].append((ended - left) / 1e6)
                    found["start"].append((entered - begun) / 1e6)
                    found["idle"].append((entered - before) / 1e6)
                before = left
        finally:
            runner.close()
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"median": round(statistics.median(ordered), 2), "p95": round(p95, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--work-ms", type=float, default=100.0, help="how long a trial trains")
    parser.add_argument(
        "--spawn-work-ms",
        type=float,
        default=4000.0,
        help="the same where a fresh interpreter is to get ready",
    )
    parser.add_argument("--spawn-trials", type=int, default=15)
    parser.add_argument("--isolation", choices=("trial", "worker"))
    parser.add_argument("--start", choices=("forkserver", "spawn"))
    chosen = parser.parse_args()
    for isolation, start in WAYS:
        if chosen.isolation in (None, isolation) and chosen.start in (None, start):
            slow = start == "spawn" and isolation == "trial"
            trials, work = (
                (chosen.spawn_trials, chosen.spawn_work_ms)
                if slow
                else (chosen.trials, chosen.work_ms)
            )
            found = gaps(isolation, start, trials, work / 1000)
            line = {"isolation": isolation, "start": start, "trials": trials, "work_ms": work}
            print(
                json.dumps(
                    {**line, **{f"{name}_ms": summary(values) for name, values in found.items()}}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
