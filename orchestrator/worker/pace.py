"""When a worker prepares its next trial: late, because each result until then improves the
suggestion, but in time.
"""

from __future__ import annotations

import statistics
from collections import deque

IDLE_SHARE = 0.01
"""A device may wait for the next trial to be prepared for at most this share of its time, on
average.
"""
LEAD = 2.0
"""Preparing begins this many times its longest recent duration before the end of the
running trial.
"""
SLACK = 0.15
"""And earlier by this part of a trial: sometimes a model is fitted again, which takes several times
as long.
"""
MARGIN_S = 0.1
_LATELY = 9


class Pace:
    """How long recent trials of one study ran on one worker, and how long preparing one took."""

    def __init__(self) -> None:
        self._ran_s: deque[float] = deque(maxlen=_LATELY)
        self._prepared_in_s: deque[float] = deque(maxlen=_LATELY)

    def ran(self, seconds: float) -> None:
        """Notes how long a trial ran."""
        self._ran_s.append(seconds)

    def prepared(self, seconds: float) -> None:
        """Notes how long it took to prepare a trial."""
        self._prepared_in_s.append(seconds)

    @property
    def usual_s(self) -> float:
        """The median duration of recent trials; there must be one."""
        return statistics.median(self._ran_s)

    def prepare_at(self) -> float | None:
        """Seconds after the start of a trial at which to prepare the next one: shortly before it
        may end.

        As late as possible, but early enough that the device, judged by recent trials, is idle for
        at most `IDLE_SHARE` of its time. None if that holds without preparing. Also None before the
        first trial has ended, because it is unknown then how long trials run.
        """
        if not self._ran_s or not self._prepared_in_s:
            return None
        missed = IDLE_SHARE * self.usual_s / statistics.median(self._prepared_in_s)
        if missed >= 1.0:
            return None
        earliest = sorted(self._ran_s)[int(missed * len(self._ran_s))]
        return max(0.0, (1.0 - SLACK) * earliest - LEAD * max(self._prepared_in_s) - MARGIN_S)
