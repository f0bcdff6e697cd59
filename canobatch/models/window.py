"""Windows: when what a stream made is flushed. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from canobatch._clock import as_seconds
from canobatch.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Window:
    """Closes after ``count`` outputs, or at each multiple of ``seconds`` since the stream's start, if there are any.

    Made by `Count`, `Duration`, or both: ``Count(100) | Duration(5.0)`` closes at whichever comes first.

    Raises:
        ConfigurationError: A value is impossible.

    Example:
        >>> window = Count(100) | Duration(5.0)
        >>> window.is_full(100), window.boundary(since=10.0, now=17.0)
        (True, 20.0)
    """

    count: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seconds, timedelta):
            object.__setattr__(self, "seconds", as_seconds(self.seconds))
        if self.count is None and self.seconds is None:
            raise ConfigurationError("a window needs a count or a duration; use Count(n) or Duration(seconds)")
        if self.count is not None and (
            not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 1
        ):
            raise ConfigurationError(f"Count must be a whole number of at least 1, got {self.count!r}")
        if self.seconds is not None and not (
            isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool) and 0 < self.seconds < math.inf
        ):
            raise ConfigurationError(f"Duration must be above 0 seconds, got {self.seconds!r}")

    def __or__(self, other: Window) -> Window:
        """Return a window that closes when the first of both does."""
        if not isinstance(other, Window):
            return NotImplemented
        counts = [each for each in (self.count, other.count) if each is not None]
        durations = [each for each in (self.seconds, other.seconds) if each is not None]
        return Window(min(counts, default=None), min(durations, default=None))

    def is_full(self, outputs: int) -> bool:
        """Return whether it has all the outputs it takes."""
        return self.count is not None and outputs >= self.count

    def boundary(self, since: float, now: float) -> float | None:
        """Return when the window that is open ``now`` closes by time: on a grid from ``since`` on, so none drifts."""
        if self.seconds is None:
            return None
        return since + (math.floor((now - since) / self.seconds) + 1) * self.seconds


def Count(n: int) -> Window:  # noqa: N802 - reads as the class it could be
    """Return a window that closes after ``n`` outputs."""
    return Window(count=n)


def Duration(seconds: float | timedelta) -> Window:  # noqa: N802 - as above
    """Return a window that closes every ``seconds``, if there are outputs."""
    return Window(seconds=seconds)  # type: ignore[arg-type]
