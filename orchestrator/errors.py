"""The errors that users can see, each with its exit code.

Each package translates third-party errors to these.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final


class OrchestratorError(Exception):
    """Any error that this program reports in one line instead of a traceback."""

    exit_code = 1


class ConfigError(OrchestratorError):
    """A setting that the user must change; the message names the field, the value and the rule."""

    exit_code = 2


class DifferentStudyError(ConfigError):
    """A launch declares another study than the one of that name.

    `revision` is the study's, `changes` what would have to change in it, in words; `extendable`
    whether all of that can be changed.
    """

    def __init__(
        self, message: str, revision: int, changes: tuple[str, ...], *, extendable: bool
    ) -> None:
        super().__init__(message)
        self.revision = revision
        self.changes = changes
        self.extendable = extendable


class StoreUnavailableError(OrchestratorError):
    """The database cannot be reached or refused the work; trying again later may help."""

    exit_code = 3


class DeadlockError(StoreUnavailableError):
    """The database undid a transaction because it and others waited for each other; the same again
    will do.
    """


class SchemaOutdatedError(OrchestratorError):
    """The database holds a schema this version does not know.

    The message names the command to run.
    """

    exit_code = 4


class LeaseLostError(OrchestratorError):
    """The lease used is no longer current, so the write was refused and nothing changed."""

    exit_code = 5


class DeviceError(OrchestratorError):
    """No device could be claimed, or the named one does not exist."""

    exit_code = 6


class StudyFailedError(OrchestratorError):
    """The study ended without a single complete trial."""

    exit_code = 7


ELSEWHERE: Final = "set ORCHESTRATOR_DATA_DIR to a directory that you can write"
"""Advice for when the default data directory, below the home directory, cannot be used."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the closest of `words`; empty if none is close."""
    import difflib  # only where something is wrong

    candidates = list(words)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not close:  # both 'optm.lr' and 'lr' should find 'optim.lr'
        close = [c for c in candidates if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:1]
    return f" (did you mean {close[0]!r}?)" if close else ""


def denied(path: str | Path) -> str | None:
    """Returns which file or directory on the way to `path` this user may not read, and why.

    None if all can be read. Python and Hydra treat a directory that they cannot read (such as a
    bind mount with mode 0700) as an empty one, so their own errors are misleading.
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
                f"its mode is {stat.S_IMODE(status.st_mode):04o} and its owner is user "
                f"{status.st_uid}"
            )
            return f"{place} cannot be read by user {os.geteuid()}: {mode}"
    return None
