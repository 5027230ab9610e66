"""Learning rate, warm-up and accumulation as functions of the batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from orchestrator.runner.child import resolvers
from orchestrator.training import (
    accumulation_for,
    linear_scaling,
    power_scaling,
    sqrt_scaling,
    warmup_steps,
)


def test_the_learning_rate_follows_the_batch_by_a_power() -> None:
    assert linear_scaling(0.1, 256, 512) == pytest.approx(0.2)
    assert sqrt_scaling(0.1, 256, 1024) == pytest.approx(0.2)
    assert power_scaling(0.1, 256, 1024, 0) == 0.1
    assert power_scaling(0.1, 16, 256, 0.25) == pytest.approx(0.2)
    assert power_scaling(0.1, 512, 256, 1) == pytest.approx(0.05)


def test_the_resolvers_say_the_same_as_the_functions() -> None:
    resolvers.register()
    config = OmegaConf.create(
        {
            "batch": 96,
            "power": 0.7,
            "linear": "${linear_scaling:0.1,256,${batch}}",
            "root": "${sqrt_scaling:0.1,256,${batch}}",
            "power_of": "${power_scaling:0.1,256,${batch},${power}}",
            "warmup": "${warmup_steps:10000,${batch}}",
        }
    )
    assert config.linear == pytest.approx(linear_scaling(0.1, 256, 96))
    assert config.root == pytest.approx(sqrt_scaling(0.1, 256, 96))
    assert config.power_of == pytest.approx(power_scaling(0.1, 256, 96, 0.7))
    assert config.warmup == warmup_steps(10_000, 96) == 105
    assert isinstance(config.warmup, int)


def test_numbers_of_numpy_are_numbers() -> None:
    batch: Any = np.int64(4)
    rate: Any = np.float32(0.5)
    assert linear_scaling(rate, 2, batch) == 1.0
    steps = warmup_steps(65, 8 * batch)
    assert (steps, type(steps)) == (3, int)


@pytest.mark.parametrize(
    ("samples", "batch", "steps"), [(0, 32, 0), (1, 32, 1), (64, 32, 2), (65, 32, 3)]
)
def test_a_warmup_in_samples_is_as_long_at_every_batch_size(
    samples: int, batch: int, steps: int
) -> None:
    assert warmup_steps(samples, batch) == steps


@pytest.mark.parametrize(
    ("batch", "fits", "expected"),
    [
        (256, 64, (64, 4)),
        (256, 63, (32, 8)),
        (256, 300, (256, 1)),
        (96, 40, (32, 3)),
        (127, 64, (1, 127)),
        (1, 1, (1, 1)),
    ],
)
def test_accumulation_keeps_the_effective_batch_exactly(
    batch: int, fits: int, expected: tuple[int, int]
) -> None:
    found = accumulation_for(batch, fits)
    assert (found.micro_batch, found.steps) == expected
    assert found.micro_batch * found.steps == batch
    assert found.micro_batch <= fits


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    inputs, targets = torch.randn(24, 5), torch.randn(24, 1)
    (whole,) = torch.autograd.grad(nn.functional.mse_loss(model(inputs), targets), [model.weight])
    micro, steps = accumulation_for(24, 10)
    for x, y in zip(inputs.split(micro), targets.split(micro), strict=True):
        (nn.functional.mse_loss(model(x), y) / steps).backward()
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, whole, atol=1e-6)


def test_where_no_micro_batch_will_do_the_error_offers_a_batch_nearby() -> None:
    with pytest.raises(
        ValueError,
        match=r"batch=127: no micro-batch of 16 to 64 samples divides it exactly; batch=126 has",
    ):
        accumulation_for(127, 64, smallest=16)
    assert accumulation_for(126, 64, smallest=16).micro_batch == 63
    with pytest.raises(ValueError, match=r"smallest=2: only 1 samples fit"):
        accumulation_for(7, 1, smallest=2)
    with pytest.raises(ValueError, match=r"batch=7: no micro-batch of 6 to 6 .* exactly; batch=6"):
        accumulation_for(7, 6, smallest=6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear_scaling(0, 1, 1), ValueError, "base_lr=0: must be above 0"),
        (lambda: sqrt_scaling(0.1, -1, 1), ValueError, "base_batch=-1: must be above 0"),
        (lambda: power_scaling(0.1, 1, 0, 1), ValueError, "batch=0: must be above 0"),
        (lambda: power_scaling(0.1, 1, 1, float("nan")), ValueError, "power=nan: must be finite"),
        (lambda: power_scaling("a", 1, 1, 1), TypeError, "base_lr='a': must be a number"),  # type: ignore[arg-type]
        (lambda: power_scaling(10**400, 1, 1, 1), ValueError, "base_lr: must be small enough"),
        (
            lambda: power_scaling(1, 1, 1e300, 2),
            ValueError,
            "power=2: leads .* to no learning rate",
        ),
        (lambda: power_scaling(1, 1e300, 1e-300, -2), ValueError, "power=-2: leads from base_lr=1"),
        (lambda: power_scaling(1e-300, 1e30, 1, 1), ValueError, "to no learning rate at batch=1"),
        (lambda: warmup_steps(-1, 32), ValueError, "samples=-1: must be at least 0"),
        (lambda: warmup_steps(10, 0), ValueError, "batch=0: must be at least 1"),
        (lambda: accumulation_for(0, 8), ValueError, "batch=0: must be at least 1"),
        (lambda: accumulation_for(8, 0), ValueError, "fits=0: must be at least 1"),
        (lambda: accumulation_for(8, 8, smallest=0), ValueError, "smallest=0: must be at least 1"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
