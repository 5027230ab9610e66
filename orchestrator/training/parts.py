"""The parts of a training that a probe needs, as a `build` function returns them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Step = Callable[[nn.Module, Any], Tensor]
"""Computes the loss of one batch, a scalar tensor, without going backward."""


@dataclass(frozen=True)
class Parts:
    """A model, its optimizer, its loss and its batches: checked, each named in the error.

    Attributes:
        model: on the device that it is to be trained on.
        optimizer: of the model's parameters.
        loss_fn: ``loss_fn(model(inputs), targets)`` is the loss of a batch; needed unless there is
            a `step`.
        batches: an iterable of batches, such as a ``DataLoader``; pairs ``(inputs, targets)``
            unless there is a `step`.
        step: ``step(model, batch)`` is the loss of a batch of any structure, in the place of
            `loss_fn`. It moves the batch to the device itself (`moved`).

    Raises:
        TypeError: a part is missing or is not what it should be.
        ValueError: the optimizer has no parameters.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: Callable[[Any, Any], Tensor] | None
    batches: Iterable[Any]
    step: Step | None = None

    def __post_init__(self) -> None:
        for name, kind in (("model", nn.Module), ("optimizer", Optimizer)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name}: {type(value).__name__} is not a {kind.__module__}.{kind.__name__}"
                )
        if self.step is None and self.loss_fn is None:
            raise TypeError("loss_fn: needed where there is no step")
        for name in ("loss_fn", "step"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name}: {type(value).__name__} cannot be called")
        if not isinstance(self.batches, Iterable) or isinstance(
            self.batches, str | bytes | Tensor | Mapping
        ):
            raise TypeError(f"batches: {type(self.batches).__name__} is not an iterable of batches")
        if not any(group["params"] for group in self.optimizer.param_groups):
            raise ValueError("optimizer: it has no parameters")

    @classmethod
    def of(cls, built: object) -> Parts:
        """The parts in what a `build` function returned: `Parts`, a mapping by their names, or
        ``(model, optimizer, loss_fn, batches)`` with, perhaps, `step`.

        Raises:
            TypeError: it is none of these, or a part is missing, unknown or not what it should be.
            ValueError: the optimizer has no parameters.
        """
        if isinstance(built, Parts):
            return built
        names = [field.name for field in fields(cls)]
        if isinstance(built, Mapping):
            for name in built:
                if name not in names:
                    close = difflib.get_close_matches(str(name), names, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"parts: {', '.join(names)}"
                    raise TypeError(f"build returned an unknown part {name!r}; {hint}")
            given: dict[str, Any] = {str(name): value for name, value in built.items()}
        elif isinstance(built, tuple | list) and len(built) <= len(names):
            given = dict(zip(names, built, strict=False))
        else:
            length = f" of {len(built)}" if isinstance(built, tuple | list) else ""
            raise TypeError(
                f"build returned a {type(built).__name__}{length}; it must return Parts, a mapping "
                f"by {', '.join(names)}, or a tuple in this order"
            )
        if given.get("step") is not None:
            given.setdefault("loss_fn", None)
        missing = [name for name in names[:4] if name not in given]
        if missing:
            raise TypeError(f"build returned no {' and no '.join(missing)}")
        return cls(**given)

    def loss(self, batch: Any) -> Tensor:
        """The loss of one batch, a scalar tensor on the model's device.

        Raises:
            TypeError: without a `step`, the batch is no pair; or the loss is no tensor.
            ValueError: the loss is no single number.
        """
        return batch_loss(self.model, self.loss_fn, batch, self.step)


def batch_loss(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batch: Any,
    step: Step | None = None,
) -> Tensor:
    """The loss of one batch, a scalar tensor on the model's device: what `step` returns, else
    ``loss_fn(model(inputs), targets)``.

    Raises:
        TypeError: without a `step`, the batch is no pair; or the loss is no tensor of real numbers.
        ValueError: the loss is no single number.
    """
    if step is not None:
        loss = step(model, batch)
    else:
        assert loss_fn is not None
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise TypeError(
                f"batches: a {type(batch).__name__}{size} is not a pair (inputs, targets); "
                "give a `step` function for batches of another structure"
            )
        inputs, targets = moved(batch, device_of(model))
        loss = loss_fn(model(inputs), targets)
    name = "loss_fn" if step is None else "step"
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: it returned a {type(loss).__name__}, not a tensor")
    if loss.is_complex():
        raise TypeError(f"{name}: a loss must be real, not {loss.dtype}")
    if loss.numel() != 1:
        raise ValueError(f"{name}: a loss of shape {tuple(loss.shape)} is not one number")
    return loss.reshape(())


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, else the CPU."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def device_named(device: object) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        return torch.device(device)  # type: ignore[call-overload, no-any-return]
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(
            f"device={device!r}: must be a device, such as 'cpu' or 'cuda:0'"
        ) from None


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on `device`, through tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch
