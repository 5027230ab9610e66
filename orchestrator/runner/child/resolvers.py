"""Resolvers that tie one parameter to others, for use in ``params``: ``lr:
${linear_scaling:0.1,256,${data.batch_size}}``.
"""

from __future__ import annotations

import math
from typing import Final

from omegaconf import OmegaConf


def linear_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate scaled in proportion to the batch size (Goyal et al. 2017,
    arXiv:1706.02677).
    """
    return float(base_lr) * float(batch) / float(base_batch)


def sqrt_scaling(base_lr: float, base_batch: float, batch: float) -> float:
    """The learning rate scaled with the square root of the batch size (Krizhevsky 2014,
    arXiv:1404.5997).
    """
    return float(base_lr) * math.sqrt(float(batch) / float(base_batch))


_RESOLVERS: Final = {"linear_scaling": linear_scaling, "sqrt_scaling": sqrt_scaling}
_registered: dict[str, object] = {}  # what OmegaConf made of each
# It has no public name; should a version not have it, they are registered each time.
_resolver_of = getattr(OmegaConf, "_get_resolver", lambda _name: object())


def register() -> None:
    """Makes the resolvers known to OmegaConf in this process; calling it again puts back what user
    code cleared or replaced.
    """
    for name, resolver in _RESOLVERS.items():
        if name not in _registered or _resolver_of(name) is not _registered[name]:
            OmegaConf.register_new_resolver(name, resolver, replace=True)
            _registered[name] = _resolver_of(name)
