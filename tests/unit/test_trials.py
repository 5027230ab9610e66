"""The command `trials`: its words, the Pareto front, and how a trial is shown."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import trials
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError
from orchestrator.model import Axis
from orchestrator.store import STATES, ListedTrial, Selection
from tests.support.studies import spec

GRID = spec(
    grid=(
        Axis("a", (1, "1", "x,y")),
        Axis("optim.lr", (0.001, 1e-05)),
        Axis("deep", (False, None, [1, 2])),
    )
)


def call(*words: str) -> Call:
    return Call.parse("trials", words)


def listed(number: int = 0, **changes: Any) -> ListedTrial:
    made = ListedTrial(
        number=number,
        state="complete",
        cell=0,
        params={"a": 0, "x": 0.5},
        values=(1.0,),
        attempts=1,
        seconds=2.0,
        ended=None,
        host="here",
        step=None,
        last=None,
        failure=None,
        kind=None,
        feasible=True,
    )
    return replace(made, **changes)


def test_every_cell_is_found_by_its_values() -> None:
    words = {"a": ["1", '"1"', '"x,y"'], "optim.lr": ["1e-3", "0.00001"], "deep": ["False", "null"]}
    words["deep"].append("[1,2]")
    for ordinal, values in enumerate(itertools.product(*words.values())):
        text = ",".join(f"{path}={value}" for path, value in zip(words, values, strict=True))
        assert trials._cells(call(f"cell={text}"), GRID) == (ordinal,)
        assert trials._cells(call(f"cell={ordinal}"), GRID) == (ordinal,)
    assert trials._cells(call(), GRID) is None


def test_some_values_name_all_cells_that_have_them() -> None:
    cells = list(GRID.cells())
    found = trials._cells(call("cell=deep=null,optim.lr=0.001"), GRID)
    assert found is not None
    assert [cells[k] for k in found] == [
        cell for cell in cells if cell["deep"] is None and cell["optim.lr"] == 0.001
    ]


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("cell=18", "18 cells, numbered from 0"),
        ("cell=lr=0.001", "did you mean 'optim.lr'?"),
        ("cell=optim.lr=0.002", "its values are 0.001, 1e-05"),
        ("cell=best", "cell=a=1,optim.lr=0.001,deep=false"),
        ("state=fialed", "did you mean 'failed'?"),
        ("sort=vlaue", "did you mean 'value'?"),
        ("n=0", "at least 1, or all"),
        ("n=most", "n=most: must be a whole number or all"),
        (f"n={10**18}", "is too large"),
    ],
)
def test_a_wrong_word_is_refused_with_the_right_one(word: str, named: str) -> None:
    given = call(word)
    with pytest.raises(ConfigError, match=r"(cell|state|sort|n)=") as refused:
        trials._states(given), trials._sort(given), trials._most(given), trials._cells(given, GRID)
    assert named in str(refused.value)
    assert word in str(refused.value)


@pytest.mark.parametrize(
    ("word", "meant"), [("Sort=value", "sort"), ("stat=failed", "state"), ("cells=3", "cell")]
)
def test_a_misspelt_word_is_refused_with_the_right_one(word: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word}: trials .*did you mean '{meant}'"):
        call(word)


def test_a_setting_is_no_misspelt_word() -> None:
    assert call("storage=postgres", "storage.path=/x", "study.name=x").words == {}


def test_the_example_of_a_cell_names_a_cell_even_if_its_values_contain_commas() -> None:
    study = spec(grid=(Axis("a", ("x,y", "z")), Axis("b", ("[x", "1")), Axis("c", ([1, 2], 3))))
    assert trials._cells(call(f"cell={trials._example(study)}"), study) == (0,)


@pytest.mark.parametrize(
    ("states", "sort", "reverse", "said"),
    [
        (("failed",), "value", False, "the lowest number first"),
        (("failed", "pruned"), "value", True, "the highest number first"),
        (("complete", "failed"), "value", False, "the best first"),
        (("failed",), "ended", True, "the latest to end first"),
    ],
)
def test_trials_without_values_are_not_called_the_best(
    states: tuple[str, ...], sort: Any, reverse: bool, said: str
) -> None:
    assert trials._order(Selection(("minimize",), states, None, sort, reverse)) == said


def test_a_csv_has_all_trials_unless_a_number_is_given() -> None:
    assert trials._most(call()) == 20
    assert trials._most(call("--csv")) is None
    assert trials._most(call("--csv", "n=3")) == 3
    assert trials._most(call("n=all")) is None
    assert trials._states(call("state=failed,running")) == ("failed", "running")
    assert trials._states(call("state=all")) == tuple(STATES)
    assert trials._sort(call("sort=-ended")) == ("ended", True)


def test_short_lists_make_one_table_and_long_ones_several() -> None:
    lists = [[listed(k) for k in range(size)] for size in (1, 2, 1_000, 1_000, 10, 3)]
    assert [len(table) for table in trials._joined(lists)] == [3, 1_000, 1_000, 13]
    assert list(trials._joined([])) == []


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_front_is_what_nothing_dominates(objectives: int) -> None:
    directions = (*("maximize", "minimize", "maximize")[:objectives],)
    study = spec(directions=directions, metrics=("a", "b", "c")[:objectives])
    signs = [-1 if direction == "maximize" else 1 for direction in directions]
    dice = random.Random(objectives)
    for size in range(30):
        outcomes = [
            (number, tuple(float(dice.randrange(6)) for _ in directions)) for number in range(size)
        ]
        losses = {n: [s * v for s, v in zip(signs, values, strict=True)] for n, values in outcomes}
        assert trials.pareto_front(study, outcomes) == [
            n
            for n, loss in losses.items()
            if not any(
                other != loss and all(a <= b for a, b in zip(other, loss, strict=True))
                for other in losses.values()
            )
        ]


@pytest.mark.parametrize(
    ("kind", "failure", "said"),
    [
        ("exception", "ValueError: a may not be 0\nlog: /x\nTraceback", "ValueError"),
        ("exception", "torch.cuda.Broken: no", "Broken"),
        ("exception", "KeyboardInterrupt\nlog: /x", "KeyboardInterrupt"),
        ("oom", "torch.OutOfMemoryError: CUDA out of memory", "out of memory"),
        ("signal", "the process was killed by SIGSEGV", "SIGSEGV"),
        ("exit", "the program exited with code 3", "code 3"),
        ("timeout", "ran for more than 5 s", "timed out"),
        ("lost", "3 attempts were lost with their workers, the last: x", "lost with its workers"),
        (None, None, "unknown"),
        (None, "something quite long that nobody can name in a word", "something quite long that "),
    ],
)
def test_a_failure_is_said_in_a_word_or_two(kind: str | None, failure: str, said: str) -> None:
    shown = trials.short_failure(listed(state="failed", kind=kind, failure=failure))
    assert shown.startswith(said)
    assert len(shown) <= 40


def test_a_running_trial_shows_what_it_reported_last_and_for_how_long_it_runs() -> None:
    selection = Selection(("maximize",), ("running",))
    rows = [
        listed(7, state="running", values=None, seconds=300.0, step=12, last=0.93, attempts=2),
        listed(8, state="running", values=None, seconds=4.0),
    ]
    header, lines, left_out = trials._lines(spec(), selection, rows, None)
    assert header.split() == ["trial", "took", "a", "x"]
    assert lines[0].split(maxsplit=5) == ["7", "5", "min", "0", "0.5", "step 12: 0.93, 2 attempts"]
    assert lines[1].endswith("nothing reported yet")
    assert left_out == []


def test_parameters_without_room_are_named_and_the_rest_is_whole() -> None:
    study = spec(grid=(), search=())
    params = {f"p{k}": "long" * 5 for k in range(8)}
    header, lines, left_out = trials._lines(
        study, Selection(("maximize",), ("complete",)), [listed(params=params)], 80
    )
    assert len(header) <= 80
    assert len(lines[0]) <= 80
    assert left_out
    assert [name for name in params if name in header] + left_out == list(params)


def test_wide_characters_keep_the_columns_in_line() -> None:
    rows = [listed(0, params={"a": "東京", "x": 1}), listed(1, params={"a": "Oslo", "x": 2})]
    _, lines, _ = trials._lines(spec(), Selection(("maximize",), ("complete",)), rows, None)
    assert lines[0].endswith("東京  1")
    assert lines[1].endswith("Oslo  2")


def test_words_of_the_command_are_not_taken_for_overrides(tmp_path: Path) -> None:
    given = call("n=3", "cell=a=1", "study.name=mine", f"paths.data={tmp_path}", "--csv")
    assert given.words == {"n": "3", "cell": "a=1"}
    assert given.study_name == "mine"
