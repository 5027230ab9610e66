"""The loss of a model whose weights are moved, each time from where they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.training.directions import Direction
from orchestrator.training.parts import Step, batch_loss
from orchestrator.training.state import check_restorable, preserved

BATCH_NORM: Final = {"stored": False, "recomputed": True}
"""Which statistics batch-norm layers use, by name; whether they are those of the place."""
SEEDS: Final = 2**32
"""Seeds are below this."""


@contextmanager
def displaced(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batches: Iterable[Any],
    step: Step | None,
    seed: int,
    *,
    recomputed: bool,
) -> Iterator[Displaced]:
    """Within it the model is in eval mode and can be moved; after it everything is as before.

    Args:
        seed: Of random numbers that the loss draws: the same at each place.
        recomputed: Whether batch-norm layers use the statistics of all batches at each place.
    """
    with ExitStack() as stack:
        stack.enter_context(preserved(model))
        stack.enter_context(_generator_kept(batches))
        evaluation = Displaced(model, loss_fn, step, batches, seed)
        if recomputed:
            stack.enter_context(evaluation.recomputing())
        yield evaluation


class Displaced:
    """Computes the loss of the model away from where it is, and brings it back."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        step: Step | None,
        batches: Iterable[Any],
        seed: int,
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._step = step
        self._batches = batches
        self._seed = seed
        self._generator = _generator_of(batches)
        self._generator_at = None if self._generator is None else self._generator.get_state()
        self._parameters = dict(model.named_parameters())
        self._weights: Direction = {}  # of those that have moved
        self._norms: list[_BatchNorm] = []
        model.eval()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Within it, batch-norm layers use at each point the statistics of all batches there."""
        found = [m for m in self._model.modules() if isinstance(m, _BatchNorm)]
        self._norms = [m for m in found if m.running_mean is not None]
        momenta = [m.momentum for m in self._norms]
        try:
            for m in self._norms:
                m.momentum = None  # the mean over the batches
            yield
        finally:
            for m, momentum in zip(self._norms, momenta, strict=True):
                m.momentum = momentum

    @torch.no_grad()
    def at(self, steps: Sequence[tuple[float, Direction]]) -> tuple[float, int]:
        """The mean loss so many times each direction away, and of how many batches it is."""
        try:
            for length, direction in steps:
                if length != 0:  # nothing is added at the centre: it is the model, bit for bit
                    self._move(length, direction)
            if self._norms:
                self._recompute_statistics()
            return self._mean_loss()
        finally:
            for name, weight in self._weights.items():
                self._parameters[name].copy_(weight)

    def _move(self, length: float, direction: Direction) -> None:
        for name, along in direction.items():
            p = self._parameters[name]
            if name not in self._weights:
                self._weights[name] = p.detach().clone()
            p.add_(along, alpha=length)

    def _recompute_statistics(self) -> None:
        for m in self._norms:
            m.reset_running_stats()
            m.train()
        for _ in self._losses():
            pass
        for m in self._norms:
            m.eval()

    def _mean_loss(self) -> tuple[float, int]:
        losses, samples = [], []
        for loss, n in self._losses():
            losses.append(loss)
            samples.append(n)
        if not losses:
            raise ValueError("batches: there is none")
        # The device is waited for once a place.
        found = torch.stack(losses).to("cpu").double()
        shares = torch.tensor(samples, dtype=torch.float64) / sum(samples)
        return float(found @ shares), len(losses)

    def _losses(self) -> Iterator[tuple[Tensor, int]]:
        """The loss of each batch and its number of samples, with the same random numbers each time
        this is called.
        """
        if self._generator is not None:
            assert self._generator_at is not None
            self._generator.set_state(self._generator_at)
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)
        if torch.cuda.is_initialized():  # asking for more would initialise it
            torch.cuda.manual_seed_all(self._seed)
        for batch in self._batches:
            loss = batch_loss(self._model, self._loss_fn, batch, self._step).detach()
            yield loss, 1 if self._step is not None else _samples(batch[0])


def _samples(inputs: Any) -> int:
    """The number of samples in a batch's inputs; 1 if they do not tell."""
    if isinstance(inputs, Tensor) and inputs.ndim > 0:
        return len(inputs)
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple | list) and inputs:
        return _samples(inputs[0])
    return 1


def _generator_of(batches: object) -> torch.Generator | None:
    generator = getattr(batches, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None


@contextmanager
def _generator_kept(batches: object) -> Iterator[None]:
    """Leaves a `DataLoader`'s own generator as it was."""
    generator = _generator_of(batches)
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def check_evaluated(model: object, loss_fn: object, step: object, batches: object) -> None:
    """Raises TypeError or ValueError where there is nothing to evaluate again and again."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__} is not a torch.nn.Module")
    check_restorable(model)
    if step is None and loss_fn is None:
        raise TypeError("loss_fn: needed where there is no step")
    for name, value in (("loss_fn", loss_fn), ("step", step)):
        if value is not None and not callable(value):
            raise TypeError(f"{name}: {type(value).__name__} cannot be called")
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor | Mapping):
        raise TypeError(f"batches: {type(batches).__name__} is not an iterable of batches")
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches: a {type(batches).__name__} can be iterated over only once, and each point "
            "needs all batches; give a list or a DataLoader"
        )
