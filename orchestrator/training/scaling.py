"""How the learning rate, the warm-up and the accumulation of gradients follow the batch size."""

from __future__ import annotations

import math
from typing import NamedTuple

from orchestrator.training.arguments import number, whole


def linear_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate, proportional to the batch size (Goyal et al. 2017, arXiv:1706.02677).

    Args:
        base_lr: the learning rate found at `base_batch`.
        base_batch: the samples per optimizer step that `base_lr` is for.
        batch: the samples per optimizer step that are to be used.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is not above 0, or not finite.
    """
    return power_scaling(base_lr, base_batch, batch, 1.0)


def sqrt_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate, by the root of the batch size (Krizhevsky 2014, arXiv:1404.5997).

    Arguments and errors as `linear_scaling`. This is the usual rule for Adam and its relatives
    (Malladi et al. 2022, arXiv:2205.10287).
    """
    return power_scaling(base_lr, base_batch, batch, 0.5)


def power_scaling(base_lr: float, base_batch: float, batch: float, power: float) -> float:
    """The learning rate ``base_lr · (batch / base_batch) ** power``.

    A power of 0 keeps the learning rate, 0.5 is `sqrt_scaling`, 1 is `linear_scaling`. No rule
    holds everywhere, so the power may be searched.

    Args:
        base_lr: the learning rate found at `base_batch`.
        base_batch: the samples per optimizer step that `base_lr` is for.
        batch: the samples per optimizer step that are to be used.
        power: the exponent.

    Raises:
        TypeError: an argument is not a number.
        ValueError: `base_lr`, `base_batch` or `batch` is not above 0, an argument is not finite, or
            the result is no learning rate: 0 or infinite.
    """
    for name, value in (("base_lr", base_lr), ("base_batch", base_batch), ("batch", batch)):
        if not number(name, value) > 0:
            raise ValueError(f"{name}={value!r}: must be above 0")
    ratio, exponent = float(batch) / float(base_batch), number("power", power)
    try:
        lr = float(base_lr) * math.pow(ratio, exponent)
    except (OverflowError, ValueError):  # the latter of a ratio of 0
        lr = math.inf
    if not 0 < lr < math.inf:
        raise ValueError(
            f"power={power!r}: leads from base_lr={base_lr!r} at base_batch={base_batch!r} to no "
            f"learning rate at batch={batch!r}"
        )
    return lr


def warmup_steps(samples: int, batch: int) -> int:
    """The fewest optimizer steps that see at least `samples` samples.

    A warm-up that is given in samples lasts equally long at every batch size; one in steps does
    not.

    Args:
        samples: 0 or more.
        batch: the samples per optimizer step, with accumulation all of them.

    Raises:
        TypeError: an argument is not a whole number.
        ValueError: `samples` is negative, or `batch` is not above 0.
    """
    return -(-whole("samples", samples, 0) // whole("batch", batch, 1))


class Accumulation(NamedTuple):
    """Equal micro-batches that add up to one batch.

    Attributes:
        micro_batch: samples per forward and backward pass.
        steps: passes per optimizer step. Divide each loss by it, where the loss is a mean.
    """

    micro_batch: int
    steps: int


def accumulation_for(batch: int, fits: int, *, smallest: int = 1) -> Accumulation:
    """The largest micro-batch that fits and of which a whole number makes exactly `batch` samples.

    Gradients of a mean loss add up exactly, whatever the micro-batch. Batch norm does not: it
    normalises each micro-batch by itself.

    Args:
        batch: the samples per optimizer step to keep.
        fits: the largest batch that fits in memory, as from `find_batch_size`.
        smallest: the smallest micro-batch that is acceptable: 2 for batch norm, more for speed.

    Raises:
        TypeError: an argument is not a whole number.
        ValueError: an argument is not above 0, or no such micro-batch exists; the message then
            names batch sizes nearby that have one.
    """
    batch, fits, smallest = (
        whole(name, value, 1)
        for name, value in (("batch", batch), ("fits", fits), ("smallest", smallest))
    )
    micro = _largest_divisor(batch, fits)
    if micro >= smallest:
        return Accumulation(micro, batch // micro)
    if smallest > fits:
        raise ValueError(f"smallest={smallest}: only {fits} samples fit; nothing is left to choose")
    near = [size for size in _outwards(batch) if _largest_divisor(size, fits) >= smallest]
    offer = f"; batch={near[0]} has one" if near else ""
    raise ValueError(
        f"batch={batch}: no micro-batch of {smallest} to {fits} samples divides it exactly{offer}"
    )


def _largest_divisor(batch: int, limit: int) -> int:
    return max(size for size in range(1, min(batch, limit) + 1) if batch % size == 0)


def _outwards(batch: int) -> list[int]:
    """Batch sizes around `batch`, the nearest first, up to an eighth away."""
    span = max(1, batch // 8)
    return [size for by in range(1, span + 1) for size in (batch - by, batch + by) if size > 0]
