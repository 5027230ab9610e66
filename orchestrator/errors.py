"""The errors a user can meet, each with one exit code. Third-party errors are translated to these at the door of each room."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    """The database holds a schema this version does not know; the message names the command to run."""

    exit_code = 4


class LeaseLostError(OrchestratorError):
    """The lease shown is no longer the current one, so the write was refused and nothing changed."""

    exit_code = 5


class DeviceError(OrchestratorError):
    """No device could be claimed, or the one named does not exist."""

    exit_code = 6


class StudyFailedError(OrchestratorError):
    """The study ended without a single complete trial."""

    exit_code = 7


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known word closest to `word`, or an empty string when none is close."""
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not close:  # 'optm.lr' and 'lr' alike should find 'optim.lr'
        close = [c for c in candidates if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:1]
    return f" (did you mean {close[0]!r}?)" if close else ""
