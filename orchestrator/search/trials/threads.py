"""Linear algebra on one thread: a sampler's matrices are small, and threads that wait for a busy
core cost seconds.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

import scipy.linalg  # noqa: F401 - it brings an OpenBLAS of its own, beside NumPy's
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
    return ThreadpoolController()  # of the libraries that are loaded when it is made
