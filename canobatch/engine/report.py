"""What a run came to: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from canobatch.definition import label

if TYPE_CHECKING:
    from datetime import datetime

    from canobatch.join import SplitResult


@dataclass(slots=True)
class StateReport:
    """One visit of a state. ``duration`` is in seconds, None while it lasts."""

    state: Any
    visit: int
    started_at: datetime
    duration: float | None = None
    attempts: int = 0
    error: BaseException | None = None

    def elapsed(self, now: float) -> float:
        """Return the seconds since it began, given the time since the epoch."""
        return now - self.started_at.timestamp()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "state": label(self.state),
            "visit": self.visit,
            "started_at": self.started_at.isoformat(),
            "duration": self.duration,
            "attempts": self.attempts,
            "error": _error_text(self.error),
        }


@dataclass(slots=True)
class RunReport:
    """What a run did so far, or in the end.

    Attributes:
        run_id: The run.
        workflow: The workflow's name.
        state: The state it is in, or ended in.
        path: The states it entered, in order, exits included.
        states: One `StateReport` per visit.
        splits: Each split state's last `SplitResult`.
        started_at: When it began, UTC.
        duration: Seconds, up to now while it runs.
        error: What it failed with, or None.
    """

    run_id: str
    workflow: str
    state: Any
    path: list[Any]
    states: list[StateReport]
    splits: dict[Any, SplitResult]
    started_at: datetime
    duration: float
    error: BaseException | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, states by their labels."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "state": None if self.state is None else label(self.state),
            "path": [label(state) for state in self.path],
            "states": [state.to_dict() for state in self.states],
            "splits": {label(state): result.to_dict() for state, result in self.splits.items()},
            "started_at": self.started_at.isoformat(),
            "duration": self.duration,
            "error": _error_text(self.error),
        }


def _error_text(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
