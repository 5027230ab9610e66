"""Random directions in a model's weights, scaled so that models can be compared along them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

Direction = dict[str, Tensor]
"""A change of each parameter that moves, by its name."""


def random_direction(
    model: nn.Module, *, seed: int = 0, parameters: Iterable[nn.Parameter] | None = None
) -> Direction:
    """A Gaussian direction of which each filter is as long as the model's own.

    So a step of 1 changes each filter by its own length, and a layer's scale, which batch-norm
    undoes, does not change what the direction means. A filter is what computes one output: a row of
    a linear layer's weight, the weights of one output channel of a convolution (transposed ones
    too). Parameters of fewer than two dimensions (biases, scale and shift of a normalisation) are
    not moved, as in the paper.

    Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
    NeurIPS 2018.

    Args:
        model: The weights that set the scale.
        seed: Of the random numbers, which are drawn on the CPU and for each parameter by its name:
            the same on every device, and for a part of the model as for all of it.
        parameters: Those that are moved; default: all of the model.

    Returns:
        A tensor for each parameter that is moved, by its name, beside it on its device.

    Raises:
        ValueError: None of the parameters has two dimensions or more and real numbers, or one is
            not the model's.
    """
    transposed = {
        id(m.weight): m.groups for m in model.modules() if isinstance(m, _ConvTransposeNd)
    }
    direction: Direction = {}
    for name, p in _moved(model, parameters):
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        noise = torch.randn(p.shape, generator=generator)
        weight = p.detach().to("cpu", torch.float32)
        groups = transposed.get(id(p))
        length = _filter_lengths(weight, groups)
        noise *= length / _filter_lengths(noise, groups).clamp_min(torch.finfo().tiny)
        direction[name] = noise.to(p.device, p.dtype)
    return direction


def listed(parameters: Iterable[nn.Parameter] | None) -> list[nn.Parameter] | None:
    """The parameters, to be gone through more than once; None where none are given.

    Raises:
        TypeError: they are nothing to go through.
    """
    if parameters is None:
        return None
    if not isinstance(parameters, Iterable):
        raise TypeError(f"parameters={parameters!r}: must be parameters of the model")
    return list(parameters)


def cosine(one: Direction, other: Direction) -> float:
    """Of the angle between two directions of the same parameters."""
    products = torch.zeros(3, dtype=torch.float64)
    for name, a in one.items():
        x, y = a.flatten().to("cpu", torch.float64), other[name].flatten().to("cpu", torch.float64)
        products += torch.stack([x @ y, x @ x, y @ y])
    dot, xx, yy = products.tolist()
    return float(dot / (xx * yy) ** 0.5) if xx * yy > 0 else 0.0


def _moved(
    model: nn.Module, parameters: Iterable[nn.Parameter] | None
) -> list[tuple[str, nn.Parameter]]:
    wanted = None if parameters is None else {id(p) for p in parameters}
    named = list(model.named_parameters())
    if wanted is not None and not wanted <= {id(p) for _, p in named}:
        raise ValueError("parameters: one of them is not a parameter of the model")
    moved = [
        (name, p)
        for name, p in named
        if p.ndim >= 2 and p.is_floating_point() and (wanted is None or id(p) in wanted)
    ]
    if not moved:
        raise ValueError(
            f"{'model' if wanted is None else 'parameters'}: no parameter has two dimensions or "
            "more and real numbers, so there is no filter to move"
        )
    return moved


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def _filter_lengths(weight: Tensor, groups: int | None) -> Tensor:
    """The norm of the filter that each weight belongs to, in a shape that multiplies `weight`.

    Args:
        weight: Of any layer; dimension 0 is that of its outputs.
        groups: Of a transposed convolution, whose weight has the shape (in, out / groups, …).
    """
    if groups is None:
        along = tuple(range(1, weight.ndim))
        lengths: Tensor = torch.linalg.vector_norm(weight, dim=along, keepdim=True)
        return lengths
    apart = weight.unflatten(0, (groups, -1))
    rest = (1, *range(3, apart.ndim))
    each: Tensor = torch.linalg.vector_norm(apart, dim=rest, keepdim=True)
    return each.expand(-1, apart.shape[1], *each.shape[2:]).flatten(0, 1)
