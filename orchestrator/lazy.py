"""Names of a package that are loaded when they are first used (PEP 562), and imports at their
speed.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


@contextmanager
def uncollected() -> Iterator[None]:
    """For slow imports: within this block no garbage is collected.

    Imports create none, and to look for it again and again among all that they create takes a
    fifth of their time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def names_of(
    package: str,
    home: Mapping[str, Iterable[str]],
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        home: the package's modules, and which names come from each.
        within: the block in which a module is imported.
    """
    module_of = {name: module for module, names in home.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with uncollected(), within():
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return load
