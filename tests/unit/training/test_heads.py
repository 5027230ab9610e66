"""Heads: the layers that were asked for, and one clear error for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest


def head(**arguments: Any) -> Any:
    from orchestrator.training.heads import mlp_head

    return mlp_head(**({"in_features": 5, "n_classes": 3} | arguments))


def test_its_layers_are_those_asked_for() -> None:
    made = head(n_hidden_layers=2, n_hidden_units=7, dropout=0.25, activation="gelu")
    assert [str(layer) for layer in made] == [
        "Linear(in_features=5, out_features=7, bias=True)",
        "GELU(approximate='none')",
        "Dropout(p=0.25, inplace=False)",
        "Linear(in_features=7, out_features=7, bias=True)",
        "GELU(approximate='none')",
        "Dropout(p=0.25, inplace=False)",
        "Linear(in_features=7, out_features=3, bias=True)",
    ]


def test_features_become_logits() -> None:
    import torch

    assert head(n_hidden_layers=1)(torch.ones(4, 5)).shape == (4, 3)


def test_without_hidden_layers_dropout_acts_on_the_features() -> None:
    assert [type(layer).__name__ for layer in head(dropout=0.5)] == ["Dropout", "Linear"]


def test_every_activation_makes_a_head() -> None:
    from orchestrator.training.heads import ACTIVATIONS

    for name, made in ACTIVATIONS.items():
        assert isinstance(head(n_hidden_layers=1, activation=name)[1], made)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features=0: must be at least 1"),
        ({"n_classes": -2}, ValueError, "n_classes=-2: must be at least 1"),
        ({"n_hidden_layers": -1}, ValueError, "n_hidden_layers=-1: must be at least 0"),
        ({"n_hidden_units": 0}, ValueError, "n_hidden_units=0: must be at least 1"),
        ({"n_hidden_layers": 1.0}, TypeError, r"n_hidden_layers=1\.0: must be a whole number"),
        ({"n_classes": True}, TypeError, "n_classes=True: must be a whole number"),
        ({"dropout": 1.0}, ValueError, r"dropout=1\.0: must be in \[0, 1\)"),
        ({"dropout": float("nan")}, ValueError, "dropout=nan: must be finite"),
        ({"dropout": "0.1"}, TypeError, "dropout='0.1': must be a number"),
        ({"activation": "gelo"}, ValueError, "activation='gelo': .*did you mean 'gelu'"),
        ({"activation": None}, TypeError, "activation=None: must be one of relu, gelu"),
    ],
)
def test_what_makes_no_head_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        head(**arguments)
