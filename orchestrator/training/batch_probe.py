"""The probe that asks whether a cell's batch fits on the device, and how large one could be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor

from orchestrator.training.arguments import number, whole
from orchestrator.training.batch_size import Try, classes_rule, try_batch_size
from orchestrator.training.build import built
from orchestrator.training.memory import MemoryModel, available_bytes
from orchestrator.training.memory_errors import is_memory_error, text_of
from orchestrator.training.parts import Parts, device_of
from orchestrator.training.state import preserved

_SIZES: Final = 4  # the batch and its halves: two lie on a line by themselves, four can show a bend
_TIMED_STEPS: Final = 3


def batch_fits(
    cfg: Any,
    trial: Any,
    *,
    build: str | Callable[[Any, Any], object],
    axis: str,
    limit_gb: float | None = None,
    n_classes: int | None = None,
    margin: float = 0.1,
) -> dict[str, Any]:
    """Rules a cell out whose batch does not fit in memory, and foretells the largest that does.

    It runs two whole training steps with the first batch, cut down to an eighth, a quarter, a half
    and all of its samples, and fits a `MemoryModel` to their peaks. 11 steps at most.

    Args:
        cfg: the cell's configuration.
        trial: the trial that `build` gets.
        build: the function that returns the parts of the training, or its dotted name.
        axis: the path of the batch size in `cfg`, such as ``data.batch_size``.
        limit_gb: the memory to keep within, in GB of 10⁹ bytes; default what the device has for
            this process. Give it where several slots share a GPU, for then that is an accident.
        n_classes: the number of classes; fewer than two samples of each in a batch are warned of.
        margin: the fraction of the limit to leave free.

    Returns:
        ``infeasible``: why the batch does not fit, only if so. ``largest``: the axis's path with
        the largest batch that fits, measured or foretold, only if memory grew with the batch.
        ``facts``: ``limit_bytes``, ``peak_bytes`` by batch size, ``floor_bytes``, ``fixed_bytes``,
        ``per_sample_bytes`` and ``misfit`` of the model, ``samples_per_s``, ``warning`` about
        classes, ``steps`` and ``seconds`` that the probe took.

    Raises:
        TypeError: an argument has the wrong type, or `build` returned no parts.
        ValueError: an argument is out of its range, `cfg` has no such path, or there is no batch.
        Exception: whatever `build` or a step raises that is no matter of memory.
    """
    began = time.perf_counter()
    batch_size = whole(axis, _at(cfg, axis), 1)
    if limit_gb is not None and not number("limit_gb", limit_gb) > 0:
        raise ValueError(f"limit_gb={limit_gb!r}: must be above 0")
    if not 0 <= number("margin", margin) < 1:
        raise ValueError(f"margin={margin!r}: must be from 0 to below 1")
    facts: dict[str, Any] = {"batch_size": batch_size, "steps": 0}
    if n_classes is not None:
        rule = classes_rule(batch_size, n_classes)
        facts["samples_per_class"] = rule.samples_per_class
        if rule.warning is not None:
            facts["warning"] = rule.warning
    finding: dict[str, Any] = {"facts": facts}
    try:
        parts = built(build, cfg, trial)
    except Exception as error:
        if not is_memory_error(error):
            raise
        finding["infeasible"] = f"memory ran out before the first step: {text_of(error)}"
    else:
        finding |= _measured(parts, axis, batch_size, limit_gb, margin, facts)
    facts["seconds"] = round(time.perf_counter() - began, 3)
    return finding


def _measured(
    parts: Parts,
    axis: str,
    batch_size: int,
    limit_gb: float | None,
    margin: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """What running the batch and its parts shows; adds to `facts`."""
    device = device_of(parts.model)
    available = available_bytes(device) if limit_gb is None else int(limit_gb * 1e9)
    limit = None if available is None else int(available * (1 - margin))
    batch = next(iter(parts.batches), None)
    if batch is None:
        raise ValueError("batches: there is none")
    samples = _samples(batch)

    def step(size: int) -> None:
        facts["steps"] += 1
        _step(parts, batch if samples is None else _cut(batch, samples, size))

    def preserving() -> AbstractContextManager[object]:
        held = None if device.type == "cpu" else "cpu"
        return preserved(parts.model, parts.optimizer, device=held)

    tries: list[Try] = []
    for halvings in range(_SIZES - 1, -1, -1):
        size = batch_size >> halvings
        if size == 0 or (samples is None and halvings):  # what cannot be cut runs whole
            continue
        one = try_batch_size(
            step,
            size,
            device=device,
            available=available,
            limit=limit,
            preserving=preserving,
            smaller_ran=any(earlier.fits for earlier in tries),
        )
        tries.append(one)
        if not one.fits and not one.too_small:
            break
    peaks = {one.batch_size: one.peak_bytes for one in tries if one.peak_bytes}
    facts |= {
        "device": device.type,
        "limit_bytes": limit,
        "peak_bytes": {str(size): peak for size, peak in peaks.items()},
    }
    largest = None
    if len(peaks) > 1:
        model = MemoryModel.fit(peaks)
        facts |= {
            "floor_bytes": round(model.floor),
            "fixed_bytes": round(model.fixed),
            "per_sample_bytes": round(model.per_sample),
            "misfit": model.misfit,
        }
        # In doubt larger: a trial that runs out of memory says so, a cell that is closed wrongly
        # says nothing.
        largest = None if limit is None else model.largest(limit * (1 + model.misfit))
    if tries[-1].fits:
        with preserving():
            facts["samples_per_s"] = _samples_per_s(step, batch_size, device)
        return {} if largest is None else {"largest": {axis: max(largest, batch_size)}}
    return _does_not_fit(axis, batch_size, tries, largest)


def _does_not_fit(
    axis: str, batch_size: int, tries: list[Try], largest: int | None
) -> dict[str, Any]:
    last = tries[-1]
    if last.too_small:
        return {"infeasible": f"{axis}={batch_size}: {last.why_not}"}
    smaller = "" if last.batch_size == batch_size else f"not even {last.batch_size} does: "
    reason = f"{axis}={batch_size} does not fit: {smaller}{last.why_not}"
    fitting = [one.batch_size for one in tries if one.fits]
    if not fitting or largest is None:
        return {"infeasible": reason}
    about = max(min(largest, last.batch_size - 1), *fitting)
    return {
        "infeasible": f"{reason}; the largest that does is about {about}",
        "largest": {axis: about},
    }


def _at(cfg: Any, path: str) -> Any:
    if not isinstance(path, str) or not path:
        raise TypeError(f"axis={path!r}: must be the path of the batch size, data.batch_size")
    node = cfg
    for part in path.split("."):
        if not hasattr(node, "keys") or part not in node:
            raise ValueError(f"axis={path!r}: the configuration has no {part!r} there")
        node = node[part]
    return node


def _step(parts: Parts, batch: Any) -> None:
    """One training step, also of an optimizer that needs the loss more than once (SAM, L-BFGS)."""

    def closure() -> Any:
        parts.optimizer.zero_grad()
        loss = parts.loss(batch)
        loss.backward()
        return loss

    parts.optimizer.step(closure)


def _samples_per_s(step: Callable[[int], None], size: int, device: torch.device) -> float:
    step(size)
    began = time.perf_counter()
    for _ in range(_TIMED_STEPS - 1):
        step(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return round(size * (_TIMED_STEPS - 1) / max(time.perf_counter() - began, 1e-9), 1)


def _samples(batch: Any) -> int | None:
    """The first dimension of the batch's first tensor, None without one."""
    return next(
        (len(tensor) for tensor in _tensors(batch) if tensor.ndim > 0 and len(tensor)), None
    )


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _tensors(value)


def _cut(batch: Any, samples: int, size: int) -> Any:
    """The batch with `size` of its samples, which are repeated where there are not that many."""
    if isinstance(batch, Tensor):
        if batch.ndim == 0 or len(batch) != samples:
            return batch
        if size <= samples:
            return batch[:size]
        return batch[torch.arange(size, device=batch.device) % samples]
    if isinstance(batch, Mapping):
        return {name: _cut(value, samples, size) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, samples, size) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_cut(value, samples, size) for value in batch)
    return batch
