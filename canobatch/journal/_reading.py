"""Reads one run's database, and believes nothing that does not fit its digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch import _sqlite
from canobatch.effects import Entry, ErrorRecord
from canobatch.journal._database import COMPONENT, NO_BRANCH, STEPS
from canobatch.journal._rows import MODULUS, bytes_text, digest, unpack
from canobatch.journal._values import read_value, with_values
from canobatch.journal.history import status_of, summary_of
from canobatch.journal.records import AttemptRecord, CompensationRecord, Owner, RunFacts, RunHistory, VisitRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from canobatch.effects import Operation

_TABLES = {
    "run": "SELECT facts, params, file, digest FROM run",
    "visits": "SELECT visit, facts, digest FROM visits ORDER BY visit",
    "attempts": "SELECT visit, branch, number, facts, value, file, digest FROM attempts ORDER BY visit, branch, number",
    "operations": "SELECT visit, branch, number, data, file, digest FROM operations",
    "store": "SELECT key, category, type_name, data, file, digest FROM store ORDER BY key",
    "cursors": "SELECT visit, name, data, file, digest FROM cursors",
    "compensations": "SELECT number, facts, output, file, digest FROM compensations ORDER BY number",
}


class Reading:
    """A database in one version of it. Rows are given out once their digests were checked."""

    def __init__(self, connection: _sqlite.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        #: The sum of the digests of all rows that were read.
        self.seal = 0
        self.transactions = 0

    def has_run(self) -> bool:
        """Return whether a run was begun in it.

        Raises:
            JournalError: It is not ours, newer, or damaged.
        """
        with _sqlite.translated(self.path):
            return _sqlite.schema_version(self._connection, self.path, COMPONENT, len(STEPS)) > 0

    def rows(self, table: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table, their digests included."""
        with _sqlite.translated(self.path):
            for row in self._connection.execute(_TABLES[table]):
                yield self._checked(table, row)

    def _checked(self, table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
        own = row[-1]
        if digest(table, *row[:-1]) != own:
            raise _sqlite.corrupt(self.path, f"a row of its {table} is not what was written")
        self.seal = (self.seal + own) % MODULUS
        return row

    def check_seal(self) -> None:
        """Check, when all tables were read, that no row is missing.

        Raises:
            JournalError: Some are.
        """
        with _sqlite.translated(self.path):
            head = self._connection.execute("SELECT transactions, seal FROM head").fetchall()
        if len(head) != 1 or head[0][1] != self.seal or not isinstance(head[0][0], int):
            raise _sqlite.corrupt(self.path, "rows are missing, or are of another time than the rest")
        self.transactions = head[0][0]

    def run(self) -> tuple[dict[str, Any], tuple[bytes | None, str | None], int]:
        """Return the row of the run: facts, parameters (a blob and its file), digest."""
        rows = list(self.rows("run"))
        if len(rows) != 1:
            raise _sqlite.corrupt(self.path, "the row of its run is missing")
        facts, params, file, own = rows[0]
        return dict(unpack(facts)), (params, file), own

    def attempts(self, visit: int, directory: Path) -> Iterator[AttemptRecord]:
        """Yield a visit's attempts with their values and operations."""
        with _sqlite.translated(self.path):
            operations = {
                row[:3]: self._checked("operations", row)
                for row in self._connection.execute(
                    "SELECT visit, branch, number, data, file, digest FROM operations WHERE visit=?", (visit,)
                )
            }
            rows = self._connection.execute(
                "SELECT visit, branch, number, facts, value, file, digest FROM attempts WHERE visit=?"
                " ORDER BY branch, number",
                (visit,),
            )
            for row in rows:
                self._checked("attempts", row)
                attempt = attempt_of(row)
                own = operations.get(row[:3])
                yield attempt._replace(
                    value=blob(directory, row[4], row[5]),
                    operations=() if own is None else _operations(directory, own[3], own[4]),
                )


def blob(directory: Path, data: Any, file: str | None) -> bytes | None:
    """Return the bytes of a column, from its file if it has one."""
    return data if file is None else read_value(directory, file, data)


def _operations(directory: Path, data: Any, file: str | None) -> tuple[Operation, ...]:
    return tuple(with_values(unpack(blob(directory, data, file) or b""), directory))


def facts_of(facts: dict[str, Any]) -> RunFacts:
    """Return the row of a run with its parts as what they are."""
    known = {name: facts[name] for name in RunFacts._fields}
    known["owner"] = Owner(*known["owner"])
    known["error"] = error_of(known["error"])
    known["rollback"] = error_of(known["rollback"])
    return RunFacts(**known)


def error_of(data: tuple[Any, ...] | None) -> ErrorRecord | None:
    """Return an error as its record."""
    return None if data is None else ErrorRecord(*data)


def visit_of(row: tuple[Any, ...]) -> VisitRecord:
    """Return a row of the visits."""
    state, entered, left, following, attempts, total, duration, error = unpack(row[1])
    return VisitRecord(row[0], state, entered, left, following, attempts, total, duration, error_of(error))


def attempt_of(row: tuple[Any, ...]) -> AttemptRecord:
    """Return a row of the attempts, without its value."""
    visit, branch = row[:2]
    life, number, status, started, duration, cpu_time, max_rss, item, error = unpack(row[3])
    return AttemptRecord(
        visit,
        None if branch == NO_BRANCH else branch,
        number,
        status,
        None,
        (),
        error_of(error),
        started,
        duration,
        cpu_time,
        max_rss,
        item,
        life,
    )


def compensation_of(row: tuple[Any, ...], read: Callable[[Any, str | None], bytes | None]) -> CompensationRecord:
    """Return a row of the compensations."""
    visit, state, status, error = unpack(row[1])
    return CompensationRecord(row[0], visit, state, status, read(row[2], row[3]), error_of(error))


def store_of(row: tuple[Any, ...], directory: Path) -> tuple[str, Entry]:
    """Return a row of the store."""
    data = blob(directory, row[3], row[4])
    return bytes_text(row[0]), Entry(data or b"", row[1], bytes_text(row[2]))


def read_history(reading: Reading, *, is_held: bool) -> RunHistory:
    """Return a run without its values.

    Raises:
        JournalError: It is damaged.
    """
    facts = facts_of(reading.run()[0])
    visits = tuple(visit_of(row) for row in reading.rows("visits"))
    attempts = tuple(attempt_of(row) for row in reading.rows("attempts"))
    compensations = tuple(compensation_of(row, lambda *_: None) for row in reading.rows("compensations"))
    for table in ("operations", "store", "cursors"):
        for _ in reading.rows(table):
            pass
    reading.check_seal()
    return RunHistory(summary_of(facts, status_of(facts, is_held=is_held)), visits, attempts, compensations)
