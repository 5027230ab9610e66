"""A pruner that can end no trial is found before anything runs, and only such a one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config import never_prunes, nothing_reported
from orchestrator.model import Budget
from orchestrator.settings import PrunerSettings, pruner_settings
from tests.support.studies import spec

REGEX = {"command": ["train"], "result": {"regex": "final: ([0-9.]+)"}}


@pytest.mark.parametrize(
    ("pruner", "changes", "expected"),
    [
        (pruner_settings("none"), {}, None),
        (pruner_settings("median"), {"budget": Budget(24, 2)}, None),
        (
            pruner_settings("median"),
            {"budget": Budget(20, 2)},
            "once 5 trials of its cell are complete, and its cell has 5 trials in all",
        ),
        (pruner_settings("median", n_startup_trials=4), {"budget": Budget(17, 1)}, None),
        (pruner_settings("median", within_cell=False), {"budget": Budget(8, 2)}, None),
        (
            pruner_settings("median", within_cell=False),
            {"budget": Budget(5, 1), "cells": 2},
            "5 trials of the study are complete",
        ),
        (pruner_settings("median"), {"budget": Budget(20, 2), "allocation": "adaptive"}, None),
        (pruner_settings("median"), {"budget": Budget(12, 2), "allocation": "adaptive"}, None),
        (
            pruner_settings("median"),
            {"budget": Budget(11, 2), "allocation": "adaptive"},
            "its cell has 5 trials in all",
        ),
        (pruner_settings("asha"), {"budget": Budget(4, 1)}, "each cell has one trial"),
        (pruner_settings("asha"), {"budget": Budget(8, 1)}, None),
        (pruner_settings("wilcoxon"), {"budget": Budget(8, 1)}, None),
        (
            pruner_settings("hyperband"),
            {"metrics": ("a", "b"), "directions": ("minimize",) * 2},
            "several objectives",
        ),
        (
            pruner_settings("asha"),
            {"budget": Budget(80, 1), "objective": REGEX},
            'with a step, such as {"step": 3, "value": 0.91}',
        ),
        (
            pruner_settings("asha"),
            {"budget": Budget(80, 1), "objective": {**REGEX, "result": "last"}},
            None,
        ),
        (pruner_settings("median"), {"grid": (), "budget": Budget(6, 1)}, None),
        (
            pruner_settings("median"),
            {"grid": (), "budget": Budget(5, 1)},
            "5 trials of the study are complete",
        ),
    ],
)
def test_what_a_pruner_would_need_is_said_in_one_sentence(
    pruner: PrunerSettings, changes: dict[str, Any], expected: str | None
) -> None:
    said = never_prunes(spec(**{"cells": 4, **changes, "pruner": pruner}))
    if expected is None:
        assert said is None
    else:
        assert said is not None
        assert expected in said
        assert said.startswith(f"pruner={pruner.name} ")
        assert "\n" not in said


def test_each_change_that_is_named_helps() -> None:
    asleep = spec(
        cells=4, budget=Budget(20, 2), pruner=pruner_settings("median", n_startup_trials=9)
    )
    assert (
        "set pruner.n_startup_trials=2, pruner.within_cell=false, or a larger budget.trials"
        in str(never_prunes(asleep))
    )
    for change in ({"n_startup_trials": 2}, {"within_cell": False}):
        assert (
            never_prunes(
                spec(cells=4, budget=Budget(20, 2), pruner=replace(asleep.pruner, **change))
            )
            is None
        )


def test_how_to_report_depends_on_what_the_objective_is() -> None:
    assert "call trial.report and trial.should_prune" in nothing_reported(
        spec(pruner=pruner_settings("asha")), 1
    )
    assert "3 trials completed" in nothing_reported(
        spec(pruner=pruner_settings("asha"), objective=REGEX), 3
    )
    assert "print JSON lines with a step" in nothing_reported(
        spec(pruner=pruner_settings("asha"), objective=REGEX), 3
    )
