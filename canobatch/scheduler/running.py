"""RunningScheduler: the live side of a scheduler."""

from __future__ import annotations

import heapq
import logging
import queue
import random
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from canobatch import _clock, _procs
from canobatch.errors import SchedulerError, UnknownFlowError
from canobatch.observe import Event
from canobatch.scheduler._flow import Desk, LiveFlow
from canobatch.scheduler.flows import SkipReason
from canobatch.scheduler.pings import Pinger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from types import TracebackType

    from canobatch.engine import Run
    from canobatch.observe import Observer
    from canobatch.pool import Backend
    from canobatch.scheduler.clock import Clock
    from canobatch.scheduler.flows import FlowInfo
    from canobatch.scheduler.ledger import FlowRecord, Ledger
    from canobatch.scheduler.spec import FlowSpec

_log = logging.getLogger(__name__)

#: Of the seconds given to `stop`, those kept for what must be cancelled: a quarter, and at most these.
_LAST_SECONDS = 5.0
#: Seconds that what was cancelled gets in any case.
_LEAST_SECONDS = 1.0


class RunningScheduler:
    """A scheduler at work. Made by `Scheduler.start`; stop it, or use it as a context manager.

    One thread waits for whatever is due next; runs have threads of their own. Every method may be called from
    any thread.
    """

    def __init__(
        self,
        specs: Iterable[FlowSpec],
        *,
        ledger: Ledger,
        clock: Clock,
        pool: Backend | None,
        observers: Sequence[Observer],
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._observers = tuple(observers)
        self._pinger = Pinger()
        self._wake = threading.Condition()
        self._alarms: list[tuple[datetime, int, LiveFlow]] = []
        self._alarms_set = 0
        self._news: deque[FlowRecord] = deque()
        self._events = 0
        self._is_stopping = False
        self._ended = threading.Event()
        #: What wakes `serve`: the number of a signal, or None at the end.
        self._for_server: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        desk = Desk(clock, ledger, self._pinger, pool, random.random, self._tell, self._on_end)
        self._flows = {spec.id: LiveFlow(spec, desk) for spec in specs}
        self._thread = threading.Thread(target=self._run, name="canobatch-scheduler", daemon=True)
        with self._wake:
            for flow in self._flows.values():
                self._set_alarm(flow)
        self._thread.start()

    # -- flows

    def trigger(self, id: str, params: Any = None) -> Run:
        """Run a flow now, whatever its schedule; also in a backoff.

        Args:
            id: The flow.
            params: The run's parameters; None: those of the flow.

        Returns:
            The run, to wait for. If the flow is running and its overlap policy is one of those that queue, the
            run begins when its turn comes.

        Raises:
            UnknownFlowError: There is no such flow.
            FlowPausedError: The flow is paused.
            FlowTrippedError: The flow has tripped.
            FlowOverlapError: The flow runs, and its overlap policy is to skip.
            ConfigurationError: The parameters do not fit the workflow's.
            SchedulerError: The scheduler has stopped.
        """
        with self._wake:
            flow = self._flow(id)
            if self._is_stopping:
                raise SchedulerError(f"flow {id!r} cannot be triggered: the scheduler has been stopped", flow=id)
            run = flow.trigger(params)
            self._changed(flow)
            return run

    def status(self, id: str) -> FlowInfo:
        """Describe a flow.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            return self._flow(id).info()

    def list(self) -> Sequence[FlowInfo]:
        """Describe all flows, in the order of their registration."""
        with self._wake:
            return [flow.info() for flow in self._flows.values()]

    def history(self, id: str, limit: int = 100) -> Sequence[FlowRecord]:
        """Return what happened to a flow, the newest ``limit`` records, oldest first.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            self._flow(id)
        return self._ledger.history(id, limit)

    def cancel_flow(self, id: str) -> None:
        """Cancel what runs of a flow; does nothing if nothing does. What waits for its turn begins after it.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            self._flow(id).cancel(f"flow {id!r} was cancelled")

    def reset_flow(self, id: str) -> None:
        """Forget a flow's failures: it may run again after a backoff or a trip.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            flow = self._flow(id)
            flow.state = flow.state.reset()
            self._changed(flow)

    def pause_flow(self, id: str) -> None:
        """Let no run of a flow begin until it is unpaused; what runs goes on, and ticks are skipped.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            flow = self._flow(id)
            flow.state = flow.state.paused()
            self._changed(flow)

    def unpause_flow(self, id: str) -> None:
        """Let a paused flow run again, from its next tick on.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        with self._wake:
            flow = self._flow(id)
            flow.state = flow.state.unpaused()
            self._changed(flow)

    def _flow(self, id: str) -> LiveFlow:
        try:
            return self._flows[id]
        except (KeyError, TypeError):
            known = ", ".join(self._flows) or "none"
            raise UnknownFlowError(f"there is no flow {id!r}; flows: {known}", flow=str(id)) from None

    # -- the end

    def stop(self, timeout: float = 30.0) -> None:
        """Let nothing new begin, and end within ``timeout`` seconds.

        What runs may come to its end; shortly before the time is over (a quarter of it, at most 5 s) it is
        cancelled, rolled back and killed. A second stop may only shorten the first.

        Args:
            timeout: Seconds; 0 cancels at once, and waits a second at most.

        Raises:
            SchedulerError: Something has not ended: a task that runs in this process cannot be killed. The error
                names it; the end of the process ends it.
        """
        until = _clock.monotonic() + timeout
        self._stop(until - min(timeout / 4, _LAST_SECONDS), until)

    def _stop(self, drain_until: float, until: float) -> None:
        with self._wake:
            if not self._is_stopping:
                self._is_stopping = True
                for flow in self._flows.values():
                    flow.drop_waiting(SkipReason.STOPPED)
                self._wake.notify_all()
            self._await_runs(drain_until)
            until = max(until, _clock.monotonic() + _LEAST_SECONDS)
            for flow in self._flows.values():
                flow.cancel("the scheduler was stopped")
            self._await_runs(until)
            left = [f"flow {flow.id!r}: {_whereabouts(run)}" for flow, run in self._running()]
        if left:
            raise SchedulerError(
                f"the scheduler has stopped, but this goes on until the process ends: {'; '.join(left)}; "
                f"a task that runs in this process cannot be killed, one with where='worker' can"
            )
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _await_runs(self, until: float) -> None:
        while self._running() and (left := until - _clock.monotonic()) > 0:
            self._wake.wait(left)

    def _running(self) -> Sequence[tuple[LiveFlow, Run]]:
        return [(flow, run) for flow in self._flows.values() for run in flow.runs.values()]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the scheduler has been stopped.

        Raises:
            TimeoutError: ``timeout`` seconds passed first.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the scheduler has not been stopped within {timeout} s")

    @property
    def is_stopped(self) -> bool:
        """Whether it has been stopped and everything has ended."""
        return self._ended.is_set()

    def serve(self, timeout: float = 30.0) -> int | None:
        """Wait until the scheduler has been stopped, or stop it at SIGTERM or SIGINT; for the main thread.

        A second signal ends the process at once, and with it everything that it runs.

        Args:
            timeout: As for `stop`.

        Returns:
            The signal, or None.

        Raises:
            SchedulerError: As for `stop`.
        """
        with _procs.signals_told((signal.SIGTERM, signal.SIGINT), self._for_server.put):
            _log.info("serving %d flows until a signal", len(self._flows))
            number = None if self._ended.is_set() else self._for_server.get()
            if number is not None:
                _log.info("stopping at signal %d; a second one ends the process", number)
                self.stop(timeout)
            return number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error nobody wants to wait for what runs to come to its end.
        now = _clock.monotonic()
        self._stop(now + (25.0 if kind is None else 0.0), now + 30.0)

    # -- the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._pinger.close(_LAST_SECONDS)
            self._ended.set()
            self._for_server.put(None)

    def _turn(self) -> bool:
        """Do what is due and tell of it, or wait; returns whether there is more to come."""
        with self._wake:
            if not self._is_stopping:
                self._ring_alarms()
            if not self._news:
                if self._is_stopping and not self._running():
                    return False
                self._clock.wait(self._wake, None if self._is_stopping or not self._alarms else self._alarms[0][0])
            news, self._news = self._news, deque()
        # Without the lock: an observer may ask for a status.
        for record in news:
            self._notify(record)
        return True

    def _ring_alarms(self) -> None:
        now = self._clock.now()
        while self._alarms and self._alarms[0][0] <= now:
            _, number, flow = heapq.heappop(self._alarms)
            if number == flow.alarm:
                flow.on_alarm()
                self._set_alarm(flow)

    def _set_alarm(self, flow: LiveFlow) -> None:
        at = flow.next_alarm()
        self._alarms_set += 1
        flow.alarm = self._alarms_set
        if at is not None:
            heapq.heappush(self._alarms, (at, flow.alarm, flow))

    def _changed(self, flow: LiveFlow) -> None:
        if flow.is_relative:
            self._set_alarm(flow)
        self._wake.notify_all()

    def _on_end(self, flow: LiveFlow, run: Run) -> None:
        with self._wake:
            flow.on_end(run, begins_next=not self._is_stopping)
            self._changed(flow)

    # -- observers

    def _tell(self, record: FlowRecord) -> None:
        self._news.append(record)

    def _notify(self, record: FlowRecord) -> None:
        if record.kind not in ("fired", "skipped"):
            return
        observers = dict.fromkeys((*self._observers, *self._flows[record.flow].spec.workflow.observers))
        if not observers:
            return
        self._events += 1
        event = Event(
            record.run_id or "", self._events, record.time, f"flow_{record.kind}", record.state, detail=record
        )
        for observer in observers:
            try:
                observer.on_event(event)
            except Exception:  # noqa: BLE001 - observers are isolated
                _log.exception("an observer failed on %s; the event is dropped for it", event.kind)

    def __repr__(self) -> str:
        state = "stopped" if self._ended.is_set() else "stopping" if self._is_stopping else "running"
        return f"<RunningScheduler {state}, {len(self._flows)} flows>"


def _whereabouts(run: Run) -> str:
    report = run.report()
    return f"run {run.id} in state {report.to_dict()['state']}"
