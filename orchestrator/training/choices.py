"""Things that are chosen by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

_T = TypeVar("_T")


def look_up(argument: str, name: object, choices: Mapping[str, _T]) -> _T:
    """Returns the choice of that name.

    Args:
        argument: What the user calls it, for the error.
        name: The name to look up.
        choices: All choices by their names.

    Raises:
        TypeError: `name` is not a string.
        ValueError: There is no such choice; the message names all, and the closest.
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument}={name!r}: must be one of {', '.join(choices)}")
    if name not in choices:
        close = difflib.get_close_matches(name, choices, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{argument}={name!r}: must be one of {', '.join(choices)}{hint}")
    return choices[name]
