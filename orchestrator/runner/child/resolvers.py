"""Resolvers for derived parameters: ``lr: ${linear_scaling:0.1,256,${data.batch_size}}``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from omegaconf import OmegaConf


def linear_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate, proportional to the batch size (Goyal et al. 2017, arXiv:1706.02677)."""
    return float(base_lr) * float(batch) / float(base_batch)


def sqrt_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate, by the root of the batch size (Krizhevsky 2014, arXiv:1404.5997)."""
    return float(base_lr) * math.sqrt(float(batch) / float(base_batch))


def power_scaling(base_lr: float, base_batch: float, batch: float, power: float) -> float:
    """The learning rate, by a power of the batch size that may itself be searched."""
    return float(base_lr) * math.pow(float(batch) / float(base_batch), float(power))


def warmup_steps(samples: float, batch: float) -> int:
    """The fewest steps that see so many samples: a warm-up that is as long at every batch size."""
    return math.ceil(float(samples) / float(batch))


_RESOLVERS: Final[Mapping[str, Callable[..., float]]] = {
    "linear_scaling": linear_scaling,
    "sqrt_scaling": sqrt_scaling,
    "power_scaling": power_scaling,
    "warmup_steps": warmup_steps,
}
_registered: dict[str, object] = {}  # OmegaConf's wrapper of each
# A private function; with a version that does not have it, the resolvers are registered each time.
_resolver_of = getattr(OmegaConf, "_get_resolver", lambda _name: object())


def register() -> None:
    """Registers the resolvers with OmegaConf in this process.

    A later call restores those that user code removed.
    """
    for name, resolver in _RESOLVERS.items():
        if name not in _registered or _resolver_of(name) is not _registered[name]:
            OmegaConf.register_new_resolver(name, resolver, replace=True)
            _registered[name] = _resolver_of(name)
