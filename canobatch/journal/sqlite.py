"""SqliteJournal: a database per run, written by one thread of its owner and read by anybody."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from canobatch import _clock, _faults, _sqlite
from canobatch._locks import FileLock, is_held
from canobatch.errors import (
    ConfigurationError,
    JournalError,
    RunInUseError,
    RunNotFoundError,
)
from canobatch.journal import owner
from canobatch.journal._database import COMPONENT, STEPS, RunDatabase
from canobatch.journal._loading import Loaded
from canobatch.journal._reading import Reading, facts_of, read_history
from canobatch.journal._run import SqliteRun
from canobatch.journal._values import ValueFiles, sync_directory
from canobatch.journal.history import check_definition, damaged, prunable, select, status_of, summary_of
from canobatch.journal.home import Home, Stamp, name_of
from canobatch.journal.records import Owner, Recovered, RunHistory, RunStatus, RunSummary

if TYPE_CHECKING:
    from canobatch.journal.records import NewRun, RunFacts


_ENDED = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.ROLLED_BACK})

#: To read this many runs takes as long as to write an index of them.
_WORTH_INDEXING = 32


class SqliteJournal:
    """Remembers runs in a directory on a local disk, so that they can be resumed after any end of the process.

    Each run has a database of its own, written by one thread of its owner, many outcomes in one transaction;
    everybody may read. Files can be read by their owner alone.

    Args:
        directory: Where; made if missing. Many processes may share it.
        durable: What a recorded outcome survives: "process", any end of this process, also SIGKILL; "power", also
            a crash of the machine, for about 0.2 to 10 ms per transaction.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> import tempfile
        >>> journal = SqliteJournal(tempfile.mkdtemp())
        >>> [run.run_id for run in journal.runs()]
        []
    """

    def __init__(self, directory: str | os.PathLike[str], *, durable: _sqlite.Durable = "process") -> None:
        if durable not in {"process", "power"}:
            raise ConfigurationError(f'durable must be "process" or "power", got {durable!r}')
        if not isinstance(directory, str | os.PathLike):
            raise ConfigurationError(f"directory must be a path, got {directory!r}")
        self._home = Home(Path(directory).absolute(), durable)

    @property
    def directory(self) -> Path:
        """Where the runs are."""
        return self._home.directory

    # -- owning

    def begin(self, run: NewRun) -> SqliteRun:
        """Begin a run; see `Journal.begin`."""
        home, name = self._home, name_of(run.run_id)
        home.make()
        lock = self._lock(run.run_id, name)
        try:
            _faults.point("journal.begin.locked")
            self._clear_the_place(run.run_id, name)
            database = self._create(run, name)
            try:
                _faults.point("journal.begin.done")
                return SqliteRun(home, name, facts_of(database.facts), lock, database)
            except BaseException:
                database.close(is_whole=False)
                raise
        except BaseException:
            lock.release(is_last=not home.run(name).exists())
            raise

    def take_over(self, run_id: str, *, workflow: str, version: int) -> tuple[SqliteRun, Recovered]:
        """Become the owner of a run; see `Journal.take_over`."""
        name = name_of(run_id)
        self._require(run_id, name)
        lock = self._lock(run_id, name)
        is_taken = False
        try:
            _faults.point("journal.take.locked")
            # It may have been pruned meanwhile.
            self._require(run_id, name)
            connection = _sqlite.connect(self._home.database(name))
            try:
                journal, recovered = self._taken(connection, run_id, name, (workflow, version), lock)
                is_taken = recovered.is_resumable
            finally:
                if not is_taken:
                    connection.close()
        finally:
            if not is_taken:
                lock.release()
        return journal, recovered

    def _require(self, run_id: str, name: str) -> None:
        if not self._home.has(name):
            raise self._not_found(run_id)

    def _lock(self, run_id: str, name: str) -> FileLock:
        path = self._home.lock(name)
        lock = FileLock(path)
        with _sqlite.translated(path):
            if lock.acquire():
                return lock
        known = self._owner_of(name)
        who = "a process" if known is None else f"process {known.pid} on {known.host}"
        raise RunInUseError(
            f"run {run_id} is in use by {who}; wait for its end, or cancel it",
            run_id=run_id,
            pid=None if known is None else known.pid,
            path=str(self._home.database(name)),
        )

    def _owner_of(self, name: str) -> Owner | None:
        # For a message only.
        with suppress(JournalError):
            found = self._facts(name)
            return None if found is None else found.owner
        return None

    def _not_found(self, run_id: str) -> RunNotFoundError:
        text = f"no run {run_id} in {self._home.directory}; list the runs that there are"
        return RunNotFoundError(text, run_id=run_id, path=str(self._home.directory))

    def _clear_the_place(self, run_id: str, name: str) -> None:
        """Remove what a run left that was killed before it began, and nothing else."""
        directory, path = self._home.run(name), self._home.database(name)
        if self._facts(name) is not None:
            raise RunInUseError(
                f"there is a run {run_id} already in {self._home.directory}; resume it, or choose another id",
                run_id=run_id,
                path=str(path),
            )
        with _sqlite.translated(directory):
            if (directory / "values").exists():
                raise _sqlite.corrupt(path, "it has lost all that it held")
            if directory.exists():
                shutil.rmtree(directory)

    def _create(self, run: NewRun, name: str) -> RunDatabase:
        home, path = self._home, self._home.database(name)
        with _sqlite.translated(path):
            home.run(name).mkdir(mode=0o700)
            connection = _sqlite.create(path)
            try:
                _sqlite.use_write_ahead_log(connection, path, home.durable)
                _faults.point("journal.begin.created")
                database = RunDatabase(connection, path, ValueFiles(home.run(name) / "values", 1, home.durable), 1)
                with _sqlite.transaction(connection):
                    _sqlite.migrate(connection, path, COMPONENT, STEPS)
                    database.apply([(RunDatabase.begin, (run, owner.this_process(), _clock.epoch()))])
                if home.durable == "power":
                    for directory in (home.run(name), home.runs, home.directory):
                        sync_directory(directory)
            except BaseException as error:
                connection.close()
                if isinstance(error, Exception):
                    # What could not begin leaves nothing, least of all on a full disk.
                    shutil.rmtree(home.run(name), ignore_errors=True)
                raise
        return database

    def _taken(
        self,
        connection: _sqlite.Connection,
        run_id: str,
        name: str,
        wanted: tuple[str, int],
        lock: FileLock,
    ) -> tuple[SqliteRun, Recovered]:
        home, path = self._home, self._home.database(name)
        reading = Reading(connection, path)
        if not reading.has_run():
            text = f"run {run_id} was killed before it began, or {path} lost all it had; begin it anew"
            raise RunNotFoundError(text, run_id=run_id, path=str(path))
        raw, params, run_digest = reading.run()
        facts = facts_of(raw)
        if facts.run_id != run_id:
            raise _sqlite.corrupt(path, f"it holds run {facts.run_id}, not {run_id}")
        check_definition(facts, wanted[0], wanted[1], path)
        loaded = Loaded(reading, home.run(name) / "values")
        _faults.point("journal.take.loaded")
        is_resumable = facts.status == "running" or facts.is_resumable
        recovered = loaded.recovered(facts, params, is_resumable=is_resumable)
        if not is_resumable:
            return SqliteRun(home, name, facts, None, None), recovered
        life = recovered.life
        values = ValueFiles(home.run(name) / "values", life, home.durable)
        database = loaded.database(connection, path, values, life)
        database.facts, database.params, database.run_digest = raw, params, run_digest
        _sqlite.use_write_ahead_log(connection, path, home.durable)
        database.write([(RunDatabase.take_over, ())])
        _faults.point("journal.take.done")
        values.sweep(loaded.files)
        return SqliteRun(home, name, facts_of(database.facts), lock, database), recovered

    # -- history

    def runs(
        self, *, workflow: str | None = None, status: RunStatus | None = None, since: float | None = None
    ) -> list[RunSummary]:
        """Return the runs, the latest first; see `Journal.runs`."""
        home = self._home
        names, indexed = home.names(), home.indexed()
        fresh: dict[str, tuple[Stamp, RunSummary]] = {}
        found = []
        for name in names:
            stamp, known = home.stamp(name), indexed.get(name)
            if known is not None and known[0] == stamp:
                found.append(known[1])
            elif (summary := self._present(name, known and known[1])) is not None:
                found.append(summary)
                if stamp is not None and summary.status in _ENDED:
                    fresh[name] = stamp, summary
        if len(fresh) >= _WORTH_INDEXING:
            with suppress(JournalError):
                home.index_also(fresh, names)
        return select(found, workflow, status, since)

    def run(self, run_id: str) -> RunHistory:
        """Return one run's history; see `Journal.run`."""
        name = name_of(run_id)
        path = self._home.database(name)
        self._require(run_id, name)
        is_live = is_held(self._home.lock(name))
        connection = _sqlite.connect_readonly(path)
        try:
            with _sqlite.one_version(connection):
                reading = Reading(connection, path)
                if not reading.has_run():
                    raise self._not_found(run_id)
                return read_history(reading, is_held=is_live)
        finally:
            connection.close()

    def prune(self, *, older_than: float | None = None, keep: int | None = None) -> list[str]:
        """Remove runs that have ended; see `Journal.prune`."""
        self._sweep()
        doomed = prunable(self.runs(), _clock.epoch(), older_than, keep)
        return [run_id for run_id in doomed if self._remove(name_of(run_id))]

    def _remove(self, name: str) -> bool:
        """Remove an ended run; returns whether nobody took it over meanwhile."""
        home = self._home
        lock = FileLock(home.lock(name))
        with _sqlite.translated(home.lock(name)):
            if not lock.acquire():
                return False
        try:
            facts = self._facts(name)
            if facts is None or facts.status == "running":
                return False
            with _sqlite.translated(home.run(name)):
                # First it is no run any more, then it goes: nobody finds a part of it.
                waste = home.runs / f".{os.urandom(8).hex()}"
                home.run(name).rename(waste)
                _faults.point("journal.prune.renamed")
                shutil.rmtree(waste)
                _faults.point("journal.prune.removed")
        finally:
            lock.release(is_last=not home.run(name).exists())
        return True

    def _sweep(self) -> None:
        """Finish what a prune that was killed had begun."""
        with _sqlite.translated(self._home.runs):
            if self._home.runs.is_dir():
                for path in self._home.runs.iterdir():
                    if path.name.startswith("."):
                        shutil.rmtree(path, ignore_errors=True)

    def _present(self, name: str, indexed: RunSummary | None) -> RunSummary | None:
        """Return how a run stands now, ``indexed`` what was known of it; None: it has not begun, or is gone."""
        # Before the file is read: a run that ends meanwhile is then said to have ended, not to be interrupted.
        is_live = is_held(self._home.lock(name))
        try:
            facts = self._facts(name)
        except JournalError as error:
            if not self._home.has(name):
                return None
            if indexed is None:
                indexed = RunSummary(
                    unquote(name), "", 0, RunStatus.DAMAGED, None, 0.0, None, None, Owner(0, 0, "", 0, "")
                )
            return damaged(indexed, error)
        return None if facts is None else summary_of(facts, status_of(facts, is_held=is_live))

    def _facts(self, name: str) -> RunFacts | None:
        """Return the row of a run; None: it has none, or no database."""
        path = self._home.database(name)
        if not self._home.has(name):
            return None
        connection = _sqlite.connect_readonly(path)
        try:
            with _sqlite.translated(path), _sqlite.one_version(connection):
                reading = Reading(connection, path)
                return facts_of(reading.run()[0]) if reading.has_run() else None
        finally:
            connection.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self._home.directory), self._home.durable)

    def __repr__(self) -> str:
        return f"SqliteJournal({str(self._home.directory)!r}, durable={self._home.durable!r})"


def _reopened(directory: str, durable: _sqlite.Durable) -> SqliteJournal:
    return SqliteJournal(directory, durable=durable)
