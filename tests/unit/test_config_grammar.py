"""The sweep grammar by itself: text to axes and searched parameters, and back. No Hydra
composition.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hydra.core.override_parser.types import Sweep
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import grammar
from orchestrator.config.space import Space
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched


def declared(value: str, section: str | None = None) -> Axis | Searched:
    sweep = grammar.parse_override(f"x={value}")._value
    assert isinstance(sweep, Sweep)
    return grammar.declaration("x", sweep, section=section, source=f"x={value}")


def refusal(value: str, section: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        declared(value, section)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("32,64,128", (32, 64, 128)),
        ("a,'b c',null,true,1.5", ("a", "b c", None, True, 1.5)),
        ("'1',1", ("1", 1)),
        ("tag(grid, choice(a, b))", ("a", "b")),
        ("tag(grid, range(1, 5))", (1, 2, 3, 4)),
        ("tag(grid, range(5, 1, -2))", (5, 3)),
        ("tag(grid, range(0, 0.9, 0.3))", (0.0, 0.3, 0.6)),
        ("int(tag(grid, choice(1.0, 2.0)))", (1, 2)),
        ("sort(3, 1, 2)", (1, 2, 3)),
        ("sort(3, 1, 2, reverse=true)", (3, 2, 1)),
        ("[1,2],[3]", ([1, 2], [3])),
        ("{a:1},{a:2}", ({"a": 1}, {"a": 2})),
    ],
)
def test_a_simple_list_or_the_tag_grid_makes_an_axis(text: str, values: tuple[Any, ...]) -> None:
    axis = declared(text)
    assert axis == Axis("x", values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0, 1)", Searched("x", "float", 0.0, 1.0)),
        ("tag(log, interval(1e-4, 1e-1))", Searched("x", "float", 1e-4, 0.1, log=True)),
        ("int(interval(1, 8))", Searched("x", "int", 1, 8)),
        ("int(tag(log, interval(16, 512)))", Searched("x", "int", 16, 512, log=True)),
        ("tag(log, int(interval(16, 512)))", Searched("x", "int", 16, 512, log=True)),
        ("range(8)", Searched("x", "int", 0, 7)),
        ("range(1, 9)", Searched("x", "int", 1, 8)),
        ("range(0, 10, 2)", Searched("x", "int", 0, 8, step=2)),
        ("range(0, 9, 2)", Searched("x", "int", 0, 8, step=2)),
        ("range(10, 0, -3)", Searched("x", "int", 1, 10, step=3)),
        ("range(0, 0.9, 0.3)", Searched("x", "float", 0.0, 0.6, step=0.3)),
        ("float(range(1, 4))", Searched("x", "float", 1.0, 3.0, step=1.0)),
        ("tag(log, range(1, 9))", Searched("x", "int", 1, 8, log=True)),
        ("int(tag(log, range(1, 9)))", Searched("x", "int", 1, 8, log=True)),
        ("choice(relu, 'gelu', 2)", Searched("x", "categorical", choices=("relu", "gelu", 2))),
        ("choice([1,2],{a: b})", Searched("x", "categorical", choices=([1, 2], {"a": "b"}))),
    ],
)
def test_intervals_ranges_and_choices_are_searched(text: str, expected: Searched) -> None:
    found = declared(text)
    assert found == expected
    assert isinstance(found, Searched)
    assert type(found.low) is type(expected.low)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("interval(1, 0)", ["x=interval(1, 0)", "low end 1", "high end 0"]),
        ("interval(1, 1)", ["only one value", "x=1"]),
        ("range(3, 4)", ["only one value", "x=3"]),
        ("choice(relu)", ["only one value", "x=relu"]),
        ("range(3, 3)", ["empty"]),
        ("range(1, 5, 0)", ["step must not be 0"]),
        ("tag(grid, range(3, 3))", ["no value"]),
        ("tag(log, interval(0, 1))", ["greater than 0"]),
        ("tag(log, interval(-1, 1))", ["greater than 0, not -1"]),
        ("tag(log, range(1, 9, 2))", ["step of 2"]),
        ("tag(log, choice(1, 2))", ["log needs an interval"]),
        ("interval(nan, 1)", ["finite"]),
        ("interval(0, inf)", ["finite"]),
        ("range(0, inf)", ["finite"]),
        ("int(interval(1.5, 8))", ["whole numbers"]),
        ("int(range(0.5, 8))", ["whole numbers"]),
        ("tag(grid, interval(0, 1))", ["is not a list of values", "x=0,1"]),
        ("tag(grid, tag(log, range(1, 3)))", ["the tag log applies to searched intervals only"]),
        ("tag(lgo, interval(1, 2))", ["unknown tag 'lgo'", "did you mean 'log'", "log, grid"]),
        ("shuffle(1, 2)", ["shuffle"]),
        ("shuffle([1, 2])", ["shuffle"]),
        ("glob(*)", ["glob"]),
        ("sort(range(3, 0, -1))", ["sort"]),
        ("1,2,1", ["1 is listed twice"]),
        ("1,1.0", ["1.0 is listed twice"]),
        ("1,true", ["true is listed twice"]),
        ("[1],[1]", ["[1] is listed twice"]),
        ("1,nan", ["nan cannot be stored"]),
        ("[inf],2", ["inf cannot be stored"]),
        ("tag(grid, range(100000))", ["more than 10,000 values"]),
        ("intreval(0, 1)", ["Unknown function 'intreval'"]),
        ("interval(0, 1", ["grammar"]),
    ],
)
def test_a_sweep_without_meaning_is_refused_in_one_line(text: str, words: list[str]) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


def test_a_long_range_may_be_searched() -> None:
    assert declared("range(1000000)") == Searched("x", "int", 0, 999_999)


def test_yaml_sections_say_what_a_sweep_is() -> None:
    assert declared("range(1, 4)", "grid") == Axis("x", (1, 2, 3))
    assert declared("choice(a, b)", "grid") == Axis("x", ("a", "b"))
    assert declared("a,b", "search") == Searched("x", "categorical", choices=("a", "b"))
    assert "contradicts search" in refusal("tag(grid, choice(a, b))", "search")
    assert "is not a list of values" in refusal("interval(0, 1)", "grid")


def test_a_quoted_value_is_no_sweep() -> None:
    assert grammar.parse_override("x='1,2'").value() == "1,2"
    assert grammar.parse_override('x="interval(0, 1)"').value() == "interval(0, 1)"


finite = st.floats(-1e12, 1e12, allow_nan=False).map(lambda value: float(f"{value:.6g}"))
whole = st.integers(-(10**9), 10**9)


@st.composite
def searched(draw: st.DrawFn) -> Searched:
    kind = draw(st.sampled_from(["float", "int", "stepped float", "stepped int"]))
    if kind in ("float", "int"):
        low, high = sorted(draw(st.tuples(*[finite if kind == "float" else whole] * 2)))
        if low == high:
            high = low + 1
        return Searched("x", kind, low, high, log=low > 0 and draw(st.booleans()))  # type: ignore[arg-type]
    count = draw(st.integers(1, 50))
    if kind == "stepped int":
        low, step = draw(whole), draw(st.integers(2, 1000))
        return Searched("x", "int", low, low + count * step, step=step)
    first, unit = (
        draw(st.integers(-1000, 1000)),
        draw(st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.25, 0.3])),
    )
    return Searched(
        "x", "float", round(first * unit, 6), round((first + count) * unit, 6), step=unit
    )


@given(searched())
def test_the_normal_form_reads_back_as_the_same(parameter: Searched) -> None:
    space = Space.from_yaml({}, {"x": grammar.normal_form(parameter)})
    assert space.search == {"x": parameter}
    assert type(space.search["x"].low) is type(parameter.low)


storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    st.lists(
        st.one_of(st.none(), st.booleans(), storable, whole, finite),
        min_size=1,
        unique_by=lambda v: (v is None, v),
    )
)
def test_an_axis_reads_back_as_the_same(values: list[Any]) -> None:
    axis = Axis("x", tuple(values))
    assert Space.from_yaml({"x": grammar.normal_form(axis)}, {}).grid == {"x": axis}


def test_a_step_that_rounds_away_from_its_end_keeps_its_last_value() -> None:
    parameter = Searched("x", "float", 0.0, math.pi, step=math.pi / 7)
    read = Space.from_yaml({}, {"x": grammar.normal_form(parameter)}).search["x"]
    assert read.high == pytest.approx(math.pi, rel=1e-12)
