"""What is told of a running trial: parameters, last step, pace and time left, never a guess."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.running import Pace, Running, short_params
from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.settings import pruner_settings
from orchestrator.store import RunningRow

SPEC = StudySpec(
    name="s",
    directions=("maximize",),
    metrics=("acc",),
    objective={"_target_": "my.train"},
    params={},
    grid=(Axis("data.batch", (32, 64)),),
    search=(Searched("optim.lr", "float", 1e-4, 0.1), Searched("net.depth", "int", 1, 8)),
    budget=Budget(trials=12, per_cell=2),
)
PARAMS = {"optim.lr": 0.0123456, "net.depth": 3, "data.batch": 32}


def trial(**changes: Any) -> RunningRow:
    """It has reported the steps 0 to 4 in 10 s."""
    made = RunningRow(7, 0, PARAMS, 1, 2, 10.0, reports=5, first=0, last=4, value=0.91234567)
    return replace(made, **changes)


def pace(row: RunningRow, *last_steps: tuple[int, int], spec: StudySpec = SPEC) -> Pace:
    return Running([row], last_steps).pace(spec, row)


def table(running: Running, most: int | None = None, width: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width or 120, highlight=False)
    with console.capture() as captured:
        console.print(running.table(SPEC, most, width))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_parameters_are_short_and_the_grid_comes_first() -> None:
    assert short_params(SPEC, PARAMS) == "batch=32 lr=0.0123 depth=3"
    alike = {"optim.lr": 1e-5, "decoder.lr": 1.0, "asked": "x" * 30}
    assert short_params(SPEC, alike) == f"optim.lr=1e-05 decoder.lr=1 asked={'x' * 15}…"


def test_the_time_left_needs_steps_to_go_by_and_a_last_step_that_is_known() -> None:
    assert pace(trial()) == Pace(step_s=2.0)
    assert pace(trial(), (0, 9)) == Pace(2.0, 10.0, 9)
    # cells of their own length, and other cells where there is none
    assert pace(trial(), (0, 9), (1, 99)) == Pace(2.0, 10.0, 9)
    assert pace(trial(), (1, 9), (1, 9)) == Pace(2.0, 10.0, 9)
    # earlier trials of different length: the longest is a bound
    assert pace(trial(), (0, 6), (0, 9)) == Pace(2.0, 10.0, 9, varies=True)
    # longer than any before
    assert pace(trial(), (0, 3)).left_s is None
    # one report says nothing of the time that the next takes
    assert pace(trial(reports=1, last=0), (0, 9)) == Pace(last=9)
    assert pace(trial(reports=0, first=None, last=None, value=None)) == Pace()
    # some of a resumed trial's steps are of the attempt before
    assert pace(trial(attempt=2), (0, 9)) == Pace(last=9)


def test_steps_that_are_reported_now_and_then_count_whole() -> None:
    assert pace(trial(first=100, last=500), (0, 1000)) == Pace(0.02, 10.0, 1000)


def test_the_last_step_may_be_what_the_pruner_is_told() -> None:
    told = replace(SPEC, pruner=pruner_settings("hyperband", max_resource=9))
    assert pace(trial(), spec=told) == Pace(2.0, 10.0, 9)
    assert pace(trial(), (0, 19), spec=told).last == 19
    unknown = replace(SPEC, pruner=pruner_settings("hyperband"))
    assert pace(trial(), spec=unknown) == Pace(2.0)


def test_the_table_has_a_row_per_trial_and_is_cut_off_at_the_edge_of_a_terminal() -> None:
    running = Running([trial(), trial(number=8, cell=1)], [(0, 9), (1, 9), (1, 12)])
    lines = table(running)
    assert lines[0].split("  ")[0] == "running trial"
    assert lines[1].split() == [
        *("7", "10", "s", "4/9", "0.912346", "2", "s", "about", "10", "s", "1", "2"),
        *("batch=32", "lr=0.0123", "depth=3"),
    ]
    assert lines[2].split()[1:9] == ["10", "s", "4", "0.912346", "2", "s", "up", "to"]
    narrow = table(running, most=1, width=70)
    assert len(narrow) == 2
    assert narrow[1].endswith("…")
    assert len(narrow[1]) == 70


def test_without_reports_there_are_no_empty_columns() -> None:
    silent = trial(reports=0, first=None, last=None, value=None)
    assert table(Running([silent]), width=80) == [
        "running trial   for  parameters",
        "            7  10 s  batch=32 lr=0.0123 depth=3",
    ]
    assert Running([silent]).line(SPEC) == ""


def test_a_line_has_the_first_three_trials_that_reported() -> None:
    rows = [trial(number=k) for k in range(5)]
    line = Running(rows, [(0, 9)]).line(SPEC)
    assert line.startswith("trial 0: step 4/9, acc 0.912346, about 10 s left; trial 1: ")
    assert line.endswith("; … 2 more")


def test_data_is_json_with_nulls_for_what_is_not_known() -> None:
    running = Running([trial()])
    assert json.loads(json.dumps(running.data(SPEC, 7))) == {
        "seconds": 10.0,
        "step": 4,
        "value": 0.91234567,
        "seconds_per_step": 2.0,
        "last_step": None,
        "seconds_left": None,
    }
    assert running.data(SPEC, 8) == {}


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_a_trial_that_has_just_begun_has_a_pace_too(seconds: float) -> None:
    assert pace(trial(seconds=seconds), (0, 9)).left_s == pytest.approx(0.0, abs=1e-8)
