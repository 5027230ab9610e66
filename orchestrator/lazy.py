"""Names of a package that are loaded when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any


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
        with within():
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return load
