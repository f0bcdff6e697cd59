"""What time it is, and how a scheduler waits for another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from canobatch import _clock

if TYPE_CHECKING:
    import threading
    from datetime import datetime

#: Seconds after which a wait looks at the wall clock again: it may have been set, and the machine may have slept.
_LOOK_AGAIN = 60.0


class Clock(Protocol):
    """Gives a scheduler its time, so that tests need not wait."""

    def now(self) -> datetime:
        """Return the time, UTC."""

    def wait(self, wake: threading.Condition, until: datetime | None) -> None:
        """Wait for ``wake``, which the caller holds, or until some time; to return early is fine."""


class SystemClock:
    """The clock on the wall."""

    def now(self) -> datetime:
        """Return the time, UTC."""
        return _clock.as_utc(_clock.epoch())

    def wait(self, wake: threading.Condition, until: datetime | None) -> None:
        """Wait for ``wake`` or until some time, at most a minute."""
        if until is None:
            wake.wait()
        else:
            left = until.timestamp() - _clock.epoch()
            if left > 0:
                wake.wait(min(left, _LOOK_AGAIN))
