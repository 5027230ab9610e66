"""What a user declares becomes one distribution a parameter, and true values survive the way there
and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Budget, Searched, StudySpec, TrialNews
from orchestrator.search import Search, by_hand, describe, distributions
from orchestrator.search.space import parameters
from orchestrator.settings import sampler_settings


def spec(grid: Sequence[Axis] = (), search: Sequence[Searched] = ()) -> StudySpec:
    return StudySpec("s", ("minimize",), ("loss",), {}, {}, tuple(grid), tuple(search), Budget(10))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((64, 32, 128), IntDistribution(32, 128, log=True)),
        ((1, 2, 3), IntDistribution(1, 3)),
        ((0, 100), IntDistribution(0, 100)),
        ((32,), IntDistribution(32, 32)),
        ((0.1, 0.2), FloatDistribution(0.1, 0.2)),
        ((1e-4, 1), FloatDistribution(1e-4, 1.0, log=True)),
        ((-1.5, 8), FloatDistribution(-1.5, 8.0)),
        (("b", "a"), CategoricalDistribution(("b", "a"))),
        ((True, False), CategoricalDistribution((True, False))),
        ((None, 3, "x"), CategoricalDistribution((None, 3, "x"))),
        ((True, 1), CategoricalDistribution(("true", "1"))),
        (([1, 2], {"a": 1}), CategoricalDistribution(("[1,2]", '{"a":1}'))),
        (([1], "[1]"), CategoricalDistribution(("[1]", "[1] #2"))),
    ],
)
def test_an_axis_becomes_the_distribution_that_keeps_its_order(
    values: tuple[Any, ...], expected: Any
) -> None:
    assert distributions(spec([Axis("a", values)]))["a"] == expected


@pytest.mark.parametrize(
    "values",
    [
        (32, 64),
        (0.5, 1),
        (True, 1),
        (None, "x", [1, {"b": 2}]),
        ({"a": 1}, {"a": 1.0}),
        ("x" * 80 + "1", "x" * 80 + "2"),
    ],
)
def test_every_value_of_an_axis_survives_with_its_type(values: tuple[Any, ...]) -> None:
    parameter = parameters(spec([Axis("a", values)]))["a"]
    for value in values:
        internal = parameter.internal(value)
        assert parameter.distribution._contains(internal)
        if parameter.choices:
            assert repr(parameter.true_value(internal)) == repr(value)
    labels = getattr(parameter.distribution, "choices", ())
    assert len(set(labels)) == len(labels)
    assert all(len(str(label)) <= 63 for label in labels)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Searched("p", "float", 1e-4, 0.1, log=True), FloatDistribution(1e-4, 0.1, log=True)),
        (Searched("p", "float", 0, 1, step=0.25), FloatDistribution(0, 1, step=0.25)),
        (Searched("p", "int", 1, 9, step=2), IntDistribution(1, 9, step=2)),
        (Searched("p", "int", 1, 1000, log=True), IntDistribution(1, 1000, log=True)),
        (
            Searched("p", "categorical", choices=("a", None, [1])),
            CategoricalDistribution(("a", None, "[1]")),
        ),
    ],
)
def test_a_searched_parameter_becomes_its_distribution(item: Searched, expected: Any) -> None:
    assert distributions(spec(search=[item]))["p"] == expected


@pytest.mark.parametrize(
    ("grid", "search", "says"),
    [
        ([Axis("a", ())], [], r"grid\.a: needs at least one value"),
        ([Axis("a", (1, 2, 1))], [], r"grid\.a: 1 is given twice"),
        ([Axis("a", (1, 1.0))], [], r"grid\.a: 1\.0 is given twice"),
        ([Axis("a", (2**60, 1))], [], r"2\*\*53"),
        ([Axis("a", (float("nan"), 1.0))], [], "not a finite number"),
        ([Axis("a", (1,))], [Searched("a", "float", 0, 1)], "a: declared twice"),
        ([], [Searched("p", "float", 2, 1)], r"search\.p: low <= high must hold"),
        ([], [Searched("p", "float", 0, 1, log=True)], r"search\.p: low > 0 must hold"),
        ([], [Searched("p", "int", 0.5, 3)], "whole numbers"),
        ([], [Searched("p", "float", None, 3)], "low must be a number"),
        ([], [Searched("p", "categorical")], "needs at least one value"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_with_its_field(
    grid: Sequence[Axis], search: Sequence[Searched], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        distributions(spec(grid, search))


def test_describe_says_every_parameter_in_words() -> None:
    rows = describe(
        spec(
            [Axis("bs", (32, 64, 128)), Axis("net", ("a", "b"))],
            [Searched("lr", "float", 1e-4, 0.1, log=True)],
        )
    )
    assert rows == [
        ("bs", "grid: int from 32 to 128 (log)"),
        ("net", "grid: one of a, b"),
        ("lr", "search: float from 0.0001 to 0.1 (log)"),
    ]


def test_a_step_gives_the_number_that_one_would_write() -> None:
    study = spec(
        search=[
            Searched("x", "float", 0.0, 1.0, step=0.1),
            Searched("y", "float", 1e-4, 1.0001, step=0.03),
        ]
    )
    known = parameters(study)
    assert known["x"].true_value(0.1 + 0.1 + 0.1) == 0.3 != 0.1 + 0.1 + 0.1
    assert known["x"].internal(0.1 + 0.1 + 0.1) == 0.3
    assert known["x"].param(3 * 0.1).internal == 0.3
    for sampler in ("random", "tpe", "gp", "qmc", "nsga2"):
        search = Search(replace(study, sampler=sampler_settings(sampler)))
        for ticket in range(12):
            made = search.ask({}, ticket=ticket, retry=0)
            assert made.values["x"] in [k / 10 for k in range(11)]
            assert made.values["y"] in [float(f"{1 + 300 * k}e-4") for k in range(34)]
            assert {param.name: param.internal for param in made.params} == made.values
            search.feed(
                [
                    TrialNews(
                        ticket,
                        "COMPLETE",
                        made.params,
                        (float(made.values["x"]),),
                        {},
                        made.system_attrs,
                    )
                ]
            )


def test_the_options_of_a_group_are_told_apart_by_their_names() -> None:
    axis = Axis("model", ("resnet", "vit"), ({"depth": 2}, {"depth": 2}), "model")
    study = replace(spec([axis, Axis("lr", (0.1,))]), params={"model": {"depth": 2}, "lr": 0.1})
    assert distributions(study)["model"] == CategoricalDistribution(("resnet", "vit"))
    assert [parameters(study)["model"].internal(name) for name in axis.values] == [0.0, 1.0]
    assert by_hand(study, {"model": "vit"}) == ({"model": "vit", "lr": 0.1}, {})
    assert by_hand(study, {"lr": 0.1})[0]["model"] == "resnet", "what params say is the default"
    assert study.contents({"model": "vit", "lr": 0.1}) == {"model": {"depth": 2}}
