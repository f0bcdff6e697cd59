"""News: what observers are told of flows."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from canobatch.observe import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canobatch.observe import Observer
    from canobatch.scheduler.ledger import FlowRecord

_log = logging.getLogger(__name__)

_EVENTS = {"fired": "flow_fired", "skipped": "flow_skipped"} | dict.fromkeys(
    ("finished", "failed", "cancelled", "interrupted"), "flow_ended"
)


class News:
    """Records to be told: gathered under the scheduler's lock, told without it, as an observer may ask for a status."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._records: deque[FlowRecord] = deque()
        self._events = 0

    def add(self, record: FlowRecord) -> None:
        """Take a record."""
        self._records.append(record)

    def take(self) -> Sequence[FlowRecord]:
        """Return those that have not been told."""
        records, self._records = self._records, deque()
        return records

    def tell(self, record: FlowRecord, more: Sequence[Observer]) -> None:
        """Tell the scheduler's observers, and those of the flow's workflow, if it is about a run."""
        kind = _EVENTS.get(record.kind)
        if kind is None:
            return
        observers = dict.fromkeys((*self._observers, *more))
        if not observers:
            return
        self._events += 1
        event = Event(record.run_id or "", self._events, record.time, kind, record.state, detail=record)
        for observer in observers:
            try:
                observer.on_event(event)
            except Exception:  # noqa: BLE001 - observers are isolated
                _log.exception("an observer failed on %s; the event is dropped for it", event.kind)
