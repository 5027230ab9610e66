"""The pieces of a report: scales, pictures, tables, the page; and studies of which little can be
said.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator import search
from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.prior import Observation, Prior
from orchestrator.report import page
from orchestrator.report.about import facts
from orchestrator.report.markdown import markdown
from orchestrator.report.palette import namer, shown_apart
from orchestrator.report.pictures import effects, grid, slices, spent
from orchestrator.report.pictures.scales import ResultScale, Scale, scales, spread
from orchestrator.report.report import Report, report_on
from orchestrator.report.subject import Subject
from orchestrator.report.tables import Table, cell_text
from orchestrator.settings import sampler_settings
from orchestrator.store import (
    CellRow,
    ProbeRow,
    Progress,
    RevisionRow,
    Span,
    StudyRow,
    TrialRow,
)
from orchestrator.store.states import ENOUGH
from tests.support.studies import spec

BEGUN = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
STORED = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}


def subject(made: StudySpec, trials: Sequence[TrialRow], **changes: Any) -> Subject:
    """What `reading.read` would have of these trials; each took a minute, one after the other."""
    declared = search.parameters(made)
    cells = list(made.cells())
    news = {}
    for trial in trials:
        params = tuple(
            declared[path].param(declared[path].internal(value))
            for path, value in trial.params.items()
            if path in declared
        )
        state: Any = trial.state
        steps = {1: 0.1, 2: 0.2} if trial.state in ("COMPLETE", "PRUNED") else {}
        values = trial.values if trial.state == "COMPLETE" else None
        news[trial.number] = TrialNews(trial.number, state, params, values, steps, cell=trial.cell)
    model = search.Search(made)
    model.feed(news.values())
    rows = [_cell(k, values, trials, made) for k, values in enumerate(cells)]
    row = StudyRow(1, made.name, 1, "FINISHED", "budget spent", False, BEGUN, BEGUN)
    ended = [t for t in trials if t.state in STORED]
    counts = {s: sum(t.state == s for t in trials) for s in ("COMPLETE", "PRUNED", "FAIL")}
    progress = Progress(
        row,
        made.budget.trials,
        counts["COMPLETE"] + counts["PRUNED"],
        sum(t.state == "RUNNING" for t in trials),
        0,
        counts["FAIL"],
        0,
        0.0,
        None,
        len(cells),
        None,
        None,
        tuple(rows),
    )
    spans = [
        Span(
            t.number,
            t.cell,
            t.state,
            1,
            1,
            "host",
            "GPU-1234567890ab",
            "H200",
            BEGUN + timedelta(minutes=k),
            BEGUN + timedelta(minutes=k + 1),
            STORED[t.state],
        )
        for k, t in enumerate(ended)
    ]
    return replace(Subject(made, progress, model, trials, news, spans), **changes)


def _cell(
    k: int, values: Mapping[str, Any], trials: Sequence[TrialRow], made: StudySpec
) -> CellRow:
    mine = [t for t in trials if t.cell == k]
    done = [t for t in mine if t.state == "COMPLETE" and t.values]
    sign = -1 if made.directions[0] == "maximize" else 1
    best = min(done, key=lambda t: sign * (t.values or (0.0,))[0], default=None)
    complete, pruned, failed = (
        sum(t.state == state for t in mine) for state in ("COMPLETE", "PRUNED", "FAIL")
    )
    share = made.budget.per_cell
    return CellRow(
        k,
        dict(values),
        "OPEN",
        None,
        share,
        complete,
        pruned,
        failed,
        0,
        None if best is None or not best.values else best.values[0],
        None if best is None else best.number,
        complete + pruned,
        share=share,
    )


def trial(
    number: int, cell: int, params: dict[str, Any], *values: float, state: str = "COMPLETE"
) -> TrialRow:
    failure = "ValueError: <b>no</b>" if state == "FAIL" else None
    return TrialRow(number, state, cell, params, values or None, 1, failure, None, None)


def ten(made: StudySpec) -> list[TrialRow]:
    """Trials of the first two cells of a study with the axis `a` and a searched `x`."""
    cells = list(made.cells())
    return [
        trial(k, k % 2, {**cells[k % 2], "x": k / 10}, 0.5 + k / 50 - (k % 2) / 10)
        for k in range(10)
    ]


# ------------------------------------------------------------------------------------------- scales


def test_a_scale_places_numbers_and_choices() -> None:
    log = Scale("lr", 1e-4, 1e-2, log=True)
    assert log.share(1e-3) == pytest.approx(0.5)
    assert log.place(0) is None
    assert log.axis["range"][0] < -4 < -2 < log.axis["range"][1]
    choice = Scale("on", choices=(True, 1, "<x>"))
    assert [choice.place(v) for v in (True, 1, "<x>", 2)] == [0.0, 1.0, 2.0, None]
    assert choice.axis["ticktext"] == ["true", "1", "&lt;x&gt;"]


def test_far_worse_results_are_out_of_sight_and_counted() -> None:
    values = [0.9 + k / 1000 for k in range(50)] + [-50.0]
    scale = ResultScale.of(values, maximize=True)
    assert scale.low > 0.8
    assert scale.beyond == 1
    assert "1 far worse is out of sight" in scale.words
    assert not ResultScale.of(values[:-1], maximize=True).words
    lower = ResultScale.of([-v for v in values], maximize=False)
    assert (lower.beyond, lower.high < -0.8) == (1, True)
    assert ResultScale.of([1e-3, 1.0, 1e3], maximize=False).log
    assert ResultScale.of([math.nan, math.inf], maximize=True).beyond == 0


def test_parameters_that_trials_asked_for_have_scales_too() -> None:
    made = spec(cells=2)
    rows = [trial(k, 0, {"a": 0, "x": 0.1, "extra": k, "same": 1, "mix": [k]}) for k in range(3)]
    assert [scale.path for scale in scales(made, rows)] == ["a", "x", "extra", "mix"]
    many = [trial(k, 0, {"word": f"w{k}"}) for k in range(50)]
    assert "word" not in [scale.path for scale in scales(made, many)]


def test_labels_of_names_that_begin_alike_differ() -> None:
    names = ("vit_large_patch14_224", "vit_large_patch16_224", "resnet")
    assert shown_apart(names, 14) == ["…tch14_224", "…tch16_224", "resnet"]
    assert all(len(label) <= 14 for label in shown_apart(names, 14))
    assert shown_apart((0.123456, 0.123457, "<b>"), 14) == [
        *("0.1235 (1)", "0.1235 (2)", "&lt;b&gt;")
    ]
    name = namer(names, 14)
    assert (name(names[1]), name("other")) == ("…tch16_224", "other")


def test_of_an_axis_with_many_values_the_best_are_drawn() -> None:
    made = spec(cells=20, per_cell=2)
    rows = [trial(k, k % 20, {"a": k % 20, "x": k / 40}, float(k % 20)) for k in range(40)]
    whole = subject(made, rows)
    assert whole.science is not None
    (axis,) = whole.science.axes
    best = sorted(axis.values, key=lambda v: -v.estimate)[:12]
    (picture,) = (p for p in effects.pictures(whole) if p.key == "axis-effects")
    drawn = set(picture.figure["layout"]["yaxis"]["ticktext"])
    assert drawn == {f"a = {v.value}" for v in best}


def test_what_is_spread_keeps_its_ends() -> None:
    assert spread(range(10), 20) == list(range(10))
    few = spread(range(1000), 7)
    assert (few[0], few[-1], len(set(few))) == (0, 999, 7)


# ----------------------------------------------------------------------------------------- the grid


def test_every_cell_of_three_axes_has_a_place_of_its_own_and_closed_ones_are_marked() -> None:
    axes = (Axis("a", (1, 2, 3)), Axis("b", ("u", "v")), Axis("c", (True, False)))
    made = spec(grid=axes, budget=Budget(24, 2), search=())
    cells = list(made.cells())
    rows = [trial(k, k, dict(cells[k]), float(k)) for k in range(11)]
    whole = subject(made, rows)
    closed = replace(whole.cells[11], state="CLOSED", reason="<out> of memory")
    settled = replace(whole.cells[0], state="CLOSED", reason=f"{ENOUGH}gain")
    whole = replace(
        whole, progress=replace(whole.progress, cells=(settled, *whole.cells[1:11], closed))
    )
    pictures = {picture.key: picture for picture in grid.pictures(whole)}
    heat, cross, ring = pictures["grid-best"].figure["data"]
    assert (cross["marker"]["symbol"], len(cross["x"])) == ("x-thin", 1)
    assert (ring["marker"]["symbol"], len(ring["x"])) == ("circle-open", 1)
    assert "closed" not in ring["hovertext"][0]
    shown = [value for row in heat["z"] for value in row]
    assert sorted(v for v in shown if v is not None) == [float(k) for k in range(11)]
    assert shown.count(None) == 1
    assert "closed: &lt;out&gt; of memory" in cross["hovertext"][0]
    (counts,) = pictures["grid-trials"].figure["data"][:1]
    assert {text for row in counts["text"] for text in row} == {"1 of 2", "0 of 2"}
    assert "promised 2" in pictures["grid-trials"].caption


def test_of_an_extended_study_the_grid_is_what_it_is_now_and_no_trial_is_lost() -> None:
    axis = Axis("a", (1, 2), stored=(1, 2, 3))
    searched = Searched("x", "float", 0.2, 0.4, stored=Searched("x", "float", 0.0, 1.0))
    made = spec(grid=(axis,), search=(searched,), budget=Budget(20, 10), revision=2)
    rows = [trial(k, k % 3, {"a": k % 3 + 1, "x": k / 10}, k / 10) for k in range(10)]
    whole = subject(made, rows)
    taken = CellRow(2, {"a": 3}, "CLOSED", "taken from the grid", 3, 3, 0, 0, 0, 0.8, 8, 3, share=3)
    whole = replace(
        whole,
        progress=replace(whole.progress, cells=(*whole.cells, taken), n_cells=3),
        revisions=[RevisionRow(2, BEGUN, ("grid.a: without 3", "search.x: narrower"))],
    )
    assert [cell.ordinal for cell in (*whole.cells, *whole.removed)] == [0, 1, 2]
    assert grid.pictures(whole)[0].figure["data"][0]["z"] == [[0.9, 0.7]]
    report = report_on(whole)
    rows_of = report.data["cells"]
    assert (rows_of[-1]["values"], rows_of[-1]["remark"]) == (
        {"a": 3},
        "closed: taken from the grid",
    )
    (revision,) = report.data["revisions"]
    assert revision["changes"] == ["grid.a: without 3", "search.x: narrower"]
    slice_ = next(p for p in report.pictures if p.title == "value over x")
    assert sum(len(t["x"]) for t in slice_.figure["data"] if t["name"] == "complete") == 10
    low, high = slice_.figure["layout"]["xaxis"]["range"]
    assert (low < 0, high > 1) == (True, True)
    time = next(p for p in report.pictures if p.key == "device-time")
    assert sorted(time.figure["layout"]["yaxis"]["ticktext"]) == ["1", "2", "3"]


def test_what_a_study_began_with_from_others_is_said_with_how_much_it_counts() -> None:
    made = spec(cells=2, per_cell=8, warm_start=("old",), sampler=sampler_settings("gp"))
    seen = tuple(
        Observation(k, {"a": k % 2, "x": k / 20}, 0.5 - (k / 20 - 0.4) ** 2) for k in range(20)
    )
    prior = Prior("old", 7, seen, {"failed": 2, "outside": 1}, "its metric is `loss`")
    rows = [
        trial(k, k % 2, {"a": k % 2, "x": k / 12}, 0.5 - (k / 12 - 0.4) ** 2) for k in range(12)
    ]
    (row,) = report_on(subject(made, rows, priors=[prior])).data["warm_starts"]
    assert 0.0 <= row.pop("counts") <= 1.5
    assert row == {
        "study": "old",
        "trials": 20,
        "left_out": {"failed": 2, "outside": 1},
        "remark": "its metric is `loss`",
    }
    few = report_on(subject(made, rows[:1], priors=[prior])).data["warm_starts"]
    assert few[0]["counts"] is None


def test_the_best_cell_is_the_brightest_whatever_the_direction() -> None:
    for direction, reversed_ in (("maximize", False), ("minimize", True)):
        made = spec(directions=(direction,))
        (first, *_) = grid.pictures(subject(made, ten(made)))
        assert first.figure["data"][0]["reversescale"] is reversed_


def test_a_large_grid_is_shown_by_two_axes_or_not_at_all() -> None:
    axes = (Axis("a", tuple(range(400))), Axis("b", (1, 2, 3)), Axis("c", ("u", "v")))
    made = spec(grid=axes, budget=Budget(2400, 1))
    rows = [trial(0, 0, {"a": 0, "b": 2, "c": "v", "x": 0.5}, 0.7)]
    small = Progress(
        StudyRow(1, "s", 1, "ACTIVE", None, True, BEGUN, BEGUN),
        *(2400, 1, 0, 0, 0, 0, 0.0, None, 2400, 0.7, 0),
        (CellRow(3, {"a": 0, "b": 2, "c": "v"}, "OPEN", None, 1, 1, 0, 0, 0, 0.7, 0, 1),),
    )
    model = search.Search(made)
    news = {0: TrialNews(0, "COMPLETE", (), (0.7,), cell=3)}
    whole = Subject(made, small, model, rows, news, ())
    (picture,) = grid.pictures(whole)
    assert picture.figure["data"][0]["z"] == [[None, None, None], [None, 0.7, None]]
    assert "2,400 cells" in picture.caption
    assert "this is the best over the other axis for each value of b and" in picture.caption
    assert not picture.wide
    assert grid.pictures(subject(spec(cells=8), ten(spec(cells=8))))[0].wide
    report = report_on(whole)
    assert any("2,400 cells" in line for line in report.left_out)
    one = replace(made, grid=axes[:1])
    assert grid.pictures(replace(whole, spec=one)) == []


# ------------------------------------------------------------------------------- pictures of trials


def test_trials_that_ended_otherwise_are_marked_in_the_slices() -> None:
    made = spec(cells=2)
    rows = ten(made)
    rows[3] = replace(rows[3], state="FAIL", values=None, failure="no")
    rows[4] = replace(rows[4], state="PRUNED", values=None)
    rows[5] = replace(rows[5], feasible=False)
    first, second = slices.pictures(subject(made, rows))
    assert first.title == "value over x"
    names = [trace["name"] for trace in first.figure["data"]]
    assert names == ["failed", "pruned", "breaks a constraint", "complete", "the best"]
    pruned = first.figure["data"][1]
    assert (pruned["x"], pruned["y"]) == ([0.4], [0.2])  # at its last report
    spots = second.figure["data"][3]["x"]  # of the axis `a`: beside each other, within its band
    assert len(set(spots)) == len(spots)
    assert all(abs(spot - round(spot)) <= 0.3 for spot in spots)


def test_device_time_is_all_of_the_time_by_how_it_ended() -> None:
    made = spec(cells=2)
    whole = subject(made, ten(made))
    lost = replace(whole.spans[0], outcome="lost", attempt=1, state="COMPLETE")
    whole = replace(whole, spans=[lost, *whole.spans[1:]])
    bars, line = spent.pictures(whole)
    minutes = {t["name"]: sum(t["x"]) for t in bars.figure["data"]}
    assert minutes == {"complete": 9.0, "lost with its worker": 1.0}
    assert "10 device minutes in all, of which 90 %" in bars.caption
    probe = ProbeRow(
        *(0, {"a": 0}, "memory", "H200", 0, "FINISHED", None, None, 120.0, 1, 1, "host", "", None),
        *(BEGUN, False, 0.0),
    )
    probed = replace(whole, probes=[probe])
    assert "12 device minutes in all" in spent.pictures(probed)[0].caption
    assert ("device time", "12 minutes") in facts(probed)
    assert line.figure["layout"]["yaxis"]["ticktext"] == ["host GPU-12345678"]
    assert sum(len(t["x"]) for t in line.figure["data"]) == 10
    many = [replace(s, number=k, cell=k) for k in range(70) for s in whole.spans[:1]]
    wide = replace(whole, spec=spec(cells=70), spans=many)
    (row,) = spent.pictures(wide)[0].figure["layout"]["yaxis"]["ticktext"]
    assert row == "70 cells", "thirty of them would be less than half"
    twice = [*whole.spans, *(replace(s, number=s.number + 10) for s in whole.spans)]
    _, two = spent.pictures(replace(whole, spans=twice))
    assert len(two.figure["layout"]["yaxis"]["ticktext"]) == 2  # slots of one device


# -------------------------------------------------------------------------------------- the outputs


def small_report(name: str = "study") -> Report:
    made = spec(name, cells=2, metrics=("<metric>",))
    return report_on(subject(made, ten(made)), ())


def test_the_page_needs_no_network_and_is_the_same_each_time() -> None:
    text = small_report().html()
    assert text == small_report().html()
    assert not re.search(r"<(script|link|img)[^>]*\s(src|href)=", text)
    assert len(text) < 2_200_000
    assert "<noscript>" in text
    keys = re.findall(r'id="plot-([a-z0-9-]+)"', text)
    assert len(keys) == len(set(keys)) > 5


def test_nothing_of_a_user_is_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>`|"
    made = spec(
        evil,
        grid=(Axis("a", (evil, "b")),),
        metrics=(evil,),
        search=(Searched("x", "float", 0.0, 1.0),),
        budget=Budget(10, 5),
    )
    rows = [trial(k, k % 2, {"a": (evil, "b")[k % 2], "x": k / 10}, k / 10) for k in range(9)]
    rows.append(replace(trial(9, 0, {"a": evil, "x": 0.5}, state="FAIL"), failure=evil))
    report = report_on(subject(made, rows), ())
    text = report.html()
    assert "<img" not in text
    assert text.count("</script>") == text.count("<script")
    for line in report.markdown().splitlines():
        assert "<img" not in re.sub(r"`[^`]*`|\\<", "", line)
    assert json.loads(json.dumps(report.data))["study"] == evil


def test_numbers_of_pictures_are_finite_and_short() -> None:
    text = page.script_json({"x": [math.nan, 1 / 3, math.inf, 10**20], "y": "</script>\ud800"})
    assert json.loads(text) == {"x": [None, 0.3333333, None, 10**20], "y": "</script>\\ud800"}
    assert "</" not in text


def test_what_reorders_text_or_is_not_seen_is_shown_as_an_escape() -> None:
    evil = "\u202ecod\u2066e\u200b"
    made = spec(
        grid=(Axis("a", (evil, "b")),),
        metrics=(evil,),
        budget=Budget(12, 6),
    )
    rows = [trial(k, k % 2, {"a": (evil, "b")[k % 2], "x": k / 12}, k / 12) for k in range(11)]
    rows.append(
        replace(trial(11, 0, {"a": evil, f"of {evil}": 1}, state="FAIL"), failure=f"no {evil}")
    )
    report = report_on(subject(made, rows))
    for text in (report.html(), report.markdown()):
        assert not set(text) & set(evil) - set("code")
        assert "\\u202ecod" in text.replace("\\\\u", "\\u")
        assert "(has characters that are not seen: --json has them)" in text
    assert any(evil in word for row in report.data["best"] for word in row["overrides"])
    assert report.data["cells"][0]["values"]["a"] in (evil, "b")


def test_the_same_statements_and_tables_everywhere() -> None:
    report = small_report()
    words = report.markdown()
    bare = re.sub(r"<[^>]+>|`", "", report.html()).replace("&lt;", "<").replace("&gt;", ">")
    assert report.statements
    for one, stored in zip(report.statements, report.data["statements"], strict=True):
        assert stored["text"] == one.text
        plain = one.text.replace("`", "")
        assert plain in bare.replace("&amp;", "&")
        assert plain in re.sub(r"\\(.)", r"\1", words).replace("`", "")
    assert report.data["best"][0]["trial"] in (8, 9)
    assert {"a", "x"} == set(report.data["best"][0]["params"])
    for row in report.data["cells"]:
        assert (row["trials"], row["share"], row["grows"]) == (5, 5, False)
        assert row["low"] <= row["estimate"] <= row["high"]
    assert len(report.data["best"]) == words.split("## Best trials")[1].count("\n| ") - 2


def test_a_table_in_markdown_keeps_its_columns_whatever_is_in_it() -> None:
    rows = (("x|y", "a='`|  *'"), (1.23456789, None), ("`a|b`", "\n"))
    table = Table("t", "T", ("a", "b"), rows, [], typed="b")
    report = replace(small_report(), tables=[table])
    lines = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3] * 5
    assert lines[2] == "| x\\|y | `` a='`\\|  *' `` |", "to the letter, as GitHub reads it"
    assert cell_text("two\nlines") == "two lines"
    assert "1.23457" in lines[3]
    assert "not seen" in lines[4]


def test_code_outside_of_tables_is_to_the_letter() -> None:
    one = replace(small_report().statements[0], text="`a=x|y_*` and x|y")
    words = markdown(replace(small_report(), statements=[one], tables=[]))
    assert "`a=x|y_*` and x|y" in words


def test_on_paper_a_trial_stays_with_its_overrides() -> None:
    text = small_report().html()
    pairs = re.findall(r'<tbody class="pair">.*?</tbody>', text, re.DOTALL)
    assert len(pairs) == 10
    assert all(pair.count("<tr") == 2 and "<code>" in pair for pair in pairs)
    assert re.search(r"tbody\.pair \{ break-inside: avoid", text)


def test_without_scripts_pictures_take_no_room() -> None:
    head = small_report().html().partition("<body>")[0]
    assert "<noscript><style>.pictures, .plot { display: none; }</style></noscript>" in head


# ---------------------------------------------------------------------- of which little can be said


def conditions() -> tuple[StudySpec, list[TrialRow]]:
    made = spec(
        grid=(Axis("a", ("sgd", "adam")),),
        search=(
            Searched("x", "float", 0.0, 1.0),
            Searched("momentum", "float", 0.0, 1.0, when={"a": ("sgd",)}),
        ),
        budget=Budget(12, 6),
    )
    rows = []
    for k in range(12):
        params: dict[str, Any] = {"a": ("sgd", "adam")[k % 2], "x": k / 12}
        if not k % 2:
            params["momentum"] = k / 20
        rows.append(trial(k, k % 2, params, k / 12))
    return made, rows


def several() -> tuple[StudySpec, list[TrialRow]]:
    made = spec(
        cells=2, per_cell=3, directions=("maximize", "minimize"), metrics=("accuracy", "latency")
    )
    return made, [
        trial(k, k % 2, {"a": k % 2, "x": k / 10}, k / 10, float((k * 7) % 5)) for k in range(6)
    ]


def categories() -> tuple[StudySpec, list[TrialRow]]:
    made = spec(
        grid=(Axis("a", ("u", "v")),),
        search=(Searched("x", "categorical", choices=("r", "s", None)),),
        budget=Budget(12, 6),
    )
    return made, [
        trial(k, k % 2, {"a": "uv"[k % 2], "x": ("r", "s", None)[k % 3]}, k / 12) for k in range(12)
    ]


def without_grid() -> tuple[StudySpec, list[TrialRow]]:
    made = spec(grid=(), budget=Budget(10, 10))
    return made, [trial(k, 0, {"x": k / 10}, k / 10) for k in range(10)]


def asked_for() -> tuple[StudySpec, list[TrialRow]]:
    made = spec(cells=2, per_cell=5, search=())
    return made, [trial(k, k % 2, {"a": k % 2, "depth": k}, k / 10) for k in range(10)]


CASES = {
    "none": ((spec(cells=2), []), "No trial is complete", set()),
    "one": ((spec(cells=2), ten(spec(cells=2))[:1]), "Trial 0 ", {"grid-best", "slice-1"}),
    "only failed": (
        (spec(cells=2), [trial(0, 0, {"a": 0, "x": 0.5}, state="FAIL")]),
        "No trial is complete",
        {"grid-trials"},
    ),
    "one cell": ((spec(cells=1), ten(spec(cells=2))[::2]), "one cell", {"slice-1"}),
    "no grid": (without_grid(), "no grid", {"slice-1", "best-by-trials"}),
    "several objectives": (several(), "Pareto front", {"pareto-1", "grid-best"}),
    "conditions": (conditions(), "Trial", {"parallel", "slice-2"}),
    "asked for": (asked_for(), "asked for by the objective", {"slice-1", "slice-2"}),
    "categories": (categories(), "Trial", {"grid-best", "slice-1"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_study_of_which_little_can_be_said_has_a_report_that_says_so(name: str) -> None:
    (made, rows), words, keys = CASES[name]
    report = report_on(subject(made, rows), ())
    assert words in report.html()
    assert words in re.sub(r"\\(.)", r"\1", report.markdown()) or words in str(report.facts)
    assert keys <= {picture.key for picture in report.pictures}
    json.dumps(report.data, allow_nan=False)


def test_a_stage_is_not_told_to_launch_with_what_its_chain_refuses() -> None:
    own = subject(spec(cells=2), ten(spec(cells=2)))
    told = {one.text: one.advice for one in own.statements}
    assert any("launch again with" in advice for advice in told.values())
    chain: Any = object()
    for one in replace(own, chain=chain).statements:
        assert "launch again" not in one.advice
        assert one.advice in ("", told[one.text])
