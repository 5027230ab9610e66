"""The learning rate range test: train while the learning rate grows, and watch the loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orchestrator.training.arguments import number, whole
from orchestrator.training.batches import Batches, undisturbed
from orchestrator.training.curve import Growth, LRCurve, Sweep
from orchestrator.training.curve_rules import FIRST, Divergence
from orchestrator.training.parts import Parts, Step, device_of
from orchestrator.training.sam import SAM
from orchestrator.training.state import Stateful, preserved

_SKIPPED_IN_A_ROW: Final = 30
"""A scaler that begins at 2**16 is below 2**-13 then."""


def lr_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batches: Iterable[Any],
    *,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    growth: Growth = "exponential",
    repeats: int = 3,
    step: Step | None = None,
    held_out: Iterable[Any] | None = None,
    measure: Step | None = None,
    maximize: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    autocast: torch.dtype | None = None,
    smoothing: float = 0.9,
    divergence: float = 2.0,
    others: Iterable[Stateful] = (),
) -> LRCurve:
    """Measures loss against learning rate, and leaves everything as it was, also when it raises.

    From the model as it is, the optimizer makes up to `steps` updates, each with a larger learning
    rate, until the loss diverges. That is repeated from the same weights with the batches that come
    next and other random numbers. By default the loss is that of each batch as it is trained on,
    and the learning rate grows exponentially (Gugger's and Howard's variant); with `held_out` and
    ``growth="linear"`` it is Smith's.

    Afterwards model, optimizer, random numbers and `others` are bit for bit as before
    (`preserved`), and a `DataLoader` gives the batches that it would have given. **An iterator is
    not wound back**: it has lost the ``batches_taken`` batches of the curve, and no more. Within
    the test the model is in training mode. Extra memory: one copy of the model and of the
    optimizer's state. The losses stay on the device and are read every ten steps there, so that a
    sweep may run up to nine steps past its divergence, which are not part of the curve.

    `SAM` makes both of its passes, `torch.optim.LBFGS` its closure's.

    Sources: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017; the
    exponential variant is fastai's.

    Args:
        model: on its device.
        optimizer: of the model's parameters. The learning rate of its first group runs from `start`
            to `end`; the other groups keep their ratio to it.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar; None with a `step`.
        batches: what can be iterated again and again, such as a `DataLoader` or a list; or an
            iterator: then the sweeps end with it. Pairs ``(inputs, targets)`` unless there is a
            `step`.
        start: first learning rate, above 0.
        end: last learning rate, above `start`.
        steps: updates a sweep makes if it does not diverge; at least 20.
        growth: ``"exponential"``: by the same factor each step; ``"linear"``: by the same amount.
        repeats: sweeps, at least 1.
        step: ``step(model, batch)`` gives the loss of a batch of any structure, and moves it to the
            device itself.
        held_out: batches on which the curve's loss is measured after each update, in evaluation
            mode and without gradients, as the mean over the batches. Iterated once an update.
        measure: ``measure(model, batch)``: a number to measure on `held_out` instead of the loss.
        maximize: whether `measure` gives what is better when larger, such as an accuracy.
        accumulate: batches to each update; their mean loss is the curve's.
        clip_norm: gradients are clipped to this norm, as in the training to come.
        scaler: a gradient scaler for float16; a copy of it is used. An update that it skips is
            tried again with the next batch at the same learning rate.
        autocast: the type to compute the losses in, e.g. ``torch.bfloat16``.
        smoothing: weight of the past in ``LRCurve.smoothed``, in [0, 1).
        divergence: a sweep ends when the loss is this many times as far above its best as it was
            in the beginning; above 0.
        others: further objects to restore that have ``state_dict`` and ``load_state_dict``:
            schedules that the optimizer has, a sampler with a state.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range; no parameter of the optimizer belongs to the model
            or requires a gradient; the first group's learning rate is no positive number; or there
            are too few batches for a curve.
    """
    parts = Parts(model, optimizer, loss_fn, batches, step)
    rate_at = _rate_at(start, end, steps, growth)
    smoothing, divergence = number("smoothing", smoothing), number("divergence", divergence)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing}: must be in [0, 1)")
    if divergence <= 0:
        raise ValueError(f"divergence={divergence}: must be above 0")
    if clip_norm is not None and number("clip_norm", clip_norm) <= 0:
        raise ValueError(f"clip_norm={clip_norm}: must be above 0")
    whole("repeats", repeats, 1)
    whole("accumulate", accumulate, 1)
    _check_held_out(held_out, measure, maximize)
    if scaler is not None and isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("scaler: L-BFGS evaluates closures, which a scaler cannot scale")
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler: {type(scaler).__name__} is not a torch.amp.GradScaler")
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise TypeError(f"autocast={autocast!r}: must be a torch.dtype, such as torch.bfloat16")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast={autocast}: must be torch.bfloat16 or torch.float16")
    source = Batches(batches)
    test = _Test(
        parts=parts,
        source=source,
        ratios=_ratios(parts),
        held_out=held_out,
        measure=measure,
        accumulate=accumulate,
        clip_norm=clip_norm,
        autocast=autocast,
        divergence=divergence,
        maximize=maximize,
    )
    sweeps: list[Sweep] = []
    with (
        undisturbed(batches),
        undisturbed(held_out),
        preserved(model, optimizer, others=others) as begin_anew,
    ):
        try:
            for repeat in range(repeats):
                if repeat:
                    begin_anew()
                test.scaler = copy.deepcopy(scaler)
                sweep = test.sweep(rate_at, steps)
                # Where an iterator ends within a sweep, those before it are worth more.
                if sweep.lrs and not (test.exhausted and sweeps):
                    sweeps.append(sweep)
                if test.exhausted:
                    break
        finally:
            source.close()
    if not sweeps and not test.exhausted:
        raise ValueError("scaler: every update overflowed, whatever the scale")
    if not sweeps or (test.exhausted and len(sweeps[0].lrs) < 2 * FIRST):
        raise ValueError(
            f"batches: they ended after {source.taken}; a curve needs at least "
            f"{2 * FIRST * accumulate}"
        )
    return LRCurve(tuple(sweeps), growth, smoothing, maximize, source.taken)


@dataclass
class _Test:
    parts: Parts
    source: Batches
    ratios: list[float]
    held_out: Iterable[Any] | None
    measure: Step | None
    accumulate: int
    clip_norm: float | None
    autocast: torch.dtype | None
    divergence: float
    maximize: bool
    scaler: torch.amp.GradScaler | None = field(default=None, init=False)
    exhausted: bool = field(default=False, init=False)

    def sweep(self, rate_at: Callable[[int], float], steps: int) -> Sweep:
        self.parts.model.train()
        read_every = _read_every(device_of(self.parts.model))
        divergence = Divergence(self.divergence)
        losses: list[float] = []
        unread: list[Tensor] = []
        ended, skipped, over = None, 0, False
        for i in range(steps):
            rate = rate_at(i)
            loss, skips = self._update(rate)
            skipped += skips
            if loss is not None:
                unread.append(loss)
            elif self.exhausted:
                ended = f"the batches ended after {self.source.taken}"
            else:
                ended = f"at learning rate {rate:.2g} every update overflowed, whatever the scale"
            if ended or len(unread) == read_every or i + 1 == steps:
                for value in _read(unread):
                    losses.append(value)
                    if divergence.seen(-value if self.maximize else value):
                        over = True
                        break
                unread.clear()
            if over or ended:
                break
        if over:
            what = "diverged" if math.isfinite(losses[-1]) else f"became {losses[-1]}"
            ended = f"the loss {what} at learning rate {rate_at(len(losses) - 1):.2g}"
        return Sweep(tuple(map(rate_at, range(len(losses)))), tuple(losses), ended, skipped)

    def _update(self, rate: float) -> tuple[Tensor | None, int]:
        """The loss at one learning rate and how many updates were skipped before one was made; no
        loss if there were no batches or all were skipped.
        """
        optimizer = self.parts.optimizer
        for group, ratio in zip(optimizer.param_groups, self.ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * ratio)
            else:
                group["lr"] = rate * ratio
        for skipped in range(_SKIPPED_IN_A_ROW):
            batches = [self.source.take() for _ in range(self.accumulate)]
            if batches[-1] is None:
                self.exhausted = True
                return None, skipped
            optimizer.zero_grad()
            loss = self._backward(batches)
            if self._stepped(batches) or not math.isfinite(loss):
                return loss if self.held_out is None else self._held_out_loss(), skipped
        return None, _SKIPPED_IN_A_ROW

    def _backward(self, batches: list[Any]) -> Tensor:
        """The mean loss of the batches, having added its gradients."""
        total: Tensor | None = None
        for batch in batches:
            with self._autocast():
                loss = self.parts.loss(batch) / len(batches)
            if not loss.requires_grad:
                name = "loss_fn" if self.parts.step is None else "step"
                raise ValueError(
                    f"{name}: the loss depends on no parameter that requires a gradient"
                )
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _stepped(self, batches: list[Any]) -> bool:
        """Updates the parameters; whether the scaler let it."""
        optimizer, scaler = self.parts.optimizer, self.scaler
        if isinstance(optimizer, torch.optim.LBFGS):
            self._step_with_closure(batches)
            return True
        if isinstance(optimizer, SAM):
            with optimizer.perturbed():
                self._backward(batches)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if scaler is None:
            optimizer.step()
            return True
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale() >= scale

    def _step_with_closure(self, batches: list[Any]) -> None:
        optimizer = self.parts.optimizer

        def closure() -> Any:
            optimizer.zero_grad()
            return self._backward(batches)

        optimizer.step(closure)

    def _held_out_loss(self) -> Tensor:
        assert self.held_out is not None
        model = self.parts.model
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        values = []
        with torch.no_grad(), self._autocast():
            for batch in self.held_out:
                if self.measure is None:
                    values.append(self.parts.loss(batch).double())
                else:
                    values.append(_measured(self.measure(model, batch)))
        for module, mode in modes:
            module.training = mode
        if not values:
            raise ValueError("held_out: it has no batches")
        return torch.stack(values).mean()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device_of(self.parts.model).type, dtype=self.autocast)


def _measured(value: object) -> Tensor:
    """What a measure returned, a scalar."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().to(torch.float64).reshape(())
    if isinstance(value, Real):
        return torch.tensor(float(value), dtype=torch.float64)
    what = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    raise TypeError(f"measure: it returned a {type(value).__name__}{what}, not one number")


def _read_every(device: torch.device) -> int:
    """Steps between two looks at the losses: on a GPU each look waits until it has caught up."""
    return 1 if device.type == "cpu" else 10


def _read(losses: list[Tensor]) -> list[float]:
    values: list[float] = torch.stack(losses).tolist() if losses else []
    return values


def _rate_at(start: float, end: float, steps: int, growth: str) -> Callable[[int], float]:
    """The learning rate of each step; no list, as a sweep may end long before its last step."""
    if growth not in get_args(Growth):
        raise ValueError(f"growth={growth!r}: must be 'exponential' or 'linear'")
    start, end = number("start", start), number("end", end)
    if start <= 0:
        raise ValueError(f"start={start}: must be above 0")
    if end <= start:
        raise ValueError(f"end={end}: must be above start={start}")
    if not math.isfinite(end / start):
        raise ValueError(f"end={end}: is too far above start={start} for a float")
    whole("steps", steps, 2 * FIRST)
    if growth == "linear":
        return lambda i: start + i / (steps - 1) * (end - start)
    return lambda i: start * (end / start) ** (i / (steps - 1))


def _ratios(parts: Parts) -> list[float]:
    """Of each group's learning rate to the first one's."""
    own = {id(parameter) for parameter in parts.model.parameters()}
    trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
    if not any(id(parameter) in own for parameter in trained):
        raise ValueError("optimizer: none of its parameters belongs to the model")
    if not any(parameter.requires_grad for parameter in trained):
        raise ValueError("optimizer: none of its parameters requires a gradient")
    rates = []
    for i, group in enumerate(parts.optimizer.param_groups):
        if not isinstance(group.get("lr"), float | int | Tensor):
            raise ValueError(f"optimizer: parameter group {i} has no learning rate `lr`")
        rates.append(float(group["lr"]))
    if len(set(rates)) == 1:
        return [1.0] * len(rates)
    if not (0 < rates[0] < math.inf):
        raise ValueError(
            f"optimizer: the first parameter group has lr={rates[0]}; the other groups keep their "
            "ratio to it, so it must be above 0"
        )
    return [rate / rates[0] for rate in rates]


def _check_held_out(held_out: object, measure: object, maximize: bool) -> None:
    if held_out is None:
        if measure is not None:
            raise ValueError("measure: it is measured on held_out batches, and there are none")
        if maximize:
            raise ValueError("maximize: a training loss is minimized; give a measure")
        return
    if not isinstance(held_out, Iterable) or isinstance(
        held_out, Iterator | str | bytes | Tensor | Mapping
    ):
        raise TypeError(f"held_out: {type(held_out).__name__} cannot be iterated again and again")
    if measure is not None and not callable(measure):
        raise TypeError(f"measure: {type(measure).__name__} cannot be called")
    if maximize and measure is None:
        raise ValueError("maximize: a loss is minimized; give a measure")
