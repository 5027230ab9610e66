"""Steps at which a test can kill the process; `ORCHESTRATOR_CRASH_AT` names one. For tests only."""

from __future__ import annotations

import os
import signal
from collections import Counter

CRASH_AT = "ORCHESTRATOR_CRASH_AT"
"""``step`` or ``step:n``: SIGKILL when the process reaches the step, or the n-th time."""

_passed: Counter[str] = Counter()


def step(name: str) -> None:
    """Kills this process if a test wants it to crash here; otherwise costs a dictionary lookup."""
    wanted = os.environ.get(CRASH_AT)
    if wanted is None:
        return
    where, _, nth = wanted.partition(":")
    _passed[name] += where == name
    if where == name and _passed[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
