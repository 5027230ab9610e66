"""Code that changes between launches of a study, and unchanged Hydra apps, as a user runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.support.commands import Commands

pytestmark = pytest.mark.acceptance
MODULE = "import helper\n\ndef train(cfg, trial):\n    return cfg.a + helper.{name}()\n"
HELPER = "def one():\n    return {value}\n"


def test_values_of_changed_code_are_not_mixed_in_silence(
    commands: Commands, tmp_path: Path
) -> None:
    (tmp_path / "fit.py").write_text(MODULE.format(name="one"))
    (tmp_path / "helper.py").write_text(HELPER.format(value=1))
    here = replace(commands, cwd=tmp_path)
    words = (
        "study.name=mixed",
        "objective._target_=fit.train",
        "+a=1,2",
        "budget.per_cell=4",
        "worker.count=1",
    )
    here.check("launch", *words, "budget.trials=8")
    again = here.check("launch", *words, "budget.trials=8")
    assert "code has changed" not in again
    assert "not the same" not in here.check("best")
    (tmp_path / "helper.py").write_text(HELPER.format(value=7))
    (tmp_path / "notes.py").write_text("of no concern\n")
    said = here.check("launch", *words, "budget.trials=9")
    assert "the objective's code has changed since trials 0–7: helper\n" in said
    mixed = "the objective's code is not the same in all trials: trials 0–7 ran code "
    assert mixed in said
    assert f"{mixed}" in here.check("best", "study.name=mixed")
    assert f"{mixed}" in here.check("status", "study.name=mixed")
    code = json.loads(here.check("status", "--json"))["study"]["code"]
    assert [known["trials"] for known in code] == [[[0, 7]], [[8, 8]]]
    assert [sorted(known["source"]["files"]) for known in code] == [["fit", "helper"]] * 2
    rerun = here.run("rerun", "study.name=mixed", "trial=0")
    assert rerun.returncode == 1
    assert "differs from the original run: the objective's code (helper)" in rerun.stdout


def test_an_unchanged_hydra_app_has_a_directory_for_each_trial(
    commands: Commands, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("a: 0\n")
    (tmp_path / "app.py").write_text(
        "import hydra\n\n\n"
        "@hydra.main(version_base=None, config_path='conf', config_name='config')\n"
        "def main(cfg):\n"
        "    print('{\"value\": %d}' % cfg.a)\n\n\n"
        "main()\n"
    )
    here = replace(commands, cwd=tmp_path)
    said = here.check(
        "launch",
        "study.name=app",
        "objective.command=python app.py",
        "+a=1,2,3,4",
        "worker.count=2",
    )
    assert "a Hydra app: each attempt's output directory is hydra/ in its run directory" in said
    trials = store.reads.trials(store.reads.find("app").study_id)
    assert sorted(t.values or () for t in trials) == [(1.0,), (2.0,), (3.0,), (4.0,)]
    logs = sorted(here.directory.glob("runs/app-*/trial-*/attempt-1-*/hydra/.hydra/overrides.yaml"))
    assert len(logs) == 4
    assert not (tmp_path / "outputs").exists()
    (tmp_path / "conf" / "config.yaml").write_text("a: 0\nnew: 1\n")
    more = here.check(
        "launch",
        "study.name=app",
        "objective.command=python app.py",
        "+a=1,2,3,4",
        "worker.count=1",
        "budget.trials=5",
    )
    assert "the objective's code has changed since trials 0–3: conf/config.yaml" in more
