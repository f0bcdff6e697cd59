"""All that a resumed run needs, read and checked as a whole before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.journal._database import RunDatabase
from canobatch.journal._reading import blob, compensation_of, store_of, visit_of
from canobatch.journal._rows import MODULUS, bytes_text, unpack
from canobatch.journal._values import references
from canobatch.journal.records import Recovered, RunStatus

if TYPE_CHECKING:
    from pathlib import Path

    from canobatch import _sqlite
    from canobatch.effects import Entry
    from canobatch.journal._reading import Reading
    from canobatch.journal._values import ValueFiles
    from canobatch.journal.records import CompensationRecord, RunFacts, VisitRecord


class Loaded:
    """What the rows of a run say, and what its writer has to know of them.

    Values of attempts are not kept: there may be many. Those of the store are.

    Raises:
        JournalError: The run is damaged.
    """

    def __init__(self, reading: Reading, values: Path) -> None:
        self._reading = reading
        self._values = values
        #: The names of all value files that a row refers to.
        self.files: set[str] = set()
        self.visits: list[VisitRecord] = []
        self.store: dict[str, Entry] = {}
        self.compensations: list[CompensationRecord] = []
        self._cursors: dict[tuple[int, str], bytes] = {}
        self._kept_visits: dict[int, tuple[int, tuple[Any, ...]]] = {}
        self._kept_store: dict[bytes, tuple[int, str | None]] = {}
        self._kept_cursors: dict[tuple[int, bytes], tuple[int, str | None]] = {}
        self._kept_operations: dict[int, tuple[int, list[str]]] = {}
        self._kept_compensations: dict[int, tuple[int, str, bytes | None, str | None, int]] = {}
        self._recorded = 0
        self._read()
        reading.check_seal()

    def _read(self) -> None:
        for row in self._reading.rows("visits"):
            record = visit_of(row)
            self.visits.append(record)
            self._kept_visits[record.visit] = row[2], tuple(record[1:])
        for row in self._reading.rows("attempts"):
            self._refer(row[5])
            self._recorded = max(self._recorded, row[2])
        for row in self._reading.rows("operations"):
            total, files = self._kept_operations.setdefault(row[0], (0, []))
            files += references(unpack(blob(self._values, row[3], row[4]) or b""))
            if row[4] is not None:
                files.append(row[4])
            self.files.update(files)
            self._kept_operations[row[0]] = (total + row[5]) % MODULUS, files
        for row in self._reading.rows("store"):
            key, entry = store_of(row, self._values)
            self._refer(row[4])
            self.store[key] = entry
            self._kept_store[row[0]] = row[5], row[4]
        for row in self._reading.rows("cursors"):
            self._refer(row[3])
            self._cursors[row[0], bytes_text(row[1])] = blob(self._values, row[2], row[3]) or b""
            self._kept_cursors[row[0], row[1]] = row[4], row[3]
        for row in self._reading.rows("compensations"):
            self._refer(row[3])
            compensation = compensation_of(row, lambda data, file: blob(self._values, data, file))
            self.compensations.append(compensation)
            self._kept_compensations[row[0]] = compensation.visit, compensation.state, row[2], row[3], row[4]

    def _refer(self, file: str | None) -> None:
        if file is not None:
            self.files.add(file)

    def recovered(self, facts: RunFacts, params: tuple[bytes | None, str | None], *, is_resumable: bool) -> Recovered:
        """Return what the run has to know; ``params``: a blob and its file."""
        self._refer(params[1])
        status = RunStatus.INTERRUPTED if facts.status == "running" else RunStatus(facts.status)
        last = self.visits[-1].visit if self.visits else 0
        return Recovered(
            run_id=facts.run_id,
            workflow=facts.workflow,
            version=facts.version,
            params=blob(self._values, *params),
            made_with=facts.made_with,
            status=status,
            is_resumable=is_resumable,
            life=facts.life + is_resumable,
            visits=tuple(self.visits),
            store=self.store,
            cursors={name: data for (visit, name), data in self._cursors.items() if visit == last},
            compensations=tuple(self.compensations),
            rollback=facts.rollback,
            state=facts.state,
            error=facts.error,
            owner=facts.owner,
        )

    def database(self, connection: _sqlite.Connection, path: Path, values: ValueFiles, life: int) -> RunDatabase:
        """Return the writing side, which goes on from here."""
        reading = self._reading
        database = RunDatabase(connection, path, values, life, seal=reading.seal, count=reading.transactions)
        left = [record.visit for record in self.visits if record.next_state is not None]
        database.left = max(left, default=0)
        database.visits = {visit: kept for visit, kept in self._kept_visits.items() if visit > database.left}
        database.store = self._kept_store
        database.cursors = self._kept_cursors
        database.operations = self._kept_operations
        database.compensations = self._kept_compensations
        database.recorded = self._recorded
        return database
