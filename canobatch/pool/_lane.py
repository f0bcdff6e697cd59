"""A lane: the calls of one state of one run, as the pool sees them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from canobatch.pool._assign import MOST, Pace, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from canobatch.pool._handle import WorkerHandle
    from canobatch.pool.backend import Call, Event, Header
    from canobatch.pool.pool import WorkerPool
    from canobatch.segments import Segments


class Lane:
    """Made by `WorkerPool.open_lane`; its fields are guarded by the pool's lock."""

    def __init__(
        self,
        pool: WorkerPool,
        share: Share,
        deliver: Callable[[list[Event]], None],
        what: tuple[str, Any],
        segments: Segments,
    ) -> None:
        self._pool = pool
        self.segments = segments
        self.share = share
        self.deliver = deliver
        self.what = what
        self.pace = Pace()
        self.pending: deque[Call] = deque()
        self.workers: set[WorkerHandle] = set()
        self.header: Header | None = None
        self.limit: int | None = None
        self.may_kill = 0
        self.tells_begin = False
        self.turn = 0
        self.is_stopped = True
        #: What a stop found begun, kept until every one of its workers is dead.
        self.begun: list[tuple[Call, float]] = []
        self.is_stopping = False

    @property
    def is_waiting(self) -> bool:
        """Whether it could use one more worker."""
        return bool(self.pending) and (self.limit is None or len(self.workers) < self.limit)

    def begin(self, header: Header, limit: int | None, may_kill: int, *, tells_begin: bool = False) -> None:
        """Start a visit of the state; see `LaneHandle`."""
        with self._pool.lock:
            self.header, self.limit, self.may_kill, self.tells_begin = header, limit, may_kill, tells_begin
            self.is_stopped = False
            self.begun = []

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue calls."""
        self._pool.submit(self, calls)

    def stop(self) -> bool:
        """Drop what waits and kill what runs; returns whether a `Stopped` event will follow."""
        return self._pool.stop_lane(self)

    @property
    def is_hungry(self) -> bool:
        """Whether a worker could begin one more call at once."""
        return not self.pending and len(self.workers) < self.slots

    @property
    def slots(self) -> int:
        """How many calls may run at a time."""
        return min(self._pool.size_hint, self.limit or self._pool.size_hint)

    def room(self) -> int:
        """Return how many more calls it is worth to submit now: what keeps every worker's window full."""
        size = self._pool.size_hint
        window = self.pace.window(MOST * size * 2, size)
        in_flight = sum(len(worker.window) for worker in tuple(self.workers))
        return max(0, 2 * size * (window + 1) - len(self.pending) - in_flight)
