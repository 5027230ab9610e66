"""Linear algebra on one thread: a sampler's matrices are small, and threads that wait for a busy core cost seconds."""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """Within this block the linear algebra loaded so far runs on the calling thread alone.

    So a result does not depend on the number of cores, which rounds sums otherwise, and workers that share cores do not wait
    for each other's threads: with four threads on four busy cores a fit of 0.1 s was seen to take 13 s.
    """
    limited: AbstractContextManager[object] = _controller("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller(_loaded: bool) -> ThreadpoolController:
    return ThreadpoolController()  # of the libraries that are loaded now; SciPy has one of its own
