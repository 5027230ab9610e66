"""How much memory an attempt took at its peak, in bytes, on the host and on its device."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Any, Final

_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere


def peak_device_bytes() -> int | None:
    """The most that torch held allocated on this process's GPUs at once; None where it never initialised CUDA.

    It initialises nothing itself, imports nothing and raises nothing, whatever state CUDA is in.
    """
    modules: Mapping[str, Any] = sys.modules
    cuda = getattr(modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return None
        return sum(int(cuda.max_memory_allocated(index)) for index in range(cuda.device_count()))
    except Exception:  # noqa: BLE001 - after a failed kernel every question to CUDA fails
        return None


def peak_host_bytes(usage: resource.struct_rusage) -> int:
    """The largest resident size that the reaped process, or any descendant that was reaped below it, had at once."""
    return usage.ru_maxrss * _MAXRSS_UNIT
