"""A study with cells that do not fit, as a user runs it."""

from __future__ import annotations

import json
from collections import Counter

import optuna
import pytest

from tests.support.commands import CONFIG, Commands

pytestmark = pytest.mark.acceptance
HUNGRY = ("objective._target_=tests.support.training.hungry", "+objective.limit=256")


def test_one_death_closes_what_is_larger_and_the_study_ends_with_the_reason(
    commands: Commands,
) -> None:
    study = (
        f"--config-dir={CONFIG}",
        "experiment=tiny",
        "a=64,128,256,512",
        "sampler=random",
        "worker.count=1",
    )
    budget = ("budget.per_cell=1", "budget.trials=6", "infeasible.monotone.a=memory")
    told = json.loads(commands.check("launch", "--json", *study, *HUNGRY, *budget))
    trials = optuna.load_study(study_name="tiny", storage=str(commands.url)).trials
    failures = {
        t.number: t.user_attrs["orchestrator:failure"] for t in trials if t.state.name == "FAIL"
    }
    # but for one that was only prepared
    begun = [t for t in trials if failures.get(t.number, {}).get("kind") != "device"]
    ran = Counter((t.params["a"], t.state.name) for t in begun)
    assert ran == {(64, "COMPLETE"): 3, (128, "COMPLETE"): 3, (256, "FAIL"): 1}, (
        "512 need not be tried"
    )
    assert (told["state"], told["reason"], told["trials"]["spent"]) == (
        "FINISHED",
        "budget spent",
        6,
    )
    (failed,) = [failures[t.number] for t in begun if t.number in failures]
    assert (failed["kind"], failed["memory"], failed["device"]) == ("oom", "cpu", "CPU")
    small, middle, closed, larger = told["cells"]
    assert (small["closed_for"], middle["closed_for"]) == ([], [])
    assert [cell["state"] for cell in (closed, larger)] == ["CLOSED", "CLOSED"]
    assert closed["reason"].startswith("no living worker has the memory for it; CPU (")
    assert closed["closed_for"][0]["reason"] == "trial 2 ran out of memory"
    assert (
        "trial 2 ran out of memory at a=256, and the memory needed grows with a" in larger["reason"]
    )
