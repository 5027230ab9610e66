"""Handwritten digits: a complete objective, from data to checkpoint.

Trains in a second or two on one CPU core.

`train` is all that the orchestrator needs from your code: a function of the config and the trial
that returns the metric. `build` serves probes, which measure something before a cell's first trial.
The data are the 1,797 images (8x8 grey levels) of the UCI handwritten digits test set, which
scikit-learn includes.
"""

# mypy: allow-untyped-calls
# (torch does not annotate `Tensor.backward` and `Tensor.split`)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.examples.checkpoint import load_checkpoint, save_checkpoint
from orchestrator.examples.optimizers import make_optimizer, make_schedule, step
from orchestrator.runner import Trial, TrialPruned
from orchestrator.training import Parts, mlp_head

CHECKPOINT_EVERY = 4  # epochs
ONE_CYCLE: dict[str, Any] = {"momentum": (0.85, 0.95)}
"""What torch's OneCycleLR does unless told otherwise: the momentum moves against the rate."""


def train(cfg: DictConfig, trial: Trial) -> dict[str, float] | None:
    """Trains an MLP and returns its validation accuracy and loss after the last epoch.

    None if stopped earlier.

    Every epoch draws its random numbers from the trial's seed and the epoch's number. So an
    interrupted trial that continues from its checkpoint ends exactly as if it had never been
    interrupted.

    Args:
        cfg: ``data.batch_size``; ``model.hidden_units``, ``.depth``, ``.dropout``, ``.activation``;
            ``optim.name``, ``.lr`` (the peak), ``.weight_decay``; ``schedule.name``;
            ``train.epochs``.
        trial: The running trial.

    Raises:
        TrialPruned: The study's pruner stopped the trial.
    """
    parts = build(cfg, trial)
    model, optimizer, batches = parts.model, parts.optimizer, parts.batches
    assert isinstance(batches, Batches)
    val_images, val_labels = (tensor.to(trial.device) for tensor in load_split()[2:])
    steps = cfg.train.epochs * len(batches)
    # A study from before they could be chosen names neither schedule nor optimizer.
    chosen = cfg.get("schedule", {"name": "onecycle"})
    defaults = ONE_CYCLE if chosen["name"] == "onecycle" else {}
    schedule = make_schedule({**defaults, **chosen}, optimizer, steps)

    checkpoint = trial.checkpoint_dir / "last.pt"
    saved = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = load_checkpoint(checkpoint, saved)
    accuracy, loss = evaluate(model, val_images, val_labels)

    for epoch in range(done, cfg.train.epochs):
        torch.manual_seed(trial.seed + 1 + epoch)  # the order of the images, and dropout
        model.train()
        for batch in batches:
            step(parts, batch)
            schedule.step()

        accuracy, loss = evaluate(model, val_images, val_labels)
        trial.report(accuracy, step=epoch)
        if trial.should_prune():
            raise TrialPruned
        stopping = trial.should_stop()
        if stopping or (epoch + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(checkpoint, saved, epochs=epoch + 1)
        if stopping and epoch + 1 < cfg.train.epochs:
            return None  # another worker continues from the checkpoint

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"val_accuracy": accuracy, "val_loss": loss, "parameters": parameters}


def build(cfg: DictConfig, trial: Trial) -> Parts:
    """The model, optimizer, loss and batches of that training, for `train` and for probes."""
    images, labels = (tensor.to(trial.device) for tensor in load_split()[:2])
    torch.manual_seed(trial.seed)
    model = mlp_head(
        images.shape[1],
        10,
        n_hidden_layers=cfg.model.depth,
        n_hidden_units=cfg.model.hidden_units,
        dropout=cfg.model.dropout,
        activation=cfg.model.activation,
    ).to(trial.device)
    return Parts(
        model=model,
        optimizer=make_optimizer(model=model, **{"name": "adamw", **cfg.optim}),
        loss_fn=F.cross_entropy,
        batches=Batches(images, labels, cfg.data.batch_size),
    )


@dataclass(frozen=True)
class Batches:
    """Batches of one epoch, in another order at each iteration, by torch's random numbers."""

    images: Tensor
    labels: Tensor
    size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), device=self.images.device)
        for rows in order.split(self.size):
            yield self.images[rows], self.labels[rows]


@cache
def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training, and the held-out fifth.

    Always the same split, stratified by class.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, val_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, val_labels = (torch.tensor(part) for part in parts[2:])
    # Of the training images only.
    mean, deviation = train_images.mean(0), train_images.std(0).clamp(min=1.0)
    return (
        (train_images - mean) / deviation,
        train_labels,
        (val_images - mean) / deviation,
        val_labels,
    )


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats)."""
    model.eval()
    logits = model(images)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(
        logits, labels
    ).item()
