"""The parts that `build` returns: every form, one clear error, and the loss of a batch."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.training import Parts
from orchestrator.training.parts import moved

MODEL = nn.Linear(2, 1)
BATCHES = [(torch.ones(3, 2), torch.zeros(3, 1))]


@cache
def optimizer() -> torch.optim.Optimizer:
    # torch's first optimizer takes a second to import: not while the tests are collected
    return torch.optim.SGD(MODEL.parameters(), lr=0.1)


def whole(**changes: Any) -> dict[str, Any]:
    parts = {"model": MODEL, "optimizer": optimizer()}
    return {**parts, "loss_fn": nn.functional.mse_loss, "batches": BATCHES, **changes}


def step(model: nn.Module, batch: Any) -> Tensor:
    result: Tensor = model(batch["x"]).sum()
    return result


@pytest.mark.parametrize(
    "built",
    [
        lambda: Parts(**whole()),
        whole,
        lambda: tuple(whole().values()),
        lambda: [*whole().values(), None],
    ],
)
def test_each_form_gives_the_same_parts(built: Callable[[], object]) -> None:
    assert Parts.of(built()) == Parts(**whole())


def test_the_loss_of_a_pair_and_of_any_batch_by_a_step() -> None:
    parts = Parts(**whole())
    inputs, targets = BATCHES[0]
    assert torch.equal(parts.loss(BATCHES[0]), nn.functional.mse_loss(MODEL(inputs), targets))
    stepped = Parts.of({"model": MODEL, "optimizer": optimizer(), "batches": BATCHES, "step": step})
    assert torch.equal(stepped.loss({"x": inputs}), MODEL(inputs).sum())


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (lambda: None, "build returned a NoneType; it must return Parts, a mapping"),
        (lambda: (MODEL,) * 6, "build returned a tuple of 6; it must return"),
        (lambda: (MODEL, optimizer()), "build returned no loss_fn and no batches"),
        (lambda: {"model": MODEL}, "build returned no optimizer and no loss_fn and no batches"),
        (lambda: whole(optimiser=1), "unknown part 'optimiser'; did you mean 'optimizer'"),
        (
            lambda: whole(zzz=1),
            "unknown part 'zzz'; parts: model, optimizer, loss_fn, b",
        ),
        (lambda: whole(model=MODEL.forward), "model: method is not a torch.nn"),
        (lambda: whole(optimizer=torch.optim.SGD), "optimizer: type is not a torch.optim"),
        (lambda: whole(loss_fn=None), "loss_fn: needed where there is no step"),
        (lambda: whole(loss_fn=3), "loss_fn: int cannot be called"),
        (lambda: whole(step=3), "step: int cannot be called"),
        (lambda: whole(batches=BATCHES[0][0]), "batches: Tensor is not an iterable of batches"),
        (lambda: whole(batches=5), "batches: int is not an iterable of batches"),
    ],
)
def test_too_little_or_the_wrong_thing_is_one_clear_error(
    built: Callable[[], object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Parts.of(built())


def test_an_optimizer_without_parameters_is_refused() -> None:
    empty = torch.optim.SGD([{"params": []}], lr=0.1)
    with pytest.raises(ValueError, match="optimizer: it has no parameters"):
        Parts.of(whole(optimizer=empty))


@pytest.mark.parametrize(
    ("change", "batch", "error", "message"),
    [
        ({}, torch.ones(2), TypeError, r"a Tensor is not a pair .*give a `step` function"),
        ({}, (1, 2, 3), TypeError, "a tuple of 3 is not a pair"),
        ({"loss_fn": lambda *_: 3.0}, BATCHES[0], TypeError, "loss_fn: it returned a float"),
        ({"step": lambda *_: torch.ones(3)}, None, ValueError, r"step: a loss of shape \(3,\)"),
    ],
)
def test_a_batch_or_loss_of_another_form_is_refused(
    change: dict[str, Any], batch: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Parts(**whole(**change)).loss(batch)


def test_every_tensor_of_a_batch_is_moved() -> None:
    pair = namedtuple("pair", "a b")
    batch = {"x": [torch.ones(1), 3], "y": pair(torch.ones(2), ("text", torch.ones(3)))}
    there = moved(batch, torch.device("meta"))
    assert there["x"][0].is_meta
    assert there["x"][1] == 3
    assert isinstance(there["y"], pair)
    assert there["y"].a.is_meta
    assert there["y"].b[0] == "text"
    assert there["y"].b[1].is_meta
