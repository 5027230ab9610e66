"""Whom the pruners compare a trial with, and when they stay silent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import optuna
import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search
from orchestrator.settings import pruner_settings

SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (Axis("side", (-1, 1)),),
    (Searched("x", "float", -1.0, 1.0),),
    Budget(60),
)
PRUNERS: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "asha", "reduction_factor": 2},
    {"name": "hyperband", "max_resource": 8},
    {"name": "wilcoxon", "p_threshold": 0.2},
]


def curve(level: float, steps: int = 8) -> dict[int, float]:
    return {step: level + 0.01 * step for step in range(1, steps + 1)}


def trial(
    number: int,
    level: float,
    cell: int | None,
    state: Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"] = "COMPLETE",
) -> TrialNews:
    reports = curve(level) if state == "COMPLETE" else {}
    values = (level,) if state == "COMPLETE" else None
    return TrialNews(number, state, values=values, intermediate=reports, cell=cell)


def searching(pruner: Mapping[str, Any], news: Iterable[TrialNews], **fields: Any) -> Search:
    search = Search(replace(SPEC, pruner=pruner_settings(**pruner), **fields))
    search.feed(news)
    return search


def pruned_at(search: Search, number: int, reports: Mapping[int, float]) -> int | None:
    """The first step at which the trial is told to stop, asked at each report as a child does."""
    seen: dict[int, float] = {}
    for step, value in reports.items():
        seen[step] = value
        if search.should_prune(number, reports=seen):
            return step
    return None


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: p["name"])
def test_a_hopeless_trial_is_pruned_and_the_best_one_is_not(pruner: Mapping[str, Any]) -> None:
    search = searching(pruner, [trial(n, 1.0 + 0.1 * n, 0) for n in range(8)])
    search.feed([trial(20 + n, 0.0, 0, "RUNNING") for n in range(6)])
    stops = [pruned_at(search, 20 + n, curve(9.0)) for n in range(3)]
    assert any(stop is not None for stop in stops)
    assert pruned_at(search, 25, curve(0.5)) is None


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: p["name"])
def test_nothing_is_pruned_in_a_cell_without_a_complete_trial(pruner: Mapping[str, Any]) -> None:
    search = searching(pruner, [trial(n, 1.0, 0) for n in range(12)])
    search.feed([trial(n, 9.0, 1, "FAIL") for n in range(20, 26)])
    search.feed([trial(30 + n, 0.0, 1, "RUNNING") for n in range(6)])
    assert all(pruned_at(search, 30 + n, curve(9.0)) is None for n in range(6))


@pytest.mark.parametrize(("within_cell", "expected"), [(True, False), (False, True)])
@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda p: p["name"])
def test_a_trial_is_compared_in_its_own_cell_if_so_set(
    pruner: Mapping[str, Any], within_cell: bool, expected: bool
) -> None:
    """Cell 1 is worse than cell 0 throughout; the running trial is the best that cell
    1 ever had.
    """
    news = [trial(n, 1.0 + 0.1 * n, 0) for n in range(8)] + [
        trial(8 + n, 6.0 + 0.1 * n, 1) for n in range(6)
    ]
    search = searching({**pruner, "within_cell": within_cell}, news)
    search.feed([trial(20 + n, 0.0, 1, "RUNNING") for n in range(4)])
    stops = [pruned_at(search, 20 + n, curve(5.0)) for n in range(4)]
    assert any(stop is not None for stop in stops) is expected


def test_the_defaults_compare_level_pruners_in_the_cell_and_rank_pruners_in_the_study() -> None:
    news = [trial(n, 1.0 + 0.1 * n, 0) for n in range(8)] + [
        trial(8 + n, 6.0 + 0.1 * n, 1) for n in range(6)
    ]
    news += [trial(20 + n, 0.0, 1, "RUNNING") for n in range(4)]
    verdicts = {}
    for pruner in PRUNERS:
        search = searching(pruner, news)
        verdicts[pruner["name"]] = any(pruned_at(search, 20 + n, curve(5.0)) for n in range(4))
    assert verdicts == {"median": False, "asha": True, "hyperband": True, "wilcoxon": False}


def test_asha_stops_the_same_trials_as_plain_optuna() -> None:
    levels = [3.0, 1.0, 2.0, 5.0, 0.5, 4.0, 0.7, 6.0, 0.2, 2.5, 0.9, 0.1]
    study = optuna.create_study(
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    )
    search = searching({"name": "asha", "reduction_factor": 2, "within_cell": False}, [])
    for number, level in enumerate(levels):
        plain, stopped = study.ask(), None
        for step, value in curve(level).items():
            plain.report(value, step)
            if plain.should_prune():
                stopped = step
                break
        search.feed([trial(number, 0.0, None, "RUNNING")])
        ours = pruned_at(search, number, curve(level))
        assert ours == stopped, number
        reports = {s: v for s, v in curve(level).items() if stopped is None or s <= stopped}
        study.tell(
            plain,
            None if stopped else level,
            state=optuna.trial.TrialState.PRUNED if stopped else None,
        )
        done: Sequence[TrialNews] = [
            TrialNews(
                number,
                "PRUNED" if stopped else "COMPLETE",
                values=None if stopped else (level,),
                intermediate=reports,
            )
        ]
        search.feed(done)


def test_a_trial_taken_up_by_another_worker_is_judged_alike() -> None:
    news = [trial(n, 1.0 + 0.1 * n, 0) for n in range(8)] + [trial(20, 0.0, 0, "RUNNING")]
    pruner = {"name": "asha", "reduction_factor": 2}
    first, second = searching(pruner, news), searching(pruner, news)
    good_then_bad = {1: 0.5, 2: 0.5, 3: 0.5, 4: 9.0}
    assert pruned_at(first, 20, good_then_bad) == 4
    assert first.should_prune(20, reports=good_then_bad)
    assert second.should_prune(20, reports=good_then_bad)


@pytest.mark.parametrize("share", [2, 3, 4])
def test_a_trial_a_hundred_times_worse_is_pruned_in_a_small_cell(share: int) -> None:
    """By default, once the other trials of the cell are complete."""
    news = [trial(n, 1.0 + 0.1 * n, n % 2) for n in range(2 * (share - 1))]
    news += [trial(20, 0.0, 0, "RUNNING"), trial(21, 0.0, 1, "RUNNING")]
    small = {"budget": Budget(2 * share)}
    search = searching({"name": "median"}, news, **small)
    assert pruned_at(search, 20, curve(100.0)) == 1
    assert pruned_at(search, 21, curve(0.5)) is None
    patient = searching({"name": "median", "n_startup_trials": 5}, news, **small)
    assert pruned_at(patient, 20, curve(100.0)) is None


def test_a_trial_that_is_not_known_or_has_not_reported_goes_on() -> None:
    search = searching(
        {"name": "median"}, [trial(n, 1.0, 0) for n in range(8)] + [trial(20, 0.0, 0, "RUNNING")]
    )
    assert not search.should_prune(99, reports=curve(9.0))
    assert not search.should_prune(20, reports={})
    assert search.should_prune(20, reports={1: 9.0})


def test_maximising_prunes_the_low_one() -> None:
    search = searching(
        {"name": "median"}, [trial(n, 1.0, 0) for n in range(8)], directions=("maximize",)
    )
    search.feed([trial(20, 0.0, 0, "RUNNING")])
    assert search.should_prune(20, reports={1: 0.2})
    assert not search.should_prune(20, reports={1: 1.2})


def test_without_pruner_or_with_several_objectives_nothing_is_pruned() -> None:
    news = [trial(n, 1.0, 0) for n in range(8)] + [trial(20, 0.0, 0, "RUNNING")]
    assert not searching({"name": "none"}, news).should_prune(20, reports=curve(9.0))
    several = searching(
        {"name": "median"}, [], directions=("minimize", "minimize"), metrics=("a", "b")
    )
    several.feed([replace(item, values=(1.0, 1.0) if item.values else None) for item in news])
    assert not several.should_prune(20, reports=curve(9.0))


def test_a_repetition_of_a_complete_trial_is_never_pruned() -> None:
    search = searching({"name": "median"}, [trial(n, 1.0, 0) for n in range(8)])
    once, other = (search.ask({"side": -1}, ticket=n, retry=0).params for n in (8, 9))
    search.feed([replace(trial(8, 1.0, 0), params=once)])
    for number, params, step in ((20, other, 1), (21, once, None)):
        search.feed([replace(trial(number, 0.0, 0, "RUNNING"), params=params)])
        assert pruned_at(search, number, curve(100.0)) == step
