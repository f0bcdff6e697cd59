"""LiveFlow: a flow under a scheduler: what is due, what runs, what waits.

Everything here happens under the scheduler's lock. When something is due is not decided here, but in `flows`.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from canobatch.errors import (
    FlowOverlapError,
    FlowPausedError,
    FlowTrippedError,
    RunCancelledError,
)
from canobatch.scheduler.flows import (
    FlowState,
    FlowStatus,
    SkipReason,
    Verdict,
    info_of,
    next_tick,
    resolve_overlap,
    settle_due,
    start_delay,
)
from canobatch.scheduler.ledger import FlowRecord
from canobatch.scheduler.schedules import Interval

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from canobatch.engine import Run
    from canobatch.pool import Backend
    from canobatch.scheduler.clock import Clock
    from canobatch.scheduler.flows import FlowInfo, Missed, Overlap
    from canobatch.scheduler.ledger import Ledger
    from canobatch.scheduler.pings import Pinger
    from canobatch.scheduler.spec import FlowSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Desk:
    """What all flows of a scheduler use.

    Attributes:
        tell: Is given each record once it is written.
        on_end: Is called in a run's own thread when it has ended.
    """

    clock: Clock
    ledger: Ledger
    pinger: Pinger
    pool: Backend | None
    random: Callable[[], float]
    tell: Callable[[FlowRecord], None]
    on_end: Callable[[LiveFlow, Run], None]


@dataclass(frozen=True)
class _Waiting:
    """What waits for the end of a run: a tick, or a run that was triggered."""

    tick: datetime | None = None
    run: Run | None = None


class LiveFlow:
    """A flow and its runs."""

    def __init__(self, spec: FlowSpec, desk: Desk) -> None:
        self.spec = spec
        self.state = FlowState()
        #: The runs that have begun and not ended, by id.
        self.runs: dict[str, Run] = {}
        #: The number of its alarm; any other alarm of this flow is void.
        self.alarm = 0
        self._desk = desk
        self._waiting: deque[_Waiting] = deque()
        now = desk.clock.now()
        anchor = desk.ledger.anchor(spec.id, str(spec.schedule), now)
        self.schedule = spec.schedule.anchored(anchor)
        #: Everything up to here is accounted for. For a fixed delay: the end of the last run.
        is_interval = isinstance(self.schedule, Interval)
        # The anchor of an interval may be a tick itself.
        since = anchor - timedelta(microseconds=1) if is_interval else anchor
        self._last_tick = desk.ledger.last_tick(spec.id) or since
        #: Whether the next tick depends on the end of the run before.
        self.is_relative = isinstance(self.schedule, Interval) and self.schedule.mode == "fixed_delay"
        self._delay = timedelta(0)

    @property
    def id(self) -> str:
        """The flow's id."""
        return self.spec.id

    def info(self) -> FlowInfo:
        """Describe it."""
        info = info_of(self.id, self.state, self.schedule, self._last_tick)
        # With a fixed delay the next tick is known when the run has ended.
        return replace(info, next_run=None) if self.is_relative and self.runs else info

    # -- ticks

    def next_alarm(self) -> datetime | None:
        """Return when to look for ticks again; draws the jitter of the tick that is next."""
        if self.is_relative:
            tick = None if self.runs else next_tick(self.schedule, self._last_tick, self.state)
        else:
            tick = self.schedule.next_after(self._last_tick)
        if tick is None:
            return None
        self._delay = start_delay(self.spec.jitter, self._desk.random)
        return tick + self._delay

    def on_alarm(self) -> None:
        """Deal with every tick that has come due."""
        now = self._desk.clock.now()
        spec = self.spec
        due = settle_due(
            self.schedule, self._last_tick, now - self._delay, policy=spec.catchup, window=spec.catchup_window
        )
        if due is None:
            return
        self._last_tick = due.last
        if due.missed is not None:
            self._skip_missed(due.missed)
        for tick in due.ticks:
            if self._desk.ledger.take_tick(self.id, tick):
                self._on_tick(tick, now, is_one_of_many=len(due.ticks) > 1)

    def _on_tick(self, tick: datetime, now: datetime, *, is_one_of_many: bool) -> None:
        if reason := self.state.refusal(now):
            self._skip(tick, reason)
            if self.is_relative:
                self._last_tick = now
            return
        overlap = resolve_overlap(self.spec.overlap, len(self.runs), len(self._waiting))
        if is_one_of_many and overlap.verdict is not Verdict.START:
            # Those that are caught up run one after the other; they are not in each other's way.
            self._wait_for_turn(_Waiting(tick))
        elif overlap.verdict is Verdict.SKIP:
            self._skip(tick, SkipReason.OVERLAP)
        elif overlap.verdict is Verdict.START:
            self._begin(_Waiting(tick))
        else:
            self._make_way(overlap)
            self._wait_for_turn(_Waiting(tick))

    def _skip(self, tick: datetime | None, reason: SkipReason, run: Run | None = None) -> None:
        self._record("skipped", tick=tick, reason=reason, run_id=run.id if run is not None else None)

    def _skip_missed(self, missed: Missed) -> None:
        if self._desk.ledger.take_tick(self.id, missed.last):
            until = missed.last if missed.count != 1 else None
            self._record("skipped", tick=missed.first, until=until, count=missed.count, reason=SkipReason.MISSED)

    # -- triggers

    def trigger(self, params: Any) -> Run:
        """Begin a run by hand, or let it wait, as the overlap policy says.

        Raises:
            FlowPausedError: The flow is paused.
            FlowTrippedError: It has tripped.
            FlowOverlapError: It runs, and the policy lets nothing more begin or wait.
            ConfigurationError: The parameters do not fit.
        """
        if self.state.is_paused:
            raise FlowPausedError(f"flow {self.id!r} is paused; call unpause_flow({self.id!r}) first", flow=self.id)
        if self.state.rest is FlowStatus.TRIPPED:
            raise FlowTrippedError(
                f"flow {self.id!r} has tripped after {self.state.failure_streak} failures in a row "
                f"(the last: {self.state.last_error}); call reset_flow({self.id!r}) first",
                flow=self.id,
            )
        overlap = resolve_overlap(self.spec.overlap, len(self.runs), len(self._waiting))
        if overlap.verdict is Verdict.SKIP:
            running = ", ".join(self.runs)
            waits = " and one run waits already" if self._waiting else ""
            raise FlowOverlapError(
                f"flow {self.id!r} is running (run {running}){waits}; wait for it, cancel it, or give the flow "
                f"another overlap policy than {self.spec.overlap!r}",
                flow=self.id,
                run_ids=list(self.runs),
            )
        run = self._make_run(self.spec.params if params is None else params)
        if overlap.verdict is Verdict.START:
            self._begin(_Waiting(run=run))
        else:
            self._make_way(overlap)
            self._wait_for_turn(_Waiting(run=run))
        return run

    # -- runs

    def _make_run(self, params: Any) -> Run:
        spec = self.spec
        return spec.workflow.start(
            spec.initial, pool=self._desk.pool, params=params, where="worker", timeout=spec.timeout, begins=False
        )

    def _begin(self, waiting: _Waiting) -> None:
        now = self._desk.clock.now()
        self.state = self.state.begun(now)
        run = waiting.run
        try:
            if run is None:
                run = self._make_run(self.spec.params)
            self._record("fired", tick=waiting.tick, run_id=run.id)
            self._ping("start")
            run.begin()
        except Exception as error:  # noqa: BLE001 - parameters are made by others' code, threads may run out
            _log.exception("flow %r could not begin a run", self.id)
            self._has_failed(None, 0.0, error, waiting.tick, None if run is None else run.id)
            return
        self.runs[run.id] = run
        run.watch(partial(self._desk.on_end, self, run))

    def _wait_for_turn(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._record("queued", tick=waiting.tick, run_id=waiting.run.id if waiting.run is not None else None)

    def _make_way(self, overlap: Overlap) -> None:
        if overlap.drops_waiting:
            self.drop_waiting(SkipReason.REPLACED)
        if overlap.ends_running:
            self.cancel(f"a newer run of flow {self.id!r} takes its place")

    def cancel(self, reason: str) -> None:
        """Cancel what runs; returns at once."""
        for run in list(self.runs.values()):
            run.cancel(reason)

    def drop_waiting(self, reason: SkipReason) -> None:
        """Let nothing begin that waits."""
        while self._waiting:
            self._drop(self._waiting.popleft(), reason)

    def _drop(self, waiting: _Waiting, reason: SkipReason) -> None:
        self._skip(waiting.tick, reason, waiting.run)
        if waiting.run is not None:
            # Whoever waits for it is told.
            waiting.run.cancel(f"it waited for its turn in flow {self.id!r}, and was dropped: {reason}")
            waiting.run.begin()

    def on_end(self, run: Run, *, begins_next: bool) -> None:
        """Take note of the end of a run, and begin what waits for it."""
        report = run.report()
        del self.runs[run.id]
        error = report.error
        if error is None:
            self.state = self.state.succeeded(report.state, report.duration)
            self._record("finished", run_id=run.id, state=report.state)
            self._ping("success")
        elif isinstance(error, RunCancelledError):
            self.state = self.state.cancelled(report.state, report.duration, _text(error))
            self._record("cancelled", run_id=run.id, state=report.state, reason=_text(error))
            self._ping("failure")
        else:
            self._has_failed(report.state, report.duration, error, None, run.id)
        if self.is_relative:
            self._last_tick = self._desk.clock.now()
        if begins_next:
            self._begin_next()

    def _has_failed(
        self, state: Any, duration: float, error: BaseException, tick: datetime | None, run_id: str | None
    ) -> None:
        self.state = self.state.failed(
            state,
            duration,
            _text(error),
            now=self._desk.clock.now(),
            policy=self.spec.backoff,
            random=self._desk.random,
            pauses=self.spec.pause_on_failure,
        )
        self._record("failed", tick=tick, run_id=run_id, state=state, reason=_text(error))
        self._ping("failure")

    def _begin_next(self) -> None:
        while self._waiting and not self.runs:
            waiting = self._waiting.popleft()
            reason = self.state.refusal(self._desk.clock.now())
            if reason is None or (reason is SkipReason.BACKOFF and waiting.run is not None):
                self._begin(waiting)
            else:
                self._drop(waiting, reason)

    # -- what is told

    def _record(self, kind: Any, **facts: Any) -> None:
        record = FlowRecord(self.id, self._desk.clock.now(), kind, **facts)
        self._desk.ledger.record(record)
        self._desk.tell(record)

    def _ping(self, what: Any) -> None:
        if self.spec.ping_url is not None:
            self._desk.pinger.ping(self.spec.ping_url, what)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
