"""Gives waiting calls to workers: which lane is next, how many calls at a time, what is taken back.

The pool's lock is held in every method.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from canobatch import _clock, wire
from canobatch.pool import _assign
from canobatch.pool._handle import CUT
from canobatch.pool.backend import Began

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from canobatch.effects import Data
    from canobatch.pool._fleet import Fleet
    from canobatch.pool._handle import WorkerHandle
    from canobatch.pool._lane import Lane
    from canobatch.pool.backend import Call


class Dispatcher:
    """The lanes that have calls to give, and the way of a call to a worker's window.

    ``watch`` is told of every worker that was sent something, and of the calls.
    """

    def __init__(
        self,
        fleet: Fleet,
        blobs: dict[int, tuple[int, Data]],
        max_tasks: int | None,
        watch: Callable[[WorkerHandle, Sequence[Call]], None],
    ) -> None:
        self._fleet = fleet
        self._blobs = blobs
        self._max_tasks = max_tasks
        self._watch = watch
        self._active: dict[Lane, None] = {}
        self._turns = itertools.count(1)

    @property
    def size_hint(self) -> int:
        """How many calls may run at a time, as far as is known already."""
        return self._fleet.max_workers or os.cpu_count() or 1

    def drop(self, lane: Lane) -> None:
        """Give out nothing more of a lane."""
        self._active.pop(lane, None)

    def clear(self) -> None:
        """Give out nothing more."""
        self._active.clear()

    def dispatch(self, lane: Lane | None = None) -> None:
        """Give waiting calls to idle workers, and start workers for what is left."""
        if lane is not None and lane.pending and not lane.is_stopped:
            self._active[lane] = None
        while self._fleet.has_capacity:
            chosen = self._choose()
            if chosen is None:
                return
            handle = next(iter(self._fleet.idle))
            del self._fleet.idle[handle]
            self._give(handle, chosen)
        waiting = sum(len(lane.pending) for lane in self._active)
        if waiting:
            self._fleet.want_spares(max((lane.may_kill for lane in self._active), default=0))
            self._fleet.want(self._fleet.busy + waiting)

    def _choose(self) -> Lane | None:
        active = self._active
        if len(active) == 1:
            lane = next(iter(active))
            if lane.is_waiting:
                return lane
            if not lane.pending:
                active.clear()
            return None
        for lane in [lane for lane in active if not lane.pending]:
            del active[lane]
        return _assign.choose(lane for lane in active if lane.is_waiting)

    def _give(self, handle: WorkerHandle, lane: Lane) -> None:
        """Send calls of ``lane`` to a worker whose window has room for them."""
        pending = lane.pending
        window = handle.window
        if pending[0].is_alone:
            count = 1
        else:
            capacity = lane.pace.window(len(pending), min(self.size_hint, lane.limit or self.size_hint))
            count = min(len(pending), max(1, capacity - len(window)))
        if self._max_tasks is not None:
            count = min(count, self._max_tasks - handle.calls_sent)
        calls: list[Call] = []
        while pending and len(calls) < count and not (calls and pending[0].is_alone):
            calls.append(pending.popleft())
        if not window:
            handle.lane = lane
            lane.workers.add(handle)
            lane.share.busy += 1
            self._fleet.busy += 1
        lane.turn = lane.share.turn = next(self._turns)
        assert lane.header is not None
        handle.send_calls(lane.header, calls, self._blobs)
        if lane.tells_begin:
            lane.deliver([Began(lane, calls, handle.pid)])
        self._watch(handle, calls)

    def refill(self, handle: WorkerHandle) -> None:
        """A worker has room: more of the same lane, or whatever is next."""
        lane = handle.lane
        if handle.window:
            if (
                lane is not None
                and lane.pending
                and not lane.is_stopped
                and not handle.is_leaving
                and (self._max_tasks is None or handle.calls_sent < self._max_tasks)
                and not lane.pending[0].is_alone
                and not handle.window[0][1].is_alone
                and len(handle.window) <= lane.pace.window(len(lane.pending), self.size_hint) // 2
                and not _assign.should_yield(lane, (other for other in self._active if other.is_waiting))
            ):
                self._give(handle, lane)
            return
        if handle.is_astray:
            # It is still its lane's, to be killed with it.
            return
        self.release(handle)
        if handle.is_leaving:
            self._let_go(handle)
        else:
            self._fleet.idle[handle] = None
            self.dispatch(lane)

    def release(self, handle: WorkerHandle) -> None:
        """A worker holds no calls any more."""
        lane = handle.lane
        if lane is not None:
            lane.workers.discard(handle)
            lane.share.busy -= 1
            self._fleet.busy -= 1
            handle.lane = None

    def _let_go(self, handle: WorkerHandle) -> None:
        """Let a worker end by itself, and start its successor."""
        handle.doom = CUT
        handle.send(wire.frame(wire.EXIT, None))
        self._fleet.retire(handle)

    def rebalance(self) -> bool:
        """Give calls that wait behind a long one to idle workers; returns whether it is worth looking again."""
        is_worth = False
        now = _clock.monotonic()
        for handle in self._fleet:
            lane = handle.lane
            if lane is None or handle.doom is not None or lane.is_stopped:
                continue
            if not handle.window:
                self.refill(handle)
                is_worth = handle.is_held or is_worth
                continue
            if len(handle.window) < 2 or not self._fleet.has_capacity:
                continue
            is_worth = True
            number, started = handle.running()
            if number and now - started > _assign.AHEAD and (lane.limit is None or len(lane.workers) < lane.limit):
                lane.pace.note(now - started)
                lane.pending.extendleft(reversed(handle.withhold()))
                self.dispatch(lane)
        return is_worth
