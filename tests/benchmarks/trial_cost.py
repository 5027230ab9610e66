"""What one trial costs in the database and on the processor, ours beside plain Optuna in the same
run, in JSON lines.

The objective does nothing; five parameters are searched. Each setting runs worker processes of ours
and then of plain Optuna (``study.optimize`` on ``RDBStorage`` with heartbeats) on one PostgreSQL,
with the same finished trials in the study beforehand.

- ``round_trips``: messages from client to server, as the server's log counts them, a trial;
- ``transactions``: by ``pg_stat_database``, a trial;
- ``worker_cpu_ms``, ``server_cpu_ms``: processor time of the worker with all its children, and of
  the server, a trial;
- ``per_s``: trials a second of all workers together, from when the last of them begins its first
  trial until the first of them begins its last;
- ``first_s``: from the start of a worker process to its first trial with all parameters, the median
  of the workers;
- ``joined_s``: of that, what follows once all is imported: ours from the worker's registration,
  plain from ``load_study`` on.

Counts and processor times are differences between a run of few trials and one of many, so that what
a worker costs once is not in them. Run as

    python tests/benchmarks/trial_cost.py --history 0 1000 10000 --workers 1 4 16
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from sqlalchemy.engine import make_url

from orchestrator.model import Budget, Completed, Searched, StudySpec
from orchestrator.search import Search
from orchestrator.settings import sampler_settings
from orchestrator.store import Store
from tests.support.invariants import query
from tests.support.own_server import OwnServer
from tests.support.studies import RUNNER, begun, end, take

ROOT = Path(__file__).parents[2]
MARK = "message|"
PLAIN = """
import os, sys, time, optuna
optuna.logging.set_verbosity(optuna.logging.WARNING)
url, name, sampler, trials, reports = sys.argv[1:]
storage = optuna.storages.RDBStorage(url, heartbeat_interval=10)
made = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler]()
ready = time.time()
study = optuna.load_study(study_name=name, storage=storage, sampler=made)
starts = []
def objective(trial):
    for name in "ab":
        trial.suggest_categorical(name, ["p", "q", "r"])
    total = sum(trial.suggest_float(name, 0.0, 1.0) for name in "xyz")
    starts.append(time.time())
    for step in range(int(reports)):
        trial.report(float(step), step)
    return total
study.optimize(objective, n_trials=int(trials))
print(ready, *starts)
"""


def spec(name: str, sampler: str) -> StudySpec:
    """No grid, two categorical and three float parameters, and a budget that is never spent."""
    floats = tuple(Searched(path, "float", 0.0, 1.0) for path in "xyz")
    words = tuple(Searched(path, "categorical", choices=("p", "q", "r")) for path in "ab")
    return StudySpec(
        name=name,
        directions=("minimize",),
        metrics=("value",),
        objective={"_target_": "tests.support.objectives.sum_of_xyz"},
        params=dict.fromkeys("ab", "p") | dict.fromkeys("xyz", 0.5),
        grid=(),
        search=words + floats,
        budget=Budget(trials=100_000, per_cell=1),
        sampler=sampler_settings(sampler),
        runner=RUNNER,
    )


def fill(store: Store, made: StudySpec, history: int) -> int:
    """Launches the study and gives it finished trials of random parameters; returns its id."""
    study = store.studies.launch(made).study_id
    search, lease, rng = Search(made), store.fleet.register(600), random.Random(0)
    for _ in range(history):
        claim = take(store, lease, study)
        assert claim is not None
        attempt = begun(store, claim, lease, search.ask({}, ticket=claim.ticket, retry=0))
        end(store, attempt, Completed((rng.random(),)))
    store.ledger.deregister(lease, "prepared")
    return study


def copy_to_plain(url: str, study: int, name: str) -> None:
    """Makes a study of plain Optuna with the same trials."""
    plain = make_url(url).set(drivername="postgresql").render_as_string()
    with (
        contextlib.closing(psycopg2.connect(plain)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        for statement in (*_COPY, "ANALYZE"):
            cursor.execute(statement, {"ours": study, "name": name})


@dataclass(frozen=True)
class Spent:
    """What a group of workers used; `starts` are when each one's trials began, seconds."""

    messages: int
    transactions: int
    worker_s: float
    server_s: float
    first_s: float
    joined_s: float
    starts: tuple[tuple[float, ...], ...]


class Bench:
    """One server, with one study of ours and one of plain Optuna for each setting."""

    def __init__(self, server: OwnServer, reports: int) -> None:
        self._server = server
        self._store = Store(server.url)
        self._reports = reports

    def prepare(self, history: int) -> str:
        """The name of a new study of ours with so many finished trials, and a plain twin."""
        name = f"cost-{history}"
        study = fill(self._store, self._spec(name, "random"), history)
        copy_to_plain(self._server.url, study, f"plain-{name}")
        self._store.rest()
        return name

    def compare(
        self, name: str, sampler: str, history: int, workers: int, trials: int, isolation: str
    ) -> None:
        """Prints one line for ours and one for plain Optuna, of a study with `history` trials and
        some more.
        """
        launched = replace(self._spec(name, sampler), runner=replace(RUNNER, isolation=isolation))
        self._store.studies.launch(launched)
        self._store.rest()
        for who in ("ours", "plain"):
            few, many = (self._run(who, name, sampler, workers, n) for n in (4, 4 + trials))
            more = workers * trials
            line = {
                "who": who,
                "isolation": isolation if who == "ours" else "none",
                "sampler": sampler,
                "history": history,
                "workers": workers,
                "reports": self._reports,
                "trials": more,
                "round_trips": round((many.messages - few.messages) / more, 1),
                "transactions": round((many.transactions - few.transactions) / more, 1),
                "worker_cpu_ms": round(1e3 * (many.worker_s - few.worker_s) / more, 1),
                "server_cpu_ms": round(1e3 * (many.server_s - few.server_s) / more, 1),
                "per_s": round(_rate(many.starts), 1),
                "first_s": round(many.first_s, 2),
                "joined_s": round(many.joined_s, 2),
            }
            print(json.dumps(line), flush=True)

    def _spec(self, name: str, sampler: str) -> StudySpec:
        made = spec(name, sampler)
        return replace(made, objective={**made.objective, "reports": self._reports})

    def _run(self, who: str, name: str, sampler: str, workers: int, trials: int) -> Spent:
        study = name if who == "ours" else f"plain-{name}"
        before = self._counters()
        started = time.time()
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
                command += [f"worker.studies=[{name}]", f"worker.max_trials={trials}"]
                env = {**os.environ, "ORCHESTRATOR_STORAGE_URL": self._server.worker_url}
            else:
                command = [sys.executable, "-c", PLAIN, self._server.worker_url, study, sampler]
                command += [str(trials), str(self._reports)]
                env = dict(os.environ)
            piped: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            running = [
                subprocess.Popen(command, env=env, cwd=ROOT, **piped) for _ in range(workers)
            ]
            used = [os.wait4(process.pid, 0) for process in running]
            printed = [process.communicate()[0] for process in running]
        if any(status for _, status, _ in used):
            raise RuntimeError(f"a worker of {study} failed")
        after = self._counters()
        if who == "ours":
            joined = query(
                self._server.url, _BEGAN, pids := [process.pid for process in running], pids
            )
            told = [(float(ready), [float(at) for at in at_all]) for ready, at_all in joined]
        else:
            told = [
                (float(line.split()[0]), [float(at) for at in line.split()[1:]]) for line in printed
            ]
        return Spent(
            messages=after[0] - before[0],
            transactions=after[1] - before[1],
            worker_s=sum(usage.ru_utime + usage.ru_stime for _, _, usage in used),
            server_s=after[2] - before[2],
            first_s=statistics.median(starts[0] for _, starts in told) - started,
            joined_s=statistics.median(starts[0] - ready for ready, starts in told),
            starts=tuple(tuple(starts) for _, starts in told),
        )

    def _counters(self) -> tuple[int, int, float]:
        """Messages, transactions and processor seconds of the server so far; what this call adds is
        the same each time.
        """
        while query(self._server.url, _OTHERS):
            time.sleep(0.05)
        ((transactions,),) = query(
            self._server.url,
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = "
            "current_database()",
        )
        messages = (
            (self._server.data / "server.log")
            .read_text(errors="replace")
            .count(f"{MARK}LOG:  statement:")
        )
        postmaster = psutil.Process(
            int((self._server.data / "postmaster.pid").read_text().split()[0])
        )
        times = [postmaster.cpu_times()]
        seconds = sum(t.user + t.system + t.children_user + t.children_system for t in times)
        for child in postmaster.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # this call's own connection, for one
                own = child.cpu_times()
                seconds += own.user + own.system
        return messages, int(transactions), seconds


_OTHERS = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> "
    "pg_backend_pid()"
)
_BEGAN = (
    "SELECT extract(epoch FROM w.started_at), array_agg(extract(epoch FROM a.started_at) ORDER "
    "BY a.started_at) FROM orchestrator.worker w JOIN orchestrator.attempt a USING (worker_id) "
    "WHERE w.pid = ANY(%s) GROUP BY w.worker_id ORDER BY w.worker_id DESC LIMIT cardinality(%s)"
)


def _rate(starts: Sequence[Sequence[float]]) -> float:
    """Trials a second while all workers work; nan if at no time all of them did."""
    since, until = max(own[0] for own in starts), min(own[-1] for own in starts)
    return (
        sum(since < at <= until for own in starts for at in own) / (until - since)
        if until > since
        else math.nan
    )


# The plain study is a copy of ours, so that both know the same.
_COPY = (
    "INSERT INTO studies (study_name) VALUES (%(name)s)",
    "INSERT INTO study_directions (study_id, direction, objective) "
    "SELECT study_id, 'MINIMIZE', 0 FROM studies WHERE study_name = %(name)s",
    "INSERT INTO trials (study_id, number, state, datetime_start, datetime_complete) SELECT "
    "s.study_id, t.number, t.state, t.datetime_start, t.datetime_complete FROM trials t, studies "
    "s WHERE t.study_id = %(ours)s AND s.study_name = %(name)s ORDER BY t.number",
    "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) SELECT "
    "n.trial_id, p.param_name, p.param_value, p.distribution_json FROM trials t JOIN "
    "trial_params p USING (trial_id) JOIN trials n ON n.number = t.number JOIN studies s ON "
    "s.study_id = n.study_id WHERE t.study_id = %(ours)s AND s.study_name = %(name)s",
    "INSERT INTO trial_values (trial_id, objective, value, value_type) SELECT n.trial_id, "
    "v.objective, v.value, v.value_type FROM trials t JOIN trial_values v USING (trial_id) JOIN "
    "trials n ON n.number = t.number JOIN studies s ON s.study_id = n.study_id WHERE t.study_id "
    "= %(ours)s AND s.study_name = %(name)s",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs every combination that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--history", type=int, nargs="+", default=[0, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--samplers", nargs="+", choices=["tpe", "random"], default=["tpe", "random"]
    )
    parser.add_argument("--isolation", nargs="+", choices=["trial", "worker"], default=["trial"])
    parser.add_argument("--trials", type=int, default=30, help="of each worker")
    parser.add_argument("--reports", type=int, default=0, help="of each trial")
    chosen: Any = parser.parse_args(arguments)
    # as an installation has them, whatever PYTHONDONTWRITEBYTECODE says
    for folder in ("orchestrator", "tests/support"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    settings = {"log_statement": "all", "log_line_prefix": MARK, "max_connections": 100}
    with OwnServer(**settings) as server:
        bench = Bench(server, chosen.reports)
        for history in chosen.history:
            name = bench.prepare(history)
            for sampler, workers, isolation in itertools.product(
                chosen.samplers, chosen.workers, chosen.isolation
            ):
                bench.compare(name, sampler, history, workers, chosen.trials, isolation)


if __name__ == "__main__":
    main()
