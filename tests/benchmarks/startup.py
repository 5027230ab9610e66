"""How long the command line takes to do what was typed, as ratios of two builds.

Processor time (user and system, children included) and time of short commands, and the time from
`launch` typed to the first trial running on a database that exists. Both builds run in turn, in
pairs, each on a database of its own on one server, with the same study. At the end `status` of a
study of ``--trials`` trials: its time and its memory. Prints Markdown tables of medians:

    git worktree add /tmp/before REVISION
    python -m tests.benchmarks.startup /tmp/before .
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psycopg2
from sqlalchemy.engine import make_url

from orchestrator.store import Store
from tests.support.large import complete
from tests.support.own_server import OwnServer
from tests.support.studies import spec

T = TypeVar("T")
OBJECTIVE = """
import os, time

def train(cfg, trial):
    with open(os.environ["BEGUN"], "a") as file:
        file.write(f"{time.time()}\\n")
    return cfg.x * cfg.a
"""
EXPERIMENT = """
# @package _global_
study: {name: short}
objective: {_target_: short.train}
params: {a: 1, x: 0.5}
grid: {a: [1, 2, 3]}
search: {x: "interval(0, 1)"}
budget: {trials: 6, per_cell: 2}
"""
LAUNCH = ("launch", "--config-dir=conf", "experiment=short", "hydra.run.dir=output")
COMMANDS = {
    "--version": ("--version",),
    "--help": ("--help",),
    "status": ("status",),
    "best": ("best",),
    "launch --dry-run": (*LAUNCH, "--dry-run"),
    "launch of a finished study": LAUNCH,
}
FIRST = "launch to the first trial"


@dataclass(frozen=True)
class Done:
    """A command that ended: its processor time, its time, s; the most memory it held, MiB."""

    cpu_s: float
    wall_s: float
    memory_mib: float


class Build:
    """A checkout, a database that it has prepared, and a directory to run commands in."""

    def __init__(self, checkout: Path, url: str, directory: Path) -> None:
        self.directory = directory
        self.begun = directory / "begun"
        (directory / "conf" / "experiment").mkdir(parents=True)
        (directory / "conf" / "experiment" / "short.yaml").write_text(EXPERIMENT.lstrip())
        (directory / "short.py").write_text(OBJECTIVE)
        self._environment = {
            # bytecode is kept, as an installation has it
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith("ORCHESTRATOR_") and k != "PYTHONDONTWRITEBYTECODE"
            },
            "ORCHESTRATOR_DATA_DIR": str(directory / "data"),
            "ORCHESTRATOR_STORAGE_URL": url,
            "PYTHONPATH": os.pathsep.join([str(checkout), str(directory)]),
            "BEGUN": str(self.begun),
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *words: str) -> Done:
        """Runs a command that must succeed."""
        began = time.perf_counter()
        process = self.start(*words)
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} in {self.directory}: {said.decode()}")
        wall_s = time.perf_counter() - began
        return Done(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss / 1024)

    def first_trial(self) -> float:
        """Seconds from a new study's launch to its first trial, in the objective."""
        self.begun.unlink(missing_ok=True)
        began = time.time()
        process = self.start(
            *LAUNCH, f"study.name=s{uuid.uuid4().hex[:8]}", "budget.trials=1", "grid.a=[1]"
        )
        while not (self.begun.exists() and self.begun.read_text().endswith("\n")):
            if process.poll() is not None:
                assert process.stdout is not None
                raise SystemExit(f"launch in {self.directory}: {process.stdout.read().decode()}")
            time.sleep(0.002)
        took = float(self.begun.read_text().split()[0]) - began
        process.communicate(timeout=60)
        return took


def table(title: str, rows: dict[str, tuple[list[float], list[float]]]) -> None:
    print(f"\n| {title} | before | now | ratio |\n|---|---|---|---|")
    for name, (before, now) in rows.items():
        # Of pairs: what else the machine does at a time slows both of one down.
        ratio = statistics.median(n / b for b, n in zip(before, now, strict=True))
        print(
            f"| {name} | {statistics.median(before):.2f} | {statistics.median(now):.2f}"
            f" | {ratio:.2f} |",
            flush=True,
        )


def run(build: Build, words: Sequence[str]) -> Done:
    return build.run(*words)


def in_pairs(
    builds: tuple[Build, Build], pairs: int, measure: Callable[[Build], T]
) -> tuple[list[T], list[T]]:
    """What `measure` returns for each build, in turn; the first pair, which fills caches, is left
    out.
    """
    found: tuple[list[T], list[T]] = ([], [])
    for k in range(pairs + 1):
        for build, values in zip(builds, found, strict=True):
            value = measure(build)
            if k:
                values.append(value)
    return found


def new_database(url: str, name: str) -> str:
    """The URL of a new, empty database on the server of `url`."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def large_study(server: OwnServer, build: Build, url: str, trials: int) -> None:
    store, cells = Store(url), 100
    study = spec(name="large", cells=cells, trials=trials, per_cell=trials // cells)
    store.studies.launch(study)
    complete(url, store.reads.find("large").study_id, 0, trials - 1)
    store.rest()
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    connection.cursor().execute("VACUUM ANALYZE")
    connection.close()
    done = [build.run("status", "study.name=large") for _ in range(5)]
    print(
        f"\nstatus of {trials:,} trials: {statistics.median(d.wall_s for d in done):.2f} s "
        f"({statistics.median(d.cpu_s for d in done):.2f} s of processor time), "
        f"{max(d.memory_mib for d in done):.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("now", type=Path, help="another one")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--trials", type=int, default=100_000, help="0: no large study")
    parser.add_argument("--only", default="", help="commands whose name holds this")
    options = parser.parse_args()
    chosen = [name for name in (*COMMANDS, FIRST) if options.only in name]
    if not chosen:
        parser.error(f"--only: no name holds that; they are {', '.join((*COMMANDS, FIRST))}")
    with OwnServer() as server, tempfile.TemporaryDirectory() as folder:
        urls = [new_database(server.url, name) for name in ("before", "now")]
        before, now = (
            Build(checkout.resolve(), url, Path(folder) / name)
            for checkout, url, name in zip(
                (options.before, options.now), urls, ("before", "now"), strict=True
            )
        )
        for build in (before, now):
            build.run("db", "upgrade")
            build.run(*LAUNCH)
        cpu, wall = {}, {}
        for name in chosen:
            if name != FIRST:
                measure = partial(run, words=COMMANDS[name])
                first, second = in_pairs((before, now), options.pairs, measure)
                cpu[name] = ([done.cpu_s for done in first], [done.cpu_s for done in second])
                wall[name] = ([done.wall_s for done in first], [done.wall_s for done in second])
        if FIRST in chosen:
            wall[FIRST] = in_pairs((before, now), options.pairs, Build.first_trial)
        if cpu:
            table("processor time, s", cpu)
        table("time, s", wall)
        if options.trials:
            large_study(server, now, urls[1], options.trials)


if __name__ == "__main__":
    main()
