"""The frozen set of benchmark problems is what it was, and its problems are what they say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import special

from tests.benchmarks import frozen, regret, sets
from tests.benchmarks.frozen import FAMILIES
from tests.benchmarks.problems import Problem
from tests.benchmarks.sets import SETS, problem
from tests.benchmarks.space import coordinates, from_unit, levels
from tests.benchmarks.tables import FROZEN_TABLES, RecordedTable, SeededTable, Table

QUICK = ("lattice", "steps", "elsewhere")
"""Families whose optima are found in seconds."""
SEEDED = [table for table in FROZEN_TABLES if isinstance(table, SeededTable)]
RECORDED = [table for table in FROZEN_TABLES if isinstance(table, RecordedTable)]


def random_values(task: Problem, count: int) -> list[dict[str, Any]]:
    """Points of the whole search, cells in turn."""
    unit = np.random.default_rng(1).random((count, len(task.search)))
    searched = from_unit(task.search, unit)
    return [task.cells[n % len(task.cells)] | values for n, values in enumerate(searched)]


def test_nobody_changed_the_frozen_problems() -> None:
    assert sets.digest() == sets.FROZEN_SHA256, "make a new set instead: tests/benchmarks/sets.py"


def test_the_hash_sees_a_thousandth_of_the_noise_of_one_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, drawn = sets.digest(), frozen.drawn

    def noisier(name: str, variant: int) -> frozen.Drawn:
        draw = drawn(name, variant)
        return replace(draw, noise=frozen.added(1.001 * draw.spread)) if name == "lattice" else draw

    monkeypatch.setattr(frozen, "drawn", noisier)
    try:
        for cached in (sets.problem, frozen.family):
            cached.cache_clear()
        assert sets.digest() != before
    finally:
        for cached in (sets.problem, frozen.family):
            cached.cache_clear()


def test_no_problem_is_in_both_sets() -> None:
    assert not set(SETS["building"]) & set(SETS["frozen"])
    assert len(set(SETS["frozen"])) == len(SETS["frozen"]) >= 16


@pytest.mark.parametrize("name", SETS["frozen"])
def test_no_configuration_is_better_than_the_optimum_of_its_cell(name: str) -> None:
    task = problem(name)
    assert 4 <= len(task.cells) <= 16
    assert 2 <= len(task.search) <= 6
    tried = [task.loss(values) for values in random_values(task, 300)]
    for number, loss in enumerate(tried):
        assert loss >= task.optima[number % len(task.cells)] - 1e-9
    assert np.quantile(tried, 0.02) - min(task.optima) < 0.5 * (np.median(tried) - min(task.optima))


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES],
)
def test_the_optima_of_the_file_are_those_that_a_search_finds(name: str) -> None:
    assert frozen.optima(frozen.drawn(name, 0)) == pytest.approx(problem(name).optima, abs=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_are_not_tame_diverge_in_a_tenth_of_the_search(name: str) -> None:
    task = problem(name)
    tried = np.array([task.loss(values) for values in random_values(task, 400)])
    usual, bad = np.quantile(tried, (0.5, 0.9)) - min(task.optima)
    assert (bad < 4.0 * usual) == task.tame


@pytest.mark.parametrize("table", FROZEN_TABLES, ids=lambda table: table.name)
def test_trainings_of_tables_that_are_not_tame_diverged(table: Table) -> None:
    assert (table.stored["losses"].max() < 3.0) == table.tame


@pytest.mark.parametrize("name", SETS["frozen"])
def test_regrets_have_a_least_where_the_best_can_be_found_exactly(name: str) -> None:
    task = problem(name)
    if all(levels(item) is not None for item in task.search):
        median = np.median([task.loss(values) for values in random_values(task, 400)])
        assert task.resolution == pytest.approx(0.01 * (median - min(task.optima)), rel=0.5)
        exact = [
            task.cells[place] | values
            for place in range(len(task.cells))
            for values in every_configuration(task)
        ]
        best = min(exact, key=task.loss)
        assert regret.regrets(task, [(best, 0.0)])[0] == regret.LEAST < task.resolution
    else:
        assert task.resolution == 0.0


def test_a_run_that_finds_the_best_exactly_has_the_least_regret_of_its_problem() -> None:
    (result,) = regret.measure(regret.Job("random", "steps", 0, 0, (2000,), 1, 0))
    assert result.of_best == problem("steps").resolution


def every_configuration(task: Problem) -> list[dict[str, Any]]:
    """All combinations of searched parameters that are whole numbers or choices."""
    values = [
        item.choices or range(int(item.low or 0), int(item.high or 0) + 1) for item in task.search
    ]
    paths = [item.path for item in task.search]
    return [dict(zip(paths, row, strict=True)) for row in itertools.product(*values)]


@pytest.mark.parametrize("name", FAMILIES)
def test_variants_of_a_family_are_other_problems_over_the_same_space(name: str) -> None:
    one, other = problem(name), problem(name, 1)
    assert (one.grid, one.search) == (other.grid, other.search)
    values = random_values(one, 1)[0]
    assert one.loss(values) != other.loss(values)


def test_the_optima_of_another_variant_are_searched() -> None:
    task = problem("elsewhere", 1)
    assert task.optima != problem("elsewhere").optima
    for number, values in enumerate(random_values(task, 300)):
        assert task.loss(values) >= task.optima[number % len(task.cells)] - 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_the_noise_of_a_family_has_the_spread_it_says(name: str) -> None:
    task = problem(name)
    draw = frozen.drawn(name, 0)
    normals = special.ndtri(np.linspace(0.001, 0.999, 999))
    seen = [draw.noise(min(task.optima), normal) for normal in normals]
    assert np.median(seen) == pytest.approx(min(task.optima))
    assert np.std(seen) == pytest.approx(task.noise, rel=0.5)


def test_coordinates_are_where_values_were_drawn() -> None:
    for name in FAMILIES:
        search = problem(name).search
        unit = np.random.default_rng(2).random((40, len(search)))
        for row, values in zip(unit, from_unit(search, unit), strict=True):
            for item, u, at in zip(search, row, coordinates(search, values), strict=True):
                every = levels(item)
                if every is None:
                    assert at == pytest.approx(u)
                else:
                    assert np.abs(every - at).min() < 1e-12


@pytest.mark.parametrize("table", SEEDED, ids=lambda table: table.name)
def test_noise_is_what_recorded_seeds_made_of_configurations_near_by(table: SeededTable) -> None:
    task = problem(table.name)
    logs = np.log(table.stored["losses"])
    assert logs.shape[1] == 3
    assert table.stored["explained"] > 0.6
    spreads = []
    for values in random_values(task, 60):
        seen = [task.observed(values, normal) for normal in (-1.5, -0.5, 0.5, 1.5)]
        assert seen == sorted(seen)
        drawn = np.log(np.array(seen) / task.loss(values))
        for residual in drawn:
            assert np.abs(table.residuals - residual).min() < 1e-9
        spreads.append(drawn[-1] - drawn[0])
    low, high = np.quantile(spreads, (0.1, 0.9))
    assert high > 1.5 * low > 0.0, "noise is as strong as it was there"


@pytest.mark.parametrize("table", RECORDED, ids=lambda table: table.name)
def test_a_recorded_table_answers_with_what_was_recorded(table: RecordedTable) -> None:
    task = problem(table.name)
    losses = table.stored["losses"]
    assert losses.shape[:2] == (len(task.cells), len(table.configurations))
    for (place, cell), (row, searched) in itertools.product(
        enumerate(task.cells), list(enumerate(table.configurations))[::17]
    ):
        recorded = losses[place, row]
        assert task.loss(cell | searched) == pytest.approx(recorded.mean())
        assert task.observed(cell | searched, -9.0) == recorded.min()
        assert task.observed(cell | searched, 9.0) == recorded.max()
        assert task.observed(cell | searched, 0.01) in recorded
    assert task.optima == pytest.approx(losses.mean(axis=2).min(axis=1))


def test_tables_are_small() -> None:
    for table in FROZEN_TABLES:
        assert table.path.stat().st_size < 60_000
    assert frozen.OPTIMA.stat().st_size < 60_000


def test_a_set_or_some_problems_of_both_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert regret.arguments([]).problems == list(SETS["building"])
    assert regret.arguments(["--set=frozen"]).problems == list(SETS["frozen"])
    assert regret.arguments(["--problems", "wine,flat"]).problems == ["wine", "flat"]
    with pytest.raises(SystemExit):
        regret.arguments(["--set=frozen", "--problems=flat"])
    assert "not allowed with" in capsys.readouterr().err


def test_figures_of_subsets_follow_those_of_all(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--trials=6", "--at=6", "--seeds=2", "--methods=random"]
    regret.main([*argv, "--problems=wine,moons,training,moving", f"--json={tmp_path / 'all'}"])
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    assert [block[0] for block in blocks[1:]] == ["tables", "tame", "random families"]
    for block, names in zip(blocks[1:], ("wine,moons", "wine,moving", "training"), strict=True):
        regret.main([*argv, f"--problems={names}"])
        alone = capsys.readouterr().out.split("\n\n")[0].splitlines()
        for mine, line in zip(block[2:], alone[1:], strict=True):
            assert mine.split()[:-1] == line.split()[: len(mine.split()) - 1]  # but for the times
