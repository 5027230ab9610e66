"""Forking the keeper: what a fork would not survive, and what it must not inherit."""

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
    """Why this process, after importing the objective, must not be forked; None if it may be."""
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
        # Observed with torch's OpenMP: after one parallel operation at import, the same operation
        # hangs forever in the fork.
        return (
            "importing the objective starts native threads (a parallel torch operation?), which "
            "do not survive a fork"
        )
    return None


def uses_cuda() -> bool:
    """Whether this process has initialised CUDA, and so holds device memory."""
    torch: Any = sys.modules.get("torch")
    return (torch is not None and torch.cuda.is_initialized()) or linux.uses_cuda_memory()


def _fork_safe_threads() -> int:
    """The number of OpenBLAS threads, which numpy and scipy start at import.

    OpenBLAS restarts them after a fork.
    """
    if "numpy" not in sys.modules:
        return 0
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return 0
    return sum(pool["num_threads"] - 1 for pool in pools if pool["internal_api"] == "openblas")


def forget_exit_functions() -> None:
    """Removes the exit functions that the import registered: the keeper runs them.

    Otherwise the first child to exit would delete temporary files that all of them share.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # so that the next one registers it again
    atexit._clear()
    # These two concern only the process that runs them; a spawned child has them as well.
    atexit.register(logging.shutdown)
    if "multiprocessing.util" in sys.modules:
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)
