"""Hundreds of simulated workers on one PostgreSQL with ``max_connections=100``: where the curve
bends, and what it costs.

A simulated worker is a thread that does all a worker asks of the database, by the program's own
code: registers, holds a slot, sweeps, looks for results that were left, claims, learns the news,
creates the trial with a random suggestion, reports once in the middle, renews its lease at each
heartbeat, finishes. Nothing is trained: it waits as long as a trial takes. Eight of them share a
host name, as on a machine of eight GPUs. A line of JSON a run; times in milliseconds, processor
time per trial. At the end `orchestrator doctor`'s invariants are checked, and that as many trials
are complete as the workers finished.

    python tests/benchmarks/soak.py --workers 50 100 200 500 1000 --through direct pooler
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import psutil
import psycopg2

from orchestrator.config import WorkerConfig
from orchestrator.errors import LeaseLostError, StoreUnavailableError
from orchestrator.model import Completed, Report
from orchestrator.store import Attempt, Place, SlotOffer, Store, Ticket
from orchestrator.store.ledger import fleet
from orchestrator.worker.contact import Contact
from orchestrator.worker.shutdown import Drain, Draining
from tests.support.own_server import OwnServer
from tests.support.pooler import Pooler, installed
from tests.support.studies import spec, suggestion
from tests.support.waiting import wait_until

T = TypeVar("T")

A_HOST = 8
LEFT_EVERY_S = 1.0
_here = threading.local()


class Simulated:
    """One worker: all that `Worker` asks of the database, without a child process."""

    def __init__(
        self, url: str, who: int, study_id: int, trial_s: float, settings: WorkerConfig
    ) -> None:
        self._store = Store(url)
        self._who = who
        self._study_id = study_id
        self._trial_s = trial_s
        self._settings = settings
        self._place = Place(f"host-{who // A_HOST}", "/nowhere")
        self._dice = random.Random(who)
        self._cursor = 0
        self._next_left = 0.0
        self.draining = Draining()
        self._contact = Contact(self._store, settings, self.draining)
        self.took: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()
        self.finished = 0

    def run(self) -> None:
        """Runs trials until it is told to end."""
        _here.scope = self._place.host
        self._contact.wait(self._dice.uniform(0, self._trial_s))
        while self.draining.how == Drain.NO:
            try:
                self._serve()
            except LeaseLostError:  # evicted: it could not renew in time
                self.errors["evicted"] += 1
        self._store.rest()

    def _serve(self) -> None:
        self._lease = self._insist(
            "register", lambda: self._store.fleet.register(self._settings.lease_ttl_s)
        )
        self._contact.hold(self._lease)
        offer = SlotOffer(self._place.host, f"GPU-{self._who}", 0, "GPU")
        self._insist("slot", lambda: self._store.fleet.claim_slot(self._lease, [offer]))
        while self.draining.how == Drain.NO:
            began = time.monotonic()
            claim = self._insist("look", self._look)
            if claim is None:
                self._contact.wait(self._settings.poll_s)
                continue
            attempt = self._insist("create", partial(self._create, claim))
            self._note("gap", began)
            self._train(attempt)
            ended = Completed((self._dice.random(),))
            self._insist("finish", partial(self._store.ledger.finish, attempt, ended, Report()))
            self.finished += 1
        self._insist(
            "deregister", lambda: self._store.ledger.deregister(self._lease, "ended in order")
        )

    def _look(self) -> Ticket | None:
        self._contact.sweep()
        if time.monotonic() >= self._next_left:
            self._next_left = time.monotonic() + LEFT_EVERY_S
            self._store.ledger.left_at(self._place)
        for row in self._store.reads.studies(active_only=True):
            began = time.monotonic()
            claim = self._store.ledger.claim_one(self._lease, row.study_id, self._place)
            self._note("claim", began)
            assert claim is None or isinstance(claim, Ticket)
            if claim is not None:
                return claim
        return None

    def _create(self, claim: Ticket) -> Attempt:
        _, self._cursor = self._store.news.since(self._study_id, self._cursor)
        created = self._store.ledger.create(
            claim, suggestion(claim, self._dice.random()), self._lease, self._place
        )
        assert isinstance(created, Attempt)
        return created

    def _train(self, attempt: Attempt) -> None:
        length = self._trial_s * self._dice.uniform(0.5, 1.5)
        self._contact.wait(length / 2)
        self._insist(
            "report",
            lambda: self._store.ledger.report(attempt, Report({0: self._dice.random()}, {})),
        )
        if self.draining.how == Drain.NO:
            self._contact.wait(length / 2)

    def _finish(self, attempt: Attempt) -> None:
        self._store.ledger.finish(attempt, Completed((self._dice.random(),)), Report())

    def _insist(self, step: str, do: Callable[[], T]) -> T:
        """The step until it works, as the worker does it; its time includes what it waited for."""

        def once() -> T:
            try:
                return do()
            except StoreUnavailableError as error:
                self.errors[str(error).rpartition(": ")[2][:60]] += 1
                raise

        began = time.monotonic()
        answer = self._contact.insist(once, until=Drain.NOW)
        self._note(step, began)
        return answer

    def _note(self, step: str, began: float) -> None:
        self.took.setdefault(step, []).append(time.monotonic() - began)


def _process(
    url: str,
    numbers: Sequence[int],
    study_id: int,
    trial_s: float,
    settings: dict[str, Any],
    begin: Event,
    end: Event,
    told: Any,
) -> None:
    """One process of simulated workers; sends what they measured from `begin` to `end`."""
    fleet.process_scope = lambda: _here.scope  # type: ignore[assignment]
    workers = [Simulated(url, n, study_id, trial_s, WorkerConfig(**settings)) for n in numbers]
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    begin.wait()
    for worker in workers:
        worker.took = {}
    before, began = sum(w.finished for w in workers), time.monotonic()
    end.wait()
    seconds, done = time.monotonic() - began, sum(w.finished for w in workers) - before
    # not what they end with
    took = [{step: list(values) for step, values in worker.took.items()} for worker in workers]
    for worker in workers:
        worker.draining.ask(Drain.FINISH)
    for thread in threads:
        thread.join()
    errors = sum((worker.errors for worker in workers), Counter())
    cpu = time.process_time()
    told.put((seconds, done, took, errors, cpu, sum(w.finished for w in workers)))


def soak(args: argparse.Namespace, through: str, n: int) -> dict[str, Any]:
    """One run: `n` workers for `args.seconds`."""
    with ExitStack() as stack:
        server = stack.enter_context(
            OwnServer(
                fsync="on", max_connections=args.connections, superuser_reserved_connections=3
            )
        )
        pooler = stack.enter_context(Pooler(server, args.pool)) if through == "pooler" else None
        store = Store(server.url)
        study_id = store.studies.launch(spec(cells=args.cells)).study_id
        store.rest()
        watch = stack.enter_context(_watching(server.url))
        context = multiprocessing.get_context("spawn")
        begin, end, told = context.Event(), context.Event(), context.Queue()
        settings = {"lease_ttl_s": args.ttl, "heartbeat_s": args.heartbeat}
        parts = [list(range(n))[k :: args.processes] for k in range(min(n, args.processes))]
        url = pooler.url if pooler else server.worker_url
        common = (study_id, args.trial_s, settings, begin, end, told)
        processes = [
            context.Process(target=_process, args=(url, part, *common), daemon=True)
            for part in parts
        ]
        for process in processes:
            process.start()
        registered = "SELECT count(*) FROM orchestrator.worker WHERE state = 'ACTIVE'"
        wait_until(lambda: watch(registered) == n, 60 + 3 * args.trial_s)
        # they began spread over the length of a trial; now as many end as begin
        end.wait(args.trial_s)
        begin.set()
        postmaster = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))
        cpu, pooled, began, connections = (
            _cpu_s(postmaster),
            pooler.cpu_s() if pooler else 0.0,
            time.monotonic(),
            [],
        )
        while time.monotonic() - began < args.seconds:
            count = (
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND "
                "pid <> pg_backend_pid()"
            )
            connections.append(watch(count))
            end.wait(0.5)
        cpu, pooled = _cpu_s(postmaster) - cpu, (pooler.cpu_s() if pooler else 0.0) - pooled
        seconds = time.monotonic() - began
        end.set()
        answers = [told.get() for _ in processes]
        for process in processes:
            process.join()
        done = sum(answer[1] for answer in answers)
        errors: Counter[str] = sum((answer[3] for answer in answers), Counter())
        complete = watch("SELECT count(*) FROM orchestrator.trial WHERE state = 'COMPLETE'")
        findings = store.doctor.examine().findings
        store.rest()
    finished, clients_cpu = (
        sum(answer[5] for answer in answers),
        sum(answer[4] for answer in answers),
    )
    took: dict[str, list[float]] = {}
    for answer in answers:
        for worker in answer[2]:
            for step, values in worker.items():
                took.setdefault(step, []).extend(values)
    return {
        "through": through,
        "workers": n,
        "trial_s": args.trial_s,
        "trials_a_second": round(done / seconds, 1),
        "wanted": round(n / args.trial_s, 1) if args.trial_s else None,
        **{
            step: _milliseconds(took.get(step, []))
            for step in ("claim", "look", "create", "report", "finish", "gap")
        },
        "connections": {"median": statistics.median(connections), "most": max(connections)},
        "server_cpu_ms_a_trial": round(1000 * cpu / max(done, 1), 1),
        "pooler_cpu_ms_a_trial": round(1000 * pooled / max(done, 1), 1),
        "clients_cpu_ms_a_trial": round(1000 * clients_cpu / max(finished, 1)),
        "server_cores": round(cpu / seconds, 2),
        "load": os.getloadavg()[0],
        "errors": dict(errors.most_common(4)),
        "finished_by_workers": finished,
        "complete": complete,
        "doctor": [finding.message for finding in findings[:3]],
    }


@contextmanager
def _watching(url: str) -> Iterator[Callable[[str], int]]:
    """Asks for a number by a connection of its own, kept: the workers may use up all others."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True

    def ask(statement: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return int(cursor.fetchone()[0])

    try:
        yield ask
    finally:
        connection.close()


def _cpu_s(postmaster: psutil.Process) -> float:
    """Processor time of a server with all its processes, those too that have ended, seconds."""
    total = sum(postmaster.cpu_times()[:4])
    for child in postmaster.children():
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return float(total)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cut = statistics.quantiles(seconds, n=100)
    return {"p50": round(1000 * cut[49], 1), "p99": round(1000 * cut[98], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument(
        "--through", nargs="+", choices=("direct", "pooler"), default=["direct", "pooler"]
    )
    parser.add_argument(
        "--seconds", type=float, default=30, help="of measuring, once all workers are at work"
    )
    parser.add_argument("--trial-s", type=float, default=5, help="mean length of a trial")
    parser.add_argument(
        "--processes", type=int, default=4, help="that the workers' threads are spread over"
    )
    parser.add_argument(
        "--connections", type=int, default=100, help="max_connections of the server"
    )
    parser.add_argument("--pool", type=int, default=80, help="default_pool_size of PgBouncer")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--ttl", type=float, default=60)
    parser.add_argument("--heartbeat", type=float, default=10)
    args = parser.parse_args()
    if "pooler" in args.through and installed() is None:
        parser.error(
            "pgbouncer is not installed (apt-get install pgbouncer); --through direct goes without"
        )
    # the server and the workers end with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for through in args.through:
        for n in args.workers:
            print(json.dumps(soak(args, through, n)), flush=True)


if __name__ == "__main__":
    main()
