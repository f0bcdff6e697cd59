"""FakeClock: time that passes when a test says so, or when a run would only wait."""

from __future__ import annotations

import queue
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar
from unittest.mock import patch

from canobatch import _clock

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")


class FakeClock:
    """Replaces the time of this process's runs while its ``with`` block lasts.

    A run that has nothing to do but wait (a back-off, a poll's delay, a timer, a rate limiter) does not: the clock
    jumps to the end of the wait. Meant for `InlineBackend` and tasks in the parent; workers of a real pool have
    their own time. It is also a clock for a `Scheduler`, which waits until `advance` has passed what it waits for.

    Args:
        start: The first instant, with a time zone.

    Example:
        >>> with FakeClock() as clock:                                    # doctest: +SKIP
        ...     workflow.orchestrate(S.POLL)        # polls every ten minutes until something is there
        >>> clock.elapsed                                                 # doctest: +SKIP
        3000.0
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._elapsed = 0.0
        self._waiting: set[threading.Condition] = set()
        self._patches = ExitStack()

    @property
    def elapsed(self) -> float:
        """Seconds that have passed on it."""
        return self._elapsed

    def now(self) -> datetime:
        """Return the time."""
        return self._start + timedelta(seconds=self._elapsed)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; a task may do so as well, to take long."""
        with self._lock:
            self._elapsed += max(0.0, seconds)
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def wait(self, wake: threading.Condition, until: datetime | None) -> None:
        """Wait for ``wake``, which the caller holds, or until some time on this clock."""
        if until is not None and self.now() >= until:
            return
        with self._lock:
            self._waiting.add(wake)
        try:
            # A look now and then: time may have passed between the two.
            wake.wait(None if until is None else 0.05)
        finally:
            with self._lock:
                self._waiting.discard(wake)

    def __enter__(self) -> Self:
        # Not from 0: some times are compared with 0 for "never".
        names: dict[str, Any] = {
            "monotonic": lambda: 1000.0 + self._elapsed,
            "perf_counter": lambda: 1000.0 + self._elapsed,
            "epoch": lambda: self.now().timestamp(),
            "sleep": self.advance,
            "receive": self._receive,
        }
        for name, double in names.items():
            self._patches.enter_context(patch.object(_clock, name, double))
        _in_force.append(self)
        self._patches.callback(_in_force.remove, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that advances it is pickled on its way, and must not get another.
        return _present, ()

    def _receive(self, mail: queue.SimpleQueue[_T], timeout: float | None) -> _T:
        if timeout is None:
            return mail.get()
        try:
            return mail.get_nowait()
        except queue.Empty:
            self.advance(timeout)
            raise


#: The clocks whose ``with`` block lasts, the last one counts.
_in_force: list[FakeClock] = []


def _present() -> FakeClock:
    if not _in_force:
        raise RuntimeError("a FakeClock works in the process that made it, within its with block; use InlineBackend")
    return _in_force[-1]
