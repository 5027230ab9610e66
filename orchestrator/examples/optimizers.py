"""The optimizers and schedules of the examples, by name, and a step with any of them."""

# mypy: allow-untyped-calls
# (torch does not annotate `Tensor.backward`)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from orchestrator.training import Parts
from orchestrator.training.choices import look_up
from orchestrator.training.sam import SAM
from orchestrator.training.schedules import Schedule, schedule


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    rho: float = 0.05,
) -> Optimizer:
    """Returns an optimizer of the parameters that the model trains.

    Args:
        name: ``adamw``, ``sgd`` (with Nesterov's momentum), or ``sam``: sharpness-aware
            minimization with the same SGD, for two forward and backward passes a step.
        model: Frozen parameters are left out.
        lr: The learning rate, the peak of a schedule.
        weight_decay: Decoupled from the gradient for ``adamw``, part of it for the others.
        momentum: Of ``adamw`` the first beta.
        rho: How far ``sam`` looks; the others do without.

    Raises:
        ValueError: There is no such optimizer, or it refuses a value.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def adamw() -> Optimizer:
        return AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(momentum, 0.999))

    def sgd() -> Optimizer:
        return SGD(
            parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=momentum > 0
        )

    def sam() -> Optimizer:
        return SAM(sgd(), model, rho=rho)

    return look_up("optim.name", name, {"adamw": adamw, "sgd": sgd, "sam": sam})()


def make_schedule(cfg: Mapping[str, Any], optimizer: Optimizer, total_steps: int) -> Schedule:
    """Returns the schedule that ``params.schedule`` describes.

    Args:
        cfg: ``name``; ``warmup``, the share of all steps in which the learning rate rises to it (0
            if left out); and the options of that schedule.
        optimizer: Has the peak as its learning rate.
        total_steps: Optimizer steps of the whole training.

    Raises:
        TypeError: An option has the wrong type, or no schedule has it.
        ValueError: There is no such schedule, or it refuses an option.
    """
    options = dict(cfg)
    warmup = options.pop("warmup", 0.0)
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup}: must be in [0, 1)")
    return schedule(
        options.pop("name"),
        optimizer,
        total_steps,
        warmup_steps=round(warmup * total_steps),
        **options,
    )


def step(parts: Parts, batch: Any, scaler: torch.amp.GradScaler | None = None) -> None:
    """Makes one step, with the gradient clipped to a norm of 1.

    Nothing in it waits for a GPU, unless a scaler does.

    Args:
        parts: What to train; `SAM` takes a second pass over the batch.
        batch: One of its batches.
        scaler: Scales the loss, where it is computed in float16.
    """
    optimizer = parts.optimizer
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    optimizer.zero_grad()
    scaler.scale(parts.loss(batch)).backward()
    if isinstance(optimizer, SAM):
        with optimizer.perturbed():
            scaler.scale(parts.loss(batch)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parts.model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
