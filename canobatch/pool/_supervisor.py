"""The thread that hears from workers and keeper, and that watches the clock for both.

It never unpickles what users made, and never blocks on a channel: a half-sent message or a stopped
worker holds up nobody.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch import _clock, _procs, wire
from canobatch.effects import rebuild_error
from canobatch.errors import ConfigurationError, WorkerLostError
from canobatch.pool._handle import CUT, DIED, MEMORY, TIMEOUT, WorkerHandle
from canobatch.pool._keeper import DEAD, HELLO, REFUSED, SPAWNED
from canobatch.pool.backend import Logged, Lost, Progressed, Stopped, deliver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canobatch.pool._keeper import KeeperClient
    from canobatch.pool.backend import Call, Event
    from canobatch.pool.pool import WorkerPool

_log = logging.getLogger(__name__)

#: Seconds between looks at the memory of calls that have a limit.
_MEMORY_EVERY = 0.05
#: Seconds between looks at whether calls wait behind a long one while others are idle.
_REBALANCE_EVERY = 0.005
#: Seconds after which a run goes on although a process cannot die (uninterruptible sleep).
_KILL_PATIENCE = 6.0
#: A call that was given so often to workers that died before beginning it counts as lost.
_MOST_SENDS = 3

#: Seconds in which outcomes gather while every worker that is heard from still holds more than so many calls.
#: Waking up for each costs this process, and the workers, more than reading it.
_GATHER = 0.0001
_PLENTY = 32


class Supervisor:
    """Serves one keeper and its workers until that keeper ends."""

    def __init__(self, pool: WorkerPool, keeper: KeeperClient) -> None:
        self._pool = pool
        self._keeper = keeper
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._by_fd: dict[int, WorkerHandle] = {}
        #: When to look at a call with a timeout; such a call has its worker to itself.
        self._due: dict[WorkerHandle, tuple[float, Call]] = {}
        #: When those that were killed should be dead.
        self._overdue: dict[WorkerHandle, float] = {}
        self._memory: dict[WorkerHandle, tuple[int, int]] = {}
        self._used: dict[WorkerHandle, int] = {}
        self._sleeps_until = 0.0
        self._must_stop = False
        self._is_worth_rebalancing = False
        #: The fewest calls that a worker holds, of those whose outcomes have just been read.
        self._fewest = math.inf
        self._thread = threading.Thread(target=self._serve, name="canobatch-supervisor", daemon=True)
        for fd in (self._wake_fd, keeper.sock.fileno(), keeper.pidfd):
            self._epoll.register(fd, select.EPOLLIN)

    # -- for the pool; its lock is held but for `stop`

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it unless it is the caller."""
        self._must_stop = True
        self.wake()
        if self._thread is not threading.current_thread():
            # An interrupt may have come between the thread's start and the note of it; it ends all the same.
            with suppress(RuntimeError):
                self._thread.join(5.0)

    def wake(self) -> None:
        """Make the thread look at its timers and at what must be written."""
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    def forget(self) -> None:
        """Close what a forked child inherited."""
        self._epoll.close()
        os.close(self._wake_fd)

    def watch(self, handle: WorkerHandle) -> None:
        """Hear from a worker, and finish writing to it."""
        fd = handle.sock.fileno()
        events = select.EPOLLIN | (select.EPOLLOUT if handle.outbox else 0)
        if fd in self._by_fd:
            with suppress(OSError):  # its end has been seen already
                self._epoll.modify(fd, events)
        elif fd >= 0:
            self._by_fd[fd] = handle
            self._epoll.register(fd, events)

    def watch_calls(self, handle: WorkerHandle, calls: Sequence[Call]) -> None:
        """Mind the timeouts and memory limits of calls that were just sent."""
        for call in calls:
            if call.timeout is not None:
                self._due[handle] = (_clock.monotonic() + call.timeout, call)
                self._wake_by(self._due[handle][0])
            if call.memory_limit is not None:
                self._memory[handle] = (handle.calls_sent, call.memory_limit)
                self.wake()

    def watch_kill(self, handles: Sequence[WorkerHandle]) -> None:
        """Mind that these die."""
        for handle in handles:
            self._overdue[handle] = _clock.monotonic() + _KILL_PATIENCE
            self._wake_by(self._overdue[handle])
        self.watch_keeper()

    def watch_keeper(self) -> None:
        """Finish sending to the keeper what did not fit."""
        if self._keeper.has_unsent:
            with suppress(OSError):  # its end has been seen already
                self._epoll.modify(self._keeper.sock, select.EPOLLIN | select.EPOLLOUT)

    def losses(self, handle: WorkerHandle, exitcode: int | None) -> list[Event]:
        """Take the calls out of a dead worker's window that died with it."""
        lane, window = handle.lane, handle.window
        running, started = handle.running()
        head_number, head = window[0]
        reason = "died" if handle.doom in (None, DIED, CUT) else str(handle.doom)
        if running < head_number and reason == "died":
            head.sends += 1
            if head.sends < _MOST_SENDS:
                return []
        window.popleft()
        ran = _clock.monotonic() - started if running == head_number else None
        begun = None if ran is None else _clock.epoch() - ran
        return [Lost(lane, head, reason, handle.pid, exitcode, begun, ran, self._used.pop(handle, None))]

    def _wake_by(self, when: float) -> None:
        if when < self._sleeps_until:
            self.wake()

    # -- the thread

    def _serve(self) -> None:
        try:
            while not self._must_stop:
                if _PLENTY < self._fewest < math.inf:
                    _clock.sleep(_GATHER)
                self._fewest = math.inf
                for fd, event in self._epoll.poll(self._sleep()):
                    if fd == self._wake_fd:
                        with suppress(BlockingIOError):
                            os.eventfd_read(fd)
                    elif fd == self._keeper.sock.fileno():
                        self._serve_keeper(event)
                    elif fd == self._keeper.pidfd:
                        self._lose_keeper()
                        return
                    elif fd in self._by_fd:
                        self._serve_worker(self._by_fd[fd], event)
                self._mind_the_clock()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody shall wait for it
            # Ours to mend; meanwhile nobody shall wait for a thread that is gone.
            _log.exception("the supervisor of a pool failed")
            failure = WorkerLostError(
                f"the pool's supervisor failed: {type(error).__name__}: {error}; make another pool"
            )
            with self._pool.lock:
                deliver(self._pool.break_lanes(failure))
        finally:
            self._epoll.close()
            os.close(self._wake_fd)

    def _sleep(self) -> float | None:
        with self._pool.lock:
            now = _clock.monotonic()
            until = min((*(when for when, _ in self._due.values()), *self._overdue.values()), default=math.inf)
            if self._memory:
                until = min(until, now + _MEMORY_EVERY)
            if self._is_worth_rebalancing:
                until = min(until, now + _REBALANCE_EVERY)
            self._sleeps_until = until
            # epoll cannot wait for more than 24 days; an attempt may.
            return None if until == math.inf else max(0.0, min(until - now, 86_400.0))

    def _serve_worker(self, handle: WorkerHandle, event: int) -> None:
        if event & select.EPOLLOUT:
            with self._pool.lock:
                handle.outbox.flush(handle.sock)
                self.watch(handle)
        if event & ~select.EPOLLOUT:
            frames, is_closed = handle.inbox.receive(handle.sock)
            if is_closed:
                # Its death is reported by the keeper; an end of file may come from elsewhere, or never.
                with suppress(OSError, ValueError):
                    self._epoll.unregister(handle.sock.fileno())
            # Delivered under the lock: what a lane's stop finds done is in its mail by then.
            with self._pool.lock:
                deliver(self._take(handle, frames))

    def _take(self, handle: WorkerHandle, frames: list[tuple[int, bytes | bytearray]]) -> list[Event]:
        outcomes: list[tuple[Any, ...]] = []
        events: list[Event] = []
        for kind, body in frames:
            content = wire.open_body(body)
            if kind == wire.OUTCOME:
                outcomes.append(content)
            elif kind == wire.PROGRESS:
                number, done, total, message = content
                call = next((call for at, call in handle.window if at == number), None)
                if call is not None and handle.lane is not None:
                    events.append(Progressed(handle.lane, call, done, total, message))
            elif kind == wire.LOG:
                # Also of one that is being killed.
                if handle.lane is not None:
                    events.append(Logged(handle.lane, handle.lane.what, *content))
            elif kind == wire.WANTED:
                # It is the next call that asks: what was granted before belongs to those that ended.
                events += self._end_calls(handle, outcomes)
                outcomes = []
                segments = None if handle.lane is None or handle.lane.is_stopped else handle.lane.segments
                if not handle.grant(segments, *content):
                    self.watch(handle)
            elif kind == wire.READY:
                handle.pid = content
                self._pool.become_ready(handle)
            elif kind == wire.BROKEN:
                events += self._pool.break_lanes(_initializer_error(rebuild_error(content)))
        return events + self._end_calls(handle, outcomes)

    def _end_calls(self, handle: WorkerHandle, outcomes: list[tuple[Any, ...]]) -> list[Event]:
        if not outcomes:
            return []
        self._forget_call(handle)
        events = self._pool.take_outcomes(handle, outcomes)
        self._fewest = min(self._fewest, len(handle.window))
        self._is_worth_rebalancing = self._is_worth_rebalancing or len(handle.window) > 1 or handle.is_held
        return events

    def _serve_keeper(self, event: int) -> None:
        with self._pool.lock:
            if event & select.EPOLLOUT:
                self._keeper.flush()
                if not self._keeper.has_unsent:
                    self._epoll.modify(self._keeper.sock, select.EPOLLIN)
        messages, is_closed = self._keeper.receive()
        if is_closed:
            with suppress(OSError):
                self._epoll.unregister(self._keeper.sock)
        for message, fds in messages:
            self._hear(message, fds)

    def _hear(self, message: tuple[Any, ...], fds: list[int]) -> None:
        kind, number, *rest = message
        events: list[Event] = []
        with self._pool.lock:
            handle = self._pool.handle(number)
            if kind == HELLO:
                self._pool.greet(rest[0])
            elif kind == SPAWNED:
                if handle is not None:
                    handle.pid, handle.pidfd = rest[0], fds.pop()
            elif kind == REFUSED:
                text = f"a worker could not be started: {rest[0]}"
                events = self._pool.break_lanes(WorkerLostError(text))
            elif kind == DEAD and handle is not None:
                handle.doom = handle.doom or DIED
                events = self._bury(handle, rest[0], is_certain=not rest[1])
            deliver(events)
        for fd in fds:
            os.close(fd)

    def _bury(self, handle: WorkerHandle, exitcode: int | None, *, is_certain: bool) -> list[Event]:
        """Read what the dead worker had sent, then settle its calls."""
        frames: list[tuple[int, bytes | bytearray]] = []
        while True:
            more, is_over = handle.inbox.drain(handle.sock)
            frames += more
            if is_over:
                break
        events = self._take(handle, frames)
        return events + self._part(handle, exitcode, is_certain=is_certain)

    def _part(self, handle: WorkerHandle, exitcode: int | None, *, is_certain: bool) -> list[Event]:
        self._by_fd.pop(handle.sock.fileno(), None)
        events = self._pool.bury(handle, exitcode, is_certain)
        self._forget_call(handle)
        self._overdue.pop(handle, None)
        self._used.pop(handle, None)
        return events

    def _forget_call(self, handle: WorkerHandle) -> None:
        """Mind the limits of its call no more."""
        self._due.pop(handle, None)
        self._memory.pop(handle, None)

    def _lose_keeper(self) -> None:
        """Without its keeper no worker lives on; see to what they leave, then tell the lanes."""
        if self._must_stop:
            return
        with self._pool.lock:
            pidfds = [handle.pidfd for handle in self._by_fd.values() if handle.pidfd >= 0]
        for pidfd in pidfds:
            _procs.send_signal(pidfd, 9)
        _procs.wait_dead(pidfds, 2.0)
        _procs.kill_marked(self._keeper.token)
        with self._pool.lock:
            status = self._keeper.end(0.0)
            how = "" if status is None else f", exit status {status}"
            error = WorkerLostError(
                f"the process that keeps the workers (pid {self._keeper.pid}) died{how}, and its workers with it; "
                "the next run starts another",
                pid=self._keeper.pid,
                exitcode=status,
            )
            stopping = self._pool.stopping_lanes()
            events: list[Event] = [Stopped(lane, lane.begun, True) for lane in stopping]
            if not self._pool.drop_keeper():
                error = WorkerLostError(
                    f"the process that keeps the workers could not start{how}: what it printed says why",
                    pid=self._keeper.pid,
                    exitcode=status,
                )
                events += self._pool.break_lanes(error)
            else:
                events += self._pool.break_lanes(error, for_good=False)
            deliver(events)

    # -- time

    def _mind_the_clock(self) -> None:
        events: list[Event] = []
        with self._pool.lock:
            now = _clock.monotonic()
            for handle, (when, call) in list(self._due.items()):
                if when <= now:
                    self._check_timeout(handle, call, now)
            for handle, when in list(self._overdue.items()):
                if when <= now:
                    events += self._give_up(handle)
            if self._memory:
                self._check_memory()
            self._pool.drop_forgotten()
            if self._is_worth_rebalancing:
                self._is_worth_rebalancing = self._pool.dispatcher.rebalance()
            deliver(events)

    def _check_timeout(self, handle: WorkerHandle, call: Call, now: float) -> None:
        del self._due[handle]
        if handle.doom is not None or not handle.window or handle.window[0][1] is not call:
            return
        assert call.timeout is not None
        number, started = handle.running()
        due = started + call.timeout if number == handle.window[0][0] else now + call.timeout
        if now >= due:
            self._pool.kill([handle], TIMEOUT)
        else:
            self._due[handle] = (due, call)

    def _check_memory(self) -> None:
        for handle, (number, limit) in list(self._memory.items()):
            if handle.doom is not None or handle.running()[0] != number:
                continue
            used = _procs.anonymous_memory(handle.pid)
            if used > limit:
                self._used[handle] = used
                self._pool.kill([handle], MEMORY)

    def _give_up(self, handle: WorkerHandle) -> list[Event]:
        """A killed worker is not dead yet: let its run go on, with a warning."""
        return self._part(handle, None, is_certain=False)


def _initializer_error(cause: BaseException) -> ConfigurationError:
    error = ConfigurationError(
        f"the pool's initializer failed in a worker: {type(cause).__name__}: {cause}; correct it and make another pool"
    )
    error.__cause__ = cause
    return error
