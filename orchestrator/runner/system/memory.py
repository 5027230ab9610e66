"""Memory of host and device: an attempt's peak use, and errors that mean it ran out."""

from __future__ import annotations

import errno
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

Memory = Literal["device", "host"]

# getrusage(2): bytes on macOS, kilobytes elsewhere
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024

_DEVICE_CLASSES = ("OutOfMemoryError", "ResourceExhaustedError")  # of torch and CuPy; of TensorFlow
_JAX_CLASSES = ("XlaRuntimeError", "JaxRuntimeError")
_DEVICE_WORDS = re.compile(
    r"\b(CUDA|HIP|XPU) out of memory|\b(CUDA|HIP) error: out of memory|\bMPS backend out of memory"
    r"|(CU|HIP)(BLAS|DNN|SPARSE|SOLVER|FFT)_(STATUS_)?ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY|(cuda|hip)Error(MemoryAllocation|OutOfMemory)"
    r"|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
)
_HOST_WORDS = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    # By the out-of-memory killer.
    r"|DataLoader worker \(pid(\(s\))? [\d, ]+\) is killed by signal: Killed"
)
_MAX_CAUSES = 20


def ran_out(error: BaseException) -> Memory | None:
    """Which memory ran out, the device's or the host's, if that caused `error`; None if it did not.

    The exception that it was raised ``from`` counts, and so do the members of a group. One that was
    only being handled does not: user code that catches it and retries with less may fail for
    another reason.
    """
    found = (memory for one in _with_causes(error) if (memory := _memory_of(one)) is not None)
    return next(found, None)


def peak_bytes(memory: Memory) -> int | None:
    """This process's peak use in bytes: its resident size, or torch's reserved device memory.

    None for the device if torch does not use CUDA.
    """
    if memory == "host":
        return peak_host_bytes(resource.getrusage(resource.RUSAGE_SELF))
    return max(_torch_statistic("max_memory_reserved"), default=None)


def peak_device_bytes() -> int | None:
    """torch's peak allocation, summed over this process's GPUs, in bytes.

    None if it never initialised CUDA.

    It imports and initialises nothing, and raises nothing, whatever state CUDA is in.
    """
    peaks = _torch_statistic("max_memory_allocated")
    return sum(peaks) if peaks else None


def peak_host_bytes(usage: resource.struct_rusage) -> int:
    """The largest peak resident size in bytes of a reaped process and its reaped descendants."""
    return usage.ru_maxrss * _MAXRSS_UNIT


def _torch_statistic(statistic: str) -> list[int]:
    """A statistic of ``torch.cuda`` for each GPU; empty if CUDA is not in use."""
    modules: Mapping[str, Any] = sys.modules
    cuda = getattr(modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        return [int(getattr(cuda, statistic)(index)) for index in range(cuda.device_count())]
    except Exception:  # noqa: BLE001 - after a failed kernel, every CUDA call fails
        return []


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    left, seen = [error], 0
    while left and seen < _MAX_CAUSES:
        one = left.pop()
        seen += 1
        yield one
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        if one.__cause__ is not None:
            left.append(one.__cause__)


def _memory_of(error: BaseException) -> Memory | None:
    """Which memory ran out, going by this exception alone."""
    names = {cls.__name__ for cls in type(error).__mro__}
    # Checked first, as CuPy's class derives from MemoryError.
    if not names.isdisjoint(_DEVICE_CLASSES):
        return "device"
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return "host"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        return None
    if _DEVICE_WORDS.search(text) or (
        not names.isdisjoint(_JAX_CLASSES) and "RESOURCE_EXHAUSTED" in text
    ):
        return "device"
    return "host" if _HOST_WORDS.search(text) else None
