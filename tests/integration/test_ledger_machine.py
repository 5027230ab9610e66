"""The ledger as a state machine: several workers, people and faults in random orders, against a
model and the doctor.

A longer search than the one of every run: ``LEDGER_EXAMPLES=2000 pytest --timeout=0
tests/integration/test_ledger_machine.py``.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.errors import ConfigError, LeaseLostError
from orchestrator.model import Axis, Budget, Completed, Failed, Pruned, Report, StudySpec
from orchestrator.revision import Extension
from orchestrator.search import extension
from orchestrator.settings import InfeasibleSettings
from orchestrator.store import (
    Attempt,
    Choice,
    Claim,
    Probe,
    Silent,
    SlotOffer,
    Store,
    Ticket,
    Undecided,
    WorkerLease,
)
from orchestrator.store.connection.database import Database, storage_url
from orchestrator.store.doctor import Doctor
from tests.support.studies import PLACE, RUNNER, spec, suggestion

MAX_ATTEMPTS, MAX_RETRIES = 2, 1
_EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "0"))
SETTINGS = settings(
    stateful_step_count=60 if _EXAMPLES else 30,
    derandomize=not _EXAMPLES,
    # to make a failure small takes minutes
    phases=tuple(Phase) if _EXAMPLES else (Phase.generate,),
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

ANY = st.integers(0, 11)
REPEATED = st.sampled_from([1, 1, 2])
"""How often a step is done: the second time as by a worker that never got the first
one's answer.
"""
OUTCOMES = st.sampled_from(
    [
        Completed((1.0,), {"note": "x"}),
        Completed((float("inf"),)),
        Pruned(3),
        Failed("exception", "broken"),
        Failed("oom", "CUDA out of memory", memory="device"),
    ]
)


def as_written(old: StudySpec, new: StudySpec) -> Extension:
    """The extension of a study whose trials all have the distributions of `suggestion`."""
    return replace(extension(old, new), distributions={})


BROKEN = Failed("exception", "network\nis away")


def as_ticket(claim: Claim) -> Ticket:
    """The ticket of a trial, as a worker holds it that never learnt that the trial was created."""
    return Ticket(
        *(getattr(claim, field.name) for field in fields(Ticket) if hasattr(claim, field.name))
    )


def as_attempt(claim: Claim) -> Attempt:
    """The attempt of a claim, also of one whose trial was never created, so that its writes are to
    be refused.
    """
    if isinstance(claim, Ticket):
        claim = claim.prepared(0, 0, {})
    return claim if isinstance(claim, Attempt) else claim.begun()


@dataclass
class Known:
    """What the model knows of a trial. `token` is of its last claim; `worker` None:
    nobody runs it.
    """

    state: str
    token: int
    worker: int | None
    cell: int
    ticket: int
    attempts: int = 0
    lost: int = 0
    retries: int = 0
    values: Any = None

    @property
    def live(self) -> bool:
        return self.state in ("CLAIMED", "RUNNING")


class LedgerMachine(RuleBasedStateMachine):
    """One study a run; trials by their id, claims in the order in which workers got them, old ones
    too.
    """

    numbers = itertools.count()

    def __init__(self, store: Store, database: Database) -> None:
        super().__init__()
        self.store = store
        self.database = database
        self.doctor = Doctor(database)
        self.name = f"study-{next(self.numbers)}"
        self.workers: list[WorkerLease] = []
        self.gone: set[int] = set()
        self.expired: set[int] = set()
        self.claims: list[tuple[WorkerLease, Claim]] = []
        self.trials: dict[int, Known] = {}
        self.accepted: Counter[int] = Counter()
        self.complete: Counter[int] = Counter()
        self.idle = False
        self.revision = 1

    @initialize(
        cells=st.integers(1, 3),
        per_cell=st.integers(1, 2),
        rest=st.integers(0, 2),
        allowed=st.sampled_from([0, 1, 1000]),
        grows=st.booleans(),
        confirms=st.booleans(),
    )
    def launch(
        self, cells: int, per_cell: int, rest: int, allowed: int, grows: bool, confirms: bool
    ) -> None:
        budget = Budget(
            cells * per_cell + rest,
            per_cell,
            max_failures_per_cell=allowed,
            confirm=rest if confirms else 0,
        )
        runner = replace(RUNNER, max_attempts=MAX_ATTEMPTS, retries=MAX_RETRIES)
        infeasible = InfeasibleSettings(monotone={"a": "memory"} if grows else {})
        self.spec = replace(
            spec(self.name, cells=cells), budget=budget, runner=runner, infeasible=infeasible
        )
        self.study = self.store.studies.launch(self.spec).study_id
        self.join()
        self.join()

    # -------------------------------------------------------------------------------------- workers

    @precondition(lambda self: len(self.workers) - len(self.gone) < 4)
    @rule()
    def join(self) -> None:
        lease = self.store.fleet.register(3600)
        assert lease.token not in self.tokens()
        some = [
            SlotOffer("host", "GPU", 0, "H100", 80 * 2**30),
            SlotOffer("host", "GPU", 1, "A10", 24 * 2**30),
        ]
        self.store.fleet.claim_slot(lease, some)
        self.workers.append(lease)

    @rule(
        which=ANY,
        what=st.sampled_from(["renew", "fall silent", "evict", "dies", "deregister"]),
        times=REPEATED,
    )
    def worker_event(self, which: int, what: str, times: int) -> None:
        if what == "renew":
            self.renew(which)
        elif what == "fall silent":
            self.fall_silent(which)
        elif what == "deregister":
            self.deregister(which, times)
        else:
            self.evict(which, what == "dies", times)

    def renew(self, which: int) -> None:
        lease = self.worker(which)
        with self.refused_if(lease.worker_id in self.gone):
            self.store.fleet.renew(lease, "testing")
            self.expired.discard(lease.worker_id)

    def fall_silent(self, which: int) -> None:
        lease = self.worker(which)
        self.sql(
            "UPDATE orchestrator.worker SET lease_until = now() - interval '1 s' WHERE "
            f"worker_id = {lease.worker_id}"
        )
        self.expired.add(lease.worker_id)

    def evict(self, which: int, dead: bool, times: int) -> None:
        worker = self.worker(which).worker_id
        for _ in range(times):
            due = worker not in self.gone and (dead or worker in self.expired)
            assert self.store.ledger.evict(Silent(worker, dead=dead, reason="silent")) is due
            if due:
                self.gone.add(worker)
                self.lose_all(worker)

    def deregister(self, which: int, times: int) -> None:
        lease = self.worker(which)
        for _ in range(times):
            self.store.ledger.deregister(lease, "done")
            if lease.worker_id not in self.gone:
                self.give_back_all(lease.worker_id)
                self.gone.add(lease.worker_id)

    # --------------------------------------------------------------------------------------- trials

    @rule(which=ANY)
    def begin(self, which: int) -> None:
        self.begin_stuttering(which, 1, 1)

    @rule(which=ANY, times=REPEATED, creates=st.sampled_from([0, 1, 2]))
    def begin_stuttering(self, which: int, times: int, creates: int) -> None:
        """Claims what is next and creates its trial, either of them perhaps twice, or
        not at all.
        """
        lease = self.worker(which)
        claim = None
        for _ in range(times):
            with self.refused_if(lease.worker_id in self.gone):
                self.store.ledger.give_back_held(lease, "its answer was lost")
                self.give_back_all(lease.worker_id)
                claim = self.claim_next(lease)
                self.idle = claim is None
                if claim is not None:
                    self.claimed(lease, claim)
        if isinstance(claim, Ticket):
            for _ in range(creates):
                self.create(len(self.claims) - 1)

    def claim_next(self, lease: WorkerLease) -> Claim | None:
        """What is next; a trial that may confirm repeats the first complete one."""
        claim_one, confirm = self.store.ledger.claim_one, self.spec.budget.confirm
        claim = claim_one(lease, self.study, PLACE, confirm=confirm)
        if isinstance(claim, Undecided):
            assert claim.confirms
            complete = self.sql(
                "SELECT l.ordinal, o.number FROM orchestrator.trial o JOIN orchestrator.cell l ON "
                f"l.cell_id = o.cell_id WHERE o.study_id = {self.study} AND o.state = 'COMPLETE' "
                "ORDER BY o.number LIMIT 1"
            )
            choice = Choice(complete[0][0], {}, complete[0][1]) if complete else None
            claim = claim_one(lease, self.study, PLACE, choice)
        assert not isinstance(claim, Undecided | Probe)
        return claim

    @precondition(lambda self: self.claims)
    @rule(how=st.sampled_from(["evict", "deregister", "release", "retry", "claim"]), by=ANY)
    def take_over(self, how: str, by: int) -> None:
        """Whoever made the last claim loses it in one of five ways, and another worker comes."""
        lease = self.claims[-1][0]
        which = self.workers.index(lease)
        if how == "evict":
            self.evict(which, True, 1)
        elif how == "deregister":
            self.deregister(which, 1)
        elif how == "release":
            self.release(0, False, 1)
        elif how == "retry":
            self.retry_attempt(0, 1)
        else:
            self.begin(which)
        if lease.worker_id in self.gone:
            self.join()
        self.begin(by)

    @precondition(lambda self: self.stale())
    @rule(
        which=ANY,
        what=st.sampled_from(["create", "report", "finish", "release", "retry"]),
        outcome=OUTCOMES,
    )
    def come_back(self, which: int, what: str, outcome: Completed | Pruned | Failed) -> None:
        """A worker that was given up goes on with its trial as if nothing had happened."""
        stale = self.stale()
        index = stale[which % len(stale)]
        back = len(self.claims) - 1 - index
        if what == "create":
            self.create(index)
        elif what == "report":
            self.report(back, 0)
        elif what == "finish":
            self.finish(back, [outcome])
        elif what == "release":
            self.release(back, True, 1)
        else:
            self.retry_attempt(back, 1)

    @precondition(lambda self: self.claims)
    @rule(which=ANY, what=st.sampled_from(["report", "release", "lose", "retry"]), times=REPEATED)
    def do_with(self, which: int, what: str, times: int) -> None:
        if what == "report":
            self.report(which, times)
        elif what == "retry":
            self.retry_attempt(which, times)
        else:
            self.release(which, what == "lose", times)

    def report(self, which: int, step: int) -> None:
        claim, known = self.claim(which)
        with self.refused_if(not self.holds(claim, known) or known.state != "RUNNING"):
            self.store.ledger.report(
                as_attempt(claim), Report({step: 0.5, step + 1: float("nan")}, {"note": step})
            )

    @precondition(lambda self: self.running())
    @rule(which=ANY, outcome=OUTCOMES)
    def end(self, which: int, outcome: Completed | Pruned | Failed) -> None:
        running = self.running()
        self.finish(len(self.claims) - 1 - running[which % len(running)], [outcome])

    @precondition(lambda self: self.claims)
    @rule(which=ANY, outcomes=st.lists(OUTCOMES, min_size=1, max_size=2))
    def finish(self, which: int, outcomes: list[Completed | Pruned | Failed]) -> None:
        """Delivers a result, and perhaps another one after it, the same or not."""
        claim, known = self.claim(which)
        for outcome in outcomes:
            state = {Completed: "COMPLETE", Pruned: "PRUNED", Failed: "FAIL"}[type(outcome)]
            accepted = self.holds(claim, known) and known.state == "RUNNING"
            with self.refused_if(
                not accepted and not (self.holds(claim, known) and known.state == state)
            ):
                self.store.ledger.finish(as_attempt(claim), outcome, Report({0: 1.0}))
            if accepted:
                known.state, known.worker = state, None
                spends = state == "COMPLETE" or (
                    state == "PRUNED" and self.holds_ticket(claim, known)
                )
                self.accepted[known.ticket] += spends
                self.complete[known.cell] += state == "COMPLETE"

    def holds_ticket(self, claim: Claim, known: Known) -> bool:
        """Whether a pruned trial has spent its ticket: any but one that left its cell's last share
        to another try.
        """
        ((holds, pruned, free),) = self.sql(
            "SELECT t.holds_ticket, (SELECT count(*) FROM orchestrator.trial o WHERE o.cell_id = "
            "t.cell_id AND o.state = 'PRUNED'), EXISTS (SELECT FROM orchestrator.ticket k WHERE "
            "k.study_id = t.study_id AND k.state = 'OPEN' AND k.cell_id IS NULL) FROM "
            f"orchestrator.trial t WHERE t.trial_id = {claim.trial_id}"
        )
        if not holds:
            assert self.complete[known.cell] == 0
            assert not free
            assert pruned < self.spec.budget.per_cell + self.spec.budget.max_failures_per_cell
        return bool(holds)

    def release(self, which: int, lost: bool, times: int) -> None:
        claim, known = self.claim(which)
        for _ in range(times):
            self.store.ledger.release(claim, "told to stop", lost=lost)
            if self.holds(claim, known) and known.worker is not None:
                self.give_back(known, lost=lost)

    def retry_attempt(self, which: int, times: int) -> None:
        """The attempt failed for a reason that passes."""
        claim, known = self.claim(which)
        for _ in range(times):
            with self.refused_if(not self.holds(claim, known) or known.state != "RUNNING"):
                again = self.store.ledger.retry(as_attempt(claim), BROKEN, Report({0: 1.0}))
                assert again is (known.worker is None or known.retries < MAX_RETRIES)
                if again and known.worker is not None:
                    known.worker, known.retries = None, known.retries + 1

    # ------------------------------------------------------------------------- the study and people

    @precondition(lambda self: self.idle)
    @rule()
    def wake(self) -> None:
        self.launch_again(0, False)

    @rule(more=st.integers(0, 2), share=st.booleans())
    def launch_again(self, more: int, share: bool) -> None:
        before = self.spec.budget
        budget = replace(
            before,
            per_cell=before.per_cell + share,
            trials=before.trials + more + share * self.spec.n_cells,
        )
        larger = replace(self.spec, budget=budget)
        with suppress(ConfigError):  # closed cells' shares went to others, and one was opened again
            self.store.studies.launch(larger)
            self.spec = larger
            self.idle = False

    @rule(more=st.booleans(), rest=st.integers(0, 2))
    def extend(self, more: bool, rest: int) -> None:
        """A value is added to the axis, or its last one is taken from it."""
        values = len(self.spec.grid[0].values) + (1 if more else -1)
        if not 1 <= values <= 4:
            return
        before = self.spec.budget
        budget = replace(before, trials=before.trials + rest + more * before.per_cell)
        other = replace(self.spec, grid=(Axis("a", tuple(range(values))),), budget=budget)
        with suppress(ConfigError):  # its share does not fit
            self.store.studies.launch(other, as_written)
            self.spec, self.idle = other, False
            self.revision += 1
            for known in self.trials.values():
                if known.state == "CLAIMED":
                    self.give_back(known, lost=False)

    @precondition(lambda self: len(self.claims) > 2)
    @rule(over=st.booleans(), later=st.booleans())
    def end_studies(self, over: bool, later: bool) -> None:
        """The sweep of any worker, perhaps after the study's time, perhaps long after the last
        attempts.
        """
        if over:
            self.sql(
                "UPDATE orchestrator.study SET deadline_at = now() - interval '1 s' WHERE "
                f"study_id = {self.study}"
            )
        if later:
            self.sql("UPDATE orchestrator.attempt SET ended_at = ended_at - interval '30 s'")
        held = any(known.live and known.worker is not None for known in self.trials.values())
        ended = self.store.ledger.end_studies()
        assert not (held and ended), "a study is not finished while a trial of it runs"
        self.see_abandoned()

    @precondition(lambda self: len(self.claims) > 2)
    @rule(what=st.sampled_from(["pause", "resume", "stop", "enqueue", "retry", "retry"]), which=ANY)
    def intervene(self, what: str, which: int) -> None:
        hands = self.store.interventions
        with suppress(ConfigError):  # it is finished, or hands out no trials
            if what == "enqueue":
                hands.enqueue(self.study, {"a": which % self.spec.n_cells}, {"x": 0.25})
            elif what == "retry":
                hands.retry(self.study, None)
            elif what == "resume":
                hands.resume(self.study, "a person")
            else:
                getattr(hands, what)(self.study, "a person", now=which % 2 == 0)

    @rule()
    def add_foreign_trial(self) -> None:
        """As plain Optuna does."""
        self.sql(
            f"SELECT FROM studies WHERE study_id = {self.study} FOR UPDATE; INSERT INTO trials "
            f"(number, study_id, state) SELECT coalesce(max(number) + 1, 0), {self.study}, "
            f"'WAITING' FROM trials WHERE study_id = {self.study}"
        )

    # ------------------------------------------------------------------------------- what must hold

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "study"):
            examination = self.doctor.examine(self.name)
            assert examination.findings == ()
            assert examination.notes == ()

    @invariant()
    def the_ledger_is_as_the_model(self) -> None:
        if hasattr(self, "study"):
            rows = self.sql(
                "SELECT trial_id, state, token, worker_id FROM orchestrator.trial WHERE "
                f"study_id = {self.study}"
            )
            known = {
                k: (t.state, t.token, t.worker) for k, t in self.trials.items() if t.state != "gone"
            }
            assert {row[0]: tuple(row[1:]) for row in rows} == known
            spent = self.sql(
                f"SELECT ordinal FROM orchestrator.ticket WHERE study_id = {self.study} AND "
                "state = 'SPENT'"
            )
            assert all(n <= 1 for n in self.accepted.values()), "a ticket is accepted once"
            assert {row[0] for row in spent} == {ticket for ticket, n in self.accepted.items() if n}

    def teardown(self) -> None:
        """Whatever happened, one worker ends the study, and every cell has its share."""
        if not hasattr(self, "study"):
            return
        for lease in self.workers:
            self.evict(self.workers.index(lease), True, 1)
        try:
            self.store.studies.launch(self.spec)
        except ConfigError as refused:
            note(str(refused))
            budget = replace(
                self.spec.budget,
                trials=self.spec.budget.trials + self.spec.n_cells * self.spec.budget.per_cell,
            )
            self.spec = replace(self.spec, budget=budget)
            self.store.studies.launch(self.spec)
        self.join()
        before = -1
        while len(self.claims) != before:
            before = len(self.claims)
            self.begin(len(self.workers) - 1)
            if len(self.claims) == before:  # cells that fit no living worker's device are closed
                self.store.ledger.end_studies()
                self.see_abandoned()
                self.begin(len(self.workers) - 1)
            if len(self.claims) != before:
                self.finish(0, [Completed((1.0,))])
        assert self.store.reads.find(self.name).state == "FINISHED"
        self.nothing_is_wrong()
        self.the_ledger_is_as_the_model()
        self.every_cell_has_its_share()
        self.deregister(len(self.workers) - 1, 1)

    def every_cell_has_its_share(self) -> None:
        cells = self.sql(
            "SELECT c.state, count(*) FILTER (WHERE k.state = 'SPENT' AND NOT k.extra) FROM "
            "orchestrator.cell c LEFT JOIN orchestrator.ticket k USING (cell_id) WHERE "
            f"c.study_id = {self.study} GROUP BY c.cell_id"
        )
        closed = self.sql(
            f"SELECT 1 FROM orchestrator.event WHERE study_id = {self.study} AND kind = 'cell "
            "closed'"
        )
        budget = self.spec.budget
        assert sum(n for _, n in cells) <= budget.trials
        assert all(n >= budget.per_cell for state, n in cells if state == "OPEN")
        if not closed:
            assert sum(n for _, n in cells) == budget.trials
            if self.revision == 1 and budget.trials == self.spec.n_cells * budget.per_cell:
                assert {n for _, n in cells} == {budget.per_cell}

    # ------------------------------------------------------------------------------------ the model

    def sql(self, statement: str) -> list[Any]:
        with self.database.transaction() as c:
            done = c.exec_driver_sql(statement)
            return list(done.all()) if done.returns_rows else []

    def worker(self, which: int) -> WorkerLease:
        return self.workers[which % len(self.workers)]

    def claim(self, which: int) -> tuple[Claim, Known]:
        """A claim, the latest for 0, and what is known of its trial."""
        claim = self.claims[-1 - which % len(self.claims)][1]
        return claim, self.trials[claim.trial_id]

    def holds(self, claim: Claim, known: Known) -> bool:
        return known.state != "gone" and known.token == claim.token

    def running(self) -> list[int]:
        """Positions of the claims that run now."""
        trials = [self.trials[claim.trial_id] for _, claim in self.claims]
        return [
            k
            for k, (known, (_, claim)) in enumerate(zip(trials, self.claims, strict=True))
            if self.holds(claim, known) and known.state == "RUNNING" and known.worker is not None
        ]

    def stale(self) -> list[int]:
        """Positions of the claims whose trial others have taken up, or that is no more."""
        return [
            k
            for k, (_, claim) in enumerate(self.claims)
            if not self.holds(claim, self.trials[claim.trial_id])
        ]

    def tokens(self) -> list[int]:
        return [lease.token for lease in self.workers] + [claim.token for _, claim in self.claims]

    def refused_if(self, expected: bool) -> Any:
        return pytest.raises(LeaseLostError) if expected else nullcontext()

    def claimed(self, lease: WorkerLease, claim: Claim) -> None:
        assert claim.token not in self.tokens(), "a token never comes again"
        known = self.trials.get(claim.trial_id)
        if known is None:
            assert isinstance(claim, Ticket)
            known = self.trials[claim.trial_id] = Known(
                "CLAIMED", claim.token, lease.worker_id, claim.cell, claim.ticket
            )
        else:
            assert (known.state, known.worker) == ("RUNNING", None), (
                "only what nobody runs is taken up"
            )
            assert isinstance(claim, Attempt)
            assert (claim.values, claim.cell, claim.ticket) == (
                known.values,
                known.cell,
                known.ticket,
            ), "as the same trial"
            assert claim.attempt == known.attempts + 1
            known.token, known.worker, known.attempts = claim.token, lease.worker_id, claim.attempt
        self.claims.append((lease, claim))

    def create(self, index: int) -> None:
        lease, claim = self.claims[index]
        known = self.trials[claim.trial_id]
        with self.refused_if(not (self.holds(claim, known) and known.live)):
            ticket = as_ticket(claim)
            created = self.store.ledger.create(ticket, suggestion(ticket), lease, PLACE)
            assert isinstance(created, Attempt)
            if known.state == "CLAIMED":
                known.state, known.attempts, known.values = "RUNNING", 1, created.values
            assert created.values == known.values
            self.claims[index] = (lease, created)

    def give_back(self, known: Known, *, lost: bool) -> None:
        if known.state == "CLAIMED":
            known.state = "gone"
            return
        known.worker = None
        if lost and known.lost + 1 >= MAX_ATTEMPTS:
            known.state = "FAIL"
        else:
            known.lost += lost

    def held_by(self, worker: int) -> list[Known]:
        return [known for known in self.trials.values() if known.live and known.worker == worker]

    def give_back_all(self, worker: int) -> None:
        for known in self.held_by(worker):
            self.give_back(known, lost=False)

    def lose_all(self, worker: int) -> None:
        for known in self.held_by(worker):
            self.give_back(known, lost=True)

    def see_abandoned(self) -> None:
        """A study that ends fails the trials that nobody runs, and only those; so does a cell that
        fits nobody's device.
        """
        finished = self.store.reads.find(self.name).state == "FINISHED"
        failed = {
            row[0]
            for row in self.sql(
                "SELECT t.trial_id FROM orchestrator.trial t JOIN orchestrator.cell c ON "
                f"c.cell_id = t.cell_id WHERE t.state = 'FAIL' AND t.study_id = {self.study} AND "
                f"({finished} OR starts_with(c.reason, 'no living worker has'))"
            )
        }
        for trial_id, known in self.trials.items():
            if known.state == "RUNNING" and known.worker is None and trial_id in failed:
                known.state = "FAIL"


@pytest.mark.parametrize("examples", [2, pytest.param(40, marks=pytest.mark.nightly)])
def test_in_any_order_of_steps_and_faults_nothing_is_lost_and_nothing_accepted_twice(
    database_url: str, examples: int
) -> None:
    store, database = Store(database_url), Database(storage_url(database_url))
    try:
        made: Any = partial(LedgerMachine, store, database)  # declared as a class, but called only
        run_state_machine_as_test(
            made, settings=settings(SETTINGS, max_examples=_EXAMPLES or examples)
        )
    finally:
        store.rest()
        database.rest()
