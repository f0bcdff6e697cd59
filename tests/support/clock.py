"""A clock that stands until a test moves it, and knows when a scheduler has nothing left to do."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from tests.support.watch import NEVER, await_that

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakeClock:
    """Time for one scheduler."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now
        self._moved = threading.Condition()
        self._wake = None
        self._asleep_until = None
        self._is_asleep = False
        #: Whether what began may be left to itself: it has ended, or a test holds it up.
        self.is_quiet = lambda: True
        #: How often the scheduler has gone to sleep.
        self.waits = 0

    def now(self):
        """The time."""
        return self._now

    def wait(self, wake, until):
        """Sleep until the scheduler is woken or the clock is moved."""
        with self._moved:
            self._wake = wake
            self.waits += 1
            if until is not None and until <= self._now:
                return
            self._asleep_until, self._is_asleep = until, True
            self._moved.notify_all()
        wake.wait()
        with self._moved:
            self._is_asleep = False

    def set(self, now: datetime):
        """Move the clock, forwards or back, and wait until the scheduler has done what was due."""
        with self._moved:
            self._now = now
        self.look()

    def look(self):
        """Let the scheduler look at the clock, and wait until it has done what was due."""
        with self._moved:
            self._is_asleep = False
            wake = self._wake
        if wake is not None:
            with wake:
                wake.notify_all()
        self.settle()

    def pass_unseen(self, seconds: float):
        """Move the clock while the scheduler waits, as in a suspend: nothing wakes it."""
        with self._moved:
            self._now += timedelta(seconds=seconds)

    def advance(self, seconds: float):
        """Move the clock by so many seconds."""
        self.set(self._now + timedelta(seconds=seconds))

    def settle(self):
        """Wait until the scheduler waits for what is still to come, and what began has ended, if nothing holds it."""
        self._await_sleep()
        await_that(self.is_quiet, "what began should end")
        self._await_sleep()

    def _await_sleep(self):
        with self._moved:
            assert self._moved.wait_for(
                lambda: self._is_asleep and (self._asleep_until is None or self._asleep_until > self._now), NEVER
            )
