"""Batches without an end, from a source that is left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader


class Batches:
    """Takes batches one by one and begins anew when they end, if they can be had anew.

    An iterator cannot: when it ends, `take` gives None. It is asked for no batch that is not used.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Iterator[Any] | None = None
        self.taken = 0

    def take(self) -> Any | None:
        """The next batch; None when there is none."""
        begun = self._iterator is None
        if self._iterator is None:
            self._iterator = iter(self._source)
        batch = next(self._iterator, None)
        if batch is None and not begun and self._iterator is not self._source:
            self._iterator = iter(self._source)
            batch = next(self._iterator, None)
        if batch is not None:
            self.taken += 1
        return batch

    def close(self) -> None:
        """Lets go of the source, so that a loader's worker processes end."""
        self._iterator = None


@contextmanager
def undisturbed(source: object) -> Iterator[None]:
    """Leaves a `DataLoader` with the same random generators and with the workers that it had.

    Its order of batches after the block is that of before, also with a generator of its own. Other
    sources are left alone: a list does not change, and an iterator cannot be wound back.
    """
    if not isinstance(source, DataLoader):
        yield
        return
    samplers = [
        source.sampler,
        source.batch_sampler,
        getattr(source.batch_sampler, "sampler", None),
    ]
    found = [getattr(holder, "generator", None) for holder in [source, *samplers]]
    generators = [one for one in found if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in generators]
    # Workers that persist belong to an epoch that may be under way: the block gets its own.
    workers, source._iterator = source._iterator, None
    try:
        yield
    finally:
        source._iterator = workers
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
