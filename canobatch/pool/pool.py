"""WorkerPool: worker processes that serve many runs, and that can be killed one by one.

One lock guards everything; nothing blocks while it is held. Drivers write to channels themselves; one
supervisor thread receives for all. A worker's window holds calls of one lane, so whatever a kill hits
belongs to the split that is being stopped.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from canobatch import _clock, _procs, wire, worker
from canobatch.broker import release_broker, retain_broker
from canobatch.effects import record_error
from canobatch.errors import ConfigurationError, PayloadError, PoolClosedError, WorkerLostError
from canobatch.packing import pack_definition
from canobatch.pool import _assign
from canobatch.pool._dispatch import Dispatcher
from canobatch.pool._fleet import Fleet, WorkerInfo
from canobatch.pool._handle import CUT, WorkerHandle, owned
from canobatch.pool._keeper import CLOSE, DEPTH, KILL, SPAWN, KeeperClient
from canobatch.pool._lane import Lane
from canobatch.pool._supervisor import Supervisor
from canobatch.pool.backend import Broken, Call, Event, Finished, Stopped, deliver
from canobatch.task import arity_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from datetime import timedelta
    from types import TracebackType

    from canobatch.effects import Data
    from canobatch.segments import Segments

#: Seconds that `close` gives the keeper.
_CLOSE_PATIENCE = 8.0


#: Every pool of this process, for its exit and for a fork.
pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


class WorkerPool:
    """Worker processes on this host.

    Nothing is started before it is needed, or before `warm_up`. A pool serves any number of runs at once
    and shares its workers out evenly among them.

    Args:
        max_workers: How many calls may run at a time; None: as many as there are cores for this process,
            cgroup limits included.
        spares: Workers that stand by to take over from killed ones; "auto": as many as a running split
            may kill.
        initializer: Called without arguments in each new worker.
        env: Environment variables for the workers, over those of this process when the pool starts.
        threads_per_worker: Threads that BLAS, OpenMP and the like may use in a worker; None: its share of
            the cores. Variables that are set already are left alone.
        max_tasks_per_worker: Replace a worker after so many calls; None: never.

    Raises:
        ConfigurationError: An argument is impossible, or the pool would be nested more than one level deep.

    Example:
        >>> with WorkerPool(2) as pool:                                   # doctest: +SKIP
        ...     workflow.orchestrate(S.START, pool=pool)
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        spares: int | str = "auto",
        initializer: Callable[[], Any] | None = None,
        env: Mapping[str, str] | None = None,
        threads_per_worker: int | None = None,
        max_tasks_per_worker: int | None = None,
    ) -> None:
        _check_arguments(max_workers, spares, initializer, env, threads_per_worker, max_tasks_per_worker)
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._env = dict(env or {})
        inherited, own = os.environ.get(_procs.TOKEN), secrets.token_hex(8)
        #: Everything that this pool starts carries it in its environment, or an extension of it.
        self.token = f"{inherited}.{own}" if inherited else own
        self._threads_per_worker = threads_per_worker
        self._max_tasks = max_tasks_per_worker
        self._setup = b"" if initializer is None else pack_definition(initializer, "the pool's initializer")
        self._pid = os.getpid()
        self._is_closed = False
        self._error: Exception | None = None
        self._keeper: KeeperClient | None = None
        self._has_greeted = False
        #: Whether its workers may ask this process for what lives here.
        self._has_broker = False
        self._supervisor: Supervisor | None = None
        self._fleet = Fleet(max_workers, spares, self._launch)
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._shares: weakref.WeakKeyDictionary[Any, _assign.Share] = weakref.WeakKeyDictionary()
        self._blobs: dict[int, tuple[int, Data]] = {}
        self._forgotten: deque[int] = deque()
        self.dispatcher = Dispatcher(self._fleet, self._blobs, max_tasks_per_worker, self._watch_calls)
        self._numbers = itertools.count(1)
        pools.add(self)

    # -- for users

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that are ready now, without spares, by slot."""
        with self.lock:
            return self._fleet.describe()

    def warm_up(self, timeout: float | timedelta = 60.0) -> None:
        """Start all workers (and a fixed number of spares) and wait until they are ready.

        Args:
            timeout: Seconds to wait at most, or a `timedelta`.

        Raises:
            TimeoutError: They were not ready within ``timeout`` seconds.
        """
        seconds = min(_clock.as_seconds(timeout), _clock.LONGEST)
        deadline = _clock.monotonic() + seconds
        with self._changed:
            while self._error is None:
                self._await_loss()
                self._start()
                if self._fleet.max_workers is not None:
                    self._fleet.want(self._fleet.max_workers)
                if self._fleet.is_warm:
                    return
                if not self._changed.wait(max(0.0, deadline - _clock.monotonic())):
                    raise TimeoutError(f"the pool's workers were not ready within {seconds:g} s")
                self._require_open()
            raise self._error

    def close(self) -> None:
        """End every process of the pool; what runs is killed. Closing twice is fine."""
        with self.lock:
            if self._is_closed or self._pid != os.getpid():
                return
            self._is_closed = True
            self._fleet.is_open = False
            keeper, supervisor = self._keeper, self._supervisor
            error = PoolClosedError("the pool was closed while the run used it")
            broken = [Broken(lane, error) for lane in self._lanes]
            self._changed.notify_all()
        deliver(broken)
        if keeper is not None:
            with self.lock:
                busy = [handle.number for handle in self._fleet if handle not in self._fleet.idle]
                for handle in self._fleet.idle:
                    handle.send(wire.frame(wire.EXIT, None))
                keeper.request(CLOSE, busy)
            if supervisor is not None:
                supervisor.stop()
            keeper.end(_CLOSE_PATIENCE)
        with self.lock:
            stopping = [Stopped(lane, lane.begun, True) for lane in self.stopping_lanes()]
            self._drop_everything()
        deliver(stopping)
        if self._has_broker:
            self._has_broker = False
            release_broker()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that mentions the pool must not drag it along.
        return _PoolElsewhere, ()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self.workers)} workers"
        return f"<WorkerPool {state}>"

    # -- for runs (see `Backend`)

    @property
    def size_hint(self) -> int:
        """How many calls may run at a time, as far as is known already."""
        return self.dispatcher.size_hint

    def open_lane(
        self, run: Hashable, deliver: Callable[[list[Event]], None], what: tuple[str, Any], segments: Segments
    ) -> Lane:
        """Return a lane; see `Backend`."""
        with self.lock:
            self._await_loss()
            self._start()
            share = self._shares.setdefault(run, _assign.Share())
            lane = Lane(self, share, deliver, what, segments)
            self._lanes.add(lane)
            return lane

    def share(self, kind: int, data: Data) -> int:
        """Keep ``data`` for the workers; see `Backend`."""
        number = next(self._numbers)
        self._blobs[number] = (kind, data)
        return number

    def forget(self, numbers: Sequence[int]) -> None:
        """Drop what `share` kept, here and in the workers, soon.

        Without the lock, and without sending anything: finalizers call this from any place.
        """
        self._forgotten.extend(numbers)
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.wake()

    def submit(self, lane: Lane, calls: Sequence[Call]) -> None:
        """Queue calls of a lane and send what there are workers for."""
        with self.lock:
            self._require_open()
            self._start()
            lane.pending.extend(calls)
            self.dispatcher.dispatch(lane)

    def stop_lane(self, lane: Lane) -> bool:
        """Drop a lane's waiting calls and kill its workers; see `LaneHandle`."""
        with self.lock:
            lane.is_stopped = True
            lane.pending.clear()
            self.dispatcher.drop(lane)
            victims = list(lane.workers)
            if victims and self._keeper is not None:
                lane.is_stopping = True
                self.kill(victims, CUT)
            return bool(victims)

    # -- for the supervisor; the lock is held

    def kill(self, victims: Sequence[WorkerHandle], doom: str) -> None:
        """Have the keeper kill these workers with everything below them."""
        fresh = [handle for handle in victims if handle.doom is None]
        for handle in fresh:
            handle.doom = doom
            self._fleet.idle.pop(handle, None)
        if fresh and self._keeper is not None and self._supervisor is not None:
            self._keeper.request(KILL, [handle.number for handle in fresh])
            self._supervisor.watch_kill(fresh)

    def drop_forgotten(self) -> None:
        """Do what `forget` asked for."""
        names = set()
        while self._forgotten:
            names.add(self._forgotten.popleft())
        for name in names:
            self._blobs.pop(name, None)
        for handle in self._fleet if names else ():
            handle.forget(names)
            self._watch_calls(handle, ())

    def greet(self, cores: int) -> None:
        """The keeper is up."""
        self._has_greeted = True
        if self._fleet.max_workers is None:
            self._fleet.max_workers = cores
        self.dispatcher.dispatch()
        self._changed.notify_all()

    def become_ready(self, handle: WorkerHandle) -> None:
        """A worker says it is ready."""
        self._fleet.welcome(handle)
        self.dispatcher.dispatch()
        self._fleet.fill()
        self._changed.notify_all()

    def take_outcomes(self, handle: WorkerHandle, outcomes: Sequence[tuple[Any, ...]]) -> list[Event]:
        """Account for finished calls of one worker and give it more."""
        events: list[Event] = []
        lane = handle.lane
        for number, mode, payload, operations, written, begun, duration, used, peak, output, retire in outcomes:
            call = handle.finish(number)
            if handle.grants:
                mode, payload, operations = _adopted(handle, mode, payload, operations, written)
            handle.is_leaving = handle.is_leaving or retire == worker.RETIRE
            if lane is None or call is None:
                continue
            lane.pace.note(duration)
            if not lane.is_stopped:
                succeeded = mode == worker.OK
                events.append(Finished(lane, call, succeeded, payload, operations, begun, duration, used, peak, output))
        if self._max_tasks is not None and handle.calls_done >= self._max_tasks:
            handle.is_leaving = True
        if handle.doom is None:
            self.dispatcher.refill(handle)
        return events

    def bury(self, handle: WorkerHandle, exitcode: int | None, is_certain: bool = True) -> list[Event]:
        """A worker is dead and its channel drained: settle its calls and replace it."""
        events: list[Event] = []
        lane = handle.lane
        if lane is not None and handle.window:
            if lane.is_stopped:
                running, started = handle.running()
                now = _clock.monotonic()
                lane.begun += [(call, now - started) for number, call in handle.window if number <= running]
                handle.window.clear()
            else:
                events += self._supervisor.losses(handle, exitcode) if self._supervisor else []
                # What had not begun is sent again, before anything else.
                lane.pending.extendleft(call for _, call in reversed(handle.window))
                handle.window.clear()
        self.dispatcher.release(handle)
        self._fleet.remove(handle)
        if lane is not None and lane.is_stopping and not lane.workers:
            lane.is_stopping = False
            events.append(Stopped(lane, lane.begun, is_certain))
        if self._fleet.is_hopeless:
            text = f"worker after worker died before it was ready (the last with exit status {exitcode})"
            return events + self.break_lanes(WorkerLostError(text, exitcode=exitcode))
        if lane is None or not lane.is_stopping:
            # Not while the keeper still has deaths to report: a spawn would hold them up by milliseconds.
            self._fleet.fill()
        self.dispatcher.dispatch(lane)
        return events

    def break_lanes(self, error: Exception, *, for_good: bool = True) -> list[Event]:
        """No lane can go on; ``for_good``: neither can the pool."""
        if for_good:
            self._error = error
        self.dispatcher.clear()
        for lane in self._lanes:
            lane.pending.clear()
        self._changed.notify_all()
        return [Broken(lane, error) for lane in self._lanes]

    def handle(self, number: int) -> WorkerHandle | None:
        """Return the worker with this number, if it is still one of ours."""
        return self._fleet.find(number)

    def stopping_lanes(self) -> list[Lane]:
        """Return the lanes that wait for their workers' death."""
        return [lane for lane in self._lanes if lane.is_stopping]

    def drop_keeper(self) -> bool:
        """The keeper is gone and so are its workers; returns whether it is worth starting another."""
        self._drop_everything()
        return self._has_greeted

    # -- inside; the lock is held

    def _require_open(self) -> None:
        if self._pid != os.getpid():
            raise PoolClosedError("this pool belongs to the process that made it; make another after os.fork()")
        if self._is_closed:
            raise PoolClosedError("the pool is closed; make another")
        if self._error is not None:
            raise self._error

    def _await_loss(self) -> None:
        """If the keeper has just died, wait until the supervisor has seen to that: the next run shall have another."""
        while self._keeper is not None and not self._is_closed and _procs.is_dead(self._keeper.pidfd):
            self._changed.wait(1.0)

    def _start(self) -> None:
        self._require_open()
        if self._supervisor is not None:
            return
        if self._keeper is not None:
            # An interrupt came in the midst of an earlier start.
            self._keeper.end(0.0)
        depth = int(os.environ.get(DEPTH, "0"))
        if depth >= 2:
            raise ConfigurationError(
                "a pool inside a worker of a nested pool is one level too deep; run the innermost tasks in the "
                'parent (TaskConfig(where="parent")) or flatten the workflow'
            )
        self._keeper = KeeperClient(self.token, self._env, self._fleet.max_workers or 0, self._threads_per_worker or 0)
        self._supervisor = Supervisor(self, self._keeper)
        self._fleet.is_open = True
        self._supervisor.start()
        if not self._has_broker:
            self._has_broker = True
            retain_broker()

    def _launch(self, handle: WorkerHandle) -> None:
        """Have the keeper start a worker."""
        assert self._keeper is not None
        assert self._supervisor is not None
        handle.send([wire.frame_header(wire.SETUP, len(self._setup)) + self._setup])
        self._supervisor.watch(handle)
        self._keeper.request(SPAWN, (handle.number, handle.is_spare), handle.take_child_ends())
        self._supervisor.watch_keeper()

    def _watch_calls(self, handle: WorkerHandle, calls: Sequence[Call]) -> None:
        if self._supervisor is not None:
            if handle.outbox:
                self._supervisor.watch(handle)
            self._supervisor.watch_calls(handle, calls)

    def _drop_everything(self) -> None:
        for handle in self._fleet:
            self.dispatcher.release(handle)
        for lane in self._lanes:
            lane.is_stopping = False
        self._fleet.is_open = False
        self._fleet.clear()
        self.dispatcher.clear()
        self._keeper = self._supervisor = None

    @property
    def is_usable(self) -> bool:
        """Whether calls can be submitted: it is open and this process's own."""
        return not self._is_closed and self._pid == os.getpid() and self._error is None

    def forget_in_child(self) -> None:
        """In a forked child: leave the processes alone, and their channels to the parent."""
        self._has_broker = False
        keeper, self._keeper = self._keeper, None
        supervisor, self._supervisor = self._supervisor, None
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        with suppress(Exception):
            self._fleet.clear()
            if supervisor is not None:
                supervisor.forget()
            if keeper is not None:
                keeper.forget()


def _adopted(
    handle: WorkerHandle, mode: int, payload: Any, operations: tuple[Any, ...], written: list[tuple[int, bytes, bool]]
) -> tuple[int, Any, tuple[Any, ...]]:
    """Take over the segments of an outcome; without them it is a failure."""
    try:
        segments = handle.adopt(written)
    except PayloadError as error:
        return worker.ERROR, tuple(record_error(error)), ()
    if segments:
        payload, operations = owned(payload, segments), owned(operations, segments)
    return mode, payload, operations


class _PoolElsewhere:
    """What a pool becomes in another process: a name for an error."""

    def __getattr__(self, name: str) -> Any:
        raise PoolClosedError(f"a pool cannot be used in another process (.{name}); make one there")


def _check_arguments(
    max_workers: int | None,
    spares: int | str,
    initializer: Callable[[], Any] | None,
    env: Mapping[str, str] | None,
    threads_per_worker: int | None,
    max_tasks_per_worker: int | None,
) -> None:
    problems = []
    counts = {
        "max_workers": max_workers,
        "threads_per_worker": threads_per_worker,
        "max_tasks_per_worker": max_tasks_per_worker,
    }
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"{name} must be a whole number of at least 1, got {value!r}; leave it out for the default")
    if spares != "auto" and (not isinstance(spares, int) or isinstance(spares, bool) or spares < 0):
        problems.append(f'spares must be "auto" or a whole number of at least 0, got {spares!r}')
    if initializer is not None:
        is_callable = callable(initializer)
        problem = arity_problem(initializer, (0,)) if is_callable else f"must be callable, got {initializer!r}"
        if problem:
            problems.append(f"initializer {problem}")
    if env is not None and not isinstance(env, Mapping):
        problems.append(f"env must be a mapping of names to values, got {env!r}")
    else:
        problems += [
            f"env cannot have {name!r}: {value!r}; give strings without a NUL, and names without ="
            for name, value in (env or {}).items()
            if not _is_variable(name, value)
        ]
    if problems:
        raise ConfigurationError("WorkerPool: " + "; ".join(problems), problems)


def _is_variable(name: object, value: object) -> bool:
    """Return whether this can stand in an environment."""
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return name != "" and "=" not in name and "\0" not in name + value
