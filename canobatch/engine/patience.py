"""Patience: for how long what must not be cut short is let alone. Pure."""

from __future__ import annotations


class Patience:
    """Bears that a run is over for ``grace`` seconds from when that is first seen; None: for ever.

    One that is firm also bears that the run is to be killed.
    """

    def __init__(self, grace: float | None, *, is_firm: bool = False) -> None:
        self._grace = grace
        self.is_firm = is_firm
        #: The end of it on the monotonic clock, once it is known.
        self.until: float | None = None

    def bears(self, now: float) -> bool:
        """Return whether it lasts, the run being over ``now``."""
        if self._grace is None:
            return True
        if self.until is None:
            self.until = now + self._grace
        return now < self.until
