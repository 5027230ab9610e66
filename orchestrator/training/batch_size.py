"""The largest batch that fits in memory, and the smallest that holds enough of each class."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from orchestrator.training.arguments import number, whole
from orchestrator.training.memory import (
    MemoryModel,
    PeakMemory,
    available_bytes,
    peak_memory,
    shown_bytes,
)
from orchestrator.training.memory_errors import is_memory_error, text_of
from orchestrator.training.parts import device_named, device_of
from orchestrator.training.state import Stateful, check_restorable, preserved

_STEPS: Final = 2  # an optimizer allocates its state in the first
_LARGEST: Final = 65_536
_TOO_SMALL: Final = "Expected more than 1 value per channel when training"  # of batch norm


@dataclass(frozen=True)
class Try:
    """Two whole training steps at one batch size.

    Attributes:
        batch_size: the size.
        fits: whether both steps ran within the limit.
        peak_bytes: their peak memory; None where it was not measured, or a step failed.
        why_not: the reason where it does not fit.
        too_small: whether batch norm refused the size: larger ones may fit.
    """

    batch_size: int
    fits: bool
    peak_bytes: int | None = None
    why_not: str | None = None
    too_small: bool = False


@dataclass(frozen=True)
class BatchSizeFound:
    """The answer of `find_batch_size`.

    Attributes:
        batch_size: the largest size that fits, which ran for two whole steps.
        bounded_by: what keeps it from being larger: ``memory``, or ``samples`` where the whole data
            set, or the largest size that was tried without one, fits.
        limit_bytes: the memory that it had to keep within, margin included; None if unknown.
        tries: every size that was run, in order.
        memory: the memory by batch size, if two sizes were measured.
    """

    batch_size: int
    bounded_by: Literal["memory", "samples"]
    limit_bytes: int | None
    tries: tuple[Try, ...]
    memory: MemoryModel | None


def find_batch_size(
    step: Callable[[int], Any],
    *,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    others: Iterable[Stateful] = (),
    device: torch.device | str | None = None,
    start: int = 1,
    n_samples: int | None = None,
    multiple_of: int = 1,
    limit_bytes: int | None = None,
    margin: float = 0.1,
) -> BatchSizeFound:
    """Finds the largest batch size that fits; every size it returns has run two whole steps.

    Sizes double from `start` until one does not fit, then bisection closes in. A size fits if no
    step runs out of memory *and* the peak of its tensors stays below the limit less the margin. The
    margin is for what two steps do not show: fragmentation, validation, and a batch of longer
    samples than these. Let `step` use the longest samples there are.

    Each try starts from the state that the call found, and so does what follows: model, optimizer,
    `others` and random numbers are left as they were (`preserved`). What else `step` changes is its
    own affair.

    Args:
        step: runs one whole training step on a batch of the given size: data, forward, backward,
            optimizer. It must not catch errors of memory.
        model: restored after each try.
        optimizer: restored after each try.
        others: schedules, gradient scalers and the like, restored after each try.
        device: where memory is measured; default that of `model`, without one the current GPU, or
            the CPU if there is none.
        start: the first size, rounded up to `multiple_of`.
        n_samples: the size of the data set, which is never exceeded; without it 65,536.
        multiple_of: consider only multiples of this, such as 8 for tensor cores.
        limit_bytes: the memory to keep within; default what the device has for this process
            (`available_bytes`). On a CPU without a limit, give one: a machine that runs out of
            memory kills the process instead of raising.
        margin: the fraction of the limit to leave free.

    Raises:
        MemoryError: nothing fits, not even the smallest size.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or no size could run at all.
        Exception: whatever `step` raises that is no matter of memory.
    """
    if not callable(step):
        raise TypeError(f"step={step!r}: must be a function of the batch size")
    unit = whole("multiple_of", multiple_of, 1)
    first = -(-whole("start", start, 1) // unit) * unit
    cap = (_LARGEST if n_samples is None else whole("n_samples", n_samples, 1)) // unit * unit
    if first > cap:
        above = f"n_samples={n_samples}" if n_samples is not None else f"{_LARGEST:,}"
        raise ValueError(
            f"start={start}, multiple_of={unit}: the first size, {first}, is above {above}"
        )
    if not 0 <= number("margin", margin) < 1:
        raise ValueError(f"margin={margin!r}: must be from 0 to below 1")
    others = check_restorable(model, optimizer, others)  # each try needs them
    place = _device(device, model)
    if limit_bytes is not None:
        limit_bytes = whole("limit_bytes", limit_bytes, 1)
    available = available_bytes(place) if limit_bytes is None else limit_bytes
    search = _Search(
        step,
        place,
        available,
        None if available is None else int(available * (1 - margin)),
        preserving=lambda: preserved(
            model, optimizer, others=others, device=None if place.type == "cpu" else "cpu"
        ),
    )
    return search.found(first, cap, unit)


def _device(device: torch.device | str | None, model: nn.Module | None) -> torch.device:
    if device is not None:
        return device_named(device)
    if model is not None:
        return device_of(model)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class _Search:
    step: Callable[[int], Any]
    device: torch.device
    available: int | None
    limit: int | None
    preserving: Callable[[], Any]
    tries: list[Try] = field(default_factory=list)
    fits: int = 0
    too_small: int = 0

    def found(self, first: int, cap: int, unit: int) -> BatchSizeFound:
        fails = self._double(first, cap)
        if fails is not None and not self.fits:
            fails = self._halve(fails, unit)
        while fails is not None:
            low = max(self.fits, self.too_small)
            middle = (low + fails) // 2 // unit * unit
            if middle <= low:
                middle += unit
            if middle >= fails:
                break
            if not self._run(middle):
                fails = middle
        if not self.fits:
            raise self._nothing_fits()
        measured = {one.batch_size: one.peak_bytes for one in self.tries if one.peak_bytes}
        return BatchSizeFound(
            self.fits,
            "samples" if fails is None else "memory",
            self.limit,
            tuple(self.tries),
            MemoryModel.fit(measured) if len(measured) > 1 else None,
        )

    def _double(self, size: int, cap: int) -> int | None:
        """Tries ever larger sizes; returns the first that does not fit."""
        while self._run(size):
            if size == cap:
                return None
            size = min(2 * size, cap)
        return size

    def _halve(self, fails: int, unit: int) -> int:
        """Tries ever smaller sizes until one fits; returns the last that did not."""
        while fails > unit:
            size = max(unit, fails // 2 // unit * unit)
            if size <= self.too_small or self._run(size):
                break
            fails = size
        return fails

    def _run(self, size: int) -> bool:
        """Tries a size; returns whether larger ones may fit."""
        one = try_batch_size(
            self.step,
            size,
            device=self.device,
            available=self.available,
            limit=self.limit,
            preserving=self.preserving,
            smaller_ran=self.fits > 0,
        )
        self.tries.append(one)
        if one.fits:
            self.fits = size
        elif one.too_small:
            self.too_small = size
        return one.fits or one.too_small

    def _nothing_fits(self) -> Exception:
        if all(one.too_small for one in self.tries):
            last = self.tries[-1]
            return ValueError(
                f"n_samples: no batch size up to {last.batch_size} can run: {last.why_not}"
            )
        smallest = min(
            (one for one in self.tries if not one.too_small), key=lambda one: one.batch_size
        )
        return MemoryError(
            f"not even a batch of {smallest.batch_size} fits on {self.device}: {smallest.why_not}"
        )


def try_batch_size(
    step: Callable[[int], Any],
    size: int,
    *,
    device: torch.device,
    available: int | None,
    limit: int | None,
    preserving: Callable[[], Any],
    smaller_ran: bool,
) -> Try:
    """Runs two steps at one size and leaves neither state nor memory behind.

    Args:
        available: the memory that torch may reserve, in bytes.
        limit: the memory that tensors may take, in bytes.
        preserving: makes the context that restores the state.
        smaller_ran: as `is_memory_error`.
    """
    _free(device)
    peak, why_not, too_small = PeakMemory(), None, False
    try:
        with preserving(), peak_memory(device, limit) as peak:
            for _ in range(_STEPS):
                step(size)
    except Exception as error:
        why_not = text_of(error)
        too_small = _TOO_SMALL in why_not
        if not too_small and not is_memory_error(error, smaller_ran=smaller_ran):
            raise
    # Only here is the exception gone, and with it the tensors that its frames held.
    _free(device)
    if why_not is not None:
        return Try(size, False, None, why_not, too_small)
    for taken, allowed, what in (
        (peak.allocated, limit, "tensors took"),
        (peak.reserved, available, "torch reserved"),
    ):
        if taken is not None and allowed is not None and taken > allowed:
            why_not = f"{what} {shown_bytes(taken)} of {shown_bytes(allowed)}"
            break
    return Try(size, why_not is None, peak.allocated, why_not)


def _free(device: torch.device) -> None:
    # A whole collection takes a fifth of a second; what a try left behind is young.
    gc.collect(1 if device.type == "cpu" else 2)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@dataclass(frozen=True)
class ClassesRule:
    """What `classes_rule` says of a batch size.

    Attributes:
        samples_per_class: samples of each class in a batch, on average.
        proposal: the smallest power of two with two samples of each class or more.
        warning: a sentence with the numbers if the batch has fewer, else None.
    """

    samples_per_class: float
    proposal: int
    warning: str | None


def classes_rule(batch_size: int, n_classes: int) -> ClassesRule:
    """Whether a batch holds two to three samples of each class, and the power of two that does.

    A rule of thumb for classes of equal size: with two samples of each on average, a batch drawn at
    random lacks 13 % of the classes, with one 37 %. For 5 classes it proposes 16, for 35 it
    proposes 128.

    Args:
        batch_size: samples per optimizer step; with accumulation, those of a micro-batch for what
            batch norm sees, all of them for the gradient.
        n_classes: the number of classes.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: `batch_size` is not above 0, or there are fewer than two classes.
    """
    batch_size = whole("batch_size", batch_size, 1)
    n_classes = whole("n_classes", n_classes, 2)
    proposal = 1 << (2 * n_classes - 1).bit_length()
    share = batch_size / n_classes
    if share >= 2:
        return ClassesRule(share, proposal, None)
    missing = (1 - 1 / n_classes) ** batch_size
    warning = (
        f"a batch of {batch_size} holds {share:.2g} samples of each of {n_classes} classes on "
        f"average and lacks {missing:.0%} of them; the rule of thumb is 2 to 3, a batch of "
        f"{proposal}"
    )
    return ClassesRule(share, proposal, warning)
