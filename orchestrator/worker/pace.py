"""When a worker prepares its next trial: late, for each result until then improves the suggestion,
yet before it is needed.
"""

from __future__ import annotations

import statistics
from collections import deque

IDLE_SHARE = 0.01
"""For no more than this share of its time is a device to wait, on average, for the next trial to be
prepared.
"""
LEAD = 2.0
"""Preparing begins so many times as long before the end as it lately took at most."""
SLACK = 0.15
"""And by this part of a trial sooner: now and then a model is fitted anew, which takes several
times as long.
"""
MARGIN_S = 0.1
_LATELY = 9


class Pace:
    """How long trials of one study ran lately on one worker, and how long it took to
    prepare one.
    """

    def __init__(self) -> None:
        self._ran_s: deque[float] = deque(maxlen=_LATELY)
        self._prepared_in_s: deque[float] = deque(maxlen=_LATELY)

    def ran(self, seconds: float) -> None:
        """A trial ran so long."""
        self._ran_s.append(seconds)

    def prepared(self, seconds: float) -> None:
        """A trial was given its parameters in so long."""
        self._prepared_in_s.append(seconds)

    @property
    def usual_s(self) -> float:
        """The median of how long trials ran; one must have."""
        return statistics.median(self._ran_s)

    def prepare_at(self) -> float | None:
        """Seconds after the start of a trial at which to prepare the next one: shortly before it
        may end.

        As late as leaves the device idle for `IDLE_SHARE` of its time on average: only so many of
        late ended earlier. None where that holds without preparing at all; nor is one prepared
        before a first trial has ended, for nothing tells how long one takes.
        """
        if not self._ran_s or not self._prepared_in_s:
            return None
        missed = IDLE_SHARE * self.usual_s / statistics.median(self._prepared_in_s)
        if missed >= 1.0:
            return None
        earliest = sorted(self._ran_s)[int(missed * len(self._ran_s))]
        return max(0.0, (1.0 - SLACK) * earliest - LEAD * max(self._prepared_in_s) - MARGIN_S)
