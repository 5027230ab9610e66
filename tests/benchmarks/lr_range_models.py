"""Models, losses and optimizers that `lr_range` trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class OverRows(nn.Module):
    """An LSTM over the eight rows of a digit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 32, batch_first=True)
        self.out = nn.Linear(32, classes)

    def forward(self, inputs: Tensor) -> Any:
        return self.out(self.recurrent(inputs.view(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    """One layer of a transformer's encoder over the eight rows of a digit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedded = nn.Linear(8, 32)
        self.place = nn.Parameter(0.02 * torch.randn(8, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.out = nn.Linear(32, classes)

    def forward(self, inputs: Tensor) -> Any:
        return self.out(self.layer(self.embedded(inputs.view(-1, 8, 8)) + self.place).mean(1))


def perceptron(
    inputs: int,
    outputs: int,
    *,
    hidden: int = 64,
    layers: int = 1,
    norm: bool = False,
    dropout: float = 0.0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    modules: list[nn.Module] = []
    width = inputs
    for _ in range(layers):
        modules.append(nn.Linear(width, hidden))
        if norm:
            modules.append(nn.BatchNorm1d(hidden))
        modules.append(activation())
        if dropout:
            modules.append(nn.Dropout(dropout))
        width = hidden
    return nn.Sequential(*modules, nn.Linear(width, outputs))


def convolutional(classes: int) -> nn.Module:
    modules: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    channels = 1
    for width in (16, 32):
        modules += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
        modules += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels * 4, classes))


def gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    variance = functional.softplus(outputs[:, 1]) + 1e-3
    return functional.gaussian_nll_loss(outputs[:, 0], targets, variance)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": perceptron,
    "mlp bn": lambda inputs, classes: perceptron(inputs, classes, norm=True),
    "deep tanh": lambda inputs, classes: perceptron(inputs, classes, layers=5, activation=nn.Tanh),
    "dropout": lambda inputs, classes: perceptron(
        inputs, classes, hidden=128, layers=2, dropout=0.5
    ),
    "regression": lambda inputs, _: perceptron(inputs, 2, layers=2),
    "lstm": lambda _, classes: OverRows(classes),
    "attention": lambda _, classes: Attention(classes),
    "cnn": lambda _, classes: convolutional(classes),
}

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": functional.cross_entropy,
    "shifted": lambda outputs, targets: functional.cross_entropy(outputs, targets) - 5,
    "mse": lambda outputs, targets: functional.mse_loss(outputs[:, 0], targets),
    "gaussian nll": gaussian_nll,
}

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "sgd 0.9": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "nesterov": lambda parameters, lr: torch.optim.SGD(
        parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr),
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr),
}
