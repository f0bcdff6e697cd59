"""Which calls go to which worker: fairness among runs, and how much to send at a time. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds of work that a worker holds ahead, so that a round trip (0.05 ms) hides behind it.
AHEAD = 0.004
#: Most calls a worker holds.
MOST = 1024


class Pace:
    """How long the calls of one lane take."""

    __slots__ = ("mean", "slowest")

    def __init__(self) -> None:
        self.mean: float | None = None
        self.slowest = 0.0

    def note(self, duration: float) -> None:
        """Take one more duration into account; recent ones count more."""
        self.mean = duration if self.mean is None else self.mean + 0.1 * (duration - self.mean)
        # An outlier fades: one slow call must not end chunking for good.
        self.slowest = max(duration, self.slowest * 0.99)

    def window(self, pending: int, workers: int) -> int:
        """Return how many calls one worker may hold while ``pending`` wait and ``workers`` could take them."""
        if self.mean is None or self.slowest >= AHEAD:
            return 1
        by_time = AHEAD / max(self.mean, 1e-7)
        # The end of a split is shared out finely.
        by_share = math.ceil(pending / (2 * max(1, workers)))
        return max(1, min(int(by_time) + 1, by_share, MOST))


class Share:
    """What one run has of the pool."""

    __slots__ = ("busy", "turn")

    def __init__(self) -> None:
        #: Workers that run its calls.
        self.busy = 0
        #: When it was served last, as a running number.
        self.turn = 0


class Waiting(Protocol):
    """What is known of a lane that has calls for a worker."""

    share: Share
    turn: int


_Lane = TypeVar("_Lane", bound=Waiting)


def choose(lanes: Iterable[_Lane]) -> _Lane | None:
    """Return the lane to serve next: of the run with the fewest workers, then the one that waited longest."""
    return min(lanes, key=lambda lane: (lane.share.busy, lane.share.turn, lane.turn), default=None)


def should_yield(lane: Waiting, waiting: Iterable[Waiting]) -> bool:
    """Return whether a worker of ``lane`` should run dry, for a run that has fewer workers."""
    return any(other.share is not lane.share and other.share.busy < lane.share.busy for other in waiting)
