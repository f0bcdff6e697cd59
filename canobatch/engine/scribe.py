"""The scribe: what a run tells its journal, and what the journal told of an earlier life.

Without a journal every call returns at once. Nothing else of the engine knows of journals.
"""

from __future__ import annotations

import functools
import itertools
import sys
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from canobatch import _clock, _faults
from canobatch.definition import Single, label
from canobatch.effects import Placed, first_line, loads, rebuild_error, record_error, stream_of, with_data
from canobatch.engine.attempt import status_of
from canobatch.engine.records import Records
from canobatch.engine.report import StateReport
from canobatch.errors import (
    CompensationError,
    JournalError,
    PayloadError,
    RunCancelledError,
    VersionMismatchError,
)
from canobatch.join import BranchResult, BranchStatus
from canobatch.journal import AttemptRecord, Commit, RunStatus
from canobatch.segments import flat, unflat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from canobatch.definition import Definition
    from canobatch.effects import Data, Entry, Operation
    from canobatch.errors import TaskError
    from canobatch.join import SplitResult
    from canobatch.journal import CompensationRecord, Recovered, RunJournal, Ticket, VisitRecord
    from canobatch.pool import Finished, Lost
    from canobatch.segments import Segments

#: An attempt after which another one was to follow.
_RETRIED = "retried"


@functools.cache
def made_with() -> str:
    """Return what values that were pickled by value depend on."""
    from importlib.metadata import version  # noqa: PLC0415 - 5 ms, for runs with a journal

    return f"Python {sys.version_info.major}.{sys.version_info.minor}, cloudpickle {version('cloudpickle')}"


def item_digest(data: Data | None) -> bytes | None:
    """Return the digest by which the item of a branch is known again."""
    if data is None:
        return None
    digest = blake2b(digest_size=16)
    for part in data.parts() if isinstance(data, Placed) else [stream_of(data)]:
        digest.update(part)
    return digest.digest()


class Scribe:
    """One run's side of its journal. Used by the run's thread.

    Attributes:
        visit: The number of the present visit.
    """

    def __init__(
        self, definition: Definition, journal: RunJournal | None = None, recovered: Recovered | None = None
    ) -> None:
        self._definition = definition
        #: Where an earlier life is read from, and where this one is written to.
        self._source = journal
        self._journal = journal if recovered is None or recovered.is_resumable else None
        self._recovered = recovered
        self._states = {label(state): state for state in [*definition.handlers, *definition.exits]}
        self.visit = 0
        self._is_going_back = False
        #: What was handed to the journal last.
        self._ticket: Ticket | None = None
        #: Whether the visit that is entered next is in the journal already.
        self._is_announced = True

    # -- an earlier life

    @property
    def is_resumed(self) -> bool:
        """Whether the run was begun before."""
        return self._recovered is not None

    def earlier_visits(self) -> list[StateReport]:
        """Return the visits that were left for good, of this run's earlier lives."""
        if self._recovered is None:
            return []
        return [self._report_of(visit) for visit in self._recovered.visits[:-1]]

    def earlier_splits(self) -> dict[Any, SplitResult]:
        """Return the last result of each split that ended in an earlier life."""
        if self._recovered is None or self._source is None:
            return {}
        last: dict[Any, VisitRecord] = {}
        for visit in self._recovered.visits:
            handler = self._definition.handlers.get(self._state_of(visit.state))
            if visit.total is not None and handler is not None and not isinstance(handler, Single):
                last[self._state_of(visit.state)] = visit
        return {state: self._split_of(self._source, visit) for state, visit in last.items()}

    def _state_of(self, name: str) -> Any:
        # A state that was taken out of the definition is only history.
        return self._states.get(name, name)

    def _report_of(self, visit: VisitRecord) -> StateReport:
        error = None if visit.error is None else rebuild_error(visit.error)
        return StateReport(
            self._state_of(visit.state),
            visit.visit,
            _clock.as_utc(visit.entered_at),
            visit.duration,
            visit.attempts,
            error,
        )

    def _split_of(self, journal: RunJournal, visit: VisitRecord) -> SplitResult:
        handler = self._definition.handlers[self._state_of(visit.state)]
        is_folded = not isinstance(handler, Single) and handler.join.reduce is not None
        records = Records(keeps_values=False)
        for _, attempts in itertools.groupby(journal.attempts(visit.visit), lambda attempt: attempt.branch):
            # The last attempt of each branch says how it ended.
            for attempt in attempts:
                last = attempt
            if last.status != BranchStatus.SUCCEEDED or records.wants(last.branch or 0, None):
                records.add(branch_of(last, None if is_folded else self.value_of(last)))
        return records.collect(visit.total or 0, {})

    def recorded(self, segments: Segments, begun: dict[int, int] | None = None) -> Iterator[AttemptRecord]:
        """Yield what earlier lives accepted of the present visit; large values in it move to ``segments``.

        At its end ``begun`` has, by branch, the attempts that count of those that were not accepted.
        """
        begun = {} if begun is None else begun
        if self._recovered is None or self._source is None or self.visit != self._recovered.visits[-1].visit:
            return
        for attempt in self._source.attempts(self.visit):
            branch = attempt.branch
            if branch is None:
                continue
            begun.pop(branch, None)
            if attempt.status == BranchStatus.SUCCEEDED:
                operations = with_data(attempt.operations, lambda data: segments.house(unflat(data)))
                yield attempt._replace(operations=operations)
            else:
                begun[branch] = attempt.attempt if attempt.status == _RETRIED else 0

    def attempts_made(self) -> int:
        """Return how many attempts earlier lives made of the present visit's single task, if another was to follow."""
        if self._recovered is None or self._source is None or self.visit != self._recovered.visits[-1].visit:
            return 0
        last = None
        for attempt in self._source.attempts(self.visit):
            if attempt.branch is None:
                last = attempt
        return last.attempt if last is not None and last.status == _RETRIED else 0

    def cursor(self, name: str) -> Data | None:
        """Return what an earlier life kept last under ``name`` in the present visit."""
        if self._recovered is None or self.visit != self._recovered.visits[-1].visit:
            return None
        data = self._recovered.cursors.get(name)
        return None if data is None else unflat(data)

    def value_of(self, attempt: AttemptRecord) -> Any:
        """Return what an accepted branch returned in an earlier life.

        Raises:
            VersionMismatchError: It needs the interpreter that made it.
            PayloadError: It cannot be unpacked here.
        """
        if attempt.value is None:
            return None
        if self._recovered is not None:
            check_interpreter(self._recovered, made_with(), [attempt.value])
        try:
            return loads(unflat(attempt.value))
        except Exception as error:
            text = f"the recorded value of branch {attempt.branch} cannot be unpacked here: {first_line(error)}"
            raise PayloadError(text, branch=attempt.branch, attempt=attempt.attempt) from error

    # -- this life

    def enter(self, state: Any) -> None:
        """The run is in a state."""
        if self.visit == 0 and self._recovered is not None:
            self.visit = self._recovered.visits[-1].visit
        else:
            self.visit += 1
        if self._journal is not None and not self._is_announced:
            self._journal.enter(self.visit, label(state))
        # Unless a commit leads to the next one.
        self._is_announced = False
        _faults.point("engine.state.entered")

    def accept(self, event: Finished) -> None:
        """A branch was accepted, or an item of a batch."""
        call = event.call
        if self._journal is not None and call.branch is not None:
            times = event.started, event.duration, event.cpu_time, event.max_rss
            self.succeed(call.branch, call.attempt, event.payload, event.operations, call.item, times)

    def succeed(
        self,
        branch: int,
        attempt: int,
        value: Data | None,
        operations: Sequence[Operation],
        item: Data | None,
        times: tuple[float | None, float | None, float | None, int | None] = (None, None, None, None),
    ) -> None:
        """Record a success; what is packed may lie in segments."""
        if self._journal is None:
            return
        _faults.point("engine.accept.before")
        self._ticket = self._journal.record(
            AttemptRecord(
                self.visit,
                branch,
                attempt,
                BranchStatus.SUCCEEDED.value,
                None if value is None else flat(value),
                with_data(tuple(operations), flat),
                None,
                *times,
                item_digest(item),
            )
        )
        _faults.point("engine.accept.after")

    def fail(self, error: TaskError, event: Finished | Lost | None = None, *, is_final: bool) -> None:
        """An attempt failed, for good or not."""
        if self._journal is None:
            return
        self._ticket = self._journal.record(
            AttemptRecord(
                self.visit,
                error.branch,
                error.attempt,
                status_of(error).value if is_final else _RETRIED,
                error=record_error(error),
                started=None if event is None else event.started,
                duration=None if event is None else event.duration,
            )
        )

    def own(self, token: str) -> None:
        """What this run starts carries ``token`` from now on: whoever resumes it finds what was left by it."""
        if self._journal is not None and token:
            self._journal.own(token, made_with())

    def wait(self) -> None:
        """Wait until everything that was told is durable: only then others may hear of it."""
        if self._ticket is not None:
            self._ticket.wait()
            self._ticket = None

    def keeper_of(
        self,
        state: Any,
        following: Any,
        *,
        report: StateReport | None = None,
        result: SplitResult | None = None,
        cut: Iterable[BranchResult] = (),
        cursors: Mapping[str, Data] | None = None,
        error: BaseException | None = None,
        outputs: Mapping[int, bytes] | None = None,
        undone: int | None = None,
    ) -> Callable[[bool, Mapping[str, Entry | None]], None] | None:
        """Return what makes a commit durable, once the store knows its changes; None without a journal.

        ``following`` is the next state; None: the visit goes on.
        """
        journal = self._journal
        if journal is None:
            return None

        def keep(is_cleared: bool, entries: Mapping[str, Entry | None]) -> None:
            _faults.point("engine.commit.before")
            journal.commit(
                Commit(
                    visit=self.visit,
                    state=label(state),
                    next_state=None if following is None else label(following),
                    is_cleared=is_cleared,
                    entries={key: entry and with_data(entry, flat) for key, entry in entries.items()},
                    cursors={name: flat(data) for name, data in (cursors or {}).items()},
                    records=tuple(self._cut(branch) for branch in cut),
                    attempts=0 if report is None else report.attempts,
                    total=None if result is None else sum(result.counts.values()),
                    duration=None if report is None else report.elapsed(_clock.epoch()),
                    error=None if error is None else record_error(error),
                    outputs=outputs or {},
                    undone=undone,
                )
            )
            self._is_announced = following is not None
            _faults.point("engine.commit.after")

        return keep

    def _cut(self, branch: BranchResult) -> AttemptRecord:
        return AttemptRecord(
            self.visit,
            branch.index,
            branch.attempts,
            BranchStatus.CANCELLED.value,
            started=None if branch.started_at is None else branch.started_at.timestamp(),
            duration=branch.duration,
        )

    # -- what can be undone

    @property
    def is_on(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    def deeds(self) -> list[CompensationRecord]:
        """Return what earlier lives did, or may have done, and did not undo; in the order in which they did it."""
        if self._recovered is None or not self._recovered.is_resumable:
            return []
        return [deed for deed in self._recovered.compensations if deed.status != "undone"]

    def state_named(self, name: str) -> Any:
        """Return the state of a label, or the label."""
        return self._state_of(name)

    def failure(self) -> BaseException | None:
        """Return what an earlier life began to roll back for: this one goes on with that."""
        if self._recovered is None or self._recovered.rollback is None:
            return None
        return rebuild_error(self._recovered.rollback)

    def intend(self, state: Any) -> int:
        """A task that can be undone is about to run; return the number of this intent."""
        return 0 if self._journal is None else self._journal.intend(self.visit, label(state))

    def withdraw(self, number: int) -> None:
        """It failed by itself."""
        if self._journal is not None:
            self._journal.withdraw(number)

    def begin_rollback(self, error: BaseException) -> None:
        """The run goes back."""
        self._is_going_back = True
        if self._journal is not None and self.failure() is None:
            self._journal.begin_rollback(record_error(error))

    def fail_compensation(self, number: int, error: BaseException) -> None:
        """Something could not be undone."""
        if self._journal is not None:
            self._journal.end_compensation(number, record_error(error))

    # -- the end

    def end(self, state: Any, error: BaseException | None, *, is_kept: bool) -> None:
        """The run ended, at an exit state or with an error.

        A cancelled run may be resumed if it ``is_kept``; one that failed may, one that failed to be recorded is
        only let go of.
        """
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            if isinstance(error, JournalError):
                return
            name = None if state is None else label(state)
            if error is None:
                journal.end(RunStatus.COMPLETED, state=name)
            elif isinstance(error, RunCancelledError) and not self._is_going_back:
                journal.end(RunStatus.CANCELLED, state=name, error=record_error(error), is_resumable=is_kept)
            elif self._is_going_back and not isinstance(error, CompensationError):
                journal.end(RunStatus.ROLLED_BACK, state=name, error=record_error(error))
            else:
                journal.end(RunStatus.FAILED, state=name, error=record_error(error), is_resumable=True)
        finally:
            journal.close()

    def close(self) -> None:
        """Let go of the run without an end."""
        if self._journal is not None:
            self._journal.close()


def branch_of(attempt: AttemptRecord, value: Any) -> BranchResult:
    """Return how a branch ended, from its last attempt."""
    # One that was to be tried again was cut in between.
    status = BranchStatus.CANCELLED if attempt.status == _RETRIED else BranchStatus(attempt.status)
    is_error = attempt.error is not None and status is not BranchStatus.CANCELLED
    return BranchResult(
        attempt.branch or 0,
        status,
        value,
        rebuild_error(attempt.error) if is_error and attempt.error is not None else None,
        attempt.attempt,
        None if attempt.started is None else _clock.as_utc(attempt.started),
        attempt.duration,
        attempt.cpu_time,
        attempt.max_rss,
    )


def check_item(recorded: bytes | None, data: Data | None, where: str, run_id: str) -> None:
    """Refuse to give a recorded outcome to another item than the one it was made from.

    Raises:
        VersionMismatchError: It is another.
    """
    if recorded is not None and recorded != item_digest(data):
        raise VersionMismatchError(
            f"{where}: its item is not the one that was recorded; a resumed run needs the same items in the same order",
            run_id=run_id,
        )


def check_interpreter(recovered: Recovered, present: str, values: Sequence[Any]) -> None:
    """Refuse values that were pickled by value under another interpreter or pickler.

    Raises:
        VersionMismatchError: There are such.
    """
    if recovered.made_with == present or not any(b"cloudpickle" in bytes(stream_of(unflat(value))) for value in values):
        return
    raise VersionMismatchError(
        f"run {recovered.run_id} holds values by value made with {recovered.made_with}, this is {present}; resume it "
        f"with those, or define what it stores at the top level of a module",
        run_id=recovered.run_id,
        recorded=recovered.made_with,
        present=present,
    )
