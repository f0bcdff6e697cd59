"""The only reader of time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import queue

_T = TypeVar("_T")

#: Seconds on the system-wide monotonic clock; comparable between processes of one host.
monotonic = time.monotonic
#: Seconds since the epoch.
epoch = time.time
#: Seconds for measuring short durations within one process.
perf_counter = time.perf_counter
#: CPU seconds of this process, all threads.
process_time = time.process_time
#: Seconds of the longest wait: for more than 292 years the system's calls have no number.
LONGEST = 1e9


def sleep(seconds: float) -> None:
    """Sleep; for tests' doubles there is one name to replace."""
    time.sleep(min(seconds, LONGEST))


def time_left(until: float) -> float:
    """Return for how many seconds to wait until a time on the monotonic clock; none if it has passed."""
    return max(0.0, min(until - monotonic(), LONGEST))


def receive(mail: queue.SimpleQueue[_T], timeout: float | None) -> _T:
    """Wait for mail; a test's double may let the time pass instead.

    Raises:
        queue.Empty: There was none within ``timeout`` seconds.
    """
    return mail.get(timeout=timeout)


def as_utc(seconds: float) -> datetime:
    """Return the aware UTC datetime of ``seconds`` since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)


def as_seconds(duration: float | timedelta) -> float:
    """Return a duration given as seconds or `timedelta` as float seconds."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    return float(duration)
