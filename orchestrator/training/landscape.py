"""The loss on a line or a plane through a model's weights."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.training.choices import look_up
from orchestrator.training.directions import Direction, cosine, listed, random_direction
from orchestrator.training.displaced import BATCH_NORM, SEEDS, Displaced, check_evaluated, displaced
from orchestrator.training.parts import Step
from orchestrator.training.surface import LossLandscape

_SAVE_EVERY_S: Final = 10.0
_FEWEST: Final = 3


def loss_landscape(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batches: Iterable[Any],
    *,
    step: Step | None = None,
    dimensions: int = 2,
    points: int = 21,
    radius: float = 1.0,
    seed: int = 0,
    batch_norm: str = "stored",
    parameters: Iterable[nn.Parameter] | None = None,
    file: str | os.PathLike[str] | None = None,
    resume: LossLandscape | None = None,
    max_points: int | None = None,
) -> LossLandscape:
    """The loss along filter-normalised random directions; its centre is the model's own loss.

    The directions are those of Li et al. 2018 (`random_direction`): each filter moves relative to
    its own length, biases and normalisation parameters stay. The model is in eval mode, and is left
    bit for bit as it was, as are all random numbers; so is a `DataLoader`'s generator. Each point's
    loss depends on the point alone: random numbers start alike at each, so that a loader that
    shuffles gives the same batches, and an evaluation in parts gives the same numbers as one in
    one go.

    A plane costs ``points²`` passes over the batches without gradients, twice that with
    ``batch_norm="recomputed"``: a few hundred to a few thousand samples are enough for a picture.
    Points are evaluated from the centre outwards. Memory: two copies of the parameters, and one for
    each direction.

    With stored batch-norm statistics, walls are often higher than with statistics that fit the
    point's weights: which was used is part of the result.

    Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
    NeurIPS 2018.

    Args:
        model: On the device to use.
        loss_fn: ``loss_fn(model(inputs), targets)`` is a batch's mean loss; None with a `step`.
        batches: Can be iterated over again and again: a list, a `DataLoader`. Batches are
            ``(inputs, targets)`` unless there is a `step`.
        step: ``step(model, batch)`` is the loss of a batch of any structure.
        dimensions: 1 for a line, 2 for a plane.
        points: On each axis; odd, so that the model is one of them, at least 3.
        radius: How far to go in each direction, as a part of each filter's length.
        seed: Of the directions, and of random numbers that a point's evaluation draws.
        batch_norm: ``"stored"``: the model's running statistics, as in the paper;
            ``"recomputed"``: at each point those of the batches themselves, over all of them.
        parameters: Those that are moved; default: all of the model.
        file: Where to keep the result, as JSON: continued if it exists, and written at least every
            10 s, and whenever the evaluation ends, also by an exception.
        resume: A partial result to continue, which is left as it is.
        max_points: Evaluate at most so many points now; the result is then partial.

    Returns:
        The landscape. A batch's loss counts by its number of samples, and with a `step` as much as
        any other batch's.

    Raises:
        TypeError: An argument, a batch or a loss is not what it should be.
        ValueError: An argument is out of range; `batches` is empty or can be iterated over once
            only; no parameter can be moved; or `file` or `resume` is of another model, seed, grid,
            `batch_norm`, or number of batches.
    """
    arguments = {"dimensions": dimensions, "points": points, "seed": seed, "max_points": max_points}
    _check(arguments, radius)
    check_evaluated(model, loss_fn, step, batches)
    recomputed = look_up("batch_norm", batch_norm, BATCH_NORM)
    moved = listed(parameters)
    directions = [
        random_direction(model, seed=seed + axis * SEEDS, parameters=moved)
        for axis in range(dimensions)
    ]
    half = points // 2
    shape = (points,) * dimensions
    landscape = LossLandscape(
        alphas=np.arange(-half, half + 1) / half * radius,
        losses=np.full(shape, math.nan),
        evaluated=np.zeros(shape, dtype=bool),
        batch_norm=batch_norm,
        seed=int(seed),
        cosine=cosine(*directions) if dimensions == 2 else None,
        weights=sum(d.numel() for d in directions[0].values()),
        batches=None,
        model=_fingerprint(model, directions[0]),
    )
    if file is not None and not isinstance(file, str | os.PathLike):
        raise TypeError(f"file={file!r}: must be the path of a file")
    if resume is not None and not isinstance(resume, LossLandscape):
        raise TypeError(f"resume: {type(resume).__name__} is no LossLandscape")
    path = None if file is None else Path(file)
    _take_over(landscape, resume, path)
    with displaced(model, loss_fn, batches, step, seed, recomputed=recomputed) as evaluation:
        _evaluate(landscape, evaluation, directions, path, max_points)
    return landscape


def _evaluate(
    landscape: LossLandscape,
    evaluation: Displaced,
    directions: Sequence[Direction],
    path: Path | None,
    most: int | None,
) -> None:
    """Evaluates what is not evaluated yet, from the centre outwards, at most so many points."""
    grid = np.stack(np.meshgrid(*[landscape.alphas] * landscape.dimensions, indexing="ij"))
    order = np.argsort((grid**2).sum(axis=0), axis=None, kind="stable")
    waiting = [i for i in order if not landscape.evaluated.flat[i]][:most]
    saved_at = time.monotonic()
    unsaved = False
    try:
        for i in waiting:
            at = np.unravel_index(i, landscape.losses.shape)
            steps = [float(landscape.alphas[k]) for k in at]
            loss, batches = evaluation.at(list(zip(steps, directions, strict=True)))
            if landscape.batches not in (None, batches):
                raise ValueError(
                    f"batches: there are {batches} now, and {landscape.batches} at other points"
                )
            landscape.losses[at], landscape.batches = loss, batches
            landscape.evaluated[at] = unsaved = True
            if path is not None and time.monotonic() - saved_at > _SAVE_EVERY_S:
                landscape.save(path)
                saved_at, unsaved = time.monotonic(), False
    finally:
        if path is not None and unsaved:
            landscape.save(path)


def _take_over(landscape: LossLandscape, resume: LossLandscape | None, path: Path | None) -> None:
    """Puts what is evaluated already into `landscape`."""
    if path is not None and resume is not None:
        raise ValueError("file and resume: give one of them")
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"file={path}: there is no folder {path.parent}")
    where = "resume" if path is None else f"file={path}"
    before = resume
    if path is not None and path.exists():
        before = LossLandscape.load(path)
    if before is None:
        return
    for name in ("dimensions", "alphas", "batch_norm", "seed", "model"):
        there, here = getattr(before, name), getattr(landscape, name)
        if not np.array_equal(there, here):
            raise ValueError(f"{where}: {name} is {_brief(there)} there and {_brief(here)} here")
    landscape.losses[...] = before.losses
    landscape.evaluated[...] = before.evaluated
    landscape.batches = before.batches


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{len(value)} points from {value[0]:g} to {value[-1]:g}"
    return repr(value)


def _fingerprint(model: nn.Module, direction: Direction) -> str:
    """A hash of all parameters and buffers, the same on each device, and of which of them move."""
    found = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:{name in direction};".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _check(arguments: Mapping[str, Any], radius: float) -> None:
    for name, value in arguments.items():
        if value is None and name == "max_points":
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if arguments["dimensions"] not in (1, 2):
        raise ValueError(f"dimensions must be 1 or 2, got {arguments['dimensions']}")
    points, most = arguments["points"], arguments["max_points"]
    if points < _FEWEST or points % 2 == 0:
        raise ValueError(
            f"points must be odd, so that the model is one of them, and at least {_FEWEST}, got "
            f"{points}"
        )
    if most is not None and most < 1:
        raise ValueError(f"max_points must be at least 1, got {most}")
    if not 0 <= arguments["seed"] < SEEDS:
        raise ValueError(f"seed must be from 0 to {SEEDS - 1}, got {arguments['seed']}")
    if isinstance(radius, bool) or not isinstance(radius, Real):
        raise TypeError(f"radius must be a number, got {radius!r}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be above 0 and finite, got {radius}")
