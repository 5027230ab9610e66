"""Places where a test may kill the process: `ORCHESTRATOR_CRASH_AT` names one of them, for nobody
but tests to set.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

CRASH_AT = "ORCHESTRATOR_CRASH_AT"
"""``step`` or ``step:n``: SIGKILL to itself when the process comes to that step, or comes to it for
the n-th time.
"""

_passed: Counter[str] = Counter()


def step(name: str) -> None:
    """Ends this process as SIGKILL would if it is to crash here; costs a dictionary lookup
    otherwise.
    """
    wanted = os.environ.get(CRASH_AT)
    if wanted is None:
        return
    where, _, nth = wanted.partition(":")
    _passed[name] += where == name
    if where == name and _passed[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
