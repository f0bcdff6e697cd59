"""The driver: takes one run from its initial state to an exit, in a thread of its own.

It is the only one that writes to the run's store, and enters a state only when nothing of the state
before is alive.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from typing import TYPE_CHECKING, Any

from canobatch import _clock, logs
from canobatch.definition import Map, Single, Split, label
from canobatch.effects import loads
from canobatch.engine.admission import let_through
from canobatch.engine.attempt import (
    Where,
    delay_before_next,
    error_of,
    final_error,
    may_retry,
    unpacking_error,
    wrap,
)
from canobatch.engine.report import RunReport, StateReport
from canobatch.engine.split import SplitExecution
from canobatch.engine.station import Shelf, Station
from canobatch.engine.trimmer import Trimmer
from canobatch.errors import (
    CommitError,
    PayloadError,
    RunCancelledError,
    TaskError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.observe import Event, Observer
from canobatch.pool import Broken, Call, Finished, Logged, Lost, Progressed, Stopped
from canobatch.task import TaskConfig, TaskContext, bound_call, entry_point
from canobatch.view import StoreView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from canobatch.cancel import CancelToken
    from canobatch.definition import Definition
    from canobatch.effects import Operation
    from canobatch.join import SplitResult
    from canobatch.pool import Backend, LaneHandle
    from canobatch.pool import Event as PoolEvent
    from canobatch.pool.backend import Header
    from canobatch.resources import Resources
    from canobatch.store import Store

_log = logging.getLogger(__name__)


class Driver:
    """One run. `run` is called once, in the run's thread; `report` and the token from any."""

    def __init__(
        self,
        definition: Definition,
        initial: Any,
        *,
        store: Store,
        backend: Callable[[], Backend],
        shelf: Callable[[Backend], Shelf],
        run_id: str,
        params: Any,
        token: CancelToken,
        observers: Sequence[Observer] = (),
        resources: Resources,
        where: str = "parent",
        output: str | None = None,
    ) -> None:
        self.definition = definition
        self.store = store
        self.run_id = run_id
        self.token = token
        self.params = params
        self.resources = resources
        self.path: list[Any] = []
        self.splits: dict[Any, SplitResult] = {}
        self.splits_version = 0
        self._initial = initial
        self._backend = backend
        self._shelf = shelf
        self._observers = tuple(observers)
        self._where = where
        self._output = output
        self._trimmer: Trimmer | None = None
        self._logger = logging.getLogger(f"canobatch.{definition.name}")
        self._states: list[StateReport] = []
        self._started = _clock.monotonic()
        self._started_at = _clock.as_utc(_clock.epoch())
        self._ended: float | None = None
        self._error: BaseException | None = None
        self._deadline = None if definition.total_timeout is None else self._started + definition.total_timeout
        self._mail: queue.SimpleQueue[list[PoolEvent] | None] = queue.SimpleQueue()
        self._station: Station | None = None
        self._calls: dict[Any, Callable[..., Any]] = {}
        self._seq = 0
        # A task in the parent may report progress from a thread of its own.
        self._emitting = threading.RLock()

    # -- the run

    def run(self) -> Any:
        """Run to an exit state and return it."""
        forget = self.token.watch(self.wake)
        self.emit("run_started", state=self._initial, detail=self.definition.name)
        try:
            with self.resources.held():
                state = self._walk()
        except BaseException as error:
            self._error = error
            is_cancel = isinstance(error, RunCancelledError)
            self.emit("run_cancelled" if is_cancel else "run_failed", detail=error)
            raise
        else:
            self.emit("run_finished", state=state)
            return state
        finally:
            forget()
            if self._station is not None:
                self._station.close()
            if self._trimmer is not None:
                self._trimmer.stop()
            self._ended = _clock.monotonic()

    def _walk(self) -> Any:
        definition, state = self.definition, self._initial
        while True:
            self.path.append(state)
            self.emit("state_entered", state=state)
            # An exit before a cancel: a run that is through is not undone by a late one.
            if state in definition.exits:
                return state
            self.check()
            handler = definition.handlers.get(state)
            if handler is None:
                raise WorkflowError(
                    f"no handler is registered for state {label(state)}; states: {definition.known_states()}",
                    state=state,
                    path=self.path,
                )
            began = _clock.monotonic()
            report = StateReport(state, len(self._states) + 1, _clock.as_utc(_clock.epoch()))
            self._states.append(report)
            try:
                if isinstance(handler, Single):
                    state = self._run_single(state, handler, report)
                else:
                    state = self._run_split(state, handler, report)
            except BaseException as error:
                report.error = error
                raise
            finally:
                report.duration = _clock.monotonic() - began

    def report(self) -> RunReport:
        """Return what the run did so far."""
        until = self._ended if self._ended is not None else _clock.monotonic()
        return RunReport(
            self.run_id,
            self.definition.name,
            self.path[-1] if self.path else None,
            list(self.path),
            list(self._states),
            dict(self.splits),
            self._started_at,
            until - self._started,
            self._error,
        )

    # -- single tasks

    def _run_single(self, state: Any, handler: Single, report: StateReport) -> Any:
        config = self.definition.config_of(handler, handler.task)
        try:
            if self._is_for_worker(config):
                value, operations = self._attempt_in_worker(state, handler, config, report)
            else:
                value, operations = self._attempt_in_parent(state, handler, config, report)
        except TaskError as error:
            report.error = error
            if handler.on_error is None:
                raise
            return handler.on_error
        if operations and handler.is_router:
            raise WorkflowError(
                f"state {label(state)} is a router and must not write to the store; use register()",
                state=state,
                path=self.path,
            )
        following = self._checked(state, value)
        if operations:
            self.commit(state, [("its task", operations)])
        return following

    def _is_for_worker(self, config: TaskConfig) -> bool:
        if config.where is not None:
            return config.where == "worker"
        return config.runs_alone or self._deadline is not None or self._where == "worker"

    def _attempt_in_parent(
        self, state: Any, handler: Single, config: TaskConfig, report: StateReport
    ) -> tuple[Any, Sequence[Operation]]:
        call = self._calls.get(state)
        if call is None:
            call = self._calls[state] = bound_call(entry_point(handler.task), (1, 0))
        while True:
            where = Where(state, None, report.attempts + 1, tuple(self.path))
            admitted = let_through(self, config, where)
            report.attempts += 1
            view = StoreView(self.store.snapshot().entries, self.store.segments.place)
            context = self.context(state, view, report.attempts)
            try:
                value = call(context)
            except BaseException as own:  # noqa: BLE001 - SystemExit too is a failed attempt
                admitted.end(None if self.token.is_cancelled else False)
                # A task that gave up because the run was cancelled has not failed.
                self.check()
                error = wrap(own, where)
            else:
                admitted.end(True)
                return value, view.operations
            self._back_off(config, error)

    def _attempt_in_worker(
        self, state: Any, handler: Single, config: TaskConfig, report: StateReport
    ) -> tuple[Any, Sequence[Operation]]:
        station = self.station()
        header = self.header(state, [handler.task], self._deadline)
        lane = station.lane(state)
        while True:
            where = Where(state, None, report.attempts + 1, tuple(self.path))
            admitted = let_through(self, config, where)
            report.attempts += 1
            lane.begin(header, None, 0)
            call = Call(None, report.attempts, None, config.attempt_timeout, config.memory_limit, config.runs_alone)
            try:
                lane.submit([call])
                event = self._await_outcome(lane, state)
            except BaseException:
                self.kill(lane)
                admitted.end(None)
                raise
            admitted.end(isinstance(event, Finished) and event.succeeded)
            if isinstance(event, Finished) and event.succeeded:
                try:
                    return None if event.payload is None else loads(event.payload), event.operations
                except BaseException as error:
                    raise unpacking_error(error, where) from error
            self._back_off(config, error_of(event, where))

    def _await_outcome(self, lane: LaneHandle, state: Any) -> Finished | Lost:
        while True:
            for event in self.mail(lane, None):
                if isinstance(event, Finished | Lost):
                    return event
                if isinstance(event, Progressed):
                    self.progress(state, event)

    def _back_off(self, config: TaskConfig, error: TaskError) -> None:
        """Wait until the next attempt, or raise if there is none."""
        if not may_retry(config, error):
            raise final_error(config, error)
        self.emit("retry", state=error.state, attempt=error.attempt, detail=error)
        until = _clock.monotonic() + delay_before_next(config, error, random.random)
        while _clock.monotonic() < until:
            self.mail(None, until)

    def _checked(self, state: Any, value: Any) -> Any:
        if self.definition.knows(value):
            return value
        if isinstance(value, list | tuple | set):
            cure = "a single task returns one state; use register_split or register_map to run many tasks"
        elif value is None:
            cure = "its task must return the next state"
        else:
            cure = "register it, add it as an exit state, or return one of " + self.definition.known_states()
        text = label(value)
        raise WorkflowError(
            f"state {label(state)} returned {text}, which is not a state of workflow {self.definition.name!r}: {cure}",
            state=state,
            path=self.path,
        )

    # -- splits

    def _run_split(self, state: Any, handler: Split | Map, report: StateReport) -> Any:
        execution = SplitExecution(self, state, handler, self._deadline)
        try:
            outcome = execution.run()
        finally:
            report.attempts = execution.attempts
            if execution.result is not None:
                self.splits[state] = execution.result
                self.splits_version += 1
        if outcome.error is None:
            self.commit(state, outcome.writes)
            return handler.join.join_state
        report.error = outcome.error
        join = handler.join
        if outcome.is_timeout and join.on_timeout is not None:
            return join.on_timeout
        if join.on_failure is not None:
            return join.on_failure
        raise outcome.error

    # -- what states share

    def station(self) -> Station:
        """Return this run's side of the pool, made when first needed."""
        if self._station is None:
            if self._output is not None:
                self._trimmer = Trimmer(self._output)
            backend = self._backend()
            self._station = Station(
                backend, self._shelf(backend), self.run_id, self.params, self._mail.put, self.store.segments
            )
        return self._station

    def header(
        self, state: Any, tasks: list[Any], deadline: float | None, *, is_map: bool = False, is_made_here: bool = False
    ) -> Header:
        """Share what the calls of a visit need.

        Raises:
            PayloadError: A task, or something else of it, cannot be sent to a worker.
        """
        try:
            return self.station().header(
                state,
                tasks,
                self.store.snapshot(),
                self.splits,
                self.splits_version,
                deadline,
                is_map=is_map,
                is_made_here=is_made_here,
                output=None if self._output is None else (self._output, len(self._states)),
            )
        except PayloadError as error:
            text = str(error) if str(error).startswith("state ") else f"state {label(state)}: {error}"
            raise PayloadError(text, state=state, path=self.path) from error.__cause__

    def context(self, state: Any, view: StoreView, attempt: int) -> TaskContext:
        """Return the context of something that runs here, in the parent."""
        return TaskContext(
            store=view,
            params=self.params,
            run_id=self.run_id,
            state=state,
            branch=None,
            attempt=attempt,
            logger=self._logger,
            deadline_at=self._deadline,
            split_of=self._split_of,
            report=lambda done, total, message: self.emit(
                "progress", state=state, attempt=attempt, detail=(done, total, message)
            ),
            is_cancelled=lambda: self.token.is_cancelled,
            resources=self.resources,
        )

    def _split_of(self, state: Any) -> SplitResult:
        if state not in self.splits:
            known = ", ".join(map(label, self.splits)) or "none"
            raise WorkflowError(f"no split of state {label(state)} has ended in this run; ended: {known}")
        return self.splits[state]

    def commit(self, state: Any, writes: Sequence[tuple[str, Sequence[Operation]]]) -> None:
        """Commit accepted writes, all or none."""
        try:
            self.store.commit(writes)
        except CommitError as error:
            raise WorkflowError(f"state {label(state)}: {error}", state=state, path=self.path) from error.__cause__

    def wake(self) -> None:
        """Make `mail` return; from any thread."""
        self._mail.put(None)

    def mail(self, lane: LaneHandle | None, until: float | None) -> list[PoolEvent]:
        """Wait for events of ``lane`` until a time on the monotonic clock; [] when it passed.

        Raises:
            RunCancelledError: The run was cancelled.
            WorkflowTimeoutError: The run's total timeout passed.
            CanobatchError: The pool can give no more outcomes.
        """
        self.check()
        limits = [at for at in (until, self._deadline) if at is not None]
        timeout = max(0.0, min(limits) - _clock.monotonic()) if limits else None
        events: list[PoolEvent] = []
        try:
            events += self._mail.get(timeout=timeout) or ()
            while True:
                events += self._mail.get_nowait() or ()
        except queue.Empty:
            pass
        self._relay(events)
        self.check()
        mine = [event for event in events if event.lane is lane]
        for event in mine:
            if isinstance(event, Broken):
                raise event.error
        return mine

    def kill(self, lane: LaneHandle) -> list[tuple[Call, float | None]]:
        """Kill what runs of ``lane``; return, when it is dead, the calls that had begun and for how long they ran."""
        begun: list[tuple[Call, float | None]] = []
        is_over = not lane.stop()
        while True:
            # Not through `mail`: neither a cancel nor a timeout may cut this short. The pool bounds it.
            try:
                events = self._mail.get(block=not is_over)
            except queue.Empty:
                return begun
            self._relay(events or ())
            for event in events or ():
                if event.lane is not lane:
                    continue
                if isinstance(event, Finished | Lost):
                    begun.append((event.call, event.duration))
                elif isinstance(event, Stopped):
                    begun += event.begun
                    is_over = True
                    if not event.is_certain:
                        _log.warning("a killed worker of run %s has not ended; the run goes on", self.run_id)
                elif isinstance(event, Broken):
                    is_over = True

    def check(self) -> None:
        """Raise if the run was cancelled or its time is up."""
        if self.token.is_cancelled:
            state = self.path[-1] if self.path else None
            where = "" if state is None else f" in state {label(state)}"
            raise RunCancelledError(
                f"run {self.run_id} was cancelled{where}: {self.token.reason}",
                reason=self.token.reason,
                state=state,
                path=self.path,
            )
        if self._deadline is not None and _clock.monotonic() >= self._deadline:
            limit = self.definition.total_timeout or 0.0
            state = self.path[-1] if self.path else None
            raise WorkflowTimeoutError(
                f"run {self.run_id} did not end within {limit:g} s; it was in state {label(state)}",
                elapsed=_clock.monotonic() - self._started,
                limit=limit,
                state=state,
                path=self.path,
            )

    # -- events

    def _relay(self, events: Sequence[PoolEvent]) -> None:
        """Log what was logged in workers."""
        for event in events:
            if type(event) is Logged:
                facts = {"state": label(event.what[1]), "branch": event.branch, "attempt": event.attempt}
                logs.relay(event.record, run_id=self.run_id, **facts)

    def progress(self, state: Any, event: Progressed) -> None:
        """Pass on what a task reported."""
        if self._observers:
            detail = (event.done, event.total, event.message)
            self.emit("progress", state=state, branch=event.call.branch, attempt=event.call.attempt, detail=detail)

    @property
    def is_observed(self) -> bool:
        """Whether anyone listens."""
        return bool(self._observers)

    def emit(
        self, kind: str, *, state: Any = None, branch: int | None = None, attempt: int | None = None, detail: Any = None
    ) -> None:
        """Tell the observers, if there are any."""
        if not self._observers:
            return
        with self._emitting:
            self._seq += 1
            event = Event(self.run_id, self._seq, _clock.as_utc(_clock.epoch()), kind, state, branch, attempt, detail)
            for observer in self._observers:
                try:
                    observer.on_event(event)
                except BaseException:  # noqa: BLE001 - observers are isolated, also one that exits
                    _log.exception("an observer failed on %s; the event is dropped for it", kind)
