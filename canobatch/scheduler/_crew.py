"""Crew: the threads in which the runs of a scheduler are driven."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from canobatch import _clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.engine import Run

#: Seconds in which a thread that has taken a short run comes back for another one.
_MOMENT = 0.001


class Crew:
    """Drives runs: a long one has a thread to itself, short ones that begin together share a few.

    A thread that is through with its run takes the next one that waits, and ends if there is none. No run waits for
    the end of another: `settle` starts more and more threads as long as they do not come back.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: What is to begin: since when, which, and what is called in its thread when it is through.
        self._waiting: deque[tuple[float, Run, Callable[[Run], None]]] = deque()
        self._taken = 0

    def begin(self, run: Run, on_end: Callable[[Run], None]) -> None:
        """Let a run begin, at the latest within `settle`, which is to follow."""
        now = _clock.monotonic()
        with self._changed:
            self._waiting.append((now, run, on_end))
            is_late = now - self._waiting[0][0] > _MOMENT
        if is_late:
            self._hire(1)

    def settle(self) -> None:
        """Return when every run has begun."""
        count, hired, taken = 2, 0, self._taken
        while left := len(self._waiting):
            if self._taken - taken < 2 * max(hired, 1):
                count = min(count, left)
                self._hire(count)
                count, hired = 2 * count, hired + count
            with self._changed:
                taken = self._taken
                self._changed.wait_for(lambda: not self._waiting, _MOMENT)

    def _hire(self, count: int) -> None:
        try:
            for _ in range(count):
                threading.Thread(target=self._work, name="canobatch-run", daemon=True).start()
        except RuntimeError as error:
            # No thread is to be had; what waits has failed, rather than to wait for nobody knows what.
            while (next_one := self._take()) is not None:
                run, on_end = next_one
                run.fail(error)
                on_end(run)

    def _work(self) -> None:
        while (next_one := self._take()) is not None:
            run, on_end = next_one
            threading.current_thread().name = f"canobatch-run-{run.id}"
            run.drive()
            on_end(run)

    def _take(self) -> tuple[Run, Callable[[Run], None]] | None:
        with self._changed:
            if not self._waiting:
                return None
            _, run, on_end = self._waiting.popleft()
            self._taken += 1
            if not self._waiting:
                self._changed.notify_all()
            return run, on_end
