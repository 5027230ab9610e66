"""The largest batch that fits: found exactly, run twice, and nothing left behind."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.training import classes_rule, find_batch_size

FREE: dict[str, Any] = {"margin": 0.0, "device": "cpu"}


def takes(per_sample: int, fixed: int = 0, sizes: list[int] | None = None) -> Any:
    """A step whose tensors take exactly so many bytes."""

    def step(size: int) -> None:
        if sizes is not None:
            sizes.append(size)
        torch.ones(fixed + per_sample * size, dtype=torch.uint8)

    return step


@pytest.mark.parametrize("start", [1, 3, 64, 100, 101, 128, 5000])
def test_it_is_the_largest_to_the_sample_wherever_it_starts(start: int) -> None:
    found = find_batch_size(takes(1000), start=start, limit_bytes=100_000, **FREE)
    assert (found.batch_size, found.bounded_by) == (100, "memory")


@pytest.mark.parametrize("largest", range(1, 20))
def test_every_largest_is_found(largest: int) -> None:
    found = find_batch_size(takes(10), limit_bytes=10 * largest + 9, **FREE)
    assert found.batch_size == largest


def test_every_size_ran_twice_and_none_was_tried_again() -> None:
    sizes: list[int] = []
    found = find_batch_size(takes(1000, sizes=sizes), limit_bytes=100_000, **FREE)
    steps = Counter(sizes)
    for one in found.tries:
        assert steps[one.batch_size] == (2 if one.fits else 1)
    assert len({one.batch_size for one in found.tries}) == len(found.tries)
    assert [one.batch_size for one in found.tries][:8] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert {one.batch_size for one in found.tries if one.fits} >= {64, 96, 100}


def test_the_data_set_is_never_exceeded() -> None:
    sizes: list[int] = []
    found = find_batch_size(takes(1, sizes=sizes), n_samples=70, limit_bytes=10_000, **FREE)
    assert (found.batch_size, found.bounded_by, max(sizes)) == (70, "samples", 70)
    step = takes(1000)
    assert find_batch_size(step, n_samples=100, limit_bytes=50_500, **FREE).batch_size == 50
    assert find_batch_size(step, n_samples=1, limit_bytes=50_500, **FREE).batch_size == 1


def test_multiples_alone_are_tried() -> None:
    sizes: list[int] = []
    found = find_batch_size(
        takes(1000, sizes=sizes), start=3, multiple_of=8, limit_bytes=101_000, **FREE
    )
    assert found.batch_size == 96
    assert all(size % 8 == 0 for size in sizes)
    capped = find_batch_size(takes(1), multiple_of=8, n_samples=70, limit_bytes=9999, **FREE)
    assert capped.batch_size == 64


def test_the_margin_stays_free() -> None:
    found = find_batch_size(takes(1000), limit_bytes=100_000, margin=0.2, device="cpu")
    assert (found.batch_size, found.limit_bytes) == (80, 80_000)


def test_the_model_of_the_memory_foretells_what_was_found() -> None:
    found = find_batch_size(takes(1000, fixed=5000), limit_bytes=105_500, **FREE)
    assert found.memory is not None
    assert found.memory.largest(105_500) == found.batch_size == 100
    assert found.memory.bytes(1000) == pytest.approx(1_005_000)


def test_nothing_fits_is_an_error_and_never_a_size_of_0() -> None:
    message = r"^not even a batch of 1 fits on cpu: tensors take 5000 B, over the limit of 4000 B$"
    for start in (1, 64):
        with pytest.raises(MemoryError, match=message):
            find_batch_size(takes(0, fixed=5000), start=start, limit_bytes=4000, **FREE)


class Classifier:
    """A small network with batch norm and dropout, and a step that counts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, 4)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self, size: int) -> None:
        self.optimizer.zero_grad()
        targets = torch.zeros(size, dtype=torch.long)
        cross_entropy(self.model(torch.randn(size, 16)), targets).backward()
        self.optimizer.step()

    def everything(self) -> list[Any]:
        tensors = [*self.model.state_dict().values(), torch.get_rng_state()]
        state = self.optimizer.state_dict()["state"]
        moments = [value for one in state.values() for value in one.values()]
        return [*(tensor.clone() for tensor in (*tensors, *moments)), len(state)]

    def find(self, **changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "limit_bytes": 200_000,
            "margin": 0.0,
        }
        return find_batch_size(self.step, **(arguments | changes))


def same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("trained", [False, True])
def test_model_optimizer_and_random_numbers_are_as_they_were(trained: bool) -> None:
    classifier = Classifier()
    if trained:
        classifier.step(8)
    before = classifier.everything()
    gradients = [parameter.grad for parameter in classifier.model.parameters()]
    found = classifier.find()
    assert found.batch_size > 64
    assert same(before, classifier.everything())
    after = [parameter.grad for parameter in classifier.model.parameters()]
    assert all(a is b for a, b in zip(gradients, after, strict=True))


def test_batch_norm_refuses_a_batch_of_one_and_the_search_goes_on() -> None:
    found = Classifier().find()
    assert found.tries[0].too_small
    assert found.batch_size > 64
    with pytest.raises(ValueError, match="no batch size up to 1 can run: Expected more than 1"):
        Classifier().find(n_samples=1)
    with pytest.raises(MemoryError, match="not even a batch of 2 fits"):
        Classifier().find(limit_bytes=3000, start=8)


def test_the_optimizers_state_counts_though_the_first_step_allocates_it() -> None:
    """With the state in memory less is left for the batch of the second step."""
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False)  # 40 kB
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)

    def step(size: int) -> None:
        optimizer.zero_grad()
        model(torch.ones(size, 100)).sum().backward()
        optimizer.step()

    found = find_batch_size(step, model=model, optimizer=optimizer, limit_bytes=500_000, margin=0)
    once = found.memory.bytes(found.batch_size) if found.memory else 0
    assert not optimizer.state
    # Weights, two moments, and at the second step's backward pass a gradient.
    assert found.memory is not None
    assert found.memory.fixed >= 3 * 40_000
    assert once <= 500_000


def test_an_error_of_memory_within_the_optimizers_first_step_does_not_spoil_the_next_try() -> None:
    """Adam allocates its moments one by one: half of them would be a KeyError ever after."""
    classifier = Classifier()
    optimizer = classifier.optimizer
    parameter = next(classifier.model.parameters())

    def step(size: int) -> None:
        classifier.step(size)
        if size > 37:
            del optimizer.state[parameter]["exp_avg_sq"]
            raise torch.OutOfMemoryError("CUDA out of memory.")

    found = find_batch_size(
        step, model=classifier.model, optimizer=optimizer, limit_bytes=10**9, start=2
    )
    assert found.batch_size == 37
    assert not optimizer.state


def test_any_other_error_passes_and_leaves_the_state_as_it_was() -> None:
    classifier = Classifier()
    before = classifier.everything()

    def step(size: int) -> None:
        classifier.step(size)
        if size == 8:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        find_batch_size(
            step, model=classifier.model, optimizer=classifier.optimizer, start=2, device="cpu"
        )
    assert same(before, classifier.everything())


@pytest.mark.parametrize(
    "text", ["cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.", "CUDA error: invalid configuration argum"]
)
def test_not_supported_means_too_large_only_after_a_smaller_batch_ran(text: str) -> None:
    text = text.replace("argum", "argument")

    def step(size: int) -> None:
        if size >= 50:
            raise RuntimeError(text)

    assert find_batch_size(step, device="cpu", limit_bytes=10**6).batch_size == 49
    with pytest.raises(RuntimeError, match=text.split("_")[0]):
        find_batch_size(step, device="cpu", limit_bytes=10**6, start=64)


def test_what_a_failed_try_held_is_free_before_the_next() -> None:
    held: list[weakref.ref[Tensor]] = []

    def step(size: int) -> None:
        assert all(one() is None for one in held)
        tensor = torch.ones(10 * size, dtype=torch.uint8)
        if size > 5:
            held.append(weakref.ref(tensor))
            raise MemoryError

    assert find_batch_size(step, device="cpu", limit_bytes=10**6).batch_size == 5
    assert len(held) >= 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"start": 0}, ValueError, "start=0: must be at least 1"),
        ({"start": 2.0}, TypeError, "start=2.0: must be a whole number"),
        ({"n_samples": 0}, ValueError, "n_samples=0: must be at least 1"),
        ({"multiple_of": 0}, ValueError, "multiple_of=0: must be at least 1"),
        ({"start": 9, "n_samples": 8}, ValueError, "start=9.*the first size, 9, is above n_sam"),
        ({"multiple_of": 8, "n_samples": 7}, ValueError, "the first size, 8, is above n_samples=7"),
        ({"limit_bytes": 0}, ValueError, "limit_bytes=0: must be at least 1"),
        ({"margin": 1.0}, ValueError, "margin=1.0: must be from 0 to below 1"),
        ({"margin": -0.1}, ValueError, "margin=-0.1: must be from 0 to below 1"),
        ({"step": 3}, TypeError, "step=3: must be a function of the batch size"),
        ({"model": 3}, TypeError, "model: int is not a torch.nn.Module"),
        ({"model": nn.Linear(2, 2, device="meta")}, ValueError, "weight is on the meta device"),
        ({"others": [3]}, TypeError, "others: int lacks state_dict"),
        ({"others": None}, TypeError, "others: NoneType is not a list"),
        ({"device": "gpu"}, ValueError, "device='gpu': must be a device"),
        ({"margin": 10**400}, ValueError, "margin: must be small enough for a float"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    calls: list[int] = []
    arguments: dict[str, Any] = {"step": calls.append, "device": "cpu"} | changes
    with pytest.raises(error, match=message):
        find_batch_size(**arguments)
    assert not calls


@pytest.mark.parametrize(
    ("classes", "proposal"), [(2, 4), (5, 16), (10, 32), (35, 128), (100, 256), (1000, 2048)]
)
def test_the_rule_of_classes_proposes_a_power_of_two(classes: int, proposal: int) -> None:
    assert classes_rule(1, classes).proposal == proposal
    enough = classes_rule(proposal, classes)
    assert enough.warning is None
    assert 2 <= enough.samples_per_class <= 4


def test_too_few_samples_of_each_class_are_warned_of_in_numbers() -> None:
    rule = classes_rule(32, 35)
    assert rule.warning == (
        "a batch of 32 holds 0.91 samples of each of 35 classes on average and lacks 40% of them; "
        "the rule of thumb is 2 to 3, a batch of 128"
    )
    with pytest.raises(ValueError, match="n_classes=1: must be at least 2"):
        classes_rule(32, 1)
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        classes_rule(0, 5)


@pytest.mark.gpu
def test_on_a_gpu_it_keeps_within_the_limit_and_survives_real_errors() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]

    def step(size: int) -> None:
        optimizer.zero_grad()
        model(torch.ones(size, 1024, device="cuda")).square().mean().backward()
        optimizer.step()

    limit = 1_000_000_000
    found = find_batch_size(step, model=model, optimizer=optimizer, limit_bytes=limit)
    assert found.bounded_by == "memory"
    assert found.memory is not None
    assert found.memory.misfit < 0.05
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        step(found.batch_size)
    torch.cuda.synchronize()
    assert 0.8 * limit < torch.cuda.max_memory_allocated() <= 0.9 * limit

    optimizer.state.clear()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.grad = None
            parameter.copy_(value)
    gigabyte = 2**30

    def huge(size: int) -> None:
        torch.empty(size * gigabyte, dtype=torch.uint8, device="cuda")

    whole = find_batch_size(huge, model=model, optimizer=optimizer, margin=0.0)
    assert any("out of memory" in str(one.why_not) for one in whole.tries)
    free, total = torch.cuda.mem_get_info()
    assert 0 < whole.batch_size <= total // gigabyte
    assert whole.batch_size >= free // gigabyte - 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
