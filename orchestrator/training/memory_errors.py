"""Which errors mean that memory ran out, however torch, a CUDA library or the host says it.

Whoever runs trials recognises these too, in a process that must not import torch, which this
package does. So there are two tables; the tests of both read one list of messages.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

import torch

_OUT_OF_MEMORY: Final = re.compile(
    r"\b(CUDA|HIP|XPU) out of memory|\b(CUDA|HIP) error: out of memory|\bMPS backend out of memory"
    r"|(CU|HIP)(BLAS|DNN|SPARSE|SOLVER|FFT)_(STATUS_)?ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY"
    r"|(cuda|hip)Error(MemoryAllocation|OutOfMemory)|UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|DataLoader worker \(pid(\(s\))? [\d, ]+\) is killed by signal: Killed"
)
# Libraries say these also about shapes, layouts and devices that they do not support.
_PERHAPS: Final = re.compile(
    r"CUDNN_STATUS_NOT_SUPPORTED|CUDNN_STATUS_EXECUTION_FAILED|CUBLAS_STATUS_NOT_INITIALIZED"
    r"|CUDNN_STATUS_NOT_INITIALIZED|unable to find an engine to execute this computation"
    r"|Unable to find a valid cuDNN algorithm|CUDA error: invalid configuration argument"
)
_MAX_CAUSES: Final = 20


def is_memory_error(error: BaseException, *, smaller_ran: bool = False) -> bool:
    """Whether memory of the device or the host ran out, or that caused `error`.

    The exception that it was raised ``from`` counts, and so do the members of a group. One that was
    only being handled does not: code that catches it and retries with less may fail for another
    reason.

    Args:
        smaller_ran: the same code ran with a smaller batch. Then errors count too that cuDNN,
            cuBLAS and CUDA raise both where memory is short and where something is not supported,
            such as CUDNN_STATUS_NOT_SUPPORTED: what has run at one batch size is supported.

    Raises:
        TypeError: `error` is no exception.
    """
    if not isinstance(error, BaseException):
        raise TypeError(f"error={error!r}: must be an exception")
    return any(_is_one(one, smaller_ran) for one in _with_causes(error))


def _is_one(error: BaseException, smaller_ran: bool) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = text_of(error)
    return bool(_OUT_OF_MEMORY.search(text) or (smaller_ran and _PERHAPS.search(text)))


def text_of(error: BaseException) -> str:
    """What an error says, in one line; its class if that is nothing."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a user's __str__ may do anything
        text = ""
    return text or type(error).__name__


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
