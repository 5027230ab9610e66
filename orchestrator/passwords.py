"""Removes the passwords of URLs from whatever is shown or stored."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands for a secret where one is shown."""
_KEPT: set[str] = set()
_PASSWORD = re.compile(r"(://[^:/?#\s]*):\S*@|(password=)[^&\s'\"]*")


def mask(text: str) -> str:
    """Returns `text` with the password of every URL in it replaced."""
    return _PASSWORD.sub(
        lambda match: f"{match[1]}:{HIDDEN}@" if match[1] is not None else f"{match[2]}{HIDDEN}",
        text,
    )


def keep(secret: str) -> None:
    """Keeps a secret of this host from processes with user code in them, whatever the environment
    variable that holds it.
    """
    _KEPT.add(secret)


def is_kept(value: str) -> bool:
    """Whether the value of an environment variable is one that user code must not see."""
    return value in _KEPT
