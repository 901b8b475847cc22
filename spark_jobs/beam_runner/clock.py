"""Time as the runner counts it: microseconds since the Unix epoch, as Beam's Timestamp does."""

from __future__ import annotations

import time
from typing import Any

from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Duration, Timestamp

MIN_US: int = MIN_TIMESTAMP.micros
MAX_US: int = MAX_TIMESTAMP.micros
NEVER_US: int = MAX_US + 1  # a timer that is not set: no watermark reaches it


def micros(value: Any) -> int:
    """Microseconds of a Beam Timestamp, Duration, or number of seconds."""
    if isinstance(value, (Timestamp, Duration)):
        return int(value.micros)
    return int(Timestamp.of(value).micros)


def now_us() -> int:
    """Processing time."""
    return time.time_ns() // 1000


def whole_millis(at_us: int) -> int:
    """Microseconds cut to milliseconds, towards zero: all that Beam's windowed value coder keeps of a time."""
    return at_us // 1000 * 1000 if at_us >= 0 else -(-at_us // 1000 * 1000)


def expiry_us(last_us: int, lateness_us: int) -> int:
    """The watermark at which a window whose greatest timestamp is `last_us` expires.

    From then on its elements are dropped, and its state and timers go: one past its end and the allowed lateness.
    """
    return min(MAX_US, last_us + lateness_us + 1)
