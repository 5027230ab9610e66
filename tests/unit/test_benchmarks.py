"""The benchmarks measure what they say: true optima, methods that keep to the grid, figures that
come out again.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator.model import Searched
from orchestrator.search import Search, distributions
from tests.benchmarks import (
    bands,
    methods,
    pruning,
    regret,
    repetitions,
    science,
    stopping,
    suggestion_time,
)
from tests.benchmarks.problems import PROBLEMS, problem
from tests.benchmarks.tables import DATA

pytestmark = pytest.mark.nightly
VARIANTS = [(name, variant) for name in PROBLEMS for variant in (0, 1)]


def random_values(task: Any, seed: int, count: int) -> list[dict[str, Any]]:
    """Points of the whole search, cells in turn, as our own random sampler draws them."""
    search = Search(task.spec(count, seed, "random"))
    return [
        dict(search.ask(task.cells[n % len(task.cells)], ticket=n, retry=0).values)
        for n in range(count)
    ]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_no_configuration_is_better_than_the_optimum_of_its_cell(name: str, variant: int) -> None:
    task = problem(name, variant)
    assert 8 <= len(task.cells) <= 16
    assert 3 <= len(task.search) <= 5
    for number, values in enumerate(random_values(task, 0, 200)):
        assert task.loss(values) >= task.optima[number % len(task.cells)] - 1e-9


@pytest.mark.parametrize(
    "name", ["moving", "diverging", "backbone", "unrelated", "flat", "deceptive"]
)
@pytest.mark.parametrize("variant", [0, 1])
def test_the_optimum_of_a_drawn_basin_is_inside_the_search_and_reached(
    name: str, variant: int
) -> None:
    task = problem(name, variant)
    space = {item.path: item for item in task.search}
    for place, cell in enumerate(task.cells):
        choices = [item.choices or (None,) for item in task.search]
        found = []
        for combination in itertools.product(*choices):
            best = dict(zip(space, combination, strict=True))
            best |= {
                path: middle(item) if item.log else 0.2
                for path, item in space.items()
                if not item.choices
            }
            found.append(descended(task, {**cell, **best}))
        assert min(found) == pytest.approx(task.optima[place], abs=2e-3)


def middle(item: Searched) -> float:
    """Of a logarithmic scale."""
    assert item.low is not None
    assert item.high is not None
    return float((item.low * item.high) ** 0.5)


def descended(task: Any, values: dict[str, Any]) -> float:
    """The least loss that coordinate-wise grids, ever finer, lead to."""

    def loss_at(path: str, value: float) -> float:
        return float(task.loss({**values, path: value}))

    ordered = [item for item in task.search if not item.choices]
    if "warmup" in {item.path for item in ordered}:
        values["warmup"] = 5
    for width in 0.5 ** np.arange(0, 9, 0.5):
        for item in ordered:
            low, high = (np.log([item.low, item.high])) if item.log else (item.low, item.high)
            here = np.log(values[item.path]) if item.log else values[item.path]
            steps = np.clip(here + width * (high - low) * np.linspace(-1, 1, 9), low, high)
            tried = [float(np.exp(s)) if item.log else float(s) for s in steps]
            tried = [round(t) if item.kind == "int" else t for t in tried]
            values[item.path] = min([*tried, values[item.path]], key=partial(loss_at, item.path))
    return float(task.loss(values))


def test_variants_are_different_problems() -> None:
    values = random_values(problem("moving"), 0, 1)[0]
    assert problem("moving", 0).loss(values) != problem("moving", 1).loss(values)
    assert problem("moving", 0) is problem("moving", 0)


def test_tables_are_small_and_their_fit_explains_the_runs() -> None:
    for name in ("digits", "cancer"):
        assert (DATA / f"{name}.npz").stat().st_size < 60_000
        stored = np.load(DATA / f"{name}.npz")
        assert stored["explained"] > 0.8
        assert 0.0 < stored["noise"] < 0.5


@pytest.mark.parametrize(
    "name", [name for name, method in methods.METHODS.items() if not method.slow]
)
@pytest.mark.parametrize("workers", [1, 4])
def test_every_method_spends_its_trials_on_the_grid_and_comes_out_again(
    name: str, workers: int
) -> None:
    task, played = problem("backbone"), []
    for _ in range(2):
        tuner = methods.METHODS[name].make(task, 20, 3)
        played.append(methods.play(task, tuner, 20, 3, workers)[0])
    assert played[0] == played[1]
    assert len(played[0]) == 20
    space = distributions(task.spec(1, 0, "tpe"))
    for values, _ in played[0]:
        assert set(values) == set(space)
        assert {axis.path: values[axis.path] for axis in task.grid} in task.cells


def test_workers_at_once_are_asked_while_the_others_run() -> None:
    task = problem("flat")
    running: set[int] = set()
    seen: list[int] = []

    class Watched:
        def ask(self, number: int) -> Any:
            seen.append(len(running))
            running.add(number)
            return {
                **task.cells[0],
                "lr": 1e-3,
                "wd": 1e-3,
                "dropout": 0.1,
                "act": "relu",
                "warmup": number % 5,
            }

        def tell(self, number: int, value: float) -> None:
            running.remove(number)

        def reported(self) -> methods.Said:
            return methods.Said()

    rows, _, _ = methods.play(task, Watched(), 20, 0, workers=8)
    assert seen == [0, 1, 2, 3, 4, 5, 6, *[7] * 13]
    assert len(rows) == 20
    seen.clear()
    rows, _, _ = methods.play(task, Watched(), 30, 0, workers=8, ahead=1)
    assert seen[:8] == list(range(8)), "nobody prepares before a trial has ended"
    assert min(seen[8:]) >= 7
    assert 7 < max(seen) <= 15, "others have prepared by then, one each"
    assert len(rows) == 30
    assert len(rows) == 30


def test_our_shares_are_given_cell_after_cell() -> None:
    task = problem("backbone")
    rows, _, _ = methods.play(task, methods.METHODS["hybrid-random"].make(task, 20, 0), 20, 0)
    cells = [{axis.path: values[axis.path] for axis in task.grid} for values, _ in rows]
    assert cells == [task.cells[n % len(task.cells)] for n in range(20)]


def test_regret_is_the_true_value_of_what_looked_best_less_the_optimum() -> None:
    task = problem("flat")
    rows = [(values, 1.0 + n) for n, values in enumerate(random_values(task, 0, 32))]
    true = [task.loss(values) for values, _ in rows]
    assert min(true) < true[0]
    assert regret.regrets(task, rows) == pytest.approx((true[0], min(true), np.mean(true[:16])))
    assert regret.regrets(task, rows[:1])[2] == pytest.approx(true[0])


def test_regret_is_that_of_what_a_method_reports() -> None:
    task = problem("flat")
    rows: list[methods.Row] = [
        (values, 1.0 + n) for n, values in enumerate(random_values(task, 0, 32))
    ]
    true = [task.loss(values) for values, _ in rows]
    each: list[methods.Row | None] = [rows[16 + place] for place in range(16)]
    found = regret.regrets(task, rows, methods.Reported(rows[7], each))
    assert found == pytest.approx((true[7], min(true), np.mean(true[16:32])))


def test_calibration_counts_intervals_and_cells_that_are_called_the_best() -> None:
    task = problem("unrelated")
    least = min(range(8), key=task.optima.__getitem__)
    exact: list[methods.Belief | None] = [(o - 0.01, o + 0.01, 0.0) for o in task.optima]
    off: list[methods.Belief | None] = [(o + 0.01, o + 0.02, 0.0) for o in task.optima]
    found = regret.calibration(task, exact)
    assert found == {"believed": 8, "held": 8, "sure": 0, "right": 0}
    assert regret.calibration(task, [None, *off[1:]])["held"] == 0
    for sure, right in ((least, 1), ((least + 1) % 8, 0)):
        called = [(0.0, 1.0, 0.96 if cell == sure else 0.01) for cell in range(8)]
        found = regret.calibration(task, called)
        assert (found["sure"], found["right"]) == (1, right)


def test_our_last_trials_repeat_and_the_believed_one_is_reported() -> None:
    task = problem("digits")
    tuner = methods.METHODS["hybrid-tpe-adaptive-confirm"].make(task, 60, 0)
    rows, _, reported = methods.play(task, tuner, 60, 0, at=(30, 60))
    fresh, repeats = [v for v, _ in rows[:54]], [v for v, _ in rows[54:]]
    assert any(values in fresh for values in repeats)
    assert sum(values in fresh[:k] for k, values in enumerate(fresh)) == 0
    for at in (30, 60):
        best, each = reported[at].best, reported[at].each
        assert best in rows[:at]
        assert best in each, "it is the best of its cell"
        for cell, row in zip(task.cells, each, strict=True):
            assert row is not None
            assert cell.items() <= row[0].items()


def test_repetitions_are_compared_on_spaces_whose_optima_are_found() -> None:
    task = repetitions.lattice(1)
    drawn = random_values(task, 0, 1600)
    for cell, optimum in zip(task.cells, task.optima, strict=True):
        tried = [values for values in drawn if cell.items() <= values.items()]
        assert min(task.loss(values) for values in tried) == pytest.approx(optimum)
    jobs = [repetitions.Job("hybrid-tpe", 1, 0, repeats) for repeats in (True, False)]
    done = {job: repetitions.measure(job) for job in jobs}
    again, never = (done[job][1] for job in jobs)
    assert again < 90 < never, (
        "but for the quasi-random start, points are tried again only if allowed"
    )


def test_a_run_prints_every_method_beside_the_yardsticks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    argv = [
        "--trials=12",
        "--at",
        "6",
        "12",
        "--seeds=2",
        "--methods=random",
        "--problems=flat,moving",
        "--parallel=3",
    ]
    regret.main([*argv, f"--json={out}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [at, method] for at in ("6", "12") for method in ("plain-tpe", "tpe-per-cell", "random")
    ]
    written = json.loads(out.read_text())
    assert len(written["results"]) == 3 * 2 * 2 * 2 * 2  # methods, problems, seeds, at, workers
    first = written["summaries"][0]
    assert (first["method"], first["regret"]["ratio"]) == ("plain-tpe", 1.0)
    random = next(s for s in written["summaries"] if s["method"] == "random" and s["trials"] == 12)
    of = {
        method: [
            np.median(
                [
                    r["regret"]
                    for r in written["results"]
                    if (r["method"], r["problem"], r["at"], r["workers"]) == key
                ]
            )
            for key in ((method, name, 12, 1) for name in ("flat", "moving"))
        ]
        for method in ("random", "plain-tpe")
    }
    assert random["regret"]["ratio"] == pytest.approx(
        np.sqrt(np.prod(of["random"]) / np.prod(of["plain-tpe"]))
    )


def test_runs_that_were_kept_are_not_played_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "runs.jsonl"
    argv = [
        "--trials=6",
        "--problems=flat",
        "--methods=random",
        "--parallel=2",
        "--prefetch",
        f"--lines={lines}",
    ]
    regret.main([*argv, "--seeds=1"])
    assert len(lines.read_text().splitlines()) == 3 * 3  # methods, ways
    regret.main([*argv, "--seeds=2"])
    two = capsys.readouterr().out
    assert len(lines.read_text().splitlines()) == 2 * 3 * 3
    monkeypatch.setattr(regret, "measure", None)
    regret.main([*argv, "--seeds=2"])
    assert capsys.readouterr().out in two
    assert "2 workers that prepare / 1" in two
    regret.main([*argv, "--seeds=9", "--only-kept"])
    assert capsys.readouterr().out in two


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        regret.arguments(["--methods", "random,magic"])
    assert "magic: must be of" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["hybrid-tpe", "plain-tpe"])
def test_the_time_of_a_suggestion_is_measured(method: str) -> None:
    verbosity = optuna.logging.get_verbosity()
    try:
        line = suggestion_time.measure(method, 30, 7, 3)
    finally:
        optuna.logging.set_verbosity(verbosity)
    assert 0.0 < line["median_ms"] <= line["greatest_ms"] < 60_000


@pytest.mark.parametrize("kind", pruning.KINDS)
def test_a_pruner_that_waits_for_all_trials_runs_them_all_and_another_one_fewer_steps(
    kind: str,
) -> None:
    _, last = pruning.curves(kind, 6, 1)
    assert pruning.play(kind, 6, 6, 1) == (float(last.min()), 6 * pruning.STEPS)
    best, run = pruning.play(kind, 6, 1, 1)
    assert pruning.play(kind, 6, 1, 1) == (best, run)
    assert best in last
    assert pruning.STEPS < run < 6 * pruning.STEPS
    assert (pruning.curves(kind, 50, 2)[1] >= pruning.optimum(kind)).all()


def test_bands_are_compared_with_the_true_loss_at_every_moment() -> None:
    task = problem("moving")
    found = bands.shares(task, bands.sliced(task, 36, 0, "random"))
    assert {moment for moment, _ in found} == {"2 trials", "now"}
    assert all(0.0 <= share <= 1.0 for _, share in found)
    assert np.mean([share for moment, share in found if moment == "now"]) > 0.5


def test_rules_that_end_a_study_are_asked_of_runs_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs.jsonl"
    words = ["--trials", "30", "--seeds", "1", "--problems", "moving", "--runs", str(runs)]
    rules = ["--rules", "gain=1%", "patience=20"]
    stopping.main([*words, *rules])
    said = capsys.readouterr().out
    assert said.startswith("\nbuilding: 2 runs, 1 seeds; saved, ended early, regret, ratio\n")
    assert "frozen" not in said
    assert [line.split()[0] for line in said.splitlines()[3:]] == ["gain=1%", "patience=20"]
    assert len(runs.read_text().splitlines()) == 2
    monkeypatch.setattr(stopping, "play", None)
    stopping.main([*words, *rules])
    assert capsys.readouterr().out == said


def test_the_benchmark_of_science_judges_by_the_true_optima(tmp_path: Path) -> None:
    job = science.Job("moving", "random", 0, (8,), str(tmp_path))
    (judged,) = science.measure(job)
    assert list(tmp_path.iterdir())
    assert science.measure(job) == [judged]  # from the histories kept
    assert judged.counts["cells"] == 12
    assert judged.counts["contrasts"] == 6 + 3
    assert len(judged.contrasts) == 9
    for name in ("cells", "contrasts", "interactions"):
        assert 0 <= judged.counts.get(f"{name} held", 0) <= judged.counts[name]
    rows = list(science.table([judged]))
    assert rows[2].startswith("| all | random | 8 | 1 |")
