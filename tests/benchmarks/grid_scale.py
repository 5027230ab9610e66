"""Grids of 1,000 to 100,000 cells: what a launch, a trial at either end and the reports cost; plain
Optuna's queue beside it.

Ours: seconds of `Studies.launch` and of launching again, the memory that the process took for it,
milliseconds of claim, create and finish at the first cells, in the middle and at the last ones
(those between are completed by SQL, then vacuumed as autovacuum would), `status`'s read, the best
trial, and doctor. Plain Optuna: `enqueue_trial` for every cell of a much smaller grid
(``--optuna-cells``; it takes minutes for more) on the same server, and `ask` with that queue. A
line of JSON a figure:

    python tests/benchmarks/grid_scale.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import optuna

from orchestrator.store import Store, WorkerLease
from tests.support.large import complete, vacuum
from tests.support.own_server import OwnServer
from tests.support.studies import begun, end, spec, take

TRIALS = 25
"""So many are timed at each place; the median is shown."""


def launch(url: str, cells: int, told: Any) -> None:
    """Launches twice in this process, fresh; sends the seconds of both and the memory that came on
    top, MiB.
    """
    store, study = Store(url), spec(cells=cells, trials=cells + 10)
    store.reads.studies()  # connected, and everything imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = timed(lambda: store.studies.launch(study))
    again = timed(lambda: store.studies.launch(study))
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    store.rest()
    told.put((first, again, taken))


def ours(server: OwnServer, cells: int) -> None:
    """All lines of one grid."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=launch, args=(server.url, cells, told))
    process.start()
    first, again, taken = told.get()
    process.join()
    line(
        cells, launch_s=round(first, 2), again_s=round(again, 3), client_memory_mib=round(taken, 1)
    )
    store = Store(server.url)
    study_id = store.reads.find("study").study_id
    lease = store.fleet.register(3600)
    done = 0
    for place, start in (("first", 0), ("middle", cells // 2), ("last", cells - TRIALS)):
        if start > done:
            complete(server.url, study_id, done, start - 1)
            vacuum(server.url)
        line(cells, place=place, **trials(store, lease, study_id))
        done = start + TRIALS
    row = store.reads.find("study")
    line(
        cells,
        progress_s=round(timed(lambda: store.reads.progress(row, maximize=True, most=30)), 2),
        every_cell_s=round(timed(lambda: store.reads.progress(row, maximize=True)), 2),
        best_s=round(timed(lambda: store.reads.contenders(study_id, ("maximize",))), 2),
        doctor_s=round(timed(store.doctor.examine), 1),
        findings=len(store.doctor.examine().findings),
    )
    store.rest()


def trials(store: Store, lease: WorkerLease, study_id: int) -> dict[str, float]:
    """Median milliseconds of the next trials."""
    took: dict[str, list[float]] = {"claim_ms": [], "create_ms": [], "finish_ms": []}
    for _ in range(TRIALS):
        began = time.monotonic()
        claim = take(store, lease, study_id)
        assert claim is not None
        claimed = time.monotonic()
        attempt = begun(store, claim, lease)
        created = time.monotonic()
        end(store, attempt)
        for name, seconds in zip(
            took, (claimed - began, created - claimed, time.monotonic() - created), strict=True
        ):
            took[name].append(1000 * seconds)
    return {name: round(statistics.median(values), 1) for name, values in took.items()}


def plain(server: OwnServer, cells: int) -> None:
    """Plain Optuna: the cells as a queue of trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="plain", storage=server.url, sampler=optuna.samplers.RandomSampler()
    )

    def queue() -> None:
        for k in range(cells):
            study.enqueue_trial({"a": k})

    took = timed(queue)

    def one() -> None:
        trial = study.ask()
        trial.suggest_int("a", 0, cells)
        trial.suggest_float("x", 0.0, 1.0)
        study.tell(trial, 1.0)

    asked = [1000 * timed(one) for _ in range(TRIALS)]
    line(
        cells,
        optuna_enqueue_s=round(took, 1),
        enqueue_ms_a_cell=round(1000 * took / cells, 1),
        ask_and_tell_ms=round(statistics.median(asked), 1),
    )


def timed(do: Callable[[], object]) -> float:
    """Seconds."""
    began = time.monotonic()
    do()
    return time.monotonic() - began


def line(cells: int, **figures: object) -> None:
    print(json.dumps({"cells": cells, **figures, "load": round(os.getloadavg()[0], 1)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--optuna-cells", type=int, default=300)
    args = parser.parse_args()
    for cells in args.cells:
        with OwnServer(fsync="on") as server:
            ours(server, cells)
    with OwnServer(fsync="on") as server:
        plain(server, args.optuna_cells)


if __name__ == "__main__":
    main()
