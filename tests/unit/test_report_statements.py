"""What a report says in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.report.statements import Statement, statements
from orchestrator.report.words import between, decimals, rounded, up
from orchestrator.search import Search
from orchestrator.settings import sampler_settings
from orchestrator.store import CellRow, Progress, StudyRow, TrialRow

Loss = Callable[[Mapping[str, Any]], float]
NET = Axis("net", ("small", "large"))
SPEC = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (NET,),
    (Searched("x", "float", -1.0, 1.0),),
    Budget(24, 1),
    sampler=sampler_settings("random"),
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def progress(spec: StudySpec, trials: Sequence[TrialRow], **closed: str) -> Progress:
    """As the store would count them; `closed` gives a reason by the cell's ordinal (`cell0`)."""
    cells = []
    for ordinal, values in enumerate(spec.cells()):
        mine = [t for t in trials if t.cell == ordinal]
        done = [t for t in mine if t.state == "COMPLETE" and t.values]
        sign = -1.0 if spec.directions[0] == "maximize" else 1.0
        best = min(done, key=lambda t: sign * (t.values or (0.0,))[0], default=None)
        reason = closed.get(f"cell{ordinal}")
        cells.append(
            CellRow(
                ordinal,
                values,
                "CLOSED" if reason else "OPEN",
                reason,
                len(mine),
                len(done),
                sum(t.state == "PRUNED" for t in mine),
                sum(t.state == "FAIL" for t in mine),
                0,
                best.values[0] if best and best.values else None,
                best.number if best else None,
                len(done),
            )
        )
    study = StudyRow(1, spec.name, 1, "FINISHED", "budget spent", False, NOW, NOW)
    n = len(trials)
    return Progress(
        study, n, n, 0, 0, 0, 0, 0.0, None, len(cells), None, None, tuple(cells), closed=len(closed)
    )


def played(
    loss: Loss, spec: StudySpec = SPEC, trials: int = 24, noise: float = 0.0
) -> tuple[Search, list[TrialRow]]:
    """A study whose trials the sampler suggested, cell by cell in turn."""
    search, rng, rows = Search(spec), np.random.default_rng(0), []
    cells = list(spec.cells())
    for number in range(trials):
        cell = number % len(cells)
        asked = search.ask(cells[cell], ticket=number, retry=0)
        value = loss(asked.values) + noise * rng.standard_normal()
        values = tuple([float(value)] * len(spec.directions))
        search.feed([TrialNews(number, "COMPLETE", asked.params, values, cell=cell)])
        rows.append(
            TrialRow(number, "COMPLETE", cell, dict(asked.values), values, 1, None, None, 1.0)
        )
    return search, rows


def of_kind(found: Sequence[Statement], kind: str) -> list[Statement]:
    return [statement for statement in found if statement.kind == kind]


def bowl(v: Mapping[str, Any]) -> float:
    return float((v["x"] - 0.3) ** 2 + 0.5 * (v["net"] == "small"))


@pytest.mark.parametrize(
    ("uncertainty", "value", "text"),
    [
        (0.0075, 0.01234, "0.012"),
        (0.0012, 0.01234, "0.0123"),
        (40.0, 1234.5, "1230"),
        (0.5, -0.01, "0"),
        (3e-9, 1.23456e-7, "1.23e-07"),
        (0.0, 0.25, "0.250000"),
    ],
)
def test_a_number_has_the_digits_that_its_uncertainty_supports(
    uncertainty: float, value: float, text: str
) -> None:
    assert rounded(value, decimals(uncertainty)) == text


def test_a_bound_is_rounded_up_and_an_interval_has_no_negative_zero() -> None:
    assert up(0.00301) == 0.0031
    assert up(0.003) == 0.003
    assert between(-0.0004, 0.019, 3) == "90 %: 0 to 0.019"


def test_the_winner_is_named_with_what_is_expected_of_it_and_how_often_it_ran() -> None:
    search, trials = played(bowl, noise=0.05)
    found = statements(SPEC, search, progress(SPEC, trials), trials)
    best = found[0]
    leaders = search.leaders()
    assert leaders is not None
    assert best.kind == "best"
    assert best.numbers["trial"] == leaders.best.trials[0]
    assert best.numbers["low"] < best.numbers["expected"] < best.numbers["high"]
    assert "`net=large`" in best.text
    (once,) = of_kind(found, "seeds")
    assert f"rerun study.name=s trial={best.numbers['trial']} seeds=5" in once.advice


def test_few_trials_are_called_few() -> None:
    search, trials = played(bowl, trials=1)
    found = statements(SPEC, search, progress(SPEC, trials), trials)
    assert found[0].kind == "best"
    assert "fewer than ten" in found[0].evidence


def test_without_a_complete_trial_nothing_can_be_said() -> None:
    found = statements(SPEC, Search(SPEC), progress(SPEC, []), [])
    assert [s.kind for s in found] == ["cannot-say"]
    assert found[0].verdict == "open"


def test_several_objectives_have_a_front_and_no_single_best() -> None:
    spec = replace(SPEC, directions=("minimize", "maximize"), metrics=("loss", "speed"))
    values = [(1.0, 5.0), (2.0, 6.0), (1.5, 4.0), (1.0, 5.0)]
    trials = [
        TrialRow(
            n, "COMPLETE", n % 2, {"net": NET.values[n % 2], "x": 0.1 * n}, v, 1, None, None, 1
        )
        for n, v in enumerate(values)
    ]
    found = statements(spec, Search(spec), progress(spec, trials), trials)
    front, cells = of_kind(found, "front")
    assert front.numbers["front"] == [0, 1, 3]
    assert "`loss` 1 in trial 0" in front.text
    assert "`speed` 6 in trial 1" in front.text
    assert cells.numbers["cells"] == {"`net=small`": [0], "`net=large`": [1, 3]}
    assert not of_kind(found, "best")


def test_failures_closed_cells_and_pruned_trials_are_counted() -> None:
    _, trials = played(bowl, trials=4)
    trials[1] = replace(trials[1], state="FAIL", values=None, failure="ValueError: no\nlog")
    trials[2] = replace(trials[2], state="PRUNED", values=None)
    found = statements(SPEC, None, progress(SPEC, trials, cell1="3 failures in a row"), trials)
    texts = [s.text for s in of_kind(found, "failures")]
    assert any("1 trial of 4 failed (25 %): ValueError: no (1)" in text for text in texts)
    assert any("`net=large` (3 failures in a row)" in text for text in texts)
    assert any("1 trial of 4 was pruned (25 %)" in text for text in texts)
