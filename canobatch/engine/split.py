"""One split: feeds its branches to the pool, counts what comes back, and settles it."""

from __future__ import annotations

import heapq
import itertools
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _clock
from canobatch.definition import LATER, label
from canobatch.effects import describe_error, entry_of, loads, pack
from canobatch.engine.admission import Turnstile, refused
from canobatch.engine.attempt import (
    Where,
    delay_before_next,
    error_of,
    final_error,
    may_retry,
    status_of,
    unpacking_error,
)
from canobatch.engine.branch_events import BranchEvents
from canobatch.engine.branches import Branches
from canobatch.engine.earlier import Earlier
from canobatch.engine.fold import Fold, FoldError
from canobatch.engine.records import Records, join_error
from canobatch.engine.scribe import branch_of
from canobatch.errors import ConfigurationError, JoinError, PayloadError, TaskError, WorkflowError
from canobatch.join import BranchResult, BranchStatus, JoinTally, SplitResult, Verdict
from canobatch.limits import Semaphore
from canobatch.pool import Began, Call, Finished, Lost, Progressed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from canobatch.definition import Map, Split
    from canobatch.effects import Operation
    from canobatch.engine.driver import Driver
    from canobatch.pool import Event
    from canobatch.task import TaskConfig

#: Seconds of making items after which outcomes are looked at.
_FEED_PATIENCE = 0.005
#: Seconds after which items that had none are asked again.
_LOOK_AGAIN = 0.02
#: How many branches may be ahead of an ordered fold, per branch that may run.
_FOLD_AHEAD = 4

#: Items that refer to no class of ``__main__``.
_NEVER_MAIN = frozenset({bool, int, float, str, bytes})


class SplitOutcome(NamedTuple):
    """What a split came to: writes to commit, or an error."""

    writes: list[tuple[str, Sequence[Operation]]]
    error: JoinError | None
    is_timeout: bool


class SplitExecution:
    """One visit of a split state."""

    def __init__(self, driver: Driver, state: Any, handler: Split | Map, run_deadline: float | None) -> None:
        self._driver = driver
        self._state = state
        self._handler = handler
        self._join = handler.join
        self._run_deadline = run_deadline
        self.attempts = 0
        self.result: SplitResult | None = None
        self._records = Records(keeps_values=self._join.into is not None and self._join.reduce is None)
        self._writes: dict[int, tuple[Operation, ...]] = {}
        #: Branches that were begun by us and have not ended for good: index -> attempts made.
        self._open: dict[int, int] = {}
        self._back_off: list[tuple[float, int, Call]] = []
        self._order = itertools.count()
        self._total: int | None = None
        self._fold: Fold | None = None
        self._map_config: TaskConfig | None = None
        #: Once there is something to ask before a call is sent, all go through it.
        self._gate: Turnstile | None = None
        self._submitted = 0
        self._is_exhausted = False
        #: Whether the items had none when they were asked last.
        self._is_early = False
        self._is_timeout = False
        self._path = tuple(driver.path)
        self._events = BranchEvents(driver, state)
        #: Branches that were running when the split was settled.
        self.cut: list[BranchResult] = []
        self._earlier = Earlier(state, driver.run_id)

    # -- the whole

    def run(self) -> SplitOutcome:
        """Run the split until it is settled and its losers are dead."""
        driver, join = self._driver, self._join
        started = _clock.monotonic()
        self._deadline = None if join.timeout is None else started + float(join.timeout)
        self._branches = branches = Branches(driver, self._state, self._handler)
        self._total = branches.total
        if branches.is_map:
            self._map_config = driver.definition.config_of(self._handler, branches.tasks[0])
        self._check_total()
        self._tally = JoinTally(join.strategy, self._total, join.fail_fast)
        if join.reduce is not None:
            with self._naming("the initial value of reduce"):
                self._fold = Fold(*join.reduce, ordered=join.ordered)
        driver.emit("split_started", state=self._state, detail=self._total)
        try:
            return self._carry_out(branches)
        finally:
            driver.emit("split_finished", state=self._state, detail=self.result)

    def _carry_out(self, branches: Branches) -> SplitOutcome:
        driver, join = self._driver, self._join
        try:
            self._replay()
        except FoldError as error:
            raise self._reduce_error(error) from error.__cause__
        if self._total == 0 or self._tally.verdict is not Verdict.PENDING:
            self._earlier.check_all(branches, driver.store.segments.place)
            return self._settle()
        self._header = driver.header(
            self._state,
            branches.tasks,
            min((at for at in (self._deadline, self._run_deadline) if at is not None), default=None),
            is_map=branches.is_map,
            is_made_here=branches.are_made_here,
        )
        self._station = driver.station()
        self._lane = self._station.lane(self._state)
        self._begin()
        if isinstance(join.bulkhead, Semaphore):
            self._gate = Turnstile(join.bulkhead, driver.mailbox.wake)
        try:
            self._until_settled()
        except FoldError as error:
            raise self._reduce_error(error) from error.__cause__
        finally:
            for call, ran in driver.mailbox.kill(self._lane):
                self._cut(call, ran)
            if self._gate is not None:
                self._gate.close()
            # Also when a cancel or the run's timeout ends it: what was done is worth knowing.
            self.result = self._collect()
            self._events.close()
        return self._settle()

    def _begin(self) -> None:
        needed = self._join.strategy.needed(self._total)
        total = self._total if self._total is not None else 1 << 30
        may_kill = max(0, total - (needed or 1)) if self._join.strategy.stops_early else 0
        limit = self._join.bulkhead if isinstance(self._join.bulkhead, int) else None
        self._lane.begin(self._header, limit, may_kill, tells_begin=self._events.is_wanted)

    def _until_settled(self) -> None:
        driver, tally = self._driver, self._tally
        while True:
            has_more = self._feed()
            if tally.verdict is not Verdict.PENDING:
                self._events.tell()
                return
            until = _clock.monotonic() if has_more else self._next_deadline()
            self._read(driver.mailbox.read(self._lane, until))
            if self._deadline is not None and _clock.monotonic() >= self._deadline:
                # What came in time counts, however late it is read.
                self._read(driver.mailbox.read(self._lane, self._deadline))
                self._is_timeout = tally.verdict is Verdict.PENDING
                tally.expire()
            if tally.verdict is not Verdict.PENDING:
                return

    def _read(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._tally.verdict is not Verdict.PENDING:
                # Complete, but too late.
                if isinstance(event, Finished | Lost):
                    self._cut(event.call, event.duration)
            elif isinstance(event, Finished):
                self._take(event)
            elif isinstance(event, Lost):
                self._take_loss(event)
            elif isinstance(event, Began):
                self._events.started(event.calls)
            elif isinstance(event, Progressed):
                self._driver.progress(self._state, event)
        self._events.tell()

    def _next_deadline(self) -> float | None:
        due = self._back_off[0][0] if self._back_off else None
        gate = None if self._gate is None else self._gate.due
        again = _clock.monotonic() + _LOOK_AGAIN if self._is_early else None
        return min((at for at in (due, gate, again, self._deadline) if at is not None), default=None)

    # -- branches on their way

    def _check_total(self) -> None:
        """Refuse what can never be met, where that was not known before; an empty run-time list just fails."""
        problems = self._join.problems(self._total or None)
        if problems and self._handler.total is None:
            text = f"state {label(self._state)}: " + "; ".join(problems)
            raise ConfigurationError(text, problems)

    def _config(self, index: int) -> TaskConfig:
        if self._map_config is not None:
            return self._map_config
        return self._driver.definition.config_of(self._handler, self._branches.tasks[index])

    def _feed(self) -> bool:
        """Submit branches as far as the pool wants them, and attempts whose back-off is over.

        Returns whether it stopped early, because making items takes long: outcomes must not wait for that.
        """
        now = _clock.monotonic()
        self._is_early = False
        while self._back_off and self._back_off[0][0] <= now:
            self._send([heapq.heappop(self._back_off)[2]])
        if self._gate is not None:
            self._admit()
        if self._is_exhausted:
            return False
        room = self._lane.room() - (0 if self._gate is None else len(self._gate))
        if self._fold is not None and room:
            room = min(room, self._fold.next + _FOLD_AHEAD * max(room, 64) - self._submitted)
        batch: list[Call] = []
        while room > 0:
            call = self._next_call()
            if call is None:
                break
            batch.append(call)
            room -= 1
            is_late = _clock.monotonic() - now > _FEED_PATIENCE
            # An idle worker gets an item as soon as there is one: the next may depend on what it does.
            if is_late or self._lane.is_hungry:
                self._send(batch)
                batch = []
            if is_late:
                return not self._is_exhausted
        if batch:
            self._send(batch)
        return False

    def _send(self, calls: list[Call]) -> None:
        if self._gate is None:
            self._lane.submit(calls)
            return
        for call in calls:
            assert call.branch is not None
            self._gate.add(call, self._config(call.branch))
        self._admit()

    def _admit(self) -> None:
        """Submit what the gate lets through, and fail what it refuses."""
        assert self._gate is not None
        for call, refusal in self._gate.admit(self._lane.slots):
            if refusal is None:
                self._lane.submit([call])
                continue
            index = call.branch
            assert index is not None
            self._driver.emit("circuit_open", state=self._state, branch=index, attempt=call.attempt, detail=refusal)
            self._fail(index, refused(refusal, Where(self._state, index, call.attempt, self._path)), None)
            if self._tally.verdict is not Verdict.PENDING:
                return

    def _leave_gate(self, call: Call, outcome: bool | None) -> None:
        if self._gate is not None:
            self._gate.leave(call, outcome)

    def _next_call(self) -> Call | None:
        """Return the next branch's first call; None when there are no more, or none now."""
        while True:
            index = self._submitted
            try:
                item = self._branches.item(index)
            except StopIteration:
                self._earlier.check_total(index)
                self._is_exhausted = True
                self._tally.close(index)
                return None
            if item is LATER:
                self._is_early = True
                return None
            data = self._packed(index, item) if self._branches.is_map else None
            self._submitted += 1
            config = self._config(index)
            if data is False or self._earlier.has(index, data):
                continue
            if config.has_gate and self._gate is None:
                self._gate = Turnstile(None, self._driver.mailbox.wake)
            attempt = self._open[index] = self._earlier.attempts.get(index, 0) + 1
            return Call(index, attempt, data, config.attempt_timeout, config.memory_limit, config.runs_alone)

    def _packed(self, index: int, item: Any) -> Any:
        """Return the item's bytes; False when it cannot be packed, which has failed its branch."""
        try:
            data = pack(item, self._driver.store.segments.place)
        except PayloadError as error:
            where = Where(self._state, index, 1, self._path)
            text = f"{where}: its item cannot be sent to a worker: {error}"
            failure = PayloadError(text, **where.facts)
            failure.__cause__ = error.__cause__
            self._fail(index, failure, None)
            return False
        if type(item) in _NEVER_MAIN:
            return data
        header = self._station.need_mains(data, self._header)
        if header is not self._header:
            self._header = header
            self._begin()
        return data

    # -- an earlier life

    def _replay(self) -> None:
        """Accept what was accepted before, all of it before anything is run."""
        for attempt in self._driver.scribe.recorded(self._driver.store.segments, self._earlier.attempts):
            index = attempt.branch
            assert index is not None
            value = self._driver.scribe.value_of(attempt)
            self._earlier.add(index, attempt.item)
            self._tally.offer(True)
            if self._fold is not None:
                self._fold.add(index, value)
                value = None
            if attempt.operations:
                self._writes[index] = attempt.operations
            result = branch_of(attempt, value)
            if self._records.wants(index, value):
                self._records.add(result)
            self._events.kept(result)

    # -- outcomes

    def _take(self, event: Finished) -> None:
        index = event.call.branch
        assert index is not None
        self.attempts += 1
        self._leave_gate(event.call, event.succeeded)
        if not event.succeeded:
            self._take_error(event, error_of(event, self._where(event)))
            return
        value = None
        if event.payload is not None:
            try:
                value = loads(event.payload)
            except BaseException as error:  # noqa: BLE001 - user classes may do anything
                self._fail(index, unpacking_error(error, self._where(event)), event)
                return
        self._accept(index, value, event)

    def _take_loss(self, event: Lost) -> None:
        self.attempts += 1
        self._leave_gate(event.call, False)
        self._take_error(event, error_of(event, self._where(event)))

    def _where(self, event: Finished | Lost) -> Where:
        return Where(self._state, event.call.branch, event.call.attempt, self._path)

    def _accept(self, index: int, value: Any, event: Finished) -> None:
        self._driver.scribe.accept(event)
        self._tally.offer(True)
        del self._open[index]
        if self._fold is not None:
            self._fold.add(index, value)
            value = None
        if event.operations:
            self._writes[index] = event.operations
        is_kept = self._records.wants(index, value)
        if not is_kept and not self._events.is_wanted:
            self._events.finished(None)
            return
        result = BranchResult(
            index,
            BranchStatus.SUCCEEDED,
            value,
            None,
            event.call.attempt,
            _clock.as_utc(event.started),
            event.duration,
            event.cpu_time,
            event.max_rss,
        )
        if is_kept:
            self._records.add(result)
        self._events.finished(result)

    def _take_error(self, event: Finished | Lost, error: TaskError) -> None:
        index = event.call.branch
        assert index is not None
        config = self._config(index)
        if not may_retry(config, error):
            self._fail(index, final_error(config, error), event)
            return
        self._driver.scribe.fail(error, event, is_final=False)
        self._events.retried(error)
        call = event.call
        self._open[index] = call.attempt + 1
        # A retried branch is likely to fail again: nothing should wait behind it.
        again = Call(index, call.attempt + 1, call.item, call.timeout, call.memory_limit, True)
        due = _clock.monotonic() + delay_before_next(config, error, random.random)
        heapq.heappush(self._back_off, (due, next(self._order), again))

    def _fail(self, index: int, error: TaskError, event: Finished | Lost | None) -> None:
        self._driver.scribe.fail(error, event, is_final=True)
        status = status_of(error)
        result = BranchResult(index, status, None, error, error.attempt)
        if event is not None:
            result.started_at = None if event.started is None else _clock.as_utc(event.started)
            result.duration = event.duration
            if isinstance(event, Finished):
                result.cpu_time, result.max_rss = event.cpu_time, event.max_rss
        self._records.add(result)
        self._open.pop(index, None)
        if self._fold is not None:
            self._fold.skip(index)
        self._tally.offer(False)
        self._events.finished(result)

    # -- the end

    def _cut(self, call: Call, ran: float | None) -> None:
        index = call.branch
        assert index is not None
        self._leave_gate(call, None)
        self._open.pop(index, None)
        began = None if ran is None else _clock.as_utc(_clock.epoch() - ran)
        result = BranchResult(index, BranchStatus.CANCELLED, attempts=call.attempt, started_at=began, duration=ran)
        self._records.add(result)
        self._events.killed(result)
        self.cut.append(result)

    def _collect(self) -> SplitResult:
        total = self._total
        if total is None:
            total = max(self._submitted, self._earlier.end)
        return self._records.collect(total, self._open)

    def _settle(self) -> SplitOutcome:
        result = self.result
        if result is None:
            result = self.result = self._collect()
        if self._tally.verdict is Verdict.SATISFIED:
            return SplitOutcome(self._accepted_writes(result), None, self._is_timeout)
        return SplitOutcome(
            [], join_error(self._state, self._join, result, is_timeout=self._is_timeout), self._is_timeout
        )

    def _accepted_writes(self, result: SplitResult) -> list[tuple[str, Sequence[Operation]]]:
        writes: list[tuple[str, Sequence[Operation]]] = [
            (f"branch {index}", self._writes[index]) for index in sorted(self._writes)
        ]
        own: list[Operation] = []
        if self._join.into is not None:
            try:
                value = self._records.values() if self._fold is None else self._fold.finish()
            except FoldError as error:
                raise self._reduce_error(error) from error.__cause__
            with self._naming(f"the value for key {self._join.into!r}"):
                own.append(("put", self._join.into, tuple(entry_of(value, self._driver.store.segments.place))))
        if self._join.store_partial_results:
            facts = {
                "split_results_summary": result.summary,
                "split_successes_count": result.counts["succeeded"],
                "split_errors_count": result.counts["failed"],
                "split_cancelled_count": result.counts["cancelled"],
            }
            own += [("put", key, tuple(entry_of(value))) for key, value in facts.items()]
        return [*writes, ("the join", own)] if own else writes

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Say what it was that could not be packed."""
        try:
            yield
        except PayloadError as error:
            text = f"state {label(self._state)}: {what}: {error}"
            raise PayloadError(text, state=self._state, path=self._path) from error.__cause__

    def _reduce_error(self, error: FoldError) -> WorkflowError:
        cause = error.__cause__ or error
        text = f"state {label(self._state)}: reduce failed on branch {error.index}: {describe_error(cause)}"
        return WorkflowError(text, state=self._state, path=self._path)
