"""What a user's function may hand over: each odd value is kept as what it is, or refused with a
reason, and costs no trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.model import Completed
from orchestrator.runner.protocol.values import ResultError, as_result
from tests.support.odd_values import (
    ATTRS,
    KEYS,
    NUMBERS,
    RESULTS,
    STEPS,
    UNBOUNDED,
    Broken,
    Refused,
    Said,
    identical,
    refusal,
)


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    opened = Said(tmp_path)
    yield opened
    opened.close()


@pytest.mark.filterwarnings("ignore:Converting a tensor")  # of torch, about requires_grad
@pytest.mark.parametrize("what", NUMBERS)
def test_a_result_or_report_is_the_nearest_float_or_is_refused(what: str, said: Said) -> None:
    make, wanted = NUMBERS[what]
    if isinstance(wanted, str):
        for where in (
            lambda: as_result(make(), ["value"], ["minimize"]),
            lambda: as_result({"value": make()}, ["value"], ["minimize"]),
        ):
            with pytest.raises(ResultError) as caught:
                where()
            assert (
                wanted in str(caught.value)
                or "for 1 metric" in str(caught.value)
                or "of shape" in str(caught.value)
            )
        assert wanted in refusal(lambda: said.trial.report(make(), 0))
        assert said.take() == ({}, {})
    else:
        assert as_result(make(), ["value"], ["minimize"]) == (Completed((wanted,)), [])
        said.trial.report(make(), 0)
        assert said.take() == ({0: wanted}, {})


@pytest.mark.parametrize("what", RESULTS)
def test_what_is_no_plain_number_is_a_result_if_it_holds_just_the_metrics(what: str) -> None:
    make, wanted = RESULTS[what]
    if isinstance(wanted, str):
        assert wanted in refusal(lambda: as_result(make(), ["value"], ["minimize"]))
    else:
        assert as_result(make(), ["value"], ["minimize"]) == (Completed(wanted), [])


@pytest.mark.parametrize("what", ATTRS)
def test_an_attribute_is_kept_exactly_or_refused_and_never_costs_the_trial(
    what: str, said: Said
) -> None:
    make, wanted = ATTRS[what]
    completed, left_out = as_result({"value": 0.5, "extra": make()}, ["value"], ["minimize"])
    assert completed.values == (0.5,)
    if isinstance(wanted, Refused):
        assert wanted.why in refusal(lambda: said.trial.set_user_attr("extra", make()))
        assert completed.attrs == {}
        assert wanted.why in left_out[0]
    else:
        said.trial.set_user_attr("extra", make())
        assert left_out == []
        assert identical(completed.attrs["extra"], wanted)
        assert identical(said.take()[1]["extra"], wanted)


def test_an_extra_entry_that_raises_while_it_is_read_is_left_out() -> None:
    completed, left_out = as_result(
        {"value": 0.5, "bad": Broken(), "good": 1}, ["value"], ["minimize"]
    )
    assert completed == Completed((0.5,), {"good": 1})
    assert left_out == [
        "the entry 'bad' of the returned mapping was not stored: RuntimeError('boom')"
    ]


@pytest.mark.parametrize("what", KEYS)
def test_the_name_of_an_attribute_is_kept_exactly_or_refused(what: str, said: Said) -> None:
    key, wanted = KEYS[what]
    completed, left_out = as_result({"value": 0.5, key: 1}, ["value"], ["minimize"])
    if isinstance(wanted, Refused):
        assert wanted.why in refusal(lambda: said.trial.set_user_attr(key, 1))
        assert completed.attrs == {}
        assert wanted.why in left_out[0]
    else:
        said.trial.set_user_attr(key, 1)
        assert said.take()[1] == completed.attrs == {wanted: 1}


def test_each_objective_has_its_own_worst_value() -> None:
    goals = ["error", "accuracy"], ["minimize", "maximize"]
    assert as_result((math.inf, -math.inf), *goals)[0].values == (math.inf, -math.inf)
    assert as_result({"accuracy": 0.5, "error": math.inf}, *goals)[0].values == (math.inf, 0.5)
    assert "inf for 'accuracy': no value is that good for a metric to be maximized" in refusal(
        lambda: as_result((0.1, math.inf), *goals)
    )
    assert "-inf for 'error': no value is that good for a metric to be minimized" in refusal(
        lambda: as_result({"error": -math.inf, "accuracy": 1}, *goals)
    )


@pytest.mark.parametrize("what", STEPS)
def test_a_step_is_a_whole_number_of_32_bits_or_is_refused(what: str, said: Said) -> None:
    step, wanted = STEPS[what]
    if isinstance(wanted, str):
        assert wanted in refusal(lambda: said.trial.report(0.5, step))
        assert said.take() == ({}, {})
    else:
        said.trial.report(0.5, step)
        assert said.take() == ({wanted: 0.5}, {})


@pytest.mark.parametrize("what", UNBOUNDED)
def test_a_result_may_be_infinitely_bad_and_no_other_than_finite_else_a_report_is_anything(
    what: str, said: Said
) -> None:
    value = UNBOUNDED[what]
    for direction, worst in (("minimize", math.inf), ("maximize", -math.inf)):
        give = partial(as_result, value, ["value"], [direction])
        if float(value) == worst:
            assert give() == (Completed((worst,)), [])
        else:
            assert f"for a diverged run, return {worst}" in refusal(give)
    said.trial.report(value, 0)
    assert identical(said.take()[0][0], float(value))
