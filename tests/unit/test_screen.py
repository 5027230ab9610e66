"""What people see: labels, tables, the plan."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from orchestrator import search
from orchestrator.cli import screen
from orchestrator.cli.running import Running
from orchestrator.model import (
    Axis,
    Budget,
    Searched,
    StudySpec,
    cell_label,
    count_label,
    value_label,
)
from orchestrator.search import CellEstimate
from orchestrator.settings import pruner_settings
from orchestrator.store import CellRow, ClosedFor, Progress, RunningRow, StudyRow, TrialRow

SPEC = StudySpec(
    name="s",
    directions=("maximize",),
    metrics=("acc[bold]",),
    objective={"_target_": "my.train"},
    params={},
    grid=(Axis("batch", (32, 64)), Axis("optim.name", ("a\nb", "c"))),
    search=(
        Searched("lr", "float", 1e-4, 0.1, log=True),
        Searched("drop", "float", 0.0, 4.0, step=1.0),
        Searched("depth", "int", 1, 8),
    ),
    budget=Budget(trials=12, per_cell=2, hours=1.5),
)


def cells(spec: StudySpec) -> tuple[CellRow, ...]:
    zeros: dict[str, Any] = {
        "bound": 3,
        "completed": 0,
        "pruned": 0,
        "failed": 0,
        "running": 0,
        "spent": 0,
    }
    return tuple(
        CellRow(
            ordinal=k, values=values, state="OPEN", reason=None, best=None, best_trial=None, **zeros
        )
        for k, values in enumerate(spec.cells())
    )


def rendered(table: object) -> list[str]:
    console = Console(file=io.StringIO(), width=180, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_labels_are_one_line_and_cannot_steer_a_terminal() -> None:
    assert value_label("a\nb\tc\x1b[31m\u2028\ud800") == "a\\nb\\tc\\x1b[31m\\u2028\\ud800"
    assert value_label("日本 ü\\n") == "日本 ü\\n"
    assert value_label("a\u202eb\u2066\u200b") == "a\\u202eb\\u2066\\u200b", "reorders, or hides"
    assert value_label({"a": ["\n"]}) == '{"a":["\\n"]}'
    assert cell_label({"x": "a\rb", "y\u202e": 1}) == "x=a\\rb y\\u202e=1"


def test_labels_tell_a_text_from_the_number_that_it_looks_like() -> None:
    assert list(map(value_label, (1, "1", 0.5, "0.5", "-1e3", True, "true", None, "null"))) == [
        *("1", '"1"', "0.5", '"0.5"', '"-1e3"', "true", '"true"', "null", '"null"')
    ]
    others = ("True", "NULL", "None", "nan", "-inf", ".nan", ".5", "1_000", "1E5")
    assert list(map(value_label, others)) == [f'"{text}"' for text in others]
    assert list(map(value_label, ("relu", "1a", "", "v1.0", "1 2"))) == [
        "relu",
        "1a",
        "",
        "v1.0",
        "1 2",
    ]


def test_counts_of_one_are_singular() -> None:
    assert [count_label(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]


def test_without_a_best_trial_the_results_have_one_blank_line() -> None:
    study = StudyRow(
        1, "s", 1, "PAUSED", "by hand", False, datetime.now(UTC), datetime.now(UTC), 0.0, True
    )
    progress = Progress(study, 4, 0, 0, 0, 0, 0, 1.0, None, 4, None, None, cells(SPEC))
    assert screen.results(SPEC, progress, []).splitlines()[1:3] == ["", "best of every cell"]


def test_cells_beyond_the_room_are_told_under_the_table() -> None:
    lines = rendered(screen.cell_table(SPEC, cells(SPEC), room=1))
    assert lines[0].split() == [
        "batch",
        "optim.name",
        "done",
        "pruned",
        "failed",
        "running",
        "best",
        "acc[bold]",
        "trial",
    ]
    assert lines[0].startswith("batch  optim.name")  # the last line did not widen the first column
    assert lines[-1] == "… 1 more cell"
    assert "a\\nb" in lines[1]
    assert len(lines) == 1 + 3 + 1
    assert not any("more" in line for line in rendered(screen.cell_table(SPEC, cells(SPEC))))


def test_a_cell_closed_for_a_device_says_which_and_why() -> None:
    short = ClosedFor("H100 (79.6 GiB)", "gpu", 85_000_000_000, "trial 7 ran out of memory")
    *others, last = cells(SPEC)
    shown = (*others, replace(last, closed_for=(short, replace(short, device="A100"))))
    lines = rendered(screen.cell_table(SPEC, shown))
    assert lines[4].endswith(
        "closed for H100 (79.6 GiB): trial 7 ran out of memory; closed for A100: trial 7 ran out "
        "of memory"
    )
    study = StudyRow(1, "s", 1, "ACTIVE", None, True, datetime.now(UTC), datetime.now(UTC))
    progress = Progress(study, 12, 0, 0, 0, 0, 0, 1.0, None, len(shown), None, None, shown)
    told = screen.as_data(SPEC, progress, [])["cells"]
    assert told[0]["closed_for"] == []
    assert told[3]["closed_for"][0] == {
        "device": "H100 (79.6 GiB)",
        "memory": "gpu",
        "bytes": 85_000_000_000,
        "reason": "trial 7 ran out of memory",
    }
    assert (
        "; closed for H100 (79.6 GiB): trial 7"
        in screen.cell_comments(SPEC, shown, [None] * 4).splitlines()[-1]
    )


def test_the_cell_of_the_best_estimate_comes_first_in_comments() -> None:
    likeliest = CellEstimate(0.90, 0.60, 0.99, 0.5)  # hardly known
    best = CellEstimate(0.93, 0.92, 0.94, 0.4)
    estimates = [likeliest, None, best, None]
    header = [
        rendered(screen.cell_table(SPEC, cells(SPEC), estimates=given))[0]
        for given in (estimates, [None] * 4)
    ]
    assert " acc[bold] of believed best " in header[0]
    assert " best acc[bold] " in header[1], "what is observed and what is believed may differ"
    lines = screen.cell_comments(SPEC, cells(SPEC), estimates).splitlines()
    assert "0.93 (0.92 to 0.94)" in lines[1]
    assert "0.9 (0.6 to 0.99)" in lines[2]


def progress_of(shown: tuple[CellRow, ...], **changes: Any) -> Progress:
    """12 trials, 3 spent since the launch 30 s ago."""
    study = StudyRow(1, "s", 1, "ACTIVE", None, True, datetime.now(UTC), datetime.now(UTC))
    made = Progress(study, 12, 3, 2, 0, 0, 3, 30.0, None, len(shown), None, None, shown)
    return replace(made, **changes)


def test_if_not_all_cells_fit_the_best_come_first_then_those_that_run_trials() -> None:
    a, b, c, d = cells(SPEC)
    many = (
        replace(a, state="CLOSED", reason="3 failures in a row"),
        replace(b, running=1),
        replace(c, best=0.5, best_trial=1),
        replace(d, best=0.75, best_trial=0),
    )
    lines = rendered(screen.cell_table(SPEC, many, room=3))
    assert [line.split()[:2] for line in lines[1:4]] == [["64", "c"], ["64", "a\\nb"], ["32", "c"]]
    assert lines[4] == "… 1 more cell (1 closed)"
    lower = replace(SPEC, directions=("minimize",))
    assert rendered(screen.cell_table(lower, many, room=3))[1].split()[:2] == ["64", "a\\nb"]
    # of a grid of which only a part was read
    whole = progress_of(many, n_cells=1000, closed=5)
    assert rendered(screen.cell_table(SPEC, many, total=whole))[-1] == (
        "… 996 more cells (4 closed)"
    )


def test_done_is_told_against_what_the_cell_will_get_and_that_it_may_grow() -> None:
    a, b, *_ = cells(SPEC)
    shown = (replace(a, spent=2, share=6), replace(b, spent=2, share=3, grows=True))
    lines = rendered(screen.cell_table(SPEC, shown))
    assert [line.split()[2] for line in lines[1:]] == ["2/6", "2/3+"]


def test_the_time_left_is_told_once_as_many_trials_ended_as_run_and_three_at_least() -> None:
    def told(**changes: Any) -> str:
        return screen.headline(SPEC, progress_of(cells(SPEC), **changes))

    assert told().endswith("about 2 min left")
    assert "left" not in told(spent_since=2)
    assert "left" not in told(running=4)
    assert "left" not in told(spent=12)
    assert "left" not in told(running=0), "a study that nobody works on does not end"


def test_trials_of_a_closed_cell_that_repeat_others_are_told() -> None:
    grid_only = replace(SPEC, search=(), budget=Budget(trials=8, per_cell=2))
    a, b, c, d = cells(grid_only)
    closed = replace(d, state="CLOSED", reason="4 trials failed in a row", failed=4)
    shared = (replace(a, spent=3), replace(b, spent=3), replace(c, spent=2), closed)
    progress = progress_of(shared, closed=1, n_cells=4)
    best = TrialRow(1, "COMPLETE", 0, dict(a.values), (1.0,), 1, None, None, 1.0)
    assert screen.repeats(grid_only, progress, [best]) == (
        "2 trials that the closed cells left went to the others; nothing is searched, so they "
        "repeat their parameters with other seeds"
    )
    one = (replace(a, spent=3), replace(b, spent=2), replace(c, spent=2), closed)
    assert (
        screen.repeats(grid_only, progress_of(one, closed=1, n_cells=4), [best]) or ""
    ).endswith("so it repeats their parameters with other seeds")
    assert screen.repeats(SPEC, progress, []) is None, "lr, drop and depth are searched"
    asked = replace(best, params={**best.params, "momentum": 0.9})
    assert screen.repeats(grid_only, progress, [asked]) is None, "the objective asks for one"
    more = replace(grid_only, budget=Budget(trials=10, per_cell=2))
    assert screen.repeats(more, progress, [best]) is None, "two more than the shares were wanted"
    assert screen.repeats(grid_only, progress_of(cells(grid_only), n_cells=4), [best]) is None


def test_the_live_table_has_a_bar_and_what_it_waits_for_and_fits_the_terminal() -> None:
    def lines(height: int, note: str | None = None) -> list[str]:
        trials = [RunningRow(k, 0, {"lr": 0.01}, 1, k, 12.0) for k in range(9)]
        console = Console(file=io.StringIO(), width=80, height=height, highlight=False)
        with console.capture() as captured:
            console.print(
                screen.live_table(
                    SPEC,
                    progress_of(cells(SPEC)),
                    Running(trials),
                    note,
                    width=80,
                    height=height,
                )
            )
        return [line.rstrip() for line in captured.get().splitlines()]

    tall = lines(40)
    assert tall[0].startswith("3/12 trials, 2 running")
    assert re.fullmatch(r"[━╸╺ ]{60} 25 %", tall[1])
    assert sum("lr=0.01" in line for line in tall) == 9
    assert not any("more" in line for line in tall)
    short = lines(12, "waiting for the first trial: 2 workers starting")
    assert len(short) == 12
    assert short[2] == "waiting for the first trial: 2 workers starting"
    assert [line for line in short if line.startswith("…")] == ["… 7 more running", "… 1 more cell"]


def test_without_a_terminal_steps_are_a_line_a_minute_and_a_note_once_it_has_lasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("orchestrator.cli.screen.time.monotonic", lambda: clock[0])
    view = screen.View(SPEC, as_json=False)

    def said(at: float, last: int, note: str | None = None) -> str:
        clock[0] = at
        trial = RunningRow(7, 0, {}, 1, 1, at, last + 1, 0, last, 0.5)
        view.update(progress_of(cells(SPEC)), Running([trial]), note)
        return capsys.readouterr().out.strip()

    assert said(1.0, 0, "waits").startswith("3/12 trials")
    assert said(2.0, 0, "waits") == ""
    assert said(3.5, 0, "waits") == "waits"
    assert said(9.0, 0, "waits") == ""
    assert said(61.0, 5) == "trial 7: step 5, acc[bold] 0.5"
    assert said(70.0, 6) == ""
    assert said(125.0, 6) == "trial 7: step 6, acc[bold] 0.5"
    assert said(190.0, 6) == "", "nothing new"


def test_the_plan_says_every_parameter_once_with_its_step() -> None:
    lines = screen.plan(SPEC, search.describe(SPEC)).splitlines()
    (batch,) = [line for line in lines if " batch " in line]
    assert batch.split(maxsplit=2) == ["grid", "batch", batch.split(maxsplit=2)[2]]
    assert batch.count("grid") == 1
    assert "[32,64]" in batch
    (drop,) = [line for line in lines if " drop " in line]
    assert "range(0.0, 5.0, 1.0)" in drop
    assert "float from 0 to 4" in drop
    assert "no trial starts after 1.5 h" in lines
    assert "  batch=32 optim.name=a\\nb" in lines


def test_the_plan_says_what_auto_stands_for() -> None:
    pruned = replace(SPEC, pruner=pruner_settings("median"))
    lines = screen.plan(pruned, search.describe(SPEC)).splitlines()
    line = "pruner.n_startup_trials=auto is 1: a third of the 3 trials of a cell, from 1 to 5"
    assert line in lines
    assert screen.plan_data(pruned, [])["pruner"]["n_startup_trials"] == 1
    assert "auto" not in screen.plan(SPEC, search.describe(SPEC))


def test_the_plan_of_a_study_without_parameters() -> None:
    bare = replace(SPEC, grid=(), search=())
    text = screen.plan(bare, search.describe(bare))
    assert "parameters" not in text
    assert "(no grid)" in text


def test_the_plan_says_how_many_trials_confirm() -> None:
    confirming = replace(SPEC, budget=replace(SPEC.budget, confirm=3))
    text = screen.plan(confirming, search.describe(confirming))
    assert (
        "4 more by allocation=uniform (the last 3 confirm the leaders: budget.confirm), 12 in total"
        in text
    )


def test_the_plan_as_data_is_json_with_every_cell() -> None:
    data = json.loads(json.dumps(screen.plan_data(SPEC, search.describe(SPEC))))
    assert data["study"] == "s"
    failures = {"max_failures_per_cell": 3, "max_failures_at_start": "auto"}
    assert data["budget"] == {"trials": 12, "per_cell": 2, "hours": 1.5, "confirm": 0, **failures}
    assert data["guaranteed"] == 8
    assert data["cells"][0] == {"batch": 32, "optim.name": "a\nb"}
    assert len(data["cells"]) == 4
    sections = {p["path"]: (p["section"], p["declared"]) for p in data["parameters"]}
    assert sections["lr"] == ("search", "tag(log, interval(0.0001, 0.1))")
    assert sections["batch"] == ("grid", "[32,64]")
    assert all(not p["stored"].startswith(("grid", "search")) for p in data["parameters"])


def test_infinite_values_are_words_in_json_and_cells_without_a_complete_trial_say_so() -> None:
    assert json.loads(screen.as_json({"a": [float("inf"), (float("-inf"), 1.5)], "b": True})) == {
        "a": ["inf", ["-inf", 1.5]],
        "b": True,
    }
    pruned = [replace(cell, pruned=4, spent=3) for cell in cells(SPEC)]
    waits = [replace(cell, pruned=2, spent=2) for cell in cells(SPEC)]
    shown = rendered(
        screen.cell_table(SPEC, (pruned[0], waits[1], replace(pruned[2], completed=1)))
    )
    assert ["all 4 trials pruned themselves; no complete trial" in line for line in shown[1:4]] == [
        True,
        False,
        False,
    ]
