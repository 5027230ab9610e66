"""Linear algebra on one thread: a sampler's matrices are small, and threads that wait for a busy
core cost seconds.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.lazy import uncollected

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """Within this block linear algebra runs on the calling thread alone.

    So a result does not depend on the number of cores, which rounds sums otherwise, and workers
    that share cores do not wait for each other's threads: with four threads on four busy cores a
    fit of 0.1 s was seen to take 13 s.
    """
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    load_libraries()
    return ThreadpoolController()  # of the libraries that are loaded when it is made


class Library:
    """A module that is loaded when it is first used: SciPy's take as long as Optuna, and to check a
    study needs none of them.

    Not to be used first beside a thread that starts processes, see `without_threads`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        with uncollected(), without_threads():
            found = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, found)  # found at once from now on
        return found


def load_libraries() -> None:
    """Loads what every suggestion of a sampler that learns needs."""
    with uncollected(), without_threads():
        for name in ("scipy.linalg", "scipy.special"):  # with an OpenBLAS beside NumPy's
            importlib.import_module(name)


@contextmanager
def without_threads() -> Iterator[None]:
    """Libraries for linear algebra loaded here start no threads, unless the user's environment says
    otherwise.

    Starting them takes half a second of processor time, and they are not used (see `one_thread`).
    Processes that this one starts later are not affected.
    """
    added = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} - os.environ.keys()
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
