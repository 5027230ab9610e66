"""Average-case sharpness: how much the loss rises around a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor, nn

from orchestrator.training.choices import look_up
from orchestrator.training.directions import listed, random_direction
from orchestrator.training.displaced import BATCH_NORM, SEEDS, check_evaluated, displaced
from orchestrator.training.parts import Step
from orchestrator.training.surface import Sharpness


def average_sharpness(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batches: Iterable[Any],
    *,
    step: Step | None = None,
    radius: float = 0.5,
    directions: int = 10,
    seed: int = 0,
    batch_norm: str = "stored",
    parameters: Iterable[nn.Parameter] | None = None,
) -> Sharpness:
    """The mean rise of the loss at `radius` times each filter's own length, over random directions.

    With each direction its opposite is measured, so that the slope at the model drops out. The
    model, random numbers and a loader's generator are left bit for bit as they were. It costs
    ``2 · directions + 1`` passes over the batches without gradients, twice that with
    ``batch_norm="recomputed"``.

    Only compare numbers of the same `radius`, `batch_norm`, batches and seed: with stored
    batch-norm statistics the loss often rises more than with statistics that fit the place.

    Sources: average-case sharpness as in Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern
    Look at the Relationship between Sharpness and Generalization", ICML 2023, who also show that
    it need not go with generalisation; directions of Li, Xu, Taylor, Studer, Goldstein,
    "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, which no rescaling of a layer
    that batch-norm undoes can change.

    Args:
        model: The model at the centre, as of `loss_landscape`.
        loss_fn: Its loss.
        batches: Passed over again and again.
        step: In place of `loss_fn`, for batches of another structure.
        batch_norm: ``stored`` or ``recomputed`` statistics.
        parameters: Those to move; None: all.
        radius: Of the sphere, as a part of each filter's length.
        directions: How many, at least 2.
        seed: Of the directions, and of random numbers that the loss draws.

    Raises:
        TypeError: An argument, a batch or a loss is not what it should be.
        ValueError: An argument is out of range; `batches` is empty or can be iterated over once
            only; or no parameter can be moved.
    """
    for name, value in (("directions", directions), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if directions < 2:
        raise ValueError(f"directions must be at least 2, got {directions}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be from 0 to {SEEDS - 1}, got {seed}")
    if isinstance(radius, bool) or not isinstance(radius, Real):
        raise TypeError(f"radius must be a number, got {radius!r}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be above 0 and finite, got {radius}")
    check_evaluated(model, loss_fn, step, batches)
    recomputed = look_up("batch_norm", batch_norm, BATCH_NORM)
    moved = listed(parameters)
    rises = []
    with displaced(model, loss_fn, batches, step, seed, recomputed=recomputed) as evaluation:
        centre, _ = evaluation.at(())
        for number in range(directions):
            along = random_direction(model, seed=seed + number * SEEDS, parameters=moved)
            rises.append([evaluation.at([(sign * radius, along)])[0] - centre for sign in (1, -1)])
    means = np.mean(rises, axis=1)
    return Sharpness(
        mean=float(means.mean()),
        maximum=float(np.max(rises)),
        radius=float(radius),
        standard_error=float(means.std(ddof=1) / math.sqrt(directions)),
    )
