"""What a launch declares: each odd name or value is kept as it was written, or refused in one line
and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from orchestrator.config import compose, parse_flags, study_spec
from orchestrator.config.space import Space
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched, StudySpec
from orchestrator.search import Search, describe
from tests.support.odd_values import Refused, identical, refusal
from tests.support.studies import spec

LONG = "x" * 600


def declared(directory: Path, yaml: str, *words: str) -> StudySpec:
    """The study that ``launch --dry-run`` would show, of an experiment in `yaml` and the words of a
    command line.
    """
    (directory / "experiment").mkdir()
    text = f"# @package _global_\ndefaults: [_self_]\n{yaml}\n"
    (directory / "experiment" / "odd.yaml").write_text(text, encoding="utf-8")
    flags = parse_flags((f"--config-dir={directory}", "experiment=odd", *words))
    made = study_spec(
        compose(
            "launch", flags.overrides, config_dir=flags.config_dir, config_name=flags.config_name
        )
    )
    describe(made)
    return made


def parameter(section: str, text: str) -> Axis | Searched:
    """What the YAML `text` under ``grid`` or ``search`` declares for a parameter."""
    sections: Any = {
        "grid": None,
        "search": None,
        section: OmegaConf.to_container(OmegaConf.create(f"x: {text}")),
    }
    space = Space.from_yaml(**sections)
    describe(replace(spec(), grid=tuple(space.grid.values()), search=tuple(space.search.values())))
    return (space.grid | space.search)["x"]


COMMON = "objective: {_target_: tests.support.training.quick}\nbudget: {trials: 20}\n"
NAMED = COMMON + "study: {name: odd}\n"

# What the YAML of `study` says: the name and metric that it gives, or a part of the refusal.
STUDIES: dict[str, tuple[str, Any]] = {
    "100 characters": ("name: " + "n" * 100, ("n" * 100, "value")),
    "a number": ("name: 7", ("7", "value")),
    "101 characters": ("name: " + "n" * 101, Refused("at most 100")),
    "600 characters": (f"name: {LONG}", Refused("at most 100")),
    "empty": ("name: ''", Refused("study.name='': must consist of letters")),
    "newline": (r'name: "a\nb"', Refused(r"study.name='a\nb': must consist")),
    "newline at the end": (r'name: "a\n"', Refused(r"study.name='a\n': must consist")),
    "NUL": (r'name: "a\0b"', Refused(r"study.name='a\x00b': must consist")),
    "escape": (r'name: "\e[31m"', Refused(r"study.name='\x1b[31m': must consist")),
    "lone surrogate": (r'name: "\uD800"', Refused(r"study.name='\ud800': must consist")),
    "path": ("name: ../../etc/passwd", Refused("study.name='../../etc/passwd': must consist")),
    "list": ("name: [a]", Refused("study.name=['a']: must be a word")),
    "null": ("name: null", Refused("study.name must be given")),
    "metric of words": (
        "{name: odd, metric: 'val/F1 (macro) @5 🎉'}",
        ("odd", "val/F1 (macro) @5 🎉"),
    ),
    "metric of 101 characters": (
        "{name: odd, metric: " + "m" * 101 + "}",
        Refused("must be printable, at most 100 characters"),
    ),
    "metric with newline": (
        r'{name: odd, metric: "a\nb"}',
        Refused(r"study.metric='a\nb': must be printable"),
    ),
    "metric with NUL": (
        r'{name: odd, metric: "a\0b"}',
        Refused(r"study.metric='a\x00b': must be printable"),
    ),
    "metric of a surrogate": (
        r'{name: odd, metric: "\uD800"}',
        Refused(r"study.metric='\ud800': must be printable"),
    ),
    "metric right to left": (
        r'{name: odd, metric: "a\u202Eb"}',
        Refused(r"study.metric='a\u202eb': must be printable"),
    ),
    "blank metric": ("{name: odd, metric: ' '}", Refused("study.metric=' ': must be printable")),
    "metric null": ("{name: odd, metric: null}", Refused("study.metric=None: must be a word")),
    "metric a number": ("{name: odd, metric: 5}", Refused("study.metric=5: must be a word")),
}

# What the YAML of a section says: the section's content, or a part of the refusal.
PARAMS: dict[str, tuple[str, Any]] = {
    "int beyond 2**63": ("{v: 9223372036854775808}", {"v": 2**63}),
    "minus zero": ("{v: -0.0}", {"v": -0.0}),
    "newline and emoji": (r'{v: "a\nb 🎉 \u202e"}', {"v": "a\nb 🎉 \u202e"}),
    "date": ("{v: 2020-01-01}", {"v": "2020-01-01"}),
    "nan": ("{v: .nan}", Refused("params.v: nan cannot be stored")),
    "inf in a list": ("{v: [1, .inf]}", Refused("params.v: inf cannot be stored")),
    "beyond a float": ("{v: 1.0e+400}", Refused("params.v: inf cannot be stored")),
    "bytes": ("{v: !!binary aGk=}", Refused("params.v: b'hi' is of type bytes")),
    "set": ("{v: !!set {a}}", Refused("not a supported primitive type")),
    "int key": ("{v: {1: 2}}", Refused("params.v: the key 1 must be a string")),
    "null key": ("{null: 2}", Refused("key type 'NoneType'")),
    "dotted key": ("{a.b: 2}", Refused("the key 'a.b' contains a dot")),
    "empty key": ("{'': 2}", Refused("params: the key '' must be printable")),
    "NUL in a key": (r'{v: {"a\0": 2}}', Refused(r"params.v: the key 'a\x00' must be printable")),
    "surrogate in a key": (
        r'{"\uD800": 2}',
        Refused(r"params: the key '\ud800' must be printable"),
    ),
    "NUL": (r'{v: ["a\0b"]}', Refused("params.v: text with a NUL character cannot be stored")),
    "lone surrogate": (
        r'{v: "\uD800"}',
        Refused("params.v: text with a lone surrogate cannot be stored"),
    ),
    "200 levels": ("{v: " + "[" * 200 + "]" * 200 + "}", Refused("nested too deeply")),
    "a list in itself": ("{v: &x [*x]}", Refused("nested too deeply")),
    "5000 digits": ("{v: " + "9" * 5000 + "}", Refused("4300")),
    "not a mapping": ("5", Refused("params is a section")),
}
GRIDS: dict[str, tuple[str, Any]] = {
    "2**53": ("[9007199254740992, 1]", (2**53, 1)),
    "beyond 2**53": (
        "[9007199254740993, 1]",
        Refused("would be rounded: a whole number must be from -9007199254740992"),
    ),
    "minus zero": ("[-0.0, 1]", (-0.0, 1)),
    "both zeros": ("[-0.0, 0]", Refused("0 is listed twice")),
    "1 and true": ("[true, 1]", Refused("1 is listed twice")),
    "1 and '1'": ("[1, '1']", (1, "1")),
    "null and empty": ("[null, '']", (None, "")),
    "lists": ("[[1, 2], [3]]", ([1, 2], [3])),
    "mappings": ("[{a: 1}, {a: 2}]", ({"a": 1}, {"a": 2})),
    "equal lists": ("[[1], [1]]", Refused("[1] is listed twice")),
    "newline and emoji": (r'["a\nb", "🎉", "\u202e"]', ("a\nb", "🎉", "\u202e")),
    "long text": (f"[{LONG}, {LONG}y]", (LONG, LONG + "y")),
    "least and greatest": ("[5.0e-324, 1.0e+308]", (5e-324, 1e308)),
    "nan": ("[.nan, 1]", Refused("nan cannot be stored")),
    "bytes": ("[!!binary aGk=, 1]", Refused("b'hi' is of type bytes")),
    "empty": ("[]", Refused("no value is given")),
    "scalar": ("5", Refused("a plain value is set under params")),
    "NUL": (r'["a\0b", c]', Refused("text with a NUL character cannot be stored")),
    "lone surrogate": (r'["\uD800", c]', Refused("text with a lone surrogate cannot be stored")),
    "wider than a float": ("[-1.0e+308, 1.5e+308]", Refused("1.8e308")),
}
SEARCHES: dict[str, tuple[str, Any]] = {
    "subnormal": ("interval(0, 1e-320)", (0.0, 1e-320)),
    "neighbours": ("interval(0.1, 0.10000000000000002)", (0.1, 0.10000000000000002)),
    "log of the least": ("tag(log, interval(5e-324, 1e308))", (5e-324, 1e308)),
    "log of zero": ("tag(log, interval(0, 1))", Refused("a low end greater than 0")),
    "whole to 2**53": ("int(interval(-9007199254740992, 9007199254740992))", (-(2**53), 2**53)),
    "whole to 2**62": (
        "int(interval(0, 4611686018427387904))",
        Refused("would be rounded: a whole number must be from -9007199254740992"),
    ),
    "one value": ("interval(1, 1)", Refused("there is only one value")),
    "nan": ("interval(nan, 1)", Refused("bounds must be finite numbers")),
    "inf": ("interval(0, 1e400)", Refused("bounds must be finite numbers")),
    "text": ("interval(a, b)", Refused("not in Hydra's override grammar")),
    "step of zero": ("range(0, 10, 0)", Refused("the step must not be 0")),
    "wider than a float": ("interval(-1e308, 1e308)", Refused("1.8e308")),
    "too many steps": ("range(0, 1, 1e-300)", Refused("search.x")),
    "lists": ("choice([1,2],[3])", ([1, 2], [3])),
    "equal choices": ("choice(1,1.0)", Refused("1.0 is listed twice")),
    "one choice": ("choice(a)", Refused("there is only one value")),
}
# Words of the command line: the params, or a part of the refusal.
WORDS: dict[str, tuple[str, Any]] = {
    "newline in quotes": ('+v="a\nb"', {"v": "a\nb"}),
    "underscore": ("+v=1_000", {"v": 1000}),
    "beyond a float": ("+v=1e400", Refused("params.v: inf cannot be stored")),
    "no name": ("+=1", Refused("the name before '=' is missing")),
    "bytes of another encoding": ("+v='\udcff'", Refused("lone surrogate cannot be stored")),
    "200 levels": ("+v=" + "[" * 200 + "]" * 200, Refused("nested too deeply")),
    "5000 digits": ("+v=" + "9" * 5000, Refused("4300")),
    "newline": ("+v=a\nb", Refused("not in Hydra's override grammar")),
    "axis of 512 characters": ("+" + "n" * 512 + "=1,2", {}),
    "axis of 513 characters": (
        "+" + "n" * 513 + "=1,2",
        Refused("at most 512 characters, this one has 513"),
    ),
    "searched with 513 characters": (
        "+" + "n" * 513 + "=interval(0,1)",
        Refused("at most 512 characters, this one has 513"),
    ),
}
# Values for a searched parameter in [0, 1], as `enqueue` takes them.
GIVEN: dict[str, tuple[Any, Any]] = {
    "low": (0, 0),
    "minus zero": (-0.0, -0.0),
    "nan": (float("nan"), Refused("not a value of this study's float")),
    "beyond": (1.0000001, Refused("not a value of this study's float")),
    "bool": (True, Refused("not a value of this study's float")),
    "text": ("0.5", Refused("not a value of this study's float")),
    "null": (None, Refused("not a value of this study's float")),
    "list": ([0.5], Refused("not a value of this study's float")),
    "beyond a float": (10**400, Refused("not a value of this study's float")),
}


def check(wanted: Any, action: Callable[[], Any]) -> None:
    if isinstance(wanted, Refused):
        assert wanted.why in refusal(action, ConfigError)
    else:
        assert identical(action(), wanted)


@pytest.mark.parametrize("what", STUDIES)
def test_a_name_is_kept_or_refused(what: str, tmp_path: Path) -> None:
    text, wanted = STUDIES[what]

    def named() -> tuple[str, str]:
        made = declared(
            tmp_path, f"{COMMON}study: {text if text.startswith('{') else '{' + text + '}'}"
        )
        return made.name, made.metrics[0]

    check(wanted, named)


@pytest.mark.parametrize("what", PARAMS)
def test_a_default_is_kept_or_refused(what: str, tmp_path: Path) -> None:
    text, wanted = PARAMS[what]
    check(wanted, lambda: dict(declared(tmp_path, f"{NAMED}params: {text}").params))


@pytest.mark.parametrize("what", GRIDS)
def test_an_axis_is_kept_or_refused(what: str) -> None:
    text, wanted = GRIDS[what]

    def values() -> Any:
        made = parameter("grid", text)
        assert isinstance(made, Axis)
        return made.values

    check(wanted, values)


@pytest.mark.parametrize("what", SEARCHES)
def test_a_search_is_kept_or_refused(what: str) -> None:
    text, wanted = SEARCHES[what]

    def limits() -> Any:
        made = parameter("search", f"'{text}'")
        assert isinstance(made, Searched)
        return made.choices or (made.low, made.high)

    check(wanted, limits)


@pytest.mark.parametrize("what", WORDS)
def test_a_word_of_the_command_line_is_kept_or_refused(what: str, tmp_path: Path) -> None:
    text, wanted = WORDS[what]
    check(wanted, lambda: dict(declared(tmp_path, NAMED, text).params))


@pytest.mark.parametrize("what", GIVEN)
def test_a_value_by_hand_is_kept_or_refused(what: str) -> None:
    value, wanted = GIVEN[what]
    study = Search(spec())
    check(wanted, lambda: study.ask({"a": 0}, ticket=0, retry=0, given={"x": value}).values["x"])
