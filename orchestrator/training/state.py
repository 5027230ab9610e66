"""A block of code that leaves model, optimizer and random numbers as it found them."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from orchestrator.training.parts import device_named

_Restore = Callable[[], Any]
"""Gives back an object, the same one, as it was."""


@runtime_checkable
class Stateful(Protocol):
    """What can tell its state and take it back: a schedule, a gradient scaler, a sampler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@contextmanager
def preserved(
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    others: Iterable[Stateful] = (),
    device: torch.device | str | None = None,
) -> Iterator[Callable[[], None]]:
    """Leaves everything bit for bit as it was before the block, also when the block raises.

    That is:

    - parameters and buffers of the model and parameters of the optimizer: the same tensor objects
      on the same storage, with their values, ``requires_grad`` and ``grad``;
    - which parameters, buffers and submodules each module has, its mode (``train``, ``eval``) and
      its ``get_extra_state``;
    - the optimizer's state, groups and options, also those of an optimizer that it wraps;
    - the ``state_dict`` of each of `others`;
    - the random numbers of Python, NumPy's global generator, torch's CPU generator, and those of
      all CUDA devices if CUDA is initialised when the block is entered.

    Not restored: other attributes that a module sets on itself, hooks, and what the batches were
    read from. Within the block gradients start as ``None``; those of before are set aside, neither
    copied nor touched. Nothing is written to disk.

    Yields a function that puts all but the random numbers back within the block, with gradients of
    ``None``, so that it can begin anew without another copy.

    Extra memory: one copy of the parameters, the buffers and the optimizer's state.

    Args:
        others: schedules, gradient scalers, samplers: whatever has ``state_dict`` and
            ``load_state_dict``.
        device: where the copies are held; by default beside what they are copies of. ``"cpu"``
            spares a GPU's memory.

    Raises:
        TypeError: `model`, `optimizer` or one of `others` is not what it should be.
        ValueError: a parameter or buffer of a lazy module has no shape yet, or one on the meta
            device has no values; or there is no such device.
    """
    others = check_restorable(model, optimizer, others)
    tensors = _Tensors(None if device is None else device_named(device))
    with ExitStack() as stack:  # undone last to first, each also when another one fails
        for restore in _random_numbers():
            stack.callback(restore)
        stack.callback(tensors.give_gradients_back)  # when their parameters fit them again
        states: list[_Restore] = []
        if model is not None:
            states += [_module(module, tensors) for module in model.modules()]
        if optimizer is not None:
            states += [_optimizer(one, tensors) for one in _with_wrapped(optimizer)]
        # Loading a schedule may set learning rates, so the optimizer comes back after it.
        states += [_other(other) for other in others]
        for restore in states:
            stack.callback(restore)
        tensors.set_gradients_aside()

        def begin_anew() -> None:
            for restore in reversed(states):
                restore()
            tensors.drop_gradients()

        yield begin_anew


def check_restorable(
    model: object, optimizer: object = None, others: object = ()
) -> tuple[Stateful, ...]:
    """Returns `others`, to be gone through more than once; raises as `preserved` does."""
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__} is not a torch.nn.Module")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: {type(optimizer).__name__} is not a torch.optim.Optimizer")
    if not isinstance(others, Iterable) or isinstance(others, str | bytes | Tensor):
        raise TypeError(f"others: {type(others).__name__} is not a list of objects to restore")
    found = tuple(others)
    for other in found:
        if not isinstance(other, Stateful):
            raise TypeError(
                f"others: {type(other).__name__} lacks state_dict and load_state_dict, "
                "so that it cannot be restored"
            )
    if isinstance(model, nn.Module):
        for kind, named in (
            ("parameter", model.named_parameters()),
            ("buffer", model.named_buffers()),
        ):
            for name, tensor in named:
                if is_lazy(tensor):
                    raise ValueError(
                        f"model: the {kind} {name} of a lazy module has no shape yet; "
                        "run one batch through the model first"
                    )
                if tensor.is_meta:
                    raise ValueError(
                        f"model: the {kind} {name} is on the meta device and has no values; move "
                        "the model with to_empty() and initialise it first"
                    )
    return found


class _Tensors:
    """Copies of tensors, each made once however often it is met."""

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._kept: dict[int, tuple[Tensor, _Restore]] = {}
        self._gradients: list[tuple[Tensor, Tensor | None]] = []

    def keep(self, tensor: Tensor) -> _Restore:
        if id(tensor) not in self._kept:
            self._kept[id(tensor)] = (tensor, self._copied(tensor))
        return self._kept[id(tensor)][1]

    def _copied(self, tensor: Tensor) -> _Restore:
        alias = tensor.detach()
        unrepeated = _unrepeated(alias)
        copied = unrepeated.to(self._device or unrepeated.device, copy=True)
        requires_grad = tensor.requires_grad

        @torch.no_grad()
        def restore() -> Tensor:
            unrepeated.copy_(copied)
            if not _in_place(tensor, alias):
                tensor.data = alias
            if tensor.is_leaf and tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            return tensor

        return restore

    def set_gradients_aside(self) -> None:
        leaves = [tensor for tensor, _ in self._kept.values() if tensor.is_leaf]
        self._gradients = [(leaf, leaf.grad) for leaf in leaves]
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for tensor, _ in self._gradients:
            tensor.grad = None

    def give_gradients_back(self) -> None:
        for tensor, gradient in self._gradients:
            tensor.grad = gradient


def _unrepeated(tensor: Tensor) -> Tensor:
    """A view of an expanded tensor that holds each stored element once: torch refuses to write to
    one that stands in several places.
    """
    if tensor.layout != torch.strided:
        return tensor
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _in_place(tensor: Tensor, alias: Tensor) -> bool:
    if (tensor.device, tensor.dtype, tensor.layout) != (alias.device, alias.dtype, alias.layout):
        return False
    return tensor.layout == torch.strided and tensor.is_set_to(alias)


def _module(module: nn.Module, tensors: _Tensors) -> _Restore:
    training = module.training
    contents = [tensors.keep(tensor) for tensor in module.parameters(recurse=False)]
    contents += [tensors.keep(tensor) for tensor in module.buffers(recurse=False)]
    # A scripted module's members are fixed, and shown as other objects each time.
    scripted = isinstance(module, torch.jit.ScriptModule)
    registers: list[dict[str, Any]] = (
        [] if scripted else [module._parameters, module._buffers, module._modules]
    )
    members = [(register, dict(register)) for register in registers]
    extra = (
        copy.deepcopy(module.get_extra_state())
        if type(module).get_extra_state is not nn.Module.get_extra_state
        else None
    )

    def restore() -> None:
        for register, before in members:
            if [*map(id, register.values())] != [*map(id, before.values())] or [*register] != [
                *before
            ]:
                register.clear()
                register.update(before)
        for content in contents:
            content()
        if extra is not None:
            module.set_extra_state(extra)
        module.training = training

    return restore


def _with_wrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer and those that it drives, as SAM does its base."""
    found: dict[int, Optimizer] = {}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += [value for value in vars(one).values() if isinstance(value, Optimizer)]
    yield from found.values()


def _optimizer(optimizer: Optimizer, tensors: _Tensors) -> _Restore:
    """In place rather than by ``load_state_dict``, which casts state to the parameter's type and
    replaces the groups that schedules and wrappers hold.
    """
    attributes = dict(vars(optimizer))
    values = [_value(value, tensors) for value in attributes.values()]

    def restore() -> None:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for value in values:
            value()

    return restore


def _value(value: Any, tensors: _Tensors) -> _Restore:
    if isinstance(value, Tensor):
        return tensors.keep(value)
    if isinstance(value, dict):
        items = [(key, _value(item, tensors)) for key, item in value.items()]

        def restore_dict() -> Any:
            value.clear()
            value.update((key, item()) for key, item in items)
            return value

        return restore_dict
    if isinstance(value, list | deque):
        members = [_value(item, tensors) for item in value]

        def restore_list() -> Any:
            value.clear()
            value.extend(item() for item in members)
            return value

        return restore_list
    if isinstance(value, tuple):
        for item in value:
            _value(item, tensors)
    return lambda: value


def _other(other: Stateful) -> _Restore:
    state = copy.deepcopy(other.state_dict())
    if not isinstance(other, torch.amp.GradScaler):
        return lambda: other.load_state_dict(state)
    # Its state_dict leaves out which optimizers it unscaled in the step that is under way, and a
    # step that ended by an exception must not make the next one fail.
    under_way = dict(other._per_optimizer_states)

    def restore() -> None:
        other.load_state_dict(state)
        other._per_optimizer_states.clear()
        other._per_optimizer_states.update(under_way)

    return restore


def _random_numbers() -> Iterator[_Restore]:
    yield partial(random.setstate, random.getstate())
    yield partial(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    numpy_random = sys.modules.get("numpy.random")  # what is not loaded yet has no state to keep
    if numpy_random is not None:
        yield partial(numpy_random.set_state, numpy_random.get_state())
