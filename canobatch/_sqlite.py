"""The only door to sqlite3: how a database is opened, brought to its schema, and what its errors mean.

A database file is never opened but through sqlite3: closing any other descriptor of it would drop the locks
that this process holds on it. Every write begins with BEGIN IMMEDIATE: a transaction that begins as a reader
can fail at its first write, whatever the timeout.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from canobatch.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Connection = sqlite3.Connection

#: Of the library.
VERSION = sqlite3.sqlite_version

#: What a process's end may take with it: nothing, or nothing also when the machine loses power.
Durable = Literal["process", "power"]

#: In the header of all our databases: "CANO".
_APPLICATION = 0x43414E4F

#: Bytes of a write-ahead log from which on it is written back.
_LONG_LOG = 16 << 20

#: Seconds to wait for another process's transaction. All of ours are short.
_PATIENCE = 20.0


def create(path: Path) -> Connection:
    """Open a database for writing, made if there is none; only its owner may read it."""
    with translated(path):
        connection = _open(path, "rwc")
        try:
            # Before anything is in it; its journals get the same mode.
            if path.stat().st_size == 0:
                path.chmod(0o600)
        except BaseException:
            connection.close()
            raise
        return connection


def connect(path: Path) -> Connection:
    """Open a database that exists for writing."""
    with translated(path):
        return _open(path, "rw")


def connect_readonly(path: Path) -> Connection:
    """Open a database that exists; it can change nothing, and sees what another process commits."""
    with translated(path):
        return _open(path, "ro")


def _open(path: Path, mode: str) -> Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_PATIENCE,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def use_write_ahead_log(connection: Connection, path: Path, durable: Durable) -> None:
    """Switch a database to a write-ahead log: one writer, and readers that never wait.

    While a log is only appended to, whatever a crash of the machine leaves of it is a state that was, or nothing:
    so "process" waits for the disk no earlier than when the log is written back; see `bound_write_ahead_log`.

    Raises:
        JournalError: It cannot have one, as on most network file systems.
    """
    with translated(path):
        if durable == "process":
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA wal_autocheckpoint=0")
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise JournalError(
                f"{path} cannot have a write-ahead log (its journal mode stays {mode!r}), as on a network file "
                f"system; use a directory on a local disk",
                path=str(path),
                reason="network",
            )
        if durable == "power":
            connection.execute("PRAGMA synchronous=FULL")


def bound_write_ahead_log(connection: Connection, path: Path) -> bool:
    """Have a log that has grown long written back now and then; return whether it is from now on.

    What is written back, and what then overwrites the log, has to wait for the disk: a state of which only a
    part was written would be none.
    """
    if os.stat(f"{path}-wal").st_size < _LONG_LOG:  # noqa: PTH116 - after each transaction
        return False
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=1000")
    return True


def use_rollback_journal(connection: Connection, path: Path, durable: Durable) -> None:
    """Let several processes write, one at a time and seldom."""
    with translated(path):
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable == 'power' else 'NORMAL'}")


def leave_write_ahead_log(connection: Connection, *, waits_for_disk: bool) -> None:
    """Make the database one plain file again, if nobody reads it just now."""
    with suppress(sqlite3.Error):
        if not waits_for_disk:
            connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA busy_timeout=100")
        connection.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite itself has rolled back after some errors, a full disk for one.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def part(connection: Connection) -> Iterator[None]:
    """Keep what is done inside, or undo it; inside of a transaction."""
    connection.execute("SAVEPOINT part")
    try:
        yield
        connection.execute("RELEASE part")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK TO part")
            connection.execute("RELEASE part")
        raise


@contextmanager
def one_version(connection: Connection) -> Iterator[None]:
    """Read one version of the database, whatever is committed meanwhile."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def migrate(connection: Connection, path: Path, component: str, steps: Sequence[Sequence[str]]) -> None:
    """Bring the tables of ``component`` to the schema that ``steps`` make, inside the caller's transaction.

    Components share a file without knowing of each other. A step is never changed once it was released.

    Args:
        connection: In a transaction.
        path: The file, for messages.
        component: Whose tables they are.
        steps: Statements that lead from version n to n + 1.

    Raises:
        JournalError: The file is not ours, or was made by a newer version; it is left as it is.
    """
    version = schema_version(connection, path, component, len(steps))
    if version == len(steps):
        return
    if version == 0:
        connection.execute(f"PRAGMA application_id={_APPLICATION}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS canobatch_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
        )
    for step in steps[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute("REPLACE INTO canobatch_schema VALUES (?, ?)", (component, len(steps)))


def schema_version(connection: Connection, path: Path, component: str, newest: int) -> int:
    """Return which schema the tables of ``component`` have; 0: there are none.

    Raises:
        JournalError: The file is not ours, or was made by a newer version.
    """
    # In this order: another process may make them, both at once, between the two.
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION:
        if not tables and application == 0:
            return 0
        raise JournalError(
            f"{path} is not a database of canobatch; nothing was changed", path=str(path), reason="foreign"
        )
    found = connection.execute("SELECT version FROM canobatch_schema WHERE component=?", (component,)).fetchone()
    version = 0 if found is None else found[0]
    if not isinstance(version, int) or version < 0:
        raise corrupt(path, "its schema has no version")
    if version > newest:
        raise JournalError(
            f"{path} has version {version} of the {component} tables, this canobatch knows up to {newest}; "
            f"upgrade canobatch; nothing was changed",
            path=str(path),
            reason="newer",
        )
    return version


# -- what an error means

_MEANINGS = {
    sqlite3.SQLITE_FULL: ("full", "there is no space left for {path}; free some, then try again"),
    sqlite3.SQLITE_READONLY: ("readonly", "{path} or its directory cannot be written"),
    sqlite3.SQLITE_PERM: ("readonly", "{path} may not be written"),
    sqlite3.SQLITE_CANTOPEN: ("readonly", "{path} cannot be opened or created"),
    sqlite3.SQLITE_CORRUPT: ("corrupt", "{path} is damaged; nothing was changed"),
    sqlite3.SQLITE_NOTADB: ("corrupt", "{path} is not a database, or is damaged; nothing was changed"),
    sqlite3.SQLITE_BUSY: ("busy", "{path} was locked by another process for too long"),
    sqlite3.SQLITE_LOCKED: ("busy", "{path} was locked for too long"),
    sqlite3.SQLITE_IOERR: ("io", "reading or writing {path} failed"),
    sqlite3.SQLITE_PROTOCOL: ("busy", "{path} was locked by another process for too long"),
    sqlite3.SQLITE_TOOBIG: ("full", "a value is too large for {path}"),
    sqlite3.SQLITE_CONSTRAINT: ("duplicate", "{path} has this row already"),
}
_OS_MEANINGS = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EFBIG: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EACCES: sqlite3.SQLITE_READONLY,
    errno.EPERM: sqlite3.SQLITE_READONLY,
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what sqlite3 and the file system raise into a `JournalError` that names the file."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise JournalError(f"{path} is closed here ({error})", path=str(path), reason="closed") from error
    except sqlite3.Error as error:
        # A text that is no text has no code of its own.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        # The write-ahead log's index did not find room.
        code = sqlite3.SQLITE_FULL if code == sqlite3.SQLITE_IOERR_SHMSIZE else code & 0xFF
        raise _meaning(path, code, error) from error
    except OSError as error:
        raise meaning_of(path, error) from error


def meaning_of(path: Path, error: OSError) -> JournalError:
    """Return what an error of the file system means."""
    return _meaning(path, _OS_MEANINGS.get(error.errno or 0, sqlite3.SQLITE_IOERR), error)


def _meaning(path: Path, code: int, error: Exception) -> JournalError:
    reason, text = _MEANINGS.get(code, ("io", "{path} cannot be used"))
    return JournalError(f"{text.format(path=path)} ({error})", path=str(path), reason=reason)


def corrupt(path: Path, what: str) -> JournalError:
    """Return the error of a file whose content cannot be true."""
    return JournalError(f"{path} is damaged: {what}; nothing was changed", path=str(path), reason="corrupt")
