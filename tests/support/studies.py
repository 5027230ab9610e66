"""Small studies and workers that speak the real ledger protocol without training anything."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from typing import Any

from orchestrator.model import (
    Axis,
    Budget,
    Completed,
    Failed,
    Param,
    Pruned,
    Report,
    Searched,
    StudySpec,
    Suggestion,
)
from orchestrator.settings import RunnerSettings, sampler_settings
from orchestrator.store import (
    Attempt,
    Place,
    Prepared,
    Probe,
    Store,
    Ticket,
    Undecided,
    WorkerLease,
)

PLACE = Place("test-host", "/nowhere")
RUNNER = RunnerSettings(grace_s=1.0, max_attempts=3)


def spec(
    name: str = "study",
    cells: int = 4,
    trials: int | None = None,
    per_cell: int = 1,
    **changes: Any,
) -> StudySpec:
    """A study with one grid axis `a` of `cells` values and one searched parameter `x` in [0, 1]; it
    never brakes.
    """
    budget = Budget(
        cells * per_cell if trials is None else trials, per_cell, max_failures_at_start=None
    )
    made = StudySpec(
        name=name,
        directions=("maximize",),
        metrics=("value",),
        objective={"_target_": "tests.support.objectives.returns"},
        params={"a": 0, "x": 0.5},
        grid=(Axis("a", tuple(range(cells))),),
        search=(Searched("x", "float", 0.0, 1.0),),
        budget=budget,
        sampler=sampler_settings("random"),
        runner=RUNNER,
    )
    return replace(made, **changes)


def suggestion(ticket: Ticket, x: float = 0.5) -> Suggestion:
    """Parameters for the ticket as a sampler would give them."""
    a = json.dumps(
        {"name": "IntDistribution", "attributes": {"log": False, "step": 1, "low": 0, "high": 1000}}
    )
    b = json.dumps(
        {
            "name": "FloatDistribution",
            "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False},
        }
    )
    value = ticket.cell_values.get("a", 0)
    return Suggestion(
        (Param("a", float(value), a), Param("x", x, b)), {"a": value, "x": x}, {"k": 1}
    )


def take(store: Store, lease: WorkerLease, study_id: int) -> Ticket | None:
    """Claims the next ticket; nothing else must be there to claim."""
    claim = store.ledger.claim_one(lease, study_id, PLACE)
    assert claim is None or isinstance(claim, Ticket)
    return claim


def start(store: Store, lease: WorkerLease, study_id: int) -> Attempt | None:
    """Claims what is next and begins it, as far as that has not been done."""
    claim = store.ledger.claim_one(lease, study_id, PLACE)
    assert not isinstance(claim, Undecided | Probe)
    if isinstance(claim, Ticket):
        return begun(store, claim, lease)
    return store.ledger.start(claim, lease, PLACE) if isinstance(claim, Prepared) else claim


def begun(
    store: Store, ticket: Ticket, lease: WorkerLease, suggested: Suggestion | None = None
) -> Attempt:
    """Creates the ticket's trial and begins it."""
    made = store.ledger.create(ticket, suggested or suggestion(ticket), lease, PLACE)
    assert isinstance(made, Attempt)
    return made


def end(store: Store, attempt: Attempt, outcome: Completed | Pruned | Failed | None = None) -> None:
    store.ledger.finish(attempt, outcome or Completed((float(attempt.number),)), Report())


def work(url: str, study_id: int, *, fail: float = 0.0, release: float = 0.0, seed: int = 0) -> int:
    """A whole worker: runs trials until the study is finished, failing and giving back at random;
    returns how many it ended.
    """
    store = Store(url)
    lease = store.fleet.register(60)
    dice = random.Random(seed)
    ended = 0
    while True:
        claim = start(store, lease, study_id)
        if claim is None:
            if next(r for r in store.reads.studies() if r.study_id == study_id).state == "FINISHED":
                break
            time.sleep(0.005)
            continue
        if dice.random() < release:
            store.ledger.release(claim, "test")
            continue
        end(store, claim, Failed("exception", "dice") if dice.random() < fail else None)
        ended += 1
    store.ledger.deregister(lease, "done")
    store.rest()
    return ended
