"""What counts as running out of memory, what is measured, and what is foretold from it."""

from __future__ import annotations

import errno

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from orchestrator.training import MemoryModel, is_memory_error
from orchestrator.training.memory import MemoryLimitError, peak_memory
from tests.support import memory_errors

CPU = torch.device("cpu")


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_while_handling(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((RuntimeError(text), True) for text in memory_errors.DEVICE),
        *((RuntimeError(text), True) for text in memory_errors.HOST),
        *((RuntimeError(text), False) for text in memory_errors.NEITHER),
        (torch.OutOfMemoryError("anything"), True),
        (MemoryError(), True),
        (MemoryLimitError("tensors take 3 MB"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (raised_from(ValueError("fold 3 failed"), torch.OutOfMemoryError("")), True),
        (raised_while_handling(ValueError("nan"), torch.OutOfMemoryError("")), False),
        (ExceptionGroup("folds", [ValueError("a"), torch.OutOfMemoryError("")]), True),
        (NoTextError(), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_memory_error(error) is expected
    assert is_memory_error(error, smaller_ran=True) is expected


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a "
        "non-contiguous input.",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: invalid configuration argument",
    ],
)
def test_what_may_also_mean_not_supported_counts_once_a_smaller_batch_ran(text: str) -> None:
    assert not is_memory_error(RuntimeError(text))
    assert is_memory_error(RuntimeError(text), smaller_ran=True)


def test_causes_that_lead_in_a_circle_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_memory_error(first)


def test_the_peak_on_the_cpu_is_what_the_allocator_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters())
    before = sum(
        tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    )

    def step() -> None:
        optimizer.zero_grad()
        loss = cross_entropy(model(torch.randn(64, 3, 8, 8)), torch.zeros(64, dtype=torch.long))
        loss.backward()
        optimizer.step()

    with peak_memory(CPU) as peak:
        step()
    optimizer.state.clear()
    optimizer.zero_grad()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    allocated = highest = before
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            highest = max(highest, allocated)
    assert peak.allocated == pytest.approx(highest, rel=0.01)
    assert highest > 5 * before


def test_a_tensor_counts_once_and_while_it_lives() -> None:
    with peak_memory(CPU) as peak:
        for _ in range(5):
            whole = torch.ones(1000, 100, dtype=torch.uint8)
            half = whole[:500]
            assert half.sum() == 50_000
            del whole, half
    assert peak.allocated is not None
    assert 100_000 <= peak.allocated < 110_000


def test_what_was_there_before_counts_as_it_is_used() -> None:
    weights = torch.ones(50_000, dtype=torch.uint8)
    with peak_memory(CPU) as peak:
        weights.add_(1)
    assert peak.allocated == 50_000


def test_tensors_over_the_limit_end_the_block_at_once() -> None:
    kept = []

    def fill() -> None:
        while True:
            kept.append(torch.ones(100_000, dtype=torch.uint8))

    with (
        pytest.raises(MemoryLimitError, match=r"^tensors take 0\.30 MB, over the limit of 0\.25"),
        peak_memory(CPU, limit_bytes=250_000) as peak,
    ):
        fill()
    assert len(kept) == 2
    assert peak.allocated == 300_000


# Measured: an MLP with AdamW on the CPU, whose optimizer step is the peak up to a batch of 32.
MEASURED = {2: 448_704, 8: 448_704, 32: 448_704, 64: 529_608, 128: 808_136, 256: 1_365_192}


def test_the_model_knows_the_floor_and_the_line_above_it() -> None:
    model = MemoryModel.fit(MEASURED)
    assert model.misfit < 1e-6
    assert model.floor == 448_704
    assert model.per_sample == pytest.approx(4352)
    assert [model.bytes(size) for size in MEASURED] == pytest.approx([*MEASURED.values()])
    assert model.bytes(562) == 2_696_904  # as measured
    assert model.largest(2_700_000) == 562
    assert model.largest(2_696_903) == 561
    assert model.largest(448_703) == 0


def test_a_line_through_two_sizes_and_what_does_not_fit_one() -> None:
    model = MemoryModel.fit({10: 2000, 30: 4000})
    assert (model.fixed, model.per_sample) == pytest.approx((1000, 100))
    assert (model.floor, model.misfit) == pytest.approx((0, 0))
    assert model.largest(900) == 0
    bent = MemoryModel.fit({1: 1000, 2: 3000, 3: 2500, 4: 6000})
    assert 0.1 < bent.misfit < 1
    assert bent.measured == ((1, 1000), (2, 3000), (3, 2500), (4, 6000))


@pytest.mark.parametrize("measured", [{1: 700, 2: 700, 4: 700}, {1: 700, 2: 650, 4: 600}])
def test_memory_that_does_not_grow_foretells_nothing(measured: dict[int, int]) -> None:
    model = MemoryModel.fit(measured)
    assert model.largest(10_000) is None
    assert model.bytes(100) == pytest.approx(650, abs=51)


def test_what_cannot_be_fitted_or_foretold() -> None:
    with pytest.raises(ValueError, match=r"measured=\{4: 10\}: two batch sizes or more"):
        MemoryModel.fit({4: 10})
    with pytest.raises(ValueError, match="measured=0: must be at least 1"):
        MemoryModel.fit({0: 10, 1: 11})
    with pytest.raises(ValueError, match="peaks must be above 0"):
        MemoryModel.fit({1: 0, 2: 11})
    model = MemoryModel.fit({1: 10, 2: 20})
    with pytest.raises(TypeError, match="error=None: must be an exception"):
        is_memory_error(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"measured=\[1\]: must be a mapping"):
        MemoryModel.fit([1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch=0: must be at least 1"):
        model.bytes(0)
    with pytest.raises(ValueError, match="limit_bytes=inf: must be finite"):
        model.largest(float("inf"))
