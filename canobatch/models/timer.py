"""TimerTask: wait once, then go on."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from canobatch.models.base import Driven

if TYPE_CHECKING:
    from canobatch.models.base import Stage

#: Seconds after which the wall clock is looked at again: it may be set, or the host be suspended.
_SLICE = 30.0


class TimerTask(Driven):
    """A task that lets time pass: ``wait(ctx)`` says how much, ``after_wait(ctx)`` returns the next state.

    ``wait`` returns seconds, a `timedelta`, or an aware `datetime`; what has passed already is no wait. Meanwhile
    no worker is occupied. ``attempt_timeout`` bounds the whole, and a retry keeps the time once it is known: a
    failed ``after_wait`` does not wait again.

    Example:
        >>> class Settle(TimerTask):
        ...     def wait(self, ctx):
        ...         return 30.0
        ...     def after_wait(self, ctx):
        ...         return "check"
    """

    PHASES: ClassVar = {"wait": (1, 0), "after_wait": (1, 0)}

    def wait(self, *args: Any) -> float | timedelta | datetime:
        """Return how long, or until when: ``wait(self, ctx)`` or ``wait(self)``."""
        raise NotImplementedError

    def after_wait(self, *args: Any) -> Any:
        """Return the next state: ``after_wait(self, ctx)`` or ``after_wait(self)``."""
        raise NotImplementedError

    def drive(self, stage: Stage) -> Any:
        """Wait, and go on."""
        return stage.retry(lambda: self._attempt(stage))

    def _attempt(self, stage: Stage) -> Any:
        due = stage.once(lambda: _due(stage, stage.call("wait")))
        while (left := due.left(*stage.now())) > 0:
            stage.wait(min(left, _SLICE))
        return stage.call("after_wait")


class Due(NamedTuple):
    """When to wake up, in seconds since the epoch; and on the monotonic clock, if it was told as a duration."""

    epoch: float
    monotonic: float | None

    def left(self, monotonic: float, epoch: float) -> float:
        """Return the seconds until then."""
        return self.epoch - epoch if self.monotonic is None else self.monotonic - monotonic


def _due(stage: Stage, answer: Any) -> Due:
    if isinstance(answer, datetime):
        if answer.tzinfo is None:
            raise stage.refusal(f"wait returned {answer!r}, which has no time zone; use datetime.now(UTC)")
        return Due(answer.timestamp(), None)
    seconds = answer.total_seconds() if isinstance(answer, timedelta) else answer
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not math.isfinite(seconds):
        raise stage.refusal(f"wait returned {answer!r}; return seconds, a timedelta or an aware datetime")
    monotonic, epoch = stage.now()
    return Due(epoch + seconds, monotonic + seconds)
