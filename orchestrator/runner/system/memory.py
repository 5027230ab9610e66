"""Memory of host and device: how much an attempt took at its peak, and how libraries say that there
was too little.
"""

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
    r"|CU(BLAS|DNN|SPARSE|SOLVER|FFT)_(STATUS_)?ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY|(cuda|hip)Error(MemoryAllocation|OutOfMemory)"
    r"|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
)
_HOST_WORDS = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    # which the kernel does where memory runs out
    r"|DataLoader worker \(pid(\(s\))? [\d, ]+\) is killed by signal: Killed"
)
_MAX_CAUSES = 20


def ran_out(error: BaseException) -> Memory | None:
    """Whose memory ran out, the device's or the host's, where that made `error`; None where it did
    not.

    What an exception was raised ``from`` counts, and the members of a group; what was merely being
    handled does not: user code that catches the one and tries again with less may fail of something
    else.
    """
    return next((memory for one in _with_causes(error) if (memory := _says(one)) is not None), None)


def peak_bytes(memory: Memory) -> int | None:
    """The most that this process held: of device memory as torch's allocator reserved it, None
    without; else resident.
    """
    if memory == "host":
        return peak_host_bytes(resource.getrusage(resource.RUSAGE_SELF))
    return max(_told_by_torch("max_memory_reserved"), default=None)


def peak_device_bytes() -> int | None:
    """The most that torch held allocated on this process's GPUs at once; None where it never
    initialised CUDA.

    It initialises nothing itself, imports nothing and raises nothing, whatever state CUDA is in.
    """
    told = _told_by_torch("max_memory_allocated")
    return sum(told) if told else None


def peak_host_bytes(usage: resource.struct_rusage) -> int:
    """The largest resident size that the reaped process, or any descendant that was reaped below
    it, had at once.
    """
    return usage.ru_maxrss * _MAXRSS_UNIT


def _told_by_torch(statistic: str) -> list[int]:
    """That statistic of ``torch.cuda`` for each GPU; none where CUDA is not in use."""
    modules: Mapping[str, Any] = sys.modules
    cuda = getattr(modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        return [int(getattr(cuda, statistic)(index)) for index in range(cuda.device_count())]
    except Exception:  # noqa: BLE001 - after a failed kernel every question to CUDA fails
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


def _says(error: BaseException) -> Memory | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    if not names.isdisjoint(_DEVICE_CLASSES):  # before MemoryError, of which CuPy's is one
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
