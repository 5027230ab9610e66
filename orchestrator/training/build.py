"""From the name of a `build` function to the parts of a training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from orchestrator.training.parts import Parts


def built(build: str | Callable[[Any, Any], object], cfg: Any, trial: Any) -> Parts:
    """The parts that ``build(cfg, trial)`` returns, checked.

    Args:
        build: the function, or its name as YAML has it: ``package.module.function``.
        cfg: the configuration that an objective gets.
        trial: the trial that an objective gets.

    Raises:
        TypeError: `build` is neither, or what it returned is no parts (`Parts.of`).
        ValueError: there is no function of that name, or the optimizer has no parameters.
        Exception: whatever the function raises.
    """
    return Parts.of(_function(build)(cfg, trial))


def _function(build: str | Callable[[Any, Any], object]) -> Callable[[Any, Any], object]:
    if callable(build):
        return build
    if not isinstance(build, str):
        raise TypeError(f"build={build!r}: must be a function or its dotted name")
    module, _, name = build.rpartition(".")
    if not module:
        raise ValueError(
            f"build={build!r}: must be the dotted name of a function, my_project.build"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        # An import that fails within the user's module is for them to see as it is.
        if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"build={build!r}: there is no such function ({error})") from error
    if not callable(found):
        raise TypeError(f"build={build!r}: {type(found).__name__} cannot be called")
    function: Callable[[Any, Any], object] = found
    return function
