"""The part of a network after its backbone."""

from __future__ import annotations

from typing import Final

from torch import nn

from orchestrator.training.arguments import number, whole
from orchestrator.training.choices import look_up

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}
"""The activations that `mlp_head` knows by name, each with torch's defaults."""


def mlp_head(
    in_features: int,
    n_classes: int,
    n_hidden_layers: int = 0,
    n_hidden_units: int = 128,
    dropout: float = 0.0,
    activation: str = "relu",
) -> nn.Sequential:
    """Returns a network from features (N, `in_features`) to logits (N, `n_classes`).

    Each hidden layer is linear, followed by the activation and by dropout. The last layer is linear
    alone. Dropout acts on the features themselves only if there is no hidden layer, so that it
    always acts on something.

    Args:
        in_features: Number of features, at least 1.
        n_classes: Number of classes, at least 1.
        n_hidden_layers: Number of hidden layers; 0 makes a linear classifier.
        n_hidden_units: Width of each hidden layer, at least 1.
        dropout: Probability of dropping a unit, in [0, 1).
        activation: One of `ACTIVATIONS`.

    Raises:
        TypeError: An argument has another type.
        ValueError: A value is out of range, or there is no such activation.
    """
    whole("in_features", in_features, 1)
    whole("n_classes", n_classes, 1)
    whole("n_hidden_layers", n_hidden_layers, 0)
    whole("n_hidden_units", n_hidden_units, 1)
    if not 0 <= number("dropout", dropout) < 1:
        raise ValueError(f"dropout={dropout}: must be in [0, 1)")
    make_activation = look_up("activation", activation, ACTIVATIONS)

    layers: list[nn.Module] = []
    width = in_features
    for _ in range(n_hidden_layers):
        layers += [nn.Linear(width, n_hidden_units), make_activation(), nn.Dropout(dropout)]
        width = n_hidden_units
    if not layers:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, n_classes))
