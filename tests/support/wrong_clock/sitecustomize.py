"""Makes this process's wall clock wrong by ``CLOCK_OFF_BY_S`` seconds; the monotonic clock stays
right.
"""

import datetime
import os
import time
from datetime import datetime as _datetime
from typing import Any

_OFF_S = int(os.environ.get("CLOCK_OFF_BY_S", "0"))
_time, _time_ns = time.time, time.time_ns


class _AnyDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class _WrongDatetime(_datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=_OFF_S)

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=_OFF_S)


if _OFF_S:
    time.time = lambda: _time() + _OFF_S
    time.time_ns = lambda: _time_ns() + _OFF_S * 1_000_000_000
    datetime.datetime = _WrongDatetime  # type: ignore[misc]
