"""Cancellation: an intent with a reason, seen by many, given once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CancelToken:
    """Carries one cancel from whoever wants it to every run that was given the token.

    Thread-safe; cancelling twice keeps the first reason.

    Example:
        >>> token = CancelToken()
        >>> token.cancel("shutting down")
        >>> token.is_cancelled, token.reason
        (True, 'shutting down')
    """

    def __init__(self) -> None:
        # Re-entrant: a signal handler may cancel in the midst of another cancel.
        self._lock = threading.RLock()
        self._watchers: list[Callable[[], None]] = []
        self._reason: str | None = None
        #: Whether a run with a journal may be resumed after this cancel; see `cancel`.
        self.is_kept: bool | None = False

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._reason is not None

    @property
    def reason(self) -> str:
        """What was given to `cancel`, or ""."""
        return self._reason or ""

    def cancel(self, reason: str = "cancelled", *, keep: bool | None = False) -> None:
        """Ask every run that holds this token to end; returns at once.

        Args:
            reason: Why; in the error with which the runs end.
            keep: Whether a run that has a journal may be resumed afterwards. True: it may, and what could be
                compensated is left in effect; None: it may, unless something had to be compensated.
        """
        with self._lock:
            if self._reason is not None:
                return
            self._reason = str(reason)
            self.is_kept = keep
            watchers, self._watchers = self._watchers, []
        failures = []
        for watcher in watchers:
            try:
                watcher()
            except Exception as error:  # noqa: BLE001 - the others must know all the same
                failures.append(error)
        if failures:
            raise failures[0]

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` once when cancelled (now, if it already is); returns how to stop watching."""
        with self._lock:
            if self._reason is None:
                self._watchers.append(watcher)
                return lambda: self._forget(watcher)
        watcher()
        return lambda: None

    def _forget(self, watcher: Callable[[], None]) -> None:
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
