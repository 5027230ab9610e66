"""Removes the passwords of URLs from whatever is shown or stored."""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands for a secret where one is shown."""
_PASSWORD = re.compile(r"(://[^:/?#\s]*):\S*@|(password=)[^&\s'\"]*")


def mask(text: str) -> str:
    """Returns `text` with the password of every URL in it replaced."""
    return _PASSWORD.sub(
        lambda match: f"{match[1]}:{HIDDEN}@" if match[1] is not None else f"{match[2]}{HIDDEN}",
        text,
    )
