"""RunningScheduler: the live side of a scheduler."""

from __future__ import annotations

import heapq
import logging
import os
import random
import signal
import socket
import threading
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from canobatch import _clock, _signals
from canobatch.errors import SchedulerError, UnknownFlowError
from canobatch.scheduler._crew import Crew
from canobatch.scheduler._desk import Desk
from canobatch.scheduler._flow import LiveFlow
from canobatch.scheduler._news import News
from canobatch.scheduler._steps import Steps
from canobatch.scheduler.flows import FlowState, SkipReason
from canobatch.scheduler.pings import Pinger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import ExitStack
    from datetime import datetime
    from types import TracebackType

    from canobatch.engine import Run
    from canobatch.observe import Observer
    from canobatch.pool import Backend
    from canobatch.scheduler.clock import Clock
    from canobatch.scheduler.flows import FlowInfo
    from canobatch.scheduler.ledger import Command, FlowRecord, Ledger
    from canobatch.scheduler.spec import FlowSpec

_log = logging.getLogger(__name__)

#: Of the seconds given to `stop`, those kept for what must be cancelled: a quarter, and at most these.
_LAST_SECONDS = 5.0
#: Seconds that what was cancelled gets in any case.
_LEAST_SECONDS = 1.0

#: After which a flow is looked at again whose ledger could not be written.
_RETRY = timedelta(seconds=5)
#: How many flows that are due at once are written down at once: the first of them need not wait for the last.
_TOGETHER = 50
#: By how much a clock may go back without a word.
_SET_BACK = timedelta(seconds=1)


class RunningScheduler:
    """A scheduler at work. Made by `Scheduler.start`; stop it, or use it as a context manager.

    One thread waits for whatever is due next; others drive the runs. Every method may be called from
    any thread.
    """

    def __init__(
        self,
        specs: Iterable[FlowSpec],
        *,
        ledger: Ledger,
        clock: Clock,
        pool: Callable[[], Backend],
        observers: Sequence[Observer],
        held: ExitStack,
    ) -> None:
        self._clock = clock
        #: The resources of the workflows; let go of at the end.
        self._held = held
        self._ledger = ledger
        self._pinger = Pinger()
        self._wake = threading.Condition()
        self._alarms: list[tuple[datetime, int, LiveFlow]] = []
        self._alarms_set = 0
        self._latest = clock.now()
        self._news = News(observers)
        #: Runs that are through and of which no note has been taken yet.
        self._ends: list[tuple[LiveFlow, Run]] = []
        self._ends_lock = threading.Lock()
        self._is_stopping = False
        self._ended = threading.Event()
        #: How `serve` waits, while it does.
        self._server: _signals.SignalWait | None = None
        #: Whether another scheduler of the home says that something was written; at first it may have been.
        self._is_woken = True
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        crew = Crew()
        self._steps = Steps(ledger, crew)
        desk = Desk(clock, ledger, self._pinger, owner, pool, crew, random.random, self._news.add, self._on_end)
        with ledger.transaction():
            self._flows = {spec.id: LiveFlow(spec, desk) for spec in specs}
        self._thread = threading.Thread(target=self._run, name="canobatch-scheduler", daemon=True)
        with self._wake:
            for flow in self._flows.values():
                self._set_alarm(flow)
        ledger.listen(self._on_woken)
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
            with self._live_step(id) as flow:
                run_id = flow.trigger(params)
            return flow.hand_over(run_id)

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
        self._put_state(id, FlowState.reset)

    def pause_flow(self, id: str) -> None:
        """Let no run of a flow begin until it is unpaused; what runs goes on, and ticks are skipped.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        self._put_state(id, FlowState.paused)

    def unpause_flow(self, id: str) -> None:
        """Let a paused flow run again, from its next tick on.

        Raises:
            UnknownFlowError: There is no such flow.
        """
        self._put_state(id, FlowState.unpaused)

    def _put_state(self, id: str, change: Callable[[FlowState], FlowState]) -> None:
        with self._live_step(id) as flow:
            flow.put_state(change(flow.state))
        self._ledger.wake_others()

    @contextmanager
    def _live_step(self, id: str) -> Iterator[LiveFlow]:
        with self._wake:
            self._flow(id)
            if self._is_stopping:
                raise SchedulerError(f"nothing can be done with flow {id!r}: the scheduler has been stopped", flow=id)
            with self._step(id) as flow:
                yield flow

    @contextmanager
    def _step(self, id: str) -> Iterator[LiveFlow]:
        """One step of a flow: written down as a whole, and then its runs begin."""
        with self._wake:
            flow = self._flow(id)
            with self._steps.one(flow):
                yield flow
            if flow.is_relative:
                self._set_alarm(flow)
            self._wake.notify_all()

    def _flow(self, id: str) -> LiveFlow:
        try:
            return self._flows[id]
        except (KeyError, TypeError):
            known = ", ".join(self._flows) or "none"
            raise UnknownFlowError(f"there is no flow {id!r}; flows: {known}", flow=str(id)) from None

    # -- the end

    def stop(self, timeout: float | timedelta = 30.0) -> None:
        """Let nothing new begin, and end within ``timeout`` seconds.

        What runs may come to its end; shortly before the time is over (a quarter of it, at most 5 s) it is
        cancelled and rolled back, and what a cancel would wait for is killed. A second stop may only shorten the
        first.

        Args:
            timeout: Seconds, or a `timedelta`; 0 cancels at once, and waits a second at most.

        Raises:
            SchedulerError: Something has not ended: a task that runs in this process cannot be killed. The error
                names it; the end of the process ends it.
        """
        seconds = _clock.as_seconds(timeout)
        until = _clock.monotonic() + seconds
        self._stop(until - min(seconds / 4, _LAST_SECONDS), until)

    def _stop(self, drain_until: float, until: float) -> None:
        with self._wake:
            if not self._is_stopping:
                self._is_stopping = True
                self._wake.notify_all()
                self._drop_waiting()
            self._await_runs(drain_until)
            now = _clock.monotonic()
            until = max(until, now + _LEAST_SECONDS)
            for kills, at in ((False, now + (until - now) / 2), (True, until)):
                for flow in self._flows.values():
                    flow.cancel("the scheduler was stopped", kills=kills)
                self._await_runs(at)
            left = [f"flow {flow.id!r}: {_whereabouts(run)}" for flow, run in self._running()]
        if left:
            raise SchedulerError(
                f"the scheduler has stopped, but this goes on until the process ends: {'; '.join(left)}; "
                f"a task that runs in this process cannot be killed, one with where='worker' can"
            )
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _drop_waiting(self) -> None:
        steps = [(flow, partial(flow.drop_waiting, SkipReason.STOPPED, only_own=True)) for flow in self._flows.values()]
        for flow, error in self._steps.together(steps).items():
            _log.error("what waits of flow %r could not be dropped; it stops all the same", flow.id, exc_info=error)

    def _await_runs(self, until: float) -> None:
        while self._running() and (left := _clock.time_left(until)) > 0:
            self._wake.wait(left)

    def _running(self) -> Sequence[tuple[LiveFlow, Run]]:
        return [(flow, run) for flow in self._flows.values() for run in flow.runs.values() if run is not None]

    def wait(self, timeout: float | timedelta | None = None) -> None:
        """Wait until the scheduler has been stopped.

        Args:
            timeout: Seconds to wait at most, or a `timedelta`; None: no limit.

        Raises:
            TimeoutError: ``timeout`` passed first.
        """
        seconds = None if timeout is None else min(_clock.as_seconds(timeout), _clock.LONGEST)
        if not self._ended.wait(seconds):
            raise TimeoutError(f"the scheduler has not been stopped within {seconds:g} s")

    @property
    def is_stopped(self) -> bool:
        """Whether it has been stopped and everything has ended."""
        return self._ended.is_set()

    def serve(self, timeout: float | timedelta = 30.0) -> int | None:
        """Wait until the scheduler has been stopped, or stop it at SIGTERM or SIGINT; for the main thread.

        A second signal ends the process at once, and with it everything that it runs.

        Args:
            timeout: As for `stop`.

        Returns:
            The signal, or None.

        Raises:
            SchedulerError: As for `stop`; or this is not the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise SchedulerError("serve takes signals, which is for the main thread; elsewhere use wait")
        with _signals.signals_awaited((signal.SIGTERM, signal.SIGINT)) as signals, self._served_by(signals):
            _log.info("serving %d flows until a signal", len(self._flows))
            number = signals.wait()
            if number is not None:
                _log.info("stopping at signal %d; a second one ends the process", number)
                self.stop(timeout)
            return number

    @contextmanager
    def _served_by(self, signals: _signals.SignalWait) -> Iterator[None]:
        """Within, the end of the scheduler ends the wait."""
        with self._wake:
            self._server = signals
            if self._ended.is_set():
                signals.wake()
        try:
            yield
        finally:
            with self._wake:
                self._server = None

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
            self._held.close()
            self._ledger.close()
            with self._wake:
                self._ended.set()
                if self._server is not None:
                    self._server.wake()

    def _turn(self) -> bool:
        """Do what is due and tell of it, or wait; returns whether there is more to come."""
        with self._wake:
            if not self._is_stopping:
                self._ring_alarms()
            if self._is_woken:
                self._is_woken = False
                self._look_around()
            news = self._news.take()
            if not news and not self._is_woken:
                if self._is_stopping and not self._running():
                    return False
                self._clock.wait(self._wake, None if self._is_stopping or not self._alarms else self._alarms[0][0])
                news = self._news.take()
        for record in news:
            self._news.tell(record, self._flows[record.flow].spec.workflow.observers)
        return True

    def _ring_alarms(self) -> None:
        now = self._clock.now()
        if now < self._latest - _SET_BACK:
            _log.warning("the clock was set back by %s; no tick up to %s runs again", self._latest - now, self._latest)
        self._latest = now
        due = []
        while self._alarms and self._alarms[0][0] <= now:
            _, number, flow = heapq.heappop(self._alarms)
            if number == flow.alarm:
                due.append(flow)
        failed: dict[LiveFlow, Exception] = {}
        for begin in range(0, len(due), _TOGETHER):
            failed |= self._steps.together([(flow, flow.on_alarm) for flow in due[begin : begin + _TOGETHER]])
        # What is due next is found out when all that is due now has begun.
        for flow in due:
            self._set_next_alarm(flow, now, failed.get(flow))

    def _set_next_alarm(self, flow: LiveFlow, now: datetime, error: Exception | None) -> None:
        at: datetime | None = now + _RETRY
        try:
            at = at if error is not None else flow.next_alarm()
        except Exception as own:  # noqa: BLE001 - one flow's trouble must not end the scheduler of all
            error = own
        if error is not None:
            text = "flow %r could not be looked after; next try in %g s"
            _log.error(text, flow.id, _RETRY.total_seconds(), exc_info=error)
        self._set_alarm(flow, at)

    def _look_around(self) -> None:
        """Do what other processes ask for, and begin what they leave to be begun."""
        try:
            for command in self._ledger.commands():
                if command.flow in self._flows:
                    self._obey(command)
            if not self._is_stopping:
                self._look_after([self._flows[each] for each in self._ledger.unsettled() if each in self._flows])
            for flow in self._flows.values():
                if flow.is_relative:
                    self._set_alarm(flow)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("what other processes have written could not be looked at")

    def _look_after(self, flows: Sequence[LiveFlow]) -> None:
        for flow, error in self._steps.together([(flow, flow.look_after) for flow in flows]).items():
            _log.error("what was left of flow %r could not be dealt with", flow.id, exc_info=error)

    def _obey(self, command: Command) -> None:
        if command.what != "trigger":
            one = command.run_id
            with self._step(command.flow) as flow:
                if (flow.has(one) if one else flow.runs) and self._ledger.answer(command):
                    reason = "cancelled from another process" if one else f"flow {flow.id!r} was cancelled"
                    flow.cancel(reason, kills=command.what == "kill", run_id=one)
        elif not self._is_stopping:
            try:
                run_id = ""
                with self._step(command.flow) as flow:
                    if self._ledger.answer(command):
                        run_id = flow.trigger(command.params)
                        self._ledger.answer(command, run_id=run_id)
                if run_id:
                    flow.hand_over(run_id)
            except Exception as error:  # noqa: BLE001 - parameters come from elsewhere
                with self._ledger.transaction():
                    self._ledger.answer(command, error=f"{type(error).__name__}: {error}")

    def _on_woken(self) -> None:
        with self._wake:
            self._is_woken = True
            self._wake.notify_all()

    def _set_alarm(self, flow: LiveFlow, at: datetime | None = None) -> None:
        at = at or flow.next_alarm()
        self._alarms_set += 1
        flow.alarm = self._alarms_set
        if at is not None:
            heapq.heappush(self._alarms, (at, flow.alarm, flow))

    def _on_end(self, id: str, run: Run) -> None:
        """Take note of the end of a run; who comes first waits for its turn and does so for all that come meanwhile."""
        with self._ends_lock:
            self._ends.append((self._flows[id], run))
            if len(self._ends) > 1:
                return
        with self._wake:
            with self._ends_lock:
                ends, self._ends = self._ends, []
            try:
                self._note_ends(ends)
            finally:
                for _, ended in ends:
                    ended.end()
                self._wake.notify_all()

    def _note_ends(self, ends: Sequence[tuple[LiveFlow, Run]]) -> None:
        runs: dict[LiveFlow, list[Run]] = {}
        for flow, run in ends:
            runs.setdefault(flow, []).append(run)
        begins_next = not self._is_stopping
        steps = [(flow, partial(flow.on_end, own, begins_next=begins_next)) for flow, own in runs.items()]
        for flow, error in self._steps.together(steps).items():
            ids = [run.id for run in runs[flow]]
            _log.error("the end of %s of flow %r could not be written down", ", ".join(ids), flow.id, exc_info=error)
            flow.give_up(ids)
        for flow in runs:
            if flow.is_relative:
                self._set_alarm(flow)

    def __repr__(self) -> str:
        state = "stopped" if self._ended.is_set() else "stopping" if self._is_stopping else "running"
        return f"<RunningScheduler {state}, {len(self._flows)} flows>"


#: What observers are told of: records by their kind.
def _whereabouts(run: Run) -> str:
    report = run.report()
    return f"run {run.id} in state {report.to_dict()['state']}"
