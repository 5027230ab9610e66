"""What a fork of the keeper would not survive, and what it must not take along."""

from __future__ import annotations

import atexit
import importlib
import logging
import sys
import threading
import weakref
from typing import Any

from orchestrator.runner.system import linux


def reason_to_spawn() -> str | None:
    """Why this process, after importing the objective, must not be forked; None when it may be."""
    if uses_cuda():
        return "importing the objective initialises CUDA, which does not survive a fork"
    others = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    ]
    if others:
        return (
            f"importing the objective starts threads ({', '.join(others)}), which do not survive "
            "a fork"
        )
    if linux.native_threads() - 1 > _fork_safe_threads():
        # Seen with torch's OpenMP: one parallel operation at import, and the same operation hangs
        # for ever in the fork.
        return (
            "importing the objective starts native threads (a parallel torch operation?), which "
            "do not survive a fork"
        )
    return None


def uses_cuda() -> bool:
    """Whether this process has initialised CUDA, and so holds memory of a device."""
    torch: Any = sys.modules.get("torch")
    return (torch is not None and torch.cuda.is_initialized()) or linux.uses_cuda_memory()


def _fork_safe_threads() -> int:
    """Threads of OpenBLAS pools, which numpy and scipy start when imported: OpenBLAS restarts them
    after a fork by itself.
    """
    if "numpy" not in sys.modules:
        return 0
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return 0
    return sum(pool["num_threads"] - 1 for pool in pools if pool["internal_api"] == "openblas")


def forget_exit_functions() -> None:
    """Leaves to the keeper what its import wants done at exit: the first child would remove the
    temporary files of them all.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # so that the next one registers it again
    atexit._clear()
    # These two act for the process that runs them, and a child that spawned would have them.
    atexit.register(logging.shutdown)
    if "multiprocessing.util" in sys.modules:
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)
