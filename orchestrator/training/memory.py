"""How much memory a piece of training takes at its peak, and how that grows with the batch."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from orchestrator.training.arguments import number, whole


class MemoryLimitError(MemoryError):
    """Tensors on the CPU took more than the limit that was set for them."""


@dataclass
class PeakMemory:
    """What a block of code took at its peak, in bytes.

    Attributes:
        allocated: held by tensors, those included that were there before; None where the device
            does not tell.
        reserved: of CUDA: taken from the device by torch's allocator, fragments included; else as
            `allocated`.
    """

    allocated: int | None = None
    reserved: int | None = None


@contextmanager
def peak_memory(device: torch.device, limit_bytes: int | None = None) -> Iterator[PeakMemory]:
    """Measures the peak memory of the block; the result is filled in when the block ends.

    On CUDA it is what torch's allocator counted; its statistics of peaks begin anew. On the CPU it
    is the sum of all tensors that torch operations of this thread read or wrote, each counted while
    it lives, storage shared by views once. That leaves out scratch memory within an operation.
    Other devices are not measured.

    Args:
        limit_bytes: of the CPU: raise as soon as the tensors take more.

    Raises:
        MemoryLimitError: see `limit_bytes`.
    """
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
            # A kernel that fails reports it here, within the block.
            torch.cuda.synchronize(device)
        finally:
            peak.allocated = torch.cuda.max_memory_allocated(device)
            peak.reserved = torch.cuda.max_memory_reserved(device)
    elif device.type == "cpu":
        tensors = _LivingTensors(limit_bytes)
        try:
            with tensors:
                yield peak
        finally:
            peak.allocated = peak.reserved = tensors.peak
    else:
        yield peak


class _LivingTensors(TorchDispatchMode):
    """Adds up the storage of living tensors, as operations meet them.

    The resident size of the process would not do: it hardly falls, and allocators round and cache.
    """

    def __init__(self, limit: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._limit = limit
        self._total = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for value in tree_iter((args, kwargs or {})):
            self._meet(value)
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            self._meet(value)
        return out

    def _meet(self, value: object) -> None:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return
        if value.layout != torch.strided:  # its parts are tensors of their own
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            # torch keeps this object as long as the memory lives, so its end is the memory's.
            weakref.finalize(storage, self._forget, key)
        self._sizes[key] = size
        self._total += size - (known or 0)
        self.peak = max(self.peak, self._total)
        if self._limit is not None and self._total > self._limit:
            raise MemoryLimitError(
                f"tensors take {shown_bytes(self._total)}, over the limit of "
                f"{shown_bytes(self._limit)}"
            )

    def _forget(self, key: int) -> None:
        self._total -= self._sizes.pop(key, 0)


def available_bytes(device: torch.device) -> int | None:
    """The memory that this process can have on a device, in bytes, with what it has already.

    Of a GPU that is what is free now and what torch has reserved; of the CPU all of the machine's
    memory, which other processes may need too. None where the device does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


@dataclass(frozen=True)
class MemoryModel:
    """Peak memory by batch size: ``max(floor, fixed + per_sample · batch)`` bytes.

    A training step has two peaks. One is in the backward pass and grows with the batch. The other
    is in the optimizer's step and does not; with small batches it is the higher one.

    Attributes:
        floor: the peak that does not depend on the batch; 0 where it was never seen.
        fixed: what the growing peak has beside the samples: parameters, gradients, optimizer state.
        per_sample: activations and data of one sample; 0 if no peak grew.
        misfit: the largest deviation of a measurement from the model, as a fraction of it.
            Workspace that a library chooses by size and samples of different lengths cause it.
        measured: the batch sizes and peaks in bytes that the model was fitted to.
    """

    floor: float
    fixed: float
    per_sample: float
    misfit: float
    measured: tuple[tuple[int, int], ...]

    @classmethod
    def fit(cls, measured: Mapping[int, int]) -> MemoryModel:
        """The model that deviates least from measured peaks in bytes by batch size.

        With two sizes it is the line through them. If one of them lay on the floor, the line is too
        flat, which only a third size can show.

        Raises:
            TypeError: it is no mapping, a size is no whole number, or a peak no number.
            ValueError: fewer than two batch sizes, or a size or peak that is not above 0.
        """
        if not isinstance(measured, Mapping):
            raise TypeError(f"measured={measured!r}: must be a mapping of peaks by batch size")
        if len(measured) < 2:
            raise ValueError(f"measured={dict(measured)}: two batch sizes or more are needed")
        for size, peak in measured.items():
            whole("measured", size, 1)
            if not number("measured", peak) > 0:
                raise ValueError(f"measured={dict(measured)}: peaks must be above 0")
        points = tuple(sorted(measured.items()))
        # So many of the smallest sizes lie on the floor. Of equally good ones the fewest do.
        models = [cls._with_floor(points, count) for count in range(len(points) - 1)]
        return min(models, key=lambda model: round(model.misfit, 6))

    @classmethod
    def _with_floor(cls, points: tuple[tuple[int, int], ...], count: int) -> MemoryModel:
        floor = fmean(peak for _, peak in points[:count]) if count else 0.0
        fixed, slope = _line(points[count:])
        misfit = max(abs(max(floor, fixed + slope * size) - peak) / peak for size, peak in points)
        return cls(floor, fixed, max(slope, 0.0), misfit, points)

    def bytes(self, batch: int) -> int:
        """The peak memory that the model foretells for a batch size.

        Raises:
            TypeError: `batch` is no whole number.
            ValueError: it is not above 0.
        """
        return round(max(self.floor, self.fixed + self.per_sample * whole("batch", batch, 1)))

    def largest(self, limit_bytes: float) -> int | None:
        """The largest batch size that the model lets into a limit: 0 if none, None if memory did
        not grow with the batch, so that the model says nothing.

        Beyond the sizes measured it is a forecast, good to about `misfit`.

        Raises:
            TypeError: `limit_bytes` is no number.
            ValueError: it is not finite.
        """
        limit = number("limit_bytes", limit_bytes)
        if self.per_sample == 0:
            return None
        if limit < self.floor:
            return 0
        return max(0, int((limit - self.fixed) // self.per_sample))


def _line(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Intercept and slope of the least squares of relative errors."""
    weights = [1 / peak**2 for _, peak in points]
    mean_size = _weighted(weights, [size for size, _ in points])
    mean_peak = _weighted(weights, [peak for _, peak in points])
    covariance = _weighted(weights, [(s - mean_size) * (p - mean_peak) for s, p in points])
    variance = _weighted(weights, [(size - mean_size) ** 2 for size, _ in points])
    slope = covariance / variance
    if slope < 0:  # memory never shrinks with the batch
        return mean_peak, 0.0
    return mean_peak - slope * mean_size, slope


def _weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def shown_bytes(count: float) -> str:
    """A number of bytes for people: in MB or GB of 10⁶ and 10⁹ bytes."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count:.0f} B"
