"""What a probe may return, and what the trials of its cell take from it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.measurement import (
    Measurement,
    MeasurementError,
    Narrowed,
    as_objective,
    functions_of,
    probe_key,
    typical_values,
)
from orchestrator.model import Axis, Searched, StudySpec
from tests.support.studies import spec as small

CELL = {"batch": 64, "kind": "sgd"}


def study(**changes: Any) -> StudySpec:
    return small(
        params={"lr": 0.1},
        grid=(Axis("batch", (64, 128)), Axis("kind", ("sgd", "adam"))),
        search=(
            Searched("lr", "float", 1e-6, 10.0, log=True),
            Searched("depth", "int", 1, 8),
            Searched("steps", "float", 0.0, 1.0, step=0.25),
            Searched("act", "categorical", choices=("relu", "gelu")),
            Searched("beta", "float", 0.0, 1.0, when={"kind": ("adam",)}),
        ),
        **changes,
    )


def test_what_is_empty_is_left_out_and_bounds_are_clipped() -> None:
    found = Measurement.of(
        {"bounds": {"lr": [1e-9, 0.1]}, "fixed": {}, "facts": {"steps": 300}}, study(), CELL
    )
    assert found.to_json() == {"bounds": {"lr": [1e-6, 0.1]}, "facts": {"steps": 300}}
    assert Measurement.of(found.to_json(), study(), CELL) == found
    assert found.label == "lr from 1e-06 to 0.1"


def test_a_probe_that_says_nothing_says_why() -> None:
    assert Measurement(facts={"reason": "the curve is flat"}).label == (
        "nothing to narrow: the curve is flat"
    )


@pytest.mark.parametrize(
    ("returned", "rule"),
    [
        ({"largest": {"batch": 10**400}}, "axis and value must be numbers"),
        ({"bounds": {"lr": [1, 10**400]}}, "must be two finite numbers"),
        ({"fixed": {"lr": 10**400}}, "must be from 1e-06 to 10"),
        ({"bounds": {"lr": [1e-9, 1e-6]}}, "leaves nothing of the declared range"),
        ({"bounds": {"depth": [2.2, 2.8]}}, "leaves nothing of the declared range"),
        (
            {"bound": {}},
            r"'bound' \(did you mean 'bounds'\?\); a probe returns a mapping of",
        ),
        ({"bounds": [1, 2]}, r"bounds=\[1,2\]: must be a mapping"),
        ({"bounds": {"l": [0, 1]}}, r"bounds: l is not searched in this cell \(did you mean 'lr'"),
        ({"bounds": {"beta": [0, 1]}}, r"bounds: beta is not searched in this cell"),
        ({"bounds": {"act": [0, 1]}}, r"bounds of act: it is one of several choices"),
        ({"bounds": {"lr": [0.1]}}, r"bounds of lr: \[0\.1\] must be two finite numbers"),
        ({"bounds": {"lr": ["nan", 1]}}, r"must be two finite numbers"),
        ({"bounds": {"lr": [0.1, 0.1]}}, r"the first of \[0\.1, 0\.1\] must be less"),
        ({"bounds": {"lr": [1, 0.1]}}, r"the first of \[1, 0\.1\] must be less than the second"),
        ({"bounds": {"lr": [20, 30]}}, r"leaves nothing of the declared range from 1e-06 to 10"),
        ({"fixed": {"lr": 20}}, r"fixed lr=20: must be from 1e-06 to 10"),
        ({"fixed": {"act": "tanh"}}, r"fixed act=tanh: not one of its choices"),
        ({"infeasible": True}, r"infeasible=true: must be the reason, in words"),
        ({"largest": {"kind": 3}}, r"largest kind=3: axis and value must be numbers"),
        ({"largest": {"batches": 3}}, r"largest: batches is not an axis.*did you mean 'batch'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_rule(returned: Any, rule: str) -> None:
    with pytest.raises(MeasurementError, match=rule):
        Measurement.of(returned, study(), CELL)


def test_several_probes_of_a_cell_are_joined() -> None:
    stored: list[dict[str, Any]] = [
        {"bounds": {"lr": [1e-4, 1e-1], "depth": [1, 4]}},
        {"bounds": {"lr": [1e-3, 1.0]}, "fixed": {"depth": 3}},
        {"bounds": {"gone": [0, 1]}},  # of a declaration that has changed since
    ]
    narrowed = Narrowed.by(stored, study(), CELL)
    assert (narrowed.bounds, narrowed.fixed) == ({"lr": (1e-3, 1e-1)}, {"depth": 3})
    apart = [{"bounds": {"lr": [1e-4, 1e-3]}}, {"bounds": {"lr": [1e-2, 1e-1]}}]
    assert Narrowed.by(apart, study(), CELL).bounds == {"lr": (1e-2, 1e-1)}, "the later one"


def test_values_by_hand_that_lie_outside_are_named() -> None:
    narrowed = Narrowed({"lr": (1e-3, 1e-1)}, {"depth": 3})
    assert narrowed.remarks({"lr": 0.01, "depth": 3, "act": "relu"}) == []
    assert narrowed.remarks({"lr": 1.0, "depth": 4}) == [
        "lr=1.0 lies outside what the cell's probe found: 0.001 to 0.1",
        "depth=4 is not what the cell's probe found: 3",
    ]


def test_a_probe_gets_a_value_for_whatever_has_no_default() -> None:
    assert typical_values(study(), CELL) == {**CELL, "depth": 4, "steps": 0.5, "act": "relu"}


def test_its_key_changes_with_the_declaration_and_with_the_code() -> None:
    declared = {"_target_": "my.probe", "build": "my.build", "version": 1}
    same = {"version": 1, "build": "my.build", "_target_": "my.probe"}
    assert probe_key(declared, "a") == probe_key(same, "a")
    assert len({probe_key({**declared, "version": v}, c) for v in (1, 2) for c in "ab"}) == 4
    assert as_objective(declared) == {"_target_": "my.probe", "build": "my.build"}
    assert functions_of(declared) == ["my.probe", "my.build"]


def test_a_whole_number_is_fixed_as_one() -> None:
    found = Measurement.of({"fixed": {"depth": 3.0, "lr": 1.0}}, study(), CELL)
    assert [type(found.fixed[path]) for path in ("depth", "lr")] == [int, float]
