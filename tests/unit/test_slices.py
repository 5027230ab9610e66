"""What the model believes along parameters, then and now, and its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.report.picture import Picture
from orchestrator.report.pictures import contour, optima, surrogate
from orchestrator.report.pictures.marks import names
from orchestrator.search import CellEstimate, CellSlices, Search, Slices, Snapshot
from orchestrator.settings import sampler_settings

X = Searched("x", "float", -2.0, 2.0)
LINE = StudySpec(
    "s",
    ("minimize",),
    ("loss",),
    {},
    {},
    (),
    (X,),
    Budget(40, 1),
    sampler=sampler_settings("random"),
)
GRID = replace(
    LINE,
    grid=(Axis("net", ("small", "large")), Axis("batch", (8, 64))),
    search=(
        Searched("optim.lr", "float", 1e-4, 1.0, log=True),
        X,
        Searched("act", "categorical", choices=("relu", [1, 2])),
        Searched("layers", "int", 1, 3, when={"net": ("large",)}),
        Searched("fixed", "float", 1.0, 1.0),
    ),
)
Loss = Callable[[Mapping[str, Any]], float]


def smooth(v: Mapping[str, Any]) -> float:
    return float(math.sin(2.0 * v["x"]) + 0.3 * v["x"] ** 2)


def gridded(v: Mapping[str, Any]) -> float:
    offset = 0.3 * (v["net"] == "small") + 0.1 * (v["act"] == "relu") + 0.1 * v.get("layers", 1)
    return float((math.log10(v["optim.lr"]) + 2) ** 2 + 0.3 * (v["x"] - 0.5) ** 2 + offset)


def trials(spec: StudySpec, n: int, of: Loss) -> list[TrialNews]:
    """Complete ones, each cell's in turn."""
    asking, cells = Search(spec), list(spec.cells())
    sign = -1.0 if spec.directions[0] == "maximize" else 1.0
    found = []
    for number in range(n):
        asked = asking.ask(cells[number % len(cells)], ticket=number, retry=0)
        value = (sign * of(asked.values),) * len(spec.directions)
        found.append(TrialNews(number, "COMPLETE", asked.params, value, cell=number % len(cells)))
    return found


def sliced(spec: StudySpec, news: Sequence[TrialNews]) -> Slices:
    search, cells = Search(spec), list(spec.cells())
    search.feed(news)
    return search.slices(cells, search.summary(cells))


def only(slices: Slices) -> CellSlices:
    (cell,) = slices.cells
    return cell


def drawn(spec: StudySpec, news: Sequence[TrialNews]) -> list[Picture]:
    """All pictures; each is checked by plotly and can be written as JSON."""
    search, cells = Search(spec), list(spec.cells())
    search.feed(news)
    estimates = search.summary(cells)
    slices = search.slices(cells, estimates)
    found = [
        *surrogate.pictures(spec, slices),
        *contour.pictures(spec, slices),
        *optima.pictures(spec, cells, estimates),
    ]
    for picture in found:
        go.Figure(picture.figure)
        json.dumps(picture.figure, allow_nan=False)
    assert len({picture.key for picture in found}) == len(found)
    return found


def test_without_noise_the_band_narrows_and_holds_the_truth() -> None:
    line = only(sliced(LINE, trials(LINE, 16, smooth))).lines[0]
    assert [shot.valued for shot in line.snapshots] == [2, 5, 9, 16]
    truth = np.array([smooth({"x": x}) for x in line.at])
    widths = []
    for shot in line.snapshots:
        low, mean, high = (np.array(some) for some in (shot.low, shot.mean, shot.high))
        assert (low <= mean).all()
        assert (mean <= high).all()
        widths.append(float(np.median(high - low)))
    assert ((low - 1e-3 <= truth) & (truth <= high + 1e-3)).mean() >= 0.9
    assert widths[-1] < 0.2 * max(widths)
    assert np.abs(mean - truth).mean() < 0.1


def test_a_snapshot_is_the_same_whatever_trials_come_later() -> None:
    news = trials(LINE, 30, smooth)
    early, late = only(sliced(LINE, news[:9])), only(sliced(LINE, news))
    assert early.lines[0].at == late.lines[0].at
    assert early.lines[0].snapshots == late.lines[0].snapshots[:3]


def test_running_trials_change_nothing() -> None:
    news = trials(LINE, 12, smooth)
    running = replace(trials(LINE, 13, smooth)[12], state="RUNNING", values=None)
    assert sliced(LINE, news) == sliced(LINE, [*news, running])


def test_pruned_trials_are_drawn_and_change_no_belief() -> None:
    news = trials(LINE, 12, smooth)
    more = [
        replace(item, state="PRUNED", values=None, intermediate={1: -50.0})
        for item in trials(LINE, 15, smooth)[12:]
    ]
    without, with_pruned = (only(sliced(LINE, some)) for some in (news, news + more))
    assert [t.ended for t in with_pruned.trials[12:]] == ["pruned"] * 3
    one, two = (cell.lines[0].snapshots[-1] for cell in (without, with_pruned))
    assert (one.mean, one.low, one.high, one.improvement) == (
        two.mean,
        two.low,
        two.high,
        two.improvement,
    )
    assert (two.seen, two.valued) == (15, 12)


def test_trials_outside_of_the_range_are_on_the_axis() -> None:
    before = replace(LINE, search=(replace(X, low=-4.0),))
    (picture,) = drawn(LINE, trials(before, 12, smooth))
    tried = [
        x for trace in picture.figure["data"] if trace.get("name") == "trials" for x in trace["x"]
    ]
    low, high = picture.figure["layout"]["xaxis"]["range"]
    assert low < min(tried) < -2.0
    assert 2.0 < high < 2.5


def test_choices_that_were_taken_back_keep_their_trials_but_are_not_believed_in() -> None:
    before = Searched("act", "categorical", choices=("relu", "gelu", "tanh"))
    was = replace(LINE, search=(before,))
    now = replace(LINE, search=(replace(before, choices=("tanh", "relu"), stored=before),))
    worth = {"relu": 0.1, "gelu": 0.5, "tanh": 0.9}
    news = trials(was, 12, lambda v: worth[v["act"]])
    assert {item.params[0].internal for item in news} == {0.0, 1.0, 2.0}
    line = only(sliced(now, news)).lines[0]
    assert set(line.at) == {"relu", "tanh"}
    (picture,) = drawn(now, news)
    layout = picture.figure["layout"]
    assert layout["xaxis"]["ticktext"] == [*line.at, "gelu"]
    dots = [x for t in picture.figure["data"] if t.get("name") == "trials" for x in t["x"]]
    assert 2.0 < max(dots) < layout["xaxis"]["range"][1]


def test_the_improvement_is_none_where_the_best_is_known_and_most_where_little_is() -> None:
    news = trials(LINE, 14, smooth)
    line = only(sliced(LINE, news)).lines[0]
    for shot in line.snapshots:
        assert min(shot.improvement) >= 0.0
    best = min(news, key=lambda item: item.values or ())
    at = only(sliced(LINE, news)).held["x"]
    assert at == pytest.approx(best.params[0].internal)
    now = line.snapshots[-1]
    nearest = int(np.argmin(np.abs(np.array(line.at) - at)))
    span = max(now.mean) - min(now.mean)
    assert now.improvement[nearest] < 0.01 * span
    # it is in the objective's units
    larger = trials(LINE, 14, lambda v: 1e3 * smooth(v))
    scaled = only(sliced(LINE, larger)).lines[0]
    assert scaled.snapshots[0].improvement == pytest.approx(
        [1e3 * v for v in line.snapshots[0].improvement], rel=1e-3, abs=1e-6
    )


def test_what_is_maximised_mirrors_what_is_minimised() -> None:
    other = replace(LINE, directions=("maximize",))
    one = only(sliced(LINE, trials(LINE, 12, smooth))).lines[0]
    two = only(sliced(other, trials(other, 12, smooth))).lines[0]
    for a, b in zip(one.snapshots, two.snapshots, strict=True):
        assert a.mean == pytest.approx([-v for v in b.mean])
        assert a.low == pytest.approx([-v for v in b.high])
        assert a.high == pytest.approx([-v for v in b.low])
        assert a.improvement == pytest.approx(b.improvement)


def test_predictions_stay_within_the_limits_of_the_metric() -> None:
    bounded = replace(LINE, bounds=((-1.0, None),))
    for shot in only(sliced(bounded, trials(bounded, 12, smooth))).lines[0].snapshots:
        assert min(shot.low) >= -1.0


def test_the_best_cells_come_first_along_what_matters_and_what_exists_there() -> None:
    news = trials(GRID, 60, gridded)
    search, cells = Search(GRID), list(GRID.cells())
    search.feed(news)
    estimates = search.summary(cells)
    slices = search.slices(cells, estimates)
    likely = [e.probability_best if e else 0.0 for e in estimates]
    assert [likely[cells.index(dict(c.cell))] for c in slices.cells] == sorted(likely)[::-1]
    assert slices.paths[0] == "optim.lr"
    assert slices.paths[-1] == "act"
    assert "fixed" not in slices.paths
    for cell in slices.cells:
        (mine,) = (e for c, e in zip(cells, estimates, strict=True) if c == cell.cell)
        assert mine is not None
        assert cell.trial == mine.trial
        assert cell.held == next(t.params for t in cell.trials if t.number == cell.trial)
        assert ("layers" in cell.held) == (cell.cell["net"] == "large")
        exists = [path for path in slices.paths if path in cell.held]
        assert [line.path for line in cell.lines] == exists
        assert cell.lines[-1].at == ("relu", [1, 2])
        for line in cell.lines:
            assert len(line.near) == len(cell.trials)
            assert max(line.near) == pytest.approx(1.0)
            assert min(line.near) >= 0.0
    assert slices.left_out == 0


def test_the_parameters_that_are_known_to_be_important_are_the_ones_shown() -> None:
    search, cells = Search(GRID), list(GRID.cells())
    search.feed(trials(GRID, 24, gridded))
    estimates = search.summary(cells)
    assert search.slices(cells, estimates).paths[:2] == ("optim.lr", "x")
    ranked = search.slices(cells, estimates, ["layers", "nothing", "x"])
    assert ranked.paths == ("layers", "x", "act")


def ended(spec: StudySpec) -> list[TrialNews]:
    """Trials that ended in every way."""
    news = trials(spec, 40, gridded)
    news[5] = replace(news[5], state="PRUNED", values=None, intermediate={1: 0.7})
    news[6] = replace(news[6], state="FAIL", values=None)
    news[9] = replace(news[9], system_attrs={"constraints:memory": 1.0})
    return news


def test_trials_that_did_not_complete_are_known_and_marked() -> None:
    slices = sliced(GRID, ended(GRID))
    ends = {t.number: (t.ended, t.value) for cell in slices.cells for t in cell.trials}
    assert len(ends) == 40
    assert ends[5] == ("pruned", 0.7)
    assert ends[6] == ("failed", None)
    assert ends[9][0] == "infeasible"
    assert ends[7][0] == "complete"
    first = drawn(GRID, ended(GRID))[0]
    symbols = {
        symbol
        for trace in first.figure["data"]
        if trace.get("name") == "trials"
        for symbol in trace["marker"]["symbol"]
    }
    assert symbols == {"circle", "square-open", "x-thin-open", "diamond-open"}
    for word in ("pruned", "failed", "infeasible"):
        assert word in first.caption
    titles = [
        one["text"]
        for button in first.figure["layout"]["updatemenus"][0]["buttons"]
        for one in button["args"][1]["annotations"]
        if one["text"].startswith("now")
    ]
    assert sorted(titles) == [
        "now: 10 trials (study: 40)",
        "now: 10 trials (study: 40)",
        "now: 8 trials, 1 pruned, 1 infeasible (study: 40)",
        "now: 9 trials, 1 failed (study: 40)",
    ]


def test_every_choice_of_cells_shows_its_own_traces_and_rows() -> None:
    found = {picture.key: picture for picture in drawn(GRID, ended(GRID))}
    assert list(found) == ["surrogate-1", "surrogate-2", "surrogate-choices", "contour", "optima"]
    for key in ("surrogate-1", "surrogate-choices", "contour"):
        figure = found[key].figure
        (menu,) = figure["layout"]["updatemenus"]
        visible = np.array([button["args"][0]["visible"] for button in menu["buttons"]])
        assert visible.shape == (4, len(figure["data"]))
        assert (visible.sum(axis=0) == 1).all()
        assert visible[0].tolist() == [trace["visible"] for trace in figure["data"]]
    assert found["surrogate-1"].figure["layout"]["xaxis"]["type"] == "log"
    assert found["contour"].figure["layout"]["xaxis"]["title"]["text"] == "optim.lr"


def test_cells_that_are_not_shown_are_counted() -> None:
    spec = replace(GRID, grid=(Axis("batch", tuple(range(9))), Axis("net", ("large",))))
    news = trials(spec, 27, gridded)
    slices = sliced(spec, news)
    assert len(slices.cells) == 6
    assert slices.left_out == 3
    assert "3 others left out" in drawn(spec, news)[0].caption


def test_one_trial_is_enough_for_a_picture_that_says_how_little_it_is() -> None:
    (picture,) = drawn(LINE, trials(LINE, 1, smooth))
    (title,) = picture.figure["layout"]["annotations"]
    assert title["text"] == "now: 1 trial: almost only the prior"
    assert (
        "updatemenus" not in picture.figure["layout"] or not picture.figure["layout"]["updatemenus"]
    )


@pytest.mark.parametrize(
    ("spec", "n", "why"),
    [
        (LINE, 0, "No trial has a value yet"),
        (replace(LINE, search=()), 6, "No parameter is searched"),
        (
            replace(LINE, directions=("minimize", "minimize"), metrics=("a", "b")),
            12,
            "With several",
        ),
    ],
)
def test_where_there_is_nothing_to_draw_one_sentence_says_why(
    spec: StudySpec, n: int, why: str
) -> None:
    news = trials(spec, n, lambda v: 1.0 if "x" not in v else smooth(v))
    slices = sliced(spec, news)
    assert slices.cells == ()
    assert slices.why_not.startswith(why)
    assert slices.why_not.endswith(".")
    assert drawn(spec, news) == []


def test_only_categories_are_points_and_have_no_contour() -> None:
    spec = replace(GRID, search=GRID.search[2:3])
    pictures = drawn(spec, trials(spec, 20, lambda v: float(v["act"] == "relu")))
    assert [picture.key for picture in pictures] == ["surrogate-choices", "optima"]
    kinds = {trace["type"] for trace in pictures[0].figure["data"]}
    assert kinds == {"scatter", "bar"}


def test_requested_parameters_are_drawn_like_declared_ones() -> None:
    news = [
        replace(item, cell=0)
        for item in trials(replace(LINE, search=(X, replace(X, path="y"))), 12, smooth)
    ]
    slices = sliced(LINE, news)
    assert set(slices.paths) == {"x", "y"}
    assert only(slices).plane is not None


def test_a_contour_is_over_numbers_that_the_best_trial_has() -> None:
    three = replace(LINE, search=tuple(replace(X, path=path) for path in ("x", "y", "z")))
    whole = [
        replace(item, cell=0) for item in trials(three, 16, lambda v: smooth(v) + 9.0 * v["y"])
    ]
    best = min(whole, key=lambda item: item.values or ())
    branch = {"y": ("y",), "both": ("y", "z")}
    for case, left_out in branch.items():
        news = [
            replace(item, params=tuple(p for p in item.params if p.name not in left_out))
            if item is best
            else item
            for item in whole
        ]
        cell = only(sliced(LINE, news))
        assert cell.trial == best.number
        pictures = {picture.key: picture for picture in drawn(LINE, news)}
        if case == "both":
            assert cell.plane is None
            assert "contour" not in pictures
        else:
            assert cell.plane is not None
            assert {cell.plane.x_path, cell.plane.y_path} == {"x", "z"}
            assert "z" in pictures["contour"].title


def test_far_values_do_not_flatten_the_picture() -> None:
    news = trials(LINE, 12, lambda v: 1e6 if v["x"] < -1 else smooth(v))
    (picture,) = drawn(LINE, news)
    low, high = picture.figure["layout"]["yaxis7"]["range"]
    assert low < -0.9
    assert high < 100
    assert "The rows' scales differ." in picture.caption
    (now,) = (
        trace
        for trace in picture.figure["data"]
        if trace.get("name") == "trials" and trace["yaxis"] == "y7"
    )
    assert len(now["y"]) == 12
    assert max(now["y"]) == pytest.approx(high, abs=0.01)


def test_optima_are_sorted_the_best_first() -> None:
    for spec in (GRID, replace(GRID, directions=("maximize",))):
        picture = drawn(spec, trials(spec, 60, gridded))[-1]
        assert picture.key == "optima"
        interval, _, best = picture.figure["data"]
        worse = sorted(interval["x"], reverse=spec.directions[0] == "maximize")
        assert interval["x"] == worse
        assert min(interval["error_x"]["array"]) >= 0.0
        assert sum(best["x"]) == pytest.approx(1.0, abs=0.01)
        labels = picture.figure["layout"]["yaxis"]["ticktext"]
        assert labels[0].startswith("large")


def test_optima_at_the_metrics_limit_leave_their_intervals_in_sight() -> None:
    lows = [0.90, 0.91, 0.92, 0.93, 0.2]
    estimates = [CellEstimate(1.0, low, 1.0, 0.2, 7, 0.93) for low in lows]
    spec = replace(GRID, directions=("maximize",), grid=(Axis("a", (1, 2, 3, 4, 5)),))
    (picture,) = optima.pictures(spec, list(spec.cells()), estimates)
    low, high = picture.figure["layout"]["xaxis"]["range"]
    assert 0.8 < low < 0.9
    assert 1.0 < high < 1.1


def test_a_snapshot_has_one_number_per_point() -> None:
    for cell in sliced(GRID, ended(GRID)).cells:
        for line in cell.lines:
            assert isinstance(line.snapshots[-1], Snapshot)
            for shot in line.snapshots:
                assert {len(shot.mean), len(shot.low), len(shot.high), len(shot.improvement)} == {
                    len(line.at)
                }


def test_long_names_of_cells_are_their_values() -> None:
    axes = tuple(Axis(f"of_a_very_long_name_{k}", (k, k + 1)) for k in range(2))
    long = replace(GRID, grid=axes, search=(X,))
    assert names(long, list(long.cells()))[:2] == ["0 · 1", "0 · 2"]
    assert names(GRID, list(GRID.cells()))[0] == "net=small · batch=8"
