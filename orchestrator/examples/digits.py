"""Handwritten digits: a complete objective, from data to checkpoint.

Trains in a second or two on one CPU core.

`train` is all that the orchestrator needs from your code: a function of the config and the trial
that returns the metric. The data are the 1,797 images (8x8 grey levels) of the UCI handwritten
digits test set, which scikit-learn includes.
"""

# mypy: allow-untyped-calls
# (torch does not annotate `Tensor.backward` and `Tensor.split`)

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.runner import Trial, TrialPruned

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
CHECKPOINT_EVERY = 4  # epochs


def train(cfg: DictConfig, trial: Trial) -> dict[str, float] | None:
    """Trains an MLP and returns its validation accuracy and loss after the last epoch.

    None if stopped earlier.

    Every epoch draws its random numbers from the trial's seed and the epoch's number. So an
    interrupted trial that continues from its checkpoint ends exactly as if it had never been
    interrupted.

    Args:
        cfg: ``data.batch_size``; ``model.hidden_units``, ``.depth``, ``.dropout``, ``.activation``;
            ``optim.lr`` (the peak), ``.weight_decay``; ``train.epochs``.
        trial: The running trial.

    Raises:
        TrialPruned: The study's pruner stopped the trial.
    """
    images, labels, val_images, val_labels = (tensor.to(trial.device) for tensor in load_split())
    torch.manual_seed(trial.seed)
    model = mlp(cfg.model).to(trial.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.optim.lr, weight_decay=cfg.optim.weight_decay
    )
    steps = cfg.train.epochs * -(-len(images) // cfg.data.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=cfg.optim.lr, total_steps=steps
    )

    checkpoint = trial.checkpoint_dir / "last.pt"
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = load_checkpoint(checkpoint, parts) if checkpoint.exists() else 0
    accuracy, loss = evaluate(model, val_images, val_labels)

    for epoch in range(done, cfg.train.epochs):
        torch.manual_seed(trial.seed + 1 + epoch)  # the order of the images, and dropout
        model.train()
        for batch in torch.randperm(len(images), device=trial.device).split(cfg.data.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()

        accuracy, loss = evaluate(model, val_images, val_labels)
        trial.report(accuracy, step=epoch)
        if trial.should_prune():
            raise TrialPruned
        stopping = trial.should_stop()
        if stopping or (epoch + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(checkpoint, parts, epochs=epoch + 1)
        if stopping and epoch + 1 < cfg.train.epochs:
            return None  # another worker continues from the checkpoint

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"val_accuracy": accuracy, "val_loss": loss, "parameters": parameters}


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


def mlp(cfg: DictConfig) -> nn.Sequential:
    """From 64 pixels to 10 classes, with `depth` hidden layers of `hidden_units`.

    Each hidden layer has an activation and dropout.
    """
    layers: list[nn.Module] = []
    width = 64
    for _ in range(cfg.depth):
        layers += [
            nn.Linear(width, cfg.hidden_units),
            ACTIVATIONS[cfg.activation](),
            nn.Dropout(cfg.dropout),
        ]
        width = cfg.hidden_units
    return nn.Sequential(*layers, nn.Linear(width, 10))


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats)."""
    model.eval()
    logits = model(images)
    return (logits.argmax(1) == labels).float().mean().item(), F.cross_entropy(
        logits, labels
    ).item()


def save_checkpoint(path: Path, parts: dict[str, Any], epochs: int) -> None:
    """Writes the state after `epochs` epochs atomically: the process may be killed at any time."""
    partial = path.with_suffix(".partial")
    torch.save(
        {"epochs": epochs} | {name: part.state_dict() for name, part in parts.items()}, partial
    )
    partial.replace(path)


def load_checkpoint(path: Path, parts: dict[str, Any]) -> int:
    """Restores the saved state and returns how many epochs are done."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["epochs"])
