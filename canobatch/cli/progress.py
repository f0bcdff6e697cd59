"""Progress: what a run does now, gathered from its events. One thread writes, another reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from canobatch import _clock
from canobatch.definition import label
from canobatch.join import BranchStatus

if TYPE_CHECKING:
    from canobatch.observe import Event

#: Visits of states that are shown.
_SHOWN = 8
_CUT = frozenset({BranchStatus.CANCELLED, BranchStatus.NOT_STARTED})


@dataclass(slots=True)
class SplitProgress:
    """How far a split is. ``began`` is monotonic; ``total`` is None while it is not known."""

    total: int | None
    began: float
    succeeded: int = 0
    failed: int = 0
    killed: int = 0

    @property
    def ended(self) -> int:
        """How many branches have ended."""
        return self.succeeded + self.failed + self.killed

    def rate(self, now: float) -> float | None:
        """Return how many branches end a second, None while that cannot be told."""
        return self.ended / (now - self.began) if self.ended and now > self.began else None

    def remaining(self, now: float) -> float | None:
        """Return in how many seconds all have ended if it goes on like this; None while that cannot be told."""
        rate = self.rate(now)
        return None if rate is None or self.total is None else (self.total - self.ended) / rate

    def counts(self) -> str:
        """Return what became of its branches, such as ``"12/40, 3 failed"``."""
        text = f"{self.ended:,}" if self.total is None else f"{self.ended:,}/{self.total:,}"
        return text + "".join(
            f", {count:,} {what}" for count, what in ((self.failed, "failed"), (self.killed, "killed")) if count
        )


@dataclass(slots=True)
class Visit:
    """One visit of a state."""

    state: str
    began: float
    ended: float | None = None
    split: SplitProgress | None = None
    retries: int = 0
    #: What its task says of itself: (done, total, message).
    said: tuple[float, float | None, str | None] | None = None


@dataclass(slots=True)
class Progress:
    """An observer of one run."""

    began: float = field(default_factory=_clock.monotonic)
    visits: list[Visit] = field(default_factory=list)
    #: Visits in all; only the last ones are kept.
    count: int = 0
    retries: int = 0

    def on_event(self, event: Event) -> None:
        """Take one event."""
        kind = event.kind
        if kind in ("branch_finished", "branch_killed"):
            self._count(getattr(event.detail, "status", event.detail))
        elif kind == "state_entered":
            self._enter(label(event.state))
        elif kind == "split_started" and self.visits:
            self.visits[-1].split = SplitProgress(event.detail, _clock.monotonic())
        elif kind == "retry":
            self.retries += 1
            if self.visits:
                self.visits[-1].retries += 1
        elif kind == "progress" and self.visits and event.branch is None:
            self.visits[-1].said = event.detail

    def _enter(self, state: str) -> None:
        now = _clock.monotonic()
        if self.visits:
            self.visits[-1].ended = now
        self.visits.append(Visit(state, now))
        self.count += 1
        del self.visits[:-_SHOWN]

    def _count(self, status: object) -> None:
        split = self.visits[-1].split if self.visits else None
        if split is None:
            return
        if status == BranchStatus.SUCCEEDED:
            split.succeeded += 1
        elif status in _CUT:
            split.killed += 1
        else:
            split.failed += 1
