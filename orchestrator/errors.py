"""The errors a user can meet, each with one exit code. Third-party errors are translated to these
at the door of each room.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final


class OrchestratorError(Exception):
    """Anything this program reports in one line instead of a traceback."""

    exit_code = 1


class ConfigError(OrchestratorError):
    """A setting the user must change; the message names the field, the value and the rule."""

    exit_code = 2


class StoreUnavailableError(OrchestratorError):
    """The database cannot be reached or refused the work; trying again later may help."""

    exit_code = 3


class SchemaOutdatedError(OrchestratorError):
    """The database holds a schema this version does not know; the message names the
    command to run.
    """

    exit_code = 4


class LeaseLostError(OrchestratorError):
    """The lease shown is no longer the current one, so the write was refused and
    nothing changed.
    """

    exit_code = 5


class DeviceError(OrchestratorError):
    """No device could be claimed, or the one named does not exist."""

    exit_code = 6


class StudyFailedError(OrchestratorError):
    """The study ended without a single complete trial."""

    exit_code = 7


ELSEWHERE: Final = "set ORCHESTRATOR_DATA_DIR to a directory where you can write"
"""What to do where the default one, below the home directory, is of no use."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known word closest to `word`, or an empty string
    when none is close.
    """
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not close:  # 'optm.lr' and 'lr' alike should find 'optim.lr'
        close = [c for c in candidates if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:1]
    return f" (did you mean {close[0]!r}?)" if close else ""


def denied(path: str | Path) -> str | None:
    """Returns which directory or file on the way to `path` this process's user may not read, and
    why; None if it may.

    Python and Hydra pass over a directory that cannot be read as if nothing were in it: a bind
    mount of mode 0700, for one.
    """
    wanted = Path(path).absolute()
    for place in (*reversed(wanted.parents), wanted):
        try:
            status = place.stat()
        except OSError:
            return None
        enter = os.X_OK if stat.S_ISDIR(status.st_mode) else 0
        read = os.R_OK if place == wanted else 0
        if not os.access(place, enter | read, effective_ids=os.access in os.supports_effective_ids):
            mode = (
                f"its mode is {stat.S_IMODE(status.st_mode):04o} and its owner user {status.st_uid}"
            )
            return f"{place} cannot be read by user {os.geteuid()}: {mode}"
    return None
