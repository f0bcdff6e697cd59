"""When a failed attempt is followed by another: pure arithmetic, randomness passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Retry:
    """How many more attempts a task gets, and how long to wait before each.

    Use the constructors: `Retry.none`, `Retry.fixed`, `Retry.exponential`.

    Example:
        >>> Retry.exponential(3, base=0.1, jitter=0.0).delay(2)
        0.2
    """

    retries: int
    base: float = 0.0
    multiplier: float = 1.0
    max_delay: float = math.inf
    jitter: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        for name in ("base", "max_delay"):
            value = getattr(self, name)
            if isinstance(value, timedelta):
                object.__setattr__(self, name, value.total_seconds())
        for name in ("base", "multiplier", "max_delay", "jitter"):
            if not isinstance(getattr(self, name), int | float):
                raise ConfigurationError(f"Retry: {name} must be a number, got {getattr(self, name)!r}")
        if not isinstance(self.retries, int) or isinstance(self.retries, bool) or self.retries < 0:
            problems.append(f"retries must be a whole number of at least 0, got {self.retries!r}")
        if not self.base >= 0:
            problems.append(f"the delay must be at least 0 seconds, got {self.base!r}")
        if not self.multiplier >= 1:
            problems.append(f"multiplier must be at least 1, got {self.multiplier!r}")
        if not self.max_delay >= 0:
            problems.append(f"max_delay must be at least 0 seconds, got {self.max_delay!r}")
        if not 0 <= self.jitter <= 1:
            problems.append(f"jitter must be between 0 and 1, got {self.jitter!r}")
        if problems:
            raise ConfigurationError("Retry: " + "; ".join(problems), problems)

    @classmethod
    def none(cls) -> Retry:
        """One attempt, no retry."""
        return cls(0)

    @classmethod
    def fixed(cls, retries: int, delay: float | timedelta) -> Retry:
        """Retry up to ``retries`` times, ``delay`` seconds apart."""
        return cls(retries, base=delay)  # type: ignore[arg-type]

    @classmethod
    def exponential(
        cls,
        retries: int,
        base: float | timedelta = 0.1,
        multiplier: float = 2.0,
        max_delay: float | timedelta = 30.0,
        jitter: float = 0.1,
    ) -> Retry:
        """Retry up to ``retries`` times, waiting ``base * multiplier**k`` seconds.

        Args:
            retries: How many attempts may follow the first.
            base: Seconds before the first retry.
            multiplier: Growth from one delay to the next.
            max_delay: Upper bound in seconds, applied after the jitter.
            jitter: Part of the delay that is random, 0 to 1, both ways.
        """
        return cls(retries, base, multiplier, max_delay, jitter)  # type: ignore[arg-type]

    @property
    def max_attempts(self) -> int:
        """The first attempt and all retries."""
        return self.retries + 1

    def delay(self, retry: int, random: Callable[[], float] = lambda: 0.5) -> float:
        """Return the seconds to wait before retry number ``retry`` (from 1).

        ``random`` gives a number in [0, 1); 0.5 means no deviation.
        """
        if self.base == 0:
            return 0.0
        try:
            delay = self.base * self.multiplier ** (retry - 1)
        except OverflowError:
            delay = self.max_delay
        spread = 1.0 + self.jitter * (2.0 * random() - 1.0)
        return min(delay * spread, self.max_delay)
