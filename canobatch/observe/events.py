"""Events: one plain record for every transition of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from datetime import datetime


class Event(NamedTuple):
    """Something that happened in a run.

        ``kind`` is one of "run_started", "run_finished", "run_failed", "run_cancelled", "state_entered",
    "split_started", "branch_finished", "retry", "circuit_open" (an attempt was not made), "progress",
    "item_failed", "checkpoint", "compensation_started", "compensation_finished". ``detail`` holds what belongs to
    the kind: the total of a split, the status of a branch, (done, total, message) of a progress, the cursor of a
    checkpoint, the error (of a compensation that finished: or None). For an item ``branch`` is its index.
    """

    run_id: str
    seq: int
    time: datetime
    kind: str
    state: Any = None
    branch: int | None = None
    attempt: int | None = None
    detail: Any = None


class Observer(Protocol):
    """Is told what happens, in the run's own thread: be quick. What it raises is logged and dropped."""

    def on_event(self, event: Event) -> None:
        """Take one event."""
