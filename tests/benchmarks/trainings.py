"""Many small networks of one shape, trained side by side, each with settings of its own.

One network after another would spend its time on the overhead of small operations. Here all their
parameters are one tensor, a row a network, and every operation is batched over the networks, so
what a network learns is what it would learn alone (a test compares it with torch's own modules and
optimisers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[np.float64]
Rates: TypeAlias = Tensor
"""A number a network, shape (networks, 1)."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}
BN_MOMENTUM, EPS = 0.1, 1e-5


@dataclass(frozen=True)
class Shape:
    """A perceptron, or (`channels`) a convolution of 3 by 3 and one of 2 by 2, both of stride 2, on
    images of 8 by 8 that `patches` cut up, and a linear layer on the mean over what is left.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = ()
    channels: tuple[int, int] | None = None
    activation: str = "relu"
    norm: str = "none"
    """After each hidden layer: ``none``, ``batch`` or ``layer``."""

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrix of each layer."""
        if self.channels:
            first, second = self.channels
            return [(9, first), (4 * first, second), (second, self.outputs)]
        widths = [self.inputs, *self.hidden, self.outputs]
        return list(itertools.pairwise(widths))

    @property
    def sizes(self) -> list[int]:
        """How many parameters each matrix, bias, and scale and shift of a norm have, in order."""
        layers, sizes = self.layers, []
        for place, (inputs, outputs) in enumerate(layers):
            sizes += [inputs * outputs, outputs]
            if self.norm != "none" and place < len(layers) - 1:
                sizes += [outputs, outputs]
        return sizes


class Networks(nn.Module):
    """Networks of one shape; from inputs of shape (networks, batch, inputs) to outputs of shape
    (networks, batch, outputs).

    Args:
        shape: of each of them.
        seeds: one a network; those of equal seed begin equal, as torch's linear layers begin.
        dropout: the share of hidden values dropped in training, shape (networks, 1).
    """

    def __init__(self, shape: Shape, seeds: list[int], dropout: Rates | None = None) -> None:
        super().__init__()
        self.shape, self._dropout = shape, dropout
        start = {seed: _start(shape, seed) for seed in set(seeds)}
        self.weights = nn.Parameter(torch.stack([start[seed] for seed in seeds]))
        if shape.norm == "batch":
            for place, (_, width) in enumerate(shape.layers[:-1]):
                self.register_buffer(f"mean{place}", torch.zeros(len(seeds), 1, width))
                self.register_buffer(f"var{place}", torch.ones(len(seeds), 1, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = iter(self.weights.split(self.shape.sizes, dim=1))
        networks, batch, _ = x.shape
        if self.shape.channels:
            x = x.reshape(networks, batch * 16, 9)
        last = len(self.shape.layers) - 1
        for place, (inputs, outputs) in enumerate(self.shape.layers):
            matrix, bias = next(parts).reshape(-1, inputs, outputs), next(parts)
            x = torch.baddbmm(bias[:, None, :], x, matrix)
            if place < last:
                x = self._hidden(x, parts, place)
                if self.shape.channels:
                    x = self._next_image(x, batch, place)
        return x

    def _hidden(self, x: Tensor, parts: object, place: int) -> Tensor:
        if self.shape.norm != "none":
            scale, shift = next(parts)[:, None, :], next(parts)[:, None, :]  # type: ignore[call-overload]
            x = self._normed(x, place) * scale + shift
        x = ACTIVATIONS[self.shape.activation](x)
        if self.training and self._dropout is not None:
            keep = 1.0 - self._dropout[:, :, None]
            x = x * (torch.rand_like(x) < keep) / keep
        return x

    def _normed(self, x: Tensor, place: int) -> Tensor:
        if self.shape.norm == "layer":
            return functional.layer_norm(x, x.shape[2:], eps=EPS)
        stored = self.get_buffer(f"mean{place}"), self.get_buffer(f"var{place}")
        if not self.training:
            return (x - stored[0]) / torch.sqrt(stored[1] + EPS)
        mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, unbiased=False)
        with torch.no_grad():
            unbiased = var * (x.shape[1] / (x.shape[1] - 1))
            for buffer, value in zip(stored, (mean, unbiased), strict=True):
                buffer.lerp_(value, BN_MOMENTUM)
        return (x - mean) / torch.sqrt(var + EPS)

    def _next_image(self, x: Tensor, batch: int, place: int) -> Tensor:
        networks, channels = x.shape[0], x.shape[2]
        if place == 1:
            return x.reshape(networks, batch, 4, channels).mean(dim=2)
        return x.reshape(networks, batch * 4, 4 * channels)


def _start(shape: Shape, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for place, (inputs, outputs) in enumerate(shape.layers):
        size, reach = (inputs + 1) * outputs, inputs**-0.5
        parts.append((2.0 * torch.rand(size, generator=generator) - 1.0) * reach)
        if shape.norm != "none" and place < len(shape.layers) - 1:
            parts += [torch.ones(outputs), torch.zeros(outputs)]
    return torch.cat(parts)


def patches(images: Tensor) -> Tensor:
    """Images of shape (n, 64) as their neighbourhoods of 3 by 3 at every second pixel, shape (n,
    144), in such an order that the next layer finds those it joins side by side.
    """
    n = len(images)
    unfolded = functional.unfold(images.reshape(n, 1, 8, 8), 3, padding=1, stride=2)  # (n, 9, 16)
    blocks = unfolded.transpose(1, 2).reshape(n, 2, 2, 2, 2, 9)
    return blocks.transpose(2, 3).reshape(n, 144)


@dataclass
class Optimiser:
    """A step of torch's optimiser of that name, for networks with rates of their own.

    Args:
        name: ``sgd``, ``adamw`` or ``rmsprop``.
        lr: learning rates, shape (networks, 1), as are momentum and weight decay.
    """

    name: str
    lr: Rates
    momentum: Rates
    decay: Rates
    _state: dict[str, Tensor] = field(default_factory=dict)
    _steps: int = 0

    @torch.no_grad()
    def step(self, weights: Tensor, scale: float) -> None:
        """Moves the weights by their gradients; `scale` is the schedule's, of the learning rate."""
        gradient = weights.grad
        assert gradient is not None
        self._steps += 1
        lr = self.lr * scale
        if self.name == "adamw":
            weights.mul_(1.0 - lr * self.decay)
            first, second = self._of("first", weights), self._of("second", weights)
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            bias1, bias2 = 1.0 - 0.9**self._steps, 1.0 - 0.999**self._steps
            weights.sub_((lr / bias1) * first / (second.sqrt() / math.sqrt(bias2) + 1e-8))
            return
        gradient = gradient + self.decay * weights
        if self.name == "rmsprop":
            square = self._of("square", weights)
            square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            gradient = gradient / (square.sqrt() + 1e-8)
        buffer = self._of("buffer", weights)
        buffer.mul_(self.momentum).add_(gradient)
        weights.sub_(lr * buffer)

    def _of(self, name: str, like: Tensor) -> Tensor:
        return self._state.setdefault(name, torch.zeros_like(like))


def rows_of_steps(n: int, batch: int, steps: int, seed: int) -> Tensor:
    """The rows of each step, shape (steps, batch): every epoch in an order of its own, its
    incomplete last batch left out.
    """
    generator = torch.Generator().manual_seed(seed)
    each = n // batch
    epochs = [
        torch.randperm(n, generator=generator)[: each * batch].reshape(each, batch)
        for _ in range(-(-steps // each))
    ]
    return torch.cat(epochs)[:steps]
