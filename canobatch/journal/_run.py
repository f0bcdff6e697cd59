"""One run in its database, as its owner has it."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from canobatch import _clock, _faults, _sqlite
from canobatch.errors import JournalError
from canobatch.journal import owner
from canobatch.journal._database import RunDatabase
from canobatch.journal._reading import Reading
from canobatch.journal._writer import GroupWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from canobatch._locks import FileLock
    from canobatch.effects import ErrorRecord, Operation
    from canobatch.journal.base import Ticket
    from canobatch.journal.home import Home
    from canobatch.journal.records import AttemptRecord, Commit, RunFacts, RunStatus

#: About how many bytes a row takes beside its value.
_ROW = 300


class SqliteRun:
    """One run that this process has; see `RunJournal`."""

    def __init__(
        self, home: Home, name: str, facts: RunFacts, lock: FileLock | None, database: RunDatabase | None
    ) -> None:
        self._home = home
        self._name = name
        self._pid = os.getpid()
        self._facts = facts
        self._path = home.database(name)
        self._lock = lock
        self._writer = None if database is None else GroupWriter(database, facts.run_id)
        #: Those of intents to come.
        self._numbers = itertools.count(1 if database is None else max(database.compensations, default=0) + 1)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._facts.run_id

    @property
    def life(self) -> int:
        """How often the run was begun or taken over."""
        return self._facts.life

    def enter(self, visit: int, state: str) -> Ticket:
        """Say that the run is in a state that no commit leads to; see `RunJournal.enter`."""
        return self._writing().submit(RunDatabase.enter, visit, state)

    def record(self, attempt: AttemptRecord) -> Ticket:
        """Keep how one attempt ended; see `RunJournal.record`."""
        size = _ROW + len(attempt.value or b"") + (_size(attempt.operations) if attempt.operations else 0)
        return self._writing().submit(RunDatabase.record, attempt, size=size)

    def note(self, visit: int, name: str, data: bytes | None) -> Ticket:
        """Keep a fact of a visit; see `RunJournal.note`."""
        return self._writing().submit(RunDatabase.note, visit, name, data, size=_ROW + len(data or b""))

    def commit(self, commit: Commit) -> None:
        """Make a visit's effects and the next state durable; see `RunJournal.commit`."""
        self._writing().make(RunDatabase.commit, commit)

    def intend(self, visit: int, state: str) -> int:
        """Make it known that a task which can be compensated is about to run; see `RunJournal.intend`."""
        number = next(self._numbers)
        self._writing().make(RunDatabase.intend, number, visit, state)
        return number

    def withdraw(self, number: int) -> Ticket:
        """Say that there is nothing to compensate; see `RunJournal.withdraw`."""
        return self._writing().submit(RunDatabase.withdraw, number)

    def begin_rollback(self, error: ErrorRecord) -> None:
        """Make it known that the run goes back; see `RunJournal.begin_rollback`."""
        self._writing().make(RunDatabase.begin_rollback, error)

    def end_compensation(self, number: int, error: ErrorRecord | None = None) -> None:
        """Keep that one compensation ended; see `RunJournal.end_compensation`."""
        self._writing().make(RunDatabase.end_compensation, number, error)

    def own(self, token: str, made_with: str) -> Ticket:
        """Keep which process this owner is; see `RunJournal.own`."""
        return self._writing().submit(RunDatabase.own, owner.this_process()._replace(token=token), made_with)

    def attempts(self, visit: int) -> Iterator[AttemptRecord]:
        """Yield what was recorded for a visit; see `RunJournal.attempts`."""
        if self._writer is not None:
            self._writer.flush()
        return _attempts(self._path, visit)

    def end(
        self,
        status: RunStatus,
        *,
        state: str | None = None,
        error: ErrorRecord | None = None,
        is_resumable: bool = False,
    ) -> None:
        """Keep how the run ended, and let go of it; see `RunJournal.end`."""
        writer, ended = self._writing(), _clock.epoch()
        writer.make(RunDatabase.end, status, state, error, is_resumable, ended)
        _faults.point("journal.end.before")
        writer.close()
        _faults.point("journal.end.after")
        self._facts = self._facts._replace(
            status=str(status), state=state, error=error, is_resumable=is_resumable, ended=ended
        )
        self._let_go()

    def close(self) -> None:
        """Let go of the run without an end; see `RunJournal.close`."""
        if self._writer is not None:
            self._writer.close()
        self._let_go()

    def _writing(self) -> GroupWriter:
        if self._writer is None:
            raise JournalError(
                f"run {self.run_id} ended before and was only read", path=str(self._path), reason="closed"
            )
        return self._writer

    def _let_go(self) -> None:
        if self._lock is not None and not self._is_inherited():
            self._lock.release()
            self._lock = None

    def _is_inherited(self) -> bool:
        return self._pid != os.getpid()

    def __repr__(self) -> str:
        return f"<SqliteRun {self.run_id}>"


def _size(operations: tuple[Operation, ...]) -> int:
    """Return about how many bytes operations take."""
    size = 0
    for operation in operations:
        for part in operation:
            if isinstance(part, bytes):
                size += len(part)
            elif isinstance(part, tuple):
                size += len(part[0])
    return size


def _attempts(path: Path, visit: int) -> Iterator[AttemptRecord]:
    connection = _sqlite.connect_readonly(path)
    try:
        with _sqlite.one_version(connection):
            yield from Reading(connection, path).attempts(visit, path.parent / "values")
    finally:
        connection.close()
