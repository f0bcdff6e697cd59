"""ErrorPolicy: what polls and streams do about errors. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from canobatch._clock import as_seconds
from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """How many errors in a row are borne before one counts.

    Use the constructors: `ErrorPolicy.fail_fast`, `ErrorPolicy.tolerate`, `ErrorPolicy.skip`.

    Example:
        >>> policy = ErrorPolicy.tolerate(2, pause=0.5)
        >>> policy.bears(2), policy.bears(3)
        (True, False)
    """

    most: float = 0
    pause: float = 0.0

    @classmethod
    def fail_fast(cls) -> ErrorPolicy:
        """The first error counts."""
        return cls()

    @classmethod
    def tolerate(cls, errors: int, pause: float | timedelta = 1.0) -> ErrorPolicy:
        """Bear up to ``errors`` in a row; whatever succeeds starts the count again.

        Args:
            errors: How many; the next one counts.
            pause: Seconds after an error before the next poll. A stream goes on with its next item at once.

        Raises:
            ConfigurationError: A value is impossible.
        """
        try:
            seconds = as_seconds(pause)
        except (TypeError, ValueError):
            seconds = math.nan
        if not isinstance(errors, int) or isinstance(errors, bool) or errors < 0:
            raise ConfigurationError(
                f"ErrorPolicy.tolerate: errors must be a whole number of at least 0, got {errors!r}"
            )
        if not 0 <= seconds < math.inf:
            raise ConfigurationError(f"ErrorPolicy.tolerate: pause must be at least 0 seconds, got {pause!r}")
        return cls(errors, seconds)

    @classmethod
    def skip(cls) -> ErrorPolicy:
        """Bear any number of errors. For a poll: poll again, a second later."""
        return cls(math.inf, 1.0)

    def bears(self, errors: int) -> bool:
        """Return whether the last of ``errors`` in a row is borne."""
        return errors <= self.most
