"""What is written down of flows: who may run them, which ticks are taken, what happened."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from datetime import datetime

#: How many records of a flow are kept in memory.
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One thing that happened to a flow.

    Attributes:
        flow: The flow's id.
        time: When it happened, UTC.
        kind: "fired": a run begins; "queued": it waits for the end of another; "skipped": a tick or a trigger
            does not run; "finished", "failed", "cancelled": a run has ended.
        tick: The nominal instant, UTC; None for what was triggered.
        run_id: The run, if there is one.
        reason: Why it was skipped, or what the run failed with.
        until: The last of several ticks that were missed in a row; ``tick`` is the first.
        count: How many ticks it is about; None if more than a thousand.
        state: The state that an ended run was in.
    """

    flow: str
    time: datetime
    kind: Literal["fired", "queued", "skipped", "finished", "failed", "cancelled"]
    tick: datetime | None = None
    run_id: str | None = None
    reason: str = ""
    until: datetime | None = None
    count: int | None = 1
    state: Any = None


class Ledger(Protocol):
    """Where schedulers that share flows agree on them. Every method may be called from any thread."""

    def anchor(self, flow: str, schedule: str, now: datetime) -> datetime:
        """Return when a flow was first started: now, if it never was.

        Raises:
            SchedulerError: The flow is known with another schedule.
        """

    def last_tick(self, flow: str) -> datetime | None:
        """Return the last tick of a flow that is accounted for, if it ever ran."""

    def take_tick(self, flow: str, tick: datetime) -> bool:
        """Take a tick; False if it was taken before."""

    def record(self, record: FlowRecord) -> None:
        """Write down what happened."""

    def history(self, flow: str, limit: int) -> list[FlowRecord]:
        """Return the newest records of a flow, oldest first."""


class MemoryLedger:
    """The ledger of one scheduler, which ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, datetime] = {}
        self._records: dict[str, deque[FlowRecord]] = {}

    def anchor(self, flow: str, schedule: str, now: datetime) -> datetime:  # noqa: ARG002 - known to nobody else
        """Return now."""
        return now

    def last_tick(self, flow: str) -> datetime | None:
        """Return the last tick that was taken."""
        return self._last.get(flow)

    def take_tick(self, flow: str, tick: datetime) -> bool:
        """Take a tick; False if it or a later one was taken before."""
        with self._lock:
            if flow in self._last and tick <= self._last[flow]:
                return False
            self._last[flow] = tick
            return True

    def record(self, record: FlowRecord) -> None:
        """Keep it, and forget the oldest of too many."""
        with self._lock:
            self._records.setdefault(record.flow, deque(maxlen=_KEPT)).append(record)

    def history(self, flow: str, limit: int) -> list[FlowRecord]:
        """Return the newest records of a flow, oldest first."""
        with self._lock:
            return list(self._records.get(flow, ()))[-limit:] if limit > 0 else []
