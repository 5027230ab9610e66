"""A section that names a function and its keyword arguments: `objective`, or a probe. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model import value_label

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
# They mean something to `hydra.utils.instantiate`, and nothing here.
_INSTANTIATE_KEYS = ("_args_", "_partial_", "_recursive_", "_convert_")


def check_function(
    where: str, section: Mapping[Any, Any], *, missing: str, example: str, own: str = "_target_"
) -> str:
    """Returns ``_target_`` of a section whose other keys are passed to the function by name.

    Args:
        where: the section's path.
        missing: what must be given, where ``_target_`` is not.
        example: a dotted name of the kind.
        own: the keys that are not passed on, in words.

    Raises:
        ConfigError: ``_target_`` is missing or no dotted name; a key cannot be a keyword.
    """
    target = section.get("_target_")
    if target is None or target == "???":
        raise ConfigError(f"{where}._target_ must be given: {missing}")
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ConfigError(
            f"{where}._target_={value_label(target)}: must be a dotted name such as {example}"
        )
    for key in section:
        if key in _INSTANTIATE_KEYS or not isinstance(key, str) or not key.isidentifier():
            raise ConfigError(
                f"{where}.{key}: every key but {own} is passed to the function by name, and this "
                "is not a valid name"
            )
    return target
