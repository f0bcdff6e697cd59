"""A run's mailbox: what the pool reports, lane by lane, until the run is to end."""

from __future__ import annotations

import logging
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING

from canobatch import _clock, logs
from canobatch.definition import label
from canobatch.pool import Broken, Finished, Logged, Lost, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from canobatch.pool import Call, Event, LaneHandle

_log = logging.getLogger(__name__)


class Mailbox:
    """Written by the pool, from any thread; read by the run's.

    Args:
        run_id: The run, for what is logged.
        check: Raises when the run is to end.
        next_check: When that may be, on the monotonic clock, as far as is known.
    """

    def __init__(self, run_id: str, check: Callable[[], None], next_check: Callable[[], float | None]) -> None:
        self._run_id = run_id
        self._check = check
        self._next_check = next_check
        self._mail: queue.SimpleQueue[list[Event] | None] = queue.SimpleQueue()
        #: Events of lanes that are in use while another one is read.
        self._aside: dict[LaneHandle, list[Event]] = {}

    def put(self, events: list[Event]) -> None:
        """Take events; from any thread."""
        self._mail.put(events)

    def wake(self) -> None:
        """Let `read` return; from any thread."""
        self._mail.put(None)

    def read(self, lane: LaneHandle | None, until: float | None) -> list[Event]:
        """Wait for events of ``lane`` until a time on the monotonic clock; [] when it passed.

        Raises:
            CanobatchError: The pool can give no more outcomes, or whatever ``check`` raises.
        """
        self._check()
        if lane is not None and self._aside.get(lane):
            events, self._aside[lane] = self._aside[lane], []
            return self._of(lane, events)
        limits = [at for at in (until, self._next_check()) if at is not None]
        timeout = _clock.time_left(min(limits)) if limits else None
        events = []
        try:
            first = _clock.receive(self._mail, timeout)
            events += first or ()
            while True:
                events += self._mail.get_nowait() or ()
        except queue.Empty:
            pass
        self._relay(events)
        mine = self._of(lane, events)
        try:
            self._check()
        except BaseException:
            if lane in self._aside:
                self._aside[lane] += mine
            raise
        return mine

    @contextmanager
    def aside(self, lane: LaneHandle) -> Iterator[None]:
        """Within, no event of ``lane`` is lost while others are read."""
        self._aside[lane] = []
        try:
            yield
        finally:
            del self._aside[lane]

    def kill(self, lane: LaneHandle) -> list[tuple[Call, float | None]]:
        """Kill what runs of ``lane``; return, when it is dead, the calls that had begun and for how long they ran."""
        begun: list[tuple[Call, float | None]] = []
        is_over = not lane.stop()
        while True:
            # Not through `read`: neither a cancel nor a timeout may cut this short. The pool bounds it.
            try:
                events = self._mail.get(block=not is_over) or ()
            except queue.Empty:
                return begun
            self._relay(events)
            for event in events:
                if event.lane is not lane:
                    if event.lane in self._aside:
                        self._aside[event.lane].append(event)
                elif isinstance(event, Finished | Lost):
                    begun.append((event.call, event.duration))
                elif isinstance(event, Stopped):
                    begun += event.begun
                    is_over = True
                    if not event.is_certain:
                        _log.warning("a killed worker of run %s has not ended; the run goes on", self._run_id)
                elif isinstance(event, Broken):
                    is_over = True

    def _of(self, lane: LaneHandle | None, events: list[Event]) -> list[Event]:
        """Return the events of ``lane``; those of others in use wait for their turn."""
        mine: list[Event] = []
        for event in events:
            if event.lane is lane:
                if isinstance(event, Broken):
                    raise event.error
                mine.append(event)
            elif event.lane in self._aside:
                self._aside[event.lane].append(event)
        return mine

    def _relay(self, events: Sequence[Event]) -> None:
        """Log what was logged in workers."""
        for event in events:
            if type(event) is Logged:
                facts = {"state": label(event.what[1]), "branch": event.branch, "attempt": event.attempt}
                logs.relay(event.record, run_id=self._run_id, **facts)
