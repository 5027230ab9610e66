"""Sharpness-aware minimization (SAM) and its adaptive variant (ASAM), over any torch optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any, Final, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_RHO: Final = {False: 0.05, True: 0.5}
_ETA: Final = 0.01
_TINY: Final = 1e-12  # of a norm that is divided by; a gradient of 0 perturbs nothing
_OPTIONS: Final = ("rho", "adaptive", "eta")


class SAM(Optimizer):
    """Steps `base` by the gradient at the worst point nearby, and always from the exact weights.

    One step takes two forward and backward passes: at the weights w, and at w + e, where e leads
    uphill. The base optimizer then steps from w with the second gradient. **A step thus costs two
    steps of any other optimizer: compare by passes or by time, not by epochs.** The second pass
    changes no buffer of `model`, so that batch-norm statistics are those of the weights, and
    nothing that ends a pass early (an exception, an overflow) leaves the weights at w + e. Memory:
    one copy of the weights and of the model's buffers during the second pass.

    With a closure, as `torch.optim.LBFGS` takes it, which is called twice::

        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)

        def closure():
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    Or pass by pass, for a `GradScaler`, for clipping, and for gradient accumulation (each pass goes
    over all the micro-batches of the step)::

        scaler.scale(loss_fn(model(inputs), targets)).backward()
        with optimizer.perturbed():  # begins with empty gradients
            scaler.scale(loss_fn(model(inputs), targets)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    The first gradient gives a direction alone, so it is neither unscaled nor clipped. If it is not
    finite, the weights are not perturbed and the second gradient is made NaN: a scaler skips the
    step and lowers its scale.

    SAM: e = rho · g / |g|. ASAM: e = rho · T²g / |Tg| with T = |w| + eta element by element, so the
    perturbation follows the scale of the weights. `rho` is thus a length for SAM and relative to
    the weights for ASAM: their papers use 0.05 and 0.5 to 2, and what suits one is wrong by 10 for
    the other. The norms are taken over all parameter groups together.

    `rho`, `adaptive` and `eta` are options of the parameter groups, beside the base optimizer's:
    a group may have its own. `state_dict` is the base optimizer's, with these options, so a resumed
    run goes on bit for bit, and a run of the base optimizer alone can go on with SAM. Hooks on
    `state_dict` belong on `base`. Learning rate schedulers take the SAM optimizer.

    In distributed training each process perturbs by the gradient it has. With
    `DistributedDataParallel` that is the average of all, so that the perturbation is that of the
    whole batch. For SAM's m-sharpness (each process its own perturbation, as in the paper) run the
    first forward and backward pass, and only these, within the module's ``no_sync()``, and without
    a scaler: one process alone would skip a step. Sharded parameters (FSDP) are not supported.

    Sources: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
    Improving Generalization", ICLR 2021; Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware
    Minimization for Scale-Invariant Learning of Deep Neural Networks", ICML 2021.

    Args:
        base: The optimizer that steps. Its parameter groups and state are shared, not copied.
        model: The model whose buffers only the first pass may change. None if it has none.
        rho: The size of the perturbation, above 0; default 0.05, with `adaptive` 0.5.
        adaptive: Whether to use ASAM.
        eta: Added to |w| by ASAM, so that weights near 0 are perturbed too; default 0.01.

    Raises:
        TypeError: `base` is not an optimizer, or one that evaluates closures itself (`LBFGS`,
            `SAM`), or `model` is not a module.
        ValueError: `rho` or `eta` is out of range, here or in a group, or `model` has none of the
            parameters of `base`.

    Attributes:
        base: The optimizer that steps.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module | None,
        *,
        rho: float | None = None,
        adaptive: bool = False,
        eta: float = _ETA,
    ) -> None:
        _check(base, model)
        options = {
            "rho": _RHO[bool(adaptive)] if rho is None else rho,
            "adaptive": adaptive,
            "eta": eta,
        }
        _check_options(options, "")
        for i, group in enumerate(base.param_groups):
            _check_options({**options, **group}, f" of parameter group {i}")
        self.base = base
        self._model = model
        self._perturbed = False
        self._ready = False
        state = base.state
        # Schedulers look for momentum among the defaults.
        super().__init__(base.param_groups, {**base.defaults, **options})
        base.state = state  # the constructor has emptied it

    # Properties, because `load_state_dict` gives the base optimizer new ones.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        options = {name: self.defaults[name] for name in _OPTIONS}
        return partial(SAM, **options), (self.base, self._model)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Within it the weights are at w + e, given by the gradients there are; after it they are
        bit for bit at w again, also after an exception, and buffers as before it.

        It begins with empty gradients, for the second pass. Those of the first pass may be sums
        over micro-batches, and scaled by a `GradScaler`.

        Raises:
            RuntimeError: there is no gradient (no backward pass, before or within it), it is
                sparse, or the weights are perturbed already.
        """
        if self._perturbed:
            raise RuntimeError("SAM: the weights are perturbed already; leave perturbed() first")
        moved = self._with_gradient()
        if not moved:
            raise RuntimeError(
                "SAM: no parameter has a gradient; call backward() before perturbed()"
            )
        self._ready = False
        with torch.no_grad():
            length = _length(moved)
            weights = [p.detach().clone() for _, p in moved]
            buffers = [] if self._model is None else _kept(self._model)
        self._perturbed = True
        try:
            with torch.no_grad():
                for group, p in moved:
                    _climb(group, p, length)
            self.zero_grad()
            yield
        finally:
            with torch.no_grad():
                for (_, p), weight in zip(moved, weights, strict=True):
                    p.copy_(weight)
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    setattr(module, name, buffer)  # some modules assign a new one
            self._perturbed = False
        self._pass_on_overflow(length)
        self._ready = True

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Steps the base optimizer, from the unperturbed weights, by the second gradient.

        Args:
            closure: Computes the loss and its gradients, and returns the loss. It is called twice,
                each time with empty gradients: what was accumulated before is not used. A closure
                that clips by norm clips the second gradient, and leaves the first one's direction.
                None: the step follows `perturbed`.

        Returns:
            The closure's loss at the unperturbed weights; None without a closure.

        Raises:
            RuntimeError: there is neither a closure nor a second gradient from `perturbed`, so that
                this would be a plain step; or the closure computes no gradient.
        """
        if self._perturbed:
            raise RuntimeError(
                "SAM: step() within perturbed() would step from w + e; leave it first"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                self.zero_grad()
                loss = closure()
                with self.perturbed():
                    closure()
        if not self._ready:
            raise RuntimeError(
                "SAM: step() needs a second gradient: give it a closure, or do the second pass "
                "within perturbed()"
            )
        self._ready = False
        self.base.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Empties the gradients, as any optimizer does."""
        self._ready = False
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer, with SAM's options where it has none of its own.

        Raises:
            ValueError: an option is out of range, or a parameter is in a group already.
        """
        options = {name: self.defaults[name] for name in _OPTIONS}
        _check_options({**options, **param_group}, " of the parameter group")
        self.base.add_param_group(param_group)
        for name, value in options.items():
            self.param_groups[-1].setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, with SAM's options in its groups."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, here or of the base optimizer alone.

        Raises:
            RuntimeError: the weights are perturbed.
            ValueError: the groups do not match.
        """
        if self._perturbed:
            raise RuntimeError("SAM: load_state_dict() within perturbed(); leave it first")
        self._ready = False
        self.base.load_state_dict(state_dict)
        for group in self.param_groups:
            for name in _OPTIONS:
                group.setdefault(name, self.defaults[name])

    def _with_gradient(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]

    def _pass_on_overflow(self, length: Tensor) -> None:
        """Makes the second gradients NaN if the first were not finite, without waiting for the
        device to know.
        """
        second = self._with_gradient()
        if not second:
            raise RuntimeError(
                "SAM: no parameter has a gradient after perturbed(); call backward()"
            )
        nothing = torch.where(torch.isfinite(length), 0.0, math.nan)
        for _, p in second:
            assert p.grad is not None
            p.grad.add_(nothing.to(p.grad.device, p.grad.dtype))


def _kept(model: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """Each buffer with its module and name, and a copy."""
    return [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]


def _length(moved: Sequence[tuple[Mapping[str, Any], Tensor]]) -> Tensor:
    """The norm of all gradients together, a scalar; of ASAM those of T g."""
    device = moved[0][1].device
    norms = []
    for group, p in moved:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise RuntimeError("SAM: a parameter has a sparse gradient; SAM needs dense ones")
        gradient = p.grad * _size(group, p) if group["adaptive"] else p.grad
        # Squares of 16-bit gradients would overflow.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        norms.append(torch.linalg.vector_norm(gradient, dtype=wide).to(device))
    length: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return length


def _climb(group: Mapping[str, Any], p: Tensor, length: Tensor) -> None:
    """Adds e to the parameter; nothing where the gradient is not finite."""
    assert p.grad is not None
    length = length.to(p.device)
    uphill = p.grad * (group["rho"] / (length + _TINY))
    if group["adaptive"]:
        uphill *= _size(group, p) ** 2
    p.add_(torch.where(torch.isfinite(length), uphill, 0.0).to(p.dtype))


def _size(group: Mapping[str, Any], p: Tensor) -> Tensor:
    size: Tensor = p.detach().abs() + group["eta"]
    return size


def _check(base: Optimizer, model: nn.Module | None) -> None:
    if not isinstance(base, Optimizer):
        raise TypeError(f"SAM: base must be a torch optimizer, not {type(base).__name__}")
    if isinstance(base, SAM | torch.optim.LBFGS):
        raise TypeError(
            f"SAM: base must step by the gradients it finds; {type(base).__name__} evaluates the "
            "closure itself"
        )
    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise TypeError(f"SAM: model must be a module or None, not {type(model).__name__}")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in base.param_groups for p in group["params"]):
        raise ValueError("SAM: model has none of the parameters that base optimizes")


def _check_options(options: Mapping[str, Any], where: str) -> None:
    rho, adaptive, eta = (options[name] for name in _OPTIONS)
    if not isinstance(adaptive, bool):
        raise TypeError(f"SAM: adaptive{where} must be True or False, got {adaptive!r}")
    for name, value in (("rho", rho), ("eta", eta)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"SAM: {name}{where} must be a number, got {value!r}")
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"SAM: rho{where} must be above 0 and finite, got {rho}")
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"SAM: eta{where} must be at least 0 and finite, got {eta}")
