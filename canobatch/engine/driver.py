"""The driver: takes one run from its initial state to an exit, in a thread of its own.

It is the only one that writes to the run's store, and enters a state only when nothing of the state
before is alive.
"""

from __future__ import annotations

import logging
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.definition import Map, Single, Split, label
from canobatch.effects import describe_error
from canobatch.engine.attempt import (
    delay_before_next,
    final_error,
    may_retry,
)
from canobatch.engine.mailbox import Mailbox
from canobatch.engine.patience import Patience
from canobatch.engine.report import RunReport, StateReport
from canobatch.engine.saga import Saga
from canobatch.engine.scribe import Scribe
from canobatch.engine.single import run_single
from canobatch.engine.split import SplitExecution
from canobatch.engine.station import Shelf, Station
from canobatch.engine.trimmer import Trimmer
from canobatch.errors import (
    CommitError,
    CompensationError,
    JournalError,
    PayloadError,
    RunCancelledError,
    TaskError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.observe import Event, Observer
from canobatch.pool import Finished, Lost, Progressed
from canobatch.task import TaskConfig, TaskContext
from canobatch.view import StoreView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from canobatch.cancel import CancelToken
    from canobatch.definition import Definition
    from canobatch.effects import Operation
    from canobatch.join import SplitResult
    from canobatch.pool import Backend, LaneHandle
    from canobatch.pool.backend import Header
    from canobatch.resources import Resources
    from canobatch.snapshot import Snapshot
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
        timeout: float | None = None,
        scribe: Scribe | None = None,
        output: str | None = None,
    ) -> None:
        self.definition = definition
        self.store = store
        self.run_id = run_id
        self.token = token
        self.params = params
        self.resources = resources
        self.scribe = scribe or Scribe(definition)
        self._states = self.scribe.earlier_visits()
        self.path: list[Any] = [report.state for report in self._states]
        self.splits = self.scribe.earlier_splits()
        self.splits_version = 0
        self._initial = initial
        self._backend = backend
        self._shelf = shelf
        self._observers = tuple(observers)
        self._where = where
        self._output = output
        self._trimmer: Trimmer | None = None
        self._logger = logging.getLogger(f"canobatch.{definition.name}")
        self._started = _clock.monotonic()
        self._started_at = _clock.as_utc(_clock.epoch())
        self._ended: float | None = None
        self._error: BaseException | None = None
        self._limit = min((limit for limit in (definition.total_timeout, timeout) if limit is not None), default=None)
        self._deadline: float | None = None
        self.mailbox = Mailbox(run_id, self.check, self._next_check)
        self._station: Station | None = None
        #: The task of each state that has run here, ready to be called.
        self.calls: dict[Any, Callable[..., Any]] = {}
        self._seq = 0
        # A task in the parent may report progress from a thread of its own.
        self._emitting = threading.RLock()
        self._saga = Saga(self)
        self._patience: Patience | None = None
        self._is_killed = False

    # -- the run

    def run(self) -> Any:
        """Run to an exit state and return it."""
        # A run may have waited for its turn since it was made.
        self._started, self._started_at = _clock.monotonic(), _clock.as_utc(_clock.epoch())
        self._deadline = None if self._limit is None else self._started + self._limit
        forget = self.token.watch(self.mailbox.wake)
        kind = "run_resumed" if self.scribe.is_resumed else "run_started"
        self.emit(kind, state=self._initial, detail=self.definition.name)
        try:
            with self.resources.held(), self._saga.rolled_back():
                self._saga.restore()
                state = self._walk()
            self.scribe.end(state, None, is_kept=True)
        except BaseException as error:
            self._error = error
            self._record_end(error)
            own = error.original if isinstance(error, CompensationError) else error
            self.emit("run_cancelled" if isinstance(own, RunCancelledError) else "run_failed", detail=error)
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

    def _record_end(self, error: BaseException) -> None:
        try:
            self.scribe.end(self.path[-1] if self.path else None, error, is_kept=self.token.is_kept is not False)
        except JournalError:
            # The run's own error is the one to tell; the journal has the run as interrupted.
            _log.exception("the end of run %s could not be recorded", self.run_id)

    def _walk(self) -> Any:
        definition, state = self.definition, self._initial
        while True:
            self.path.append(state)
            self.scribe.enter(state)
            self.emit("state_entered", state=state)
            failure = self.scribe.failure()
            if failure is not None:
                raise failure
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
                    state = run_single(self, self._saga, state, handler, report)
                else:
                    state = self._run_split(state, handler, report)
            except Exception as error:
                report.error = error
                raise
            except BaseException as error:
                # Code of the user's, outside of any attempt: what would end a process ends this run, and says so.
                text = f"state {label(state)}: {describe_error(error)} was raised in the launcher"
                report.error = WorkflowError(text, state=state, path=self.path)
                raise report.error from error
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

    def is_for_worker(self, config: TaskConfig) -> bool:
        """Return whether a single task with this configuration runs in a worker."""
        if config.where is not None:
            return config.where == "worker"
        return config.runs_alone or self._deadline is not None or self._where == "worker"

    def await_outcome(self, lane: LaneHandle, state: Any) -> Finished | Lost:
        """Return what became of the one call of ``lane``."""
        while True:
            for event in self.mailbox.read(lane, None):
                if isinstance(event, Finished | Lost):
                    return event
                if isinstance(event, Progressed):
                    self.progress(state, event)

    def back_off(self, config: TaskConfig, error: TaskError) -> None:
        """Wait until the next attempt, or raise if there is none."""
        if not may_retry(config, error):
            error = final_error(config, error)
            self.scribe.fail(error, is_final=True)
            raise error
        self.scribe.fail(error, is_final=False)
        self.emit("retry", state=error.state, attempt=error.attempt, detail=error)
        until = _clock.monotonic() + delay_before_next(config, error, random.random)
        while _clock.monotonic() < until:
            self.mailbox.read(None, until)

    def checked(self, state: Any, value: Any) -> Any:
        """Return ``value``, which the task of ``state`` returned, if it is a state.

        Raises:
            WorkflowError: It is none of this workflow's.
        """
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
        join, error = handler.join, outcome.error
        facts = {"report": report, "result": execution.result, "cut": execution.cut}
        if error is None:
            self.commit(state, outcome.writes, following=join.join_state, **facts)
            return join.join_state
        report.error = error
        following = join.on_timeout if outcome.is_timeout and join.on_timeout is not None else join.on_failure
        if following is None:
            raise error
        self.commit(state, [], following=following, error=error, **facts)
        return following

    # -- what states share

    def station(self) -> Station:
        """Return this run's side of the pool, made when first needed."""
        if self._station is None:
            if self._output is not None:
                self._trimmer = Trimmer(self._output)
            backend = self._backend()
            self.scribe.own(getattr(backend, "token", ""))
            self._station = Station(
                backend, self._shelf(backend), self.run_id, self.params, self.mailbox.put, self.store.segments
            )
        return self._station

    def header(
        self,
        state: Any,
        tasks: list[Any],
        deadline: float | None,
        *,
        snapshot: Snapshot | None = None,
        is_map: bool = False,
        is_made_here: bool = False,
    ) -> Header:
        """Share what the calls of a visit need; ``snapshot``: what they see, if not just the store.

        Raises:
            PayloadError: A task, or something else of it, cannot be sent to a worker.
        """
        try:
            return self.station().header(
                state,
                tasks,
                self.store.snapshot() if snapshot is None else snapshot,
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

    def view(self, snapshot: Snapshot | None = None) -> StoreView:
        """Return what a task that runs here sees: a version of the store, the present one if none is given."""
        seen = self.store.snapshot() if snapshot is None else snapshot
        return StoreView(seen.entries, self.store.segments.place)

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

    def commit(
        self, state: Any, writes: Sequence[tuple[str, Sequence[Operation]]], *, following: Any = None, **facts: Any
    ) -> None:
        """Commit accepted writes, all or none, and where the run goes; None: it stays in this state.

        ``facts`` are for the journal; see `Scribe.keeper_of`.
        """
        keep = self.scribe.keeper_of(state, following, **facts)
        if keep is None and not writes:
            return
        try:
            if keep is None:
                self.store.commit(writes)
            else:
                self.store.commit(writes, keep)
        except CommitError as error:
            raise WorkflowError(f"state {label(state)}: {error}", state=state, path=self.path) from error.__cause__

    @property
    def deadline(self) -> float | None:
        """When the run's total timeout passes, on the monotonic clock."""
        return self._deadline

    def hasten(self, reason: str) -> None:
        """Cancel, and have no patience with what runs; from any thread."""
        self._is_killed = True
        self.token.cancel(reason)
        self.mailbox.wake()

    @contextmanager
    def patient(self, grace: float | None, *, is_firm: bool = False) -> Iterator[None]:
        """Within, a cancel and the run's timeout are heeded only ``grace`` seconds after they came; None: never.

        A kill is heeded at once, unless the patience ``is_firm``.
        """
        before, self._patience = self._patience, Patience(grace, is_firm=is_firm)
        try:
            yield
        finally:
            self._patience = before

    def _next_check(self) -> float | None:
        """Return when `check` may have to raise, as far as is known."""
        if self._patience is None:
            return self._deadline
        if self._patience.until is None and self._deadline is not None and _clock.monotonic() < self._deadline:
            return self._deadline
        return self._patience.until

    def check(self) -> None:
        """Raise if the run was cancelled or its time is up, and nothing asks for patience."""
        now = _clock.monotonic()
        is_over = self.token.is_cancelled or (self._deadline is not None and now >= self._deadline)
        patience = self._patience
        if not is_over or (patience is not None and (patience.is_firm or not self._is_killed) and patience.bears(now)):
            return
        if self.token.is_cancelled:
            state = self.path[-1] if self.path else None
            where = "" if state is None else f" in state {label(state)}"
            raise RunCancelledError(
                f"run {self.run_id} was cancelled{where}: {self.token.reason}",
                reason=self.token.reason,
                state=state,
                path=self.path,
            )
        limit = self._limit or 0.0
        state = self.path[-1] if self.path else None
        raise WorkflowTimeoutError(
            f"run {self.run_id} did not end within {limit:g} s; it was in state {label(state)}",
            elapsed=now - self._started,
            limit=limit,
            state=state,
            path=self.path,
        )

    # -- events

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
