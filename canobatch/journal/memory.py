"""MemoryJournal: remembers runs as long as this process lives; for tests and scripts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.effects import Entry
from canobatch.errors import JournalError, RunInUseError, RunNotFoundError
from canobatch.journal import owner
from canobatch.journal.history import check_definition, prunable, select, status_of, summary_of
from canobatch.journal.records import (
    AttemptRecord,
    CompensationRecord,
    Recovered,
    RunFacts,
    RunHistory,
    RunStatus,
    RunSummary,
    VisitRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from canobatch.effects import ErrorRecord, Flat
    from canobatch.journal.records import Commit, NewRun


class _Written:
    """The ticket of what is as durable as it will ever be."""

    is_durable = True

    def wait(self, timeout: float | None = None) -> None:
        """Return."""


_WRITTEN = _Written()


@dataclass(slots=True)
class _Kept:
    """A run, with or without an owner."""

    facts: RunFacts
    params: bytes | None
    store: dict[str, Entry]
    visits: dict[int, VisitRecord] = field(default_factory=dict)
    attempts: dict[tuple[int, int, int], AttemptRecord] = field(default_factory=dict)
    cursors: dict[tuple[int, str], Flat] = field(default_factory=dict)
    compensations: dict[int, CompensationRecord] = field(default_factory=dict)
    is_held: bool = True
    left: int = 0
    intents: int = 0

    def history(self) -> RunHistory:
        """Return the run without its values."""
        return RunHistory(
            summary_of(self.facts, status_of(self.facts, is_held=self.is_held)),
            tuple(self.visits[visit] for visit in sorted(self.visits)),
            tuple(self.attempts[key]._replace(value=None, operations=()) for key in sorted(self.attempts)),
            tuple(self.compensations[number]._replace(output=None) for number in sorted(self.compensations)),
        )


class MemoryRun:
    """One run that has an owner; see `RunJournal`."""

    def __init__(self, kept: _Kept, *, is_open: bool) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._is_open = is_open
        self._life = kept.facts.life

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._kept.facts.run_id

    @property
    def life(self) -> int:
        """How often the run was begun or taken over."""
        return self._life

    def enter(self, visit: int, state: str) -> _Written:
        """Say that the run is in a state that no commit leads to; see `RunJournal.enter`."""
        with self._lock:
            kept = self._writing()
            if visit > kept.left and visit not in kept.visits:
                kept.visits[visit] = VisitRecord(visit, state, _clock.epoch())
        return _WRITTEN

    def record(self, attempt: AttemptRecord) -> _Written:
        """Keep how one attempt ended; see `RunJournal.record`."""
        with self._lock:
            self._record(self._writing(), attempt)
        return _WRITTEN

    def _record(self, kept: _Kept, attempt: AttemptRecord) -> None:
        branch = -1 if attempt.branch is None else attempt.branch
        key = attempt.visit, branch, len(kept.attempts)
        operations = attempt.operations if attempt.visit > kept.left else ()
        kept.attempts[key] = attempt._replace(life=self._life, operations=operations)

    def note(self, visit: int, name: str, data: bytes | None) -> _Written:
        """Keep a fact of a visit; see `RunJournal.note`."""
        with self._lock:
            self._note(self._writing(), visit, name, data)
        return _WRITTEN

    @staticmethod
    def _note(kept: _Kept, visit: int, name: str, data: Flat | None) -> None:
        if data is None:
            kept.cursors.pop((visit, name), None)
        else:
            kept.cursors[visit, name] = data

    def commit(self, commit: Commit) -> None:
        """Make a visit's effects and the next state known; see `RunJournal.commit`."""
        with self._lock:
            kept, visit = self._writing(), commit.visit
            if visit <= kept.left:
                text = f"run {self.run_id}: visit {visit} of state {commit.state} was committed already"
                raise JournalError(text, reason="duplicate")
            for attempt in commit.records:
                self._record(kept, attempt)
            if commit.is_cleared:
                kept.store.clear()
            for key, entry in commit.entries.items():
                if entry is None:
                    kept.store.pop(key, None)
                else:
                    kept.store[key] = Entry(*entry)
            for name, data in commit.cursors.items():
                self._note(kept, visit, name, data)
            for number, output in commit.outputs.items():
                kept.compensations[number] = CompensationRecord(number, visit, commit.state, "done", output)
            if commit.undone is not None:
                self._end_compensation(kept, commit.undone, None)
            if commit.next_state is not None:
                self._leave(kept, commit, commit.next_state)

    @staticmethod
    def _leave(kept: _Kept, commit: Commit, following: str) -> None:
        visit, now = commit.visit, _clock.epoch()
        entered = kept.visits[visit].entered_at if visit in kept.visits else now
        kept.visits[visit] = VisitRecord(
            visit,
            commit.state,
            entered,
            now,
            following,
            commit.attempts,
            commit.total,
            commit.duration,
            commit.error,
        )
        kept.visits[visit + 1] = VisitRecord(visit + 1, following, now)
        for key in [key for key in kept.attempts if key[0] == visit]:
            kept.attempts[key] = kept.attempts[key]._replace(operations=())
        for name in [name for name in kept.cursors if name[0] == visit]:
            del kept.cursors[name]
        kept.left = visit

    def intend(self, visit: int, state: str) -> int:
        """Make it known that a task which can be compensated is about to run; see `RunJournal.intend`."""
        self.enter(visit, state)
        with self._lock:
            kept = self._writing()
            number = kept.intents = kept.intents + 1
            kept.compensations[number] = CompensationRecord(number, visit, state, "intended")
        return number

    def withdraw(self, number: int) -> _Written:
        """Say that there is nothing to compensate; see `RunJournal.withdraw`."""
        with self._lock:
            self._writing().compensations.pop(number, None)
        return _WRITTEN

    def begin_rollback(self, error: ErrorRecord) -> None:
        """Make it known that the run goes back; see `RunJournal.begin_rollback`."""
        self._change(rollback=error)

    def end_compensation(self, number: int, error: ErrorRecord | None = None) -> None:
        """Keep that one compensation ended; see `RunJournal.end_compensation`."""
        with self._lock:
            self._end_compensation(self._writing(), number, error)

    @staticmethod
    def _end_compensation(kept: _Kept, number: int, error: ErrorRecord | None) -> None:
        status = "undone" if error is None else "failed"
        kept.compensations[number] = kept.compensations[number]._replace(status=status, error=error)

    def own(self, token: str, made_with: str) -> _Written:
        """Keep which process this owner is; see `RunJournal.own`."""
        self._change(owner=owner.this_process()._replace(token=token), made_with=made_with)
        return _WRITTEN

    def attempts(self, visit: int) -> Iterator[AttemptRecord]:
        """Yield what was recorded for a visit; see `RunJournal.attempts`."""
        with self._lock:
            keys = sorted(key for key in self._kept.attempts if key[0] == visit)
            found = [self._kept.attempts[key] for key in keys]
        return iter(found)

    def end(
        self,
        status: RunStatus,
        *,
        state: str | None = None,
        error: ErrorRecord | None = None,
        is_resumable: bool = False,
    ) -> None:
        """Keep how the run ended, and let go of it; see `RunJournal.end`."""
        self._change(status=str(status), state=state, error=error, is_resumable=is_resumable, ended=_clock.epoch())
        self.close()

    def close(self) -> None:
        """Let go of the run; see `RunJournal.close`."""
        with self._lock:
            if self._is_open:
                self._is_open = self._kept.is_held = False

    def _change(self, **facts: Any) -> None:
        with self._lock:
            kept = self._writing()
            kept.facts = kept.facts._replace(**facts)

    def _writing(self) -> _Kept:
        if not self._is_open:
            raise JournalError(f"run {self.run_id} ended, or was closed here", reason="closed")
        return self._kept


class MemoryJournal:
    """Remembers runs in this process; what ends with it. Behaves like `SqliteJournal` otherwise.

    Example:
        >>> MemoryJournal().runs()
        []
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, _Kept] = {}

    def begin(self, run: NewRun) -> MemoryRun:
        """Begin a run; see `Journal.begin`."""
        facts = RunFacts(
            run_id=run.run_id,
            workflow=run.workflow,
            version=run.version,
            made_with=run.made_with,
            life=1,
            owner=owner.this_process(),
            status="running",
            is_resumable=True,
            state=None,
            started=_clock.epoch(),
            ended=None,
            error=None,
            rollback=None,
        )
        with self._lock:
            if run.run_id in self._runs:
                text = f"there is a run {run.run_id} already; resume it, or choose another id"
                raise RunInUseError(text, run_id=run.run_id)
            kept = self._runs[run.run_id] = _Kept(facts, run.params, dict(run.entries))
        journal = MemoryRun(kept, is_open=True)
        journal.enter(1, run.initial)
        return journal

    def take_over(self, run_id: str, *, workflow: str, version: int) -> tuple[MemoryRun, Recovered]:
        """Become the owner of a run; see `Journal.take_over`."""
        with self._lock:
            kept = self._find(run_id)
            if kept.is_held:
                pid = kept.facts.owner.pid
                text = f"run {run_id} is in use by this process ({pid}); wait for its end, or cancel it"
                raise RunInUseError(text, run_id=run_id, pid=pid)
            check_definition(kept.facts, workflow, version)
            before = kept.facts
            is_resumable = before.status == "running" or before.is_resumable
            if is_resumable:
                kept.is_held = True
                kept.facts = before._replace(
                    life=before.life + 1,
                    status="running",
                    is_resumable=True,
                    ended=None,
                    state=None,
                    error=None,
                )
        return MemoryRun(kept, is_open=is_resumable), _recovered(kept, before, is_resumable=is_resumable)

    def runs(
        self, *, workflow: str | None = None, status: RunStatus | None = None, since: float | None = None
    ) -> list[RunSummary]:
        """Return the runs, the latest first; see `Journal.runs`."""
        with self._lock:
            kept = list(self._runs.values())
        return select([one.history().summary for one in kept], workflow, status, since)

    def run(self, run_id: str) -> RunHistory:
        """Return one run's history; see `Journal.run`."""
        with self._lock:
            return self._find(run_id).history()

    def prune(self, *, older_than: float | None = None, keep: int | None = None) -> list[str]:
        """Remove runs that have ended; see `Journal.prune`."""
        doomed = prunable(self.runs(), _clock.epoch(), older_than, keep)
        with self._lock:
            # It may have been taken over meanwhile.
            gone = [run_id for run_id in doomed if run_id in self._runs and not self._runs[run_id].is_held]
            for run_id in gone:
                del self._runs[run_id]
        return gone

    def _find(self, run_id: str) -> _Kept:
        if run_id not in self._runs:
            raise RunNotFoundError(f"no run {run_id} in this journal; list the runs that there are", run_id=run_id)
        return self._runs[run_id]

    def __repr__(self) -> str:
        return f"<MemoryJournal {len(self._runs)} runs>"


def _recovered(kept: _Kept, before: RunFacts, *, is_resumable: bool) -> Recovered:
    last = max(kept.visits)
    return Recovered(
        run_id=before.run_id,
        workflow=before.workflow,
        version=before.version,
        params=kept.params,
        made_with=before.made_with,
        status=RunStatus.INTERRUPTED if before.status == "running" else RunStatus(before.status),
        is_resumable=is_resumable,
        life=before.life + is_resumable,
        visits=tuple(kept.visits[visit] for visit in sorted(kept.visits)),
        store=dict(kept.store),
        cursors={name: data for (visit, name), data in kept.cursors.items() if visit == last},
        compensations=tuple(kept.compensations[number] for number in sorted(kept.compensations)),
        rollback=before.rollback,
        state=before.state,
        error=before.error,
        owner=before.owner,
    )
