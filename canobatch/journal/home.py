"""Where runs are kept, and the index of them.

::

    home.db                    the index; others keep tables of their own in it
    locks/<run>.lock           held by the run's owner
    runs/<run>/run.db          one run
    runs/<run>/values/         its large values

The index is for speed: whoever lists the runs remembers there those that ended, so that they need not be
opened again. What it says of a run holds as long as the run's file is the one that was read.
"""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from canobatch import _sqlite
from canobatch.errors import JournalError
from canobatch.journal._rows import digest, pack, unpack
from canobatch.journal.records import Owner, RunStatus, RunSummary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

_COMPONENT = "runs"
_STEPS = (
    ("CREATE TABLE runs (name TEXT PRIMARY KEY, facts BLOB, digest INTEGER) WITHOUT ROWID",),
    # The facts begin with a stamp.
    ("DELETE FROM runs",),
)

#: Tells whether a database is as it was: its inode, when it was changed last, its size.
Stamp = tuple[int, int, int]

#: Bytes of a file's name that a run's id may take, with room for a suffix.
_LONGEST = 200


def name_of(run_id: str) -> str:
    """Return the name of a run's files: the id where that can be one."""
    name = quote(run_id.encode("utf-8", "surrogatepass"), safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not 0 < len(name) <= _LONGEST:
        # No quoted id begins like this.
        name = "%%" + blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
    return name


class Home:
    """The paths and the index below one directory."""

    def __init__(self, directory: Path, durable: _sqlite.Durable) -> None:
        self.directory = directory
        self.durable: _sqlite.Durable = durable
        self.index = directory / "home.db"
        self.runs = directory / "runs"
        self.locks = directory / "locks"

    def make(self) -> None:
        """Make the directories.

        Raises:
            JournalError: They cannot be made.
        """
        with _sqlite.translated(self.directory):
            if self.runs.is_dir() and self.locks.is_dir():
                return
            try:
                for path in (self.directory, self.runs, self.locks):
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise JournalError(
                    f"{error.filename} is a file, or below one, so it can be no directory; name another",
                    path=str(self.directory),
                    reason="foreign",
                ) from error

    def run(self, name: str) -> Path:
        """Return a run's directory."""
        return self.runs / name

    def database(self, name: str) -> Path:
        """Return a run's database."""
        return self.runs / name / "run.db"

    def lock(self, name: str) -> Path:
        """Return a run's lock file."""
        return self.locks / f"{name}.lock"

    def names(self) -> list[str]:
        """Return the names of all runs that have a directory."""
        with _sqlite.translated(self.runs):
            if not self.runs.is_dir():
                return []
            return sorted(path.name for path in self.runs.iterdir() if not path.name.startswith("."))

    def has(self, name: str) -> bool:
        """Return whether a run has a database.

        Raises:
            JournalError: That is not to be seen.
        """
        path = self.database(name)
        with _sqlite.translated(path):
            return path.exists()

    # -- the index

    def stamp(self, name: str) -> Stamp | None:
        """Return the stamp of a run's database; None while it has a log beside it, or is gone."""
        path = self.database(name)
        try:
            found = path.stat()
            # Once there is none, the next writer first changes the database.
            if path.with_name("run.db-wal").exists():
                return None
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns, found.st_size

    def index_also(self, found: Mapping[str, tuple[Stamp, RunSummary]], names: Sequence[str]) -> None:
        """Add runs that ended to the index; all that are not among ``names`` are dropped."""
        with _sqlite.translated(self.index), self._opened() as connection:
            gone = {name for (name,) in connection.execute("SELECT name FROM runs")}.difference(names)
            connection.executemany("DELETE FROM runs WHERE name=?", [(name,) for name in gone])
            for name, (stamp, summary) in found.items():
                facts = pack((stamp, *(getattr(summary, field) for field in RunSummary.__slots__)))
                connection.execute("REPLACE INTO runs VALUES (?,?,?)", (name, facts, digest("runs", name, facts)))

    def indexed(self) -> dict[str, tuple[Stamp, RunSummary]]:
        """Return what the index says, by name.

        Raises:
            JournalError: It cannot be read, is damaged, or newer.
        """
        with _sqlite.translated(self.index):
            if not self.index.exists():
                return {}
            return {name: _indexed(self.index, name, facts, own) for name, facts, own in self._read()}

    def _read(self) -> list[tuple[Any, ...]]:
        try:
            # Not read-only: what a killed writer left has to be rolled back first.
            connection = _sqlite.connect(self.index)
        except JournalError:
            connection = _sqlite.connect_readonly(self.index)
        try:
            if _sqlite.schema_version(connection, self.index, _COMPONENT, len(_STEPS)) < len(_STEPS):
                return []
            return connection.execute("SELECT name, facts, digest FROM runs").fetchall()
        finally:
            connection.close()

    def _opened(self) -> AbstractContextManager[_sqlite.Connection]:
        return _index(self.index, self.durable)


@contextmanager
def _index(path: Path, durable: _sqlite.Durable) -> Iterator[_sqlite.Connection]:
    """Open the index in a transaction of its own."""
    connection = _sqlite.create(path)
    try:
        # What is not ours is not even switched to another mode.
        _sqlite.schema_version(connection, path, _COMPONENT, len(_STEPS))
        _sqlite.use_rollback_journal(connection, path, durable)
        with _sqlite.transaction(connection):
            _sqlite.migrate(connection, path, _COMPONENT, _STEPS)
            yield connection
    finally:
        connection.close()


def _indexed(path: Path, name: str, facts: bytes, own: int) -> tuple[Stamp, RunSummary]:
    if digest("runs", name, facts) != own:
        raise _sqlite.corrupt(path, "a row of its runs is not what was written")
    stamp, run_id, workflow, version, status, state, started, ended, error, owner = unpack(facts)
    summary = RunSummary(run_id, workflow, version, RunStatus(status), state, started, ended, error, Owner(*owner))
    return stamp, summary
