"""One run's database: its tables, and what each call changes in them. Used by one thread at a time.

Each row has a digest, and `head` the sum of all digests, changed in every transaction. So a row that was
altered, lost, or taken from another version is found when the run is read; what is read is a state in which
the run once was, or an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch import _clock, _faults, _sqlite
from canobatch.effects import with_data
from canobatch.errors import JournalError
from canobatch.journal._rows import MODULUS, digest, pack, text_bytes
from canobatch.journal._values import LARGE, ValueFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from canobatch.effects import ErrorRecord, Flat
    from canobatch.journal.records import AttemptRecord, Commit, NewRun, Owner, RunStatus

COMPONENT = "run"

#: A blob is in its row, or, with a file's name beside, its digest is.
STEPS = (
    (
        "CREATE TABLE head (id INTEGER PRIMARY KEY, transactions INTEGER, seal INTEGER)",
        "CREATE TABLE run (id INTEGER PRIMARY KEY, facts BLOB, params BLOB, file TEXT, digest INTEGER)",
        "CREATE TABLE visits (visit INTEGER PRIMARY KEY, facts BLOB, digest INTEGER)",
        """CREATE TABLE attempts (visit INTEGER, branch INTEGER, number INTEGER, facts BLOB, value BLOB, file TEXT,
            digest INTEGER, PRIMARY KEY (visit, branch, number)) WITHOUT ROWID""",
        """CREATE TABLE operations (visit INTEGER, branch INTEGER, number INTEGER, data BLOB, file TEXT,
            digest INTEGER, PRIMARY KEY (visit, branch, number)) WITHOUT ROWID""",
        """CREATE TABLE store (key BLOB PRIMARY KEY, category TEXT, type_name BLOB, data BLOB, file TEXT,
            digest INTEGER)""",
        """CREATE TABLE cursors (visit INTEGER, name BLOB, data BLOB, file TEXT, digest INTEGER,
            PRIMARY KEY (visit, name))""",
        "CREATE TABLE compensations (number INTEGER PRIMARY KEY, facts BLOB, output BLOB, file TEXT, digest INTEGER)",
    ),
)

#: The single task of a state, where a branch has its index.
NO_BRANCH = -1

_INSERT_ONE = "INSERT INTO attempts VALUES (?,?,?,?,?,?,?)"
#: Rows a statement: each step gives the interpreter lock away, and may wait long to get it back.
_ROWS = 64
_INSERT_MANY = _INSERT_ONE + ",(?,?,?,?,?,?,?)" * (_ROWS - 1)

#: (digest, file's name or None) of a row that may be replaced.
Kept = tuple[int, str | None]
#: What stands in a row, and the name of the file that holds the rest: of a file, its digest stands there.
Blob = tuple[Any, str | None]
_NOT_WRITTEN: tuple[Any, Blob | None] = (None, None)


class RunDatabase:
    """The writing side. Whatever it raises leaves the file as it was, and this object of no more use."""

    def __init__(
        self,
        connection: _sqlite.Connection,
        path: Path,
        values: ValueFiles,
        life: int,
        *,
        seal: int = 0,
        count: int = 0,
    ) -> None:
        self.path = path
        self.life = life
        #: The row of the run, as its columns; changed by `begin`, `take_over` and the calls of a rollback and an end.
        self.facts: dict[str, Any] = {}
        self.params: tuple[bytes | None, str | None] = (None, None)
        self._connection = connection
        self._values = values
        self._seal = seal
        self._transactions = count
        #: Whether a transaction may.
        self._waits_for_disk = values.is_synced
        #: Value files that this transaction made, and those that nothing refers to after it.
        self._fresh: list[str] = []
        self._dead: list[str] = []
        self._rows: list[tuple[Any, ...]] = []
        self.run_digest = 0
        self.visits: dict[int, tuple[int, tuple[Any, ...]]] = {}
        self.store: dict[bytes, Kept] = {}
        self.cursors: dict[tuple[int, bytes], Kept] = {}
        self.operations: dict[int, tuple[int, list[str]]] = {}
        #: By identity: large data of operations that no commit followed yet, and what refers to its file.
        self._written: dict[int, tuple[Flat, Blob]] = {}
        #: By number: visit, state, blob, file, digest.
        self.compensations: dict[int, tuple[int, str, bytes | None, str | None, int]] = {}
        #: The number of the last attempt.
        self.recorded = 0
        #: The last visit that was left for good: nothing of it is replaced any more.
        self.left = 0

    # -- transactions

    def write(self, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Make all of ``calls`` in one transaction.

        Raises:
            JournalError: It could not be committed; nothing of it is kept.
        """
        with _sqlite.translated(self.path):
            _faults.point("journal.write.before")
            with _sqlite.transaction(self._connection):
                self.apply(calls)
                _faults.point("journal.write.rows")
            _faults.point("journal.write.after")
            self._waits_for_disk = self._waits_for_disk or _sqlite.bound_write_ahead_log(self._connection, self.path)
        self._values.drop(self._dead)
        self._dead.clear()

    def apply(self, calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Make ``calls`` inside the caller's transaction."""
        try:
            for function, arguments in calls:
                function(self, *arguments)
            self._flush()
            self._transactions += 1
            self._execute("REPLACE INTO head VALUES (1, ?, ?)", (self._transactions, self._seal))
        except BaseException:
            # No row will refer to them, and the disk may be full.
            self._values.drop(self._fresh)
            raise
        finally:
            self._fresh.clear()

    def close(self, *, is_whole: bool) -> None:
        """Close the file, as one plain file if all that was given to it is in it."""
        if is_whole:
            # Nobody needs a run again that has ended for good.
            waits = self._values.is_synced or bool(self.facts["is_resumable"])
            _sqlite.leave_write_ahead_log(self._connection, waits_for_disk=waits)
        self._connection.close()

    # -- calls

    def begin(self, run: NewRun, owner: Owner, started: float) -> None:
        """Write what is known at the beginning."""
        self.params = self._blob(run.params)
        self.facts = {
            "run_id": run.run_id,
            "workflow": run.workflow,
            "version": run.version,
            "started": started,
            "rollback": None,
        }
        self.facts.update(owner=tuple(owner), made_with=run.made_with)
        self.take_over()
        self.enter(1, run.initial)
        for key, entry in run.entries.items():
            self._put(key, entry)

    def take_over(self) -> None:
        """Write that the run goes on."""
        self.facts.update(
            life=self.life,
            status="running",
            is_resumable=True,
            ended=None,
            state=None,
            error=None,
        )
        self._put_run()

    def own(self, owner: Owner, made_with: str) -> None:
        """Write the new owner."""
        self.facts.update(owner=tuple(owner), made_with=made_with)
        self._put_run()

    def enter(self, visit: int, state: str) -> None:
        """Write a visit, unless a commit has."""
        if visit not in self.visits and visit > self.left:
            self._put_visit(visit, (state, _clock.epoch(), None, None, 0, None, None, None))

    def record(self, attempt: AttemptRecord) -> None:
        """Write an attempt."""
        branch = NO_BRANCH if attempt.branch is None else attempt.branch
        facts = pack(
            (
                self.life,
                attempt.attempt,
                attempt.status,
                attempt.started,
                attempt.duration,
                attempt.cpu_time,
                attempt.max_rss,
                attempt.item,
                attempt.error,
            )
        )
        data, file = self._blob(attempt.value)
        # In the order of recording: attempts may be counted anew within a visit, after a take-over for one.
        self.recorded += 1
        key = (attempt.visit, branch, self.recorded)
        own = digest("attempts", *key, facts, data, file)
        self._seal = (self._seal + own) % MODULUS
        self._rows.append((*key, facts, data, file, own))
        if attempt.operations and attempt.visit > self.left:
            self._put_operations(key, attempt)

    def note(self, visit: int, name: str, data: Flat | None) -> None:
        """Write a fact of a visit."""
        key = (visit, text_bytes(name))
        self._forget(self.cursors.pop(key, None))
        if data is None:
            self._execute("DELETE FROM cursors WHERE visit=? AND name=?", key)
            return
        blob, file = self._blob(data)
        own = self._count(digest("cursors", *key, blob, file))
        self.cursors[key] = own, file
        self._execute("REPLACE INTO cursors VALUES (?,?,?,?,?)", (*key, blob, file, own))

    def commit(self, commit: Commit) -> None:
        """Write a visit's effects, and where the run goes."""
        if commit.visit <= self.left:
            text = f"{self.path}: visit {commit.visit} of state {commit.state} was committed already"
            raise JournalError(text, path=str(self.path), reason="duplicate")
        for attempt in commit.records:
            self.record(attempt)
        if commit.is_cleared:
            for kept in self.store.values():
                self._forget(kept)
            self.store.clear()
            self._execute("DELETE FROM store", ())
        # What goes with the visit leaves its files to the store.
        written, self._written = self._written if commit.next_state is not None else {}, {}
        taken = set()
        for key, entry in commit.entries.items():
            _, blob = written.pop(id(entry.data), _NOT_WRITTEN) if entry else _NOT_WRITTEN
            taken.add(blob and blob[1])
            self._put(key, entry, blob)
        for name, data in commit.cursors.items():
            self.note(commit.visit, name, data)
        for number, output in commit.outputs.items():
            self._put_compensation(number, commit.visit, commit.state, "done", *self._blob(output), None)
        if commit.undone is not None:
            self.end_compensation(commit.undone, None)
        if commit.next_state is not None:
            self._leave(commit, commit.next_state, taken)

    def intend(self, number: int, visit: int, state: str) -> None:
        """Write that a task that can be compensated will run."""
        self.enter(visit, state)
        self._put_compensation(number, visit, state, "intended", None, None, None)

    def withdraw(self, number: int) -> None:
        """Drop an intent."""
        known = self.compensations.pop(number, None)
        if known is not None:
            self._forget((known[4], known[3]))
            self._execute("DELETE FROM compensations WHERE number=?", (number,))

    def begin_rollback(self, error: ErrorRecord) -> None:
        """Write why the run goes back."""
        self.facts["rollback"] = error
        self._put_run()

    def end_compensation(self, number: int, error: ErrorRecord | None) -> None:
        """Write how one compensation ended."""
        visit, state, blob, file, _ = self.compensations[number]
        self._put_compensation(number, visit, state, "undone" if error is None else "failed", blob, file, error)

    def end(
        self, status: RunStatus, state: str | None, error: ErrorRecord | None, is_resumable: bool, ended: float
    ) -> None:
        """Write how the run ended."""
        self.facts.update(
            status=str(status),
            state=state,
            error=error,
            is_resumable=is_resumable,
            ended=ended,
        )
        self._put_run()

    # -- rows

    def _execute(self, statement: str, values: Sequence[Any]) -> None:
        self._connection.execute(statement, values)

    def _count(self, own: int) -> int:
        self._seal = (self._seal + own) % MODULUS
        return own

    def _forget(self, kept: Kept | None) -> None:
        if kept is not None:
            self._seal = (self._seal - kept[0]) % MODULUS
            if kept[1] is not None:
                self._dead.append(kept[1])

    def _blob(self, data: Any) -> Blob:
        """Return what stands for data in its row, a large one written to a file."""
        if data is None or len(data) < LARGE:
            return data, None
        name, own = self._values.write(data)
        self._fresh.append(name)
        return own, name

    def _flush(self) -> None:
        """Insert the attempts that were collected."""
        rows = self._rows
        for start in range(0, len(rows) - len(rows) % _ROWS, _ROWS):
            self._execute(_INSERT_MANY, [value for row in rows[start : start + _ROWS] for value in row])
        for row in rows[len(rows) - len(rows) % _ROWS :]:
            self._execute(_INSERT_ONE, row)
        rows.clear()

    def _put_run(self) -> None:
        facts = pack(tuple(sorted(self.facts.items())))
        self._forget((self.run_digest, None))
        self.run_digest = self._count(digest("run", facts, *self.params))
        self._execute("REPLACE INTO run VALUES (1,?,?,?,?)", (facts, *self.params, self.run_digest))

    def _put_visit(self, visit: int, facts: tuple[Any, ...]) -> None:
        known = self.visits.get(visit)
        if known is not None:
            self._forget((known[0], None))
        packed = pack(facts)
        own = self._count(digest("visits", visit, packed))
        self.visits[visit] = own, facts
        self._execute("REPLACE INTO visits VALUES (?,?,?)", (visit, packed, own))

    def _put_operations(self, key: tuple[int, int, int], attempt: AttemptRecord) -> None:
        total, files = self.operations.setdefault(attempt.visit, (0, []))

        def referred(data: Flat) -> Any:
            if len(data) < LARGE:
                return data
            own, name = blob = self._blob(data)
            self._written[id(data)] = data, blob
            files.append(name or "")
            return [name, own]

        data, file = self._blob(pack(with_data(attempt.operations, referred)))
        own = self._count(digest("operations", *key, data, file))
        if file is not None:
            files.append(file)
        self.operations[attempt.visit] = (total + own) % MODULUS, files
        self._execute("INSERT INTO operations VALUES (?,?,?,?,?,?)", (*key, data, file, own))

    def _put(self, key: str, entry: Any, blob: Blob | None = None) -> None:
        name = text_bytes(key)
        self._forget(self.store.pop(name, None))
        if entry is None:
            self._execute("DELETE FROM store WHERE key=?", (name,))
            return
        data, file = blob or self._blob(entry.data)
        type_name = text_bytes(entry.type_name)
        own = self._count(digest("store", name, entry.category, type_name, data, file))
        self.store[name] = own, file
        self._execute("REPLACE INTO store VALUES (?,?,?,?,?,?)", (name, entry.category, type_name, data, file, own))

    def _put_compensation(
        self,
        number: int,
        visit: int,
        state: str,
        status: str,
        blob: bytes | None,
        file: str | None,
        error: ErrorRecord | None,
    ) -> None:
        known = self.compensations.get(number)
        if known is not None:
            self._forget((known[4], None))
        facts = pack((visit, state, status, error))
        own = self._count(digest("compensations", number, facts, blob, file))
        self.compensations[number] = visit, state, blob, file, own
        self._execute("REPLACE INTO compensations VALUES (?,?,?,?,?)", (number, facts, blob, file, own))

    def _leave(self, commit: Commit, following: str, taken: set[str | None]) -> None:
        """Close a visit, drop what belongs to it alone, open the next. Files that were ``taken`` stay."""
        visit = commit.visit
        now = _clock.epoch()
        entered = self.visits[visit][1][1] if visit in self.visits else now
        self._put_visit(
            visit, (commit.state, entered, now, following, commit.attempts, commit.total, commit.duration, commit.error)
        )
        if visit in self.operations:
            total, files = self.operations.pop(visit)
            self._forget((total, None))
            self._dead += [name for name in files if name not in taken]
            self._execute("DELETE FROM operations WHERE visit=?", (visit,))
        mine = [key for key in self.cursors if key[0] == visit]
        for key in mine:
            self._forget(self.cursors.pop(key))
        if mine:
            self._execute("DELETE FROM cursors WHERE visit=?", (visit,))
        self._put_visit(visit + 1, (following, now, None, None, 0, None, None, None))
        del self.visits[visit]
        self.left = visit
