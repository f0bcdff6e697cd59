"""LiveFlow: a flow under a scheduler: what is due, what runs, what waits.

Everything here happens under the scheduler's lock, in steps that the ledger makes whole. When something is due is
not decided here, but in `flows`. A run is written down first and made and begun after: `end_step`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from canobatch import _procs
from canobatch.definition import label
from canobatch.errors import CanobatchError, RunCancelledError
from canobatch.scheduler._desk import Start
from canobatch.scheduler.flows import (
    FlowState,
    SkipReason,
    Verdict,
    info_of,
    next_tick,
    overlap_error,
    resolve_overlap,
    settle_due,
    start_delay,
    trigger_refusal,
)
from canobatch.scheduler.ledger import Claim, FlowRecord, Waiting
from canobatch.scheduler.schedules import Interval
from canobatch.workflow import new_run_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from canobatch.engine import Run
    from canobatch.scheduler._desk import Desk
    from canobatch.scheduler.flows import FlowInfo, Missed, Overlap
    from canobatch.scheduler.spec import FlowSpec

_log = logging.getLogger(__name__)


class LiveFlow:
    """A flow and its runs."""

    def __init__(self, spec: FlowSpec, desk: Desk) -> None:
        self.spec = spec
        #: The runs that have begun and not ended, by id; None within the step that begins one.
        self.runs: dict[str, Run | None] = {}
        #: The number of its alarm; any other alarm of this flow is void.
        self.alarm = 0
        self._desk = desk
        self._ledger = desk.ledger
        self._states = {label(each): each for each in (*spec.workflow.states, *spec.workflow.exit_states)}
        #: Runs of triggers that wait for their turn, by id.
        self._triggered: dict[str, Start] = {}
        #: Runs that are written down and begin at the end of the step.
        self._beginning: list[Start] = []
        #: What the step has recorded; told at its end.
        self._recorded: list[FlowRecord] = []
        #: What triggers return after their step: the run, or why it could not be made.
        self._handles: dict[str, Run | Exception] = {}
        self._delay = timedelta(0)
        anchor = self._ledger.enrol(spec.id, str(spec.schedule), desk.clock.now())
        self.schedule = spec.schedule.anchored(anchor)
        #: Whether the next tick depends on the end of the run before.
        self.is_relative = isinstance(self.schedule, Interval) and self.schedule.mode == "fixed_delay"
        # The anchor of an interval may be a tick itself. Everything up to here is accounted for.
        self._done_until = anchor - timedelta(microseconds=1) if isinstance(self.schedule, Interval) else anchor
        #: The same before the step that is under way.
        self._done_before: datetime | None = None
        self._see_others()

    @property
    def id(self) -> str:
        """The flow's id."""
        return self.spec.id

    @property
    def state(self) -> FlowState:
        """Where the flow stands."""
        state = self._ledger.state(self.id)
        return state if state.running == len(self.runs) else replace(state, running=len(self.runs))

    def put_state(self, state: FlowState) -> None:
        """Write down where it stands."""
        self._ledger.put_state(self.id, state)

    def info(self) -> FlowInfo:
        """Describe it."""
        state = self.state
        # A home knows states by their labels.
        if state.last_state not in self._states.values():
            state = replace(state, last_state=self._states.get(state.last_state, state.last_state))
        if not self.runs and self._ledger.is_claimed(self.id):
            state = replace(state, running=1)
        info = info_of(self.id, state, self.schedule, self._done_until)
        # With a fixed delay the next tick is known when the run has ended.
        return replace(info, next_run=None) if self.is_relative and state.running else info

    # -- ticks

    def next_alarm(self) -> datetime | None:
        """Return when to look for ticks again; draws the jitter of the tick that is next."""
        if self.is_relative:
            tick = None if self.runs else next_tick(self.schedule, self._done_until, self._ledger.state(self.id))
        else:
            tick = self.schedule.next_after(self._done_until)
        if tick is None:
            return None
        self._delay = start_delay(self.spec.jitter, self._desk.random)
        return tick + self._delay

    def on_alarm(self) -> None:
        """Deal with every tick that has come due."""
        now = self._desk.clock.now()
        spec = self.spec
        self._done_before = self._done_until
        self._see_others()
        if spec.overlap == "allow":
            self._clear_away_unclaimed()
        if self.is_relative and not self.runs and self._ledger.is_claimed(self.id):
            # Due when that run has ended.
            self._done_until = now
            return
        due = settle_due(
            self.schedule, self._done_until, now - self._delay, policy=spec.catchup, window=spec.catchup_window
        )
        if due is None:
            return
        self._done_until = now if self.is_relative else due.last
        if due.missed is not None:
            self._skip_missed(due.missed)
        for tick in due.ticks:
            if self._ledger.take_tick(self.id, tick):
                self._on_tick(tick, now, is_one_of_many=len(due.ticks) > 1)

    def _see_others(self) -> None:
        """Take note of what other schedulers did of this flow, or an earlier one."""
        done = self._ledger.state(self.id).ended_at if self.is_relative else self._ledger.last_tick(self.id)
        if done is not None and done > self._done_until:
            self._done_until = done

    def _on_tick(self, tick: datetime, now: datetime, *, is_one_of_many: bool) -> None:
        if reason := self.state.refusal(now):
            self._skip(tick, reason)
            return
        overlap = self._resolve_overlap()
        if overlap.verdict is Verdict.START:
            self._begin(self._new_start(self.spec.params), tick)
        elif is_one_of_many:
            # Those that are caught up run one after the other; they are not in each other's way.
            self._wait_for_turn(Waiting(tick))
        elif overlap.verdict is Verdict.SKIP:
            self._skip(tick, SkipReason.OVERLAP)
        else:
            self._make_way(overlap)
            self._wait_for_turn(Waiting(tick))
        self.begin_waiting()

    def _resolve_overlap(self) -> Overlap:
        """Say what is done with something that is due; if that is to start, the flow is claimed."""
        running = len(self.runs)
        if not running and self.spec.overlap != "allow":
            running = 0 if self._claim() else 1
        return resolve_overlap(self.spec.overlap, running, self._ledger.waiting(self.id))

    def _skip(self, tick: datetime | None, reason: SkipReason, run_id: str | None = None) -> None:
        self._record("skipped", tick=tick, reason=reason, run_id=run_id)

    def _skip_missed(self, missed: Missed) -> None:
        if self._ledger.take_tick(self.id, missed.last):
            until = missed.last if missed.count != 1 else None
            self._record("skipped", tick=missed.first, until=until, count=missed.count, reason=SkipReason.MISSED)

    # -- claims

    def _claim(self) -> bool:
        """Claim the flow, and clear away what a holder left that is no more."""
        if not self._ledger.claim(self.id):
            return False
        left = self._ledger.left_over(self.id)
        if left is not None:
            self._ledger.describe_claim(self.id, None)
            self._clear_away(left)
        return not self.runs

    def _clear_away(self, left: Claim) -> None:
        """Kill what a run left whose process is no more, and record that it was interrupted."""
        _log.warning("flow %r: run %s was interrupted by the end of %s", self.id, left.run_id, left.owner)
        if left.token:
            _procs.kill_marked(left.token)
        text = f"interrupted by the end of {left.owner}"
        self.put_state(self.state.cancelled(None, None, text, now=self._desk.clock.now()))
        self._record("interrupted", run_id=left.run_id, reason=text)
        self._go_on(left.run_id)

    def _clear_away_unclaimed(self) -> None:
        for left in self._ledger.lost_runs(self.id):
            self._clear_away(left)

    def _go_on(self, run_id: str) -> None:
        """Resume or restart what was interrupted, if that is asked for."""
        spec = self.spec
        if spec.on_interrupted == "leave" or self.state.refusal(self._desk.clock.now()):
            return
        if spec.on_interrupted == "restart":
            self._begin(self._new_start(spec.params))
        else:
            self._begin(Start(run_id, partial(self._resume, run_id)))

    def _release(self) -> None:
        """Give the claim back, if there is one and nothing runs."""
        if not self.runs and self._ledger.holds(self.id):
            self._ledger.describe_claim(self.id, None)
            self._ledger.release(self.id)

    # -- triggers

    def trigger(self, params: Any) -> str:
        """Begin a run by hand, or let it wait, as the overlap policy says; return its id.

        Raises:
            FlowPausedError: The flow is paused.
            FlowTrippedError: It has tripped.
            FlowOverlapError: It runs, and the policy lets nothing more begin or wait.
            ConfigurationError: The parameters do not fit.
        """
        refusal = trigger_refusal(self.id, self.state)
        if refusal is not None:
            raise refusal
        params = self.spec.params if params is None else params
        self.spec.workflow.validate_params(params)
        overlap = self._resolve_overlap()
        if overlap.verdict is Verdict.SKIP:
            self.begin_waiting()
            raise overlap_error(self.id, self.spec.overlap, list(self.runs), self._ledger.waiting(self.id))
        start = self._new_start(params, is_triggered=True)
        if overlap.verdict is Verdict.START:
            self._begin(start)
        else:
            self._make_way(overlap)
            self._triggered[start.run_id] = start
            self._wait_for_turn(Waiting(run_id=start.run_id))
            self.begin_waiting()
        return start.run_id

    def hand_over(self, run_id: str) -> Run:
        """Return the run of a trigger, after its step; once.

        Raises:
            Exception: Why it could not be made.
        """
        handle = self._handles.pop(run_id)
        if isinstance(handle, Exception):
            raise handle
        return handle

    # -- runs

    def _new_start(self, params: Any, *, is_triggered: bool = False) -> Start:
        run_id = new_run_id()
        return Start(run_id, partial(self._make, run_id, params), is_triggered=is_triggered)

    def _make(self, run_id: str, params: Any) -> Run:
        spec = self.spec
        return spec.workflow.start(spec.initial, run_id=run_id, params=params, **self._settings(run_id))

    def _resume(self, run_id: str) -> Run:
        return self.spec.workflow.start_resume(run_id, **self._settings(run_id))

    def _settings(self, run_id: str) -> dict[str, Any]:
        return {
            "pool": self._desk.pool(),
            "where": "worker",
            "timeout": self.spec.timeout,
            "output": self._ledger.output_of(run_id),
            "begins": False,
        }

    def _begin(self, start: Start, tick: datetime | None = None) -> None:
        """Write down that a run begins; it does at the end of the step."""
        self._beginning.append(start)
        self.put_state(self.state.begun(self._desk.clock.now()))
        self.runs[start.run_id] = start.run
        claim = Claim(start.run_id, self._desk.owner, getattr(self._desk.pool(), "token", ""))
        if self.spec.overlap == "allow":
            self._ledger.describe_run(self.id, claim)
        else:
            self._ledger.describe_claim(self.id, claim)
        self._record("fired", tick=tick, run_id=start.run_id)

    def end_step(self) -> None:
        """Make and begin what the step has written down; outside of it, as journals write for themselves."""
        self._done_before = None
        self._tell()
        for start in list(self._triggered.values()):
            if start.run is None:
                self._made(start)
        while self._beginning:
            start = self._beginning.pop(0)
            run = start.run or self._made(start)
            if run is None:
                continue
            self.runs[start.run_id] = run
            self._ping("start")
            self._desk.crew.begin(run, partial(self._desk.on_end, self.id))

    def _made(self, start: Start) -> Run | None:
        """Make a run; None if that fails, which is a failure of the flow."""
        try:
            start.run = start.make()
        except Exception as error:  # noqa: BLE001 - a definition was changed, or parameters are made by others' code
            _log.exception("flow %r could not begin run %s", self.id, start.run_id)
            if start.is_triggered:
                self._handles[start.run_id] = error
            self._triggered.pop(start.run_id, None)
            if start.run_id in self.runs:
                self._note_failed_start(start, error)
        else:
            if start.is_triggered:
                self._handles[start.run_id] = start.run
        return start.run

    def _note_failed_start(self, start: Start, error: Exception) -> None:
        try:
            with self._ledger.transaction():
                self._note_failure(start.run_id, None, 0.0, error)
                self._forget(start.run_id)
                self.begin_waiting()
        except CanobatchError:
            _log.exception("that run %s of flow %r has failed could not be written down", start.run_id, self.id)
            self._recorded = []
            self.give_up([start.run_id])
        self._tell()
        self._ping("failure")

    def undo(self) -> None:
        """Forget what a step did that was not written down after all."""
        for start in self._beginning:
            self.runs.pop(start.run_id, None)
            if start.run is not None:
                self._abandon(start.run, "it could not be written down")
        self._beginning, self._recorded = [], []
        self._done_until, self._done_before = self._done_before or self._done_until, None
        self._triggered = {id_: start for id_, start in self._triggered.items() if start.run is not None}
        if not self.runs:
            self._ledger.release(self.id)

    def _wait_for_turn(self, waiting: Waiting) -> None:
        self._ledger.push(self.id, waiting)
        self._record("queued", tick=waiting.tick, run_id=waiting.run_id)

    def begin_waiting(self) -> None:
        """Begin what waits, if nothing runs."""
        while not self.runs and self._ledger.waiting(self.id) and self._claim():
            waiting = self._ledger.pop(self.id)
            if waiting is None:
                break
            reason = self.state.refusal(self._desk.clock.now())
            if reason is None or (reason is SkipReason.BACKOFF and waiting.run_id is not None):
                self._begin_waiting(waiting)
            else:
                self._drop(waiting, reason)
        self._release()

    def _begin_waiting(self, waiting: Waiting) -> None:
        if waiting.run_id is None:
            self._begin(self._new_start(self.spec.params), waiting.tick)
        elif waiting.run_id in self._triggered:
            self._begin(self._triggered.pop(waiting.run_id))

    def look_after(self) -> None:
        """Clear away what a holder left that is no more, and begin what waits."""
        self._clear_away_unclaimed()
        if not self.runs and self._claim():
            self.begin_waiting()

    def _make_way(self, overlap: Overlap) -> None:
        if overlap.drops_waiting:
            self.drop_waiting(SkipReason.REPLACED)
        if overlap.ends_running is None:
            return
        if self.runs:
            kills = overlap.ends_running == "kill"
            self.cancel(f"a newer run of flow {self.id!r} takes its place", kills=kills)
        else:
            self._ledger.ask(self.id, overlap.ends_running)

    def has(self, run_id: str) -> bool:
        """Return whether a run goes on or waits here."""
        return run_id in self.runs or run_id in self._triggered

    def cancel(self, reason: str, *, kills: bool = False, run_id: str | None = None) -> None:
        """Cancel what runs here, or one run, or do not even wait for compensatable tasks; returns at once."""
        if run_id is not None and run_id in self._triggered:
            self._ledger.take_out(run_id)
            self._drop(Waiting(run_id=run_id), SkipReason.CANCELLED)
        for run in list(self.runs.values()) if run_id is None else [self.runs.get(run_id)]:
            if run is not None and kills:
                run.kill(reason)
            elif run is not None:
                run.cancel(reason)

    def drop_waiting(self, reason: SkipReason, *, only_own: bool = False) -> None:
        """Let nothing begin that waits; with ``only_own`` nothing that no other scheduler could take."""
        while (waiting := self._ledger.pop(self.id, only_own=only_own)) is not None:
            self._drop(waiting, reason)

    def _drop(self, waiting: Waiting, reason: SkipReason) -> None:
        self._skip(waiting.tick, reason, waiting.run_id)
        start = self._triggered.pop(waiting.run_id or "", None)
        if start is not None and start.run is not None:
            # Whoever waits for it is told.
            self._abandon(start.run, f"it waited for its turn in flow {self.id!r}, and was dropped: {reason}")

    @staticmethod
    def _abandon(run: Run, reason: str) -> None:
        """End a run that has not begun; whoever waits for it is told, and its journal."""
        run.cancel(reason)
        with suppress(RuntimeError):
            run.begin()

    def on_end(self, runs: Sequence[Run], *, begins_next: bool) -> None:
        """Take note of the end of runs, and begin what waits for it."""
        for run in runs:
            self._note_end(run)
            self._forget(run.id)
        if begins_next:
            self.begin_waiting()
        self._release()

    def _note_end(self, run: Run) -> None:
        report = run.report()
        error = run.error
        now = self._desk.clock.now()
        if error is None:
            self.put_state(self.state.succeeded(report.state, report.duration, now=now))
            self._record("finished", run_id=run.id, state=report.state)
        elif isinstance(error, RunCancelledError):
            self.put_state(self.state.cancelled(report.state, report.duration, _text(error), now=now))
            self._record("cancelled", run_id=run.id, state=report.state, reason=_text(error))
        else:
            self._note_failure(run.id, report.state, report.duration, error)
        self._ping("success" if error is None else "failure")

    def _note_failure(self, run_id: str, state: Any, duration: float, error: BaseException) -> None:
        failed = self.state.failed(
            state,
            duration,
            _text(error),
            now=self._desk.clock.now(),
            policy=self.spec.backoff,
            random=self._desk.random,
            pauses=self.spec.pause_on_failure,
        )
        self.put_state(failed)
        self._record("failed", run_id=run_id, state=state, reason=_text(error))

    def _forget(self, run_id: str) -> None:
        """Let go of a run that has ended."""
        del self.runs[run_id]
        if self.spec.overlap == "allow":
            self._ledger.forget_run(run_id)
        elif not self.runs:
            self._ledger.describe_claim(self.id, None)
        if self.is_relative:
            self._done_until = self._desk.clock.now()

    def give_up(self, run_ids: Sequence[str]) -> None:
        """Let go of runs whose end could not be written down."""
        for run_id in run_ids:
            self.runs.pop(run_id, None)
        if not self.runs:
            self._ledger.release(self.id)

    # -- what is told

    def _record(self, kind: Any, **facts: Any) -> None:
        record = FlowRecord(self.id, self._desk.clock.now(), kind, **facts)
        self._ledger.record(record)
        self._recorded.append(record)

    def _tell(self) -> None:
        for record in self._recorded:
            self._desk.tell(record)
        self._recorded = []

    def _ping(self, what: Any) -> None:
        if self.spec.ping_url is not None:
            self._desk.pinger.ping(self.spec.ping_url, what)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
