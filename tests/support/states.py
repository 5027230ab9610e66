"""The state of models, optimizers and random numbers, to compare bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def everything(*objects: Any) -> list[Any]:
    """All that is to be as before: values as bytes, objects by identity."""
    seen: list[Any] = [random.getstate(), repr(np.random.get_state()), raw(torch.get_rng_state())]
    for thing in objects:
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules():
                seen += [name, id(module), module.training, list(module._modules)]
            for name, tensor in [*thing.named_parameters(), *thing.named_buffers()]:
                grad = tensor.grad if tensor.is_leaf else None
                seen += [name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad]
                seen += [raw(tensor), id(grad), None if grad is None else raw(grad)]
        elif isinstance(thing, torch.optim.Optimizer):
            seen += [id(thing.param_groups), id(thing.state), *map(id, thing.param_groups)]
            seen += flat(thing.param_groups) + flat(dict(thing.state)) + sorted(vars(thing))
        else:
            seen += flat(thing.state_dict())
    return seen


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [id(value), raw(value)]
    if isinstance(value, dict):
        return [entry for pair in value.items() for entry in flat(list(pair))]
    if isinstance(value, list | tuple):
        return [entry for item in value for entry in flat(item)]
    return [value]
