"""Large values: a file each, in the run's directory, whole before any row refers to it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch import _faults, _sqlite
from canobatch.errors import JournalError
from canobatch.journal._rows import content_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from canobatch.effects import Flat

#: Values of this many bytes and more get a file: a page at a time through a log costs ten times more.
LARGE = 1 << 16


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ValueFiles:
    """The value files of one run. Names are never used twice: ``life`` is another at each take-over."""

    def __init__(self, directory: Path, life: int, durable: _sqlite.Durable) -> None:
        self._directory = directory
        self._life = life
        self._count = 0
        #: Whether what is written is to survive a loss of power.
        self.is_synced = durable == "power"
        self._is_there = directory.is_dir()

    def write(self, data: Flat) -> tuple[str, bytes]:
        """Write a value; return its file's name and digest. Nobody reads it before a row refers to it.

        Raises:
            JournalError: It cannot be written; nothing of it is left under its name.
        """
        self._count += 1
        name = f"{self._life}-{self._count}"
        path = self._directory / name
        with _sqlite.translated(path):
            if not self._is_there:
                self._directory.mkdir(mode=0o700, exist_ok=True)
                if self.is_synced:
                    sync_directory(self._directory.parent)
                self._is_there = True
            _faults.point("journal.file.before")
            try:
                self._fill(path, data)
            except BaseException:
                with suppress(OSError):
                    path.unlink()
                raise
            if self.is_synced:
                sync_directory(self._directory)
            _faults.point("journal.file.after")
        return name, content_digest(data)

    def _fill(self, path: Path, data: Flat) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            if self.is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)

    def drop(self, names: list[str]) -> None:
        """Delete files to which no durable row refers any more."""
        for name in names:
            with suppress(OSError):
                (self._directory / name).unlink()

    def sweep(self, referred: AbstractSet[str]) -> None:
        """Delete what a crash left: files whose row was never committed, or is gone."""
        if not self._is_there:
            return
        with suppress(OSError):
            self.drop([path.name for path in self._directory.iterdir() if path.name not in referred])


def read_value(directory: Path, name: str, expected: bytes) -> bytes:
    """Return a value that has a file.

    Raises:
        JournalError: The file is missing, or is not what was written.
    """
    path = directory / name
    try:
        with _sqlite.translated(path):
            data = path.read_bytes()
    except JournalError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _sqlite.corrupt(path, "a value's file is missing") from error
        raise
    if content_digest(data) != expected:
        raise _sqlite.corrupt(path, "it does not hold what was written")
    return data


# Operations hold their large data as references, [name, digest]: nothing else in them is a list.


def references(operations: Any) -> Iterator[str]:
    """Yield the names of the files that operations refer to."""
    if isinstance(operations, list):
        yield operations[0]
    elif isinstance(operations, tuple):
        for part in operations:
            yield from references(part)


def with_values(operations: Any, directory: Path) -> Any:
    """Return operations with what they refer to.

    Raises:
        JournalError: A file is missing, or is not what was written.
    """
    if isinstance(operations, list):
        return read_value(directory, *operations)
    if isinstance(operations, tuple):
        return tuple(with_values(part, directory) for part in operations)
    return operations
