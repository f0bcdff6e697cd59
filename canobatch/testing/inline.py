"""InlineBackend: runs branches here and now, one after the other, instead of on worker processes."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from canobatch import _clock, worker
from canobatch.definition import label
from canobatch.effects import describe_error, dumps, loads, pack, record_error
from canobatch.errors import PayloadError, WorkflowError
from canobatch.pool.backend import Began, Call, Event, Finished, Lost, Progressed
from canobatch.segments import arrived
from canobatch.snapshot import Layers, ReceivedLayer
from canobatch.task import TaskContext, bound_call, entry_point
from canobatch.view import StoreView
from canobatch.worker_resources import WorkerResources

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from types import TracebackType

    from canobatch.effects import Data
    from canobatch.pool.backend import Header
    from canobatch.segments import Segments


class _Fault(NamedTuple):
    """What is to befall some calls, instead of or after their work."""

    state: Any
    branch: int | None
    attempts: int
    error: BaseException | None
    reason: str

    def hits(self, state: Any, call: Call) -> bool:
        is_branch = self.branch is None or self.branch == call.branch
        return bool(self.state == state and is_branch and call.attempt <= self.attempts)


class InlineBackend:
    """A backend without processes, for tests: the same run takes the same course each time.

    Calls are made in the run's thread in branch order, each when the one before has ended, so that ``any`` and
    ``quorum`` never get to those that a pool would have killed. As with a pool tasks are pickled on their way, get
    copies, and leave values and store operations; what cannot be sent fails here too. An attempt that took longer
    than its timeout (by the `FakeClock`, say) counts as killed when it returns.

    Single tasks do not come here unless they run in workers (``where="worker"``).

    Example:
        >>> with InlineBackend() as pool:                                 # doctest: +SKIP
        ...     pool.fail("COUNT", OSError("disk"), branch=2, attempts=1)
        ...     workflow.orchestrate(S.START, pool=pool)
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._blobs: dict[int, tuple[int, Data]] = {}
        self._opened: dict[int, Any] = {}
        self._faults: list[_Fault] = []
        #: Attempts that were made: (state, branch, attempt), in order.
        self.calls: list[tuple[Any, int | None, int]] = []

    # -- faults

    def fail(self, state: Any, error: BaseException, *, branch: int | None = None, attempts: int = 1) -> Self:
        """Let the first ``attempts`` of a state's calls raise ``error`` instead of doing their work.

        Args:
            state: The state, or its label.
            error: What they fail with.
            branch: Only this one; None: all.
            attempts: How many attempts of each.
        """
        return self._add(_Fault(state, branch, attempts, error, ""))

    def lose(self, state: Any, *, branch: int | None = None, attempts: int = 1) -> Self:
        """Let them be lost with their worker, as if the kernel had killed it; arguments as for `fail`."""
        return self._add(_Fault(state, branch, attempts, None, "died"))

    def time_out(self, state: Any, *, branch: int | None = None, attempts: int = 1) -> Self:
        """Let them be killed for taking longer than their attempt timeout; arguments as for `fail`."""
        return self._add(_Fault(state, branch, attempts, None, "timeout"))

    def _add(self, fault: _Fault) -> Self:
        self._faults.append(fault)
        return self

    def fault_of(self, state: Any, call: Call) -> _Fault | None:
        """Return what is to befall a call, or None."""
        return next((f for f in self._faults if f.hits(state, call) or f.hits(label(state), call)), None)

    # -- the protocol

    def open_lane(
        self, run: Hashable, deliver: Callable[[list[Event]], None], what: tuple[str, Any], segments: Segments
    ) -> _Lane:
        """Return a lane; see `Backend`."""
        del run  # there is nothing to share out
        return _Lane(self, deliver, what[1], segments)

    def share(self, kind: int, data: Data) -> int:
        """Keep ``data``; see `Backend`."""
        number = next(self._numbers)
        self._blobs[number] = (kind, data)
        return number

    def forget(self, numbers: Sequence[int]) -> None:
        """Drop what `share` kept."""
        for number in numbers:
            self._blobs.pop(number, None)
            self._close(self._opened.pop(number, None))

    def close(self) -> None:
        """Tear down worker resources that tasks were given."""
        while self._opened:
            self._close(self._opened.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close(self, opened: Any) -> None:
        if isinstance(opened, WorkerResources):
            opened.close()

    # -- what calls need

    def open(self, number: int) -> Any:
        """Return what was shared under a number, unpacked once."""
        if number not in self._opened:
            kind, data = self._blobs[number]
            self._opened[number] = _OPENERS[kind](data)
        return self._opened[number]

    def resources(self, needs: Sequence[int]) -> WorkerResources:
        """Return the worker's resources among what calls need."""
        for number in needs:
            if self._blobs[number][0] == worker.RESOURCES:
                opened: WorkerResources = self.open(number)
                return opened
        return WorkerResources(dumps({}))


def _task_set(data: Data) -> worker.TaskSet:
    try:
        return worker.TaskSet(*loads(data))
    except Exception as error:
        raise PayloadError(f"the task cannot be unpacked: {describe_error(error)}") from error


_OPENERS: dict[int, Callable[[Any], Any]] = {
    worker.TASKS: _task_set,
    worker.RUN: loads,
    worker.LAYER: ReceivedLayer,
    worker.SPLITS: loads,
    worker.RESOURCES: WorkerResources,
}


class _Lane:
    """The calls of one state of one run; each ends before `submit` returns."""

    #: One at a time.
    slots = 1
    is_hungry = True

    def __init__(
        self, backend: InlineBackend, deliver: Callable[[list[Event]], None], state: Any, segments: Segments
    ) -> None:
        self._backend = backend
        self._deliver = deliver
        self._state = state
        self._segments = segments
        self._header: Header | None = None
        self._tells_begin = False

    def begin(self, header: Header, limit: int | None, may_kill: int, *, tells_begin: bool = False) -> None:
        """Start a visit of the state; see `LaneHandle`."""
        del limit, may_kill
        self._header, self._tells_begin = header, tells_begin

    def submit(self, calls: Sequence[Call]) -> None:
        """Make calls, in order."""
        for call in calls:
            if self._tells_begin:
                self._deliver([Began(self, [call], 0)])
            self._backend.calls.append((self._state, call.branch, call.attempt))
            self._deliver([self._made(call)])

    def stop(self) -> bool:
        """Nothing runs, so nothing follows."""
        return False

    def room(self) -> int:
        """Return 1: the next call waits for the outcome of this one."""
        return 1

    def _made(self, call: Call) -> Event:
        fault = self._backend.fault_of(self._state, call)
        begun, started = _clock.epoch(), _clock.monotonic()
        if fault is not None and fault.error is None:
            code = -9 if fault.reason == "died" else None
            return Lost(self, call, fault.reason, 0, code, begun, 0.0, None)
        view: StoreView | None = None
        payload: Any
        try:
            view = self._view()
            value = self._value(call, view, started, None if fault is None else fault.error)
            payload, succeeded = None if value is None else pack(value, self._segments.place), True
        except BaseException as error:  # noqa: BLE001 - SystemExit too is a failed attempt
            payload, succeeded = tuple(record_error(error)), False
        took = _clock.monotonic() - started
        if call.timeout is not None and took > call.timeout:
            return Lost(self, call, "timeout", 0, None, begun, took, None)
        operations = tuple(view.operations) if view is not None and succeeded else ()
        return Finished(self, call, succeeded, payload, operations, begun, took, 0.0, None)

    def _view(self) -> StoreView:
        assert self._header is not None
        layers = [self._backend.open(number) for number in self._header.snapshot]
        return StoreView(Layers(layers), self._segments.place)

    def _value(self, call: Call, view: StoreView, started: float, fault: BaseException | None) -> Any:
        if fault is not None:
            raise fault
        header = self._header
        assert header is not None
        tasks: worker.TaskSet = self._backend.open(header.definition)
        limits = [header.deadline, None if call.timeout is None else started + call.timeout]
        run_id, params = self._backend.open(header.run)
        context = TaskContext(
            store=view,
            params=params,
            run_id=run_id,
            state=tasks.state,
            branch=call.branch,
            attempt=call.attempt,
            logger=logging.getLogger(f"canobatch.{tasks.workflow}"),
            deadline_at=min((at for at in limits if at is not None), default=None),
            split_of=lambda state: self._split_of(header.splits, state),
            report=lambda done, total, message: self._deliver([Progressed(self, call, done, total, message)]),
            is_cancelled=lambda: False,
            resources=self._backend.resources(header.needs),
        )
        if tasks.is_map:
            item = None if call.item is None else loads(call.item)
            return bound_call(entry_point(tasks.tasks[0]), (2,))(context, item)
        return bound_call(entry_point(tasks.tasks[call.branch or 0]), (1, 0))(context)

    def _split_of(self, splits: int, state: Any) -> Any:
        packed = self._backend.open(splits) if splits else {}
        if state not in packed:
            known = ", ".join(map(label, packed)) or "none"
            raise WorkflowError(f"no split of state {label(state)} has ended in this run; ended: {known}")
        return loads(arrived(packed[state]))
