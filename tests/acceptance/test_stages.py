"""An experiment with stages as a user runs it: killed between its stages, confirmed, deleted."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass

import optuna
import pytest

from orchestrator.faults import CRASH_AT
from orchestrator.store import Store
from tests.support.commands import CONFIG, Commands

pytestmark = pytest.mark.acceptance
CHAIN = (f"--config-dir={CONFIG}", "experiment=chain", "worker.count=1")


@dataclass(frozen=True)
class Crashing(Commands):
    """Commands that are killed at a step."""

    at: str = ""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), CRASH_AT: self.at}


def test_a_chain_that_is_killed_between_its_stages_goes_on_where_it_was(
    commands: Commands,
) -> None:
    """Killed when nothing of the next stage is written, while it is, and before its first trial."""
    plan = commands.check("launch", *CHAIN, "--dry-run")
    assert "chain chain: 3 stages, 11 trials" in plan
    assert "freezes a at the best trial's values; narrows x to 0.5 of its width" in plan
    for step, begun in (("stage-chosen", 1), ("stage-linked", 1), ("stage-begun", 2)):
        crashing = Crashing(commands.url, commands.directory, at=step)
        assert crashing.run("launch", *CHAIN).returncode == -signal.SIGKILL, step
        names = optuna.get_all_study_names(str(commands.url))
        assert names == ["chain.coarse", "chain.fine"][:begun]

    plan = commands.check("launch", *CHAIN, "stages.last.budget.trials=2", "--dry-run")
    assert "stage fine of chain chain is there: 4 left to run" in plan
    assert "would change stage last, which has not begun: budget.trials: 3 -> 2" in plan
    shown_only = Crashing(commands.url, commands.directory, at="stage-shown")
    assert shown_only.run("launch", *CHAIN, "stages.confirm=true").returncode == -signal.SIGKILL
    asked = commands.check("launch", *CHAIN, "stages.confirm=true")
    assert re.search(
        r"next is stage last: .*\n  frozen, from trial \d+ of chain.fine and before: a=1 kind=",
        asked,
    )
    assert "stage 2 of 3: fine" in asked
    assert "what stage fine found\n- " in asked
    assert (
        "to go on with the stages: the same command; to end them here: orchestrator stop" in asked
    )
    whole = commands.check("launch", *CHAIN, "stages.confirm=true")
    assert "stage 3 of 3: last" in whole
    assert "chain chain is finished, all 3 stages" in whole

    store = Store(str(commands.url))
    row = store.chains.find("chain")
    assert row is not None
    assert [(stage.name, stage.spent, stage.complete) for stage in row.begun] == [
        ("coarse", 4, 4),
        ("fine", 4, 4),
        ("last", 3, 3),
    ], "every budget exactly"
    coarse, fine, last = row.begun
    best = max(store.reads.trials(coarse.study_id), key=lambda t: t.values or ())
    assert (fine.inherited.study, fine.inherited.params) == ("chain.coarse", {"a": 1})
    assert best.params["a"] == 1
    low, high = fine.inherited.search[0].low, fine.inherited.search[0].high
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(0.5)
    tried = [trial.params["x"] for trial in store.reads.trials(fine.study_id)]
    assert all(low <= x <= high for x in tried)
    assert last.inherited.frozen.keys() == {"a", "kind", "x"}
    assert last.inherited.frozen["x"] in tried
    store.rest()

    shown = json.loads(commands.check("best", "study.name=chain", "--json"))
    assert (shown["study"], shown["chain"]["finished"]) == ("chain.last", True)
    assert "a=1" in shown["best"][0]["overrides"]
    assert "chain chain: finished, all 3 stages" in commands.check("status", "study.name=chain")
    page = commands.check("report", "study.name=chain", "--markdown")
    assert "Report of study chain.last" in page
    assert "stage: 3 of 3 of chain: last" in page
    assert "3 studies, 11 trials: nothing wrong" in commands.check("doctor", "study.name=chain")
    refused = commands.run("delete", "study.name=chain.coarse", "--yes")
    assert "later stages inherited from" in refused.stderr
    assert "deleted chain chain: 3 stages" in commands.check("delete", "study.name=chain", "--yes")
    assert optuna.get_all_study_names(str(commands.url)) == []


def test_a_stage_without_a_complete_trial_ends_the_chain(commands: Commands) -> None:
    failing = ("objective._target_=tests.support.training.breaks", "budget.max_failures_per_cell=0")
    done = commands.run("launch", *CHAIN, *failing, "budget.max_failures_at_start=null")
    assert done.returncode == 7
    assert "no trial of study chain.coarse completed (every cell is closed)" in done.stderr
    assert "stage fine" not in done.stdout
    assert optuna.get_all_study_names(str(commands.url)) == ["chain.coarse"]
