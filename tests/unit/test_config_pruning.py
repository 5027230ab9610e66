"""A pruner that can end no trial is found before anything runs, and only such a one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config import never_prunes, nothing_to_judge, startup_label
from orchestrator.model import Axis, Budget, Reported, StudySpec
from orchestrator.settings import PrunerSettings, pruner_settings
from tests.support.studies import spec

FIVE = pruner_settings("median", n_startup_trials=5)
REGEX = {"command": ["train"], "result": {"regex": "final: ([0-9.]+)"}}


@pytest.mark.parametrize(
    ("pruner", "changes", "expected"),
    [
        (pruner_settings("none"), {}, None),
        (pruner_settings("median"), {"budget": Budget(8, 2)}, None),
        (pruner_settings("median"), {"budget": Budget(5, 1)}, None),
        (FIVE, {"budget": Budget(24, 2)}, None),
        (
            FIVE,
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
        (FIVE, {"budget": Budget(20, 2), "allocation": "adaptive"}, None),
        (FIVE, {"budget": Budget(12, 2), "allocation": "adaptive"}, None),
        (
            FIVE,
            {"budget": Budget(11, 2), "allocation": "adaptive"},
            "its cell has 5 trials in all",
        ),
        (pruner_settings("asha"), {"budget": Budget(4, 1)}, "each cell has one trial"),
        (pruner_settings("asha"), {"budget": Budget(8, 1)}, None),
        (pruner_settings("wilcoxon"), {"budget": Budget(8, 1)}, None),
        (
            pruner_settings("wilcoxon", p_threshold=0.0),
            {"budget": Budget(8, 1)},
            "pruner.p_threshold=0, and no p-value is below it; set a larger one",
        ),
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


@pytest.mark.parametrize("share", [1, 2, 3, 4, 6, 9, 14, 15, 40])
def test_auto_needs_a_third_of_a_cells_trials(share: int) -> None:
    study = spec(cells=7, budget=Budget(7 * share + 3, 1), pruner=pruner_settings("median"))
    expected = {1: 1, 2: 1, 3: 1, 4: 1, 6: 2, 9: 3, 14: 4, 15: 5, 40: 5}[share]
    assert study.pruner_in_effect == pruner_settings("median", n_startup_trials=expected)
    assert str(startup_label(study)).startswith(f"pruner.n_startup_trials=auto is {expected}: ")
    assert study.to_json()["pruner"]["n_startup_trials"] == expected
    assert StudySpec.from_json(study.to_json()).pruner == study.pruner_in_effect
    assert share == 1 or never_prunes(study) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (), "budget": Budget(6, 1)},
        {"grid": (Axis("a", (1,)),), "budget": Budget(6, 1)},
        {"budget": Budget(12, 3), "pruner": pruner_settings("median", within_cell=False)},
    ],
    ids=["no grid", "one cell", "across cells"],
)
def test_auto_is_five_where_trials_are_not_compared_by_cell(changes: dict[str, Any]) -> None:
    study = spec(**{"pruner": pruner_settings("median"), **changes})
    assert vars(study.pruner_in_effect)["n_startup_trials"] == 5
    assert "auto is 5: " in str(startup_label(study))


@pytest.mark.parametrize(
    "pruner",
    [
        pruner_settings("none"),
        pruner_settings("median", n_startup_trials=0),
        pruner_settings("median", n_startup_trials=40),
        pruner_settings("asha"),
        pruner_settings("hyperband"),
        pruner_settings("wilcoxon"),
    ],
    ids=lambda pruner: f"{pruner.name}-{getattr(pruner, 'n_startup_trials', '')}",
)
def test_what_is_set_and_other_pruners_stay_as_they_are(pruner: PrunerSettings) -> None:
    study = spec(cells=4, budget=Budget(12, 3), pruner=pruner)
    assert study.pruner_in_effect == pruner
    assert startup_label(study) is None


def launched_again(stored: Any, now: Any, share: int = 3) -> Any:
    """What a study has that was launched with one value, and is now with another."""
    old = spec(cells=4, budget=Budget(4 * share), pruner=pruner_settings("median", **stored))
    new = replace(old, pruner=pruner_settings("median", **now))
    again = new.as_launched_before(StudySpec.from_json(old.to_json()))
    assert again.spec_hash() == old.spec_hash()
    return vars(again.pruner_in_effect)["n_startup_trials"]


def test_a_study_that_was_launched_with_five_keeps_it_until_another_number_is_set() -> None:
    five = {"n_startup_trials": 5}
    assert launched_again(five, {}) == 5
    assert launched_again(five, {"n_warmup_steps": 3}) == 5
    assert launched_again(five, {"n_startup_trials": 2}) == 2
    assert launched_again({"n_startup_trials": 7}, {}) == 1
    assert launched_again({}, {}) == 1
    assert launched_again({}, five) == 5
    assert launched_again({}, {}, share=16) == 5


def test_auto_that_was_five_without_cells_follows_the_cells_once_they_are_compared() -> None:
    old = spec(cells=4, budget=Budget(12), pruner=pruner_settings("median", within_cell=False))
    new = replace(old, pruner=pruner_settings("median"))
    again = new.as_launched_before(StudySpec.from_json(old.to_json()))
    assert vars(again.pruner_in_effect)["n_startup_trials"] == 1


def test_a_larger_budget_raises_auto() -> None:
    old = spec(cells=4, budget=Budget(12), pruner=pruner_settings("median"))
    new = replace(old, budget=Budget(40))
    again = new.as_launched_before(StudySpec.from_json(old.to_json()))
    assert vars(again.pruner_in_effect)["n_startup_trials"] == 3


@pytest.mark.parametrize(
    ("pruner", "said"),
    [
        (pruner_settings("median", n_warmup_steps=20), None),
        (
            pruner_settings("median", n_warmup_steps=21),
            "until step 21 (pruner.n_warmup_steps), and trials report up to step 20; "
            "set pruner.n_warmup_steps=5",
        ),
        (pruner_settings("asha", min_resource=20), None),
        (
            pruner_settings("asha", min_resource=21),
            "at step 21 (pruner.min_resource), and trials report up to step 20; "
            "set pruner.min_resource=2",
        ),
        (pruner_settings("asha", min_early_stopping_rate=2), None),
        (
            pruner_settings("asha", min_early_stopping_rate=3),
            "at step 64 (pruner.min_resource x reduction_factor ** min_early_stopping_rate), and "
            "trials report up to step 20; set pruner.min_early_stopping_rate=0",
        ),
        (pruner_settings("hyperband", min_resource=20), None),
        (
            pruner_settings("hyperband", min_resource=30, max_resource=90),
            "set pruner.min_resource=2",
        ),
        (pruner_settings("wilcoxon", n_startup_steps=21), None),
        (
            pruner_settings("wilcoxon", n_startup_steps=22),
            "until 22 values (pruner.n_startup_steps), and trials report up to 21 values; "
            "set pruner.n_startup_steps=5",
        ),
        (pruner_settings("none"), None),
    ],
)
def test_a_pruner_that_waits_for_more_than_trials_report_is_said_with_a_change_that_helps(
    pruner: PrunerSettings, said: str | None
) -> None:
    study = spec(cells=4, budget=Budget(40), pruner=pruner)
    reported = Reported(3, silent=False, last=20, most=21)
    found = nothing_to_judge(study, reported)
    if said is None:
        assert found is None
        return
    assert said in str(found)
    assert str(found).startswith(f"pruner={pruner.name} could not act so far: ")
    changes = dict(
        part.removeprefix("pruner.").split("=")
        for part in str(found).rpartition("; set ")[2].split(" and ")
    )
    better = pruner_settings(
        **{**vars(pruner), **{name: int(value) for name, value in changes.items()}}
    )
    assert nothing_to_judge(replace(study, pruner=better), reported) is None


def test_one_report_a_trial_is_too_few_for_rungs_and_for_pairs() -> None:
    once = Reported(1, silent=False, last=0, most=1)
    for name in ("asha", "hyperband", "wilcoxon"):
        said = nothing_to_judge(spec(pruner=pruner_settings(name)), once)
        assert said is not None
        assert "or remove the pruner (pruner=none)" in said
        assert "report more" in said
    assert nothing_to_judge(spec(pruner=pruner_settings("median")), once) is None


def test_nothing_is_said_before_a_trial_is_complete_or_while_only_running_ones_have_reported() -> (
    None
):
    study = spec(pruner=pruner_settings("asha", min_resource=99))
    assert nothing_to_judge(study, Reported(0, silent=True)) is None
    assert nothing_to_judge(study, Reported(0, silent=False, last=3, most=3)) is None
    assert nothing_to_judge(study, Reported(1, silent=False)) is None


def test_how_to_report_depends_on_what_the_objective_is() -> None:
    asha = pruner_settings("asha")

    def said(complete: int, **changes: Any) -> str:
        silent = Reported(complete, silent=True)
        return str(nothing_to_judge(spec(pruner=asha, **changes), silent))

    assert "call trial.report and trial.should_prune" in said(1)
    assert "3 trials completed" in said(3, objective=REGEX)
    assert "print JSON lines with a step" in said(3, objective=REGEX)
