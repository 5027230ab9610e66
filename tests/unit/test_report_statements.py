"""What a report says in sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.report.about import left_out
from orchestrator.report.advice import more_trials
from orchestrator.report.axes import about_axes
from orchestrator.report.cells import about_cells
from orchestrator.report.compared import Compared
from orchestrator.report.parameters import about_parameters
from orchestrator.report.statements import Statement, statements
from orchestrator.report.subject import Subject
from orchestrator.report.words import between, decimals, rounded, up
from orchestrator.search import Search
from orchestrator.settings import pruner_settings, sampler_settings
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
        (1e-12, 0.98, "0.98"),
        (1e-12, 1.23456789e-7, "1.23457e-07"),
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
    (cannot,) = of_kind(found, "cannot-say")
    assert "a model needs 10 complete trials, and there is 1" in cannot.text


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
    assert cells.numbers["cells"] == [
        {"values": {"net": "small"}, "trials": [0]},
        {"values": {"net": "large"}, "trials": [1, 3]},
    ]
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


def test_less_pruning_is_advised_by_what_the_pruner_has() -> None:
    _, trials = played(bowl, trials=4)
    pruned = [replace(trial, state="PRUNED", values=None) for trial in trials]
    for name, advised in (("median", True), ("hyperband", False)):
        spec = replace(SPEC, pruner=pruner_settings(name))
        (said,) = of_kind(statements(spec, None, progress(spec, pruned), pruned), "failures")
        assert "`pruner=none`" in said.advice
        assert ("n_warmup_steps" in said.advice) is advised


def test_a_cell_that_had_enough_trials_can_be_compared() -> None:
    _, trials = played(bowl, trials=4)
    settled = progress(SPEC, trials, cell1="enough: nothing more to gain")
    (said,) = of_kind(statements(SPEC, None, settled, trials), "failures")
    assert said.text == "1 cell had enough trials before the budget was spent: `net=large`"


# --------------------------------------------------------------------------- what the model says


def told(
    loss: Loss, spec: StudySpec = SPEC, trials: int = 48, noise: float = 0.01
) -> list[Statement]:
    search, rows = played(loss, spec, trials, noise)
    return statements(spec, search, progress(spec, rows), rows)


BATCH = Axis("batch", (32, 64, 128))
TWO_AXES = replace(SPEC, grid=(NET, BATCH))


def test_the_best_of_many_that_are_tied_is_a_bet_and_the_advice_is_whole() -> None:
    def flat(v: Mapping[str, Any]) -> float:
        return 0.01 * float((v["x"] - 0.3) ** 2)

    search, rows = played(flat, noise=0.05)
    leaders, where = search.leaders(), progress(SPEC, rows)
    assert leaders is not None
    assert leaders.tied
    best = statements(SPEC, search, where, rows)[0]
    assert best.verdict == "open"
    assert best.text.startswith(f"Trial {leaders.best.trials[0]} is the best bet, tied with ")
    assert best.numbers["tied"] == [leader.trials[0] for leader in leaders.tied]
    more = int(best.advice.partition("budget.confirm=")[2].partition("`")[0])
    assert f"`budget.trials={24 + more} budget.confirm={more}`" in best.advice


@pytest.mark.parametrize(
    ("total", "spent", "advice"),
    [
        (24, 24, "launch again with `budget.trials=34`"),
        (29, 24, "launch again with `budget.trials=34`"),  # five of a rerun are to come
        (24, 20, "launch again with `budget.trials=30`"),
        (24, 14, ""),
    ],
)
def test_a_budget_is_raised_by_what_is_not_to_come_anyway(
    total: int, spent: int, advice: str
) -> None:
    where = replace(progress(SPEC, []), total=total, spent=spent)
    assert more_trials(SPEC, where, 10) == advice


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_beats_what_follows_the_direction(direction: Any) -> None:
    spec = replace(SPEC, directions=(direction,))
    found = told(bowl, spec)
    (contrast,) = of_kind(found, "contrast")
    better, worse = ("large", "small") if direction == "minimize" else ("small", "large")
    assert contrast.text.startswith(f"`net={better}` beats `{worse}` by 0.")
    assert contrast.verdict == "finding"
    assert 0.0 < contrast.numbers["low"] < contrast.numbers["difference"]
    assert contrast.numbers["probability"] >= 0.95
    assert "48 complete trials" in contrast.evidence


def test_an_axis_that_does_nothing_makes_no_difference_within_a_bound() -> None:
    search, rows = played(bowl, noise=0.05)
    compared = Compared.of(SPEC, progress(SPEC, rows))
    science = compared.science(search)
    assert science is not None
    small = replace(science, axes=(replace(science.axes[0], largest=0.00301),), margin=0.01)
    where = progress(SPEC, rows)
    (same,) = about_axes(SPEC, small, compared, where)
    assert same.text == "`net` makes no difference within 0.0031"
    assert "below 0.01 counts as none" in same.evidence
    large = replace(small, margin=0.003)
    assert {s.kind for s in about_axes(SPEC, large, compared, where)} == {"contrast"}


def test_what_is_open_is_said_to_be_and_how_many_trials_would_decide() -> None:
    def close(v: Mapping[str, Any]) -> float:
        return float((v["x"] - 0.3) ** 2 + 0.02 * (v["net"] == "small"))

    (open_,) = of_kind(told(close, trials=24, noise=0.05), "undecided")
    assert open_.verdict == "open"
    assert "not enough to say" in open_.text
    assert "behind to" in open_.text
    assert " -" not in open_.text
    assert "more trial" in open_.text or "further trials" in open_.text


def test_with_few_trials_for_the_parameters_nothing_is_found_however_sure_the_model_is() -> None:
    found = told(bowl, trials=19)
    (open_,) = of_kind(found, "undecided")
    assert open_.numbers["probability"] >= 0.95
    assert "behind" not in open_.text  # the interval does not hold 0
    assert open_.text.endswith("with more trials this would be a finding")
    (few,) = of_kind(found, "few-trials")
    assert few.text.startswith("19 complete trials are too few for 2 parameters")
    assert few.advice == "launch again with `budget.trials=26`"  # of 24; the cells get one each
    assert not of_kind(found, "contrast")
    assert {s.verdict for s in of_kind(found, "cell")} == {"open"}
    (matters,) = of_kind(found, "importance")
    assert matters.text.startswith("Not enough to say what matters. So far the model expects `x` ")
    assert of_kind(told(bowl, trials=20), "contrast")


def test_an_interaction_says_where_it_turns_round() -> None:
    def crossing(v: Mapping[str, Any]) -> float:
        turned = (v["net"] == "small") != (v["batch"] == 128)
        return float((v["x"] - 0.3) ** 2 + 0.5 * turned)

    (interaction,) = of_kind(told(crossing, TWO_AXES, 60), "interaction")
    assert interaction.verdict == "finding"
    assert "`batch=128`" in interaction.text
    assert "worse by" in interaction.text


def test_importance_names_what_matters_and_what_does_not() -> None:
    spec = replace(SPEC, search=(*SPEC.search, Searched("idle", "float", 0.0, 1.0)))
    matters, idle = of_kind(told(bowl, spec), "importance")
    assert matters.text.startswith("What matters most over the searched space: `x` 0.9")
    assert idle.text.startswith("`idle` hardly matters: less than 0.01 of the variance")
    assert "search.idle=null" in idle.advice


def test_a_metric_that_is_always_the_same_is_all_that_is_said() -> None:
    (only,) = told(lambda _: 0.5, noise=0.0)
    assert (only.kind, only.verdict) == ("metric", "warning")
    assert only.text == (
        "Each of 48 complete trials has the same `loss`, 0.5: does the objective return the right "
        "number?"
    )
    spec = replace(SPEC, directions=("minimize", "minimize"), metrics=("loss", "size"))
    first, second, *_ = told(lambda _: 0.5, spec, 12, noise=0.0)
    assert "`loss`" in first.text
    assert "`size`" in second.text


def test_without_a_finite_value_no_trial_is_the_best() -> None:
    _, rows = played(bowl, trials=12)
    rows = [replace(row, values=(float("inf"),)) for row in rows]
    (only,) = statements(SPEC, None, progress(SPEC, rows), rows)
    assert only.text == "No trial has a finite `loss`; 12 trials reached the end"
    assert "seeds" not in only.advice


def test_a_long_axis_has_one_statement_and_not_one_of_each_value() -> None:
    spec = replace(SPEC, grid=(Axis("a", tuple(range(8))),))
    found = told(lambda v: float((v["x"] - 0.3) ** 2 + (v["a"] > 0)), spec, 48)
    (contrast,) = of_kind(found, "contrast")
    assert contrast.text.startswith("`a=0` beats `")
    assert " and 2 more by " in contrast.text
    assert " or more, P " in contrast.text
    assert len(contrast.numbers["contrasts"]) == 7
    assert len(of_kind(found, "cell")) == 1


def test_a_lead_that_counts_as_none_is_no_finding() -> None:
    search, rows = played(bowl)
    compared = Compared.of(SPEC, progress(SPEC, rows))
    science = compared.science(search)
    assert science is not None
    for margin, verdict in ((0.01, "finding"), (1.0, "note")):
        cell, *_ = about_cells(
            SPEC, replace(science, margin=margin), compared, progress(SPEC, rows)
        )
        assert (cell.verdict, "next to nothing" in cell.text) == (verdict, verdict == "note")


@pytest.mark.parametrize(
    ("search", "override", "where"),
    [
        (
            Searched("x", "float", 1e-4, 1e-1, log=True),
            "'x=tag(log, interval(0.0001, 0.5))'",
            "upper edge of its range, 0.1",
        ),
        (
            Searched("x", "int", 1, 8),
            "'x=int(interval(1, 10))'",
            "upper edge of its range, 8",
        ),
    ],
)
def test_a_range_that_is_too_narrow_is_widened(search: Searched, override: str, where: str) -> None:
    spec = replace(SPEC, search=(search,))
    edge = of_kind(told(lambda v: -float(np.log(v["x"])), spec), "edge")[0]
    assert where in edge.text
    assert edge.verdict == "warning"
    assert edge.advice == f"launch again with `{override} study.extend=true budget.trials=34`"
    assert edge.numbers["of"] == 2


def test_noise_alone_is_called_unpredictable_and_no_importance_is_told() -> None:
    found = told(lambda _: 0.0, noise=1.0)
    (said,) = of_kind(found, "unpredictable")
    assert "cross-validated R² 0." in said.text
    assert not of_kind(found, "importance")


def test_a_study_without_a_grid_says_what_it_can() -> None:
    spec = replace(SPEC, grid=())
    found = told(lambda v: float((v["x"] - 0.3) ** 2), spec)
    assert {"best", "importance", "cell"} <= {s.kind for s in found}
    (cell,) = of_kind(found, "cell")
    assert "that the search can reach is about" in cell.text
    assert cell.verdict == "finding"


def test_cells_without_a_complete_trial_are_left_out_by_name() -> None:
    search, rows = played(bowl, TWO_AXES, 60, 0.01)
    kept = [row for row in rows if row.cell != 4]
    some = Search(TWO_AXES)
    some.feed(
        TrialNews(
            t.number,
            "COMPLETE",
            search.ask(
                {"net": "large", "batch": 32} | {path: t.params[path] for path in ("net", "batch")},
                ticket=t.number,
                retry=0,
            ).params,
            t.values,
            cell=t.cell,
        )
        for t in kept
    )
    found = statements(TWO_AXES, some, progress(TWO_AXES, kept), kept)
    (left,) = of_kind(found, "cannot-say")
    assert "1 cell of 6 has no complete trial" in left.text
    assert "`net=large batch=64`" in left.text


def test_of_a_large_grid_the_best_cells_and_their_neighbours_are_compared() -> None:
    axes = tuple(Axis(f"a{i}", tuple(range(5))) for i in range(5))
    spec = replace(SPEC, grid=axes)
    rng, rows, search, cells, news = np.random.default_rng(0), [], Search(spec), [], {}
    for number in range(60):
        values = {axis.path: int(rng.integers(5)) for axis in axes}
        ordinal = int("".join(str(values[axis.path]) for axis in axes), 5)
        asked = search.ask(values, ticket=number, retry=0)
        loss = 0.1 * values["a0"] + (asked.values["x"] - 0.3) ** 2
        news[number] = TrialNews(number, "COMPLETE", asked.params, (loss,), cell=ordinal)
        search.feed([news[number]])
        rows.append(
            TrialRow(number, "COMPLETE", ordinal, dict(asked.values), (loss,), 1, None, None, 1.0)
        )
        cells.append(CellRow(ordinal, values, "OPEN", None, 1, 1, 0, 0, 0, loss, number, 1))
    study = StudyRow(1, "s", 1, "FINISHED", None, False, NOW, NOW)
    where = Progress(study, 60, 60, 0, 0, 0, 0, 0.0, None, 3_125, None, None, tuple(cells))
    found = statements(spec, search, where, rows)
    (cannot,) = of_kind(found, "cannot-say")
    assert "Of 3,125 cells only" in cannot.text
    assert any(s.text.startswith("`a0=") for s in of_kind(found, "contrast"))
    # and the table says the same of them
    subject = Subject(spec, where, search, rows, news, ())
    assert any(subject.estimates)
    leader = next(s for s in of_kind(found, "cell") if "probability_best" in s.numbers)
    assert "has no trial, and is predicted to be the best of" in leader.text
    share = sum(e.probability_best for e in subject.estimates if e)
    assert 0.0 < share < 1.0 - float(str(leader.numbers["probability_best"]))
    assert "estimates only the" in " ".join(left_out(subject))


def test_every_statement_is_json_and_has_evidence() -> None:
    for found in (told(bowl), told(bowl, TWO_AXES), told(bowl, trials=2)):
        for statement in found:
            assert statement.evidence
            assert json.loads(json.dumps(dict(statement.numbers), allow_nan=False)) is not None
            assert "--" not in statement.text


# --------------------------------------------------------------------------------- which cells


def tried(*ordinals: int) -> list[TrialRow]:
    return [
        TrialRow(n, "COMPLETE", cell, {}, (float(n),), 1, None, None, 1.0)
        for n, cell in enumerate(ordinals)
    ]


def test_cells_of_a_large_grid_are_compared_once_each() -> None:
    spec = replace(SPEC, grid=tuple(Axis(path, tuple(range(25))) for path in "ab"))
    compared = Compared.of(spec, progress(spec, tried(5, 50, 300)))
    assert compared.about == 3
    labels = [json.dumps(cell) for cell in compared.cells]
    assert len(labels) == len(set(labels)) == 49 + 47 + 23
    assert not compared.left_out


def test_a_long_axis_leaves_room_for_the_others() -> None:
    spec = replace(SPEC, grid=(Axis("long", tuple(range(1000))), Axis("net", ("x", "y", "z"))))
    compared = Compared.of(spec, progress(spec, tried(2_999, 2_000)))
    assert {cell["net"] for cell in compared.cells} == {"x", "y", "z"}
    of_long = {cell["long"] for cell in compared.cells}
    assert {999, 666} <= of_long
    assert compared.left_out == {"long": 1000 - len(of_long)}
    assert len(compared.cells) <= 500
    two = replace(spec, grid=(spec.grid[0], Axis("other", tuple(range(400)))))
    compared = Compared.of(two, progress(two, tried(399_999)))
    assert set(compared.left_out) == {"long", "other"}
    assert len({cell["other"] for cell in compared.cells}) > 200


def test_cells_taken_from_a_large_grid_are_not_compared() -> None:
    spec = replace(SPEC, grid=tuple(Axis(path, tuple(range(25))) for path in "ab"))
    where = progress(spec, tried(5, 50))
    gone = replace(where.cells[5], ordinal=625, values={"a": 99, "b": 0}, best=-1.0)
    compared = Compared.of(spec, replace(where, cells=(*where.cells, gone)))
    assert all(cell["a"] != 99 for cell in compared.cells)


# ---------------------------------------------------------------------------------- importances


def test_an_importance_is_found_if_the_model_is_to_be_trusted_and_predicts() -> None:
    search, _ = played(bowl, trials=60, noise=0.01)
    science = search.science(list(SPEC.cells()))
    assert science is not None

    def verdicts(**changes: Any) -> list[str]:
        said = about_parameters(SPEC, replace(science, **changes))
        return [s.verdict for s in said if s.kind == "importance"]

    assert verdicts() == ["finding"]
    assert verdicts(complete=science.needed - 1) == ["open"]
    assert verdicts(predictability=0.15, predictability_low=-0.02) == ["open"]
    (x,) = science.importances
    wide = replace(x, overall=replace(x.overall, low=0.02))
    assert verdicts(importances=(wide,)) == ["open"]
