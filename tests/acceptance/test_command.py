"""A study of a program, as a user launches it."""

from __future__ import annotations

import optuna
import pytest

from tests.support.commands import CONFIG, Commands

pytestmark = pytest.mark.acceptance


def test_a_program_in_any_language_is_an_objective(commands: Commands) -> None:
    said = commands.check(
        "launch", f"--config-dir={CONFIG}", "experiment=program", "worker.count=1"
    )
    assert "finished: budget spent" in said
    trials = optuna.load_study(study_name="program", storage=str(commands.url)).trials
    assert sorted((t.params["a"], t.value, t.intermediate_values) for t in trials) == [
        (a, a + 0.5, {1: float(a), 2: a + 0.5}) for a in range(3)
    ]
    assert {t.user_attrs["words"] for t in trials} == {
        f"a={t.params['a']} x={t.params['x']!r}" for t in trials
    }
    assert [t.params["a"] for t in trials if "orchestrator:attempts" in t.user_attrs] == [1], (
        "exit:75 was tried again"
    )
    refused = commands.run(
        "launch", f"--config-dir={CONFIG}", "experiment=program", "worker.allow_targets=[my.*,sh]"
    )
    assert refused.returncode == 2
    assert (
        "objective.command: 'command:sh' may not run on this host; worker.allow_targets "
        "allows my.*, sh"
    ) in refused.stderr
