"""Removes the passwords of URLs from whatever is shown or stored."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(://[^:/?#\s]*):\S*@|(password=)[^&\s'\"]*")


def mask(text: str) -> str:
    """Returns `text` with the password of every URL in it replaced."""
    return _PASSWORD.sub(
        lambda match: f"{match[1]}:***@" if match[1] is not None else f"{match[2]}***", text
    )
